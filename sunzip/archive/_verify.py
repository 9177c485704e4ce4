"""Is an archive whole? Every byte is checked, and what is damaged is named by object, frame and time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.archive import _layout as layout
from sunzip.archive._json import load
from sunzip.archive._keywords import decode
from sunzip.archive._layout import Grid
from sunzip.archive._read import Manifest, missing, read_root
from sunzip.archive._write import model_sha256
from sunzip.archive._zip import CHUNK, MANIFEST, Reader, local_header
from sunzip.channels import NAMES
from sunzip.errors import DamagedError, UnsupportedError
from sunzip.frame import Block

_T = TypeVar("_T")

_PIECE = 1 << 23  # bytes fetched at a time
_HELD = 1 << 26  # bytes of a shard that is fetched as a whole


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    object
        Key of the object.
    what
        What is wrong with it.
    frames
        First frame and the one after the last that it concerns; None if no frame in particular.
    time
        Nominal times of the first and the last of these frames, if known.
    """

    object: str
    what: str
    frames: tuple[int, int] | None = None
    time: tuple[str, str] | None = None

    def __str__(self) -> str:
        if self.frames is None:
            return f"{self.object}: {self.what}"
        first, last = self.frames[0], self.frames[1] - 1
        which = f"frame {first}" if first == last else f"frames {first} to {last}"
        if self.time is not None:
            which += f", {self.time[0]}" + ("" if first == last else f" to {self.time[1]}")
        return f"{self.object}: {self.what} ({which})"


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    path
        The archive.
    problems
        All that is wrong; empty if the archive is whole.
    objects, bytes, blocks, frames
        How many were checked.
    model_embedded
        Whether the archive holds its model.
    """

    path: str
    problems: list[Problem] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    blocks: int = 0
    frames: int = 0
    model_embedded: bool = False

    @property
    def ok(self) -> bool:
        """Whether the archive is whole."""
        return not self.problems


def verify(
    path: str | os.PathLike[str],
    progress: Callable[[int, int], object] | None = None,
    *,
    anon: bool = False,
) -> VerifyReport:
    """Check every byte of an archive.

    Parameters
    ----------
    path
        The archive, a local path or an fsspec URL; of a remote one the coded blocks are fetched twice.
    progress
        Called now and then with the bytes checked so far and in all.
    anon
        Ask S3 or Google Cloud Storage without credentials.

    Returns
    -------
    report
        It lists every problem, not just the first.

    Raises
    ------
    InputError
        If the file is absent, unreadable or no archive.
    DamagedError
        If the zip's directory is missing or damaged, so that not even the objects are known.
    UnsupportedError
        If the format is newer than this program.
    """
    reader = Reader(os.fspath(path), anon)
    try:
        return _Verifier(reader, progress or (lambda *_: None)).run()
    finally:
        reader.close()


class _Stream:
    """The file from its beginning, fetched in large pieces: an object store takes time for each request."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._end = 0
        self._held = memoryview(b"")

    def next(self, size: int) -> Iterator[memoryview]:
        """Yield the next bytes, so many in all."""
        while size:
            if not self._held:
                piece = min(_PIECE, self._reader.size - self._end)
                self._held = memoryview(self._reader.pread(self._end, piece))
                self._end += piece
            part, self._held = self._held[: min(size, CHUNK)], self._held[min(size, CHUNK) :]
            size -= len(part)
            yield part


