"""What the context network sees, as integers: the same features for coding and for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import TELLING
from sunzip.cube import disk_radius

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", npt.NDArray[np.float32], Tensor)
else:
    Array = TypeVar("Array", npt.NDArray[np.float32], "Tensor")

Float = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

#: Networks are told apart by the side of the bands that they code, 2 to 256; larger ones are as 256.
LEVELS = 8

#: Widths of the networks, from the one for the coarsest levels to that of the finest.
WIDTHS = (32, 32, 32, 24, 16)

#: Scales that can be foretold.
SCALES = 64

#: ln of the smallest scale, in steps, and from one to the next.
LOG_SMALLEST, LOG_RATIO = math.log(0.04), math.log(10_000) / (SCALES - 1)

#: What the network's outputs are, of three bands each: means, gates of other frames and of the other
#: channels, scales.
MEANS, GATES, CROSS, WIDE = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)

#: Furthest that a coefficient is put from its symbol, in steps.
FURTHEST = 0.75

#: Planes of the picture so far, of what other channels foretell, of their magnitudes, and of the place; and
#: planes of one set of bands.
COUNT_NOW, COUNT_TIME = 3 + 6 + 2 * 3 + 2, 6

#: What of a channel may be known: two references, other frames, that its wavelet is the lazy one.
FLAGS = 4

#: Weights of other channels are in 16ths, up to twice what their spreads would make of them.
WEIGHT_UNIT, WEIGHT_MOST = 1 / 16, 32

#: By so many eighths of the way, at most, means are moved towards what others tell; and the
#: variance, in squared steps, that coefficients have besides their scale's where they are weighed.
TRUST_UNIT, TRUST_MOST, UNCERTAIN = 1 / 8, 10, 0.1

#: Channels coded together: none sees another of its group.
GROUPS = ((3, 8, 11), (4, 2, 7, 9), (5, 1, 6, 0, 10))


def level_of(height: int, width: int) -> int:
    """Return the level of bands of that size, 1 to `LEVELS`."""
    return min(max(min(height, width).bit_length() - 1, 1), LEVELS)


def halvings(height: int, width: int) -> int:
    """Return how often an image whose finest bands are of that size is half of one of 512×512."""
    return LEVELS - level_of(height, width)


def network_of(level: int) -> int:
    """Return which of the networks serves level `level` of the bands' side 2^level: 1 the coarsest."""
    return min(max(level - (LEVELS - len(WIDTHS)) - 1, 0), len(WIDTHS) - 1)


def references(channels: list[int], lazy: npt.NDArray[np.bool_]) -> dict[int, list[int]]:
    """Return of each channel that is present the up to two whose bands it sees: of the same wavelet (12,)."""
    return {c: [r for r in TELLING[c] if r in channels and lazy[r] == lazy[c]][:2] for c in channels}


def root(x: Array, factor: float = 8.0) -> Array:
    """Compress to integers of 8 bits: eight times the square root, with the sign."""
    if isinstance(x, np.ndarray):
        y: Float = np.abs(x)
        np.sqrt(y, out=y)
        y *= np.float32(factor)
        np.floor(y, out=y)
        np.clip(y, np.float32(0), np.float32(127), out=y)
        # What copysign does of one at a time; no y has a sign.
        bits = y.view(np.uint32)
        bits |= x.view(np.uint32) & np.uint32(1 << 31)
        return y
    return (x.abs().sqrt() * factor).floor().clamp(max=127).copysign(x)


def decoded_planes(bands: Array) -> Array:
    """Return (..., 6, h, w): three bands in steps, (..., 3, h, w), with and without their sign."""
    signed = root(bands)
    if isinstance(signed, np.ndarray):
        both = np.concatenate((signed, signed), -3)
        np.abs(signed, out=both[..., 3:, :, :])
        return both
    import torch

    return torch.cat((signed, signed.abs()), -3)


