"""The container: a STORED zip of one canonical form, so that every byte of it can be checked.

All bytes outside the objects follow from the objects' names, sizes and CRC-32s. Reading therefore means:
take these from the directory, write the directory again, and compare.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

from sunzip.archive._place import open_bytes
from sunzip.errors import DamagedError, InputError

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_DATE = 0x0021  # 1980-01-01, the first day that a zip can name
_MAX32 = 0xFFFFFFFF
_MAX16 = 0xFFFF
_UNIX_0644 = 0o100644 << 16

COMMENT = "sunzip sha256:"
_COMMENT_SIZE = len(COMMENT) + 64
_COMMENT = re.compile(COMMENT.encode() + rb"([0-9a-f]{64})")

MANIFEST = "manifest.json"
MAX_MEMBERS = 1 << 20
_MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")

CHUNK = 1 << 20  # bytes hashed at a time

_LAST = 1 << 14

#: What is at the beginning of every archive: the name of its first object, in the header before it.
_FIRST = b"bytes/c/0"

_WINDOW = 1 << 23  # bytes that are searched for headers at a time


@dataclass(frozen=True, slots=True)
class Member:
    """One object in the zip: `size` bytes from `start`, after the local header at `header`."""

    name: str
    size: int
    crc: int
    header: int

    @property
    def start(self) -> int:
        """Offset of the first byte of the object."""
        return self.header + len(local_header(self))


def is_name(name: str) -> bool:
    """Whether an object may be called so: relative, ASCII, no component that starts with a dot."""
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


def local_header(member: Member) -> bytes:
    """Return the bytes that stand before the object."""
    name = member.name.encode()
    big = member.size >= _MAX32
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if big else b""
    size = _MAX32 if big else member.size
    version = 45 if big else 20
    fields = (0x04034B50, version, 0, 0, 0, _DATE, member.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(*fields) + name + extra


def directory(members: Iterable[Member], end: int, comment: str) -> Iterator[bytes]:
    """Yield the bytes that follow the last object, which ends at offset `end`."""
    count = length = 0
    for m in members:
        name = m.name.encode()
        values = [m.size, m.size] if m.size >= _MAX32 else []
        values += [m.header] if m.header >= _MAX32 else []
        extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        version = 45 if values else 20
        size = min(m.size, _MAX32)
        entry = _ENTRY.pack(
            *(0x02014B50, 0x0300 | version, version, 0, 0, 0, _DATE, m.crc, size, size),
            *(len(name), len(extra), 0, 0, 0, _UNIX_0644, min(m.header, _MAX32)),
        )
        count += 1
        length += len(entry) + len(name) + len(extra)
        yield entry + name + extra
    if count >= _MAX16 or length >= _MAX32 or end >= _MAX32:
        yield _END64.pack(0x06064B50, 44, 0x0300 | 45, 45, 0, 0, count, count, length, end)
        yield _LOCATOR.pack(0x07064B50, 0, end + length, 1)
    short = min(count, _MAX16)
    text = comment.encode()
    yield _END.pack(0x06054B50, 0, 0, short, short, min(length, _MAX32), min(end, _MAX32), len(text)) + text


def ends_as_archive(file: BinaryIO) -> bool:
    """Whether the last bytes of a file are the comment of an archive's zip."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _COMMENT_SIZE))
    return _COMMENT.fullmatch(file.read(_COMMENT_SIZE)) is not None


def begins_as_archive(head: bytes) -> bool:
    """Whether some dozens of bytes are the first ones of an archive."""
    return head.startswith(b"PK\3\4") and head[_LOCAL.size :].startswith(_FIRST)


def is_archive(path: str) -> bool:
    """Whether a file on this machine is an archive, damaged at its beginning or at its end perhaps."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return begins_as_archive(file.read(_LOCAL.size + len(_FIRST))) or ends_as_archive(file)


def names_archive(path: str) -> bool:
    """Whether to take something for an archive: by its name, or because it can only be one."""
    lower = path.lower()
    return lower.endswith(".lat") or (not lower.endswith(".npz") and is_archive(path))


class Packer:
    """Writes objects one after the other, each once and in the order given, then the directory.

    It never goes back in the file, as an upload cannot.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self.members: list[Member] = []
        self.sha256: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        """Write an object with the header before it."""
        assert is_name(name), name
        member = Member(name, len(data), zlib.crc32(data), self._end)
        self._file.write(local_header(member))
        self._file.write(data)
        self._end = member.start + member.size
        self.members.append(member)
        self.sha256[name] = sha256(data).hexdigest()

    def close(self, comment: str) -> int:
        """Write the directory; return the size of the zip in bytes."""
        size = self._end
        for part in directory(self.members, self._end, comment):
            self._file.write(part)
            size += len(part)
        return size


