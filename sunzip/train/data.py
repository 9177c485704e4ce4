"""Batches for training: frames or views of them, varied as the Sun itself varies, made ahead of use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.errors import InputError
from sunzip.normalize import Stabiliser
from sunzip.train.frames import Example, Frames, Half

Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_Batch = TypeVar("_Batch")

_BX, _BY = NAMES.index("Bx"), NAMES.index("By")

#: Batches that are made ahead, and threads that make them.
_AHEAD, _THREADS = 6, 3


def spread(banks: Sequence[Sequence[Example]], stabiliser: Stabiliser) -> Float:
    """Return (12,) standard deviations of the stabilised channels, averaged over banks that hold them.

    Raises
    ------
    InputError
        If a channel is in no bank, or the same everywhere.
    """
    per_bank = []
    for bank in banks:
        squares, counts = np.zeros(len(NAMES)), np.zeros(len(NAMES))
        sums = np.zeros(len(NAMES))
        for example in bank:
            y = stabiliser.forward(example.pixels.astype(np.float32))
            finite = np.isfinite(y)
            y = np.where(finite, y, 0).astype(np.float64)
            sums += y.sum((1, 2))
            squares += (y**2).sum((1, 2))
            counts += finite.sum((1, 2))
        with np.errstate(invalid="ignore"):
            mean = sums / np.where(counts, counts, np.nan)
            variance = squares / np.where(counts, counts, np.nan) - mean**2
        per_bank.append(np.sqrt(np.maximum(variance, 0)))
    known = np.isfinite(per_bank)
    total = np.where(known, per_bank, 0).sum(axis=0)
    if not (total > 0).all():
        lacking = " ".join(np.array(NAMES)[~(total > 0)])
        raise InputError(f"the frames to train on show nothing of {lacking}; add some that hold all channels")
    width: Float = (total / known.sum(axis=0)).astype(np.float32)
    return width


def turned(pixels: npt.NDArray[np.floating], quarters: int, mirror: bool) -> npt.NDArray[np.floating]:
    """Turn an image clockwise by quarters and then mirror it north to south, the field's components with it.

    Parameters
    ----------
    pixels
        (12, Y, X), row 0 south, column 0 east.
    quarters
        0 to 3.
    mirror
        Whether to mirror.
    """
    out = np.rot90(pixels, quarters, (1, 2)).copy()
    # A vector (x, y) that is turned clockwise becomes (y, -x).
    if quarters % 2:
        out[[_BX, _BY]] = out[[_BY, _BX]]
    if quarters in (2, 3):
        out[_BX] *= -1
    if quarters in (1, 2):
        out[_BY] *= -1
    if mirror:
        out = out[:, ::-1]
        out[_BY] *= -1
    return out


@dataclass(frozen=True, slots=True)
class View:
    """How examples are cut and varied.

    Attributes
    ----------
    crop
        Side in pixels of the square that is cut.
    gain_jitter
        Standard deviation of ln of a random gain per channel: exposure, degradation, activity.
    drop
        Share of examples that lose a random number of their channels.
    augment
        Whether squares are turned and mirrored and fields reversed; without, neither `gain_jitter` nor
        `drop` count.
    """

    crop: int = 192
    gain_jitter: float = 0.3
    drop: float = 0.35
    augment: bool = True


def view(example: Example, how: View, shrink: int, rng: np.random.Generator) -> tuple[Float, Mask]:
    """Cut one random view; returns (C, crop, crop) float32 in physical units and (C,) presence."""
    side = how.crop * shrink
    pixels = example.pixels
    if min(pixels.shape[1:]) < side:
        shrink, side = 1, how.crop
    oy, ox = (int(rng.integers(0, n - side + 1)) for n in pixels.shape[1:])
    cut: npt.NDArray[np.floating] = pixels[:, oy : oy + side, ox : ox + side].astype(np.float32)
    if shrink > 1:
        cut = cut.reshape(len(cut), how.crop, shrink, how.crop, shrink).mean((2, 4))
    present = example.present.copy()
    if how.augment:
        cut = turned(cut, int(rng.integers(4)), bool(rng.random() < 0.5))
        gain = np.exp(rng.normal(0, how.gain_jitter, (len(cut), 1, 1))).astype(np.float32)
        # A Sun with every field reversed is still a Sun: it is so in the next cycle.
        if rng.random() < 0.5:
            gain[_BX:] *= -1
        cut = cut * gain
        if present.sum() > 1 and rng.random() < how.drop:
            keep = rng.permutation(np.flatnonzero(present))[: int(rng.integers(1, present.sum()))]
            present = np.zeros_like(present)
            present[keep] = True
    return np.ascontiguousarray(cut, np.float32), present


class Views:
    """Batches of random views of groups of examples: what the hyperprior learns from.

    Called with the number of a step, of a rank and of ranks, it gives images (N, C, Y, X), presence (N, C)
    and the pixels that count (N, C, Y, X), all float32 and functions of its arguments and the seed alone.

    Parameters
    ----------
    banks
        Groups of examples and the share of samples that each group gives.
    stabiliser
        Applied to every view.
    batch
        Samples a batch at crop 192; smaller crops give more samples of about as many pixels.
    seed
        Which batches.
    augment
        Whether views are varied, see `View`.

    Raises
    ------
    InputError
        If no example is large enough to cut from.
    """

    def __init__(
        self,
        banks: Sequence[tuple[float, Sequence[Example]]],
        stabiliser: Stabiliser,
        *,
        batch: int,
        seed: int,
        augment: bool = True,
    ) -> None:
        self._views = View(augment=augment), View(crop=128, augment=augment)
        side = self._views[0].crop
        used = [(share, bank) for share, bank in banks if share > 0 and bank]
        if not any(min(e.pixels.shape[1:]) >= side for _, bank in used for e in bank):
            raise InputError(f"no frame has {side}×{side} pixels to cut from; give larger images")
        self.banks = [bank for _, bank in used]
        shares = np.array([share for share, _ in used])
        self.shares = shares / shares.sum()
        self.stabiliser = stabiliser
        self.batch = batch
        self.seed = seed

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Float, Float, Float]:
        """Return the batch of a step, as the class says."""
        rng = np.random.default_rng([self.seed, step, rank])
        # One batch in six looks at the Sun from further away: 128² archives and small images.
        small = rng.random() < 1 / 6
        how = self._views[small]
        count = self.batch * 2 if small else self.batch
        images: list[Float] = []
        masks: list[Mask] = []
        finite: list[Mask] = []
        while len(images) < count:
            bank = self.banks[rng.choice(len(self.banks), p=self.shares)]
            example = bank[int(rng.integers(len(bank)))]
            if min(example.pixels.shape[1:]) < how.crop:
                continue
            shrink = int(rng.choice([2, 4])) if small else 1
            cut, present = view(example, how, shrink, rng)
            y = self.stabiliser.forward(cut)
            ok = np.isfinite(y) & present[:, None, None]
            images.append(np.where(ok, y, np.float32(0)))
            masks.append(present)
            finite.append(ok)
        return np.stack(images), np.stack(masks).astype(np.float32), np.stack(finite).astype(np.float32)


class WholeFrames:
    """Batches of whole frames, each once an epoch in random order: what the σ-VAE learns from.

    Called with the number of a step, of a rank and of ranks, it gives pixels (N, 12, Y, X) float16 in
    physical units and presence (N, 12) bool, functions of its arguments and the seed alone.

    Parameters
    ----------
    frames
        The frames; memory maps will do.
    batch
        Samples a batch of one rank.
    seed
        Which order, and which mirrors.
    augment
        Whether frames are mirrored north to south and east to west, the field's components with them, and
        fields reversed. The centre of the disk stays where it is.
    """

    def __init__(self, frames: Frames, *, batch: int, seed: int, augment: bool) -> None:
        self.frames, self.batch, self.seed, self.augment = frames, batch, seed, augment

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Half, Mask]:
        """Return the batch of a step, as the class says."""
        rng = np.random.default_rng([self.seed, step, rank])
        begin = (step * world + rank) * self.batch
        pixels = np.empty((self.batch, len(NAMES), *self.frames.side), np.float16)
        present = np.empty((self.batch, len(NAMES)), bool)
        for i in range(self.batch):
            epoch, place = divmod(begin + i, len(self.frames))
            example = self.frames[int(_order(self.seed, epoch, len(self.frames))[place])]
            pixels[i], present[i] = example.pixels, example.present
            if self.augment:
                half_turn, mirror, reverse = rng.random(3) < 0.5
                if half_turn or mirror:
                    pixels[i] = turned(pixels[i], 2 * int(half_turn), bool(mirror))
                if reverse:
                    pixels[i, _BX:] *= -1
        return pixels, present


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    # Words of 0 at the end of a seed change nothing; the 1 keeps this apart from the batches' own numbers.
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(count)


def ahead(make: Callable[[int], _Batch], first: int) -> Generator[_Batch]:
    """Yield ``make(first)``, ``make(first + 1)``, … for ever, made by threads while the network runs."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="batches")
    try:
        waiting: deque[Future[_Batch]] = deque(pool.submit(make, first + i) for i in range(_AHEAD))
        step = first + _AHEAD
        while True:
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, step))
            step += 1
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
