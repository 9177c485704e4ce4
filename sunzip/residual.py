"""The error-bound layer: what a decoded image lacks to be as near to the original as was promised.

Specified in docs/reference/format-v1.md, section "Residuals". Pixels are moved by whole steps along a scale
on which the bound is about the same everywhere; most are near enough as the model has them, and stay. All of
it is integers and single IEEE 754 operations, the same bits on every machine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.bounds import Bound, Measure, summed
from sunzip.cube import Scale
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import PRECISION, Tables
from sunzip.errors import DamagedError
from sunzip.normalize import NOISE
from sunzip.packed import pack, unpack

Float = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

#: What the first byte of an image's residual says: along which scale pixels are moved, or that they follow.
_LINEAR, _ROOT, _LOGARITHM, _PIXELS = 1, 2, 3, 4
_NUMBER = struct.Struct("<f")

#: So much less than the tolerance is kept to, for those who check it in float32; and steps are so much
#: smaller than they might be, for what rounds on the way.
_SPARE, _SPARE_STEP = 2.0**-20, 2.0**-10

#: What float32 rounds, as a share of the number; and the smallest pixel from which octaves are counted.
_DIGIT, _LEAST = 2.0**-23, 1e-30

#: One of so many nonzero pixels may be too small for the logarithm: a few would stretch the way through 0.
_FEW = 1 << 10

_LARGEST = float(np.finfo(np.float32).max)

#: How far apart the pixels are that are told first; each time those in the middle of what is known follow.
_COARSEST = 16

#: A table has so many symbols on each side of 0; one of this size and more stands for a pixel that follows.
_REACH, _EXACT = 127, 1 << 30
_ENTRIES = 2 * _REACH + 2

#: Neighbours weigh so much together, and larger moves of theirs count as this one. Half an octave of their
#: mean and a 16th is a class. It begins at one of these sums.
_TOGETHER, _LOUDEST = 28, 255
_CLASSES = (
    *(1, 2, 4, 6, 9, 13, 19, 27, 38, 55, 78, 111, 157, 223, 316, 447, 632, 895, 1266, 1791, 2533, 3583),
    *(5067,),
)
_CLASS = np.searchsorted(_CLASSES, np.arange(_TOGETHER * _LOUDEST + 1), side="right").astype(np.int32)
#: Each class is four: by how much neighbours were moved the same way.
_LEANINGS = 4

#: What a symbol weighs that was seen once, and all that is thought of a class before any is seen: that each
#: symbol is rarer than the one nearer to 0, by so many parts of 2¹⁶.
_SEEN, _THOUGHT = 1 << 10, 1 << 12
_RARER = (
    *(164, 975, 2352, 4288, 6985, 10677, 15557, 21642, 28600, 35766, 42421, 48095, 52642, 56136, 58749),
    *(60666, 62058, 63059, 63776, 64287, 64651, 64909, 65092, 65222),
)

#: In each class a symbol that was seen tells of those as near to it as this, about 5/8 of the moves there.
_NEAR = np.array((*(0,) * 10, 1, 1, 2, 3, 4, 7, 9, 14, 19, 28, 39, 56, 79, 113))

#: Of the bytes of pixels that follow.
_BYTES = Tables(
    np.append(np.full(256, 65535, np.uint32), np.uint32(256)),
    lowest=np.array([0], np.int32),
    length=np.array([257], np.int32),
)

#: ln 2 and √½; terms of the series of the logarithm and the exponential; what stands for the octave of 0.
_LN2, _HALF, _LOG_TERMS, _EXP_TERMS, _NONE = 0.6931471805599453, 0.7071067811865476, 10, 13, -4096.0


class _Scale(NamedTuple):
    """A scale along which pixels are moved.

    Attributes
    ----------
    head
        How it is told in a residual.
    step
        By what multiples of this.
    place, pixel
        Functions of float64 arrays: where on it a pixel is, and the pixel there.
    still
        What a pixel of the base is that is not moved.
    """

    head: bytes
    step: float
    place: Callable[[Float64], Float64]
    pixel: Callable[[Float64], Float64]
    still: Callable[[Float], Float]

    def moved(self, places: Float64, moves: npt.NDArray[np.floating] | Int) -> Float:
        """Return the pixels (n,) so many steps from (n,) places."""
        with np.errstate(over="ignore"):
            return np.clip(self.pixel(places + moves * self.step), -_LARGEST, _LARGEST).astype(np.float32)


def _linear(step: float) -> _Scale:
    return _Scale(_head(_LINEAR, step), step, np.copy, np.copy, np.copy)


def _root(step: float, knee: float) -> _Scale:
    """As noise grows, √(|x| + knee), so does what a step moves."""
    zero = math.sqrt(knee)

    def place(x: Float64) -> Float64:
        return np.copysign(np.sqrt(np.abs(x) + knee) - zero, x)

    def pixel(p: Float64) -> Float64:
        root = np.abs(p) + zero
        return np.copysign(root * root - knee, p)

    return _Scale(_head(_ROOT, step, knee), step, place, pixel, np.copy)


def _logarithm(step: float, least: float) -> _Scale:
    """Octaves of |x| above `least`, which is a step from 0; what is within half a step of 0 is 0."""
    low = float(_octaves(np.array([least]))[0])

    def place(x: Float64) -> Float64:
        above = _octaves(np.abs(x)) - low + step
        return np.copysign(np.where(above < 0.5 * step, 0, above), x)

    def pixel(p: Float64) -> Float64:
        size = np.abs(p)
        return np.copysign(np.where(size < 0.5 * step, 0, _doubled(size - step + low)), p)

    def still(base: Float) -> Float:
        return np.where(place(base.astype(np.float64)) == 0, np.float32(0), base)

    return _Scale(_head(_LOGARITHM, step, least), step, place, pixel, still)


def _head(kind: int, *numbers: float) -> bytes:
    return bytes([kind]) + b"".join(map(_NUMBER.pack, numbers))


def _read_scale(data: bytes) -> _Scale:
    """Return the scale that a residual tells at its beginning."""
    kinds: dict[int, tuple[int, Callable[..., _Scale]]]
    kinds = {_LINEAR: (1, _linear), _ROOT: (2, _root), _LOGARITHM: (2, _logarithm)}
    count, make = kinds.get(data[0], (0, _linear))
    if not count or len(data) < 1 + _NUMBER.size * count:
        raise DamagedError("residual: of no kind that there is, or ends where it begins")
    numbers = [float(_NUMBER.unpack_from(data, 1 + _NUMBER.size * n)[0]) for n in range(count)]
    if not all(2.0**-100 <= number <= 2.0**100 for number in numbers):
        raise DamagedError("residual: its step is none")
    return make(*numbers)


def _below(value: float) -> float:
    """Return the largest float32 that is not above a value: what is stored is what is used."""
    near = np.float32(value)
    return float(np.nextafter(near, np.float32(0)) if near > value else near)


def _octaves(size: Float64) -> Float64:
    """Return log₂ of numbers from 0 up, to ten digits: 2 / ln 2 · artanh of (f − √½) / (f + √½)."""
    fraction, exponent = np.frexp(size)
    z = (fraction - _HALF) / (fraction + _HALF)
    square, total = z * z, np.zeros_like(z)
    for n in range(2 * _LOG_TERMS - 1, 0, -2):
        total = total * square + 1 / n
    return np.where(size > 0, z * total * (2 / _LN2) + (exponent - 0.5), _NONE)


def _doubled(octaves: Float64) -> Float64:
    """Return 2 to the power of numbers, to ten digits; of too large ones infinity."""
    octaves = np.clip(octaves, _NONE, -_NONE)
    whole = np.floor(octaves)
    part, total = (octaves - whole) * _LN2, np.ones_like(octaves)
    for n in range(_EXP_TERMS, 0, -1):
        total = total * part * (1 / n) + 1
    return np.ldexp(total, whole.astype(np.int32))


def _along(bound: Bound, name: str, scale: Scale, moved: Float64, seen: Float) -> _Scale | None:
    """Return the scale along which means are moved: steps are as long as the bound lets them be.

    Parameters
    ----------
    bound, name, scale
        As for `correct`.
    moved, seen
        Those (n,) that have to be moved, and all (N,); n is not 0.

    Returns
    -------
    None if float32 has no digits for steps as short.
    """
    size = np.abs(moved)
    if bound.measure is Measure.PERCENT:
        step = 2 * math.log2(1 + bound.size / 100) * (1 - _SPARE_STEP)
        other = np.abs(seen[seen != 0])
        few = other.size // _FEW
        least = max(float(np.partition(other, few)[few]), _LEAST) if other.size else 1.0
        return _logarithm(_below(step), _below(least)) if step > 4 * _DIGIT else None
    if bound.measure is Measure.SIGMA:
        # Noise grows from a pixel to a brighter one, so that half a step up from the faintest is the longest.
        a, b = NOISE[name]
        root = math.sqrt(float(size.min()) + b)
        half = math.sqrt(root * root + bound.size * math.sqrt(a) * root) - root
        return _root(_below(2 * half * (1 - _SPARE_STEP)), _below(b)) if half > 2 * _DIGIT * root else None
    half = bound.size / summed(name, scale) * (1 - _SPARE_STEP) - _DIGIT * float(size.max())
    return _linear(_below(2 * half)) if half > 0 else None


def correct(pixels: Float, base: Float, bound: Bound, name: str, scale: Scale) -> tuple[bytes, Float]:
    """Bring a decoded image within a bound of the original.

    Parameters
    ----------
    pixels
        (Y, X) float32 the original as means, in DN/s or G; NaN where there is no measurement.
    base
        (Y, X) float32 as decoded, finite means.
    bound, name
        Of the channel.
    scale
        Of the pixels for which a bound in DN/s is meant.

    Returns
    -------
    The residual, empty if all pixels are within the bound, and what `corrected` makes of `base` with it.
    """
    parts = summed(name, scale)
    allowed = bound.tolerance(pixels * np.float32(parts), name, scale)
    allowed *= (1 - _SPARE) / parts

    def over(shown: Float) -> npt.NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            return np.abs(np.subtract(shown, pixels, dtype=np.float64)) > allowed

    wrong = over(base)
    if not wrong.any():
        return b"", base
    along = _along(bound, name, scale, pixels[wrong].astype(np.float64), pixels[~np.isnan(pixels)])
    data, shown = None, base
    if along is not None:
        shown = along.still(base)
        wrong = over(shown)
        moves, shown[wrong] = _moves(along, pixels[wrong], base[wrong], allowed[wrong])
        data = _written(along, wrong, moves, pixels)
        if len(data) < pixels.nbytes // 2:
            return data, shown
    exact = np.nan_to_num(pixels)
    packed = bytes([_PIXELS]) + pack(np.ascontiguousarray(exact, "<f4").reshape(-1).data, 3, checksum=False)
    return (packed, exact) if data is None or len(packed) < len(data) else (data, shown)


def _moves(along: _Scale, pixels: Float, base: Float, allowed: Float64) -> tuple[Int, Float]:
    """Return by how many steps (n,) pixels are to be moved, and what they then are."""
    wanted, places = pixels.astype(np.float64), along.place(base.astype(np.float64))
    whole = np.rint((along.place(wanted) - places) / along.step)
    moves, found = np.full(whole.size, _EXACT, np.int32), pixels.copy()
    # Of those that are enough the smallest, so that it is tried last.
    for further in (1, 0, -1):
        tried = whole + further * np.where(whole < 0, -1, 1)
        near = along.moved(places, tried)
        enough = (np.abs(near - wanted) <= allowed) & (np.abs(tried) < _EXACT) & (tried != 0)
        moves[enough], found[enough] = tried[enough], near[enough]
    return moves, found


def _written(along: _Scale, wrong: npt.NDArray[np.bool_], moves: Int, pixels: Float) -> bytes:
    """Return the residual that says by how many steps pixels (Y, X) are moved."""
    image = np.zeros(wrong.shape, np.int32)
    image[wrong] = moves
    encoder = Encoder()
    counts = _Counts()
    for views, contexts, signs in _walk(image):
        symbols = np.concatenate([view.ravel() for view in views]) * signs
        tables, index = counts.tables(contexts)
        encoder.push(symbols, index, tables)
        counts.count(contexts, symbols)
    follow = np.ascontiguousarray(pixels[np.abs(image) >= _EXACT], "<f4").view(np.uint8).astype(np.int32)
    encoder.push(follow, np.zeros(follow.size, np.int32), _BYTES)
    return along.head + encoder.finish()


def corrected(base: Float, data: bytes) -> Float:
    """Apply a residual.

    Parameters
    ----------
    base
        (Y, X) float32 as decoded by the model, finite means.
    data
        From `correct`; may come from strangers.

    Raises
    ------
    DamagedError
        If it is no residual of an image of this size.
    """
    if not data:
        return base
    if data[0] == _PIXELS:
        try:
            pixels = np.frombuffer(unpack(data[1:], base.nbytes), "<f4").astype(np.float32)
        except DamagedError as error:
            raise DamagedError(f"residual: its pixels {error}") from error
        return _finite(pixels).reshape(base.shape)
    along = _read_scale(data)
    decoder, counts = Decoder(data[len(along.head) :]), _Counts()
    moves = np.zeros(base.shape, np.int32)
    for views, contexts, signs in _walk(moves):
        tables, index = counts.tables(contexts)
        symbols = decoder.pop(index, tables)
        counts.count(contexts, symbols)
        if int(symbols.min()) < -_EXACT or int(symbols.max()) > _EXACT:
            raise DamagedError("residual: a pixel is moved by more steps than can be")
        told, begin = symbols * signs, 0
        for view in views:
            view[:] = told[begin : begin + view.size].reshape(view.shape)
            begin += view.size
    exact = np.abs(moves) >= _EXACT
    follow = decoder.pop(np.zeros(4 * np.count_nonzero(exact), np.int32), _BYTES)
    decoder.finish()
    out = along.still(base)
    wrong = moves != 0
    out[wrong] = along.moved(along.place(base[wrong].astype(np.float64)), moves[wrong])
    if follow.size:
        if not 0 <= int(follow.min()) <= int(follow.max()) <= 255:
            raise DamagedError("residual: what follows is no byte")
        out[exact] = _finite(follow.astype(np.uint8).view("<f4"))
    return out


def _finite(pixels: Float) -> Float:
    if not np.isfinite(pixels).all():
        raise DamagedError("residual: holds pixels that are not finite")
    return pixels


def _walk(moves: Int) -> Iterator[tuple[list[Int], Int, Int]]:
    """Go through an image (Y, X) from few pixels to all of them.

    Yields
    ------
    Views of it, whose pixels are to be coded together or to be filled in before the next; and of all of
    these (n,) the context and the sign that their symbol is multiplied by.
    """
    first = moves[::_COARSEST, ::_COARSEST]
    yield [first], *_contexts(np.full(first.size, _TOGETHER, np.int32), np.zeros(first.size, np.int32))
    apart = _COARSEST
    while apart > 1:
        half = apart // 2
        middles = moves[half::apart, half::apart]
        corners = _heard(moves[::apart, ::apart])
        if middles.size:
            h, w = middles.shape
            four = corners[:, 1 : h + 1] + corners[:, 2 : h + 2]
            four = four[:, :, 1 : w + 1] + four[:, :, 2 : w + 2]
            yield [middles], *_contexts(*four.reshape(2, -1) * (_TOGETHER // 4))
        sides = [moves[half::apart, ::apart], moves[::apart, half::apart]]
        if any(side.size for side in sides):
            inner = _heard(middles)
            below = _crossed(corners, inner, sides[0].shape)
            right = _crossed(corners.swapaxes(1, 2), inner.swapaxes(1, 2), sides[1].T.shape).swapaxes(1, 2)
            yield sides, *_contexts(*np.concatenate([below.reshape(2, -1), right.reshape(2, -1)], 1))
        apart = half


def _heard(moves: Int) -> Int:
    """Return what neighbours hear of moves (h, w): sizes and moves themselves (2, h + 2, w + 2), 0 around."""
    out = np.zeros((2, moves.shape[0] + 2, moves.shape[1] + 2), np.int32)
    np.clip(moves, -_LOUDEST, _LOUDEST, out=out[1, 1:-1, 1:-1])
    np.abs(out[1], out=out[0])
    return out


def _crossed(corners: Int, middles: Int, shape: tuple[int, ...]) -> Int:
    """Return the sums (2, h, w) about pixels half-way down from corners: four near ones, and eight beyond."""
    h, w = shape
    near = corners[:, 1 : h + 1, 1 : w + 1] + corners[:, 2 : h + 2, 1 : w + 1]
    near += middles[:, 1 : h + 1, :w]
    near += middles[:, 1 : h + 1, 1 : w + 1]
    near *= 5
    for rows in (slice(1, h + 1), slice(2, h + 2)):
        near += corners[:, rows, :w]
        near += corners[:, rows, 2 : w + 2]
    for rows in (slice(h), slice(2, h + 2)):
        near += middles[:, rows, :w]
        near += middles[:, rows, 1 : w + 1]
    return near


def _contexts(size: Int, leaning: Int) -> tuple[Int, Int]:
    """Return contexts and signs (n,) from sums over neighbours: of sizes, and of moves."""
    eight, contexts = 8 * np.abs(leaning), _CLASS[size] * np.int32(_LEANINGS)
    for times in (1, 3, 5):
        contexts += eight >= times * (size + 1)
    return contexts, np.where(leaning < 0, np.int32(-1), np.int32(1))


def _thoughts() -> Int64:
    """Return what is thought of each context (K, L) before any symbol is seen."""
    out = np.ones((len(_RARER) * _LEANINGS, _ENTRIES), np.int64)
    for n, rarer in enumerate(_RARER):
        side = [1 << 32]
        for _ in range(_REACH):
            side.append(side[-1] * rarer >> 16)
        both = side[:0:-1] + side
        out[n * _LEANINGS : (n + 1) * _LEANINGS, :-1] = [_THOUGHT * each // sum(both) for each in both]
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
        near = _NEAR[used // _LEANINGS, None]
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
