"""Chunks of arrays: what the Zarr and the numcodecs codec are beneath their interfaces.

Configuration and its checks, chunks to blocks and back, parts of chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.arguments import whole
from sunzip.bounds import Wish, bounds_in, bounds_of, told
from sunzip.channels import NAMES, canonical, channel, listed
from sunzip.codec import BOUNDED_QUALITY, Codec, check_unmasked, codec_for, promised
from sunzip.codec.family import Float
from sunzip.cube import MAX_SIDE, Scale
from sunzip.errors import InputError, UnsupportedError
from sunzip.frame import EMPTY, MAX_FRAMES, Block, Entry

#: The codec in Zarr's and numcodecs' registries, and the version of its configuration.
NAME, VERSION = "sunzip", 1

_KEYS = {"version", "model", "channels", "scale", "quality", "max_error"}


class Decoded(np.ndarray[Any, Any]):
    """Pixels of a whole chunk as they were decoded; NumPy keeps the class in copies and views.

    Where a caller cannot write parts of chunks, it decodes a chunk, changes some of it and codes all of it.
    By its class such a chunk is told from new measurements: coded again it would lose a second time.
    """


@dataclass(frozen=True)
class Write:
    """What a write puts into a chunk.

    Attributes
    ----------
    frames
        Numbers of the frames that it touches, rising.
    data
        (len(frames), C, Y, X) float32; the fill value where nothing is written.
    written
        Of the same shape, bool.
    complete
        Whether nothing of what the chunk held is left.
    """

    frames: list[int]
    data: Float
    written: npt.NDArray[np.bool_]
    complete: bool


@dataclass(frozen=True, init=False)
class ChunkCodec:
    """Codes chunks of shape (time, channel, y, x), float32, each as one block.

    With one channel, chunks may also be (time, y, x) or (y, x).

    Parameters
    ----------
    model
        Name, folder or sha256 of a model. Kept is the sha256.
    channels
        Name or names along the channel axis, in canonical order.
    scale
        ``"mean"`` or ``"sum"``: how AIA pixels were binned.
    quality
        0 to 100; None is the model's default.
    max_error
        How far decoded pixels may be from the original, such as ``"2sigma"`` or ``"5%,Bz=20G"``, as
        `sunzip.bounds.bounds_of` reads it; None is no bound. Kept is the text channel by channel.

    Raises
    ------
    InputError
        If a value is none of these, or errors are bounded and the model's pixels are not the same everywhere.
    ModelNotFoundError
        If there is no model of that name or in that folder; a sha256 is looked for when a chunk is coded.
    """

    model: str
    channels: tuple[str, ...]
    scale: str
    quality: int | None
    max_error: str | None

    # By hand, as more may be given than is kept: what a dataclass makes has the types of its fields.
    def __init__(
        self,
        model: str | Path = weights.DEFAULT,
        channels: str | Iterable[str] = NAMES,
        scale: str = "mean",
        quality: int | None = None,
        max_error: Wish | None = None,
    ) -> None:
        given = [channel(name).name for name in listed(channels)]
        names = canonical(given)
        if tuple(given) != names:
            raise InputError(f"codec {NAME}: channels must be once each in the order {' '.join(names)}")
        if not isinstance(scale, str) or scale not in tuple(Scale):
            raise InputError(f"codec {NAME}: scale is {scale!r:.40}, it must be mean or sum")
        if quality is not None:
            quality = whole(quality, f"codec {NAME}: quality", 0, 100)
        bounds = {} if max_error is None else bounds_of(max_error, names)
        if not _is_sha256(model):
            found = weights.load(model)
            promised(found, bounds)
            # By its hash alone a folder would not be found again.
            weights.register(found)
            model = found.sha256
        if max_error is not None:
            max_error = told(bounds)
            # Stays so in an array, whatever later versions take.
            quality = BOUNDED_QUALITY if quality is None else quality
        kept = {
            "model": model,
            "channels": names,
            "scale": str(scale),
            "quality": quality,
            "max_error": max_error,
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_configuration(cls, configuration: object) -> Self:
        """Build the codec from what `configuration` gave, read from metadata that anyone may have written.

        Raises
        ------
        UnsupportedError
            If it has an unknown version or key.
        InputError
            If it misses a key or a value cannot be.
        """
        if not isinstance(configuration, dict) or not {"version", "model", "channels"} <= set(configuration):
            raise InputError(f"codec {NAME}: its configuration needs version, model and channels")
        unknown = set(configuration) - _KEYS
        version = configuration["version"]
        if type(version) is not int or version != VERSION or unknown:
            raise UnsupportedError(
                f"codec {NAME}: this sunzip reads version {VERSION} of its configuration, with "
                f"{', '.join(sorted(_KEYS))}; update sunzip"
            )
        values: dict[str, Any] = {k: v for k, v in configuration.items() if k != "version"}
        if not isinstance(values["channels"], list | tuple):
            raise InputError(f"codec {NAME}: channels must be a list of names")
        # Anything but a hash would be looked for as a folder, wherever metadata of strangers point.
        if not _is_sha256(values["model"]):
            raise InputError(f"codec {NAME}: model must be a sha256 of 64 hexadecimal digits")
        if values.get("quality", 0) is None:
            raise InputError(f"codec {NAME}: quality is null, it must be 0 to 100 or absent")
        # Other spellings are for people: one array has one configuration, which every reader knows.
        names = canonical(values["channels"])
        if tuple(values["channels"]) != names:
            raise InputError(f"codec {NAME}: channels must be {' '.join(names)}, so spelt and in this order")
        bounds_in(values, names)
        return cls(**{**values, "channels": names})

    def configuration(self) -> dict[str, Any]:
        """Return what tells the codec apart, as JSON has it."""
        found: dict[str, Any] = {
            "version": VERSION,
            "model": self.model,
            "channels": list(self.channels),
            "scale": self.scale,
        }
        if self.quality is not None:
            found["quality"] = self.quality
        if self.max_error is not None:
            found["max_error"] = self.max_error
        return found

    def check(self, what: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """Refuse what is not float32 of a shape that can be coded.

        Raises
        ------
        InputError
            If so; the message begins with what it is.
        """
        if np.dtype(dtype) != np.float32:
            raise InputError(f"codec {NAME}: codes float32, not {np.dtype(dtype)}")
        count = len(self.channels)
        if not (len(shape) == 4 and shape[1] == count) and not (len(shape) in (2, 3) and count == 1):
            like = f"(time, {count}, y, x)" + (", (time, y, x) or (y, x)" if count == 1 else "")
            raise InputError(f"codec {NAME}: {what} has shape {shape}, it must be {like}")
        if max(shape[-2:]) > MAX_SIDE:
            raise InputError(f"codec {NAME}: {what} has shape {shape}; images go up to {MAX_SIDE} a side")

    def check_chunk(self, shape: tuple[int, ...]) -> None:
        """Refuse a chunk of more frames than a block holds.

        Raises
        ------
        InputError
            If so.
        """
        frames = self._shape(shape)[0]
        if not 1 <= frames <= MAX_FRAMES:
            raise InputError(f"codec {NAME}: a chunk holds 1 to {MAX_FRAMES} frames, not {frames}")

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return a chunk's shape as (time, channel, y, x)."""
        return (shape[0] if len(shape) > 2 else 1, len(self.channels), shape[-2], shape[-1])

    def _codec(self) -> Codec:
        # The network lives in a process-wide cache, never on this object, which is pickled.
        return codec_for(self.model, self.quality, bounds_in(self.configuration(), self.channels))

    def encode_chunk(self, pixels: npt.NDArray[Any]) -> bytes:
        """Code a chunk as one block.

        Raises
        ------
        InputError
            If it cannot be coded, or part of it comes out of this codec already.
        """
        if isinstance(pixels, Decoded):
            raise InputError(
                f"codec {NAME}: some of these pixels were decoded from the chunk that they are to replace; "
                "coded again they would lose a second time: write whole chunks, or use Zarr format 3 without "
                "other filters and compressors"
            )
        check_unmasked(pixels)
        self.check("chunk", pixels.dtype, pixels.shape)
        self.check_chunk(pixels.shape)
        return self._encode(np.ascontiguousarray(pixels).reshape(self._shape(pixels.shape)))

    def _encode(self, data: Float, after: Block | None = None) -> bytes:
        [block] = self._codec().encode(
            data, self.channels, Scale(self.scale), frames_per_block=len(data), after=after
        )
        return block

    def decode_chunk(self, block: bytes, shape: tuple[int, ...], selection: Any = ()) -> Float:
        """Decode the selected part of a chunk; each frame that it touches takes one run of the network.

        Parameters
        ----------
        block
            The chunk's bytes.
        shape
            Of the whole chunk.
        selection
            What NumPy would be given to select from the chunk: slices (of positive step), integers, arrays.

        Raises
        ------
        DamagedError
            If the block is damaged or not of that shape and model.
        """
        frames, _, height, width = self._shape(shape)
        kept, local = _narrow(selection, shape, len(shape) - 2)
        times = kept[0] if len(shape) > 2 else [0]
        names = [self.channels[c] for c in kept[1]] if len(shape) > 3 else self.channels
        if not times or not names:
            nothing: Float = np.empty(shape, np.float32)[selection]
            return nothing
        pixels = self._codec().decode(
            [block],
            names,
            (height, width),
            Scale(self.scale),
            frames=times,
            frames_per_block=frames,
        )
        selected: Float = pixels.reshape(*map(len, kept), height, width)[local]
        return selected

    def plan(
        self, selection: Any, value: npt.NDArray[Any], shape: tuple[int, ...], fill_value: float
    ) -> Write:
        """Lay out what a write puts into a chunk, before anything of the chunk is read.

        Parameters
        ----------
        selection
            As in `decode_chunk`.
        value
            As many pixels as it selects, or one.
        shape
            Of the whole chunk.
        fill_value
            Of the array.

        Raises
        ------
        InputError
            If the value has a mask.
        """
        check_unmasked(value)
        frames, channels, height, width = self._shape(shape)
        kept, local = _narrow(selection, shape, min(len(shape) - 2, 1))
        times = kept[0] if len(shape) > 2 else [0]
        part = (len(times), *shape[1:]) if len(shape) > 2 else shape
        data = np.full(part, fill_value, np.float32)
        written = np.zeros(part, np.bool_)
        written[local] = True
        # Zarr drops axes of the value that the selection, made of arrays, still has.
        data[local] = value if value.ndim == 0 else value.reshape(data[local].shape)
        complete = len(times) == frames and bool(written.all())
        four = (len(times), channels, height, width)
        return Write(times, data.reshape(four), written.reshape(four), complete)

    def merge(
        self, write: Write, stored: bytes | None, shape: tuple[int, ...], fill_value: float, keep_empty: bool
    ) -> bytes | None:
        """Put written frames into a chunk; all others keep their bytes and are not coded again.

        Where frames build on those before them, what is written may only follow what is kept.

        Parameters
        ----------
        write
            What `plan` made.
        stored
            The chunk's bytes; None if there are none, or none of what they hold is left.
        shape
            Of the whole chunk.
        fill_value
            Of the array; what an absent chunk holds.
        keep_empty
            Whether a chunk that holds nothing but the fill value has bytes.

        Returns
        -------
        The chunk's bytes, or None if it is not to be stored.

        Raises
        ------
        InputError
            If part of a frame is written that already holds something, a frame that is kept builds on one
            that is written, or the chunk was coded at another quality.
        DamagedError
            If the stored block is damaged or not of that shape and model.
        """
        frames, _, height, width = self._shape(shape)
        codec = self._codec()
        empty = np.isnan(fill_value)
        entries, others = [EMPTY] * frames, sorted(set(range(frames)) - set(write.frames))
        if stored is not None:
            # Decoding no frame checks that the block is one of this codec and shape.
            codec.decode([stored], self.channels, (height, width), frames=(), frames_per_block=frames)
            block = Block.unpack(stored)
            entries = list(block.entries)
            if block.quality != codec.quality and any(entries[t][0] for t in others):
                raise InputError(
                    f"codec {NAME}: frames of this chunk were coded at quality {block.quality}, the codec "
                    f"has {codec.quality}: write the whole chunk or use quality={block.quality}"
                )
            for t, written in zip(write.frames, write.written, strict=True):
                if entries[t][0] and not written.all():
                    raise InputError(
                        f"codec {NAME}: part of a frame is written that holds pixels already; to code these "
                        "again would lose a second time: write all channels of whole frames"
                    )
            write.data[~write.written] = np.nan  # as an empty frame is read
        unchanged = np.isnan(write.data) if empty else write.data == np.float32(fill_value)
        rest = stored is None or (empty and not any(entries[t][0] for t in others))
        if rest and not keep_empty and unchanged.all():
            return None
        if not codec.family.sequential:
            coded = Block.unpack(self._encode(write.data))
            if stored is None and others and not empty:
                filled = np.full((1, *write.data.shape[1:]), fill_value, np.float32)
                [entry] = Block.unpack(self._encode(filled)).entries
                for t in others:
                    entries[t] = entry
        elif stored is None and others and not empty:
            data = np.full((frames, *write.data.shape[1:]), fill_value, np.float32)
            data[write.frames] = write.data
            return self._encode(data)
        else:
            coded = Block.unpack(
                self._encode(write.data, self._before(codec, write, entries, others, stored, fill_value))
            )
        for t, entry in zip(write.frames, coded.entries, strict=True):
            entries[t] = entry
        return coded.with_entries(entries).pack()

    def _before(
        self,
        codec: Codec,
        write: Write,
        entries: Sequence[Entry],
        others: Sequence[int],
        stored: bytes | None,
        fill_value: float,
    ) -> Block | None:
        """Return the frames that are kept, on which those written build.

        Raises
        ------
        InputError
            If a frame that is kept builds on one that is written.
        """
        kept = [t for t in others if entries[t][0]]
        if stored is None or not kept:
            return None
        # Those of a number may lie beyond the array's end, where nobody can write them.
        instead = (
            "" if np.isnan(fill_value) else "; fill_value=nan leaves frames that were never written empty"
        )
        for t, frame in zip(write.frames, write.data, strict=True):
            if t < kept[-1] and (entries[t][0] or not np.isnan(frame).all()):
                raise InputError(
                    f"codec {NAME}: frame {kept[-1]} of this chunk, which is not written, builds on those "
                    "before it: write the chunk up to its last frame, or make chunks of one frame" + instead
                )
        rows = [t for t, entry in enumerate(entries) if entry.mask]
        for n, t in enumerate(rows):
            _, ahead = codec.family.links(entries[t].payload)
            if t in kept and ahead and n + ahead < len(rows) and rows[n + ahead] not in kept:
                raise InputError(
                    f"codec {NAME}: frame {t} of this chunk, which is not written, builds on frame "
                    f"{rows[n + ahead]}: write the whole chunk, or make chunks of one frame" + instead
                )
        return Block.unpack(stored).with_entries(entries[: kept[-1] + 1])


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _narrow(selection: Any, shape: tuple[int, ...], axes: int) -> tuple[list[list[int]], tuple[Any, ...]]:
    """Return what a selection touches of each of the first axes, rising, and the selection among that."""
    selectors = [*(selection if isinstance(selection, tuple) else (selection,))]
    selectors += [slice(None)] * (len(shape) - len(selectors))
    kept = []
    for axis in range(axes):
        places = np.arange(shape[axis])[selectors[axis]]
        found = np.unique(places)
        kept.append(found.tolist())
        if isinstance(selectors[axis], slice):
            selectors[axis] = slice(None)
        else:
            selectors[axis] = np.searchsorted(found, places)
    return kept, tuple(selectors)
