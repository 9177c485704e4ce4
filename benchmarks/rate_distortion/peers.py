"""What a user could pick instead: codecs of images, arrays and films, each in its fairest form.

Lossy codecs spend bits where their own error measure asks for them, which is alike everywhere; the noise of a
solar image is not. So every lossy peer is given the image after the variance-stabilising square root, in
units of noise, where equal error is equal loss. Codecs of integers get it spread over their whole range, with
the two numbers that undo this counted among the bytes.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sunzip.errors import needing

Float = npt.NDArray[np.float32]
Whole = npt.NDArray[np.uint16]

_RANGE = struct.Struct("<ff")

#: Errors to ask for, over the standard deviation of the images: from next to nothing kept to next to nothing
#: lost. A sweep stops where the rate passes a bit per sample.
_SHARES = tuple(0.8 * 0.74**k for k in range(18))
#: Those before them, where noise has all its low rates.
_NOISY = (0.99, 0.97, 0.94, 0.88)

#: Settings that differ by less than this factor have none between them.
_FINEST = 1.02

#: Bits per sample to ask for where a codec can be asked for a rate.
_RATES = tuple(0.0003 * 1.7**k for k in range(17))


def library(name: str) -> Any:
    """Import a library that only benchmarks need.

    Raises
    ------
    InputError
        If it is not installed; the message names the extra.
    """
    with needing("bench", "comparing codecs needs"):
        return importlib.import_module(name)


class Peer(ABC):
    """One codec at several settings, from few bytes to many.

    Attributes
    ----------
    key, name
        For the command line and for tables.
    needs
        The library that has it.
    film
        Whether it codes a channel's frames as one film rather than image by image.
    physical
        Whether it is given DN/s and G rather than units of noise.
    """

    key: str
    name: str
    needs: str
    film: bool = False
    physical: ClassVar[bool] = False

    @abstractmethod
    def levels(self, images: Float) -> Sequence[Any]:
        """Return its settings for images (T, Y, X), the coarsest first."""

    def between(self, low: Any, high: Any) -> Any:
        """Return the setting halfway between two, or None if there is none."""
        return None

    @abstractmethod
    def encode(self, images: Float, level: Any, threads: int = 1) -> list[bytes]:
        """Code (T, Y, X) float32 images: one piece each, or one for all."""

    @abstractmethod
    def decode(self, pieces: Sequence[bytes], shape: tuple[int, ...], threads: int = 1) -> Float:
        """Decode what `encode` made of images of a shape."""


def shares(images: Float) -> list[float]:
    """Return errors to ask for in the images' own unit."""
    return _of_spread(images, _SHARES)


def more_shares(images: Float) -> list[float]:
    """Return them for a codec that keeps to the error that it is asked for."""
    return _of_spread(images, (*_NOISY, *_SHARES))


def _of_spread(images: Float, parts: Sequence[float]) -> list[float]:
    spread = max(float(images.std()), 1e-6)
    return [spread * part for part in parts]


def rates(images: Float) -> list[float]:
    """Return rates to ask for."""
    return list(_RATES)


@dataclass(frozen=True)
class Stills(Peer):
    """A codec of float32 images, one by one.

    Attributes
    ----------
    pack
        Codes one (Y, X) image at a level.
    unpack
        Decodes it, given its shape.
    settings
        See `Peer.levels`.
    """

    key: str
    name: str
    needs: str
    pack: Callable[[Float, Any], bytes]
    unpack: Callable[[bytes, tuple[int, ...]], Any]
    settings: Callable[[Float], Sequence[Any]]

    def levels(self, images: Float) -> Sequence[Any]:
        """See `Peer`."""
        return self.settings(images)

    def between(self, low: Any, high: Any) -> Any:
        """See `Peer`: errors, rates and distances are halfway where their logarithms are."""
        if isinstance(low, tuple):
            # Of one contrast alone.
            found = self.between(low[1], high[1]) if low[0] == high[0] else None
            return None if found is None else (low[0], found)
        return math.sqrt(low * high) if max(low, high) > _FINEST * min(low, high) else None

    def encode(self, images: Float, level: Any, threads: int = 1) -> list[bytes]:
        """Code the images one by one."""
        return [bytes(self.pack(np.ascontiguousarray(image), level)) for image in images]

    def decode(self, pieces: Sequence[bytes], shape: tuple[int, ...], threads: int = 1) -> Float:
        """Decode them."""
        return np.stack([np.asarray(self.unpack(p, shape[1:]), np.float32) for p in pieces])


