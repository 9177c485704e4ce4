"""The codec `sunzip` of Zarr format 3: codes the chunks of a cube wherever it is stored."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.abc.store import ByteGetter, ByteSetter
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON
from zarr.core.indexing import SelectorTuple

from sunzip.codec.chunks import NAME, ChunkCodec, Decoded, Write
from sunzip.errors import InputError


class SunzipCodec(
    ChunkCodec, ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin, ArrayBytesCodecPartialEncodeMixin
):
    """Codes chunks of shape (time, channel, y, x), float32, each as one block.

    Give it as ``serializer=`` and pass ``compressors=None``; inside sharding, inner chunks of one frame make
    reading and appending one frame cost one frame. Arrays of one channel may also be (time, y, x) or (y, x).

    Reading decodes only the frames asked for. Writing whole frames into a chunk leaves the bytes of all
    others as they are; writing part of a frame that holds something is refused, as it would lose a second
    time. So is writing a frame on which later ones of its chunk build, as those of wavelet models do.

    Parameters
    ----------
    model
        Name, folder or sha256 of a model. Kept is the sha256, and metadata may name nothing else.
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
    >>> codec = SunzipCodec(channels=["171A", "193A"], quality=60)
    >>> codec.to_dict()["configuration"]["channels"]
    ['171A', '193A']
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Build the codec from Zarr metadata.

        Raises
        ------
        UnsupportedError
            If the configuration has an unknown version or key.
        InputError
            If it misses a key or a value cannot be.
        """
        return cls.from_configuration(data.get("configuration"))

    def to_dict(self) -> dict[str, JSON]:
        """Return the Zarr metadata."""
        return {"name": NAME, "configuration": self.configuration()}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays that are not (time, channel, y, x) float32 with all channels in one chunk.

        Raises
        ------
        InputError
            If so.
        """
        chunks = getattr(chunk_grid, "chunk_shape", None)
        if chunks is None:
            raise InputError(f"codec {NAME}: all chunks must be of one shape")
        self._check("array", dtype, tuple(shape))
        self._check("chunk", dtype, tuple(chunks))
        if tuple(chunks)[-2:] != tuple(shape)[-2:]:
            raise InputError(f"codec {NAME}: a chunk must hold whole images of {tuple(shape)[-2:]}")
        self.check_chunk(tuple(chunks))

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Refuse what cannot be coded; of the chunks inside sharding nothing else sees the shape.

        Raises
        ------
        InputError
            If so.
        """
        self._check("array or chunk", array_spec.dtype, array_spec.shape)
        return self

    def _check(self, what: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.check(what, dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else dtype, shape)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before coding."""
        raise NotImplementedError

    # Zarr's pipelines either await the methods `_single` or, from 3.4 on, may call those named `_sync`.

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = self.decode_chunk(chunk_bytes.to_bytes(), chunk_spec.shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.view(Decoded))

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pixels = chunk_array.as_numpy_array()
        return chunk_spec.prototype.buffer.from_bytes(self.encode_chunk(pixels))

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    # Parts of chunks: reading ...

    def _select(self, stored: Buffer | None, selection: SelectorTuple, spec: ArraySpec) -> NDBuffer | None:
        if stored is None:
            return None
        pixels = self.decode_chunk(stored.to_bytes(), spec.shape, selection)
        return spec.prototype.nd_buffer.from_numpy_array(pixels)

    def _decode_partial_sync(
        self, byte_getter: Any, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        return self._select(byte_getter.get_sync(prototype=chunk_spec.prototype), selection, chunk_spec)

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        stored = await byte_getter.get(prototype=chunk_spec.prototype)
        return await asyncio.to_thread(self._select, stored, selection, chunk_spec)

    # ... and writing.

    def _plan(self, value: NDBuffer, selection: SelectorTuple, spec: ArraySpec) -> Write:
        return self.plan(selection, value.as_numpy_array(), spec.shape, spec.fill_value)

    def _merge(self, write: Write, stored: Buffer | None, spec: ArraySpec) -> Buffer | None:
        block = None if stored is None else stored.to_bytes()
        merged = self.merge(write, block, spec.shape, spec.fill_value, spec.config.write_empty_chunks)
        return None if merged is None else spec.prototype.buffer.from_bytes(merged)

    def _encode_partial_sync(
        self, byte_setter: Any, value: NDBuffer, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> None:
        write = self._plan(value, selection, chunk_spec)
        stored = None if write.complete else byte_setter.get_sync(prototype=chunk_spec.prototype)
        merged = self._merge(write, stored, chunk_spec)
        if merged is None:
            byte_setter.delete_sync()
        else:
            byte_setter.set_sync(merged)

    async def _encode_partial_single(
        self, byte_setter: ByteSetter, chunk_array: NDBuffer, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> None:
        write = await asyncio.to_thread(self._plan, chunk_array, selection, chunk_spec)
        stored = None if write.complete else await byte_setter.get(prototype=chunk_spec.prototype)
        merged = await asyncio.to_thread(self._merge, write, stored, chunk_spec)
        if merged is None:
            await byte_setter.delete()
        else:
            await byte_setter.set(merged)
