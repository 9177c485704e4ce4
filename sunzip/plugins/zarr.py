"""The codec `sunzip` of Zarr format 3: codes the chunks of a cube wherever it is stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON

from sunzip.channels import canonical
from sunzip.codec import Codec, codec_for
from sunzip.cube import Scale
from sunzip.errors import InputError

NAME = "sunzip"
_KEYS = {"version", "model", "channels", "scale", "quality"}


@dataclass(frozen=True)
class SunzipCodec(ArrayBytesCodec):
    """Codes chunks of shape (time, channel, y, x), float32, each as one block.

    Give it as ``serializer=`` and pass ``compressors=None``; inside sharding, inner chunks of one frame make
    reading and appending one frame cost one frame.

    Parameters
    ----------
    model
        sha256 of the model; `sunzip.weights.load("hyperprior-12").sha256` tells it.
    channels
        Names along the channel axis, in canonical order.
    scale
        ``"mean"`` or ``"sum"``: how AIA pixels were binned.
    quality
        0 to 100; None is the model's default.

    Raises
    ------
    InputError
        If a value is none of these.
    """

    model: str
    channels: tuple[str, ...]
    scale: str = "mean"
    quality: int | None = None
    is_fixed_size: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        names = canonical(self.channels)
        if tuple(self.channels) != names:
            raise InputError(f"codec {NAME}: channels must be in the order {' '.join(names)}")
        object.__setattr__(self, "channels", names)
        if not isinstance(self.model, str) or len(self.model) != 64:
            raise InputError(f"codec {NAME}: model must be a sha256 of 64 hexadecimal digits")
        if self.scale not in tuple(Scale):
            raise InputError(f"codec {NAME}: scale is {self.scale!r}, it must be mean or sum")
        if self.quality is not None and (type(self.quality) is not int or not 0 <= self.quality <= 100):
            raise InputError(f"codec {NAME}: quality is {self.quality!r}, it must be 0 to 100")

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Build the codec from Zarr metadata.

        Raises
        ------
        InputError
            If the configuration has an unknown version or key, or misses one.
        """
        configuration = data.get("configuration")
        if not isinstance(configuration, dict) or configuration.get("version") != 1:
            raise InputError(f"codec {NAME}: this sunzip reads version 1 of its configuration; update sunzip")
        unknown = set(configuration) - _KEYS
        if unknown or not {"model", "channels"} <= set(configuration):
            raise InputError(
                f"codec {NAME}: configuration keys are {sorted(_KEYS)}, not {sorted(configuration)}"
            )
        values: dict[str, Any] = {k: v for k, v in configuration.items() if k != "version"}
        if not isinstance(values["channels"], list | tuple):
            raise InputError(f"codec {NAME}: channels must be a list of names")
        return cls(**{**values, "channels": tuple(values["channels"])})

    def to_dict(self) -> dict[str, JSON]:
        """Return the Zarr metadata."""
        configuration: dict[str, JSON] = {
            "version": 1,
            "model": self.model,
            "channels": list(self.channels),
            "scale": self.scale,
        }
        if self.quality is not None:
            configuration["quality"] = self.quality
        return {"name": NAME, "configuration": configuration}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays that are not (time, channel, y, x) float32 with all channels in one chunk.

        Raises
        ------
        InputError
            If so.
        """
        native = np.dtype(dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else dtype)
        if native != np.float32:
            raise InputError(f"codec {NAME}: codes float32, not {native}")
        chunks = getattr(chunk_grid, "chunk_shape", shape)
        for what, found in (("array", tuple(shape)), ("chunk", tuple(chunks))):
            if len(found) != 4 or found[1] != len(self.channels):
                raise InputError(
                    f"codec {NAME}: {what} has shape {found}, it must be (time, {len(self.channels)}, y, x)"
                )
        if tuple(chunks)[2:] != tuple(shape)[2:]:
            raise InputError(f"codec {NAME}: a chunk must hold whole images of {tuple(shape)[2:]}")

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before coding."""
        raise NotImplementedError

    def _codec(self) -> Codec:
        # The network lives in a process-wide cache, never on this object, which is pickled.
        return codec_for(self.model, self.quality)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        data = self._codec().decode(
            [chunk_bytes.to_bytes()],
            self.channels,
            (chunk_spec.shape[2], chunk_spec.shape[3]),
            Scale(self.scale),
            frames=range(chunk_spec.shape[0]),
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(data)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        data = np.ascontiguousarray(chunk_array.as_numpy_array(), np.float32)
        blocks = self._codec().encode(data, self.channels, Scale(self.scale), frames_per_block=len(data))
        return chunk_spec.prototype.buffer.from_bytes(blocks[0])

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)
