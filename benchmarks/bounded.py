"""Measure bounded errors beside codecs that bound them too: run as ``python -m benchmarks.bounded --real …``.

No pixel of any codec may be farther from the original than its bound lets it, which `sunzip.bounds.Bound`
counts. Peers know one absolute error for all pixels; so they are given images on a scale on which the bound
is about the same everywhere, and the largest error at which all pixels, brought back, are within the bound.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from benchmarks import common
from benchmarks.rate_distortion.cases import Case, alike, cases
from benchmarks.rate_distortion.peers import library
from sunzip import weights
from sunzip.api import _sample
from sunzip.bounds import Bound, Bounds, Measure, bounds_of
from sunzip.codec import Codec, lanes
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.normalize import NOISE, Stabiliser
from sunzip.residual import correct
from sunzip.studies.timing import fastest

Float = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int32]

CASES = ("real-2024", "real-193", "real-bz", "synthetic", "series-171")
WISHES = ("1sigma", "2sigma", "5sigma", "20sigma", "5%", "20%", "10DN/s", "5G", "20G")

#: Frames of a film: those of a block of an archive.
BLOCK = 24

#: The case and the bound that all are timed at, and how often; the fastest round counts.
_TIMED, _ROUNDS = ("real-2024", "2sigma"), 3

#: An error is asked for so much below what all pixels have room for, as float32 rounds; and where that is not
#: enough, smaller by this factor again and again.
_SPARE, _SHORTER = 1e-5, 1.002
#: Knees that are tried, as shares of that of the noise.
_KNEES = tuple(1 - 0.1 * n for n in range(10))
_KNEE = struct.Struct("<f")
_GRID = struct.Struct("<fi")


@dataclass(frozen=True)
class Way:
    """A scale for images (T, Y, X) of a channel on which a bound is about the same everywhere.

    Attributes
    ----------
    forward, back
        From DN/s or G onto it and back, float32.
    most
        The error that no pixel is too near its bound for.
    aside
        Bytes that its decoder needs besides the codec's.
    """

    forward: Callable[[Float], Float]
    back: Callable[[Float], Float]
    most: float
    aside: int


def ways_for(images: Float, name: str, bound: Bound) -> list[Way]:
    """Return the scales to try for images (T, Y, X) of a channel."""
    if bound.measure is Measure.UNIT:
        return [Way(np.copy, np.copy, bound.size * (1 - _SPARE), 0)]
    if bound.measure is Measure.PERCENT:
        return [_logarithm(images, bound)]
    # The square root of noise; and, as a step of it that starts from the faintest pixel is shorter than from
    # others, one with less of a knee, where it is longer: that with the lowest rate of fine steps, which is
    # the entropy less the logarithm of the step.
    ways = [_root(images, name, bound, share) for share in _KNEES]
    rates = [
        float(np.log2(_slope(images, name, share)).mean()) - math.log2(way.most)
        for share, way in zip(_KNEES, ways, strict=True)
    ]
    return [ways[n] for n in sorted({0, int(np.argmin(rates))})]


def _slope(images: Float, name: str, share: float) -> Float64:
    return 1 / np.sqrt(np.abs(images, dtype=np.float64) + share * NOISE[name][1])


def _root(images: Float, name: str, bound: Bound, share: float) -> Way:
    """Return the square root with a share of the noise's knee."""
    a, b = NOISE[name]
    (knee,) = _KNEE.unpack(_KNEE.pack(share * b))
    gain, zero = 2 / math.sqrt(a), math.sqrt(knee)

    def place(x: Float64) -> Float64:
        return np.copysign(gain * (np.sqrt(np.abs(x) + knee) - zero), x)

    def back(y: Float) -> Float:
        root = np.abs(y, dtype=np.float64) / gain + zero
        return np.copysign(root * root - knee, y).astype(np.float32)

    pixels = images.astype(np.float64)
    room = bound.tolerance(images, name, Scale.MEAN)
    here = place(pixels)
    most = min(float((place(pixels + room) - here).min()), float((here - place(pixels - room)).min()))
    return Way(
        lambda x: place(x.astype(np.float64)).astype(np.float32), back, most * (1 - _SPARE), _KNEE.size
    )


