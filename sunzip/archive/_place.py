"""Where archives lie, on a local disk or behind an fsspec URL: bytes at offsets, and objects put whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import threading
import uuid
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

from sunzip.errors import DamagedError, InputError, OutputError, SunzipError
from sunzip.files import keep_mode, locked, sync_folder, write_through
from sunzip.sources.storage import SPECIAL, UNSIZED, Connection, reason

Range = tuple[int, int]  # offset and size

#: Ranges that lie nearer to each other are read as one: a request costs as much time as about so many bytes.
_GAP = 1 << 16

#: The end of a remote archive that is read when it is opened. Of 10,000 frames it holds the zip's directory,
#: the manifest, the root's metadata and the times.
_TAIL = 1 << 18

#: What is fetched at once while a remote archive is packed.
_BATCH_OBJECTS = 64
_BATCH_BYTES = 1 << 25

#: So many objects are looked up one by one; for more of them the folder is listed.
_FEW = 12

#: Parts of an upload. S3 takes 10,000 of them, of 5 MiB to 5 GiB each.
_PART = 1 << 25
_MOST_PARTS = 9000

#: Threads that remove a folder: one for each of its arrays, about.
_REMOVERS = 12

#: A disk that fails does so by pages of this size, as the operating system reads them.
_PAGE = 4096

#: The names of files that are not whole yet.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")


def is_remote(path: str) -> bool:
    """Whether a path is a URL of something other than the local disk."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """Return a path that is the same in every folder; a URL is."""
    return path if "://" in path else os.path.abspath(path)


class Bytes(Protocol):
    """A file that is read at offsets: safe among threads and after a fork, as no position is shared.

    Attributes
    ----------
    size
        Its bytes.
    lost
        Numbers of the pages for which zeros stand, as far as it was read.
    """

    size: int
    lost: set[int]

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read several ranges, those beyond the end excepted: these are damage."""

    def hold(self, start: int) -> None:
        """Get ready to be asked for anything from an offset to the end."""

    def close(self) -> None:
        """Close the file; a second time does nothing."""


def open_bytes(path: str, anon: bool, *, gaps: bool = False) -> Bytes:
    """Open a file, wherever it is.

    Parameters
    ----------
    path, anon
        As for `Connection`.
    gaps
        Whether zeros stand for what a failing disk of this machine does not give.

    Raises
    ------
    InputError
        If it is absent, unreadable or a folder.
    """
    return _RemoteFile(path, anon) if is_remote(path) else _LocalFile(path, gaps)


