"""The archive as zarr sees it; apart from the rest, as it is the only part that imports zarr."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from sunzip.archive._place import is_remote
from sunzip.archive._zip import MANIFEST

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

    from sunzip.archive._read import Archive


class ArchiveStore(Store):
    """Read-only Zarr store over an open `Archive`."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    supports_consolidated_metadata = False  # or xarray warns that there is none

    def __init__(self, archive: Archive) -> None:
        super().__init__(read_only=True)
        self._archive = archive
        self._remote = is_remote(archive.path)
        # What is no part of the hierarchy would only make zarr warn.
        members = archive._reader.members.items()
        self._members = {k: m for k, m in members if k != MANIFEST and not k.startswith("model/")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArchiveStore) and other._which() == self._which()

    def _which(self) -> tuple[str, str]:
        # A pickled one has the whole path, and what is called so now may be another archive than before.
        return self._archive._absolute, self._archive.identity

    def __str__(self) -> str:
        return f"sunzip://{self._archive.path}"

    def __reduce__(self) -> tuple[type[ArchiveStore], tuple[Archive]]:
        return ArchiveStore, (self._archive,)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object or a range of it; None if there is no such object."""
        if self._remote:
            # Where it takes a while, others must not wait for it.
            return await asyncio.to_thread(self._read, key, prototype, byte_range)
        return self._read(key, prototype, byte_range)

    def _read(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        member = self._members.get(key)
        if member is None:
            return None
        start, stop = 0, member.size
        match byte_range:
            case RangeByteRequest():
                start, stop = byte_range.start, min(byte_range.end, stop)
            case OffsetByteRequest():
                start = byte_range.offset
            case SuffixByteRequest():
                start = stop - byte_range.suffix
            case None:
                pass
            case _:
                raise ValueError(f"Unexpected byte_range, got {byte_range}.")
        start = min(max(start, 0), stop)
        return prototype.buffer.from_bytes(self._archive._reader.read(key, start, stop - start))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several ranges at the same time."""
        reads = [self.get(key, prototype, byte_range) for key, byte_range in key_ranges]
        return list(await asyncio.gather(*reads))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return key in self._members

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: an archive is written once."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: an archive is written once."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield the key of every object."""
        for key in self._members:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that starts so."""
        for key in self._members:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a folder."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        names = {key[len(folder) :].partition("/")[0] for key in self._members if key.startswith(folder)}
        for name in sorted(names):
            yield name
