"""Is an archive whole? Every byte is checked, and what is damaged is named by object, frame and time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.archive import _layout as layout
from sunzip.archive._layout import Grid
from sunzip.archive._read import Manifest, missing, read_root, read_summary
from sunzip.archive._shard import ShardChecker
from sunzip.archive._zip import CHUNK, MANIFEST, PatientReader, Reader, local_header
from sunzip.display import Report
from sunzip.errors import DamagedError

_PIECE = 1 << 23  # bytes fetched at a time
_HELD = 1 << 26  # bytes of a shard that is fetched as a whole

#: (bytes looked at, of how many).
Progress = Callable[[int, int], object]


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


def problem_of(key: str, what: str, frames: slice | None, time: npt.NDArray[np.datetime64] | None) -> Problem:
    """Return a problem with the times of its frames, where these are known."""
    if frames is None:
        return Problem(key, what)
    first, last = frames.start, frames.stop - 1
    span = None if time is None else (f"{time[first]}Z", f"{time[last]}Z")
    return Problem(key, what, (first, last + 1), span)


@dataclass(slots=True)
class VerifyReport(Report):
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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {"ok": self.ok} | asdict(self)


def verify(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
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
    reader = PatientReader(os.fspath(path), anon)
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


class _Verifier(ShardChecker):
    def __init__(self, reader: PatientReader, progress: Progress) -> None:
        super().__init__(reader.path)
        self.reader = reader
        self.progress = progress
        self.report = VerifyReport(reader.path, bytes=reader.size)
        self.attributes: dict[str, Any] = {}
        self.grid: Grid | None = None
        self.time: npt.NDArray[np.datetime64] | None = None
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
                self.hold(self.grid.shard_objects(shard))
                self.report.blocks += self.shard(self.grid, self.attributes["model"]["sha256"], shard)
            self.digests(manifest, self.grid)
        self.model()
        if self.reader.lost:
            # What it holds, if that was zeros, no checksum misses.
            self.problem("file", f"the disk does not give {self.reader.lost} of its pages")
        if self.report.ok and self.grid is not None:
            self.summary(self.grid)
        return self.report

    def problem(self, key: str, what: object, frames: slice | None = None) -> None:
        """Note a problem of an object, in the words of an error if that is what is given."""
        if frames is None:
            frames = self.frames_of(key)
        text = str(what).removeprefix(f"{self.reader.path}: ").removeprefix(key).removeprefix(":").strip()
        self.report.problems.append(problem_of(key, text, frames, self.time))

    def frames_of(self, key: str) -> slice | None:
        """Return the frames of the shard that an object belongs to."""
        match key.split("/"):
            case [name, "c", number, *_] if self.grid is not None and name not in layout.COORDINATES:
                shard = int(number) if number.isdecimal() and len(number) < 10 else self.grid.shards
                return self.grid.frames_of(shard) if shard < self.grid.shards else None
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

    def size(self, key: str) -> int | None:
        """Return the bytes of an object; None if there is none."""
        member = self.reader.members.get(key)
        return None if member is None else member.size

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

    def summary(self, grid: Grid) -> None:
        """Hold the root's summary against an archive that is whole."""
        told = self.attempt("zarr.json", partial(read_summary, self.reader, self.attributes, grid))
        if told and self.time is not None and told["time"] != layout.first_and_last(self.time):
            self.problem("zarr.json", "its summary tells of other times than the archive has")

    def model(self) -> None:
        keys = [k for k in self.reader.members if k.startswith("model/")]
        self.report.model_embedded = bool(keys)
        lost = [key for key in layout.OF_MODEL if keys and key not in keys]
        for key in lost:
            self.problem(key, "is missing")
        if self.grid is None or not keys or lost:
            return
        files = {k: self.attempt(k, partial(self.whole, k, most)) for k, most in layout.OF_MODEL.items()}
        found = {k: data for k, data in files.items() if data is not None}
        if len(found) == len(files) and layout.model_sha256(found) != self.attributes["model"]["sha256"]:
            self.problem("model/", "the embedded model is not the one that the archive was coded with")
