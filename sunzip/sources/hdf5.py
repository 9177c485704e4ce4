"""One HDF5 file as a source: the "cube-1" layout that sunzip writes, and any with a cube, netCDF-4 too.

A minimal file holds ``cube`` (T, C, Y, X) with ``channel`` (C names), or (T, Y, X) with an attribute
``channel`` on the dataset or the root, and ``time`` (T), int64 ms since 1970 UTC or ISO 8601 strings. What is
no date, or none of the years 1 to 9999, is no time.
A netCDF-4 file is one, too. Of its conventions are heeded: what times count, by ``units`` and ``calendar``;
``scale_factor`` and ``add_offset`` of the cube; ``_FillValue``, ``missing_value``, and what netCDF puts where
nothing was written, as pixels and times that are none; a name alone, or of single letters, as channel.
Refused are ``units`` of the cube that are not those of its channels, names of its axes in another order, and
coordinates ``y`` and ``x`` that fall: rows go from south to north, and columns from east to west.
Optional: ``t_obs`` and ``valid`` (T, C), ``keywords`` (T, C) JSON objects, root attribute ``scale``
("mean" unless it says "sum"). ``sunzip.sinks.hdf5`` describes the whole layout.
"""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import weakref
import zlib
from collections import Counter
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, canonical, channel, unit_spelled
from sunzip.cube import MAX_SIDE, Header, Scale
from sunzip.errors import InputError
from sunzip.sources.base import Source, other_order
from sunzip.sources.storage import Storage
from sunzip.times import Times, parse_counts, parse_t_obs

#: What a file may ask to be allocated at once: bytes of a chunk, images in the index.
_MAX_CHUNK = 2**30
_MAX_IMAGES = 2**26
#: Chunks that are read together: for each HDF5 takes time and kilobytes, though it be not in the file.
_MAX_CHUNKS = 2**16
_MAX_KEYWORDS = 2**24
#: Letters of the name of a channel.
_MAX_LETTERS = 256
#: Times that are texts: 9 years of 12 channels at 12 minutes have 5 million images.
_MAX_TEXTS = 2**23
#: Bytes of texts that are read together: many may be the same long one of the file.
_MAX_TEXT = 2**28

#: Bytes of unpacked chunks that HDF5 keeps, as the next images are often in the same ones. By itself it keeps
#: 1 MB and unpacks a chunk of 24 images 24 times. Those of 12 channels of 512², 16 images each, are 200 MB.
_HELD = 2**28

#: What int64 in datasets of times count, unless they say so.
_UNITS = "milliseconds since 1970-01-01"

#: How netCDF names a dimension that has no coordinates, for which HDF5 needs a dataset.
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"

#: How netCDF files begin that are no HDF5: of the classic formats.
_CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")

#: How a remote file is fetched and kept: HDF5 goes to and fro in it.
_BLOCKS = {"block_size": 2**20, "cache_type": "blockcache", "cache_options": {"maxblocks": 64}}