def _logarithm(images: Float, bound: Bound) -> Way:
    """Return the octaves of a pixel's size; signs and zeros are told beside them."""
    zero, minus = images == 0, images < 0
    # What is 0 has no octave: it is given that of the nearest pixel that has one.
    nearest = [
        distance_transform_edt(none, return_distances=False, return_indices=True) if not none.all() else None
        for none in zero
    ]

    def forward(x: Float) -> Float:
        size = np.where(zero, 1, np.abs(x)).astype(np.float64)
        octaves = np.log2(size)
        filled = [o if at is None else o[tuple(at)] for o, at in zip(octaves, nearest, strict=True)]
        return np.stack(filled).astype(np.float32)

    def back(y: Float) -> Float:
        size = np.where(zero, 0, np.exp2(y, dtype=np.float64))
        return np.where(minus, -size, size).astype(np.float32)

    most = math.log2(1 + bound.size / 100) * (1 - _SPARE)
    return Way(forward, back, most, sum(len(_flags(m)) for part in (zero, minus) for m in part))


def _flags(mask: npt.NDArray[np.bool_]) -> bytes:
    """Return a (Y, X) mask in few bytes: one where nothing is marked."""
    if not mask.any():
        return b"\0"
    codecs = library("imagecodecs")
    packed = bytes(codecs.zstd_encode(np.packbits(mask).tobytes(), 19))
    return b"\1" + min(packed, _jpegxl(mask.astype(np.uint8)), key=len)


class Peer:
    """A codec that keeps to an absolute error.

    Attributes
    ----------
    key, name
        For results and for tables.
    finer
        By what factor errors are made larger for as long as all pixels stay within the bound.
    films
        In what forms it can code a film besides frame by frame.
    """

    key: str
    name: str
    finer: float = 1.02
    films: tuple[str, ...] = ()

    def pack(self, values: Float, error: float, form: str) -> list[bytes]:
        """Code (T, Y, X) values, each frame by itself or all in a form."""
        raise NotImplementedError

    def unpack(self, pieces: Sequence[bytes], shape: tuple[int, ...], form: str) -> Float:
        """Decode them."""
        raise NotImplementedError

    def tried(self, values: Float, error: float, form: str) -> tuple[int | None, Float]:
        """Return how many bytes values would take, where that is known, and what would become of them."""
        pieces = self.pack(values, error, form)
        return sum(map(len, pieces)), self.unpack(pieces, values.shape, form)


@dataclass(frozen=True)
class Floats(Peer):
    """One of float32 arrays of two or three axes; functions of an array and its error, and of its shape."""

    key: str
    name: str
    encode: Callable[[Float, float], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Float]
    finer: float = 1.02
    films: tuple[str, ...] = ("volume",)

    def pack(self, values: Float, error: float, form: str) -> list[bytes]:
        """See `Peer`."""
        arrays = [values] if form == "volume" else list(values)
        return [bytes(self.encode(np.ascontiguousarray(array), error)) for array in arrays]

    def unpack(self, pieces: Sequence[bytes], shape: tuple[int, ...], form: str) -> Float:
        """See `Peer`."""
        each = shape if form == "volume" else shape[1:]
        return np.concatenate([np.asarray(self.decode(p, each)).reshape(-1, *shape[1:]) for p in pieces])


@dataclass(frozen=True)
class Integers(Peer):
    """A lossless codec of (Y, X) integers from 0 up, given whole steps of twice the error."""

    key: str
    name: str
    encode: Callable[[Int], bytes]
    decode: Callable[[bytes, tuple[int, ...]], npt.NDArray[Any]]
    finer: float = 1.005
    # One tall image, in which a codec learns from all frames; and one of what is new in each.
    films: tuple[str, ...] = ("tall", "differences")

    def pack(self, values: Float, error: float, form: str) -> list[bytes]:
        """See `Peer`."""
        parts = list(values[:, None]) if form == "frames" else [values]
        return [self._packed(part, error, form) for part in parts]

    def _packed(self, values: Float, error: float, form: str) -> bytes:
        step, whole = _steps(values, error)
        if form == "differences":
            whole = np.diff(whole, axis=0, prepend=np.int32(0))
        least = int(whole.min())
        tall = np.ascontiguousarray((whole - least).reshape(-1, values.shape[-1]))
        return _GRID.pack(step, least) + bytes(self.encode(tall))

    def unpack(self, pieces: Sequence[bytes], shape: tuple[int, ...], form: str) -> Float:
        """See `Peer`."""
        return np.concatenate([self._unpacked(piece, shape, form) for piece in pieces])

    def _unpacked(self, piece: bytes, shape: tuple[int, ...], form: str) -> Float:
        step, least = _GRID.unpack_from(piece)
        rows = shape[1] if form == "frames" else shape[0] * shape[1]
        whole = self.decode(piece[_GRID.size :], (rows, shape[2])).astype(np.int64) + least
        whole = whole.reshape(-1, *shape[1:])
        return _shown(step, whole.cumsum(0) if form == "differences" else whole)

    def tried(self, values: Float, error: float, form: str) -> tuple[int | None, Float]:
        """See `Peer`: what becomes of them is known before they are coded."""
        parts = list(values[:, None]) if form == "frames" else [values]
        return None, np.concatenate([_shown(*_steps(part, error)) for part in parts])


