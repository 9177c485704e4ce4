"""Turning a picture of the Sun by its own rotation, to foretell the next one; the same bits everywhere.

Sines and cosines of a mathematics library differ in their last digit from one machine to the next. Here they
are polynomials of single sums and products; the square root is exact by IEEE 754.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sunzip.cube import disk_radius

#: Synodic rotation in degrees a day: A + B sin²φ + C sin⁴φ (Snodgrass and Ulrich 1990, less the Earth's
#: motion).
_RATE = (14.71 - 0.9856, -2.39, -1.78)

#: Further than this the picture has nothing more in common with the one before.
MAX_MINUTES = 6 * 1440

_DEGREE = 0.017453292519943295


@lru_cache(maxsize=16)
def _sources(
    height: int, width: int, minutes: int
) -> tuple[npt.NDArray[np.intp], tuple[npt.NDArray[np.float32], ...]]:
    """Return for each pixel the flat place of the left one of its four sources, and their four weights.

    The weights are in the order of the sources, or from right to left where minutes are less than 0.
    """
    if minutes > 0:
        return _sources_later(height, width, minutes)
    # Seen in a mirror, the Sun turns the other way; then the last source is the left one.
    place, weights = _sources_later(height, width, -minutes)
    ends = np.arange(height)[:, None] * (2 * width) + width - 4
    return ends - place[:, ::-1], tuple(np.ascontiguousarray(w[:, ::-1]) for w in weights)


def _sources_later(
    height: int, width: int, minutes: int
) -> tuple[npt.NDArray[np.intp], tuple[npt.NDArray[np.float32], ...]]:
    radius = disk_radius(min(height, width))
    y = np.arange(height, dtype=np.float64)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float64)[None] - (width - 1) / 2
    s = (y / radius) * (y / radius)
    angle = ((_RATE[2] * s + _RATE[1]) * s + _RATE[0]) * (minutes / 1440 * _DEGREE)
    square = angle * angle
    sine, cosine = np.ones_like(square), np.ones_like(square)
    for n in range(21, 1, -2):
        sine = 1 - sine * square * (1 / (n * (n - 1)))
        cosine = 1 - cosine * square * (1 / ((n - 1) * (n - 2)))
    sine = sine * angle
    depth = radius * radius - y * y - x * x
    z = np.sqrt(np.maximum(depth, 0))
    before = x * cosine - z * sine
    # What comes round the limb, and what is beyond it, stays where it is.
    seen = (depth > 0) & (z * cosine + x * sine > 0)
    column = np.where(seen, before, x) + (width - 1) / 2
    column = np.clip(column, 1, width - 3)
    left = np.floor(column)
    f = column - left
    # Cubic convolution (Keys 1981).
    weights = (
        ((2 - f) * f - 1) * f * 0.5,
        ((3 * f - 5) * f * f + 2) * 0.5,
        ((4 - 3 * f) * f + 1) * f * 0.5,
        (f - 1) * f * f * 0.5,
    )
    # At the left and the right edge sources would lie outside: columns there are as their neighbours.
    place = left.astype(np.intp) - 1 + np.arange(height)[:, None] * width
    return place, tuple(w.astype(np.float32) for w in weights)


def turned(images: npt.NDArray[np.float32], minutes: int) -> npt.NDArray[np.float32]:
    """Return pictures as they will be some minutes later, or were earlier, as far as rotation goes.

    Parameters
    ----------
    images
        (C, Y, X) float32, the disk centred and 976″ of 4.8″ pixels of 512 in radius, north up.
    minutes
        −`MAX_MINUTES` to `MAX_MINUTES`.
    """
    if minutes == 0 or images.shape[-1] < 8:
        return images
    place, weights = _sources(*images.shape[1:], minutes)
    out = np.empty_like(images)
    first, *rest = zip(range(4) if minutes > 0 else range(3, -1, -1), weights, strict=True)

    def term(flat: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
        # None lies outside; to go round, if one did, is what NumPy is fastest with.
        return flat[n:].take(place, mode="wrap")

    for image, result in zip(images, out, strict=True):
        flat = np.ascontiguousarray(image).ravel()
        np.multiply(term(flat, first[0]), first[1], out=result)
        for n, weight in rest:
            more = term(flat, n)
            more *= weight
            result += more
    return out


def foretold(
    pictures: Sequence[tuple[npt.NDArray[np.float32], int]],
) -> npt.NDArray[np.float32]:
    """Return what one or two pictures foretell of another time; the nearer in time tells more.

    Parameters
    ----------
    pictures
        (C, Y, X) float32 as for `turned`, and how many minutes each is before that time; less than 0 if
        after.
    """
    (first, early), *rest = [(turned(images, minutes), abs(minutes)) for images, minutes in pictures]
    if not rest:
        return first
    ((second, late),) = rest
    share = np.float32(late / (early + late)) if early + late else np.float32(0.5)
    out = first * share
    out += second * (np.float32(1) - share)
    return out