def whole(images: Float, bits: int, contrast: float = 1.0) -> tuple[Whole, bytes]:
    """Spread values over unsigned integers of some bits; return them, and the header that undoes it.

    Parameters
    ----------
    images
        float32 of any shape.
    bits
        Of the integers.
    contrast
        The share of the integers' range to use, about its middle: less of it makes a codec coarser than its
        own coarsest setting.
    """
    top = (1 << bits) - 1
    low, high = float(images.min()), float(images.max())
    step = max((high - low) / (contrast * top), 1e-6)
    low -= (1 - contrast) / 2 * top * step
    low, step = _RANGE.unpack(_RANGE.pack(low, step))
    scaled = np.rint((images - np.float32(low)) / np.float32(step))
    return np.clip(scaled, 0, top).astype(np.uint16), _RANGE.pack(low, step)


def unwhole(values: npt.NDArray[Any], header: bytes) -> Float:
    """Undo `whole`."""
    low, step = _RANGE.unpack_from(header)
    return np.asarray(values.astype(np.float32) * np.float32(step) + np.float32(low), np.float32)


def integers(
    pack: Callable[[Whole, Any, float], bytes],
    unpack: Callable[[bytes], Any],
    contrast: Callable[[Any], float] = lambda level: 1.0,
) -> tuple[Callable[[Float, Any], bytes], Callable[[bytes, tuple[int, ...]], Any]]:
    """Make of a codec of 16-bit integers one of float32; `pack` is given integers, level and their step."""

    def packed(image: Float, level: Any) -> bytes:
        values, header = whole(image, 16, contrast(level))
        return header + pack(values, level, _RANGE.unpack(header)[1])

    def unpacked(data: bytes, _: tuple[int, ...]) -> Float:
        return unwhole(np.asarray(unpack(data[_RANGE.size :])), data)

    return packed, unpacked


