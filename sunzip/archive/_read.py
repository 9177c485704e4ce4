"""Reading an archive at random: one frame costs the bytes of its block, and damage never reads as NaN."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from sunzip.archive import _layout as layout
from sunzip.archive._json import MAX_BYTES, load
from sunzip.archive._keywords import Headers, decode
from sunzip.archive._layout import ArchiveSpec, Grid, ShardTable
from sunzip.archive._place import absolute, replaced
from sunzip.archive._zip import MANIFEST, Reader
from sunzip.bounds import bounds_in, told
from sunzip.channels import any_of_aia
from sunzip.cube import Header
from sunzip.display import Shown, size, span
from sunzip.errors import MEND, DamagedError, SunzipError, UnsupportedError
from sunzip.weights import FILES

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

_CACHED_HEADERS = 8  # shards
_CACHED_CHUNKS = 128  # of tables
_TOGETHER = 1 << 25  # bytes of objects that are read at a time


@dataclass(frozen=True, slots=True)
class Manifest:
    """How many objects there are and their checksums; the zip's comment vouches for it.

    Attributes
    ----------
    frames, blocks, objects
        Their numbers.
    shards
        The sha256 of each shard's objects, as `Grid.digests` makes them.
    rest
        The sha256 of all other objects.
    """

    frames: int
    blocks: int
    objects: int
    shards: list[str]
    rest: str

    @classmethod
    def read(cls, reader: Reader) -> Manifest:
        """Read it from an archive.

        Raises
        ------
        DamagedError
            If it is not the one that the archive was packed with.
        UnsupportedError
            If the archive's format is newer than this program.
        """
        where = f"{reader.path}: {MANIFEST}"
        _refuse_larger(reader, [MANIFEST], MAX_BYTES)
        data = reader.read(MANIFEST)
        if sha256(data).hexdigest() != reader.manifest_sha256:
            raise DamagedError(f"{where} is damaged")
        return cls.parse(data, reader.path)

    @classmethod
    def parse(cls, data: bytes, path: str) -> Manifest:
        """Read it from the bytes of its object; `path` is the archive's, for messages.

        Raises
        ------
        DamagedError
            If it is not of the form that sunzip writes.
        UnsupportedError
            If the archive's format is newer than this program.
        """
        where = f"{path}: {MANIFEST}"
        tree = load(data, where)
        version = tree.pop("format", None)
        if type(version) is int and version > layout.FORMAT:
            raise UnsupportedError(layout.newer(path, version))
        match tree:
            case {
                "frames": int(),
                "blocks": int(),
                "objects": int(),
                "shards": list(shards),
                "rest": str(rest),
                **others,
            } if version == layout.FORMAT and not others and all(map(_is_sha256, [*shards, rest])):
                return cls(**tree)
        raise DamagedError(f"{where}: not of the form that sunzip writes")


def missing(reader: Reader, manifest: Manifest, grid: Grid) -> dict[str, str]:
    """Return the objects that an archive must hold and does not, and what is wrong with them."""
    out = dict.fromkeys(sorted(grid.objects() - reader.members.keys()), "is missing")
    found = len(reader.members) - 1
    if not out and found != manifest.objects:
        out[MANIFEST] = f"counts {manifest.objects} objects where there are {found}"
    return out


def read_root(reader: Reader, manifest: Manifest) -> tuple[dict[str, Any], Grid]:
    """Read the root's attribute ``sunzip`` and the grid that follows from it.

    Raises
    ------
    DamagedError
        If it is damaged or disagrees with the manifest.
    """
    where = f"{reader.path}: zarr.json"
    attributes, grid = parse_root(checked(reader, "zarr.json", MAX_BYTES), where)
    if (manifest.frames, manifest.blocks, len(manifest.shards)) != (grid.frames, grid.blocks, grid.shards):
        raise DamagedError(f"{where}: the numbers of frames, blocks and shards are not the manifest's")
    refuse_absent(grid, len(reader.members), where)
    return attributes, grid


def parse_root(data: bytes, where: str) -> tuple[dict[str, Any], Grid]:
    """Read the same from the bytes of the root's ``zarr.json``; messages start with `where`.

    Raises
    ------
    DamagedError
        If they are not such.
    """
    try:
        attributes = load(data, where)["attributes"]["sunzip"]
    except (KeyError, TypeError) as e:
        raise DamagedError(f"{where}: has no attributes of sunzip") from e
    if not isinstance(attributes, dict):
        raise DamagedError(f"{where}: has no attributes of sunzip")
    return attributes, Grid.read(attributes, where)


def refuse_absent(grid: Grid, members: int, where: str) -> None:
    """Refuse an archive of which most is absent.

    Raises
    ------
    DamagedError
        If it is: who lists the names of what is missing, lists no more than a few times what there is.
    """
    if grid.count > 2 * members:
        raise DamagedError(f"{where}: {grid.count} objects follow from it, and {members} are there")


def read_summary(reader: Reader, attributes: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Return the summary of the root's attributes, held against the sizes of the objects that there are.

    Raises
    ------
    DamagedError
        If there is none, or it cannot be.
    """
    where = f"{reader.path}: zarr.json"
    told: Any = attributes.get("summary")
    match told:
        case {
            "time": [str(), str()],
            "images": dict(images),
            "bytes": {"blocks": int(blocks)} as parts,
        }:
            pass
        case _:
            raise DamagedError(f"{where}: has no summary")
    sizes = {key: member.size for key, member in reader.members.items() if key != MANIFEST}
    if (
        tuple(sorted(images)) != tuple(sorted(grid.channels))
        or not all(type(n) is int and 0 <= n <= grid.frames for n in images.values())
        or not all(type(n) is int and n >= 0 for n in parts.values())
        or parts != layout.parts(sizes, blocks)
    ):
        raise DamagedError(f"{where}: its summary cannot be")
    return dict(told)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _refuse_larger(reader: Reader, keys: Sequence[str], most: int) -> None:
    """Refuse objects of more bytes, before one of them is read."""
    for key in keys:
        member = reader.members.get(key)
        if member is not None and member.size > most:
            raise DamagedError(f"{reader.path}: {key}: {member.size} bytes are too many")


