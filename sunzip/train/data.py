"""Training examples: random views of frames from any aligned series, some of their channels taken away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel
from sunzip.cube import Cube, Scale
from sunzip.errors import InputError
from sunzip.normalize import Stabiliser

Float = npt.NDArray[np.float32]
_Batch = tuple[Float, Float, Float]


@dataclass(frozen=True, slots=True)
class Example:
    """One frame in memory: (C, Y, X) float16 in DN/s (2×2 means) or G, NaN where missing."""

    pixels: npt.NDArray[np.float16]
    present: npt.NDArray[np.bool_]


def examples(cube: Cube) -> Iterator[Example]:
    """Yield a cube's frames over all 12 channels; half precision holds SDO's range to 1 part in 2000."""
    indexes = [channel(name).index for name in cube.channels]
    data = cube.to_scale(Scale.MEAN).data
    for frame, valid in zip(data, cube.valid, strict=True):
        pixels = np.full((len(NAMES), *frame.shape[1:]), np.nan, np.float16)
        # Stores hold a few flare pixels beyond float16; they saturate, as the detector does.
        pixels[indexes] = np.clip(frame, -60000, 60000)
        present = np.zeros(len(NAMES), bool)
        present[indexes] = valid
        yield Example(pixels, present)


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
        raise InputError(f"the examples show nothing of {lacking}; add frames that hold all channels")
    width: Float = (total / known.sum(axis=0)).astype(np.float32)
    return width


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
    """

    crop: int = 192
    gain_jitter: float = 0.3
    drop: float = 0.35


def view(
    example: Example, how: View, shrink: int, rng: np.random.Generator
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Cut one random view; returns (C, crop, crop) float32 in physical units and (C,) presence."""
    side = how.crop * shrink
    pixels = example.pixels
    if min(pixels.shape[1:]) < side:
        shrink, side = 1, how.crop
    oy, ox = (int(rng.integers(0, n - side + 1)) for n in pixels.shape[1:])
    cut = pixels[:, oy : oy + side, ox : ox + side].astype(np.float32)
    if shrink > 1:
        cut = cut.reshape(len(cut), how.crop, shrink, how.crop, shrink).mean((2, 4))
    present = example.present.copy()
    cut = np.rot90(cut, int(rng.integers(4)), (1, 2))
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    gain = np.exp(rng.normal(0, how.gain_jitter, (len(cut), 1, 1))).astype(np.float32)
    # A mirrored Sun is still a Sun, and so is one with every field reversed.
    if rng.random() < 0.5:
        gain[9:] *= -1
    cut = cut * gain
    if present.sum() > 1 and rng.random() < how.drop:
        keep = rng.permutation(np.flatnonzero(present))[: int(rng.integers(1, present.sum()))]
        present = np.zeros_like(present)
        present[keep] = True
    return np.ascontiguousarray(cut), present


class Loader:
    """Endless batches, made in a background thread while the network runs; each iteration begins anew.

    Parameters
    ----------
    banks
        Groups of examples and the share of samples that each group gives.
    stabiliser
        Applied to every view.
    batch
        Samples a batch at crop 192; smaller crops give more samples of about as many pixels.
    seed
        Batches are a function of it alone.

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
    ) -> None:
        side = View().crop
        used = [(share, bank) for share, bank in banks if share > 0 and bank]
        if not any(min(e.pixels.shape[1:]) >= side for _, bank in used for e in bank):
            raise InputError(f"no example has {side}×{side} pixels to cut from; give larger images")
        self.banks = [bank for _, bank in used]
        shares = np.array([share for share, _ in used])
        self.shares = shares / shares.sum()
        self.stabiliser = stabiliser
        self.batch = batch
        self.seed = seed

    def _sample(self, rng: np.random.Generator) -> _Batch:
        # One batch in six looks at the Sun from further away: 128² archives and small images.
        small = rng.random() < 1 / 6
        how = View(crop=128) if small else View()
        count = self.batch * 2 if small else self.batch
        images: list[Float] = []
        masks: list[npt.NDArray[np.bool_]] = []
        finite: list[npt.NDArray[np.bool_]] = []
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

    def __iter__(self) -> Iterator[_Batch]:
        """Yield images (N, C, Y, X), presence (N, C) and the pixels that count (N, C, Y, X), all float32."""
        ready: queue.Queue[_Batch | Exception] = queue.Queue(4)
        stop = threading.Event()

        def fill() -> None:
            rng = np.random.default_rng(self.seed)
            while not stop.is_set():
                try:
                    ready.put(self._sample(rng))
                except Exception as error:
                    # Unheard, it would leave the training waiting for ever.
                    ready.put(error)
                    return

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        try:
            while True:
                batch = ready.get()
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            stop.set()
            # It may be waiting for room.
            while thread.is_alive():
                with suppress(queue.Empty):
                    ready.get(timeout=0.05)
