"""Wavelet pyramids to train the context network on: frames, what was known before them, at random steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sunzip import wavelet
from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.codec.prices import WORTH
from sunzip.codec.tiles import MANY, SIDE, above, are_tiled, tiles_of, worthwhile
from sunzip.codec.wavelet import DISKS, POINTS
from sunzip.limb import disk
from sunzip.limb import fitted as fitted_disk
from sunzip.nn.context import OFFSET, OFFSET_CENTRED, Context, foretell
from sunzip.nn.planes import (
    COUNT_NOW,
    FLAGS,
    GROUPS,
    WEIGHT_UNIT,
    channel_planes,
    decoded_planes,
    edged,
    fitted,
    halvings,
    level_of,
    picture_planes,
    place_planes,
    references,
)
from sunzip.normalize import Stabiliser
from sunzip.pyramid import parted, woven
from sunzip.train.data import turned as mirrored
from sunzip.train.families import Family
from sunzip.train.wavelet import SPREADS, steps

#: Of each sample: probability that other frames are known, that the place of the disk is; side of what is
#: cut out of the bands of 128 and more, where there is much of the same kind.
_TIMED, _PLACED, _CUT = 0.5, 0.9, 64

#: By so much, in ln, steps depart from those with which a frame of a film is coded.
_NEAR = 0.4

#: Steps in units of noise, and by which factors those of channels depart from them.
_STEPS, _DEPART = (5.0, 1500.0), (-0.9, 0.5)

#: Probability that the field's wavelet is the lazy one. Its pixels then are also made to depend less on each
#: other: they change places with neighbours up to so many pixels away, and what is above a bound grows by a
#: power of up to so much.
_LAZY, _SHAKEN, _STRONG, _POWER = 0.5, 2, 4.0, 1.4

#: Probability that mean disks are taken away.
_ROUND = 0.5

#: Channels that go together in samples that have several: the whole, AIA alone, the rest by chance.
_WHOLE, _AIA = 0.6, 0.15


@dataclass(frozen=True, slots=True)
class Pyramid:
    """A frame as wavelet coefficients in units of noise.

    Attributes
    ----------
    channels
        Indexes of the C that there are.
    low
        (C, 2, 2).
    bands
        (C, 3, 2, 2), (C, 3, 4, 4) and so on.
    before
        The same of what other frames foretell of it; or None.
    step
        (C,) steps with which it is coded then; None if those others are as they were.
    lazy
        (C,) channels whose wavelet is the lazy one.
    """

    channels: list[int]
    low: Float
    bands: list[Float]
    before: list[Float] | None
    step: Float | None
    lazy: npt.NDArray[np.bool_]


def _halved(x: Float, lazy: npt.NDArray[np.bool_]) -> tuple[Float, list[Float]]:
    bands = []
    while x.shape[-1] > 2:
        low, parts = wavelet.analyse(x)
        band = np.stack(parts, 1)
        low[lazy], band[lazy] = parted(x[lazy])
        bands.append(band)
        x = low
    return x, bands[::-1]


def _shake(rng: np.random.Generator, side: int) -> Callable[[Float], Float]:
    """Return what makes images (C, S, S) rougher, the same way for each that it is given."""
    reach, power = int(rng.integers(_SHAKEN + 1)), np.float32(rng.uniform(0, _POWER - 1))
    moves = rng.integers(-reach, reach + 1, (2, side, side))
    y, x = np.clip(np.indices((side, side)) + moves, 0, side - 1)

    def shaken(images: Float) -> Float:
        moved = images[:, y, x]
        return np.asarray(moved * np.maximum(np.abs(moved) / np.float32(_STRONG), 1) ** power, np.float32)

    return shaken


def pyramid(
    images: Float,
    channels: Sequence[int],
    before: Float | None,
    step: Float | None,
    symmetry: int,
    seed: int,
) -> Pyramid:
    """Make a pyramid of stabilised images (C, S, S), S a power of two, mirrored in one of 8 ways.

    Parameters
    ----------
    images, channels
        The frame.
    before
        What other frames foretell of it, if that is to be known.
    step
        Of each channel, with which it is coded then; None if those were not coded.
    symmetry
        0 to 7.
    seed
        Of whether the field's wavelet is the lazy one, and how, and mean disks are taken away.
    """
    rng = np.random.default_rng([seed, 6])
    lazy = np.isin(channels, POINTS) & (rng.random() < _LAZY)
    shaken = _shake(rng, images.shape[-1])

    mean = np.zeros_like(images)
    flat = np.isin(channels, DISKS) & (rng.random() < _ROUND)
    if flat.any():
        mean[flat] = disk(fitted_disk(images[flat]).astype(np.float32), *images.shape[-2:])

    def vary(x: Float) -> Float:
        whole = np.zeros((len(NAMES), *x.shape[1:]), np.float32)
        whole[list(channels)] = x
        if lazy.any():
            those = np.array(channels)[lazy]
            whole[those] = shaken(whole[those])
        return np.ascontiguousarray(mirrored(whole, symmetry % 4, symmetry >= 4)[list(channels)])

    low, bands = _halved(vary(images - mean), lazy)
    known = None if before is None else _halved(vary(before - mean), lazy)[1]
    return Pyramid(list(channels), low, bands, known, step, lazy)


class Pyramids:
    """Makes batches of samples of pyramids.

    Parameters
    ----------
    banks
        Pairs of a share and pyramids.
    batch
        Samples of a batch.
    seed
        Of everything random; a batch is a function of it, the step and the rank.
    """

    def __init__(self, banks: Sequence[tuple[float, Sequence[Pyramid]]], batch: int, seed: int) -> None:
        self._shares = np.array([share for share, _ in banks])
        self._shares /= self._shares.sum()
        self._banks = [bank for _, bank in banks]
        self.batch, self._seed = batch, seed

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[npt.NDArray[Any], ...]:
        """Return the arrays of a batch: how many of each sample, then all of them one after another."""
        arrays: list[npt.NDArray[Any]] = []
        counts = []
        for n in range(self.batch):
            rng = np.random.default_rng([self._seed, step, rank, n])
            bank = self._banks[int(rng.choice(len(self._banks), p=self._shares))]
            found = _sample(bank[int(rng.integers(len(bank)))], rng)
            counts.append(len(found))
            arrays += found
        return np.array(counts), *arrays


def _kept(count: int, rng: np.random.Generator) -> list[int]:
    """Return which of so many channels a sample keeps."""
    chance = rng.random()
    if count < len(NAMES) or chance < _WHOLE:
        return list(range(count))
    if chance < _WHOLE + _AIA:
        return list(range(9))
    return sorted(rng.choice(count, int(rng.integers(1, count)), replace=False).tolist())


def _rounded(x: Float, offset: float = OFFSET) -> Float:
    return np.copysign(np.floor(np.abs(x) + np.float32(offset)), x)


def _relation(names: Sequence[int], step: Float, row: int, other: int) -> np.float32:
    """Return what a weight of 1 makes of another channel's bands, in its steps, for a channel."""
    return np.float32(SPREADS[names[row]] / SPREADS[names[other]] * step[other] / step[row])


