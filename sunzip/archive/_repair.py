"""The best archive that damaged ones can make: what is whole is kept, what is lost is marked as missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sunzip.archive._place import is_remote, partial_of, place_of
from sunzip.archive._salvage import Merged, Source, refuse_other
from sunzip.archive._verify import Problem, Progress, verify
from sunzip.archive._write import os_errors, pack
from sunzip.display import Report
from sunzip.errors import DamagedError, InputError, OutputError


@dataclass(frozen=True, slots=True)
class Taken:
    """How much of an archive comes from one file: whole objects, and single blocks of damaged shards."""

    path: str
    objects: int
    blocks: int


@dataclass(slots=True)
class RepairReport(Report):
    """What `repair` did.

    Attributes
    ----------
    path
        The archive that was to be repaired.
    out
        The one that was written; None if there was nothing to repair.
    problems
        What is wrong with `path`, as `verify` tells it.
    taken
        What was taken from it and from each copy.
    mended
        Objects in which one flipped bit was flipped back, which a checksum bears out.
    made
        Objects that were made anew from others, with nothing lost.
    lost
        What could not be saved; empty if nothing was lost.
    images
        How many images are missing now that were there; -1 if that, too, is lost.
    same
        Whether the result is byte for byte what was packed, by its SHA-256.
    """

    path: str
    out: str | None
    problems: list[Problem] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    lost: list[Problem] = field(default_factory=list)
    images: int = 0
    same: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {"ok": self.ok} | asdict(self)


def repair(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    copies: Sequence[str | os.PathLike[str]] = (),
    anon: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Write the best whole archive that can be had of a damaged one.

    Images that cannot be saved are marked as missing in the result. An archive that is whole is left alone,
    and nothing is written.

    Parameters
    ----------
    path
        The archive, a local path or an fsspec URL. It is only read.
    out
        Where to write the result, a path or URL; it appears there once it is whole.
    copies
        Other copies of the same archive, damaged themselves perhaps, to take from what `path` lacks.
    anon
        Ask S3 or Google Cloud Storage without credentials.
    force
        Replace a file at `out`.
    progress
        Called now and then with the bytes read so far and in all.

    Returns
    -------
    report
        Its `lost` tells what could not be saved.

    Raises
    ------
    InputError
        If a file is absent, unreadable or no archive, or a copy is one of another archive.
    DamagedError
        If so much is lost that no archive can be made: nothing is written.
    UnsupportedError
        If the format is newer than this program.
    OutputError
        If the target exists or cannot be written.

    Examples
    --------
    >>> report = repair("damaged.lat", "saved.lat", copies=["other.lat"])  # doctest: +SKIP
    >>> report.ok, report.images  # doctest: +SKIP
    (True, 0)
    """
    path, out = os.fspath(path), os.fspath(out)
    others = [os.fspath(copy) for copy in copies]
    if any(_is_same_file(out, name) for name in (path, *others)):
        raise OutputError(f"{out}: is the damaged archive itself, or a copy of it; name another target")
    place = place_of(out)
    with os_errors(out):
        place.check()
        if not force and place.exists():
            raise OutputError(f"{out}: exists; remove it or use --force")
    try:
        problems = verify(path, progress, anon=anon).problems
    except (DamagedError, InputError) as error:
        # If it is none or cannot be opened, who looks for its objects is told so again.
        what = "directory" if isinstance(error, DamagedError) else "file"
        problems = [Problem(what, str(error).removeprefix(f"{path}: "))]
    if not problems:
        return RepairReport(path, None, same=True)
    sources: list[Source] = []
    try:
        for name in (path, *others):
            sources.append(Source(name, anon, progress or (lambda *_: None)))
            if len(sources) > 1:
                refuse_other(sources[0], sources[-1])
        merged = Merged(sources)
        report = RepairReport(path, out, problems)
        merged.salvage(report)
        with os_errors(out):
            if not place.begin() and place.names():
                raise OutputError(
                    f"{partial_of(out)}: is in the way, an unfinished archive perhaps; remove it"
                )
            place.hold()
            try:
                place.empty()
                with place.packing(sum(merged.size(key) or 0 for key in merged.keys)) as file:
                    packed = pack(file, merged.objects(), merged.grid, merged.attributes, path)
            finally:
                place.clear()
        report.same = packed.identity in {s.identity for s in sources}
        if report.same:
            # A name with a flipped bit may have been taken for an object that is no more.
            report.lost = []
        report.taken = [
            Taken(s.path, sum(o is s for o in merged.taken.values()), s.blocks_taken) for s in sources
        ]
        return report
    finally:
        for source in sources:
            source.reader.close()


def _is_same_file(one: str, other: str) -> bool:
    if is_remote(one) or is_remote(other):
        return one == other
    return os.path.realpath(one.removeprefix("file://")) == os.path.realpath(other.removeprefix("file://"))