def checked(reader: Reader, key: str, most: int) -> bytes:
    """Read an object whole and hold it against its CRC-32.

    Raises
    ------
    DamagedError
        If it is missing or damaged, or has more than `most` bytes.
    """
    return checked_many(reader, [key], most)[0]


def checked_many(reader: Reader, keys: Sequence[str], most: int | None = None) -> list[bytes]:
    """Read several objects together, each as `checked`."""
    if most is not None:
        _refuse_larger(reader, keys, most)
    found = reader.read_many((key, 0, None) for key in keys)
    for key, data in zip(keys, found, strict=True):
        if zlib.crc32(data) != reader.members[key].crc:
            raise DamagedError(f"{reader.path}: {key} is damaged")
    return found


def open_archive(path: str | os.PathLike[str], *, anon: bool = False, identity: str | None = None) -> Archive:
    """Open a finished archive for reading.

    Parameters
    ----------
    path
        A local path or an fsspec URL. Of a remote archive the end is fetched, and then what is asked for.
    anon
        Ask S3 or Google Cloud Storage without credentials.
    identity
        What the archive's `Archive.identity` must be, if it was open before.

    Raises
    ------
    InputError
        If the file is absent, unreadable, unfinished or no archive.
    DamagedError
        If it is another than before, or not whole: its directory, manifest or metadata is damaged or an
        object is missing. Damage inside objects is found when they are read, or all of it by `verify`.
    UnsupportedError
        If its format is newer than this program.

    Examples
    --------
    >>> with open_archive("sun.lat") as archive:  # doctest: +SKIP
    ...     archive.time[0], len(archive.block(0))
    """
    return Archive(os.fspath(path), anon, identity)


