"""A few frames from all over a series: what all of them would cost, and the quality that makes a size."""

from __future__ import annotations

import os
import tempfile
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip import archive as lat
from sunzip.api._shards import encode, joined
from sunzip.archive import ArchiveSpec, ArchiveWriter, ShardTable
from sunzip.codec import Codec
from sunzip.codec.lanes import side_by_side
from sunzip.codec.order import GROUP
from sunzip.cube import Cube
from sunzip.errors import InputError
from sunzip.frame import Block
from sunzip.sources.series import Series

_T = TypeVar("_T")

#: How many frames are coded, where each is a block.
_FRAMES = 6

#: How many longer blocks are begun, and how many frames of each are coded: those after the first are a whole
#: group, and tell of all that follow.
_BLOCKS, _BEGINNING = 2, GROUP + 1

#: How many frames more are coded where frames differ in the channels that they have.
_MORE = 4

#: Pixels of all of these at most, 2 GB; but one frame, or two that build on each other, there must be.
_PIXELS = 1 << 29

#: Bytes of a frame's entry in a block's table, about.
_ENTRY = 2

#: Qualities tried first where errors are bounded, and how far from the best of them others then are.
QUALITIES, NEARER = (10, 30, 50, 70, 90), (10, 5)


def fewest(size: Callable[[int], int], least: int = 0) -> int:
    """Return the quality, `least` or more, with the smallest size, where errors are bounded.

    Bytes fall as the model tells more, and rise when it tells what need not be known; but they may fall again
    where it is of no help. About where they are fewest they hardly change.
    """
    best = min((max(quality, least) for quality in QUALITIES), key=size)
    for step in NEARER:
        near = (best, best - step, best + step)
        best = min((quality for quality in near if least <= quality <= 100), key=size)
    return best


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
    blocks
        What was coded, a block for each of `Sample.cubes`.
    """

    coded_bytes: int
    overhead: int
    seconds: float
    stats: dict[str, npt.NDArray[np.float32]]
    blocks: list[bytes]


class Sample:
    """Beginnings of blocks, as the archive will have them, held in memory.

    Where frames differ in the channels that they have, those kinds of frames are added that have most images
    and would not be in it, each in its block.

    Parameters
    ----------
    series
        All frames.
    spec
        The archive that they would make, at any quality.

    Raises
    ------
    InputError
        If they cannot be read, or none of their images holds a measurement.
    """

    def __init__(self, series: Series, spec: ArchiveSpec) -> None:
        self.spec = spec
        self._held = ~np.isnat(series.t_obs)
        self._kinds = _kinds(self._held)
        chosen = _chosen(self._held, self._kinds, spec.frames_per_block, _PIXELS // series.pixels)
        # The source is open, as the specification knows the first frame.
        self._once = self._reading = 0.0
        #: Of each block that is begun, the numbers of frames and what they are.
        self._begun: list[tuple[list[int], Cube]] = []
        for frames in chosen:
            begin = clock.monotonic()
            # Keywords of a year take seconds, of which nothing follows for each frame.
            series.prepare(frames[0])
            prepared = clock.monotonic()
            self._begun.append((frames, _read(series, frames)))
            self._once += prepared - begin
            self._reading += clock.monotonic() - prepared
        if not any(cube.valid.any() for cube in self.cubes):
            raise InputError(
                f"{series.urls[0]}: none of the images that were looked at holds a measurement, so that no "
                "size can be foretold; choose a quality, or other times"
            )
        self._overhead: int | None = None
        self._warm = False

    @property
    def cubes(self) -> list[Cube]:
        """What was read of each block that is begun."""
        return [cube for _, cube in self._begun]

    @property
    def _grow(self) -> float:
        """How many times more images there are than in the sample."""
        return float(self._held.sum() / sum(int(self._held[frames].sum()) for frames, _ in self._begun))

    @property
    def images(self) -> int:
        """How many images there are, about: reading shows that some hold no measurement."""
        told = sum(self._held[frames].sum(0) for frames, _ in self._begun)
        found = sum(cube.valid.sum(0) for cube in self.cubes)
        # Of a channel that is not in the sample, nothing is known but that.
        shares = np.where(told > 0, found / np.maximum(told, 1), 1)
        return round(float(self._held.sum(0) @ shares))

    @property
    def raw_bytes(self) -> int:
        """How many bytes they have as float32, about."""
        return 4 * self.images * int(np.prod(self.spec.shape))

    def finest(self, codec: Codec, most: int, embedded: int) -> int:
        """Return the finest quality at which all frames make an archive of about so many bytes, or fewer.

        Parameters
        ----------
        codec
            At any quality.
        most
            Bytes of the archive.
        embedded
            How many of these its model takes; 0 if it is not in the archive.

        Raises
        ------
        InputError
            If it has more even at the lowest quality; the message names the range.
        """
        low, high = -1, 100
        while low < high:
            middle = (low + high + 1) // 2
            if self._size(codec.at(middle)) + embedded <= most:
                low = middle
            else:
                high = middle - 1
        if low < 0:
            sizes = [self._size(codec.at(quality)) + embedded for quality in (0, 100)]
            ends = [
                f"{size:,} bytes ({self.raw_bytes / size:.3g} times smaller than float32)" for size in sizes
            ]
            model = f"; {embedded:,} bytes of that are the embedded model" if embedded else ""
            raise InputError(
                f"it would have about {ends[0]} at quality 0 and {ends[1]} at quality 100{model}"
            )
        return low

    def cheapest(self, codec: Codec) -> int:
        """Return the quality at which frames take the fewest bytes, where residuals mend what it lacks.

        It is no lower than the model's default if some channel has no bound.

        Parameters
        ----------
        codec
            With bounds, at any quality.
        """
        # What a channel without a bound lost below the default, no residual would mend.
        least = 0 if codec.bounds.keys() >= set(self.spec.channels) else codec.family.default_quality
        sizes: dict[int, int] = {}

        def size(quality: int) -> int:
            if quality not in sizes:
                sizes[quality] = self._whole([self._encode(codec.at(quality), cube) for cube in self.cubes])
            return sizes[quality]

        return fewest(size, least)

    def _size(self, codec: Codec) -> int:
        if self._overhead is None:  # nearly the same at every quality
            self._overhead = self.code(codec).overhead
        return self._whole([self._encode(codec, cube) for cube in self.cubes]) + self._overhead

    def code(self, codec: Codec) -> Estimate:
        """Code and decode the sample, as a run does with all frames."""
        if not self._warm:
            # The network is loaded and warmed up by the first frames; only what follows is timed.
            encode(codec, self.cubes[0], len(self.cubes[0]))
            self._warm = True
        begin = clock.monotonic()
        parts = self.each(lambda n: encode(codec, self.cubes[n], len(self.cubes[n]))[1])
        coding = clock.monotonic() - begin
        table = joined(parts)
        blocks = [part.blocks[0] for part in parts]
        return Estimate(
            self._whole(blocks),
            self._besides(table),
            self._once + (self._reading + coding) * self._grow,
            table.stats,
            blocks,
        )

    def each(self, work: Callable[[int], _T]) -> list[_T]:
        """Return ``work(n)`` of the number of each of `cubes`, with as many lanes at work as there are.

        Frames that stand alone would keep one lane busy, one after another; in a run they keep all.
        """
        numbers = range(len(self.cubes))
        alone = self.spec.frames_per_block == 1
        return list(side_by_side(work, numbers) if alone else map(work, numbers))

    def _encode(self, codec: Codec, cube: Cube) -> bytes:
        [block] = codec.encode(cube.data, cube.channels, cube.scale, frames_per_block=len(cube))
        return block

    def _whole(self, begun: Sequence[bytes]) -> int:
        """Estimate the bytes of all blocks of the series from the beginnings of some."""
        block, frames = self.spec.frames_per_block, len(self._held)
        blocks = -(-frames // block)
        images = self._held.sum(1)
        coded = np.zeros(frames)
        besides = 0.0
        for data, (numbers, cube) in zip(begun, self._begun, strict=True):
            coded[numbers] = [sum(map(len, parts)) for _, *parts in Block.unpack(data).entries]
            besides += len(data) - coded[numbers].sum() + _ENTRY * (block - len(cube))
        total = blocks * besides / len(begun)
        known = np.isin(np.arange(frames), [n for numbers, _ in self._begun for n in numbers])
        first = np.arange(frames) % block == 0
        # A frame costs what those of its kind do, one of a kind that was not seen what its images cost
        # in others; the first frame of a block costs much more than the others.
        for role in (first, ~first):
            seen = known & role
            each = coded[seen].sum() / max(images[seen].sum(), 1)
            for kind in np.unique(self._kinds[role]):
                here = role & (self._kinds == kind)
                like = coded[here & seen]
                total += like.mean() * here.sum() if like.size else each * images[here].sum()
        return round(total)

    def _besides(self, table: ShardTable) -> int:
        """Estimate what a whole archive holds besides blocks and model, from two that hold nothing else."""
        frames, per_shard = len(table.headers), self.spec.frames_per_shard
        whole, one = (self._small(table, n) for n in (frames, 1))
        # What the images of a shard have in common is stored once in it, the rest for each image.
        first = int(table.valid[0].sum())
        each = (whole["shards"] - one["shards"]) / max(int(table.valid.sum()) - first, 1)
        shards = -(-len(self._held) // per_shard)
        return round(one["structure"] + shards * (one["shards"] - first * each) + self.images * each)

    def _small(self, table: ShardTable, frames: int) -> dict[str, int]:
        """Return the bytes of an archive of one shard of so many frames: of its shard, and of all others."""
        block = self.spec.frames_per_block
        blocks = -(-frames // block)
        spec = replace(
            self.spec,
            time=self.spec.time[:frames],
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


def _kinds(held: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return (T,) numbers that are equal where frames hold the same of (T, C) channels."""
    found = np.unique(held, axis=0, return_inverse=True)[1]
    return found.reshape(-1).astype(np.intp)


