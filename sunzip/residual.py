"""The error-bound layer: what a decoded image lacks to be as near to the original as was promised.

Specified in docs/reference/format-v1.md, section "Residuals". Pixels are moved by whole steps along a scale
on which the bound is about the same everywhere; most are near enough as the model has them, and stay. What
channels of a frame lack is alike, so that how one is moved tells of others. All of it is integers and single
IEEE 754 operations, the same bits on every machine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip import moves
from sunzip.bounds import Bound, Bounds, Measure
from sunzip.channels import NAMES, TELLING
from sunzip.cube import Scale, summed
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError
from sunzip.normalize import NOISE
from sunzip.packed import pack, unpack

Float = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int32]

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

#: So many pixels are enough to choose a scale.
_SOME = 1 << 12

#: Pixels are not moved by as many steps; they are told instead.
_FARTHEST = 1 << 29

#: Channels in the order in which they are told, and those that tell most of each; so many of these are asked.
_ORDER = [NAMES[c] for c in TELLING]
_TELLING = {NAMES[c]: [NAMES[other] for other in others] for c, others in TELLING.items()}
_OTHERS = 2

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
        half, knee = _half(bound.size, name, size)
        step = _below(2 * half * (1 - _SPARE_STEP))
        return _root(step, _below(knee)) if half > 2 * _DIGIT * math.sqrt(float(size.max())) else None
    half = bound.size / summed(name, scale) * (1 - _SPARE_STEP) - _DIGIT * float(size.max())
    return _linear(_below(2 * half)) if half > 0 else None


def _half(sigmas: float, name: str, size: Float64) -> tuple[float, float]:
    """Return half the step by which pixels of these sizes (n,) are moved, and the knee of their scale.

    Noise grows from a pixel to a brighter one, so that a step up is the longest. On a scale with a lower knee
    than the noise has faint pixels shorten the steps of others less, and take more themselves: that knee is
    taken with which steps are the longest on average, by their logarithm.
    """
    a, b = NOISE[name]
    x = np.geomspace(max(float(size.min()), b / 64), max(float(size.max()), b), 256)
    x[0] = size.min()
    allowed = sigmas * math.sqrt(a) * np.sqrt(x + b)
    some = size[:: max(1, size.size // _SOME)]
    found = []
    for knee in (b * 2.0**-n for n in range(9)):
        half = float((np.sqrt(x + knee + allowed) - np.sqrt(x + knee)).min())
        found.append((half * math.exp(float(np.log(some + knee).mean()) / 2), half, knee))
    return max(found)[1:]


def correct(
    pixels: Float, base: Float, names: Sequence[str], bounds: Bounds, scale: Scale
) -> tuple[list[bytes], Float]:
    """Bring the decoded images of a frame within bounds of the original.

    Parameters
    ----------
    pixels
        (n, Y, X) float32 the original as means, in DN/s or G; NaN where there is no measurement.
    base
        (n, Y, X) float32 as decoded, finite means.
    names
        Of the n channels, in canonical order.
    bounds
        Those of channels that have one.
    scale
        Of the pixels for which bounds are meant.

    Returns
    -------
    For each channel its residual, empty if all pixels are within the bound, and what `corrected` makes of
    `base` with these.
    """
    parts, shown = [b""] * len(names), base.copy()
    known: dict[str, Int] = {}
    for name in (name for name in _ORDER if name in names and name in bounds):
        n, others = names.index(name), [known[other] for other in _like(name, known)]
        parts[n], shown[n], image = _bring(pixels[n], base[n], bounds[name], name, scale, others)
        if image is not None:
            known[name] = image
    return parts, shown


def _like(name: str, moved: Collection[str]) -> list[str]:
    """Return those of the channels whose pixels are moved that tell most of one."""
    return [other for other in _TELLING[name] if other in moved][:_OTHERS]


def _bring(
    pixels: Float, base: Float, bound: Bound, name: str, scale: Scale, others: Sequence[Int]
) -> tuple[bytes, Float, Int | None]:
    """Return the residual of an image (Y, X), what it makes of it, and its moves if it has any."""
    parts = summed(name, scale)
    allowed = bound.tolerance(pixels * np.float32(parts), name, scale)
    allowed *= (1 - _SPARE) / parts

    def over(shown: Float) -> npt.NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            return np.abs(np.subtract(shown, pixels, dtype=np.float64)) > allowed

    wrong = over(base)
    if not wrong.any():
        return b"", base, None
    along = _along(bound, name, scale, pixels[wrong].astype(np.float64), pixels[~np.isnan(pixels)])
    data = None
    if along is not None:
        shown = along.still(base)
        wrong = over(shown)
        image = np.zeros(pixels.shape, np.int32)
        image[wrong], shown[wrong] = _moves(along, pixels[wrong], base[wrong], allowed[wrong])
        data = _written(along, image, others, pixels)
        if len(data) < pixels.nbytes // 2:
            return data, shown, image
    exact = np.nan_to_num(pixels)
    packed = bytes([_PIXELS]) + pack(np.ascontiguousarray(exact, "<f4").reshape(-1).data, 3, checksum=False)
    return (packed, exact, None) if data is None or len(packed) < len(data) else (data, shown, image)


def _moves(along: _Scale, pixels: Float, base: Float, allowed: Float64) -> tuple[Int, Float]:
    """Return by how many steps (n,) pixels are to be moved, and what they then are."""
    wanted, places = pixels.astype(np.float64), along.place(base.astype(np.float64))
    whole = np.rint((along.place(wanted) - places) / along.step)
    found, image = pixels.copy(), np.full(whole.size, moves.TOLD, np.int32)
    # Of those that are enough the smallest, so that it is tried last.
    for further in (1, 0, -1):
        tried = whole + further * np.where(whole < 0, -1, 1)
        near = along.moved(places, tried)
        enough = (np.abs(near - wanted) <= allowed) & (np.abs(tried) < _FARTHEST) & (tried != 0)
        image[enough], found[enough] = tried[enough], near[enough]
    return image, found


def _written(along: _Scale, image: Int, others: Sequence[Int], pixels: Float) -> bytes:
    """Return the residual that says by how many steps pixels (Y, X) are moved."""
    weights, encoder = moves.fitted(image, others), Encoder()
    moves.push(encoder, image, others, weights)
    follow = np.ascontiguousarray(pixels[image == moves.TOLD], "<f4").view(np.uint8).astype(np.int32)
    encoder.push(follow, np.zeros(follow.size, np.int32), _BYTES)
    return along.head + np.array(weights, np.int8).tobytes() + encoder.finish()


def corrected(base: Float, wanted: Sequence[str], names: Sequence[str], parts: Sequence[bytes]) -> Float:
    """Apply the residuals of a frame to some of its channels.

    Parameters
    ----------
    base
        (k, Y, X) float32 as decoded by the model, finite means.
    wanted
        Names of the k channels.
    names, parts
        All n channels of the frame, in canonical order, and their residuals from `correct`, which may come
        from strangers.

    Returns
    -------
    (k, Y, X) float32.

    Raises
    ------
    DamagedError
        If they are no residuals of a frame of this size.
    """
    residuals = {name: _Residual(data) for name, data in zip(names, parts, strict=True) if data}
    moved = [name for name, residual in residuals.items() if residual.along is not None]
    found: dict[str, Int] = {}

    def read(name: str) -> Int:
        if name not in found:
            others = [read(other) for other in _like(name, moved)]
            found[name] = residuals[name].read((base.shape[1], base.shape[2]), others)
        return found[name]

    out = base.copy()
    for n, name in enumerate(wanted):
        if name in residuals:
            out[n] = residuals[name].applied(base[n], read(name) if name in moved else None)
    return out


class _Residual:
    """The residual of a channel, as it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.along = None if data[0] == _PIXELS else _read_scale(data)
        self._follow = np.zeros(0, np.int32)

    def read(self, shape: tuple[int, int], others: Sequence[Int]) -> Int:
        """Return the moves (Y, X)."""
        assert self.along is not None
        begin = len(self.along.head)
        end = begin + moves.weights_with(len(others))
        if len(self._data) < end:
            raise DamagedError("residual: ends where it begins")
        weights = np.frombuffer(self._data[begin:end], np.int8).tolist()
        decoder = Decoder(self._data[end:])
        image = moves.pop(decoder, shape, others, weights)
        self._follow = decoder.pop(np.zeros(4 * np.count_nonzero(image == moves.TOLD), np.int32), _BYTES)
        decoder.finish()
        return image

    def applied(self, base: Float, image: Int | None) -> Float:
        """Return an image (Y, X) that the model decoded with its pixels moved, or what the residual holds.

        Raises
        ------
        DamagedError
            If the residual is not one of such an image.
        """
        if image is None or self.along is None:
            try:
                pixels = np.frombuffer(unpack(self._data[1:], base.nbytes), "<f4").astype(np.float32)
            except DamagedError as error:
                raise DamagedError(f"residual: its pixels {error}") from error
            return _finite(pixels).reshape(base.shape)
        out, wrong, told = self.along.still(base), image != 0, image == moves.TOLD
        places = self.along.place(base[wrong].astype(np.float64))
        out[wrong] = self.along.moved(places, image[wrong])
        if self._follow.size:
            if not 0 <= int(self._follow.min()) <= int(self._follow.max()) <= 255:
                raise DamagedError("residual: what follows is no byte")
            out[told] = _finite(self._follow.astype(np.uint8).view("<f4"))
        return out


def _finite(pixels: Float) -> Float:
    if not np.isfinite(pixels).all():
        raise DamagedError("residual: holds pixels that are not finite")
    return pixels
