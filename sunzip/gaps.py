"""Missing pixels: how a frame tells which they are, and what stands in for them while it is coded.

Telescopes lose packets, despiking takes pixels out, and off the disk no field is measured. Such maps are
often alike in all channels; and with zeros in their place, their edges would be the sharpest on the Sun.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from sunzip.errors import DamagedError

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

#: First byte of maps told by runs, and along which axes they tell changes only. None begins a zlib stream.
_WAYS = {1: (0,), 2: (0, 1), 3: (0, 1, 2)}

#: Bits of a run in one byte.
_GROUP = 7


def pack_gaps(missing: Bool) -> bytes:
    """Compress the map of pixels that hold no measurement.

    Parameters
    ----------
    missing
        (n, Y, X) bool: the frame's n present channels; True where a pixel is NaN.

    Returns
    -------
    The map; empty if no pixel is missing.
    """
    if not missing.any():
        return b""
    packed = np.packbits(missing, bitorder="little")
    told, (way, changes) = missing, (0, missing)
    for n, axes in _WAYS.items():
        told = np.diff(told, axis=axes[-1], prepend=False)  # of booleans, where they differ
        if not way or np.count_nonzero(told) < np.count_nonzero(changes):
            way, changes = n, told
    if np.count_nonzero(changes) < packed.size:
        at = np.flatnonzero(changes)
        runs = _packed(np.diff(at, prepend=-1, append=missing.size) - 1)
        if runs.size <= packed.size:
            return bytes([way]) + zlib.compress(runs.tobytes(), 9)
    return zlib.compress(packed.tobytes(), 9)


def tells_runs(gap: bytes) -> bool:
    """Whether a map is one by runs."""
    return bool(gap) and gap[0] in _WAYS


def unpack_gaps(data: bytes, n: int, y: int, x: int) -> Bool:
    """Invert `pack_gaps`: (n, y, x) bool.

    Raises
    ------
    DamagedError
        If the map is not one of that many pixels. It never takes more memory than that many pixels do.
    """
    pixels = n * y * x
    if not data:
        return np.zeros((n, y, x), np.bool_)
    axes = _WAYS.get(data[0], ())
    size = -(-pixels // 8)
    inflate = zlib.decompressobj()
    try:
        told = np.frombuffer(inflate.decompress(data[1:] if axes else data, size + 1), np.uint8)
    except zlib.error as error:
        raise DamagedError(f"gap map: {error}") from None
    if not inflate.eof or inflate.unused_data or (told.size > size if axes else told.size != size):
        raise DamagedError(f"gap map does not hold exactly the {size} bytes of {n}×{y}×{x} pixels")
    if not axes:
        bits = np.unpackbits(told, bitorder="little")
        if bits[pixels:].any():
            raise DamagedError("gap map has bits set behind its last pixel")
        return bits[:pixels].astype(np.bool_).reshape(n, y, x)
    runs = _unpacked(told)
    if runs is None or runs.sum(dtype=np.float64) + runs.size != pixels + 1:
        raise DamagedError(f"gap map does not hold exactly the runs of {n}×{y}×{x} pixels")
    missing = np.zeros((n, y, x), np.bool_)
    missing.reshape(-1)[np.cumsum(runs[:-1] + 1) - 1] = True
    for axis in reversed(axes):
        np.bitwise_xor.accumulate(missing, axis, out=missing)
    return missing


def _packed(values: Int64) -> npt.NDArray[np.uint8]:
    """Return numbers as varints: their bits in groups of 7, the lowest first; bit 7 says that more follow."""
    sizes = np.ones(values.shape, np.intp)
    rest = values >> _GROUP
    while rest.any():
        sizes += rest > 0
        rest >>= _GROUP
    begins = np.cumsum(sizes) - sizes
    out = np.empty(int(sizes.sum()), np.uint8)
    for k in range(int(sizes.max())):
        some = sizes > k
        group = values[some] >> _GROUP * k & 0x7F
        out[begins[some] + k] = group | (sizes[some] > k + 1) << _GROUP
    return out


def _unpacked(data: npt.NDArray[np.uint8]) -> Int64 | None:
    """Invert `_packed`; None if a number does not end, or is of more bits than pixels need."""
    last = data < 1 << _GROUP
    if not data.size or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    begins = np.append(0, ends[:-1] + 1)
    if (ends - begins).max() > 4:
        return None
    place = np.arange(data.size) - begins.repeat(ends - begins + 1)
    groups = (data & 0x7F).astype(np.int64) << _GROUP * place
    return np.asarray(np.add.reduceat(groups, begins))


def filled(image: Float, missing: Bool) -> Float:
    """Return an image whose missing pixels are what those around them tell: nothing has an edge there.

    Each is drawn from the smallest neighbourhood in which any pixel is measured, by pull and push (Gortler et
    al. 1996, The Lumigraph): means of 2×2 pixels, of those that are there, down to a picture without gaps;
    then each picture takes what is missing from the coarser one, linearly.

    Parameters
    ----------
    image
        (Y, X); one without any pixel is 0.
    missing
        (Y, X): where none is.
    """
    there = ~missing
    here = np.where(there, image, np.float32(0))
    if there.all() or not there.any():
        return here
    tall, wide = (side % 2 for side in here.shape)
    counts = _sums(np.pad(there.astype(np.float32), ((0, tall), (0, wide))))
    sums = _sums(np.pad(here, ((0, tall), (0, wide))))
    sums /= np.maximum(counts, 1)
    coarse = filled(sums, counts == 0)
    around = _doubled(_doubled(coarse).T).T
    np.copyto(here, around[: here.shape[0], : here.shape[1]], where=missing)
    return here


def _sums(image: Float) -> Float:
    """Return the sums of 2×2 pixels."""
    rows = image[::2] + image[1::2]
    return np.asarray(rows[:, ::2] + rows[:, 1::2])


def _doubled(image: Float) -> Float:
    """Return an image (Y, X) as one of twice as many rows, linearly between them."""
    padded = np.pad(image, ((1, 1), (0, 0)), mode="edge")
    out = np.empty((2 * image.shape[0], image.shape[1]), np.float32)
    out[::2] = 0.75 * image + 0.25 * padded[:-2]
    out[1::2] = 0.75 * image + 0.25 * padded[2:]
    return out
