"""SDOML v2: Zarr format 2 stores of yearly groups, one array per channel, FITS keywords as list attributes.

The few bytes of format 2 are read here rather than through zarr, for three reasons: attributes of the full
data set (hundreds of keywords for 50,000 rows a year) are dropped as soon as they are packed, absent chunks
are seen instead of read as zeros, and only codecs that merely decompress are let near a stranger's bytes
(numcodecs also has one that unpickles).
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sunzip import packed
from sunzip.channels import NAMES
from sunzip.cube import MAX_SIDE, Header, Scale
from sunzip.errors import InputError
from sunzip.sources.base import Imaged, Source, other_order, tell_progress
from sunzip.sources.patience import reading_pool
from sunzip.sources.storage import Storage
from sunzip.times import parse_t_obs

_MAX_META = 4 << 20
_MAX_ATTRS = 4 << 30
_MAX_CHUNK = 1 << 30
_MAX_TILES = 1 << 16
_MAX_ROWS = 1 << 24
#: Compressors that tell beforehand, or can be told, how many bytes come out.
_COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip")

#: Chunks that are unpacked at a time; and of those on a disk, read at a time: one thread keeps up with the
#: coding of eight cores.
_UNPACKING = 4
_NEAR = min(max((os.cpu_count() or 1) // 8, 1), _UNPACKING)
#: Keywords of arrays that are fetched at a time: of a year of all images they have 100 MB.
_ATTRIBUTES = 4
#: The most bytes of chunks that are on their way, unpacked; and of those that are kept as they came.
_ON_THE_WAY, _KEPT = 512 << 20, 768 << 20

Value = str | int | float | bool | None

#: What JSON's scalars become, and nothing that is derived of them: a year has ten million, each looked at.
_VALUES = frozenset({str, int, float, bool, type(None)})


@dataclass(slots=True)
class _Array:
    """One channel of one year: where it is and how its chunks are laid out."""

    storage: Storage
    path: str
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    dtype: np.dtype[Any]
    order: str
    separator: str
    compressor: str | None
    fill: float


@dataclass(slots=True)
class _Turn:
    """A chunk that somebody reads, who holds the lock, so that others wait for it and take what was read."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    read: bool = False
    frames: npt.NDArray[np.floating[Any]] | None = None