class _Verifier:
    def __init__(self, reader: Reader, progress: Callable[[int, int], object]) -> None:
        self.reader = reader
        self.progress = progress
        self.report = VerifyReport(reader.path, bytes=reader.size)
        self.attributes: dict[str, Any] = {}
        self.grid: Grid | None = None
        self.time: npt.NDArray[np.datetime64] | None = None
        self.damaged: set[str] = set()
        self.sha256: dict[str, str] = {}
        self.held: dict[str, bytes] = {}

    def run(self) -> VerifyReport:
        manifest = self.manifest()
        if manifest is not None:
            self.root(manifest)
        if self.grid is not None:
            self.time = self.attempt("time/c/0", self.times)
        self.all_bytes()
        if manifest is not None and self.grid is not None:
            for key, how in missing(self.reader, manifest, self.grid).items():
                self.problem(key, how)
            self.metadata(self.grid)
            for shard in range(self.grid.shards):
                self.shard(self.grid, shard)
            self.digests(manifest, self.grid)
        self.model()
        return self.report

    def problem(self, key: str, what: object, frames: slice | None = None) -> None:
        """Note a problem of an object, in the words of an error if that is what is given."""
        if frames is None:
            frames = self.frames_of(key)
        text = str(what).removeprefix(f"{self.reader.path}: ").removeprefix(key).removeprefix(":").strip()
        span = None if frames is None else (frames.start, frames.stop)
        time = None
        if self.time is not None and frames is not None:
            time = (f"{self.time[frames.start]}Z", f"{self.time[frames.stop - 1]}Z")
        self.report.problems.append(Problem(key, text, span, time))

    def frames_of(self, key: str) -> slice | None:
        """Return the frames of the shard that an object belongs to."""
        match key.split("/"):
            case [name, "c", number, *_] if self.grid is not None and name not in layout.COORDINATES:
                shard = int(number) if number.isdecimal() and len(number) < 10 else self.grid.shards
                return self.grid.frames_of(shard) if shard < self.grid.shards else None
        return None

    def attempt(self, key: str, check: Callable[[], _T]) -> _T | None:
        """Return what a check returns; note a problem and return None if it fails or the object is bad."""
        if key in self.damaged or key not in self.reader.members:
            return None
        try:
            return check()
        except (DamagedError, UnsupportedError) as e:
            self.damaged.add(key)
            self.problem(key, e)
            return None

    def manifest(self) -> Manifest | None:
        try:
            return Manifest.read(self.reader)
        except DamagedError as e:
            self.problem(MANIFEST, e)
            return None

    def root(self, manifest: Manifest) -> None:
        try:
            self.attributes, self.grid = read_root(self.reader, manifest)
        except DamagedError as e:
            self.damaged.add("zarr.json")
            self.problem("zarr.json", e)
        else:
            self.report.frames = self.grid.frames

    def times(self) -> npt.NDArray[np.datetime64]:
        assert self.grid is not None
        return layout.read_time(self.chunk("time/c/0", 8 * self.grid.frames), "time/c/0")

    def chunk(self, key: str, size: int | None) -> bytes:
        return layout.unzstd(self.read(key), f"{self.reader.path}: {key}", size)

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object or a range of it, as the reader does, or take it from the shard that is held."""
        held = self.held.get(key)
        if held is None or start + (size or 0) > len(held):
            return self.reader.read(key, start, size)
        return held[start:] if size is None else held[start : start + size]

    def hold(self, keys: Iterable[str]) -> None:
        """Fetch objects together that will be looked at one by one, unless they are too large."""
        self.held = {}
        members = {key: self.reader.members[key] for key in keys if key in self.reader.members}
        if sum(m.size for m in members.values()) <= _HELD:
            found = self.reader.read_many((key, 0, None) for key in members)
            self.held = dict(zip(members, found, strict=True))

    def all_bytes(self) -> None:
        """Compare every object, and the header before it, with the zip's directory."""
        done = 0
        file = _Stream(self.reader)
        for key, member in self.reader.members.items():
            header = local_header(member)
            if b"".join(file.next(len(header))) != header:
                self.problem(key, "the zip header before it is damaged")
            crc, digest = 0, sha256()
            for data in file.next(member.size):
                crc = zlib.crc32(data, crc)
                digest.update(data)
                done += len(data)
                self.progress(done, self.reader.size)
            self.report.objects += 1
            self.sha256[key] = digest.hexdigest()
            if crc != member.crc and key not in self.damaged and key != MANIFEST:
                self.damaged.add(key)
                # Which blocks of a shard are hit is said when each is looked at.
                if self.grid is None or not key.startswith("cube/c/"):
                    self.problem(key, "its bytes are damaged")
        self.progress(self.reader.size, self.reader.size)

    def digests(self, manifest: Manifest, grid: Grid) -> None:
        """Compare the sha256s; where no damage was found, the objects were exchanged."""
        shards, rest = grid.digests(self.sha256)
        for shard, (found, stated) in enumerate(zip(shards, manifest.shards, strict=True)):
            keys = set(grid.shard_objects(shard))
            if found != stated and not keys & self.damaged and keys <= self.sha256.keys():
                self.problem(f"cube/c/{shard}", "objects of this shard are not those that were packed")
        if rest != manifest.rest and self.report.ok:
            self.problem(MANIFEST, "the sha256 of all objects outside shards is not the one it states")

    def metadata(self, grid: Grid) -> None:
        """Compare each zarr.json and each coordinate with what the root's attributes demand."""
        self.hold([f"{name}/zarr.json" for name in layout.ARRAYS] + [f"{n}/c/0" for n in layout.COORDINATES])
        for name, tree in layout.array_metadata(grid, self.attributes).items():
            key = f"{name}/zarr.json"
            if (found := self.attempt(key, partial(self.json, key))) is not None and found != tree:
                self.problem(key, "is not the metadata that the archive must have")
        if self.time is None:
            return
        for name, content in layout.coordinates(grid, self.time).items():
            key = f"{name}/c/0"
            raw = self.attempt(key, partial(self.chunk, key, len(content)))
            if raw is not None and raw != content:
                self.problem(key, "is not the coordinate that the archive must have")

    def json(self, key: str) -> dict[str, Any]:
        return load(self.read(key), key)

    def shard(self, grid: Grid, shard: int) -> None:
        """Decode the tables of a shard and look at each of its blocks."""
        self.hold(grid.shard_objects(shard))
        frames = grid.frames_of(shard)
        tables: dict[str, npt.NDArray[Any]] = {}
        for name in layout.TABLES:
            key = f"{name}/c/{shard}/0"
            if (table := self.attempt(key, partial(self.table, grid, name, key))) is not None:
                tables[name] = table[: frames.stop - frames.start]
        key = f"keywords/c/{shard}"
        text = self.attempt(key, lambda: layout.one_text(self.chunk(key, None), key))
        if text is not None and "t_obs" in tables:
            self.attempt(key, lambda: decode(text, grid.channels, tables["t_obs"], key))
        self.blocks(grid, shard, tables.get("valid"))

    def table(self, grid: Grid, name: str, key: str) -> npt.NDArray[Any]:
        shape = (grid.frames_per_shard, len(grid.channels))
        return layout.read_table(name, self.chunk(key, layout.table_size(name, shape)), shape, key)

    def blocks(self, grid: Grid, shard: int, valid: npt.NDArray[np.bool_] | None) -> None:
        key = grid.shard_objects(shard)[-1]
        member = self.reader.members.get(key)
        if member is None:
            return
        before = len(self.report.problems)
        numbers, tail = grid.blocks_of(shard), grid.index_size
        try:
            raw = self.read(key, max(member.size - tail, 0), tail)
            index = layout.read_shard_index(raw, len(numbers), member.size, key)
        except DamagedError as e:
            self.problem(key, e)
            return
        for number, (start, size) in zip(numbers, index, strict=True):
            first = number * grid.frames_per_block
            frames = slice(first, min(first + grid.frames_per_block, grid.frames))
            rows = None if valid is None else valid[first - numbers.start * grid.frames_per_block :]
            try:
                self.block(grid, self.read(key, int(start), int(size)), rows)
            except (DamagedError, UnsupportedError) as e:
                self.problem(key, f"block {number}: {str(e).removeprefix('block: ')}", frames)
            self.report.blocks += 1
        sizes_key = f"bytes/c/{shard}"
        sizes = self.attempt(sizes_key, partial(self.chunk, sizes_key, 4 * grid.blocks_per_shard))
        if sizes is not None and (np.frombuffer(sizes, "<u4")[: len(numbers)] != index[:, 1]).any():
            self.problem(sizes_key, "states other sizes of blocks than the shard's index")
        if key in self.damaged and len(self.report.problems) == before:
            self.problem(key, "its bytes are damaged")

    def block(self, grid: Grid, data: bytes, valid: npt.NDArray[np.bool_] | None) -> None:
        """Check one block by itself, and against what the archive says of it."""
        block = Block.unpack(data)
        if block.model != bytes.fromhex(self.attributes["model"]["sha256"])[:4]:
            raise DamagedError(f"is coded with model {block.model.hex()}…, not with the archive's")
        if block.shape != grid.shape or len(block.masks) != grid.frames_per_block:
            raise DamagedError(f"holds {len(block.masks)} frames of {block.shape} pixels")
        if valid is None:
            return
        bits = np.array([1 << NAMES.index(name) for name in grid.channels])
        stated = (valid[: grid.frames_per_block] * bits).sum(axis=1).tolist()
        if list(block.masks) != stated + [0] * (len(block.masks) - len(stated)):
            raise DamagedError("holds other images than the table `valid` says")

    def model(self) -> None:
        keys = [k for k in self.reader.members if k.startswith("model/")]
        self.report.model_embedded = bool(keys)
        needed = [f"model/{name}" for name in layout.MODEL_FILES]
        if self.grid is None or self.damaged.intersection(needed) or not set(needed) <= set(keys):
            return
        if model_sha256({k: self.reader.read(k) for k in needed}) != self.attributes["model"]["sha256"]:
            self.problem("model/", "the embedded model is not the one that the archive was coded with")