def _crossed(values: Float, theirs: Sequence[Float]) -> Float:
    """Return what one or two others tell (3, h, w) of values, by the weights with which they come nearest."""
    weights = fitted(values, theirs, np.zeros(2, np.int32), 0.0)
    found = np.zeros_like(values)
    for other, weight in zip(theirs, weights, strict=False):
        found += other * np.float32(weight * WEIGHT_UNIT)
    return found


def _tiled(
    example: Pyramid, rows: list[int], step: Float, seen: Mapping[int, list[int]], timed: bool
) -> dict[int, npt.NDArray[np.bool_]]:
    """Return of fine levels in which tiles (C, tall, wide) channels are coded, about as encoders do."""
    names = [example.channels[i] for i in rows]
    found: dict[int, npt.NDArray[np.bool_]] = {}
    for n in range(len(example.bands) - 1, -1, -1):
        shape = example.bands[n].shape[-2:]
        if not are_tiled((shape[0], shape[1])):
            break
        values = example.bands[n][rows] / step[:, None, None, None]
        chosen = np.ones((len(rows), *tiles_of((shape[0], shape[1]))), np.bool_)
        for row, c in enumerate(names):
            others = [names.index(other) for other in seen[c]]
            if timed:
                assert example.before is not None
                silent = example.before[n][rows[row]] / step[row]
            elif others:
                silent = _crossed(values[row], [values[o] * _relation(names, step, row, o) for o in others])
            else:
                continue
            coded = worthwhile(values[row] - silent, c, timed)
            if n + 1 in found:
                coded |= above(found[n + 1][row])
            if coded.mean() <= MANY:
                chosen[row] = coded
        found[n] = chosen
    return found


