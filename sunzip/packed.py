"""Zstd frames (RFC 8878) that say how much they hold, so that bytes of strangers take no more memory."""

from __future__ import annotations

from sunzip.errors import DamagedError

_MAGIC = b"\x28\xb5\x2f\xfd"


def pack(data: bytes | memoryview, level: int, *, checksum: bool) -> bytes:
    """Compress as one zstd frame, which states its content's size and, if wanted, a checksum."""
    from numcodecs.zstd import Zstd

    return bytes(Zstd(level=level, checksum=checksum).encode(data))


def unpack(data: bytes, size: int | None = None, *, most: int = 1 << 31) -> bytes:
    """Decompress one zstd frame.

    Parameters
    ----------
    data
        The frame.
    size
        The bytes that its content must have; None is any number.
    most
        The bytes that its content may have.

    Raises
    ------
    DamagedError
        If the frame is broken or states another size; nothing was allocated then.
    """
    from numcodecs.zstd import Zstd

    stated = content_size(data)
    if stated is None or stated > most or (size is not None and stated != size):
        raise DamagedError(f"states a content of {stated} bytes" + (f" instead of {size}" if size else ""))
    out = bytearray(stated)
    try:
        Zstd().decode(data, out)
    except (RuntimeError, ValueError) as e:
        raise DamagedError(f"cannot be decompressed ({e})") from e
    return bytes(out)


def content_size(data: bytes) -> int | None:
    """Read from a frame's header (RFC 8878, section 3.1.1.1) the size of its content.

    None if it does not state it, is none, or needs a dictionary.
    """
    if len(data) < 5 or data[:4] != _MAGIC:
        return None
    descriptor = data[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    if descriptor & 3 or (flag == 0 and not single):
        return None
    width = (1, 2, 4, 8)[flag]
    at = 5 if single else 6
    field_bytes = data[at : at + width]
    if len(field_bytes) < width:
        return None
    return int.from_bytes(field_bytes, "little") + (256 if width == 2 else 0)
