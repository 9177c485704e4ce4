"""Block: the bytes of a few coded frames that decode alone, with version, model, masks, lengths and checksum.

Specified in docs/reference/format-v1.md, section "Block".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS
from sunzip.cube import MAX_SIDE
from sunzip.errors import DamagedError, InputError, UnsupportedError
from sunzip.gaps import tells_runs
from sunzip.packed import pack, unpack

MAGIC = 0x53
VERSION = 1
MAX_FRAMES = 4096

# magic, version, length of the block, CRC-32 of all bytes but its own, model, quality, T − 1 and 4 flags,
# Y − 1 and X − 1, a flag, and 3 bits that may become some.
_HEADER = struct.Struct("<BBII4sBHI")
_START = struct.Struct("<BBI")
_CRC = slice(6, 10)
_GAPS, _RAW, _ALIKE, _BOUNDED = (1 << bit for bit in range(12, 16))  # of the u16 with T − 1
_RUNS = 1 << 28  # of the u32 with the sides
_LONG = 15 << 16  # payload lengths from here on take a u32

#: A gap map that is that of the last frame before which has one.
_AGAIN = b"\0"


class Entry(NamedTuple):
    """One coded frame: see `Block`."""

    mask: int
    payload: bytes
    gap: bytes
    residual: bytes = b""


#: A frame without any channel.
EMPTY = Entry(0, b"", b"")


def _damaged(what: str) -> NoReturn:
    raise DamagedError(f"block: {what}")


def _put_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _get_varint(data: memoryview) -> tuple[int, int]:
    """Return the number at the start of `data` (up to 5 bytes) and how many bytes it took."""
    value = 0
    for i, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * i)
        if byte <= 0x7F:
            return value, i + 1
    _damaged("a length that it states does not end")


def _told(part: bytes) -> bytes:
    """Return a part of a stream with its length before it."""
    return _put_varint(len(part)) + part


def _taken(data: memoryview, what: str) -> tuple[memoryview, memoryview]:
    """Return the part of a stream that says first how long it is, and what follows it."""
    size, used = _get_varint(data)
    if used + size > len(data):
        _damaged(f"a {what} claims more bytes than its frame has")
    return data[used : used + size], data[used + size :]


def pack_residuals(images: Sequence[bytes]) -> bytes:
    """Join the residuals of a frame's present channels, in canonical order; empty if all are."""
    return b"".join(map(_told, images)) if any(images) else b""


def unpack_residuals(data: bytes, n: int) -> list[bytes]:
    """Invert `pack_residuals` for n channels.

    Raises
    ------
    DamagedError
        If they are not those of n channels.
    """
    if not data:
        return [b""] * n
    images, rest = [], memoryview(data)
    for _ in range(n):
        image, rest = _taken(rest, "channel's residual")
        images.append(bytes(image))
    if rest or not any(images):
        raise DamagedError(f"residuals: not those of {n} channels")
    return images