@dataclass(frozen=True)
class Film(Peer):
    """A film codec, given a channel's frames as one film, or each as a film of its own.

    Attributes
    ----------
    encoder, container, pixels
        PyAV's names of encoder, bare stream and pixel format.
    factors
        (contrast, constant rate factor), the coarsest first.
    options
        The encoder's settings for a rate factor, threads, and whether there is more than a frame.
    film
        Whether frames make one film.
    """

    key: str
    name: str
    encoder: str
    container: str
    pixels: str
    factors: Sequence[tuple[float, float]]
    options: Callable[[float, int, bool], dict[str, str]]
    film: bool
    needs: str = "av"
    bits: int = 10

    def levels(self, images: Float) -> Sequence[Any]:
        """See `Peer`."""
        return self.factors

    def between(self, low: tuple[float, float], high: tuple[float, float]) -> tuple[float, float] | None:
        """See `Peer`: rate factors are whole numbers, and of one contrast."""
        factor = (low[1] + high[1]) // 2
        return (low[0], factor) if low[0] == high[0] and factor not in (low[1], high[1]) else None

    def encode(self, images: Float, level: Any, threads: int = 1) -> list[bytes]:
        """Code the frames."""
        films = [images] if self.film else [image[None] for image in images]
        return [self._encode(film, level, threads) for film in films]

    def _encode(self, images: Float, level: tuple[float, float], threads: int) -> bytes:
        av = library("av")
        # SVT-AV1 tells of its settings otherwise.
        os.environ.setdefault("SVT_LOG", "1")
        contrast, factor = level
        values, header = whole(images, self.bits, contrast)
        target = io.BytesIO()
        options = self.options(factor, threads, len(images) > 1)
        with av.open(target, "w", format=self.container) as film:
            stream = film.add_stream(self.encoder, rate=25, options=options)
            stream.height, stream.width = values.shape[1:]
            stream.pix_fmt = self.pixels
            for image in values:
                for packet in stream.encode(self._frame(image)):
                    film.mux(packet)
            for packet in stream.encode():
                film.mux(packet)
        return header + target.getvalue()

    def _frame(self, image: Whole) -> Any:
        av = library("av")
        height, width = image.shape
        frame = av.VideoFrame(width, height, self.pixels)
        planes = [image]
        if not self.pixels.startswith("gray"):
            # Encoders without a grey format get colour planes that say nothing.
            planes += [np.full((height // 2, width // 2), 1 << (self.bits - 1), np.uint16)] * 2
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : values.shape[1]] = values
            plane.update(rows.tobytes())
        return frame

    def decode(self, pieces: Sequence[bytes], shape: tuple[int, ...], threads: int = 1) -> Float:
        """Decode them."""
        return np.concatenate([self._decode(piece, shape, threads) for piece in pieces])

    def _decode(self, piece: bytes, shape: tuple[int, ...], threads: int) -> Float:
        av = library("av")
        found = []
        with av.open(io.BytesIO(piece[_RANGE.size :]), format=self.container) as film:
            film.streams.video[0].thread_count = threads
            for frame in film.decode(video=0):
                plane = frame.planes[0]
                rows = np.frombuffer(plane, np.uint16).reshape(plane.height, plane.line_size // 2)
                found.append(unwhole(rows[: shape[1], : shape[2]], piece))
        return np.stack(found)


class Blosc(Peer):
    """Lossless, as the chunks of SDOML v2 are: the source itself, for scale."""

    key, name, needs = "blosc", "Blosc-zstd (SDOML v2)", "numcodecs"
    physical = True

    def levels(self, images: Float) -> Sequence[Any]:
        """Return its only setting."""
        return [None]

    def encode(self, images: Float, level: Any, threads: int = 1) -> list[bytes]:
        """Code chunks of 15 frames, as the store does."""
        codec = self._codec(threads)
        return [bytes(codec.encode(images[begin : begin + 15])) for begin in range(0, len(images), 15)]

    def decode(self, pieces: Sequence[bytes], shape: tuple[int, ...], threads: int = 1) -> Float:
        """Decode them."""
        codec = self._codec(threads)
        flat = np.concatenate([np.frombuffer(codec.decode(p), np.float32) for p in pieces])
        return flat.reshape(shape)

    @staticmethod
    def _codec(threads: int) -> Any:
        blosc = library("numcodecs.blosc")
        blosc.use_threads = threads > 1
        blosc.set_nthreads(threads)
        return blosc.Blosc("zstd", 5, blosc.BITSHUFFLE)


def _decibels(error: float, peak: float) -> float:
    return 20 * float(np.log10(peak / error))


def _silent(data: bytes) -> bytes:
    """Return a JPEG 2000 codestream without the comments in which encoders name themselves."""
    kept, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\x90":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at : at + 2] != b"\xff\x64":
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _fpack(image: Float, level: float) -> bytes:
    from astropy.io import fits

    held = io.BytesIO()
    # A negative level is a step in the image's own unit. Neither dither nor a tile a row, which are fpack's
    # habit: both cost bytes and win no error.
    fits.CompImageHDU(
        image, compression_type="RICE_1", quantize_level=-level, quantize_method=-1, tile_shape=image.shape
    ).writeto(held)
    return held.getvalue()


def _funpack(data: bytes, _: tuple[int, ...]) -> Any:
    from astropy.io import fits

    with fits.open(io.BytesIO(data)) as found:
        return np.asarray(found[1].data)


def _hevc(factor: float, threads: int, _: bool) -> dict[str, str]:
    # Tuned for the error that is measured here, and without the text that x265 writes of itself.
    return {
        "crf": f"{factor:g}",
        "preset": "slow",
        "tune": "psnr",
        "x265-params": f"log-level=none:info=0:pools={threads}:frame-threads={threads}",
    }


def _av1(factor: float, threads: int, moving: bool) -> dict[str, str]:
    still = "" if moving else ":avif=1"
    return {"crf": f"{factor:g}", "preset": "4", "svtav1-params": f"lp={threads}:tune=1{still}"}


# At full contrast the coarsest settings are finer than the lowest rates need. The finest take a bit per
# sample, where a sweep stops: where a good codec had no setting, a worse one would stand for it.
_HEVC = (
    *((1 / 8, f) for f in (50, 45)),
    *((1.0, f) for f in (51, 48, 45, 42, 39, 36, 33, 30, 27, 23, 19, 15, 11, 7, 3)),
)
_AV1 = (
    (1 / 16, 50),
    *((1 / 8, f) for f in (60, 52)),
    *((1.0, f) for f in (63, 60, 57, 53, 49, 45, 40, 35, 30, 24, 18, 12, 8, 4, 1)),
)
_JXL = (
    *((1 / 8, d) for d in (20, 13, 8, 5)),
    *((1 / 2, d) for d in (20, 13, 8, 5, 3, 2, 1.2, 0.7, 0.4, 0.2, 0.1, 0.05)),
)


def stills() -> list[Stills]:
    """Return the codecs of single images that imagecodecs and astropy have."""

    def codecs() -> Any:
        return library("imagecodecs")

    jpeg2000 = integers(
        lambda x, e, step: _silent(
            codecs().jpeg2k_encode(
                x,
                level=_decibels(e / step, 65535),
                codecformat="j2k",
                reversible=False,
                resolutions=8,
                numthreads=1,
            )
        ),
        lambda data: codecs().jpeg2k_decode(data, numthreads=1),
    )
    htj2k = integers(
        # Its level is the quantisation step of the finest band, over the range.
        lambda x, e, step: _silent(
            codecs().htj2k_encode(x, level=min(1.9, 12 * e / step / 65535), reversible=False, resolutions=8)
        ),
        lambda data: codecs().htj2k_decode(data),
    )
    jpegxl = integers(
        lambda x, level, _: codecs().jpegxl_encode(x, distance=level[1], effort=7, numthreads=1),
        lambda data: codecs().jpegxl_decode(data, numthreads=1),
        lambda level: float(level[0]),
    )
    return [
        Stills("jpeg2000", "JPEG 2000", "imagecodecs", *jpeg2000, more_shares),
        Stills("htj2k", "HTJ2K", "imagecodecs", *htj2k, shares),
        Stills("jpegxl", "JPEG XL", "imagecodecs", *jpegxl, lambda _: _JXL),
        Stills(
            "sperr",
            "SPERR",
            "imagecodecs",
            # Shape and type are known to whoever keeps the image.
            lambda x, bits: codecs().sperr_encode(x, bits, "bpp", header=False, numthreads=1),
            lambda data, shape: codecs().sperr_decode(
                data, header=False, shape=shape, dtype=np.float32, numthreads=1
            ),
            rates,
        ),
        Stills(
            "sz3",
            "SZ3",
            "imagecodecs",
            lambda x, e: codecs().sz3_encode(x, abs=2 * e),
            lambda data, shape: codecs().sz3_decode(data, shape, np.float32),
            shares,
        ),
        Stills(
            "zfp",
            "ZFP",
            "imagecodecs",
            lambda x, e: codecs().zfp_encode(x, level=16 * e, mode=codecs().ZFP.MODE.FIXED_ACCURACY),
            lambda data, _: codecs().zfp_decode(data),
            shares,
        ),
        Stills("fpack", "fpack (Rice)", "astropy", lambda x, e: _fpack(x, 4 * e), _funpack, shares),
    ]


def films(together: bool) -> list[Film]:
    """Return the film codecs, for films or for single images."""
    what = "film" if together else "still"
    return [
        Film(f"hevc-{what}", f"HEVC, {what}", "libx265", "hevc", "gray10le", _HEVC, _hevc, together),
        Film(f"av1-{what}", f"AV1, {what}", "libsvtav1", "obu", "yuv420p10le", _AV1, _av1, together),
    ]


def peers() -> list[Peer]:
    """Return all. They code channels one by one; `benchmarks.rate_distortion.klt` mixes them for two."""
    return [*stills(), *films(together=False), Blosc(), *films(together=True)]