def picture_planes(low: Float, inverse_step: Float, shrink: Float) -> Float:
    """Return (C, 3, h, w) of the picture so far: how a pixel departs from its neighbours, and its brightness.

    Parameters
    ----------
    low
        (C, h + 2, w + 2) low-pass coefficients, with those around them; beyond an edge they are as at it.
    inverse_step
        (C, 1, 1), 1 / step.
    shrink
        (C, 1, 1), what makes a pixel's value of a low-pass coefficient.
    """
    # Sums in a fixed order, so that the features are the same on every machine.
    around = low[:, 2:, 1:-1] + low[:, :-2, 1:-1]
    around += low[:, 1:-1, 2:]
    around += low[:, 1:-1, :-2]
    around *= np.float32(0.25)
    inner = low[:, 1:-1, 1:-1]
    signed = root((inner - around) * inverse_step)
    bright = root(inner * shrink, 4.0)
    return np.stack((signed, np.abs(signed), bright), 1)


def edged(planes: Float) -> Float:
    """Return planes (..., h, w) with one place more on every side, as at the edge."""
    return np.pad(planes, (*[(0, 0)] * (planes.ndim - 2), (1, 1), (1, 1)), mode="edge")


@lru_cache(maxsize=32)
def halves(height: int, width: int) -> tuple[Places, Places]:
    """Return the places of the two colours of a checkerboard, counted along the rows; the first begins."""
    odd = np.add.outer(np.arange(height), np.arange(width)) % 2
    return np.flatnonzero(odd == 0), np.flatnonzero(odd)


@lru_cache(maxsize=32)
def place_planes(height: int, width: int) -> Float:
    """Return (2, h, w): how far from the centre of the disk, and from its limb."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    r = np.sqrt(y[:, None] ** 2 + x**2) / disk_radius(1)
    planes = np.stack((np.clip(np.rint(64 * r), 0, 127), np.clip(np.rint(256 * (r - 1)), -127, 127)))
    planes = planes.astype(np.float32)
    planes.flags.writeable = False
    return planes


def channel_planes(cross: Float, others: Sequence[Float | None]) -> Float:
    """Return (…, 12, h, w) of what others foretell, (…, 3, h, w) in steps, and of their own bands."""
    signed = root(cross)
    loud = [np.zeros_like(signed) if o is None else np.abs(root(o)) for o in others]
    return np.concatenate((signed, np.abs(signed), *loud), -3)


def fitted(
    target: Float,
    others: Sequence[Float],
    usual: npt.NDArray[np.int32],
    worth: float,
) -> npt.NDArray[np.int32]:
    """Return the weights, in 16ths, with which others come nearest to a target; the usual if those nearly do.

    Parameters
    ----------
    target
        (N,) in steps.
    others
        One or two of the same.
    usual
        (2,) weights.
    worth
        Least squared error by which other weights must be better.
    """
    # Not by a library of linear algebra, which sums in its threads' order: the bytes would depend on it.
    rows = [o.ravel().astype(np.float64) for o in (*others, target)]
    square, along = np.zeros((2, 2)), np.zeros(2)
    for i, row in enumerate(rows[:-1]):
        for j in range(i, len(others)):
            square[i, j] = square[j, i] = np.einsum("i,i->", row, rows[j])
        along[i] = np.einsum("i,i->", row, rows[-1])
    (p, q), (_, r) = (square + np.diag(np.full(2, 1e-3 * (1 + square[0, 0] + square[1, 1])))).tolist()
    a, b = along.tolist()
    solved = np.array([r * a - q * b, p * b - q * a]) / (p * r - q * q)
    best = np.clip(np.rint(solved / WEIGHT_UNIT), -WEIGHT_MOST, WEIGHT_MOST).astype(np.int32)
    if len(others) < 2:
        best[1] = usual[1]

    def error(weights: npt.NDArray[np.int32]) -> float:
        """Return the squared error, less what it is without any weight."""
        w = weights * WEIGHT_UNIT
        return float((w[:, None] * w * square).sum() - 2 * (w * along).sum())

    return best if error(usual) - error(best) > worth else usual
