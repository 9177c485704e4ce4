"""Shards of an archive, coded and written: the work that one process does alone or many share."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip import archive as lat
from sunzip.api._series import would_lose
from sunzip.archive import ArchiveWriter, ShardTable
from sunzip.codec import Codec
from sunzip.codec.lanes import BUSY, count
from sunzip.codec.processes import ahead
from sunzip.cube import Cube
from sunzip.errors import DamagedError, InputError, SunzipError, UnsupportedError
from sunzip.frame import Block
from sunzip.metrics import ImageMetrics, image_metrics
from sunzip.sources.patience import reading_pool
from sunzip.sources.series import Notes, Series
from sunzip.tasks import Task
from sunzip.times import format_utc

#: float32 pixels held at a time: frames are read, coded and written in stretches of this many; and of so many
#: at most, 2 GB, where each lane or each block wants more.
_STRETCH_PIXELS, _MOST_PIXELS = 1 << 24, 1 << 29

_T = TypeVar("_T")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be coded into which archive, fit to be sent to another process.

    Attributes
    ----------
    series
        The frames.
    writer
        The archive.
    block
        Frames coded together.
    held
        (T, C) which images of the series the archive has already, if it is coded anew.
    """

    series: Series
    writer: ArchiveWriter
    block: int
    held: npt.NDArray[np.bool_] | None = None

    @property
    def first(self) -> int:
        """The archive's frame that is the first of the series."""
        return self.writer.kept

    def frames_of(self, shard: int) -> slice:
        """Return the frames of a shard that are to be coded."""
        frames = self.writer.frames_of(shard)
        return slice(max(frames.start, self.first), frames.stop)

    def read(self, start: int, stop: int) -> Cube:
        """Read some of them.

        Raises
        ------
        InputError
            If one cannot be read, or an image that the archive has holds no measurement any more.
        """
        cube = self.series.read(start - self.first, stop - self.first)
        if (
            self.held is not None
            and (lost := self.held[start - self.first : stop - self.first] & ~cube.valid).any()
        ):
            frame, channel = np.argwhere(lost)[0]
            raise would_lose(
                f"{self.series.urls[0]}: holds no measurement in",
                cube.channels[channel],
                cube.time[frame],
                self.writer.path,
                self.series.time[0],
            )
        return cube

    def notes(self, shard: int) -> Notes:
        """Return what reading those of a shard showed."""
        frames = self.frames_of(shard)
        return self.series.notes(frames.start - self.first, frames.stop - self.first)

    def begun(self, shard: int) -> list[Part]:
        """Return the whole blocks of a shard that are coded already, with all that is known of its images.

        Raises
        ------
        DamagedError
            If anything in that shard is damaged.
        """
        before, start, stop = (
            self.writer.before,
            self.writer.frames_of(shard).start,
            self.frames_of(shard).start,
        )
        if before is None or start == stop:
            return []
        before.check_shard(shard)
        blocks = before.read_blocks(range(start // self.block, stop // self.block))
        return [Part(blocks, before.table(start, stop))]

    def unfinished(self, frame: int) -> Block | None:
        """Return the frames that come before one in its own block; None if it is the first."""
        before = self.writer.before
        if before is None or frame % self.block == 0:
            return None
        block = Block.unpack(before.block(frame // self.block))
        return block.with_entries(block.entries[: frame % self.block])


class Coded(NamedTuple):
    """A few frames done: how many, their bytes as float32, and their coded bytes."""

    frames: int
    raw_bytes: int
    coded_bytes: int


@dataclass(slots=True)
class Part:
    """A stretch of coded frames and what is known of their images."""

    blocks: list[bytes]
    table: ShardTable


class _Measured(NamedTuple):
    """What is told of a decoded frame instead of keeping it; its checksum if that is to be compared."""

    metrics: ImageMetrics
    checksum: int | None


def code_shards(plan: Plan, codec: Codec, shards: Sequence[int]) -> Generator[Coded, None, None]:
    """Code and write shards, telling after each stretch of frames; reading, coding and writing overlap.

    A shard is written, or under way, when its last stretch is told; all are written when the iterator ends.

    Raises
    ------
    InputError, DamagedError, OutputError
        If a frame cannot be read, coded or written; shards that are coded already are written nevertheless.
    """
    writer, pixels = plan.writer, plan.series.pixels
    step = frames_at_a_time(pixels, plan.block, stretches=2)
    stretches = [stretch for shard in shards for stretch in _stretches(plan, shard, step)]
    frames = sum(stop - begin for _, begin, stop in stretches)
    begun = {shard: plan.begun(shard) for shard in shards}
    # One thread reads, two have frames coded, so that lanes do not wait for the end of a stretch, one writes.
    with ahead(4 * frames * pixels), reading_pool(4) as pool:
        written: Task[None] | None = None
        cubes = _one_ahead(pool, stretches, lambda s: plan.read(s[1], s[2]))
        try:
            # Of each shard two frames are decoded: what goes wrong on a machine goes wrong in all of them.
            coded = _two_at_a_time(
                pool,
                zip(cubes, stretches, strict=False),
                lambda s: encode(
                    codec,
                    s[0],
                    plan.block,
                    prove=s[1][1] == plan.frames_of(s[1][0]).start,
                    after=plan.unfinished(s[1][1]),
                ),
            )
            for (shard, start, stop), (raw_bytes, part) in zip(stretches, coded, strict=True):
                begun[shard].append(part)
                yield Coded(stop - start, raw_bytes, sum(map(len, part.blocks)))
                if stop == plan.frames_of(shard).stop:
                    if written:
                        written.result()
                    written = Task(pool, write, writer, shard, begun.pop(shard))
            if written:
                written.result()
        except (InputError, DamagedError):
            if written:
                with suppress(SunzipError):
                    written.result()
            raise


def _stretches(plan: Plan, shard: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Yield the shard, first frame and end of stretches of whole blocks; one that is begun is ended first."""
    frames = plan.frames_of(shard)
    whole = min(-(-frames.start // plan.block) * plan.block, frames.stop)
    if frames.start < whole:
        yield shard, frames.start, whole
    for begin in range(whole, frames.stop, step):
        yield shard, begin, min(begin + step, frames.stop)


def encode(
    codec: Codec, cube: Cube, block: int, *, prove: bool = False, after: Block | None = None
) -> tuple[int, Part]:
    """Code a stretch of frames and measure what decoding will have lost; the first number is raw bytes.

    Parameters
    ----------
    prove
        Decode the first frame, too, and one that builds on it, and compare.
    after
        Frames that come before these in their one block, and stay in it as they are.

    Raises
    ------
    UnsupportedError
        If that is not what the encoder said.
    """
    blocks, measured = codec.encode_measured(
        cube.data,
        cube.channels,
        cube.scale,
        frames_per_block=block,
        after=after,
        measure=partial(_measured, prove=prove),
    )
    kept = 0
    if after is not None:
        kept = len(after.entries)
        more = Block.unpack(*blocks).entries
        blocks = [after.with_entries((*after.entries, *more[: block - kept])).pack()]
    if prove:
        few = range(min(block - kept, len(cube), 2))
        again = codec.decode(
            blocks[:1], cube.channels, cube.data.shape[2:], cube.scale, frames=[kept + t for t in few]
        )
        if [_checksum(frame) for frame in again] != [measured[t].checksum for t in few]:
            raise UnsupportedError(
                f"frames from {format_utc(cube.time[:1])[0]} on do not decode to what was coded; "
                "the memory of this machine or its libraries cannot be trusted: run the tests, or use another"
            )
    found = [m.metrics for m in measured]
    stats = {
        "err_rmse": np.stack([m.rmse for m in found]),
        "err_max": np.stack([m.max_error for m in found]),
        "err_ppe10": np.stack([m.ppe10 for m in found]),
        "err_r": np.stack([m.r for m in found]),
    }
    shown = {k: np.where(cube.valid, v, np.nan).astype(np.float32) for k, v in stats.items()}
    return cube.nbytes, Part(blocks, ShardTable(cube.t_obs, cube.valid, cube.headers, shown))


def _measured(frame: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], *, prove: bool) -> _Measured:
    return _Measured(image_metrics(frame, decoded), _checksum(decoded) if prove else None)


def _checksum(frame: npt.NDArray[np.float32]) -> int:
    # A NaN is one whatever its other bits.
    return zlib.crc32(np.where(np.isnan(frame), np.float32(np.nan), frame).data)


def write(writer: ArchiveWriter, shard: int, parts: Sequence[Part]) -> None:
    """Write a shard from all its stretches."""
    writer.write_shard(shard, [b for p in parts for b in p.blocks], joined(parts))


def joined(parts: Sequence[Part]) -> ShardTable:
    """Return what is known of the images of several stretches."""
    return ShardTable(
        np.concatenate([p.table.t_obs for p in parts]),
        np.concatenate([p.table.valid for p in parts]),
        [row for p in parts for row in p.table.headers],
        {k: np.concatenate([p.table.stats[k] for p in parts]) for k in lat.STATS},
    )


def frames_at_a_time(pixels: int, block: int, stretches: int) -> int:
    """Return how many frames are held at a time: whole blocks, as memory allows, but enough for all lanes.

    Parameters
    ----------
    pixels
        Of a frame, in all channels.
    block
        Frames that hang together.
    stretches
        How many so long stretches are worked at side by side.
    """
    lanes = -(-count() // stretches)
    # Frames that stand alone are done by each lane alike; of those of a block some wait for others.
    unit = lanes if block == 1 else -(-lanes // BUSY) * block
    held = max(_STRETCH_PIXELS // pixels // unit, 1) * unit
    return max(min(held, _MOST_PIXELS // pixels) // block, 1) * block


def _one_ahead(pool: ThreadPoolExecutor, items: Sequence[_Item], work: Callable[[_Item], _T]) -> Iterator[_T]:
    """Do one item ahead of the one that is asked for, and never two at the same time."""
    following: Task[_T] | None = None
    for n in range(len(items)):
        now = following or Task(pool, work, items[n])
        done = now.result()
        following = Task(pool, work, items[n + 1]) if n + 1 < len(items) else None
        yield done


def _two_at_a_time(
    pool: ThreadPoolExecutor, items: Iterable[_Item], work: Callable[[_Item], _T]
) -> Iterator[_T]:
    """Work at two items at the same time; results come in order, and before what goes wrong after them."""
    begun: deque[Task[_T]] = deque()
    source = iter(items)
    failed: SunzipError | None = None
    while True:
        try:
            begun.append(Task(pool, work, next(source)))
        except StopIteration:
            break
        except SunzipError as error:
            failed = error
            break
        if len(begun) == 2:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
    if failed:
        raise failed