def _sample(example: Pyramid, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    """Return channels, ln of steps, flags; then six arrays of each level.

    They are its cut, planes, values, what other frames foretell, what other channels tell, and which tiles
    are coded.

    Cut are the bands of side 128 and more; a cut lies within that of the next coarser level.
    """
    rows = _kept(len(example.channels), rng)
    names = [example.channels[i] for i in rows]
    low, high = np.log(_STEPS)
    step = np.exp(rng.uniform(low, high) + rng.uniform(*_DEPART, len(rows))).astype(np.float32)
    timed = example.before is not None and rng.random() < _TIMED
    if timed and example.step is not None:
        step = example.step[rows] * np.float32(np.exp(rng.uniform(-_NEAR, _NEAR)))
    wide, inverse = step[:, None, None], (1 / step)[:, None, None]
    placed = rng.random() < _PLACED
    flags = np.zeros((len(names), FLAGS), np.float32)
    flags[:, 2] = timed
    lazy = example.lazy[rows]
    flags[:, 3] = lazy
    every = np.zeros(len(NAMES), bool)
    every[names] = lazy
    seen = references(names, every)
    told = np.log(step)
    if placed:
        # A smaller picture of the whole Sun is to the network as a larger one coded as much coarser.
        told = told + np.float32(math.log(2) * halvings(*example.bands[-1].shape[-2:]))
        told = np.minimum(told, np.log(steps()[0, names]))
    order = [names.index(c) for group in GROUPS for c in group if c in names]
    tiled = _tiled(example, rows, step, seen, timed)
    found: list[npt.NDArray[Any]] = [np.array(names), told, flags]
    picture = np.rint(example.low[rows] * inverse) * wide
    top, left = 0, 0
    for n, all_bands in enumerate(example.bands):
        values = all_bands[rows] * inverse[:, None]
        before = np.zeros((0, *values.shape[1:]), np.float32)
        if timed:
            assert example.before is not None
            before = example.before[n][rows] * inverse[:, None]
            if example.step is None:
                # About what decoding and turning leave: little where symbols were 0.
                loud = _rounded(before) != 0
                jitter = rng.uniform(-0.3, 0.3, before.shape).astype(np.float32)
                before = np.where(loud, before + jitter, before * np.float32(rng.uniform(0, 0.5)))
        # Symbols count from the mean, which is about what is known before.
        symbols = before + _rounded(values - before, OFFSET_CENTRED) if timed else _rounded(values)
        side = symbols.shape[-1]
        shown = np.ones((len(names), 1, side, side), np.float32)
        if n in tiled:
            shown[:, 0] = tiled[n].repeat(SIDE, 1).repeat(SIDE, 2)[:, :side, :side]
        if timed:
            symbols = np.where(shown > 0, symbols, before)
        planes = np.zeros((len(names), COUNT_NOW, side, side), np.float32)
        shrink = np.where(lazy, np.float32(1), np.float32(2.0 ** (n - len(example.bands))))
        planes[:, :3] = picture_planes(edged(picture), inverse, shrink[:, None, None])
        cross = np.zeros_like(symbols)
        for row in order:
            others = [names.index(other) for other in seen[names[row]]]
            flags[row, : len(others)] = 1
            if not others:
                continue
            # In a decoder they are a little nearer to what they were than their symbols tell.
            theirs = [symbols[o] * _relation(names, step, row, o) for o in others]
            cross[row] = _crossed(values[row], theirs)
            if not timed:
                symbols[row] = np.where(shown[row] > 0, symbols[row], cross[row])
            loud = [symbols[o] for o in others] + [None] * (2 - len(others))
            planes[row, 3:15] = channel_planes(cross[row], loud)
        if placed:
            planes[:, 15:] = place_planes(side, side)
        if n + 1 < len(example.bands):
            bands = symbols * wide[:, None]
            parts = np.moveaxis(bands, 1, 0)
            coarser, picture = picture, wavelet.synthesise(picture, parts)
            picture[lazy] = woven(coarser[lazy], parts[:, lazy])
        cut: tuple[Any, ...] = (...,)
        if side > _CUT:
            top, left = (2 * v + 2 * int(rng.integers(_CUT // 2 + 1)) for v in (top, left))
            cut = (..., slice(top, top + _CUT), slice(left, left + _CUT))
        found += [np.array([top, left, side]), planes[cut], values[cut], before[cut], cross[cut], shown[cut]]
    return [np.ascontiguousarray(a) for a in found]


class WaveletFamily(Family):
    """The context network of the wavelet codec.

    Parameters
    ----------
    batches
        Of samples.
    stabiliser
        What their frames went through.
    """

    statistics = ("log_bits", "mse")
    partial = True

    def __init__(self, batches: Pyramids, stabiliser: Stabiliser) -> None:
        self.network: Context = Context(len(NAMES))
        self.batches = batches
        self.stabiliser = stabiliser

    def losses(self, batch: Sequence[Tensor], kl_weight: float) -> tuple[Tensor, Tensor]:
        """See `Family.losses`: bits, and squared error by what bits are worth, relative to a sample's bits.

        Relative, so that coarse steps, which take few bits, count as much as fine ones.
        """
        begin, losses, statistics = 1, [], []
        for count in batch[0].tolist():
            bits, errors, size = self._one(batch[begin : begin + count])
            error = (errors / torch.from_numpy(WORTH).to(errors.device)[batch[begin]]).sum()
            begin += count
            total, per_channel = bits.sum(), bits.detach() + 100
            losses.append((total + error) / (total.detach() + 200) + (bits / per_channel).mean())
            statistics.append(torch.stack([(total.detach() + 100).log(), errors.detach().sum() / size]))
        return torch.stack(losses).mean(), torch.stack(statistics).mean(0)

    def _one(self, sample: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
        """Return bits and squared errors of each channel, as of the whole frame, and its number of values."""
        channels, log_step, flags = sample[:3]
        carry, at, side = None, torch.zeros(2, dtype=torch.int64), 0
        bits, error, size = torch.zeros_like(log_step), torch.zeros_like(log_step), 0
        for where, planes, values, before, cross, shown in zip(
            *(sample[3 + i :: 6] for i in range(6)), strict=True
        ):
            top, left, side = where.tolist()
            if carry is not None and side > _CUT:
                y, x = top // 2 - int(at[0]), left // 2 - int(at[1])
                carry = carry[..., y : y + _CUT // 2, x : x + _CUT // 2]
            at = where[:2]
            planes, values, before, cross, shown = (_wide(t) for t in (planes, values, before, cross, shown))
            timed = len(before) > 0
            coded, carry = foretell(
                self.network,
                channels,
                level_of(side, side),
                log_step,
                flags,
                planes,
                decoded_planes(before) if timed else None,
                before if timed else None,
                cross,
                values,
                shown,
                carry,
            )
            share = values.shape[-1] ** 2 / side**2
            bits = bits + coded.bits.sum((1, 2, 3)) / share
            error = error + (values - coded.decoded).square().sum((1, 2, 3)) / share
            size += 3 * len(channels) * side * side
        return bits, error, size

    def few(self, batch: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """See `Family.few`: a batch has few samples, whose arrays cannot be cut."""
        return list(batch)

    def calibrate(self, network: nn.Module, batch: Sequence[Tensor]) -> None:
        """See `Family.calibrate`: there are no such layers."""

    def reconstruct(self, network: nn.Module, pixels: Float, present: npt.NDArray[np.bool_]) -> Float:
        """See `Family.reconstruct`: what the network foretells does not show."""
        raise NotImplementedError


def _wide(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
