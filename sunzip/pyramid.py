"""Pyramids: an image as its coarsest picture and, for every doubling of the resolution, three bands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip import wavelet

Float = npt.NDArray[np.float32]

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", Float, Tensor)
else:
    Array = TypeVar("Array", Float, "Tensor")

#: Deepest pyramid: the coarsest band of an image of `sunzip.cube.MAX_SIDE` still has 2 pixels a side.
MAX_DEPTH = 13

#: An image may grow by this factor so that its sides can be halved more often.
_MAX_GROWTH = 1.15

#: Samples of images that a transform takes at once.
_CACHED = 1 << 16


class Grid(NamedTuple):
    """The pyramid of an image: its padded size and how often it is halved."""

    height: int
    width: int
    depth: int

    def level(self, n: int) -> tuple[int, int]:
        """Return height and width of the bands of level n, the coarsest being 0."""
        return self.height >> self.depth - n, self.width >> self.depth - n

    def within(self, side: int) -> int:
        """Return how many levels make a picture of at most so many pixels a side; 0 if none does."""
        return max(n for n in range(self.depth + 1) if n == 0 or max(self.level(n)) <= side)


def grid_of(height: int, width: int) -> Grid:
    """Choose how to halve an image: as often as it can be without growing much."""
    depth = 1
    for n in range(1, MAX_DEPTH + 1):
        tall, wide = -(-height >> n), -(-width >> n)
        if min(tall, wide) >= 2 and (tall * wide << 2 * n) <= _MAX_GROWTH * height * width:
            depth = n
    return Grid(-(-height >> depth) << depth, -(-width >> depth) << depth, depth)


def to_pyramid(image: Float, grid: Grid, out: Float | None = None) -> Float:
    """Return images (C, Y, X), continued at their edges, as wavelet coefficients of the grid's size.

    The coarsest stand in the first corner. They are written to `out` if it is given.
    """
    height, width = image.shape[1:]
    low = image
    if (height, width) != (grid.height, grid.width):
        low = np.pad(image, ((0, 0), (0, grid.height - height), (0, grid.width - width)), mode="edge")
    out = np.empty_like(low) if out is None else out
    for _ in range(grid.depth):
        count, h, w = len(low), low.shape[1] // 2, low.shape[2] // 2
        coarser = np.empty((count, h, w), np.float32)
        for some in _batches(count, h, w):
            coarser[some], bands = wavelet.analyse(low[some])
            put_bands(out, zip(*bands, strict=True), range(count)[some])
        low = coarser
    out[:, : low.shape[1], : low.shape[2]] = low
    return out


def to_picture(pyramid: Float, grid: Grid, levels: int, out: Float | None = None) -> Float:
    """Return (C, y, x) pictures of so many levels of a (C, Y, X) pyramid; if any, in `out` if it is given."""
    low = pyramid[:, : grid.height >> grid.depth, : grid.width >> grid.depth]
    for n in range(levels):
        low = finer(low, places_of(pyramid, *grid.level(n)), out if n == levels - 1 else None)
    return low


def to_lazy(image: Float, grid: Grid) -> Float:
    """Return (C, Y, X) images of the grid's size as pyramids by the lazy wavelet, which only moves pixels."""
    out = np.empty_like(image)
    low = image
    for _ in range(grid.depth):
        low, bands = parted(low)
        put_bands(out, bands, range(len(image)))
    out[:, : low.shape[1], : low.shape[2]] = low
    return out


def parted(x: Float) -> tuple[Float, Float]:
    """Return every fourth pixel (C, h, w) of (C, 2h, 2w), and the others as three bands (C, 3, h, w)."""
    return x[:, ::2, ::2], np.stack((x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]), 1)


def from_lazy(pyramid: Float, grid: Grid) -> Float:
    """Return the (C, Y, X) pictures of pyramids of the lazy wavelet."""
    low = pyramid[:, : grid.height >> grid.depth, : grid.width >> grid.depth]
    for n in range(grid.depth):
        low = woven(low, places_of(pyramid, *grid.level(n)))
    return low


def woven(low: Float, bands: Sequence[Float]) -> Float:
    """Return (C, 2h, 2w) of pictures (C, h, w) and their three bands, each (C, h, w): inverts `parted`."""
    count, h, w = low.shape
    out = np.empty((count, 2 * h, 2 * w), np.float32)
    out[:, ::2, ::2] = low
    out[:, ::2, 1::2], out[:, 1::2, ::2], out[:, 1::2, 1::2] = bands
    return out


def finer(low: Float, bands: Sequence[Float], out: Float | None = None) -> Float:
    """Return (C, 2h, 2w) of pictures (C, h, w) and their three bands, each (C, h, w); in `out` if given."""
    count, h, w = low.shape
    out = np.empty((count, 2 * h, 2 * w), np.float32) if out is None else out
    for some in _batches(count, h, w):
        out[some] = wavelet.synthesise(low[some], [band[some] for band in bands])
    return out


def _batches(count: int, h: int, w: int) -> Iterator[slice]:
    """Yield which of so many channels are transformed at once: as many as the processor's cache has room for.

    Small ones one at a time would take more time to begin than to do.
    """
    step = max(1, _CACHED // (4 * h * w))
    return (slice(begin, begin + step) for begin in range(0, count, step))


def places_of(pyramid: Array, h: int, w: int) -> tuple[Array, Array, Array]:
    """Return the three bands of that size, (…, h, w), of a (…, Y, X) pyramid."""
    return pyramid[..., :h, w : 2 * w], pyramid[..., h : 2 * h, :w], pyramid[..., h : 2 * h, w : 2 * w]


def bands_of(pyramid: Float, h: int, w: int) -> Float:
    """Return (…, 3, h, w), the bands of that size, of a (…, Y, X) pyramid."""
    return np.stack(places_of(pyramid, h, w), -3)


def put_bands(pyramid: Float, bands: Iterable[Sequence[Float]], rows: Sequence[int]) -> None:
    """Store the three bands (h, w) of each of those channels in a pyramid."""
    for row, values in zip(rows, bands, strict=True):
        h, w = values[0].shape
        for place, band in zip(places_of(pyramid[row], h, w), values, strict=True):
            place[...] = band
