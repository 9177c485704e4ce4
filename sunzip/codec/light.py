"""The light of images: what coding takes from sums over the Sun, given back as one number a channel.

What is faint is left out, so that decoded images are a little too faint, and each of a film by another share.
A level, added to the whole image, makes the sum right. Decoders only add it; how it is chosen binds no one.
Fields have none: most of their pixels off the disk are 0, and to stay so is worth more than a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS
from sunzip.codec.family import Float
from sunzip.cube import disk_radius
from sunzip.entropy.tables import Tables
from sunzip.normalize import Stabiliser
from sunzip.pyramid import Grid, places_of, to_picture

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

#: Channels whose images have levels.
_LIT = [c.index for c in CHANNELS if c.instrument == "AIA"]

#: A level is told in steps of a channel over two to this.
_FINE = 10

#: What levels are coded by: n is 4/5 as likely as n − 1, and as −n.
_MOST = 127
LEVELS = Tables.from_probabilities(
    [[2**24 * 4 ** abs(n) // 5 ** abs(n) for n in range(-_MOST, _MOST + 1)]], [-_MOST], [0.0]
)

#: Images are summed within so many radii of the disk: what shines beyond the limb is light as well, and what
#: is further out is next to none.
_WITHIN = 1.1

#: Side of pictures that are summed pixel by pixel. Of finer levels the sums of squares are enough.
_SMALL = 128

#: Largest level that an encoder writes.
_LARGEST = 2.0**20


def lit(channels: Sequence[int]) -> list[int]:
    """Return those of channels whose images have levels."""
    return [c for c in channels if c in _LIT]


def sums(
    pyramid: Float,
    channels: Sequence[int],
    grid: Grid,
    shape: tuple[int, int],
    stabiliser: Stabiliser,
    *,
    whole: bool,
    missing: Bool | None = None,
) -> Float64:
    """Return the light of images, which is the sum of their pixels, and its first two derivatives by a level.

    Pixels are g²·y·|y| + 2·g·√b·y of stabilised ones, see `Stabiliser.inverse_terms`. Squares of the finer
    bands are summed in the pyramid: the wavelet is nearly orthonormal, and originals and what is decoded of
    them are summed alike.

    Parameters
    ----------
    pyramid
        (12, Y, X) of stabilised images.
    channels
        The C that are summed.
    grid, shape
        Of the pyramid, and (Y, X) of the images without padding.
    stabiliser
        Of all 12 channels.
    whole
        Whether the images show the whole Sun.
    missing
        (C, Y, X) which pixels of those channels are not measured and do not count; None if all are.

    Returns
    -------
    (3, C).
    """
    n = grid.within(_SMALL)
    fine = grid.depth - n
    coarse = pyramid[list(channels), : grid.height >> fine, : grid.width >> fine]
    pictures = to_picture(coarse, grid, n)
    pictures *= np.float32(2.0**-fine)
    area = 4.0**fine

    def counted(row: int, fine: int) -> Float:
        inner = _within(grid, shape, fine, whole)
        return (
            inner if missing is None or not missing[row].any() else inner * _there(missing[row], grid, fine)
        )

    g, r, _ = (term[list(channels), 0, 0].astype(np.float64) for term in stabiliser.inverse_terms())
    one, size, square, signs, count = np.zeros((5, len(channels)))
    for row, (c, picture) in enumerate(zip(channels, pictures, strict=True)):
        inner = counted(row, fine)
        count[row] = area * inner.sum(dtype=np.float64)
        inside = picture * inner
        one[row] = area * inside.sum(dtype=np.float64)
        np.abs(picture, out=picture)
        size[row] = area * (picture * inner).sum(dtype=np.float64)
        square[row] = area * (picture * inside).sum(dtype=np.float64)
        sign = np.copysign(np.float32(1), inside)
        signs[row] = area * (sign * inner).sum(dtype=np.float64)
        for m in range(n, grid.depth):
            bands = [band for band in places_of(pyramid[c], *grid.level(m)) if band.any()]
            if bands:
                factor = 1 << m - n
                weight = sign.repeat(factor, 0).repeat(factor, 1)
                weight *= counted(row, grid.depth - m)
                square[row] += sum(float(np.einsum("ij,ij->", band * weight, band)) for band in bands)
    return np.stack([g * g * square + 2 * g * r * one, 2 * g * (g * size + r * count), 2 * g * g * signs])


@lru_cache(maxsize=32)
def _within(grid: Grid, shape: tuple[int, int], fine: int, whole: bool) -> Float:
    """Return which places (y, x), 2**fine pixels apart, of an image of a shape are summed: 1 or 0."""
    height, width = shape
    y, x = (
        (np.arange(side >> fine, dtype=np.float64) + 0.5) * 2**fine - 0.5
        for side in (grid.height, grid.width)
    )
    inside = (y[:, None] < height) & (x < width)
    if whole:
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        inside &= np.hypot(y[:, None], x) <= _WITHIN * disk_radius(min(shape))
    return np.asarray(inside, np.float32)


def _there(missing: Bool, grid: Grid, fine: int) -> Float:
    """Return which share of places (y, x), 2**fine pixels apart, of an image is measured."""
    height, width = grid.height >> fine, grid.width >> fine
    there = np.zeros((grid.height, grid.width), np.float32)
    there[: missing.shape[0], : missing.shape[1]] = ~missing
    return np.asarray(there.reshape(height, 1 << fine, width, 1 << fine).mean((1, 3)))


def levels(light: Float | Float64, decoded: Float64, step: Float) -> Int:
    """Return levels (C,) that give images the light of the originals.

    Parameters
    ----------
    light
        (C,) the originals' light.
    decoded
        (3, C) that of the decoded images, see `sums`.
    step
        (C,) of their channels.
    """
    now, slope, bend = decoded
    with np.errstate(all="ignore"):  # of pixels that no Sun has
        apart = light - now
        level = 2 * apart / (slope + np.sqrt(slope * slope + 2 * bend * apart))
        wanted = np.rint(level / (step * 2.0**-_FINE))
    found: Int = np.clip(np.nan_to_num(wanted, posinf=0, neginf=0), -_LARGEST, _LARGEST).astype(np.int32)
    return found


def raise_by(levels: Int, step: Float, pyramid: Float, channels: Sequence[int], grid: Grid) -> None:
    """Add levels (C,) of channels, whose steps are (C,), to their images, given as a pyramid (12, Y, X)."""
    height, width = grid.level(0)
    added = levels.astype(np.float32) * np.ldexp(step, grid.depth - _FINE)
    pyramid[list(channels), :height, :width] += added[:, None, None]
