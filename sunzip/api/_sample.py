"""A few frames from all over a series: what all of them would cost, and the quality that makes a size."""

from __future__ import annotations

import os
import tempfile
import time as clock
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip import archive as lat
from sunzip.api._shards import encode, joined
from sunzip.archive import ArchiveSpec, ArchiveWriter, ShardTable
from sunzip.codec import Codec
from sunzip.codec.order import GROUP
from sunzip.cube import Cube
from sunzip.errors import InputError
from sunzip.frame import Block
from sunzip.sources.series import Series

#: How many frames are coded, where each is a block.
_FRAMES = 6

#: How many longer blocks are begun, and how many frames of each are coded: those after the first are a whole
#: group, and tell of all that follow.
_BLOCKS, _BEGINNING = 2, GROUP + 1

#: Bytes of a frame's entry in a block's table, about.
_ENTRY = 2


class Estimate(NamedTuple):
    """What a whole run would give.

    Attributes
    ----------
    coded_bytes
        Of all blocks.
    overhead
        Of all else but a model.
    seconds
        Wall time.
    stats
        For each name of `sunzip.archive.STATS`, (n, C) float32 of the n frames of the sample.
    """

    coded_bytes: int
    overhead: int
    seconds: float
    stats: dict[str, npt.NDArray[np.float32]]


class Sample:
    """Beginnings of blocks, as the archive will have them, held in memory.

    Parameters
    ----------
    series
        All frames.
    spec
        The archive that they would make, at any quality.
    """

    def __init__(self, series: Series, spec: ArchiveSpec) -> None:
        self.spec = spec
        self._frames = len(series)
        block = spec.frames_per_block
        # A last one that is shorter, of which the first frame is the most, would tell too much.
        blocks = max(self._frames // block, 1)
        count, most = (_FRAMES, 1) if block == 1 else (_BLOCKS, _BEGINNING)
        starts = sorted({int(n) * block for n in np.linspace(0, blocks - 1, count)})
        #: Of each block, how many frames it has; the cubes may hold fewer.
        self._lengths = [min(block, self._frames - start) for start in starts]
        # The source is opened by the first frame; only what follows is timed.
        series.read(starts[0], starts[0] + 1)
        begin = clock.monotonic()
        self._cubes = [
            series.read(start, start + min(most, length))
            for start, length in zip(starts, self._lengths, strict=True)
        ]
        self._reading = clock.monotonic() - begin
        self._overhead: int | None = None

    @property
    def _grow(self) -> float:
        """How many times more frames there are than in the sample."""
        return self._frames / sum(map(len, self._cubes))

    @property
    def images(self) -> int:
        """How many images there are, about."""
        return round(self._grow * sum(int(cube.valid.sum()) for cube in self._cubes))

    @property
    def raw_bytes(self) -> int:
        """How many bytes they have as float32, about."""
        return round(self._grow * sum(cube.nbytes for cube in self._cubes))

    def finest(self, codec: Codec, most: int) -> int:
        """Return the finest quality at which all frames make an archive of about so many bytes, or fewer.

        Raises
        ------
        InputError
            If it has more even at the lowest quality; the message names the range.
        """
        low, high = -1, 100
        while low < high:
            middle = (low + high + 1) // 2
            if self._size(codec.at(middle)) <= most:
                low = middle
            else:
                high = middle - 1
        if low < 0:
            sizes = [self._size(codec.at(quality)) for quality in (0, 100)]
            ends = [
                f"{size:,} bytes ({self.raw_bytes / size:.3g} times smaller than float32)" for size in sizes
            ]
            raise InputError(
                f"cannot be held to {max(most, 0):,} bytes: it would have about {ends[0]} at quality 0 and "
                f"{ends[1]} at quality 100"
            )
        return low

    def _size(self, codec: Codec) -> int:
        if self._overhead is None:  # nearly the same at every quality
            self._overhead = self.code(codec).overhead
        return self._whole([self._encode(codec, cube) for cube in self._cubes]) + self._overhead

    def code(self, codec: Codec) -> Estimate:
        """Code and decode the sample, as a run does with all frames."""
        # The network is loaded and warmed up by the first frames; only what follows is timed.
        encode(codec, self._cubes[0], len(self._cubes[0]))
        begin = clock.monotonic()
        parts = [encode(codec, cube, len(cube))[1] for cube in self._cubes]
        coding = clock.monotonic() - begin
        table = joined(parts)
        return Estimate(
            self._whole([part.blocks[0] for part in parts]),
            self._besides(table),
            (self._reading + coding) * self._grow,
            table.stats,
        )

    def _encode(self, codec: Codec, cube: Cube) -> bytes:
        [block] = codec.encode(cube.data, cube.channels, cube.scale, frames_per_block=len(cube))
        return block

    def _whole(self, begun: Sequence[bytes]) -> int:
        """Estimate the bytes of all blocks of the series from the beginnings of some."""
        coded = 0.0
        for data, cube, length in zip(begun, self._cubes, self._lengths, strict=True):
            coded += len(data)
            # What is not coded costs as much as the frames after the first.
            rest = [len(payload) + len(gap) for _, payload, gap in Block.unpack(data).entries[1:]]
            if rest:
                coded += (length - len(cube)) * sum(rest) / len(rest)
            coded += _ENTRY * (self.spec.frames_per_block - len(cube))
        return round(coded * self._frames / sum(self._lengths))

    def _besides(self, table: ShardTable) -> int:
        """Estimate what a whole archive holds besides blocks and model, from two that hold nothing else."""
        frames, per_shard = len(table.headers), self.spec.frames_per_shard
        whole, one = (self._small(table, n) for n in (frames, 1))
        # What the images of a shard have in common is stored once in it, the rest for each frame.
        each = (whole["shards"] - one["shards"]) / max(frames - 1, 1)
        shards = -(-self._frames // per_shard)
        return round(one["structure"] + shards * (one["shards"] - each) + self._frames * each)

    def _small(self, table: ShardTable, frames: int) -> dict[str, int]:
        """Return the bytes of an archive of one shard of so many frames: of its shard, and of all others."""
        block = self.spec.frames_per_block
        blocks = -(-frames // block)
        spec = replace(
            self.spec,
            time=np.concatenate([cube.time for cube in self._cubes])[:frames],
            frames_per_shard=max(self.spec.frames_per_shard, blocks * block),
        )
        rows = ShardTable(
            table.t_obs[:frames],
            table.valid[:frames],
            table.headers[:frames],
            {name: values[:frames] for name, values in table.stats.items()},
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "sample.lat")
            with ArchiveWriter.create(path, spec) as writer:
                writer.write_shard(0, [b"\0"] * blocks, rows)
                writer.finish()
            found = lat.summary(path)["parts"]
        return {"structure": found["structure"], "shards": found["tables"] + found["keywords"]}