def _abridged(masks: Sequence[int], gaps: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return frames' gap maps, those that are the last one before again as `_AGAIN`."""
    out, last = [], None
    for mask, gap in zip(masks, gaps, strict=True):
        out.append(_AGAIN if gap and (mask, gap) == last else gap)
        last = (mask, gap) if gap else last
    return tuple(out)


def _unabridged(masks: Sequence[int], gaps: Sequence[bytes]) -> tuple[bytes, ...]:
    """Invert `_abridged`."""
    out, last = [], (0, b"")
    for mask, gap in zip(masks, gaps, strict=True):
        if gap == _AGAIN:
            if last[0] != mask:
                _damaged("a gap map is said to be another's, which is of other channels")
            gap = last[1]
        out.append(gap)
        last = (mask, gap) if gap else last
    return tuple(out)


def _need_runs(gaps: Sequence[bytes]) -> bool:
    """Tell whether gap maps are of a kind that came after the format's first."""
    return any(gap == _AGAIN or tells_runs(gap) for gap in gaps)


#: Pixels of more bytes are never stored raw: the libraries that compress them go up to 2 GiB.
_MAX_RAW = 1 << 30

#: Pixels whose compression tells that of all of them, in bytes.
_ENOUGH = 1 << 17

_LEVEL = 3


def pack_raw(pixels: npt.NDArray[np.float32], most: int) -> bytes | None:
    """Return the payload that holds a frame's pixels as they are, if it is shorter than that of its symbols.

    Parameters
    ----------
    pixels
        (n, Y, X) float32 of the n present channels; NaN where one is missing.
    most
        Bytes of what it replaces, payload and gap map.
    """
    if pixels.nbytes > _MAX_RAW:
        return None
    flat = np.ascontiguousarray(pixels, "<f4").reshape(-1)
    # Nearly always a small part of them is enough to see that they take more.
    some = max(2 * most, _ENOUGH) // 4
    if some < flat.size and len(pack(flat[:some].data, _LEVEL, checksum=False)) > most:
        return None
    packed = pack(flat.data, _LEVEL, checksum=False)
    # Entropy-coded payloads never end in a zero byte.
    return packed + b"\0" if len(packed) < most else None


def is_raw(payload: bytes) -> bool:
    """Whether a payload holds pixels, not symbols."""
    return payload[-1:] == b"\0"


def unpack_raw(payload: bytes, n: int, y: int, x: int) -> npt.NDArray[np.float32]:
    """Invert `pack_raw`: (n, y, x) float32.

    Raises
    ------
    DamagedError
        If the payload does not hold that many pixels, finite or NaN.
    """
    try:
        data = unpack(payload[:-1], 4 * n * y * x, most=_MAX_RAW)
    except DamagedError as error:
        raise DamagedError(f"raw frame: {error}") from error
    pixels = np.frombuffer(data, "<f4").astype(np.float32).reshape(n, y, x)
    if np.isinf(pixels).any():
        raise DamagedError("raw frame: holds infinite pixels")
    return pixels


@dataclass(frozen=True, slots=True)
class Block:
    r"""T coded frames, 1 ≤ T ≤ `MAX_FRAMES`.

    Attributes
    ----------
    model
        The first 4 bytes of the model's SHA-256.
    shape
        (Y, X) of every frame, each from 1 to `MAX_SIDE`.
    quality
        0 to 255: the setting of the quantiser; its meaning belongs to the model.
    masks
        Per frame; bit i is set if channel i of `sunzip.channels.CHANNELS` is present.
    payloads
        Per frame: the entropy-coded stream, or `pack_raw` of its pixels; empty if no channel is present.
    gaps
        Per frame: `sunzip.gaps.pack_gaps` of the present channels, in canonical order; mostly empty.
    residuals
        Per frame: `pack_residuals` of the present channels; empty if no pixel is to be moved. None at all
        stands for empty ones.

    Raises
    ------
    InputError
        If frames are too large or too many for the format.
    ValueError
        If the fields do not fit each other.

    Examples
    --------
    >>> block = Block(b"\x01\x02\x03\x04", (128, 128), 7, (0b1111,), (b"payload",), (b"",))
    >>> data = block.pack()
    >>> len(data) - len(b"payload"), Block.peek_length(data[:6]), Block.unpack(data) == block
    (23, 30, True)
    """

    model: bytes
    shape: tuple[int, int]
    quality: int
    masks: tuple[int, ...]
    payloads: tuple[bytes, ...] = field(repr=False)
    gaps: tuple[bytes, ...] = field(repr=False)
    residuals: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        frames = len(self.masks)
        if not self.residuals:
            object.__setattr__(self, "residuals", (b"",) * frames)
        if not 1 <= frames <= MAX_FRAMES:
            raise InputError(f"a block holds 1 to {MAX_FRAMES} frames, not {frames}")
        if not all(1 <= side <= MAX_SIDE for side in self.shape):
            raise InputError(f"frames of {self.shape} pixels; the format goes up to {MAX_SIDE} a side")
        if not len(self.payloads) == len(self.gaps) == len(self.residuals) == frames:
            raise ValueError(
                f"{frames} masks, {len(self.payloads)} payloads, {len(self.gaps)} gap maps, "
                f"{len(self.residuals)} residuals"
            )
        if _AGAIN in self.gaps:
            raise ValueError("a gap map stands for another")
        if len(self.model) != 4 or not 0 <= self.quality <= 255:
            raise ValueError("model must be 4 bytes and quality from 0 to 255")
        for mask, *parts in self.entries:
            if not 0 <= mask < 1 << len(CHANNELS):
                raise ValueError(f"mask {mask:#x} names channels that do not exist")
            if mask == 0 and any(parts):
                raise ValueError("a frame without channels has no payload, gap map and residual")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What each frame consists of."""
        return tuple(map(Entry, self.masks, self.payloads, self.gaps, self.residuals))

    def with_entries(self, entries: Sequence[Entry]) -> Block:
        """Return a block of the same model, shape and quality that holds these frames.

        Raises
        ------
        InputError, ValueError
            As the constructor; ValueError also if there is no frame.
        """
        masks, payloads, gaps, residuals = zip(*entries, strict=True)
        return replace(self, masks=masks, payloads=payloads, gaps=gaps, residuals=residuals)

    def pack(self) -> bytes:
        """Return the block's bytes.

        Raises
        ------
        InputError
            If they would be 4 GiB or more.
        """
        streams, flags = self.payloads, 0
        gaps = _abridged(self.masks, self.gaps)
        for flag, parts in ((_BOUNDED, self.residuals), (_GAPS, gaps)):
            if any(parts):
                flags |= flag
                streams = tuple(
                    _told(part) + stream if mask else b""
                    for mask, part, stream in zip(self.masks, parts, streams, strict=True)
                )
        table = bytearray()
        alike = len(streams) > 1 and self.masks[0] > 0 and len(set(self.masks)) == 1
        if alike:
            # Frames of a film may be a few bytes each: their table shall not take as many.
            table += struct.pack("<H", self.masks[0]) + b"".join(_put_varint(len(s)) for s in streams[:-1])
        else:
            for mask, stream in zip(self.masks[:-1], streams[:-1], strict=True):
                if len(stream) < _LONG:
                    table += struct.pack("<HH", mask | len(stream) >> 16 << 12, len(stream) & 0xFFFF)
                else:
                    table += struct.pack("<HI", mask | 15 << 12, len(stream))
            table += struct.pack("<H", self.masks[-1])
        length = _HEADER.size + len(table) + sum(map(len, streams))
        if length >= 1 << 32:
            raise InputError(
                f"a block of {length} bytes; the format goes up to 4 GiB: put fewer frames in one"
            )
        header = bytearray(
            _HEADER.pack(
                MAGIC,
                VERSION,
                length,
                0,
                self.model,
                self.quality,
                len(self.masks) - 1
                | flags
                | (_RAW if any(map(is_raw, self.payloads)) else 0)
                | (_ALIKE if alike else 0),
                self.shape[0] - 1 | self.shape[1] - 1 << 14 | (_RUNS if _need_runs(gaps) else 0),
            )
        )
        body = b"".join((bytes(table), *streams))
        header[_CRC] = struct.pack("<I", _crc(header, body))
        return bytes(header) + body

    @staticmethod
    def peek_length(data: bytes | memoryview) -> int:
        """Read from the first 6 bytes of a block how long it is, in bytes.

        Raises
        ------
        DamagedError
            If no block begins there.
        UnsupportedError
            If it is of a newer format version.
        """
        if len(data) < _START.size:
            _damaged(f"{len(data)} bytes are too few to be one")
        magic, version, length = _START.unpack_from(data)
        if magic != MAGIC:
            _damaged(f"begins with byte {magic:#04x} instead of {MAGIC:#04x}")
        if version > VERSION:
            raise UnsupportedError(f"block: format version {version}; this sunzip knows {VERSION}: update it")
        if version == 0 or length < _HEADER.size + 2:
            _damaged(f"version {version} and a length of {length} bytes cannot be")
        return int(length)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Block:
        """Read a block back; `data` is the block and nothing more.

        Raises
        ------
        DamagedError
            If the bytes are truncated, altered or inconsistent; the message says what.
        UnsupportedError
            If they use a newer version or a feature unknown to this one.
        """
        view = memoryview(data)
        length = cls.peek_length(view)
        if len(view) != length:
            _damaged(f"{len(view)} bytes where its header says {length}")
        _, _, _, crc, model, quality, counts, sides = _HEADER.unpack_from(view)
        if crc != _crc(view[: _HEADER.size], view[_HEADER.size :]):
            _damaged("its checksum does not match its bytes")
        if sides >> 29:
            raise UnsupportedError("block: uses a feature that this sunzip does not know: update it")
        frames = (counts & 0xFFF) + 1
        masks, lengths, at = [], [], _HEADER.size

        def take(form: str) -> int:
            nonlocal at
            at += struct.calcsize(form)
            if at > length:
                _damaged(f"ends inside its table of {frames} frames")
            return int(struct.unpack_from(form, view, at - struct.calcsize(form))[0])

        for _ in range(0 if counts & _ALIKE else frames - 1):
            word = take("<H")
            high = word >> 12
            size = take("<I") if high == 15 else high << 16 | take("<H")
            if high == 15 and size < _LONG:
                _damaged(f"states a length of {size} in the form for {_LONG} and more")
            masks.append(word & 0xFFF)
            lengths.append(size)
        word = take("<H")
        if word >> 12:
            _damaged("its last frame states a length of its own")
        masks.append(word)
        if counts & _ALIKE:
            if not word:
                _damaged("its frames are alike, and have no channel")
            masks *= frames
            for _ in range(frames - 1):
                size, used = _get_varint(view[at:])
                lengths.append(size)
                at += used
        lengths.append(length - at - sum(lengths))
        if lengths[-1] < 0:
            _damaged("its frames claim more bytes than it has")
        payloads: list[bytes] = []
        gaps: list[bytes] = []
        residuals: list[bytes] = []
        for mask, size in zip(masks, lengths, strict=True):
            stream = view[at : at + size]
            at += size
            if mask == 0 and size:
                _damaged("a frame without channels has a payload")
            for flag, parts, what in ((_GAPS, gaps, "gap map"), (_BOUNDED, residuals, "residual")):
                part = stream[:0]
                if counts & flag and mask:
                    part, stream = _taken(stream, what)
                parts.append(bytes(part))
            payloads.append(bytes(stream))
        if _need_runs(gaps) is not bool(sides & _RUNS):
            _damaged("does not say rightly whether it has gap maps by runs")
        if any(map(is_raw, payloads)) is not bool(counts & _RAW):
            _damaged("does not say rightly whether it has raw frames")
        if any(residuals) is not bool(counts & _BOUNDED):
            _damaged("does not say rightly whether it has residuals")
        for payload, gap, residual in zip(payloads, gaps, residuals, strict=True):
            if (gap or residual) and is_raw(payload):
                _damaged(f"a raw frame has a {'gap map' if gap else 'residual'}")
        shape = ((sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
        full = _unabridged(masks, gaps)
        return cls(model, shape, quality, tuple(masks), tuple(payloads), full, tuple(residuals))


def _crc(header: bytes | bytearray | memoryview, body: bytes | memoryview) -> int:
    """CRC-32 (zlib's) of a block, its own four bytes left out."""
    return zlib.crc32(body, zlib.crc32(header[_CRC.stop :], zlib.crc32(header[: _CRC.start])))
