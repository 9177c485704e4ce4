"""Moves of pixels as bits: whole numbers, mostly 0, foretold by those around them and in other channels.

Specified in docs/reference/format-v1.md, section "Steps". Pixels of a coarse grid come first, then those
between them. What neighbours and other channels tell of a pixel is a mean and how far it will be off; how
often each symbol was seen with the like, in the pixels before, makes the table that it is coded with. All is
integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import PRECISION, Tables
from sunzip.errors import DamagedError

Int = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

#: What stands for a pixel that is not moved but told; other symbols are so much smaller.
TOLD = 1 << 30
_APART = 1 << 20

#: How far apart the pixels are that come first; each time those in the middle of what is known follow.
_COARSEST = 16

#: Larger moves tell of others what this one does.
_LOUDEST = 255

#: Where those neighbours are, in units of the grid, that are known when pixels in the middle of four come,
#: and when those between two and two come; and some that are farther from the latter.
_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_BEYOND = ((-2, -1), (-2, 1), (2, -1), (2, 1), (-1, -2), (-1, 2), (1, -2), (1, 2))

#: Weights are counted in these, and fit eight bits.
_UNIT, _WEIGHT_MOST = 64, 127

#: How far neighbours were off, in eighths of a move, weighs so much together, and a move of another channel
#: so much. Half an octave of a 16th and their mean is a class, which begins at one of these sums.
_TOGETHER, _OTHER, _EIGHTHS = 28, 45, 8
_CLASSES = (
    *(6, 14, 26, 42, 66, 98, 145, 210, 303, 434, 620, 882, 1254, 1778, 2521, 3570, 5055, 7154, 10124),
    *(14322, 20261, 28658, 40535),
)
_CLASS = np.searchsorted(
    _CLASSES, np.arange((_TOGETHER * _EIGHTHS + _OTHER) * _LOUDEST + 1), side="right"
).astype(np.int32)

#: Each class is four: by how far the mean lies from a whole number.
_PARTS = 4

#: A table has so many symbols on each side of 0, and the escape.
_REACH = 127
_ENTRIES = 2 * _REACH + 2

#: What a symbol weighs that was seen once, and all that is thought of a class before any is seen: that each
#: symbol is rarer than the one nearer to 0, by so many parts of 2¹⁶.
_SEEN, _THOUGHT = 1 << 10, 1 << 12
_RARER = (
    *(164, 975, 2352, 4288, 6985, 10677, 15557, 21642, 28600, 35766, 42421, 48095, 52642, 56136, 58749),
    *(60666, 62058, 63059, 63776, 64287, 64651, 64909, 65092, 65222),
)

#: In each class a symbol that was seen tells of those as near to it as this, about 5/8 of its mean.
_NEAR = np.array((*(0,) * 10, 1, 1, 2, 3, 4, 7, 9, 14, 19, 28, 39, 56, 79, 113))

#: So many pixels are enough to find weights, but for one of so many that are moved farthest.
_FITTED, _STRANGE = 1 << 17, 1000


class _Stage(NamedTuple):
    """Pixels that are coded together.

    Attributes
    ----------
    apart
        Of the grid in which they lie, in pixels.
    sets
        Rows and columns of the grid, odd or even, at which they are.
    near
        Where their neighbours are, or None at first.
    """

    apart: int
    sets: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...] | None


def _stages() -> Iterator[_Stage]:
    yield _Stage(_COARSEST, (), None)
    apart = _COARSEST // 2
    while apart:
        yield _Stage(apart, ((1, 1),), _CORNERS)
        yield _Stage(apart, ((1, 0), (0, 1)), _SIDES)
        apart //= 2


def _kind(stage: _Stage) -> int:
    """Return which of the two sets of weights foretell the pixels of a stage."""
    return int(stage.near is _SIDES)


def _views(image: Int, stage: _Stage) -> list[Int]:
    """Return the pixels of a stage in an image (Y, X), as views."""
    grid = image[:: stage.apart, :: stage.apart]
    return [grid[row::2, column::2] for row, column in stage.sets] or [grid]


def _flat(views: Sequence[Int]) -> Int:
    return np.concatenate([view.ravel() for view in views])


def _spread(values: Int, views: Sequence[Int]) -> Iterator[tuple[Int, Int]]:
    """Yield views, and those of the (n,) values of all that are theirs, in their shape: undoes `_flat`."""
    begin = 0
    for view in views:
        yield view, values[begin : begin + view.size].reshape(view.shape)
        begin += view.size


def _around(image: Int, stage: _Stage, offsets: Sequence[tuple[int, int]]) -> Int:
    """Return the sums (n,) over neighbours of a stage's pixels in an image (Y, X), 0 beyond its edges."""
    padded = np.pad(image[:: stage.apart, :: stage.apart], 2)
    found = []
    for (row, column), view in zip(stage.sets, _views(image, stage), strict=True):
        h, w = view.shape
        total = np.zeros((h, w), np.int32)
        for down, right in offsets:
            top, left = 2 + row + down, 2 + column + right
            total += padded[top : top + 2 * h : 2, left : left + 2 * w : 2][:h, :w]
        found.append(total)
    return _flat(found)