def _steps(values: Float, error: float) -> tuple[float, Int]:
    """Return the step as it is stored, and values in steps; from 0, about which noise then needs no step."""
    step, _ = _GRID.unpack(_GRID.pack(2 * error, 0))
    return step, np.rint(values.astype(np.float64) / step).astype(np.int32)


def _shown(step: float, whole: npt.NDArray[Any]) -> Float:
    return (whole.astype(np.float64) * step).astype(np.float32)


def _jpegxl(whole: npt.NDArray[Any]) -> bytes:
    return bytes(
        library("imagecodecs").jpegxl_encode(whole, lossless=True, effort=9, numthreads=1, usecontainer=False)
    )


def _zstd(whole: Int) -> bytes:
    """Code what a plane through three neighbours does not tell, the high bytes first."""
    rest = np.diff(np.diff(whole, axis=0, prepend=0), axis=1, prepend=0)
    flat = (rest << 1 ^ rest >> 31).astype("<u4").reshape(-1)
    planes = flat.view(np.uint8).reshape(-1, 4).T[::-1]
    return bytes(library("imagecodecs").zstd_encode(planes.tobytes(), 19))


def _unzstd(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    planes = np.frombuffer(library("imagecodecs").zstd_decode(data), np.uint8).reshape(4, -1)
    flat = np.ascontiguousarray(planes[::-1].T).view("<u4").reshape(shape).astype(np.int64)
    rest = flat >> 1 ^ -(flat & 1)
    return rest.cumsum(0).cumsum(1)


def peers() -> list[Peer]:
    """Return all."""
    codecs = library("imagecodecs")

    def sperr(x: Float, error: float) -> bytes:
        # Of images, shape and type are known to whoever keeps them; SPERR tells them of volumes in any case.
        return bytes(codecs.sperr_encode(x, error, "pwe", header=x.ndim > 2, numthreads=1))

    def unsperr(data: bytes, shape: tuple[int, ...]) -> Any:
        if len(shape) > 2:
            return codecs.sperr_decode(data, numthreads=1)
        return codecs.sperr_decode(data, header=False, shape=shape, dtype=np.float32, numthreads=1)

    def zfp(x: Float, error: float) -> bytes:
        mode = codecs.ZFP.MODE.FIXED_ACCURACY
        return bytes(codecs.zfp_encode(x, level=error, mode=mode, header=False))

    def unzfp(data: bytes, shape: tuple[int, ...]) -> Any:
        return codecs.zfp_decode(data, shape=shape, dtype=np.float32)

    return [
        Floats(
            "sz3",
            "SZ3",
            lambda x, error: codecs.sz3_encode(x, abs=error),
            lambda data, shape: codecs.sz3_decode(data, shape, np.float32),
        ),
        Floats("sperr", "SPERR", sperr, unsperr),
        # It rounds errors down to powers of two.
        Floats("zfp", "ZFP", zfp, unzfp, 2.0),
        Integers("jpegxl", "steps + JPEG XL", lambda x: _jpegxl(x.astype(np.uint16)), _unjpegxl),
        Integers("jpegls", "steps + JPEG-LS", lambda x: codecs.jpegls_encode(x.astype(np.uint16)), _unjpegls),
        Integers("rice", "steps + Rice", lambda x: codecs.rcomp_encode(x), _unrice),
        Integers("zstd", "steps + zstd", _zstd, _unzstd),
    ]


def _unjpegxl(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.asarray(library("imagecodecs").jpegxl_decode(data, numthreads=1))


def _unjpegls(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.asarray(library("imagecodecs").jpegls_decode(data))


def _unrice(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.asarray(library("imagecodecs").rcomp_decode(data, shape=shape, dtype=np.int32))


class Given:
    """Images (T, Y, X) of a channel on a scale, to be coded with one error."""

    def __init__(self, images: Float, name: str, bound: Bound, way: Way) -> None:
        self.images, self.way = images, way
        self.values = way.forward(images)
        self._name, self._bound = name, bound

    def held(self, values: Float) -> bool:
        """Tell whether values are within the bound for all pixels."""
        return not self._bound.outside(self.images, self.way.back(values), self._name, Scale.MEAN)


class Coded(NamedTuple):
    """What a peer made of images.

    Attributes
    ----------
    given
        The images.
    nbytes
        Of all that decoding needs.
    shown
        What they decode to, in DN/s or G.
    error, form
        How they were coded.
    """

    given: Given
    nbytes: int
    shown: Float
    error: float
    form: str


def given(images: Float, name: str, bound: Bound) -> list[Given]:
    """Return images (T, Y, X) of a channel on each scale that is to be tried."""
    images = np.ascontiguousarray(images)
    return [Given(images, name, bound, way) for way in ways_for(images, name, bound)]


def fewest(peer: Peer, scales: Sequence[Given], form: str) -> Coded:
    """Code images on the scale on which they take fewest bytes."""
    return min((coded(peer, one, form) for one in scales), key=lambda found: found.nbytes)


def coded(peer: Peer, given: Given, form: str) -> Coded:
    """Code images with the largest error at which all pixels are within the bound."""

    def tried(error: float) -> tuple[int | None, float] | None:
        nbytes, values = peer.tried(given.values, error, form)
        return (nbytes, error) if given.held(values) else None

    error = given.way.most
    while (best := tried(error)) is None:
        error /= _SHORTER
    # Where nothing at all is within the bound, any larger error is.
    largest = float(np.abs(given.values).max())
    while error < largest and (found := tried(error * peer.finer)) is not None:
        error *= peer.finer
        # Not every larger error is fewer bytes.
        if found[0] is None or best[0] is None or found[0] < best[0]:
            best = found
    pieces = peer.pack(given.values, best[1], form)
    shown = given.way.back(peer.unpack(pieces, given.values.shape, form))
    return Coded(given, sum(map(len, pieces)) + given.way.aside, shown, best[1], form)


class Channel:
    """A channel of a case as peers are given it: one by one, and a film as a whole, too."""

    def __init__(self, case: Case, name: str, bound: Bound) -> None:
        images = case.data[:, case.channels.index(name)]
        self._single = [given(image[None], name, bound) for image in images]
        self._whole = given(images, name, bound) if case.series else None

    def by(self, peer: Peer) -> list[Coded]:
        """Return the images in the form in which a peer codes them in fewest bytes."""
        forms = [[fewest(peer, one, "frames") for one in self._single]]
        if self._whole is not None:
            forms += [[fewest(peer, self._whole, form)] for form in peer.films]
        return min(forms, key=lambda found: sum(one.nbytes for one in found))


class Ours:
    """Sunzip on the frames of a case: what each quality takes and what it shows, without bounds."""

    def __init__(self, codec: Codec, case: Case) -> None:
        self.codec, self.case = codec, case
        self.together = min(BLOCK, len(case.data)) if case.series else 1
        self._plain: dict[int, tuple[int, Float]] = {}

    def plain(self, quality: int) -> tuple[int, Float]:
        """Return the bytes of all frames, and what they decode to."""
        if quality not in self._plain:
            blocks, shown = self.codec.at(quality).encode_measured(
                self.case.data,
                self.case.channels,
                frames_per_block=self.together,
                measure=lambda _, seen: seen,
            )
            self._plain[quality] = sum(map(len, blocks)), np.stack(shown)
        return self._plain[quality]

    def cheapest(self, bounds: Bounds) -> int:
        """Return the quality with the fewest bytes, residuals included."""
        sizes: dict[int, int] = {}

        def size(quality: int) -> int:
            if quality not in sizes:
                nbytes, shown = self.plain(quality)
                # Frames build on what the model shows, not on residuals: these add up.
                sizes[quality] = nbytes + sum(
                    len(part)
                    for frame, decoded in zip(self.case.data, shown, strict=True)
                    for part in correct(frame, decoded, self.case.channels, bounds, Scale.MEAN)[0]
                )
            return sizes[quality]

        return _sample.fewest(size)

    def without(self, bounds: Bounds) -> int | None:
        """Return the lowest quality at which all pixels are within the bounds by themselves, if any is."""
        low, high = 0, 100 // _sample.NEARER[-1]
        if _outside(self.case, self.plain(100)[1], bounds):
            return None
        while low < high:
            middle = (low + high) // 2
            if _outside(self.case, self.plain(_sample.NEARER[-1] * middle)[1], bounds):
                low = middle + 1
            else:
                high = middle
        return _sample.NEARER[-1] * low

    def bounded(self, quality: int, bounds: Bounds) -> tuple[int, Float]:
        """Return the bytes of all frames with residuals, and what they decode to."""
        names = self.case.channels
        codec = self.codec.within(bounds, quality)
        blocks = codec.encode(self.case.data, names, frames_per_block=self.together)
        return sum(map(len, blocks)), codec.decode(blocks, names, self.case.data.shape[2:])


def _outside(case: Case, shown: Float, bounds: Bounds) -> int:
    return sum(
        bounds[name].outside(case.data[:, c], shown[:, c], name, Scale.MEAN)
        for c, name in enumerate(case.channels)
    )


def _told(nbytes: int, case: Case, shown: Float, bounds: Bounds) -> dict[str, Any]:
    """Return what is kept of a codec: its rate, its error in units of noise, and pixels outside."""
    units = Stabiliser.for_channels(case.channels)
    apart = np.subtract(units.forward(shown), units.forward(case.data), dtype=np.float64)
    return {
        "bits": float(f"{8 * nbytes / case.data.size:.5g}"),
        "rmse_sigma": float(f"{np.sqrt(np.square(apart).mean()):.4g}"),
        "outside": _outside(case, shown, bounds),
    }


def _of(case: Case, names: Sequence[str]) -> Case:
    """Return a case of some of its channels."""
    places = [case.channels.index(name) for name in names]
    return replace(case, channels=tuple(names), data=np.ascontiguousarray(case.data[:, places]))


def _swapped(coded: tuple[int, Float], case: Case) -> tuple[int, Case, Float]:
    return coded[0], case, coded[1]


def measure(
    codec: Codec, case: Case, wishes: Sequence[str], known: Mapping[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each bound, of those channels of a case for which it holds.

    Of bounds with a row that is known only what sunzip takes is measured.
    """
    ours: dict[tuple[str, ...], Ours] = {}
    for wish in wishes:
        try:
            bounds = bounds_of(wish, case.channels)
        except InputError:  # it holds for none of them
            continue
        part = _of(case, list(bounds))
        one = ours.setdefault(part.channels, Ours(codec, part))
        timed = (case.key, wish) == _TIMED
        # What is timed is timed beside the others.
        row = _row(one, bounds, timed, None if timed else known.get(wish))
        yield {"case": case.key, "bound": wish, "of": list(part.channels), **row}


def _row(ours: Ours, bounds: Bounds, timed: bool, known: dict[str, Any] | None) -> dict[str, Any]:
    case = ours.case
    quality = ours.cheapest(bounds)
    nbytes, shown = ours.bounded(quality, bounds)
    found = {
        "quality": quality,
        **_told(nbytes, case, shown, bounds),
        "residual": round(1 - ours.plain(quality)[0] / nbytes, 4),
        "channels": {},
    }
    for name in case.channels:
        # Without the others, at the quality of all.
        alone = _of(case, [name])
        found["channels"][name] = _told(
            *_swapped(Ours(ours.codec, alone).bounded(quality, bounds), alone), bounds
        )
    if timed:
        codec = ours.codec.within(bounds, quality)
        blocks = codec.encode(case.data, case.channels)
        found |= _speeds(
            case,
            lambda: codec.encode(case.data, case.channels),
            lambda: codec.decode(blocks, case.channels, case.data.shape[2:]),
        )
    if known is not None:
        theirs, plain = known["peers"], known["without"]
    else:
        without = ours.without(bounds)
        plain = None
        if without is not None:
            plain = {"quality": without, **_told(*_swapped(ours.plain(without), case), bounds)}
        channels = [Channel(case, name, bounds[name]) for name in case.channels]
        theirs = {peer.key: _theirs(peer, case, channels, bounds, timed) for peer in peers()}
    best = min(theirs, key=lambda key: float(theirs[key]["bits"]))
    return {
        "sunzip": found,
        "without": plain,
        "peers": theirs,
        "best": best,
        "ratio": round(found["bits"] / theirs[best]["bits"], 4),
    }


def _theirs(
    peer: Peer, case: Case, channels: Sequence[Channel], bounds: Bounds, timed: bool
) -> dict[str, Any]:
    """Return what is kept of a peer."""
    made = [channel.by(peer) for channel in channels]
    shown = np.stack([np.concatenate([one.shown for one in found]) for found in made], 1)
    sizes = [sum(one.nbytes for one in found) for found in made]
    found = {**_told(sum(sizes), case, shown, bounds), "channels": {}}
    for c, name in enumerate(case.channels):
        told = _told(sizes[c], _of(case, [name]), shown[:, c : c + 1], bounds)
        found["channels"][name] = {"form": made[c][0].form, **told}
    if timed:
        images = [one for found in made for one in found]
        pieces = [peer.pack(one.given.values, one.error, one.form) for one in images]

        def encode() -> None:
            for one in images:
                peer.pack(one.given.way.forward(one.given.images), one.error, one.form)

        def decode() -> None:
            for one, piece in zip(images, pieces, strict=True):
                one.given.way.back(peer.unpack(piece, one.given.images.shape, one.form))

        found |= _speeds(case, encode, decode)
    return found


def _speeds(case: Case, encode: Callable[[], Any], decode: Callable[[], Any]) -> dict[str, float]:
    return {
        f"{what}_mb_s": float(f"{case.data.nbytes / 1e6 / fastest(work, 0, _ROUNDS, warm=True):.3g}")
        for what, work in (("encode", encode), ("decode", decode))
    }


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True, help="Real data.")
@click.option("--sunzip", "ours", is_flag=True, help="Measure sunzip anew, beside peers as they are known.")
def main(real: Path, ours: bool) -> None:
    """Measure what was not measured before; results are written after each bound."""
    model = weights.load()
    codec = Codec(model)
    with tempfile.TemporaryDirectory() as folder:
        found = [_begun(case) for case in cases(real, Path(folder), quick=False, only=CASES)]
    content = {
        "command": common.command("bounded"),
        "model": {"name": model.name, "sha256": model.sha256},
        "block": BLOCK,
        "timed": list(_TIMED),
        "names": {peer.key: peer.name for peer in peers()},
        "cases": {case.key: case.as_dict() for case in found},
    }
    rows = _before(content)

    def kept() -> Path:
        order = sorted(rows, key=lambda row: (CASES.index(row[0]), WISHES.index(row[1])))
        return common.keep("bounded", {**content, "rows": [rows[key] for key in order]})

    # On one thread, as peers are.
    with lanes.here():
        for case in found:
            known = {wish: rows[case.key, wish] for wish in WISHES if (case.key, wish) in rows}
            for row in measure(codec, case, [wish for wish in WISHES if ours or wish not in known], known):
                rows[case.key, row["bound"]] = row
                kept()
                click.echo(f"{case.key} {row['bound']}: {row['sunzip']['bits']} {row['best']} {row['ratio']}")
    click.echo(kept())


def _before(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return by case and bound what was measured before on the same frames, with the same model and peers."""
    file = common.RESULTS / "bounded.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    if any(old.get(key) != content[key] for key in ("model", "block", "timed", "names")):
        return {}
    same = [key for key, case in content["cases"].items() if alike(case, old["cases"].get(key, {}))]
    return {(row["case"], row["bound"]): row for row in old["rows"] if row["case"] in same}


def _begun(case: Case) -> Case:
    """Return a case, of a film its first block."""
    if not case.series:
        return case
    first, cadence = np.datetime64(case.times[0]), np.timedelta64(1, "h")
    last = str(first + (BLOCK - 1) * cadence)
    return replace(case, data=case.data[:BLOCK], times=(case.times[0], last))


if __name__ == "__main__":
    main()
