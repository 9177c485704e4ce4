"""Which bit was flipped: a CRC-32 tells not only that one bit of many is another one, but which."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0xEDB88320
_DOUBLINGS = 16
_STRIDE = 1 << _DOUBLINGS  # bits that are looked up at once


def flipped_bit(difference: int, size: int) -> tuple[int, int] | None:
    """Return where one bit must be flipped for some bytes to have another CRC-32.

    Parameters
    ----------
    difference
        XOR of the CRC-32 that the bytes have and the one that they should have.
    size
        How many bytes there are.

    Returns
    -------
    offset, mask
        Of the byte, and what to XOR it with; None if no single bit makes that difference.

    Notes
    -----
    CRCs are linear: the bit at distance t from the last one makes x^t times the difference that the last one
    makes, modulo the polynomial. t is found as discrete logarithms are, by steps of a baby and of a giant.

    Examples
    --------
    >>> import zlib
    >>> flipped_bit(zlib.crc32(b"The Sqn") ^ zlib.crc32(b"The Sun"), 7)
    (5, 4)
    """
    near, far = _steps()
    for first in range(0, min(8 * size, (1 << 32) - 1), _STRIDE):
        distance = first + near.get(difference, 8 * size)
        if distance < 8 * size:
            return size - 1 - distance // 8, 1 << (7 - distance % 8)
        difference = _apply(far, difference)
    return None


@cache
def _steps() -> tuple[dict[int, int], list[int]]:
    """Return the distance of each near difference, and the map that takes others a stride nearer."""
    near, difference = {}, _POLYNOMIAL
    for distance in range(_STRIDE):
        near[difference] = distance
        difference = difference >> 1 ^ (_POLYNOMIAL if difference & 1 else 0)
    back = [((1 << i ^ _POLYNOMIAL) << 1 | 1) & 0xFFFFFFFF if i == 31 else 2 << i for i in range(32)]
    for _ in range(_DOUBLINGS):
        back = [_apply(back, image) for image in back]
    return near, back


def _apply(images: list[int], value: int) -> int:
    """Apply a linear map of 32 bits, given by the images of each."""
    out = 0
    for image in images:
        if value & 1:
            out ^= image
        value >>= 1
    return out