def _chosen(
    held: npt.NDArray[np.bool_], kinds: npt.NDArray[np.intp], block: int, room: int
) -> list[list[int]]:
    """Return the numbers of the frames of each block that is begun, the first frame of it among them.

    Parameters
    ----------
    held, kinds
        (T, C) which channels each frame holds, and what `_kinds` makes of that.
    block
        Frames of a block.
    room
        Frames that there may be in all; one is taken in any case, of longer blocks two.
    """
    frames = len(kinds)
    # A last one that is shorter, of which the first frame is the most, would tell too much.
    blocks = max(frames // block, 1)
    count, most = (_FRAMES, 1) if block == 1 else (_BLOCKS, _BEGINNING)
    # To add one frame takes two, as it needs the first of its block.
    more = min(_MORE, len(np.unique(kinds)) - 1, max(room - 1, 0) // 2)
    # Where frames build on others, two of a block are the least that tells of it.
    least = min(block, 2)
    count = max(min(count, (room - 2 * more) // least), 1)
    most = max(min(most, (room - 2 * more) // count), least)
    begun = {
        start: list(range(start, min(start + most, start + block, frames)))
        for start in sorted({int(n) * block for n in np.linspace(0, blocks - 1, count)})
    }
    sampled = [n for numbers in begun.values() for n in numbers]
    images = np.bincount(kinds, held.sum(1))
    for kind in sorted(set(kinds.tolist()) - set(kinds[sampled].tolist()), key=lambda k: -images[k])[:more]:
        here = np.flatnonzero(kinds == kind)
        number = int(here[len(here) // 2])
        start = number // block * block
        begun[start] = sorted({*begun.get(start, [start]), number})
    return [begun[start] for start in sorted(begun)]


def _read(series: Series, frames: Sequence[int]) -> Cube:
    """Read frames by their numbers, which rise."""
    if frames[-1] - frames[0] == len(frames) - 1:
        return series.read(frames[0], frames[-1] + 1)
    cubes = [series.read(n, n + 1) for n in frames]
    one = cubes[0]
    data, time, t_obs, valid = (
        np.concatenate([getattr(cube, name) for cube in cubes]) for name in ("data", "time", "t_obs", "valid")
    )
    return Cube(data, one.channels, time, t_obs, valid, [cube.headers[0] for cube in cubes], one.scale)
