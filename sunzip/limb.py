"""The disk of the Sun: whether a picture shows it, and its brightness over distance in a few numbers.

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

#: Two rings, in radii of the disk, of which the first is on it and the second is not; the sectors in which
#: they are compared, and the contrast that three of four of these have where the whole Sun is shown.
_ON, _OFF, _SECTORS, _CONTRAST = (0.9, 1.0), (1.2, 1.4), 24, 0.35


def _centred(height: int, width: int) -> tuple[Double, Double]:
    """Return how many pixels (Y, 1) and (1, X) there are to the centre."""
    y = np.arange(height, dtype=np.float64)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float64)[None] - (width - 1) / 2
    return y, x


def _distances(height: int, width: int) -> Double:
    """Return how far (Y, X) pixels are from the centre, in radii of the disk."""
    # In this order of operations: decoders must round alike.
    y, x = _centred(height, width)
    return np.asarray(np.sqrt(y * y + x * x) / disk_radius(min(height, width)))


@lru_cache(maxsize=4)  # of 4096² pixels one takes 84 MB
def _places(height: int, width: int) -> tuple[npt.NDArray[np.uint8], Float]:
    """Return for each pixel the knot before it, and its share of the way to the next."""
    r = _distances(height, width)
    knots = np.array(KNOTS)
    first = np.clip(np.searchsorted(knots, r, "right") - 1, 0, len(knots) - 2)
    share = (r - knots[first]) / (knots[first + 1] - knots[first])
    return first.astype(np.uint8), np.clip(share, 0, 1).astype(np.float32)


def disk(values: Float, height: int, width: int) -> Float:
    """Return the pictures (C, Y, X) that are `values` (C, K) at the knots."""
    first, share = _places(height, width)
    low = values.take(first, -1)
    out = np.diff(values).take(first, -1)
    out *= share
    out += low
    return np.asarray(out)


def _summed(first: npt.NDArray[np.uint8], weights: Double, shift: int = 0) -> Double:
    """Return the sums (K,) of what pixels add to the knots before them, or to those after."""
    found: Double = np.bincount(first.ravel() + shift, weights.ravel(), len(KNOTS)).astype(np.float64)
    return found


@lru_cache(maxsize=16)
def _square(height: int, width: int) -> Double:
    """Return the matrix (K, K) of the least squares of pictures of a size."""
    first, share = _places(height, width)
    b = share.astype(np.float64)
    a = 1 - b
    beside = _summed(first, a * b)[:-1]
    square = (
        np.diag(_summed(first, a * a) + _summed(first, b * b, 1)) + np.diag(beside, 1) + np.diag(beside, -1)
    )
    difference = np.diff(np.eye(len(KNOTS)), axis=0)
    return np.asarray(square + _TENSION * difference.T @ difference)


def fitted(images: Float) -> Double:
    """Return the values (C, K) with which `disk` comes nearest to images (C, Y, X)."""
    first, share = _places(*images.shape[-2:])
    along = []
    for image in images.astype(np.float64):
        after = image * share
        along.append(_summed(first, image - after) + _summed(first, after, 1))
    return np.asarray(np.linalg.solve(_square(*images.shape[-2:]), np.stack(along).T).T, np.float64)


def shows_disk(images: Float) -> bool:
    """Tell whether images (C, Y, X), small ones are enough, show the whole Sun, as large as it is in SDOML.

    Its light, of either sign, then falls beyond the limb, on all sides; in a part of the Sun it may do so on
    some.
    """
    r = _distances(*images.shape[-2:])
    angle = np.arctan2(*_centred(*images.shape[-2:]))
    sector = (np.floor((angle / (2 * np.pi) + 0.5) * _SECTORS) % _SECTORS).astype(np.intp)

    def means(ring: tuple[float, float]) -> Double:
        within = (ring[0] < r) & (r < ring[1])
        at, light = sector[within], np.abs(images[:, within])
        count = np.maximum(np.bincount(at, minlength=_SECTORS), 1)
        return np.stack([np.bincount(at, row, _SECTORS) / count for row in light])

    on, off = means(_ON), means(_OFF)
    with np.errstate(invalid="ignore"):  # of pixels that no Sun has
        contrast = (on - off) / np.maximum(on + off, np.finfo(np.float32).tiny)
    return bool(np.quantile(contrast.mean(0), 0.25) > _CONTRAST)
