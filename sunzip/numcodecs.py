"""The codec `sunzip` of numcodecs: codes the chunks of Zarr format 2 arrays, and of what refers to them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ensure_ndarray_like

from sunzip.codec.chunks import NAME, ChunkCodec, Decoded
from sunzip.errors import InputError
from sunzip.frame import Block

_MAX_BYTES = (1 << 31) - 1  # as other codecs of numcodecs have it


class Sunzip(ChunkCodec, Codec):  # type: ignore[misc]  # numcodecs has no types
    """Codes C-contiguous float32 arrays of shape (time, channel, y, x), each as one block.

    Arrays of one channel may also be (time, y, x) or (y, x). Give it as ``compressors=`` of an array of
    ``zarr_format=2`` in memory order C.

    Format 2 writes part of a chunk by decoding, changing and coding all of it, which would lose a second
    time: that is refused, also for an array that `decode` gave. ``numpy.array(pixels)`` is taken as new.

    Parameters
    ----------
    model
        Name, folder or sha256 of a model. Kept is the sha256, and configurations may name nothing else.
    channels
        Name or names along the channel axis, in canonical order; all 12 by default.
    scale
        ``"mean"`` or ``"sum"``: how AIA pixels were binned.
    quality
        0 to 100; None is the model's default.
    max_error
        How far decoded pixels may be from the original, such as ``"2sigma"`` or ``"5%,Bz=20G"``; None is no
        bound.

    Raises
    ------
    InputError
        If a value is none of these, or errors are bounded and the model's pixels are not the same everywhere.
    ModelNotFoundError
        If there is no model of that name or in that folder; a sha256 is looked for when a chunk is coded.

    Examples
    --------
    >>> import numcodecs, numpy as np
    >>> numcodecs.register_codec(Sunzip)  # an installed sunzip is found by itself
    >>> codec = Sunzip(channels=["171A"])
    >>> block = codec.encode(np.full((2, 32, 32), 100, np.float32))
    >>> numcodecs.get_codec(codec.get_config()).decode(block).shape
    (2, 1, 32, 32)
    """

    codec_id = NAME

    def get_config(self) -> dict[str, Any]:
        """Return the configuration as JSON has it, with the codec's ``id``."""
        return {"id": NAME, **self.configuration()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the codec from `get_config`'s, without its ``id``.

        Raises
        ------
        UnsupportedError
            If it has an unknown version or key.
        InputError
            If it misses a key or a value cannot be.
        """
        return cls.from_configuration(config)

    def encode(self, buf: Any) -> bytes:
        """Code an array.

        Parameters
        ----------
        buf
            (T, C, Y, X) float32, C-contiguous.

        Raises
        ------
        InputError
            If it is not so; without a shape or in Fortran order pixels would be coded in a wrong order.
        TypeError
            If it is an array of objects, as all codecs of numcodecs do.
        """
        pixels = ensure_ndarray_like(buf)
        if pixels.dtype == object:
            raise TypeError("object arrays are not supported")
        if not pixels.flags.c_contiguous:
            raise InputError(f"codec {NAME}: codes C-contiguous arrays; make the array with order='C'")
        if pixels.nbytes > _MAX_BYTES:
            raise InputError(f"codec {NAME}: codes less than 2 GiB at once, not {pixels.nbytes} bytes")
        return self.encode_chunk(pixels)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a block.

        Parameters
        ----------
        buf
            What `encode` returned, as any buffer.
        out
            C-contiguous buffer of just as many bytes as the pixels take, which is filled.

        Returns
        -------
        (T, C, Y, X) float32, or `out`.

        Raises
        ------
        DamagedError
            If the block is damaged or was coded with another model.
        InputError
            If it would take 2 GiB or more, or `out` does not fit.
        TypeError
            If `out` is an array of objects.
        """
        data = ensure_bytes(buf)
        block = Block.unpack(data)
        shape = (len(block.masks), len(self.channels), *block.shape)
        size = 4 * int(np.prod(shape, dtype=np.int64))
        if size > _MAX_BYTES:
            raise InputError(f"codec {NAME}: decodes less than 2 GiB at once, not {shape} float32")
        if out is None:
            return self.decode_chunk(data, shape).view(Decoded)
        target = ensure_ndarray_like(out)
        if target.dtype == object:
            raise TypeError("object arrays are not supported")
        if not target.flags.c_contiguous or target.nbytes != size:
            raise InputError(
                f"codec {NAME}: out must be C-contiguous and of {size} bytes, as {shape} float32"
            )
        target.reshape(-1).view(np.uint8)[:] = self.decode_chunk(data, shape).reshape(-1).view(np.uint8)
        return out
