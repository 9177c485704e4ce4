"""Turning a picture of the Sun by its own rotation, to foretell the next one; the same bits everywhere.

Sines and cosines of a mathematics library differ in their last digit from one machine to the next. Here they
are polynomials of single sums and products; the square root is exact by IEEE 754.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sunzip.cube import disk_radius
from sunzip.recent import Recent

#: Synodic rotation in degrees a day: A + B sin²φ + C sin⁴φ (Snodgrass and Ulrich 1990, less the Earth's
#: motion).
_RATE = (14.71 - 0.9856, -2.39, -1.78)

#: Further than this the picture has nothing more in common with the one before.
MAX_MINUTES = 6 * 1440

_DEGREE = 0.017453292519943295


#: For each pixel the flat place of the left one of its four sources, and the weights of these: from left to
#: right, or from right to left for the way back.
_Sources = tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]

#: What was found lately: so many bytes of it, but always what two threads need for frames before and after.
_found: Recent[tuple[int, int, int], _Sources] = Recent(192 << 20, fewest=4)

#: Pixels whose sources are sought at once: what comes between takes ten times the memory of what is found.
_AT_ONCE = 1 << 14


def _sources(height: int, width: int, minutes: int) -> _Sources:
    """Return the sources of (Y, X) pixels and their weights (4, Y, X)."""
    key = height, width, minutes
    known = _found.get(key)
    if known is not None:
        return known
    place, weights = np.empty((height, width), np.intp), np.empty((4, height, width), np.float32)
    tall = max(1, _AT_ONCE // width)
    for begin in range(0, height, tall):
        rows = slice(begin, min(begin + tall, height))
        left, four = _sources_later(rows, height, width, abs(minutes))
        if minutes < 0:
            # Seen in a mirror, the Sun turns the other way; then the last source is the left one.
            ends = np.arange(rows.start, rows.stop)[:, None] * (2 * width) + width - 4
            left, four = ends - left[:, ::-1], [weight[:, ::-1] for weight in four]
        place[rows] = left
        for n, weight in enumerate(four):
            weights[n, rows] = weight
    _found.put(key, (place, weights), place.nbytes + weights.nbytes)
    return place, weights


def _sources_later(
    rows: slice, height: int, width: int, minutes: int
) -> tuple[npt.NDArray[np.intp], Sequence[npt.NDArray[np.float64]]]:
    """Return the same of some rows, from left to right, for a picture of so many minutes later."""
    radius = disk_radius(min(height, width))
    y = np.arange(rows.start, rows.stop, dtype=np.float64)[:, None] - (height - 1) / 2
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
    place = left.astype(np.intp) - 1 + np.arange(rows.start, rows.stop)[:, None] * width
    return place, weights


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
    height, width = images.shape[1:]
    place, weights = _sources(height, width, minutes)
    out = np.empty_like(images)
    order = range(4) if minutes > 0 else range(3, -1, -1)
    for image, result in zip(images, out, strict=True):
        flat = np.ascontiguousarray(image).ravel()
        # None lies outside; to go round, if one did, is what NumPy is fastest with.
        terms = (flat[n:].take(place, mode="wrap") for n in order)
        np.multiply(next(terms), weights[0], out=result)
        for term, weight in zip(terms, weights[1:], strict=True):
            term *= weight
            result += term
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