@dataclass(slots=True)
class _Cached:
    """What one channel keeps between reads: its last chunk of frames and its last year of keywords.

    Attributes
    ----------
    lock
        Held to look at all but the keywords, never while something is read.
    turns
        Of each chunk that somebody reads.
    asked, of
        How many chunks were asked for so far, and the number among them of the one that is kept.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    turns: dict[tuple[int, int], _Turn] = field(default_factory=dict)
    asked: int = 0
    of: int = 0
    chunk_of: tuple[int, int] | None = None
    frames: npt.NDArray[np.floating[Any]] | None = None
    keywords_lock: threading.Lock = field(default_factory=threading.Lock)
    keywords_of: int | None = None
    keywords: dict[str, Value | npt.NDArray[Any] | list[Value]] | None = None


class SdomlV2(Source):
    """An SDOML v2 store.

    The rows of a channel are those of all years, one year after the other. Rows whose chunk is absent read as
    NaN; of an image of several chunks, those that are absent as the fill value; of an array that is gone
    nothing reads. Pixels of a fill value other than 0 read as NaN, as xarray means it. For each channel the
    chunk read last and one year of keywords are kept in memory.

    `Series.read` fetches chunks of object stores and over HTTP side by side, 32 at a time, or fewer if they
    are large (512 MiB of them unpacked, or one), and unpacks four at a time; from a disk it reads one at a
    time for every eight cores, four at most. Chunks of a far store that will be needed again soon, as rows
    near them in time lie scattered, are kept as they came, up to 768 MiB.

    Parameters
    ----------
    url
        The root above the yearly groups, one such group, a local path or an fsspec URL.
    hmi
        A second store to join, as SDOML v2 keeps Bx, By and Bz apart.
    anon
        Ask S3 without credentials.

    Raises
    ------
    InputError
        If nothing is there, no channel is found, or metadata, dtype or shape are not SDOML's; if xarray's
        attributes tell that pixels are packed, or axes in another order.
    """

    layout = "sdoml-v2"
    dated = "T_OBS of .zattrs, a list of texts as 2014-01-31T06:00:00Z"
    scale = Scale.MEAN

    def __init__(self, url: str, hmi: str | None = None, anon: bool = False) -> None:
        self.url = url if hmi is None else f"{url} + {hmi}"
        self.counts = Counter()
        self._arrays: dict[str, list[_Array]] = {}
        for root in (url,) if hmi is None else (url, hmi):
            self._find(Storage(root, anon))
        self.channels = tuple(n for n in NAMES if n in self._arrays)
        self.shape = self._common_shape()
        self._start_reading()

        self._times: dict[str, npt.NDArray[np.datetime64]] = {}
        self._starts: dict[str, npt.NDArray[np.int64]] = {}
        self.absent: set[tuple[str, int, int]] = set()
        parts = [(name, part) for name in self.channels for part in range(len(self._arrays[name]))]
        arrays = [self._arrays[name][part] for name, part in parts]
        times: dict[str, list[npt.NDArray[np.datetime64]]] = {}
        with reading_pool(min(_ATTRIBUTES, max(a.storage.at_once for a in arrays))) as pool:
            indexed = pool.map(self._index, *zip(*parts, strict=True))
            for done, ((name, _), (found, odd)) in enumerate(zip(parts, indexed, strict=True), 1):
                times.setdefault(name, []).append(found)
                self.counts += odd
                tell_progress(f"looking through {self.url}", done, len(parts))
        for name in self.channels:
            self._starts[name] = np.cumsum([0, *map(len, times[name])])
            self._times[name] = np.concatenate(times[name])
        largest = max(a.chunks[0] * a.shape[1] * a.shape[2] * a.dtype.itemsize for a in arrays)
        most = min({a.storage.at_once for a in arrays if not a.storage.local} or {_NEAR})
        self.at_once = min(max(_ON_THE_WAY // largest, 1), most)

    def _start_reading(self) -> None:
        self._cached = {name: _Cached() for name in self.channels}
        self._unpacking = threading.Semaphore(_UNPACKING)
        self._fetching = threading.Semaphore(_ATTRIBUTES)
        self._attributes_lock = threading.Lock()
        self._kept: OrderedDict[tuple[Storage, str], bytes] = OrderedDict()
        self._kept_lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker takes over the index, which is slow to make, and begins with empty caches of its own.
        own = ("_cached", "_unpacking", "_fetching", "_attributes_lock", "_kept", "_kept_lock")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC, year after year in the stored order; NaT where T_OBS is of no use."""
        return self._times[channel]

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image: (Y, X) float32; NaN throughout if its chunk is absent; thread-safe."""
        return self.read_part(channel, [row], again=False)[0][0].copy()

    def parts(self, channel: str, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Number the chunks along time of all years through; see `Source.parts`."""
        chunks = np.array([a.chunks[0] for a in self._arrays[channel]])
        starts = self._starts[channel]
        before = np.cumsum([0, *-(-np.diff(starts) // chunks)])
        part = np.searchsorted(starts, rows, side="right") - 1
        numbers: npt.NDArray[np.int64] = before[part] + (rows - starts[part]) // chunks[part]
        return numbers

    def read_part(self, channel: str, rows: Sequence[int], again: bool) -> list[Imaged]:
        """Read images of one chunk; see `Source.read_part`."""
        part, first = self._locate(channel, rows[0])
        chunk, _ = divmod(first, self._arrays[channel][part].chunks[0])
        begin = chunk * self._arrays[channel][part].chunks[0]
        frames = self._chunk(channel, part, chunk, again)
        if not again:
            self._let_go(self._arrays[channel][part], chunk)
        if frames is None:
            images = [np.full(self.shape, np.nan, np.float32)] * len(rows)
        else:
            places = [self._locate(channel, row)[1] - begin for row in rows]
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which `series` counts
                images = [frames[place].astype(np.float32, copy=False) for place in places]
        return [(image, partial(self.header, channel, row)) for image, row in zip(images, rows, strict=True)]

    def prepare(self, channel: str, row: int) -> None:
        """Have the keywords of an image's year at hand."""
        self.header(channel, row)

    def header(self, channel: str, row: int) -> Header:
        """Return the keywords of one image exactly as stored; None and absent ones left out."""
        part, i = self._locate(channel, row)
        cached = self._cached[channel]
        with cached.keywords_lock:
            if cached.keywords_of != part or cached.keywords is None:
                cached.keywords = None
                array = self._arrays[channel][part]
                known = self._times[channel][row - i :][: array.shape[0]]
                with self._attributes(array) as found:
                    times, _ = _row_times(found, array.shape[0])
                    # A store that grows has its rows where they were, and may tell the times of more of them.
                    if (times != known)[~np.isnat(known)].any():
                        raise InputError(
                            f"{array.storage.name(array.path)}/.zattrs: is gone, or tells of other images "
                            "than as the source was opened; start again"
                        )
                    cached.keywords = _pack_all(found)
                cached.keywords_of = part
            told: dict[str, Value] = {}
            for key, column in cached.keywords.items():
                value: Any = column
                if isinstance(column, np.ndarray):
                    value = column[i].item() if i < len(column) else None
                elif isinstance(column, list):
                    value = column[i] if i < len(column) else None
                if value is not None:
                    told[key] = value
            return told

    def stored_bytes(self) -> int | None:
        """Bytes of all chunk objects, or None if listing them fails or says no sizes."""
        arrays = [a for of_channel in self._arrays.values() for a in of_channel]
        total = 0
        # A store lists a thousand objects at a time, of the 600,000 of all years.
        with reading_pool(max(a.storage.at_once for a in arrays)) as pool:
            for size in pool.map(_stored, arrays):
                if size is None:
                    return None
                total += size
        return total

    def _find(self, storage: Storage) -> None:
        """Add every channel array of one store."""
        root = storage.list() if storage.isdir() else {}
        if ".zarray" in root:
            raise InputError(f"{storage.url}: is one Zarr array; give the group that holds it")
        folders = [name for name, (is_dir, _) in root.items() if is_dir]
        groups = {"": folders} if any(f in NAMES for f in folders) else {}
        others = [folder for folder in folders if folder not in NAMES]
        # The store of all years has 14 groups and 170 arrays, and each answer takes a while.
        with reading_pool(storage.at_once) as pool:
            for folder, names in zip(others, pool.map(storage.list, others), strict=True):
                inner = [name for name, (is_dir, _) in names.items() if is_dir]
                if any(f in NAMES for f in inner):
                    groups[folder] = inner
            held = [(group, name) for group, names in groups.items() for name in names if name in NAMES]
            paths = [f"{group}/{name}".lstrip("/") for group, name in held]
            arrays = pool.map(partial(_open_array, storage), paths)
            for (_, name), array in zip(held, arrays, strict=True):
                self._arrays.setdefault(name, []).append(array)
        if not held:
            raise InputError(
                f"{storage.url}: no SDOML v2 array found; looked for {NAMES[0]} … {NAMES[-1]}, "
                "directly and in one level of groups such as 2010/"
            )

    def _common_shape(self) -> tuple[int, int]:
        shapes: dict[tuple[int, int], list[str]] = {}
        for name in self.channels:
            for array in self._arrays[name]:
                shapes.setdefault((array.shape[1], array.shape[2]), []).append(array.path)
        if len(shapes) > 1:
            told = "; ".join(f"{y}×{x}: {' '.join(paths[:4])}" for (y, x), paths in shapes.items())
            raise InputError(f"{self.url}: images of different sizes in one store: {told}")
        return next(iter(shapes))

    def _locate(self, channel: str, row: int) -> tuple[int, int]:
        starts = self._starts[channel]
        if not 0 <= row < starts[-1]:
            raise IndexError(f"row {row} of {starts[-1]}")
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return part, row - int(starts[part])

    @contextmanager
    def _attributes(self, array: _Array) -> Iterator[dict[str, Any]]:
        """Give the keyword lists and scalars of one array; what is neither is left out."""
        with self._fetching:
            raw = array.storage.read(path := f"{array.path}/.zattrs", limit=_MAX_ATTRS)
            with self._attributes_lock:  # one at a time: unpacked they take gigabytes
                attributes = {} if raw is None else _parse(array.storage, path, raw)
                raw = None
                _refuse_other(array, attributes)
                found = {
                    k: v
                    for k, v in attributes.items()
                    # xarray's own note about dimension names is a list but no keyword.
                    if k != "_ARRAY_DIMENSIONS"
                    and _VALUES.issuperset(map(type, v if isinstance(v, list) else [v]))
                }
                attributes.clear()
                yield found
                found.clear()

    def _index(self, channel: str, part: int) -> tuple[npt.NDArray[np.datetime64], Counter[str]]:
        """Return the times of one array's rows, and how much is odd about its keywords."""
        array, cached = self._arrays[channel][part], self._cached[channel]
        n, odd = array.shape[0], Counter[str]()
        with self._attributes(array) as attributes:
            for column in attributes.values():
                if isinstance(column, list):
                    odd["keyword list too short"] += len(column) < n
                    odd["keyword list too long"] += len(column) > n
                    odd["keyword value None"] += column[:n].count(None)
            times, missing = _row_times(attributes, n)
            if part == 0:
                # Reading mostly begins here, and would fetch them again.
                cached.keywords, cached.keywords_of = _pack_all(attributes), part
        odd["T_OBS missing"] += missing
        odd["T_OBS unreadable"] += int(np.isnat(times).sum()) - missing
        return times, +odd  # without the zeros

    def _chunk(
        self, channel: str, part: int, chunk: int, again: bool
    ) -> npt.NDArray[np.floating[Any]] | None:
        """Return the frames of one chunk along time, read once for all who ask for it at the same time."""
        cached = self._cached[channel]
        with cached.lock:
            if cached.chunk_of == (part, chunk):
                return cached.frames
            cached.asked += 1
            number = cached.asked
            turn = cached.turns.setdefault((part, chunk), _Turn())
        with turn.lock:
            if turn.read:
                return turn.frames
            with cached.lock:
                if number > cached.of:
                    # Frees the old chunk before the new one is decoded.
                    cached.chunk_of = cached.frames = None
            try:
                frames = self._frames(self._arrays[channel][part], chunk, again)
                if frames is None:
                    self.absent.add((channel, part, chunk))
                turn.read, turn.frames = True, frames
                with cached.lock:
                    # What was asked for last is what the next ones are likely to lie in.
                    if number > cached.of:
                        cached.of, cached.chunk_of, cached.frames = number, (part, chunk), frames
            finally:
                with cached.lock:
                    # After an error it may be that of another, who came since.
                    if cached.turns.get((part, chunk)) is turn:
                        del cached.turns[part, chunk]
            return frames

    def _frames(self, array: _Array, chunk: int, again: bool) -> npt.NDArray[np.floating[Any]] | None:
        """Decode the frames of one chunk along time, None if no part of them is stored."""
        frames: npt.NDArray[np.floating[Any]] | None = None
        absent = False
        depth, *tile = array.chunks
        depth = min(depth, array.shape[0] - chunk * depth)
        for path, y, x in _objects(array, chunk):
            raw = self._raw(array, path, again)
            if raw is None:
                absent = True
                continue
            with self._unpacking:
                block = _decode(array, path, raw)
                if array.fill and not math.isnan(array.fill):
                    with np.errstate(over="ignore"):
                        none = array.dtype.type(array.fill)
                    block = np.where(block == none, array.dtype.type(np.nan), block)
            if tuple(tile) == array.shape[1:]:
                return block
            if frames is None:
                # Zarr leaves out those parts of an image that are nothing else, as HMI's corners are.
                frames = np.full((depth, *array.shape[1:]), np.nan if array.fill else 0, array.dtype)
            part = frames[:, y : y + tile[0], x : x + tile[1]]
            part[:] = block[:depth, : part.shape[1], : part.shape[2]]
        # Of a disk that is not mounted any more, or a folder that was moved, all chunks are absent.
        if absent and array.storage.read(f"{array.path}/.zarray", limit=_MAX_META) is None:
            raise InputError(
                f"{array.storage.name(array.path)}: is gone since the source was opened; look whether it was "
                "moved, or is on a disk that is not mounted any more"
            )
        return frames

    def _raw(self, array: _Array, path: str, again: bool) -> bytes | None:
        """Return a chunk object as it is stored, kept in memory for as long as it is needed again."""
        key = array.storage, path
        with self._kept_lock:
            raw = self._kept.pop(key, None)
        if raw is None:
            # Compressed noise is hardly longer than the noise; the slack covers headers.
            raw = array.storage.read(path, limit=2 * math.prod(array.chunks) * array.dtype.itemsize + 65536)
        # What lies near, the system keeps.
        if raw is not None and again and not array.storage.local:
            with self._kept_lock:
                self._kept[key] = raw
                while sum(map(len, self._kept.values())) > _KEPT:
                    self._kept.popitem(last=False)
        return raw

    def _let_go(self, array: _Array, chunk: int) -> None:
        """Keep a chunk no longer as it came: who finds it unpacked does not ask for that."""
        with self._kept_lock:
            for path, _, _ in _objects(array, chunk):
                self._kept.pop((array.storage, path), None)


def _objects(array: _Array, chunk: int) -> Iterator[tuple[str, int, int]]:
    """Yield the paths of the objects of one chunk along time, and where in images each begins."""
    _, height, width = array.chunks
    for j in range(math.ceil(array.shape[1] / height)):
        for k in range(math.ceil(array.shape[2] / width)):
            path = f"{array.path}/{array.separator.join(map(str, (chunk, j, k)))}"
            yield path, j * height, k * width


def _stored(array: _Array) -> int | None:
    """Return the bytes of all chunk objects of one array, or None as `SdomlV2.stored_bytes`."""
    total = 0
    try:
        with array.storage.turn:
            found = array.storage.fs.find(array.storage.at(array.path), detail=True)
    except Exception:  # the sum is a courtesy of the store: a client's failure only means unknown
        return None
    for path, info in found.items():
        if not path.rsplit("/", 1)[-1].startswith("."):
            if info.get("size") is None:
                return None
            total += info["size"]
    return total


def _parse(storage: Storage, path: str, raw: bytes) -> dict[str, Any]:
    """Unpack one JSON object that was read."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{storage.name(path)}: is not JSON ({error}); the store is damaged") from error
    if not isinstance(found, dict):
        raise InputError(f"{storage.name(path)}: is not a JSON object; the store is damaged")
    return found


def _open_array(storage: Storage, path: str) -> _Array:
    """Read and check the metadata of one array."""
    name = storage.name(path)
    raw = storage.read(of := f"{path}/.zarray", limit=_MAX_META)
    if raw is None:
        raise InputError(f"{name}: is no Zarr format 2 array (no .zarray in it)")
    meta = _parse(storage, of, raw)
    sizes: list[tuple[int, int, int]] = []
    for what in ("shape", "chunks"):
        value = meta.get(what)
        if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
            raise InputError(f"{name}: {what} {str(value)[:60]!r} is no list of sizes; the store is damaged")
        if len(value) != 3:
            raise InputError(f"{name}: {what} {tuple(value[:9])} is not that of (images, rows, columns)")
        sizes.append((value[0], value[1], value[2]))
    shape, chunks = sizes
    if not all(1 <= s <= MAX_SIDE for s in shape[1:]) or shape[0] > _MAX_ROWS or min(chunks) < 1:
        raise InputError(f"{name}: shape {shape} in chunks of {chunks} is none that images have")
    stated = meta.get("dtype")
    if not isinstance(stated, str) or not re.fullmatch(r"[<>|=]f[248]", stated):
        raise InputError(f"{name}: has dtype {str(stated)[:60]!r}; SDOML v2 images are floating point (<f4)")
    dtype = np.dtype(stated)
    if math.prod(chunks) * dtype.itemsize > _MAX_CHUNK:
        raise InputError(f"{name}: its chunks of {tuple(chunks)} are larger than 1 GiB")
    # An image is put together from tiles, and with it all those that share them.
    tiles = -(-shape[1] // chunks[1]) * -(-shape[2] // chunks[2])
    together = min(chunks[0], shape[0]) * shape[1] * shape[2] * dtype.itemsize
    if tiles > _MAX_TILES or (tiles > 1 and together > _MAX_CHUNK):
        raise InputError(
            f"{name}: chunks of {tuple(chunks)} cut an image into {tiles} parts and hold {chunks[0]} images; "
            f"read are up to {_MAX_TILES} parts, and 1 GiB of images that share them: rechunk the store"
        )
    order, separator = meta.get("order", "C"), meta.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in (".", "/"):
        raise InputError(
            f"{name}: order {order!r:.20} or dimension separator {separator!r:.20} is none of Zarr format 2"
        )
    # Its other words say how it compressed, and may be those of another release of numcodecs.
    compressor = meta.get("compressor")
    kind = compressor.get("id") if isinstance(compressor, dict) else compressor
    if compressor is not None and not (isinstance(compressor, dict) and kind in _COMPRESSORS):
        told = str(kind)[:60]
        raise InputError(f"{name}: compressor {told!r} is not read here; only {' '.join(_COMPRESSORS)}")
    if meta.get("filters"):
        raise InputError(f"{name}: has filters, which SDOML v2 has not and which are not read here")
    stated = meta.get("fill_value")
    try:
        fill = math.nan if stated is None else float(stated)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: fill_value {str(stated)[:60]!r} is no number") from None
    return _Array(storage, path, shape, chunks, dtype, order, separator, kind, fill)


def _row_times(attributes: dict[str, Any], rows: int) -> tuple[npt.NDArray[np.datetime64], int]:
    """Return the times that keywords tell of an array's rows, and how many of these they leave out."""
    stated = attributes.get("T_OBS", [])
    stated = stated[:rows] if isinstance(stated, list) else [stated] * min(rows, 1)
    times = np.full(rows, np.datetime64("NaT", "ms"), "datetime64[ms]")
    times[: len(stated)] = parse_t_obs(stated)
    return times, rows - len(stated) + stated.count(None)


def _refuse_other(array: _Array, attributes: dict[str, Any]) -> None:
    """Refuse an array of which xarray's attributes tell that it is not what it is read as."""
    name = array.storage.name(array.path)
    if packing := {"scale_factor", "add_offset"}.intersection(attributes):
        raise InputError(
            f"{name}: is packed (attribute {min(packing)}), which is not undone here; "
            "write its values as they are"
        )
    told, order = attributes.get("_ARRAY_DIMENSIONS"), ("time", "y", "x")
    if isinstance(told, list) and len(told) == 3 and other_order(told, order):
        raise InputError(
            f"{name}: has its axes in the order {', '.join(map(str, told)):.60}; "
            f"transpose it to {', '.join(order)}"
        )


def _decode(array: _Array, path: str, raw: bytes) -> npt.NDArray[np.floating[Any]]:
    """Decompress one chunk to (chunk shape) of the stored dtype."""
    from numcodecs import get_codec

    size = math.prod(array.chunks) * array.dtype.itemsize
    try:
        if not raw:
            raise ValueError("it is empty")
        data: Any = raw
        kind = array.compressor
        if kind in ("zlib", "gzip"):
            data = zlib.decompressobj(wbits=47).decompress(raw, size + 1)
        elif kind is not None:
            # Asked before decoding: the codec would allocate whatever the bytes claim.
            if (claimed := _claimed_size(kind, raw)) is None:
                raise ValueError("it is truncated, or does not state its size")
            if claimed != size:
                raise ValueError(f"{claimed} bytes instead of {size}")
            # Into room of that size: behind the first zstd frame there may be others, which claim more.
            data = bytearray(size)
            get_codec({"id": kind}).decode(raw, data)
        flat = np.frombuffer(data, np.uint8)
        if flat.size != size:
            raise ValueError(f"{flat.size} bytes instead of {size}")
        order: Literal["C", "F"] = "F" if array.order == "F" else "C"
        return flat.view(array.dtype).reshape(array.chunks, order=order)
    except MemoryError:
        raise
    except Exception as error:  # numcodecs' codecs raise RuntimeError, ValueError, TypeError … alike
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{array.storage.name(path)}: chunk cannot be decoded ({detail}); fetch the file again"
        ) from error


def _claimed_size(kind: str, raw: bytes) -> int | None:
    """Return how many bytes a compressed chunk says it decodes to, None if it does not say.

    The places are those of the c-blosc chunk header and of numcodecs' LZ4.
    """
    if kind == "blosc":
        # It also says its own length, beyond which c-blosc would read on in a truncated chunk.
        whole = len(raw) >= 16 and int.from_bytes(raw[12:16], "little") == len(raw)
        return int.from_bytes(raw[4:8], "little") if whole else None
    if kind == "lz4":
        return int.from_bytes(raw[:4], "little") if len(raw) > 4 else None
    return packed.content_size(raw)


def _pack_all(
    attributes: dict[str, Any],
) -> dict[str, Value | npt.NDArray[Any] | list[Value]]:
    """Hold keyword lists in little memory; what they were given in is emptied meanwhile."""
    return {k: _pack(attributes.pop(k)) for k in [*attributes]}


def _pack(column: Value | list[Value]) -> Value | npt.NDArray[Any] | list[Value]:
    """Hold one keyword list in little memory such that every value comes out as it went in."""
    if not isinstance(column, list) or not column:
        return column
    kinds = set(map(type, column))
    if kinds == {float}:
        return np.array(column, np.float64)
    if kinds == {int} and max(map(abs, column)) < 2**63:  # type: ignore[arg-type]
        return np.array(column, np.int64)
    # Texts repeat (units, names, dates of the same hour): equal ones become one object.
    # -0.0 equals 0.0, and is another value.
    shared: dict[tuple[type, Value], Value] = {}
    return [shared.setdefault((type(v), v or str(v)), v) for v in column]