class _LocalFile:
    def __init__(self, path: str, gaps: bool) -> None:
        self._path = path
        self._gaps = gaps
        self.lost: set[int] = set()
        file = path.removeprefix("file://")
        try:
            if os.path.isdir(file):
                raise InputError(f"{path}: is a directory, not a finished archive")
            # Else a named pipe would be waited for, and Windows would take a byte 26 for the end.
            flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(file, os.O_RDONLY | flags)
            # Who has many archives open need not close each: a process may have but so many files.
            self._closed = weakref.finalize(self, os.close, self._fd)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file{_hint(path)}") from None
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}") from e
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: {SPECIAL}")
            self.size = status.st_size
        except BaseException:
            self.close()
            raise

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        return [self._read(start, size) for start, size in ranges]

    def hold(self, start: int) -> None:
        """Do nothing: the operating system keeps what was read."""

    def close(self) -> None:
        self._fd = -1
        self._closed()

    def _read(self, start: int, size: int) -> bytes:
        if self._fd < 0:
            raise _closed(self._path)
        parts = []
        try:
            while size:
                part = self._part(start, min(size, 1 << 30))
                if not part:
                    raise DamagedError(f"{self._path}: ends at byte {start}, sooner than when it was opened")
                parts.append(part)
                start += len(part)
                size -= len(part)
        except OSError as e:
            raise InputError(f"{self._path}: cannot be read: {e.strerror}") from e
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, start: int, size: int) -> bytes:
        """Read some bytes; page by page where there are gaps, of which each is zeros."""
        try:
            return _read_at(self._fd, size, start)
        except OSError as e:
            if not self._gaps or e.errno != errno.EIO:
                raise
        page = min(size, _PAGE - start % _PAGE)
        if page < size:
            return self._part(start, page)
        self.lost.add(start // _PAGE)
        return bytes(size)


#: Held while the position of a file is used.
_seeking = threading.Lock()


def _read_at(fd: int, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, start)
    with _seeking:  # Windows
        os.lseek(fd, start, os.SEEK_SET)
        return os.read(fd, size)


class _RemoteFile:
    def __init__(self, url: str, anon: bool) -> None:
        self._url = url
        self.lost: set[int] = set()
        self._at = Connection(url, anon)
        fs, path = self._at.open()
        try:
            found = _info(fs, path)
        except FileNotFoundError as e:
            raise InputError(f"{url}: {reason(e)}{_hint(url)}") from e
        except Exception as e:  # each protocol's client raises its own kinds
            raise InputError(f"{url}: cannot be read: {reason(e)}") from e
        if found["type"] == "directory":
            raise InputError(f"{url}: is a folder, not a finished archive")
        if not isinstance(found.get("size"), int):
            raise InputError(f"{url}: {UNSIZED}")
        self.size: int = found["size"]
        self._held: tuple[int, bytes] | None = (self.size, b"")
        self.hold(max(0, self.size - _TAIL))

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        first, held = self._end()
        joined = _join((start, size) for start, size in ranges if start < first and size)
        begins, parts = [start for start, _ in joined], self._fetch(joined)
        out = []
        for start, size in ranges:
            begin, data = first, held
            if start < first and size:
                n = bisect_right(begins, start) - 1
                begin, data = begins[n], parts[n]
            out.append(data[start - begin : start - begin + size] if size else b"")
            if len(out[-1]) != size:
                raise DamagedError(f"{self._url}: ends at byte {self.size}, too soon")
        return out

    def hold(self, start: int) -> None:
        first, held = self._end()
        if start < first:
            self._held = (start, self._fetch([(start, first - start)])[0] + held)

    def close(self) -> None:
        # Its connections are those of the file system, which others use.
        self._held = None

    def _end(self) -> tuple[int, bytes]:
        """Return what is held of the end, and where it begins."""
        if self._held is None:
            raise _closed(self._url)
        return self._held

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges at the same time, a request for each."""
        if not ranges:
            return []
        fs, path = self._at.open()
        starts, ends = [a for a, _ in ranges], [a + n for a, n in ranges]
        try:
            found = _cat_ranges(fs, [path] * len(ranges), starts, ends)
        except Exception as e:
            self._check_size()
            raise InputError(f"{self._url}: cannot be read: {reason(e)}") from e
        if [len(data) for data in found] != [n for _, n in ranges]:
            self._check_size()
            raise InputError(f"{self._url}: the server does not give parts of files; fetch the file first")
        return found

    def _check_size(self) -> None:
        """Tell if what cannot be read was replaced meanwhile."""
        fs, path = self._at.open()
        size = self.size
        with contextlib.suppress(Exception):  # then what was wrong first is told
            size = _info(fs, path)["size"]
        if size != self.size:
            raise replaced(self._url)


def _info(fs: Any, path: str) -> dict[str, Any]:
    """Return what a store says of a file now."""
    from fsspec.implementations.cached import CachingFileSystem

    if isinstance(fs, CachingFileSystem):
        # It would list the folder, which servers of HTTP show, if at all, without sizes.
        fs = fs.fs
    # Whoever listed the folder a while ago may remember another size.
    fs.invalidate_cache(path)
    found: dict[str, Any] = fs.info(path)
    return found


def replaced(path: str) -> DamagedError:
    """Return what is to be said of a file that is another one than was opened."""
    return DamagedError(f"{path}: was replaced since it was opened; open it again")


def _closed(path: str) -> InputError:
    return InputError(f"{path}: was closed; open it again")


def _join(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges that cover those given, with those that lie near each other joined."""
    out: list[Range] = []
    for start, size in sorted(ranges):
        if out and start <= sum(out[-1]) + _GAP:
            first, length = out[-1]
            out[-1] = (first, max(length, start + size - first))
        else:
            out.append((start, size))
    return out


def _hint(path: str) -> str:
    return "; it is unfinished, continue with --resume" if unfinished(path) else ""


def partial_of(path: str) -> str:
    """Return what the folder is called in which an archive grows: it is beside the archive itself."""
    return f"{_followed(path)}.partial"


def gone(path: str, what: str) -> str:
    """Return what is to be said of objects in the folder that were there."""
    return f"{partial_of(path)}: {what} are gone, as if another run had removed them; use --resume"


def _followed(path: str) -> str:
    """Return where a link to a file leads, which is what is replaced; a link to nothing is itself."""
    file = path.removeprefix("file://")
    return os.path.realpath(file) if os.path.islink(file) and os.path.exists(file) else path


def unfinished(path: str) -> bool:
    """Whether an archive of this name was begun and can be continued."""
    if not is_remote(path):
        return os.path.isdir(partial_of(path.removeprefix("file://")))
    try:
        fs, root = Connection(f"{path}.partial/zarr.json").open()
        return bool(fs.exists(root))
    except Exception:  # it is only asked for the sake of a hint
        return False


class Place(Protocol):
    """The name of an archive that is being written, and the folder of objects beside it, `<name>.partial`.

    What fails raises OSError or OutputError.
    """

    def check(self) -> None:
        """Refuse a name that no archive can have."""

    def exists(self) -> bool:
        """Whether there is something of that name."""

    def begin(self) -> bool:
        """Make the folder; False if there is one already."""

    def names(self) -> set[str]:
        """Return the names directly below the folder, for which a link or a file in its place is none.

        What a run has left that was killed while it wrote an object is not among them.
        """

    def hold(self) -> None:
        """Keep other runs from the folder, and refuse one that another run keeps, where that can be done.

        It ends with `clear`, with `release`, and with the process.
        """

    def release(self) -> None:
        """Let others have the folder."""

    def empty(self) -> None:
        """Remove what is in the folder."""

    def sweep(self) -> None:
        """Remove from the folder, which is held, what a run has left that was killed while it wrote.

        One in which links lead to other folders is refused: what is written there would be outside.
        """

    def clear(self) -> None:
        """Remove the folder."""

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write objects so that at any moment each is there whole or not at all."""

    def get(self, key: str, most: int) -> bytes | None:
        """Read an object; None if there is none, or none of at most so many bytes."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the sizes of those objects that are there."""

    def contents(self, sizes: Mapping[str, int]) -> Iterator[bytes]:
        """Yield objects, whose sizes are known, in the order of the mapping."""

    def tails(self, sizes: Mapping[str, int], length: int) -> list[bytes]:
        """Return the last bytes of objects that have as many."""

    def packing(self, size: int) -> contextlib.AbstractContextManager[BinaryIO]:
        """Yield a file of about this size, which takes the name once all went well."""


def place_of(path: str) -> Place:
    """Return the place of an archive that is to be written.

    Raises
    ------
    OutputError
        If there is no such kind of store, or its package is not installed.
    """
    return _RemotePlace(path) if is_remote(path) else _LocalPlace(_followed(path.removeprefix("file://")))


def exists(path: str) -> bool:
    """Whether there is something where an archive is to be written.

    Raises
    ------
    OutputError
        If no archive can be there.
    """
    place = place_of(path)
    place.check()
    return place.exists()


class _LocalPlace:
    def __init__(self, path: str) -> None:
        self.path = path
        self.partial = f"{path}.partial"
        self._held: weakref.finalize[..., _LocalPlace] | None = None

    def __reduce__(self) -> tuple[type[_LocalPlace], tuple[str]]:
        # Those who only write into the folder rely on him who keeps it.
        return _LocalPlace, (self.path,)

    def check(self) -> None:
        if os.path.isdir(self.path):
            raise OutputError(f"{self.path}: is a directory; name a file")

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def begin(self) -> bool:
        parent = os.path.dirname(os.path.abspath(self.path))
        if not os.path.isdir(parent):
            raise OutputError(f"{self.path}: the folder {parent} does not exist; create it first")
        try:
            os.mkdir(self.partial)
        except FileExistsError:
            return False
        return True

    def names(self) -> set[str]:
        if not os.path.isdir(self.partial) or os.path.islink(self.partial):
            raise OutputError(f"{self.partial}: is in the way; remove it")
        return {name for name in os.listdir(self.partial) if not _TEMPORARY.fullmatch(name)}

    def hold(self) -> None:
        fd = locked(self.partial)
        if fd is not None:
            self._held = weakref.finalize(self, os.close, fd)

    def release(self) -> None:
        if self._held is not None:
            self._held()

    def empty(self) -> None:
        entries = list(os.scandir(self.partial))
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        # Side by side: each of many thousand objects has a folder, and the disk is waited for at every step.
        with ThreadPoolExecutor(_REMOVERS) as pool:
            list(pool.map(shutil.rmtree, folders))
        for entry in entries:
            if entry.path not in folders:
                os.unlink(entry.path)

    def sweep(self) -> None:
        for folder, below, files in os.walk(self.partial):
            for path in (os.path.join(folder, name) for name in below):
                if os.path.islink(path):
                    raise OutputError(f"{path}: is a link to another folder, outside this one; remove it")
            # Without locks another run may be about to rename them.
            if self._held is None:
                continue
            for name in filter(_TEMPORARY.fullmatch, files):
                with contextlib.suppress(FileNotFoundError):  # a worker of a run that was killed goes on
                    os.unlink(os.path.join(folder, name))

    def clear(self) -> None:
        self.empty()
        os.rmdir(self.partial)
        self.release()

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            file = self._file(key)
            folder = os.path.dirname(file)
            os.makedirs(folder, exist_ok=True)
            temporary = os.path.join(folder, _temporary())
            with _removed_on_error(temporary):
                write_through(temporary, data)
                os.replace(temporary, file)

    def get(self, key: str, most: int) -> bytes | None:
        if self.sizes([key]).get(key, most + 1) <= most:
            with contextlib.suppress(FileNotFoundError), open(self._file(key), "rb") as f:
                return f.read()
        return None

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        found = {}
        for key in keys:
            with contextlib.suppress(OSError):
                status = os.stat(self._file(key))
                # A named pipe would be waited for, and a device may have no end.
                if stat.S_ISREG(status.st_mode):
                    found[key] = status.st_size
        return found

    def contents(self, sizes: Mapping[str, int]) -> Iterator[bytes]:
        for key in sizes:
            with open(self._file(key), "rb") as f:
                yield f.read()

    def tails(self, sizes: Mapping[str, int], length: int) -> list[bytes]:
        out = []
        for key, size in sizes.items():
            with open(self._file(key), "rb") as f:
                f.seek(size - length)
                out.append(f.read())
        return out

    @contextlib.contextmanager
    def packing(self, size: int) -> Iterator[BinaryIO]:
        pack = os.path.join(self.partial, _temporary())
        # On a full disk it would be in the way of what the user does next.
        with _removed_on_error(pack):
            with open(pack, "wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            keep_mode(self.path, pack)
            os.replace(pack, self.path)
        sync_folder(os.path.dirname(os.path.abspath(self.path)))

    def _file(self, key: str) -> str:
        return os.path.join(self.partial, *key.split("/"))


class _RemotePlace:
    """In an object store: objects appear whole, folders are what their names begin with."""

    def __init__(self, url: str) -> None:
        self.url = url
        if "::" in url:
            raise OutputError(f"{url}: archives cannot be written into other files; write it beside them")
        if url.startswith(("http://", "https://")):
            raise OutputError(
                f"{url}: archives cannot be written over HTTP; write to disk or to an object store (s3://…)"
            )
        try:
            self._at = Connection(url)
        except InputError as e:
            raise OutputError(str(e)) from e

    def check(self) -> None:
        _, path = self._at.open()
        if self.url.endswith("/") or not path.strip("/"):
            raise OutputError(f"{self.url}: is a folder; name an object in it")

    def exists(self) -> bool:
        with self._errors() as (fs, path):
            fs.invalidate_cache(path)
            return bool(fs.exists(path))

    def begin(self) -> bool:
        return not self._found()

    def names(self) -> set[str]:
        return {key.partition("/")[0] for key in self._found()}

    def hold(self) -> None:
        """Do nothing: object stores know no locks."""

    def release(self) -> None:
        """Do nothing."""

    def empty(self) -> None:
        self.clear()

    def sweep(self) -> None:
        """Do nothing: objects are there whole or not at all."""

    def clear(self) -> None:
        with self._errors() as (fs, path), contextlib.suppress(FileNotFoundError):
            fs.invalidate_cache(f"{path}.partial")
            fs.rm(f"{path}.partial", recursive=True)

    def put(self, objects: Mapping[str, bytes]) -> None:
        with self._errors() as (fs, path):
            fs.pipe({f"{path}.partial/{key}": data for key, data in objects.items()})

    def get(self, key: str, most: int) -> bytes | None:
        with self._errors() as (fs, path):
            try:
                data: bytes = fs.cat_file(f"{path}.partial/{key}")
            except FileNotFoundError:
                return None
            return data if len(data) <= most else None

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        wanted = list(keys)
        if len(wanted) > _FEW:
            found = self._found()
            return {key: found[key] for key in wanted if key in found}
        out = {}
        with self._errors() as (fs, path):
            for key in wanted:
                fs.invalidate_cache(f"{path}.partial/{key}")
                with contextlib.suppress(FileNotFoundError):
                    out[key] = int(fs.info(f"{path}.partial/{key}")["size"])
        return out

    def contents(self, sizes: Mapping[str, int]) -> Iterator[bytes]:
        batch: dict[str, Range] = {}
        taken = 0
        for key, size in sizes.items():
            if len(batch) == _BATCH_OBJECTS or taken + size > _BATCH_BYTES:
                yield from self._read(batch)
                batch, taken = {}, 0
            batch[key] = (0, size)
            taken += size
        yield from self._read(batch)

    def tails(self, sizes: Mapping[str, int], length: int) -> list[bytes]:
        return self._read({key: (size - length, length) for key, size in sizes.items()})

    @contextlib.contextmanager
    def packing(self, size: int) -> Iterator[BinaryIO]:
        with self._errors() as (fs, path):
            part = max(_PART, size // _MOST_PARTS)
            file: Any = fs.open(path, "wb", autocommit=False, block_size=part)
            try:
                yield file
                file.close()
                file.commit()
            except BaseException:
                # Parts that nobody completes or gives up are kept, and paid for.
                with contextlib.suppress(Exception):
                    file.discard()
                with contextlib.suppress(Exception):
                    file.closed = True  # or it would upload the rest when it is forgotten
                raise

    def _read(self, ranges: Mapping[str, Range]) -> list[bytes]:
        if not ranges:
            return []
        with self._errors() as (fs, path):
            paths = [f"{path}.partial/{key}" for key in ranges]
            starts, ends = [a for a, _ in ranges.values()], [a + n for a, n in ranges.values()]
            try:
                return _cat_ranges(fs, paths, starts, ends)
            except FileNotFoundError as e:
                # They were there a moment ago, and nothing keeps another run from removing them.
                raise OutputError(gone(self.url, "objects")) from e

    def _found(self) -> dict[str, int]:
        """Return all objects in the folder and their sizes."""
        with self._errors() as (fs, path):
            fs.invalidate_cache(f"{path}.partial")
            try:
                found = fs.find(f"{path}.partial", detail=True)
            except FileNotFoundError:
                return {}
            prefix = len(f"{path}.partial/")
            return {name[prefix:]: int(entry["size"]) for name, entry in found.items()}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the target's name in it; name what goes wrong."""
        try:
            yield self._at.open()
        except SunzipError:
            raise
        except Exception as e:  # each protocol's client raises its own kinds
            raise OutputError(f"{self.url}: cannot be written: {reason(e, writing=True)}") from e


def _temporary() -> str:
    """Return a name for a file that is not whole yet, which `_TEMPORARY` knows again."""
    return f".{uuid.uuid4().hex}"


@contextlib.contextmanager
def _removed_on_error(file: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file)
        raise


def _part_of(fs: Any, path: str, start: int, end: int) -> bytes:
    with fs.open(path, "rb") as file:
        file.seek(start)
        data: bytes = file.read(end - start)
        return data


def _cat_ranges(fs: Any, paths: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Read ranges at the same time; older releases of fsspec return errors whatever they are asked for."""
    from fsspec.implementations.cached import WholeFileCacheFileSystem

    if isinstance(fs, WholeFileCacheFileSystem):
        # Its own fails in older releases for a file that is not there yet. Once it is, it is a local one.
        return [_part_of(fs, *wanted) for wanted in zip(paths, starts, ends, strict=True)]
    found: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
    for data in found:
        if isinstance(data, Exception):
            raise data
    return found
