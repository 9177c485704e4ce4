"""Is a shard whole? Its tables are decoded and each block looked at, in an archive or one being written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.archive import _layout as layout
from sunzip.archive._json import MAX_BYTES, load
from sunzip.archive._keywords import decode
from sunzip.archive._layout import Grid
from sunzip.channels import NAMES
from sunzip.errors import DamagedError, UnsupportedError
from sunzip.frame import Block

_T = TypeVar("_T")


class ShardChecker(ABC):
    """Looks at shards; where their objects lie, and who is told what is wrong, is for others to say.

    Attributes
    ----------
    where
        The archive, for messages.
    damaged
        Keys of objects that are known not to be what they should be.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.damaged: set[str] = set()

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the bytes of an object; None if there is none."""

    @abstractmethod
    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object or a range of it."""

    def problem(self, key: str, what: object, frames: slice | None = None) -> None:
        """Take note of what is wrong with an object, and which frames it concerns if not the whole shard."""
        self.damaged.add(key)

    def attempt(self, key: str, check: Callable[[], _T]) -> _T | None:
        """Return what a check returns; note a problem and return None if it fails or the object is bad."""
        if key in self.damaged or self.size(key) is None:
            return None
        try:
            return check()
        except (DamagedError, UnsupportedError) as e:
            self.damaged.add(key)
            self.problem(key, e)
            return None

    def chunk(self, key: str, size: int | None) -> bytes:
        """Return what an object says once it is decompressed."""
        return layout.unzstd(self.whole(key, layout.most_packed(size)), f"{self.where}: {key}", size)

    def whole(self, key: str, most: int) -> bytes:
        """Read an object whole if it has at most so many bytes.

        Raises
        ------
        DamagedError
            If it has more.
        """
        if (size := self.size(key) or 0) > most:
            raise DamagedError(f"{self.where}: {key}: {size} bytes are too many")
        return self.read(key)

    def json(self, key: str) -> dict[str, Any]:
        """Return what an object of JSON says."""
        return load(self.whole(key, MAX_BYTES), f"{self.where}: {key}")

    def shard(self, grid: Grid, model: str, shard: int) -> int:
        """Decode the tables of a shard and look at each of its blocks; return how many blocks there were.

        Parameters
        ----------
        grid
            Of the archive.
        model
            sha256 in hexadecimal of the model that it is coded with.
        shard
            Its number.
        """
        frames = grid.frames_of(shard)
        tables: dict[str, npt.NDArray[Any]] = {}
        for name in layout.TABLES:
            key = f"{name}/c/{shard}/0"
            if (table := self.attempt(key, partial(self._table, grid, name, key))) is not None:
                tables[name] = table[: frames.stop - frames.start]
        key = f"keywords/c/{shard}"
        text = self.attempt(key, lambda: layout.one_text(self.chunk(key, None), key))
        if text is not None and "t_obs" in tables:
            self.attempt(key, lambda: decode(text, grid.channels, tables["t_obs"], key))
        return self._blocks(grid, model, shard, tables.get("valid"))

    def _table(self, grid: Grid, name: str, key: str) -> npt.NDArray[Any]:
        shape = (grid.frames_per_shard, len(grid.channels))
        return layout.read_table(name, self.chunk(key, layout.table_size(name, shape)), shape, key)

    def _blocks(self, grid: Grid, model: str, shard: int, valid: npt.NDArray[np.bool_] | None) -> int:
        key = grid.cube_of(shard)
        length = self.size(key)
        if length is None:
            return 0
        numbers, tail = grid.blocks_of(shard), grid.index_size
        try:
            index = layout.read_shard_index(
                self.read(key, max(length - tail, 0), tail), len(numbers), length, key
            )
        except DamagedError as e:
            self.problem(key, e)
            return 0
        told = False
        for number, (start, size) in zip(numbers, index, strict=True):
            first = number * grid.frames_per_block
            frames = slice(first, min(first + grid.frames_per_block, grid.frames))
            rows = None if valid is None else valid[first - numbers.start * grid.frames_per_block :]
            try:
                check_block(grid, model, self.read(key, int(start), int(size)), rows)
            except (DamagedError, UnsupportedError) as e:
                self.problem(key, f"block {number}: {str(e).removeprefix('block: ')}", frames)
                told = True
        sizes_key = f"bytes/c/{shard}"
        sizes = self.attempt(sizes_key, partial(self.chunk, sizes_key, 4 * grid.blocks_per_shard))
        if sizes is not None and (np.frombuffer(sizes, "<u4")[: len(numbers)] != index[:, 1]).any():
            self.problem(sizes_key, "states other sizes of blocks than the shard's index")
        if key in self.damaged and not told:
            self.problem(key, "its bytes are damaged")
        return len(numbers)


def mask_bits(grid: Grid) -> npt.NDArray[np.int64]:
    """Return (C,) the bit of each channel in the masks of blocks."""
    return np.array([1 << NAMES.index(name) for name in grid.channels], np.int64)


def check_block(grid: Grid, model: str, data: bytes, valid: npt.NDArray[np.bool_] | None) -> Block:
    """Check one block by itself, and against what the archive says of it; return it.

    Raises
    ------
    DamagedError, UnsupportedError
        If it is not whole, or not this archive's.
    """
    block = Block.unpack(data)
    if block.model != bytes.fromhex(model)[:4]:
        raise DamagedError(f"is coded with model {block.model.hex()}…, not with the archive's")
    if block.shape != grid.shape or len(block.masks) != grid.frames_per_block:
        raise DamagedError(f"holds {len(block.masks)} frames of {block.shape} pixels")
    if valid is None:
        return block
    stated = (valid[: grid.frames_per_block] * mask_bits(grid)).sum(axis=1).tolist()
    if list(block.masks) != stated + [0] * (len(block.masks) - len(stated)):
        raise DamagedError("holds other images than the table `valid` says")
    return block