def _heard(moves: Int) -> Int:
    """Return what moves tell of others: those of pixels that are told are none."""
    return np.where(np.abs(moves) == TOLD, 0, np.clip(moves, -_LOUDEST, _LOUDEST)).astype(np.int32)


def _features(heard: Int, others: Sequence[Int], stage: _Stage) -> list[Int]:
    """Return what the mean of a stage's pixels is made of: neighbours, and of other channels both."""
    assert stage.near is not None
    found = [_around(heard, stage, stage.near)]
    for other in others:
        found += [_flat(_views(other, stage)), _around(other, stage, stage.near)]
    return found


def weights_with(others: int) -> int:
    """Return how many weights there are with so many other channels."""
    return 2 * (1 + 2 * others)


def fitted(moves: Int, others: Sequence[Int]) -> list[int]:
    """Return the weights, in 64ths, with which others tell most of moves (Y, X), by least squares.

    Those in the middle of four come first, then those between two.
    """
    heard, weights = _heard(moves), []
    others = [_heard(other) for other in others]
    for stage in list(_stages())[-2:]:
        values = _flat(_views(heard, stage))
        every = max(1, values.size // _FITTED)
        table = np.stack(_features(heard, others, stage), 1)[::every].astype(np.float64)
        wanted = values[::every].astype(np.float64)
        size = np.abs(wanted)
        strange = wanted.size // _STRANGE
        if strange:
            usual = size <= np.partition(size, -strange - 1)[-strange - 1]
            table, wanted = table[usual], wanted[usual]
        # Sums of whole numbers below 2⁵³: the same in whatever order, on however many threads.
        square = table.T @ table + np.eye(table.shape[1])
        found = np.linalg.solve(square, table.T @ wanted)
        weights += np.clip(np.rint(found * _UNIT), -_WEIGHT_MOST, _WEIGHT_MOST).astype(int).tolist()
    return weights


class _Walk:
    """Goes through an image from few pixels to all, and tells of each what is known of it beforehand."""

    def __init__(self, moves: Int, others: Sequence[Int], weights: Sequence[int]) -> None:
        self._moves = moves
        self._heard = np.zeros_like(moves)
        self._off = np.zeros_like(moves)
        self._others = [_heard(other) for other in others]
        half = len(weights) // 2
        self._weights = weights[:half], weights[half:]

    def __iter__(self) -> Iterator[tuple[list[Int], Int, Int, Int]]:
        """Yield views of pixels to be coded or filled in, and of all of these (n,) contexts, means and signs.

        Symbols are what moves are more than the mean, times the sign.
        """
        for stage in _stages():
            views = _views(self._moves, stage)
            total = sum(view.size for view in views)
            if not total:
                continue
            mean = np.zeros(total, np.int32)
            if stage.near is None:
                size = np.full(total, _TOGETHER * _EIGHTHS, np.int32)
            else:
                features = _features(self._heard, self._others, stage)
                for weight, feature in zip(self._weights[_kind(stage)], features, strict=True):
                    mean += np.int32(weight) * feature
                near = _around(self._off, stage, stage.near)
                if stage.near is _SIDES:
                    size = 5 * near + _around(self._off, stage, _BEYOND)
                else:
                    size = near * (_TOGETHER // len(stage.near))
                if self._others:
                    size += _OTHER * np.abs(_flat(_views(self._others[0], stage)))
            whole = (mean + _UNIT // 2) >> 6
            part = mean - _UNIT * whole
            contexts = _CLASS[size] * np.int32(_PARTS) + np.minimum(np.abs(part) >> 3, _PARTS - 1)
            yield views, contexts, whole, np.where(part < 0, np.int32(-1), np.int32(1))
            heard, off = _views(self._heard, stage), _views(self._off, stage)
            for (view, foretold), to_heard, to_off in zip(_spread(mean, views), heard, off, strict=True):
                to_heard[:] = _heard(view)
                apart = np.abs(_UNIT * to_heard - foretold) >> 3
                to_off[:] = np.minimum(np.where(np.abs(view) == TOLD, TOLD, apart), _EIGHTHS * _LOUDEST)


def push(encoder: Encoder, moves: Int, others: Sequence[Int], weights: Sequence[int]) -> None:
    """Add the moves of an image to what an encoder codes.

    Parameters
    ----------
    moves
        (Y, X) int32: `TOLD`, or smaller than half of that.
    others
        Up to two (Y, X), of other channels.
    weights
        See `fitted`.
    """
    counts = _Counts()
    for views, contexts, whole, signs in _Walk(moves, others, weights):
        values = _flat(views)
        symbols = np.where(values == TOLD, TOLD, (values - whole) * signs)
        tables, index = counts.tables(contexts)
        encoder.push(symbols, index, tables)
        counts.count(contexts, symbols)


def pop(decoder: Decoder, shape: tuple[int, int], others: Sequence[Int], weights: Sequence[int]) -> Int:
    """Take the moves of an image (Y, X) from a decoder, as `push` added them.

    Raises
    ------
    DamagedError
        If a pixel is moved farther than can be.
    """
    moves, counts = np.zeros(shape, np.int32), _Counts()
    for views, contexts, whole, signs in _Walk(moves, others, weights):
        tables, index = counts.tables(contexts)
        symbols = decoder.pop(index, tables)
        counts.count(contexts, symbols)
        told = symbols == TOLD
        if (np.abs(symbols.astype(np.int64)) > TOLD - _APART)[~told].any():
            raise DamagedError("residual: a pixel is moved by more steps than can be")
        for view, values in _spread(np.where(told, TOLD, symbols * signs + whole), views):
            view[:] = values
    return moves


def _thoughts() -> Int64:
    """Return what is thought of each context (K, L) before any symbol is seen."""
    out = np.ones((len(_RARER) * _PARTS, _ENTRIES), np.int64)
    for n, rarer in enumerate(_RARER):
        side = [1 << 32]
        for _ in range(_REACH):
            side.append(side[-1] * rarer >> 16)
        both = side[:0:-1] + side
        out[n * _PARTS : (n + 1) * _PARTS, :-1] = [_THOUGHT * each // sum(both) for each in both]
    return out


_BEFOREHAND = _thoughts()
_PLACES = np.arange(_ENTRIES - 1)


class _Counts:
    """How often each symbol was seen in each context of an image, which makes the tables of those to come."""

    def __init__(self) -> None:
        self._seen = np.zeros(_BEFOREHAND.shape, np.int64)

    def tables(self, contexts: Int) -> tuple[Tables, Int]:
        """Return tables for the contexts (n,) that there are, and which of them each is coded with."""
        used = np.flatnonzero(np.bincount(contexts))
        index = np.zeros(len(_BEFOREHAND), np.int32)
        index[used] = np.arange(len(used))
        seen = self._seen[used]
        near = _NEAR[used // _PARTS, None]
        below = np.zeros_like(seen)
        np.cumsum(seen[:, :-1], 1, out=below[:, 1:])
        upper = np.take_along_axis(below, np.minimum(_PLACES + near + 1, _ENTRIES - 1), 1)
        seen[:, :-1] = upper - np.take_along_axis(below, np.maximum(_PLACES - near, 0), 1)
        seen *= _SEEN
        seen[:, :-1] //= 2 * near + 1
        weights = seen + _BEFOREHAND[used]
        # Below 2⁶³ for all pixels that an image can have.
        found = weights * ((1 << PRECISION) - _ENTRIES) // weights.sum(1, keepdims=True) + 1
        found[np.arange(len(used)), found.argmax(1)] += (1 << PRECISION) - found.sum(1)
        count = len(used)
        return Tables(
            found.ravel().astype(np.uint32),
            np.full(count, -_REACH, np.int32),
            np.full(count, _ENTRIES, np.int32),
        ), index[contexts]

    def count(self, contexts: Int, symbols: Int) -> None:
        """Remember symbols (n,) and their contexts."""
        inside = np.clip(symbols, -_REACH - 1, _REACH + 1)
        entries = np.where(np.abs(inside) <= _REACH, inside + _REACH, _ENTRIES - 1)
        found = np.bincount(contexts * _ENTRIES + entries, minlength=self._seen.size)
        self._seen += found.reshape(self._seen.shape)
