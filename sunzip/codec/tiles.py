"""Tiles of fine levels: where a channel has nothing worth its bits, its bands are as if left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sunzip.codec.family import Float
from sunzip.codec.prices import LARGEST, worth_of
from sunzip.entropy.tables import Tables
from sunzip.nn.planes import Places, edged, halves

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int32]

#: Side of a tile, and from which side on bands are in tiles.
SIDE, FINE = 16, 32

#: With more tiles than this share of a level there is nothing to win by leaving out the others.
MANY = 0.7

#: How far the network looks: two places around a tile tell of those in it. And the side of what it is given.
_AROUND = 2
_WINDOW = SIDE + 2 * _AROUND

#: What the bits of a tile are worth, in squared steps, about: to tell that it is coded, and the zeros in it,
#: in frames alone and in those that build on others.
_TILE = (5.0, 1.5)

#: Chances in 256 that a tile is coded, in frames alone and in those that build on others, by how much there
#: is in the same place of the coarser level, and by the channels seen: none, those with nothing there, one of
#: two, all.
_CHANCES = (
    (8, 2, 11, 50), (57, 7, 30, 80), (77, 14, 30, 66), (96, 19, 26, 50),
    (121, 30, 47, 55), (125, 35, 58, 71), (125, 42, 85, 80), (152, 80, 85, 93),
    (42, 9, 17, 24), (107, 42, 65, 90), (126, 86, 125, 154), (184, 110, 165, 204),
    (210, 110, 190, 205), (225, 110, 150, 205), (225, 110, 150, 205), (225, 110, 150, 205),
)  # fmt: skip

#: After them that of a level that is coded everywhere, and its place.
_FLAT = [chance for row in _CHANCES for chance in row] + [90]
EVERYWHERE = np.array([len(_FLAT) - 1], np.int32)

#: Whether tiles, and whole levels, are coded.
TILES = Tables.from_probabilities([[256 - c, c] for c in _FLAT], [0] * len(_FLAT), [0.0] * len(_FLAT))

#: Symbols are as loud as this at most.
_LOUDEST = 15


def are_tiled(shape: tuple[int, int]) -> bool:
    """Tell whether bands of a shape are in tiles."""
    return min(shape) >= FINE


def tiles_of(shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns of tiles bands of a shape have."""
    return -(-shape[0] // SIDE), -(-shape[1] // SIDE)


def worthwhile(apart: Float, channel: int, linked: bool) -> Bool:
    """Return in which tiles (tall, wide) bands (3, h, w) of a channel, in steps, are worth their bits.

    `linked` tells whether the frame builds on others.
    """
    size = np.abs(apart).ravel()
    # Smaller ones are never worth it.
    at = np.flatnonzero(size > 1)
    size = np.minimum(size[at], LARGEST)
    gained = np.maximum(size * size - worth_of(size, channel), 0)
    height, width = apart.shape[1:]
    tall, wide = tiles_of((height, width))
    y, x = np.divmod(at % (height * width), width)
    total = np.bincount(y // SIDE * wide + x // SIDE, gained, tall * wide).reshape(tall, wide)
    return np.asarray(total > _TILE[linked])


def above(coded: Bool) -> Bool:
    """Return in which tiles of the next coarser level any of these tiles (tall, wide) are."""
    tall, wide = coded.shape
    found = np.zeros((-(-tall // 2), -(-wide // 2)), np.bool_)
    for part in (coded[y::2, x::2] for y in (0, 1) for x in (0, 1)):
        found[: part.shape[0], : part.shape[1]] |= part
    return found


def below(coded: Bool, shape: tuple[int, int]) -> Bool:
    """Return which tiles of the next finer level, whose bands are of a shape, lie in such tiles."""
    tall, wide = tiles_of(shape)
    return coded.repeat(2, 0).repeat(2, 1)[:tall, :wide]


def expected(coarser: Int | None, seen: Sequence[Bool], linked: bool, shape: tuple[int, int]) -> Int:
    """Return the tables (tall, wide) of whether tiles are coded.

    Parameters
    ----------
    coarser
        (h / 2, w / 2) see `loudness`, of the coarser level; None at the coarsest.
    seen
        (tall, wide) tiles of the channels that this one sees and that are coded in this level.
    linked
        Whether the frame builds on others.
    shape
        (h, w) of the bands.
    """
    tall, wide = tiles_of(shape)
    table = np.full((tall, wide), len(_CHANCES) // 2 * linked, np.int32)
    if coarser is not None:
        half = SIDE // 2
        padded = np.zeros((tall * half, wide * half), np.int32)
        padded[: coarser.shape[0], : coarser.shape[1]] = coarser
        power = padded.reshape(tall, half, wide, half).sum((1, 3))
        # How often 1 more can be halved.
        table += (power[..., None] + 1 >= 1 << np.arange(1, len(_CHANCES) // 2)).sum(-1, dtype=np.int32)
    table *= len(_CHANCES[0])
    if seen:
        count = np.sum(seen, 0, dtype=np.int32)
        table += np.where(count == len(seen), 3, np.where(count, 2, 1)).astype(np.int32)
    return table


def loudness(symbols: Int) -> Int:
    """Return (C, h, w) squares of the largest symbols of three bands, (C, 3, h, w)."""
    largest = np.minimum(np.abs(symbols).max(1), _LOUDEST)
    return np.asarray(largest * largest, np.int32)


class Whole:
    """Bands of channels as they are, for the network: what `Tiles` is where only some are coded.

    Attributes
    ----------
    places, asked
        As of `Tiles`; None for all.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.places: tuple[Places, Places, None] = (*halves(*shape), None)
        self.asked = self.places

    def windows(self, planes: Float, around: int = 0) -> Float:
        """See `Tiles.windows`: planes (C, K, h, w) as they are, with one place more around them if asked."""
        return edged(planes) if around else planes

    def rows(self, channel: int) -> slice:
        """See `Tiles.rows`."""
        return slice(channel, channel + 1)

    def coarser(self, features: Float) -> Float:
        """See `Tiles.coarser`: features as they are."""
        return features

    def listed(self, outputs: Float, which: int) -> Float:
        """See `Tiles.listed`: outputs as they are."""
        return outputs

    def whole(self, features: Float) -> Float:
        """See `Tiles.whole`: features as they are."""
        return features


class Tiles:
    """Tiles of one channel's bands, as a batch for the network.

    It is given windows a little larger than the tiles, moved inwards at the edges, so that it finds the same
    around each of them as if it were given the bands whole.

    Parameters
    ----------
    coded
        (tall, wide) which are coded.
    shape
        (h, w) of the bands.

    Attributes
    ----------
    places
        Places in the bands, counted along the rows, tile by tile: those of the two colours of a checkerboard,
        and all.
    asked
        Of the same the places in each window, (M, N); tiles that reach over an edge have some in vain.
    """

    def __init__(self, coded: Bool, shape: tuple[int, int]) -> None:
        self._shape = shape
        begin = np.argwhere(coded) * SIDE
        self._begin = np.clip(begin - _AROUND, 0, np.array(shape) - _WINDOW)
        inside = np.arange(SIDE)
        y, x = begin[:, :1] + inside, begin[:, 1:] + inside
        here = _counted(y, x, shape[1])
        there = _counted(y - self._begin[:, :1], x - self._begin[:, 1:], _WINDOW)
        within = (y < shape[0])[:, :, None] & (x < shape[1])[:, None, :]
        odd = np.add.outer(inside, inside) % 2
        some = (odd == 0, odd == 1, odd >= 0)
        self._within = [within[:, of] for of in some]
        self.places = [here[:, of][kept] for of, kept in zip(some, self._within, strict=True)]
        self.asked = [np.where(kept, there[:, of], 0) for of, kept in zip(some, self._within, strict=True)]

    def __len__(self) -> int:
        return len(self._begin)

    def windows(self, planes: Float, around: int = 0) -> Float:
        """Return the windows (M, K, y, x) of planes (1, K, h, w), with so many places more on every side.

        Beyond the edges these are as those next to them.
        """
        h, w = self._shape
        within = np.arange(-around, _WINDOW + around)
        y, x = (np.clip(self._begin[:, k, None] + within, 0, side - 1) for k, side in enumerate((h, w)))
        found = planes.reshape(planes.shape[1], -1).take(_counted(y, x, w), -1)
        return found.swapaxes(0, 1)

    def rows(self, channel: int) -> slice:
        """Return which of the windows are of a channel: all."""
        return slice(None)

    def coarser(self, features: Float) -> Float:
        """Return the windows (M, K, y, x) of features (1, K, h / 2, w / 2) of the coarser level."""
        half = np.arange(_WINDOW // 2)
        y, x = (self._begin[:, k, None] // 2 + half for k in (0, 1))
        rows = features[0].transpose(1, 2, 0)
        found: Float = rows[y[:, :, None], x[:, None, :]].transpose(0, 3, 1, 2)
        return found

    def listed(self, outputs: Float, which: int) -> Float:
        """Return outputs (M, K, N) of the network as (1, K, N) at `places`; `which` is 0 to 2, as there."""
        return outputs.swapaxes(0, 1)[:, self._within[which]][None]

    def whole(self, features: Float) -> Float:
        """Return features (1, K, h, w) of those of windows (M, K, y, x); 0 outside of the tiles."""
        count, width = features.shape[:2]
        rows = features.transpose(0, 2, 3, 1).reshape(count, -1, width)
        within = self._within[2]
        out = np.zeros((*self._shape, width), np.float32)
        out.reshape(-1, width)[self.places[2]] = rows[np.nonzero(within)[0], self.asked[2][within]]
        return out.transpose(2, 0, 1)[None]


def _counted(y: Places, x: Places, width: int) -> Places:
    """Return (M, Y, X) places counted along rows of a width, of (M, Y) and (M, X)."""
    return np.asarray((y * width)[:, :, None] + x[:, None, :])