class Reader:
    """The objects of an archive file, read at random; safe among threads and after a fork.

    Parameters
    ----------
    path
        The archive file, a path or an fsspec URL.
    anon
        Ask S3 or Google Cloud Storage without credentials.

    Raises
    ------
    InputError
        If the file is absent, unreadable or no zip at all.
    DamagedError
        If the zip's directory is missing or not of the canonical form.
    """

    _gaps = False

    def __init__(self, path: str, anon: bool = False) -> None:
        self.path = path
        self._file = open_bytes(path, anon, gaps=self._gaps)
        self.size = self._file.size
        try:
            self.members, self.manifest_sha256 = self._directory()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def pread(self, start: int, size: int) -> bytes:
        """Read `size` bytes from offset `start` of the file.

        Raises
        ------
        InputError
            If they cannot be read.
        DamagedError
            If the file has become shorter.
        """
        return self._file.read([(start, size)])[0]

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object or a range of it.

        Raises
        ------
        DamagedError
            If there is no such object or it is shorter than the range.
        """
        return self.read_many([(name, start, size)])[0]

    def read_many(self, wanted: Iterable[tuple[str, int, int | None]]) -> list[bytes]:
        """Read several objects or ranges of them together: name, start, and size if not all of the rest.

        Raises
        ------
        DamagedError
            As `read`.
        """
        ranges = []
        for name, start, size in wanted:
            member = self.members.get(name)
            if member is None:
                raise DamagedError(f"{self.path}: {name} is missing")
            size = member.size - start if size is None else size
            if not 0 <= start <= start + size <= member.size:
                raise DamagedError(f"{self.path}: {name} has {member.size} bytes, too few")
            ranges.append((member.start + start, size))
        return self._file.read(ranges)

    def _directory(self) -> tuple[dict[str, Member], str]:
        end_size = _END.size + _COMMENT_SIZE
        if self.size < end_size:
            raise DamagedError(f"{self.path}: {self.size} bytes are no archive; it is empty or truncated")
        tail = self.pread(self.size - end_size, end_size)
        signature, *_, count, length, end, comment_size = _END.unpack_from(tail)
        comment = tail[_END.size :]
        if signature != 0x06054B50 or comment_size != _COMMENT_SIZE:
            head = self.pread(0, 4)
            if head == b"PK\3\4" or COMMENT.encode() in comment:
                raise DamagedError(
                    f"{self.path}: truncated, damaged or not of sunzip: the zip directory is missing"
                )
            raise InputError(f"{self.path}: not a sunzip archive")
        if (signed := _COMMENT.fullmatch(comment)) is None:
            raise DamagedError(
                f"{self.path}: the zip comment, which holds the manifest's checksum, is damaged"
            )
        wrong = DamagedError(f"{self.path}: the zip directory is damaged, or another program packed it again")
        position = self.size - end_size
        if _MAX16 in (count,) or _MAX32 in (length, end):
            position -= _LOCATOR.size + _END64.size
            if position < 0:
                raise wrong
            *_, count, length, end = _END64.unpack(self.pread(position, _END64.size))
        if end + length != position or count > MAX_MEMBERS or length > count * (_ENTRY.size + _MAX_NAME + 28):
            raise wrong
        # Before the directory stand the manifest, a checksum long for each shard, and the root's metadata.
        self._file.hold(max(0, end - _LAST - 8 * count))
        raw = self.pread(end, self.size - end)
        members = self._entries(raw, count, length)
        if members is None or b"".join(directory(members.values(), end, comment.decode())) != raw:
            raise wrong
        last = next(reversed(members.values()), None)
        if last is None or last.start + last.size != end:
            raise wrong
        return members, signed[1].decode()

    @staticmethod
    def _entries(raw: bytes, count: int, length: int) -> dict[str, Member] | None:
        """Take names, sizes and CRCs from the directory; None if they are not ones that sunzip writes."""
        members: dict[str, Member] = {}
        at = header = 0
        for _ in range(count):
            if at + _ENTRY.size > length:
                return None
            fields = _ENTRY.unpack_from(raw, at)
            crc, size, name_size, extra_size = fields[7], fields[9], fields[10], fields[11]
            name = raw[at + _ENTRY.size : at + _ENTRY.size + name_size].decode("latin-1")
            at += _ENTRY.size + name_size
            if size == _MAX32:
                if extra_size < 20:
                    return None
                size = int.from_bytes(raw[at + 4 : at + 12], "little")
            at += extra_size
            if name in members or not is_name(name):
                return None
            member = Member(name, size, crc, header)
            members[name] = member
            header = member.start + size
        ordered = sorted(members, key=lambda name: (name == MANIFEST, name))
        return members if list(members) == ordered else None


class PatientReader(Reader):
    """The objects of a file whose directory is whole; zeros stand for what a failing disk does not give."""

    _gaps = True

    def _directory(self) -> tuple[dict[str, Member], str]:
        try:
            return super()._directory()
        except (DamagedError, InputError):
            if self._file.lost:
                raise DamagedError(f"{self.path}: the disk does not give its zip directory") from None
            raise

    @property
    def lost(self) -> int:
        """How many pages of the file the disk did not give so far."""
        return len(self._file.lost)


class Salvager(Reader):
    """The objects of a file whose directory may be damaged or cut off: those whose local headers are whole.

    What is read of them need not be whole, nor all there, nor what a failing disk has: zeros stand for that.

    Attributes
    ----------
    complete
        Whether there is a directory, which tells of all objects.
    others
        What local headers tell otherwise than the directory: in either a bit may be another one.
    """

    complete = True
    others: list[Member]
    _gaps = True
    _window = (0, b"")

    def _directory(self) -> tuple[dict[str, Member], str]:
        self.others = []
        try:
            members, sha256 = super()._directory()
        except (DamagedError, InputError) as error:
            self.complete = False
            members = self._scan()
            # Where its first and its last bytes are gone, what is between them tells that it is an archive.
            if not members and isinstance(error, InputError):
                raise
            return members, ""
        for member in members.values():
            found = self._header(member.header)
            if (
                found is not None
                and found != member
                and found.start + found.size == member.start + member.size
            ):
                self.others.append(found)
        return members, sha256

    def _scan(self) -> dict[str, Member]:
        """Take names, sizes and CRCs from the headers before objects."""
        found: dict[str, Member] = {}
        twice = set()
        at = 0
        while at < self.size and len(found) < MAX_MEMBERS:
            member = self._header(at)
            if member is None:
                at = self._signature(at + 1)
                continue
            if member.name in found:
                # One of them is called wrongly, and nobody knows which.
                twice.add(member.name)
            found[member.name] = member
            at = member.start + member.size
        return {name: member for name, member in found.items() if name not in twice}

    def _header(self, at: int) -> Member | None:
        """Read the header at an offset; None if there is none that sunzip writes."""
        raw = self._bytes(at, _LOCAL.size + _MAX_NAME + 20)
        if len(raw) < _LOCAL.size:
            return None
        signature, *_, crc, _, size, length, _ = _LOCAL.unpack_from(raw)
        name = raw[_LOCAL.size : _LOCAL.size + length].decode("latin-1")
        if signature != 0x04034B50 or not is_name(name):
            return None
        if size == _MAX32:
            size = int.from_bytes(raw[_LOCAL.size + length + 4 :][:8], "little")
        member = Member(name, size, crc, at)
        return member if raw.startswith(local_header(member)) else None

    def _signature(self, at: int) -> int:
        """Return the offset of the next four bytes with which headers begin; the size of the file if none."""
        while at < self.size:
            self._bytes(at, 4)
            start, held = self._window
            if (found := held.find(b"PK\3\4", at - start)) >= 0:
                return start + found
            at = max(start + len(held) - 3, at + 1)
        return self.size

    def _bytes(self, at: int, size: int) -> bytes:
        """Return so many bytes from an offset, or as many as there are."""
        start, held = self._window
        if not start <= at <= min(at + size, self.size) <= start + len(held):
            start, held = self._window = at, self.pread(at, min(_WINDOW, self.size - at))
        return held[at - start : at - start + size]