class Hdf5(Source):
    """Images in one HDF5 file, local or behind an fsspec URL.

    Parameters
    ----------
    url
        The file.
    anon
        Ask S3 or Google Cloud Storage without credentials.

    Raises
    ------
    InputError
        If it is missing, not HDF5, or not of the layout.
    """

    layout = "hdf5"
    dated = "time, as 2014-01-31T06:00:00 or int64 ms since 1970"

    def __init__(self, url: str, *, anon: bool = False) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
        self._storage = Storage(url, anon)
        self._indexed = False
        #: Datasets of which chunks have gone through filters.
        self._packed: set[str] = set()
        self._start_reading()
        if self._storage.isdir():
            raise InputError(f"{url}: is a folder, where one HDF5 file is expected")
        try:
            self._index(self._file())
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, OSError) and self._is_classic():
                raise InputError(
                    f"{url}: is netCDF of a classic format, not HDF5; convert it: nccopy -k nc4 OLD NEW"
                ) from None
            raise self._unreadable(error) from error
        self._indexed = True

    def _is_classic(self) -> bool:
        with suppress(OSError), self._storage.fs.open(self._storage.root, "rb") as file:
            return file.read(4) in _CLASSIC
        return False

    def _start_reading(self) -> None:
        self._handle: tuple[int, Any, Any] | None = None
        self._open: Any = None
        self._lock = threading.Lock()
        #: Chunks of numbers that were found to be of their size, which the next image may share.
        self._sized: set[tuple[str, tuple[int, ...]]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_handle", "_open", "_lock", "_sized")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()

    def times(self, channel: str) -> Times:
        """(N,) datetime64[ms], UTC: of the images that are marked valid, in the file's order."""
        return self._times[channel]

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image: (Y, X) float32, NaN where there is no measurement."""
        t = int(self._rows[channel][row])
        try:
            with self._lock:
                cube = self._file()["cube"]
                # HDF5 forgets the chunks of a dataset that nobody has open; those of one image may go.
                self._open = cube if cube.chunks and math.prod(cube.chunks[:-2]) > 1 else None
                image = self._taken(cube, *(t, self._column[channel])[: cube.ndim - 2])
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise self._unreadable(error, f" image {t} of {channel}") from error
        factor, offset = self._packing
        with np.errstate(over="ignore"):
            values = image if self._packing == (1, 0) else image.astype(np.float64) * factor + offset
            pixels: npt.NDArray[np.float32] = np.array(values, dtype=np.float32, order="C")
        for value in self._no_value:
            pixels[image == value] = np.nan
        return pixels

    def header(self, channel: str, row: int) -> Header:
        """Return the keywords of one image; empty if the file has none."""
        if not self._has_keywords:
            return {}
        t = int(self._rows[channel][row])
        try:
            with self._lock:
                text = self._taken(self._file()["keywords"], t, self._column[channel])
            found = json.loads(text or "{}")
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, RecursionError) as error:
            raise self._unreadable(error, f" keywords of image {t} of {channel}") from error
        if not isinstance(found, dict) or any(isinstance(v, list | dict) for v in found.values()):
            raise InputError(
                f"{self.url}: keywords of image {t} of {channel} are not a JSON object of plain values"
            )
        return found

    def stored_bytes(self) -> int | None:
        """Bytes that the images occupy in the file, as HDF5 counts them."""
        return self._stored

    def _file(self) -> Any:
        """Open the file once per process: HDF5 handles do not survive a fork."""
        import h5py

        if self._handle is None or self._handle[0] != os.getpid():
            if "://" in self.url:
                raw = self._storage.fs.open(self._storage.root, "rb", **_BLOCKS)
                self._storage.size_of(raw, self._storage.root)
                file = h5py.File(raw, "r", rdcc_nbytes=_HELD)
            else:
                file = h5py.File(self._storage.root, "r", rdcc_nbytes=_HELD)
                raw = open(self._storage.root, "rb")  # noqa: SIM115 (open as long as the other)
                # Python warns of files that nobody closes, which suites of tests take for errors.
                weakref.finalize(file, raw.close)
            self._handle = (os.getpid(), file, raw)
            if self._indexed:
                try:
                    self._refuse_other(file)
                except BaseException:
                    self._handle = None
                    raise
        return self._handle[1]

    def _refuse_other(self, file: Any) -> None:
        """Refuse a file that holds other images than the one that was indexed; there may be more of them."""
        other = copy.copy(self)
        other._handle = self._handle
        other._index(file)
        same = (other.shape, other.scale, other._packing) == (self.shape, self.scale, self._packing)
        for name in self.channels if same else ():
            rows, times = self._rows[name], self._times[name]
            same &= (
                other._column.get(name) == self._column[name]
                and np.array_equal(other._rows[name][: len(rows)], rows)
                and np.array_equal(other._times[name][: len(times)], times, equal_nan=True)
            )
        if not same:
            raise InputError(f"{self.url}: holds other images than as the source was opened; start again")

    def _unreadable(self, error: BaseException, what: str = "") -> InputError:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return InputError(f"{self.url}:{what} cannot be read as HDF5 image cube: {text}")

    def _dataset(self, file: Any, name: str, *, required: bool = False) -> Any | None:
        import h5py

        link = file.get(name, getlink=True) if name in file else None
        if link is None:
            if required:
                raise InputError(
                    f"{self.url}: has no dataset {name!r}; read are cube (time, channel, y, x), time, channel"
                )
            return None
        # A file from a stranger must not make this one open other files.
        found = file[name] if isinstance(link, h5py.HardLink) else None
        if found is not None and _text(found.attrs.get("NAME", "")).startswith(_NO_VARIABLE):
            if required:
                raise InputError(f"{self.url}: has no numbers or texts for {name!r}, but only its length")
            return None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise InputError(f"{self.url}: {name!r} must be a dataset inside the file itself")
        if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > _MAX_CHUNK:
            raise InputError(f"{self.url}: one chunk of {name!r}, {found.chunks}, exceeds 1 GiB; rechunk it")
        if found.chunks and (stored := found.id.get_storage_size()):
            plan = found.id.get_create_plist()
            filters = [plan.get_filter(n) for n in range(plan.get_nfilters())]
            if lacking := [
                f"{f[3].decode()} ({f[0]})".strip() for f in filters if not h5py.h5z.filter_avail(f[0])
            ]:
                raise InputError(
                    f"{self.url}: {name!r} is packed by the filter {lacking[0]:.60}, which HDF5 lacks here; "
                    "repack it with gzip, or name the folder of hdf5plugin's filters in HDF5_PLUGIN_PATH"
                )
            if filters:
                self._packed.add(name)
            elif stored != found.id.get_num_chunks() * _chunk_size(found):
                raise InputError(
                    f"{self.url}: {name!r} has chunks that are not of their size; fetch the file again"
                )
        return found

    def _refuse_crumbs(self, dataset: Any, axes: slice = slice(None)) -> None:
        """Refuse a dataset of which too many chunks would be read at once, along axes not read one by one."""
        if dataset.chunks is None:
            return
        sides = zip(dataset.shape[axes], dataset.chunks[axes], strict=True)
        if (count := math.prod(-(-n // side) for n, side in sides)) > _MAX_CHUNKS:
            raise InputError(
                f"{self.url}: {dataset.name[1:]} is cut into chunks of {dataset.chunks}, of which {count} "
                f"would be read at once; up to {_MAX_CHUNKS} are: rechunk it"
            )

    def _taken(self, dataset: Any, *at: int) -> Any:
        """Read what a dataset has at places along its first axes, or all of it.

        HDF5 believes that chunks are of their size: of shorter ones it gives the memory behind them, which is
        anything and may not be there, and longer ones it unpacks to the end.
        """
        texts = dataset.dtype.kind == "O"
        length = 0
        if dataset.chunks and (texts or dataset.name[1:] in self._packed):
            sides = list(zip(dataset.shape, dataset.chunks, strict=True))
            begins = [range(n - n % side, n + 1, side) for n, (_, side) in zip(at, sides, strict=False)]
            begins += [range(0, length, side) for length, side in sides[len(at) :]]
            for begin in product(*begins):
                if (dataset.name, begin) in self._sized:
                    continue
                data = _chunk(dataset, begin)
                if texts:
                    within = tuple(n - first for n, first in zip(at, begin, strict=False))
                    length += _text_bytes(dataset, data, dataset.chunks, within)
                else:
                    if len(self._sized) == _MAX_CHUNKS:
                        self._sized.clear()
                    self._sized.add((dataset.name, begin))
        elif texts:
            length = _text_bytes(dataset, self._contiguous(dataset, at), dataset.shape[len(at) :])
        elif dataset.dtype.kind == "S":
            length = dataset.dtype.itemsize * math.prod(dataset.shape[len(at) :])
        if length > (most := _MAX_KEYWORDS if at else _MAX_TEXT):
            raise ValueError(f"texts of {length} bytes are longer than {most}")
        return dataset[at]

    def _contiguous(self, dataset: Any, at: tuple[int, ...]) -> bytes | None:
        """Return the bytes of a dataset without chunks at places along its first axes, if it has any."""
        assert self._handle is not None
        if not dataset.id.get_storage_size():
            return None
        if (begin := dataset.id.get_offset()) is None:
            raise ValueError(
                "texts are stored compactly, within the header of their dataset; store them contiguously"
            )
        count = math.prod(dataset.shape[len(at) :])
        first = sum(n * math.prod(dataset.shape[axis + 1 :]) for axis, n in enumerate(at))
        size, raw = _item_size(dataset), self._handle[2]
        raw.seek(begin + first * size)
        found: bytes = raw.read(count * size)
        return found

    def _index(self, file: Any) -> None:
        cube = self._dataset(file, "cube", required=True)
        assert cube is not None
        if cube.dtype.kind not in "fiu" or cube.ndim not in (3, 4):
            raise InputError(
                f"{self.url}: cube must be numbers of shape (T, C, Y, X) or (T, Y, X), "
                f"not {cube.dtype} {cube.shape}"
            )
        self._refuse_order(cube)
        self._packing = self._number(cube, "scale_factor", 1), self._number(cube, "add_offset", 0)
        if _text(cube.attrs.get("_Unsigned", "false")).lower() == "true":
            raise InputError(f"{self.url}: cube has unsigned numbers as signed ones; write it as float32")
        self._no_value = _no_values(cube)
        t, *middle, y, x = (int(n) for n in cube.shape)
        c = middle[0] if middle else 1
        if c > len(NAMES):
            # Their names would be read first, and a file of few bytes may have millions.
            raise InputError(f"{self.url}: cube has {c} channels; known are {len(NAMES)}")
        if not (0 < y <= MAX_SIDE and 0 < x <= MAX_SIDE and 0 < t * c <= _MAX_IMAGES):
            raise InputError(f"{self.url}: cube of shape {cube.shape} is empty or implausibly large")
        self._refuse_crumbs(cube, slice(-2, None))
        self._refuse_turned(file, cube)
        self.shape = (y, x)
        self.scale = self._read_scale(file)

        names = self._read_names(file, cube, c)
        units = _text(cube.attrs.get("units", ""))
        for known in map(channel, names):
            if units and unit_spelled(units) != known.unit:
                raise InputError(
                    f"{self.url}: cube is in {units!r:.40}, and {known.name} is read in {known.unit}; "
                    "convert it, or put its attribute units right"
                )
        self._column = {name: i for i, name in enumerate(names)}
        self.channels = canonical(names)

        time = self._read_time(file, "time", (t,), required=True)
        assert time is not None
        t_obs = self._read_time(file, "t_obs", (t, c))
        times = (
            time[:, None].repeat(c, axis=1)
            if t_obs is None
            else np.where(np.isnat(t_obs), time[:, None], t_obs)
        )
        valid = self._dataset(file, "valid")
        if valid is not None and (valid.shape != (t, c) or valid.dtype.kind not in "biu"):
            raise InputError(
                f"{self.url}: valid must be bool of shape {(t, c)}, not {valid.dtype} {valid.shape}"
            )
        if valid is not None:
            self._refuse_crumbs(valid)
        exists = np.ones((t, c), np.bool_) if valid is None else self._taken(valid).astype(np.bool_)
        self._rows = {name: np.flatnonzero(exists[:, i]) for name, i in self._column.items()}
        self._times: dict[str, Times] = {name: times[self._rows[name], i] for name, i in self._column.items()}

        keywords = self._dataset(file, "keywords")
        if keywords is not None and (keywords.shape != (t, c) or keywords.dtype.kind != "O"):
            raise InputError(f"{self.url}: keywords must be strings of shape {(t, c)}")
        self._has_keywords = keywords is not None
        self._stored = int(cube.id.get_storage_size())

    def _refuse_order(self, cube: Any) -> None:
        """Refuse a cube whose axes are named, as by xarray, in another order than they are read in."""
        order = ("time", "channel", "y", "x") if cube.ndim == 4 else ("time", "y", "x")
        told = [
            (dim.label or (dim[0].name if len(dim) else "") or "").rpartition("/")[2] for dim in cube.dims
        ]
        if other_order(told, order):
            raise InputError(
                f"{self.url}: cube has its axes in the order {', '.join(told):.60}; "
                f"transpose it to {', '.join(order)}"
            )

    def _refuse_turned(self, file: Any, cube: Any) -> None:
        """Refuse images whose coordinates tell that they are upside down or mirrored."""
        for name, length, way in zip("yx", cube.shape[-2:], ("south to north", "east to west"), strict=True):
            along = self._dataset(file, name)
            if along is None or along.shape != (length,) or along.dtype.kind not in "fiu":
                continue
            self._refuse_crumbs(along)
            places = self._taken(along)
            if places[-1] < places[0]:
                raise InputError(
                    f"{self.url}: {name} falls, where images are read from {way}; turn cube and {name}"
                )

    def _number(self, dataset: Any, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        found = np.ravel(dataset.attrs.get(name, default))
        if found.size != 1 or found.dtype.kind not in "fiu" or not math.isfinite(found[0]):
            raise InputError(f"{self.url}: attribute {name} of {dataset.name[1:]} is no number")
        return float(found[0])

    def _read_scale(self, file: Any) -> Scale:
        text = _text(file.attrs.get("scale", Scale.MEAN.value))
        try:
            return Scale(text)
        except ValueError:
            raise InputError(f"{self.url}: attribute scale must be mean or sum, not {text!r:.60}") from None

    def _read_names(self, file: Any, cube: Any, c: int) -> list[str]:
        dataset = self._dataset(file, "channel")
        if dataset is not None:
            # The classic model of netCDF has no texts, but letters along one more axis.
            letters = dataset.dtype == "S1" and dataset.ndim > 0 and dataset.shape[-1] <= _MAX_LETTERS
            shape = dataset.shape[:-1] if letters else dataset.shape
            if shape != (c,) and (shape or cube.ndim == 4):
                raise InputError(f"{self.url}: channel must name {c} channels, and has shape {dataset.shape}")
            found = np.asarray(self._taken(dataset))
            names = [
                b"".join(v).decode() if letters else _text(v)
                for v in found.reshape(c, *dataset.shape[len(shape) :])
            ]
        elif cube.ndim == 3 and ("channel" in cube.attrs or "channel" in file.attrs):
            names = [_text(cube.attrs.get("channel", file.attrs.get("channel")))]
        else:
            raise InputError(
                f"{self.url}: does not say which channels it holds; add channel='171A' or the like"
            )
        try:
            names = [channel(name).name for name in names]
        except InputError as error:
            raise InputError(f"{self.url}: {error}") from None
        if len(set(names)) != len(names):
            raise InputError(f"{self.url}: names a channel twice: {' '.join(names)}")
        return names

    def _read_time(
        self, file: Any, name: str, shape: tuple[int, ...], *, required: bool = False
    ) -> Times | None:
        dataset = self._dataset(file, name, required=required)
        if dataset is None:
            return None
        if dataset.shape != shape:
            raise InputError(f"{self.url}: {name} must have shape {shape}, not {dataset.shape}")
        self._refuse_crumbs(dataset)
        units = _text(dataset.attrs.get("units", ""))
        if dataset.dtype.kind in "iuf" and (units or dataset.dtype == np.int64):
            if {"scale_factor", "add_offset"}.intersection(dataset.attrs):
                raise InputError(
                    f"{self.url}: {name} is packed, which is undone of cube alone; write {_UNITS}"
                )
            counts = self._taken(dataset)
            try:
                found = parse_counts(
                    counts, units or _UNITS, _text(dataset.attrs.get("calendar", "standard"))
                )
            except InputError as error:
                raise InputError(f"{self.url}: {name} {error}") from None
            for value in _no_values(dataset):
                found[counts == value] = np.datetime64("NaT", "ms")
        elif dataset.dtype.kind in "OS":
            if dataset.size > _MAX_TEXTS:
                # A sparse file of few bytes may have as many as it likes, and each takes its time.
                raise InputError(f"{self.url}: {name} has {dataset.size} texts; write int64 ms since 1970")
            found = parse_t_obs(self._taken(dataset).ravel().tolist()).reshape(shape)
        else:
            raise InputError(
                f"{self.url}: {name} must be int64 ms since 1970, numbers of which an attribute units tells "
                f"what they count, or ISO 8601 strings, not {dataset.dtype}"
            )
        return found


def _item_size(dataset: Any) -> int:
    """Return the bytes of one value as they are in the file."""
    if dataset.dtype.kind == "O":
        # Of a text these are its length, and the address and number of where it is.
        return 8 + int(dataset.file.id.get_create_plist().get_sizes()[0])
    return int(dataset.id.get_type().get_size())


def _chunk_size(dataset: Any) -> int:
    """Return the bytes of one chunk before its filters."""
    return _item_size(dataset) * int(math.prod(dataset.chunks))


def _text_bytes(dataset: Any, data: bytes | None, shape: tuple[int, ...], at: tuple[int, ...] = ()) -> int:
    """Return how long the texts at some places are together, as is told where they are referred to.

    Parameters
    ----------
    data
        The references; None where there are none, and each text is the fill value.
    shape
        Theirs.
    at
        Places along the first axes.
    """
    if data is None:
        return len(dataset.fillvalue or b"") * int(math.prod(shape[len(at) :]))
    form = np.dtype(
        {"names": ["length"], "formats": ["<u4"], "offsets": [0], "itemsize": _item_size(dataset)}
    )
    return int(np.frombuffer(data, form)["length"].reshape(shape)[at].sum(dtype=np.int64))


def _chunk(dataset: Any, begin: tuple[int, ...]) -> bytes | None:
    """Return the bytes of a chunk, None if there is none; numbers may be packed or shuffled yet.

    Raises
    ------
    ValueError
        If it does not unpack to its size, as far as its filters can be undone here, or it is of texts and
        they cannot.
    """
    from h5py import h5z

    try:
        packed: tuple[int, bytes] = dataset.id.read_direct_chunk(begin)
    except (RuntimeError, MemoryError):
        # All is fill value. For a chunk that is not there h5py takes as much memory as any number says.
        return None
    except OSError:
        # So h5py 3.11 says the same, as where a disk fails; to ask first would go through all chunks anew.
        if dataset.id.get_chunk_info_by_coord(begin).byte_offset is None:
            return None
        raise
    skipped, data = packed
    texts = dataset.dtype.kind == "O"
    size, plan = _chunk_size(dataset), dataset.id.get_create_plist()
    for n in reversed(range(plan.get_nfilters())):
        code = plan.get_filter(n)[0]
        # HDF5 leaves texts as they are where numbers are shuffled.
        if skipped >> n & 1 or (code == h5z.FILTER_SHUFFLE and not texts):
            continue
        if code == h5z.FILTER_FLETCHER32:
            data = data[:-4]
        elif code == h5z.FILTER_DEFLATE:
            try:
                data = zlib.decompressobj().decompress(data, size + 5)  # a checksum may follow
            except zlib.error as error:
                raise ValueError(f"chunk at {begin}: {error}") from None
        elif texts:
            raise ValueError("texts are packed by another filter than gzip; write them without")
        else:
            return data
    if len(data) != size:
        raise ValueError(
            f"chunk at {begin} does not hold the {size} bytes of its shape; fetch the file again"
        )
    return data


def _no_values(dataset: Any) -> list[Any]:
    """Return the numbers that stand for none in a dataset."""
    told = [np.ravel(dataset.attrs[k]) for k in ("_FillValue", "missing_value") if k in dataset.attrs]
    found = [v[0] for v in told if v.size == 1 and v.dtype.kind in "fiu"]
    # HDF5 gives this where nothing was written. In bytes netCDF has no number to spare for it.
    return [*found, dataset.fillvalue] if dataset.fillvalue and dataset.dtype.itemsize > 1 else found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
