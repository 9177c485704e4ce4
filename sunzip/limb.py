"""Where a picture has the Sun's disk, and how bright it is at each distance from its centre, in a few numbers.

What decoders make of these is the same bits everywhere: single sums, products and quotients on whole arrays,
and the square root, which is exact by IEEE 754.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sunzip.cube import disk_radius

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

#: Distances from the centre in radii of the disk, between which brightness is a straight line: about a pixel
#: of 512² apart at the limb.
KNOTS = (
    *(0.0, 0.35, 0.55, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.98, 0.985, 0.99),
    *(0.995, 1.0, 1.005, 1.01, 1.015, 1.02, 1.03, 1.05, 1.1, 1.25),
)

#: How much neighbours want to be equal, in pixels: tells knots apart that no pixel is near.
_TENSION = 0.03

#: Rings, in radii of the disk, of which the first is on it and the second is not; the sectors in which they are
#: compared, and the contrast that three of four of these have where the whole Sun is where it should be.
_ON, _OFF, _SECTORS, _CONTRAST = (0.9, 1.0), (1.2, 1.4), 24, 0.35


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> tuple[npt.NDArray[np.intp], Float]:
    """Return for each pixel the knot before it, and its share of the way to the next."""
    y = np.arange(height, dtype=np.float64)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float64)[None] - (width - 1) / 2
    r = np.sqrt(y * y + x * x) / disk_radius(min(height, width))
    knots = np.array(KNOTS)
    first = np.clip(np.searchsorted(knots, r, "right") - 1, 0, len(knots) - 2)
    share = (r - knots[first]) / (knots[first + 1] - knots[first])
    return first, np.clip(share, 0, 1).astype(np.float32)


def disk(values: Float, height: int, width: int) -> Float:
    """Return the pictures (C, Y, X) that are `values` (C, K) at the knots."""
    first, share = _places(height, width)
    low = values[:, first]
    out = values[:, first + 1] - low
    out *= share
    out += low
    return np.asarray(out)


def fitted(images: Float) -> Double:
    """Return the values (C, K) with which `disk` comes nearest to images (C, Y, X)."""
    first, share = _places(*images.shape[-2:])
    at, b = first.ravel(), share.ravel().astype(np.float64)
    a, count = 1 - b, len(KNOTS)

    def summed(weights: Double, shift: int = 0) -> Double:
        found: Double = np.bincount(at + shift, weights, count).astype(np.float64)
        return found

    beside = summed(a * b)[:-1]
    square = np.diag(summed(a * a) + summed(b * b, 1)) + np.diag(beside, 1) + np.diag(beside, -1)
    difference = np.diff(np.eye(count), axis=0)
    square += _TENSION * difference.T @ difference
    pixels = images.reshape(len(images), -1).astype(np.float64)
    along = np.stack([summed(a * row) + summed(b * row, 1) for row in pixels])
    return np.asarray(np.linalg.solve(square, along.T).T, np.float64)


def shows_disk(images: Float) -> bool:
    """Tell whether images (C, Y, X), small ones are enough, show the whole Sun, as large as it is in SDOML.

    Its light, of either sign, then falls beyond the limb, on all sides; in a part of the Sun it may do so on
    some.
    """
    height, width = images.shape[-2:]
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None]
    x = (np.arange(width) + 0.5) / width - 0.5
    r = np.sqrt(y * y + x * x) / disk_radius(1)
    sector = (np.floor((np.arctan2(y, x) / (2 * np.pi) + 0.5) * _SECTORS) % _SECTORS).astype(np.intp)
    means = []
    for low, high in (_ON, _OFF):
        ring = (low < r) & (r < high)
        at = sector[ring]
        count = np.bincount(at, minlength=_SECTORS)
        means.append([np.bincount(at, row, _SECTORS) / np.maximum(count, 1) for row in np.abs(images[:, ring])])
    on, off = np.array(means)
    with np.errstate(invalid="ignore"):  # of pixels that no Sun has
        contrast = (on - off) / np.maximum(on + off, np.finfo(np.float32).tiny)
    return bool(np.quantile(contrast.mean(0), 0.25) > _CONTRAST)
