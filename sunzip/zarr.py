"""The codec `sunzip` of Zarr format 3: codes the chunks of a cube wherever it is stored."""

from __future__ import annotations

import asyncio
import re
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
from sunzip.errors import InputError, UnsupportedError
from sunzip.frame import MAX_FRAMES, MAX_SIDE

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
        if not all(isinstance(name, str) for name in self.channels):
            raise InputError(f"codec {NAME}: channels must be a list of names")
        names = canonical(self.channels)
        if tuple(self.channels) != names:
            raise InputError(f"codec {NAME}: channels must be in the order {' '.join(names)}")
        object.__setattr__(self, "channels", names)
        # Anything but a hash would be looked for as a folder, wherever metadata of strangers point.
        if not isinstance(self.model, str) or not re.fullmatch("[0-9a-f]{64}", self.model):
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
        UnsupportedError
            If the configuration has an unknown version or key.
        InputError
            If it misses a key or a value cannot be.
        """
        configuration = data.get("configuration")
        if not isinstance(configuration, dict) or not {"version", "model", "channels"} <= set(configuration):
            raise InputError(f"codec {NAME}: its configuration needs version, model and channels")
        unknown = set(configuration) - _KEYS
        if configuration["version"] != 1 or unknown:
            raise UnsupportedError(
                f"codec {NAME}: this sunzip reads version 1 of its configuration, with "
                f"{', '.join(sorted(_KEYS))}; update sunzip"
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
        chunks = getattr(chunk_grid, "chunk_shape", shape)
        self._check("array", dtype, tuple(shape))
        self._check("chunk", dtype, tuple(chunks))
        if tuple(chunks)[2:] != tuple(shape)[2:]:
            raise InputError(f"codec {NAME}: a chunk must hold whole images of {tuple(shape)[2:]}")
        if not 1 <= chunks[0] <= MAX_FRAMES:
            raise InputError(f"codec {NAME}: a chunk holds 1 to {MAX_FRAMES} frames, not {chunks[0]}")

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
        native = np.dtype(dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else dtype)
        if native != np.float32:
            raise InputError(f"codec {NAME}: codes float32, not {native}")
        if len(shape) != 4 or shape[1] != len(self.channels):
            raise InputError(
                f"codec {NAME}: {what} has shape {shape}, it must be (time, {len(self.channels)}, y, x)"
            )
        if max(shape[2:]) > MAX_SIDE:
            raise InputError(f"codec {NAME}: {what} has shape {shape}; images go up to {MAX_SIDE} a side")

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
            frames_per_block=chunk_spec.shape[0],
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