def summary(path: str | os.PathLike[str], *, anon: bool = False) -> dict[str, Any]:
    """Tell what an archive is, from its directory, manifest and root only: no array is read.

    Parameters
    ----------
    path, anon
        As `open_archive`.

    Returns
    -------
    summary
        ``path``, ``format``, ``bytes`` (of the file), ``channels``, ``shape``, ``scale``, ``time`` (first
        and last, ISO 8601), ``frames``, ``frames_per_block``, ``blocks``, ``frames_per_shard``, ``shards``,
        ``images`` (number per channel), ``parts`` (bytes of ``blocks``, ``keywords``, ``tables``, ``model``
        and ``structure``, which add up to ``bytes``), ``model`` (``name``, ``sha256``, ``bytes``,
        ``embedded``), ``codec``, ``source``, ``coding``, ``fingerprint``.

    Raises
    ------
    InputError, DamagedError, UnsupportedError
        As `open_archive`.
    """
    with open_archive(path, anon=anon) as archive:
        return archive.summary()


class Archive(Shown):
    """A finished archive, opened by `open_archive`.

    It may be shared by threads, forked, and pickled: a copy opens the file by its path.

    Attributes
    ----------
    path
        The file, a path or URL.
    size
        Its bytes.
    channels
        The C names in canonical order.
    shape
        (Y, X) in pixels.
    scale
        ``"mean"`` or ``"sum"``.
    frames, blocks, shards
        Their numbers.
    frames_per_block
        Frames in each block; the last block's frames from `frames` on are padding without images.
    codec, model, source, coding, fingerprint
        As in `ArchiveSpec`.
    bounds
        How far decoded pixels may be from the original, by channel; empty if that is not bounded.
    identity
        sha256 of the manifest in hexadecimal, another one wherever any byte is another.
    frames_per_shard
        Frames in each shard but the last.
    digests
        A sha256 of all that each shard holds, as the manifest states it: `verify` holds it against the bytes.
    """

    def __init__(self, path: str, anon: bool = False, identity: str | None = None) -> None:
        self.path = path
        self._anon = anon
        self._reader = Reader(path, anon)
        # Who takes it over may work in another folder, as may this process when it hands it over.
        self._absolute = absolute(path)
        self.size = self._reader.size
        self.identity = self._reader.manifest_sha256
        try:
            if identity not in (None, self.identity):
                raise replaced(path)
            manifest = Manifest.read(self._reader)
            attributes, self._grid = read_root(self._reader, manifest)
            wrong = missing(self._reader, manifest, self._grid)
            if wrong:
                key, how = next(iter(wrong.items()))
                more = f" ({len(wrong)} objects are)" if len(wrong) > 1 else ""
                raise DamagedError(f"{path}: {key} {how}{more}")
        except BaseException:
            self._reader.close()
            raise
        grid = self._grid
        self.channels = grid.channels
        self.shape = grid.shape
        self.frames = grid.frames
        self.blocks = grid.blocks
        self.shards = grid.shards
        self.frames_per_block = grid.frames_per_block
        self.frames_per_shard = grid.frames_per_shard
        self.digests: Sequence[str] = manifest.shards
        self.scale: str = attributes["scale"]
        self.codec: Mapping[str, Any] = attributes["codec"]
        self.bounds = bounds_in(self.codec, self.channels)
        self.model: Mapping[str, Any] = attributes["model"]
        self.source: Mapping[str, Any] = attributes["source"]
        self.coding: Mapping[str, Any] = attributes["coding"]
        self.fingerprint: str = attributes["fingerprint"]
        self._attributes = attributes
        # Plain dictionaries, which bear threads without a lock: a fork could find a lock taken for ever.
        self._indexes: dict[int, npt.NDArray[np.int64]] = {}
        self._chunks: dict[tuple[str, int], npt.NDArray[Any]] = {}
        self._headers: dict[int, Headers] = {}

    def __repr__(self) -> str:
        y, x = self.shape
        return f"<Archive {self.path}: {self.frames} frames of {' '.join(self.channels)}, {y}×{x}>"

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`: what the root says; no array is read."""
        found = self.summary()
        origin = self.origin(self.channels)
        return {
            "file": self.path,
            "size": size(self.size),
            "frames": self.frames,
            "times": span(*found["time"]),
            "pixels": "×".join(map(str, self.shape)),
            "AIA pixels": f"2×2 {self.scale}s" if any_of_aia(self.channels) else None,
            "images": [{name: found["images"][name] for name in self.channels}],
            "model": f"{self.model['name']} {self.model['sha256'][:12]}",
            "quality": origin.get("quality"),
            "max error": origin.get("max_error"),
        }

    def __len__(self) -> int:
        return self.frames

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Archive], tuple[str, bool, str]]:
        # Later, the file may be another one.
        return Archive, (self._absolute, self._anon, self.identity)

    @contextmanager
    def as_opened(self) -> Iterator[None]:
        """Where bytes are damaged, look whether they are those of another archive in this one's place.

        What is behind a URL, and a file that is written over, is read by its name: offsets that were read
        once mean nothing in another one.

        Raises
        ------
        DamagedError
            That it was replaced; else what is raised inside.
        """
        try:
            yield
        except (DamagedError, UnsupportedError):
            now = self.identity
            with suppress(SunzipError):  # then what was wrong first is told
                reader = Reader(self._absolute, self._anon)
                now = reader.manifest_sha256
                reader.close()
            if now != self.identity:
                raise replaced(self.path) from None
            raise

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def origin(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what is to be said of decoded pixels of some channels, wherever they go, as CF names it.

        Returns
        -------
        ``history``, a sentence; ``model``, ``model_sha256`` and ``quality``; ``max_error``, the bounds as
        `sunzip.bounds.told` says them, if there are any.
        """
        model, quality = self.model["name"], self.codec.get("quality")
        made = f"compressed with loss by sunzip, model {model}"
        origin = {
            "history": made if quality is None else f"{made}, quality {quality}",
            "model": model,
            "model_sha256": self.model["sha256"],
        }
        if quality is not None:
            origin["quality"] = quality
        # Of the channels that are there, as a codec for them takes it.
        held = {name: bound for name, bound in self.bounds.items() if name in names}
        return origin | ({"max_error": told(held)} if held else {})

    def summary(self) -> dict[str, Any]:
        """See the function `summary`."""
        found = read_summary(self._reader, self._attributes, self._grid)
        parts, size = found["bytes"], self.size
        own = {k: v for k, v in self._attributes.items() if k != "summary"}
        return own | {
            "path": self.path,
            "bytes": size,
            "time": found["time"],
            "images": found["images"],
            "parts": {**parts, "structure": size - sum(parts.values())},
            "model": {**self.model, "embedded": parts["model"] > 0},
        }

    @cached_property
    def time(self) -> npt.NDArray[np.datetime64]:
        """(T,) datetime64[ms], UTC: the nominal time of each frame."""
        time = layout.read_time(self._chunk("time/c/0", 8 * self.frames), f"{self.path}: time/c/0")
        time.flags.writeable = False
        return time

    @property
    def t_obs(self) -> npt.NDArray[np.datetime64]:
        """(T, C) datetime64[ms], UTC: when each image was taken; NaT where there is none."""
        return self._rows("t_obs", 0, self.frames).view("datetime64[ms]")

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(T, C) bool: whether there is an image."""
        return self._rows("valid", 0, self.frames)

    @property
    def exptime(self) -> npt.NDArray[np.float32]:
        """(T, C) float32: exposure times in s; NaN where unknown."""
        return self._rows("exptime", 0, self.frames)

    @property
    def deg_cor(self) -> npt.NDArray[np.float32]:
        """(T, C) float32: degradation factors that were divided out; NaN where unknown."""
        return self._rows("deg_cor", 0, self.frames)

    @property
    def quality(self) -> npt.NDArray[np.int64]:
        """(T, C) int64: bits of QUALITY; the least int64 where unknown."""
        return self._rows("quality", 0, self.frames)

    @property
    def stats(self) -> dict[str, npt.NDArray[np.float32]]:
        """For each name of `STATS`, (T, C) float32: errors measured at encoding; NaN where unknown."""
        return {name: self._rows(name, 0, self.frames) for name in layout.STATS}

    @property
    def block_bytes(self) -> npt.NDArray[np.int64]:
        """(blocks,) int64: the size of each coded block."""
        size = 4 * self._grid.blocks_per_shard
        keys = [f"bytes/c/{shard}" for shard in range(self.shards)]
        raw = [
            layout.unzstd(data, f"{self.path}: {key}", size)
            for key, data in zip(keys, self._read_checked(keys, layout.most_packed(size)), strict=True)
        ]
        return np.frombuffer(b"".join(raw), "<u4")[: self.blocks].astype(np.int64)

    def rows(self, name: str, start: SupportsIndex, stop: SupportsIndex) -> npt.NDArray[Any]:
        """Return frames `start` to `stop` of ``t_obs``, ``valid`` or another table, reading no other shards.

        Raises
        ------
        IndexError
            If the archive lacks a frame.
        """
        start, stop = self._checked(start, stop)
        rows = self._rows(name, start, stop)
        return rows.view("datetime64[ms]") if name == "t_obs" else rows

    def axis(self, name: str) -> npt.NDArray[np.float64]:
        """Return where pixels lie along ``"x"`` or ``"y"``, in arcsec from the centre of a disk of 976″."""
        key, size = f"{name}/c/0", dict(zip("yx", self.shape, strict=True))[name]
        return np.frombuffer(self._chunk(key, 8 * size), "<f8").astype(np.float64)

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Return the ``zarr.json`` of every array by its name, as the root says that they are."""
        return layout.array_metadata(self._grid, self._attributes)

    def headers(self, frame: SupportsIndex) -> list[dict[str, Any]]:
        """Return the FITS keywords of one frame, per channel; empty where there is no image.

        Raises
        ------
        IndexError
            If the archive has no such frame.
        DamagedError
            If they are damaged.
        """
        frame = index(frame)  # NumPy's integers overflow in what follows
        if not 0 <= frame < self.frames:
            raise IndexError(f"frame {frame} of {self.frames}")
        shard, row = divmod(frame, self._grid.frames_per_shard)
        return self._shard_headers(shard)[row]

    def table(self, start: SupportsIndex, stop: SupportsIndex) -> ShardTable:
        """Return what is known of the images of frames `start` to `stop`, besides pixels."""
        start, stop = self._checked(start, stop)
        n = self._grid.frames_per_shard
        self._table_chunks(("t_obs", "valid", *layout.STATS), range(start // n, -(-stop // n)))
        headers: list[list[Header]] = [list(self.headers(i)) for i in range(start, stop)]
        return ShardTable(
            self._rows("t_obs", start, stop).view("datetime64[ms]"),
            self._rows("valid", start, stop),
            headers,
            {name: self._rows(name, start, stop) for name in layout.STATS},
        )

    def block(self, number: int) -> bytes:
        """Read the bytes of one coded block, and of nothing else.

        Raises
        ------
        DamagedError
            If the shard's index is damaged. The block's own checksum is left to whoever decodes it.
        """
        return self.read_blocks([number])[0]

    def read_blocks(self, numbers: Sequence[int]) -> list[bytes]:
        """Read coded blocks together: from an object store, neighbours with one request.

        Raises
        ------
        DamagedError
            As `block`.
        """
        return self._reader.read_many(self._places(numbers))

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the bytes of objects, by key; of those that are not there, nothing."""
        members = self._reader.members
        return {key: members[key].size for key in keys if key in members}

    def contents(self, keys: Sequence[str]) -> Iterator[bytes]:
        """Read objects as they were written, in that order, several at a time."""
        sizes = self.sizes(keys)
        some: list[str] = []
        held = 0
        for key in keys:
            if some and held + sizes.get(key, 0) > _TOGETHER:
                yield from self._reader.read_many((name, 0, None) for name in some)
                some, held = [], 0
            some.append(key)
            held += sizes.get(key, 0)
        yield from self._reader.read_many((name, 0, None) for name in some)

    def check_shard(self, shard: int) -> None:
        """Hold a shard against the manifest.

        Raises
        ------
        DamagedError
            If it is not what that says, to the bit.
        """
        keys = self._grid.shard_objects(shard)
        sums = {key: sha256(data).hexdigest() for key, data in zip(keys, self.contents(keys), strict=True)}
        self.check_digest(shard, layout.digest(sums))

    def check_digest(self, shard: int, found: str) -> None:
        """Hold the `layout.digest` of what was read of a shard against the manifest.

        Raises
        ------
        DamagedError
            As `check_shard`.
        """
        with self.as_opened():
            if found != self.digests[shard]:
                frames = self._grid.frames_of(shard)
                raise DamagedError(
                    f"{self.path}: is damaged somewhere in frames {frames.start} to {frames.stop - 1}, "
                    f"`sunzip verify` tells where; {MEND}"
                )

    def longer(
        self,
        kept: int,
        time: npt.NDArray[np.datetime64],
        source: Mapping[str, Any],
        coding: Mapping[str, Any],
        fingerprint: str,
    ) -> ArchiveSpec:
        """Return the specification of an archive that holds this one's first frames, and after them others.

        Parameters
        ----------
        kept
            How many of its frames.
        time
            Of the others, all later than the last of these.
        source, coding, fingerprint
            As in `ArchiveSpec`, of the new archive.
        """
        return ArchiveSpec(
            channels=self.channels,
            shape=self.shape,
            time=np.concatenate([self.time[:kept], time]),
            scale=self.scale,
            frames_per_block=self.frames_per_block,
            frames_per_shard=self.frames_per_shard,
            codec=self.codec,
            model=self.model,
            source=source,
            coding=coding,
            fingerprint=fingerprint,
        )

    def extent(self, number: int) -> tuple[int, int]:
        """Return where in the file a coded block begins, and its bytes.

        They are what tools need that refer to parts of files, as kerchunk does.

        Raises
        ------
        DamagedError
            As `block`.
        """
        [(key, start, size)] = self._places([number])
        return self._reader.members[key].start + start, size

    def embedded_model(self) -> dict[str, bytes] | None:
        """Return the files of the model that the archive holds, by name; None if it holds none.

        Raises
        ------
        DamagedError
            If a file is damaged, or larger than those of models are.
        """
        names = [name for name in FILES if f"model/{name}" in self._reader.members]
        return {n: self._read_checked([f"model/{n}"], FILES[n])[0] for n in names} or None

    def store(self) -> Store:
        """Return the archive as a read-only Zarr store, for zarr and xarray.

        Unlike zarr's own store for zip files it reads ranges without what lies before them, and is safe
        after a fork.
        """
        from sunzip.archive._store import ArchiveStore

        self._check_metadata()
        return ArchiveStore(self)

    def array(self, name: str = "cube") -> zarr.Array[Any]:
        """Open one of the arrays with zarr, read-only."""
        import zarr

        return zarr.open_array(self.store(), path=name, mode="r", zarr_format=3)

    def _check_metadata(self) -> None:
        """Make sure that zarr will see just the arrays that follow from the root's attributes."""
        expected = {"zarr.json": layout.root_metadata(self._attributes)}
        arrays = layout.array_metadata(self._grid, self._attributes)
        expected |= {f"{name}/zarr.json": tree for name, tree in arrays.items()}
        for key, tree in expected.items():
            if load(self._read_checked([key], MAX_BYTES)[0], f"{self.path}: {key}") != tree:
                raise DamagedError(f"{self.path}: {key} is not the metadata that the archive must have")

    def _read_checked(self, keys: Sequence[str], most: int) -> list[bytes]:
        """Read objects as `checked_many`."""
        with self.as_opened():
            return checked_many(self._reader, keys, most)

    def _chunk(self, key: str, size: int | None) -> bytes:
        [data] = self._read_checked([key], layout.most_packed(size))
        return layout.unzstd(data, f"{self.path}: {key}", size)

    def _places(self, numbers: Iterable[int]) -> list[tuple[str, int, int]]:
        """Return the object that each block is in, where it begins there, and its bytes."""
        numbers = [index(n) for n in numbers]
        wrong = [n for n in numbers if not 0 <= n < self.blocks]
        if wrong:
            raise IndexError(f"block {wrong[0]} of {self.blocks}")
        per_shard = self._grid.blocks_per_shard
        self._read_indexes({n // per_shard for n in numbers})
        places = []
        for shard, entry in (divmod(n, per_shard) for n in numbers):
            start, size = self._indexes[shard][entry]
            places.append((self._grid.cube_of(shard), int(start), int(size)))
        return places

    def _read_indexes(self, shards: Iterable[int]) -> None:
        """Read the indexes of shards that are not at hand."""
        new = sorted(s for s in shards if s not in self._indexes)
        keys = [self._grid.cube_of(s) for s in new]
        sizes, tail = [self._reader.members[k].size for k in keys], self._grid.index_size
        raw = self._reader.read_many((k, max(n - tail, 0), tail) for k, n in zip(keys, sizes, strict=True))
        with self.as_opened():
            for shard, key, length, data in zip(new, keys, sizes, raw, strict=True):
                blocks = len(self._grid.blocks_of(shard))
                self._indexes[shard] = layout.read_shard_index(data, blocks, length, f"{self.path}: {key}")

    def _checked(self, start: SupportsIndex, stop: SupportsIndex) -> tuple[int, int]:
        """Return the limits of a range of frames that the archive has, without NumPy's integers."""
        start, stop = index(start), index(stop)
        if not 0 <= start <= stop <= self.frames:
            raise IndexError(f"frames {start}:{stop} of {self.frames}")
        return start, stop

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `start` to `stop` of one of the tables."""
        n = self._grid.frames_per_shard
        parts = [np.empty((0, len(self.channels)), layout.TABLES[name][0])]
        for shard, chunk in self._table_chunks([name], range(start // n, -(-stop // n))).items():
            first = shard[1] * n
            parts.append(chunk[max(start - first, 0) : stop - first])
        return np.concatenate(parts)

    def _table_chunks(
        self, names: Sequence[str], shards: Iterable[int]
    ) -> dict[tuple[str, int], npt.NDArray[Any]]:
        """Return chunks of tables by name and shard; those that are not at hand are read together."""
        wanted = [(name, shard) for name in names for shard in shards]
        # Looked up once: another thread may make room meanwhile.
        out = {w: chunk for w in wanted if (chunk := self._chunks.get(w)) is not None}
        new = [w for w in wanted if w not in out]
        keys = [f"{name}/c/{shard}/0" for name, shard in new]
        shape = (self._grid.frames_per_shard, len(self.channels))
        most = layout.most_packed(max((layout.table_size(name, shape) for name in names), default=0))
        for which, key, data in zip(new, keys, self._read_checked(keys, most), strict=True):
            where = f"{self.path}: {key}"
            raw = layout.unzstd(data, where, layout.table_size(which[0], shape))
            out[which] = self._chunks[which] = layout.read_table(which[0], raw, shape, where)
        _make_room(self._chunks, _CACHED_CHUNKS)
        return {w: out[w] for w in wanted}

    def _shard_headers(self, shard: int) -> Headers:
        found = self._headers.get(shard)
        if found is None:
            key = f"keywords/c/{shard}"
            where = f"{self.path}: {key}"
            frames = self._grid.frames_of(shard)
            text = layout.one_text(self._chunk(key, None), where)
            found = decode(text, self.channels, self._rows("t_obs", frames.start, frames.stop), where)
            self._headers[shard] = found
            _make_room(self._headers, _CACHED_HEADERS)
        return found


def _make_room(cache: dict[Any, Any], most: int) -> None:
    """Drop the oldest entries of a cache until it has at most so many."""
    with suppress(StopIteration, RuntimeError):  # another thread makes room at the same time
        while len(cache) > most:
            cache.pop(next(iter(cache)), None)
