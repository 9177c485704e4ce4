"""SDOML v1: one npz file per image, known by its file name alone, in folders of any layout."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS, NAMES
from sunzip.cube import Header, Scale
from sunzip.errors import InputError, UnreadableError
from sunzip.sources.base import Source
from sunzip.sources.layouts import Layouts
from sunzip.sources.storage import Storage
from sunzip.times import format_tai, format_utc, parse_v1

_NAME = re.compile(r"(AIA|HMI)(\d{8}_\d{4})_(\d{4}|b[xyz])\.npz", re.ASCII)
_IDS = {f"{c.instrument}_{c.v1_id}": c.index for c in CHANNELS}
#: The largest image that is read, and so the most bytes of a file and of what it unpacks to.
_MAX_PIXELS = 4096 * 4096
_MAX_FILE = 8 * _MAX_PIXELS + (1 << 20)
#: Images that are looked at for one that can be read.
_TRIED = 100


class SdomlV1(Source):
    """A tree of SDOML v1 files, ``AIA20131125_0824_0211.npz`` and ``HMI20131125_0824_bz.npz``.

    Channel and time come from the file name, never from the folder, so that every known folder layout is
    read alike. Of files with the same name the first by folder is taken. A row keeps no path: the name
    follows from channel and time, and folders are stored once, so that millions of files can be indexed.

    Parameters
    ----------
    url
        A folder, searched to any depth, or one file; a local path or an fsspec URL.
    anon
        Ask S3 without credentials.

    Raises
    ------
    InputError
        If nothing is there, no file is named as SDOML v1 does, files of another layout lie there, too, or
        none of the first 100 images can be read.
    """

    layout = "sdoml-v1"
    scale = Scale.SUM

    def __init__(self, url: str, anon: bool = False) -> None:
        self.url = url
        self.counts = Counter()
        self._storage = Storage(url, anon)
        self.at_once = self._storage.at_once
        self._is_file = not self._storage.isdir()
        self._bytes: int | None = 0

        stamps: list[list[str]] = [[] for _ in CHANNELS]
        folders: list[list[int]] = [[] for _ in CHANNELS]
        self._folders: list[str] = []
        for folder, files in self._walk():
            here = len(self._folders)
            for name, size in files:
                match = _NAME.fullmatch(name)
                index = _IDS.get(f"{match[1]}_{match[3]}") if match else None
                if match is None or index is None:
                    self.skip("npz file of another name", name.endswith(".npz"))
                    continue
                stamps[index].append(match[2])
                folders[index].append(here)
                self._bytes = None if size is None or self._bytes is None else self._bytes + size
            self._folders.append(folder)
        self._times: dict[str, npt.NDArray[np.datetime64]] = {}
        self._where: dict[str, npt.NDArray[np.int32]] = {}
        for index, name in enumerate(NAMES):
            times, where = parse_v1(stamps[index]), np.array(folders[index], np.int32)
            known = ~np.isnat(times)
            self.skip("no date in file name", int((~known).sum()))
            # Folders are walked in sorted order, so that the first of equal times is the first by folder.
            times, first = np.unique(times[known], return_index=True)
            self.skip("duplicate file name", int(known.sum()) - len(times))
            if len(times):
                self._times[name], self._where[name] = times, where[known][first]
        self.counts += Counter()  # drops the zeros
        self.channels = tuple(n for n in NAMES if n in self._times)
        if not self.channels:
            raise InputError(
                f"{url}: no SDOML v1 file found; looked for names like AIA20131125_0824_0211.npz"
            )
        self.shape = self._first_shape()

    def _first_shape(self) -> tuple[int, int]:
        """Return the shape of the first image that can be read."""
        first: UnreadableError | None = None
        rows = ((name, row) for name in self.channels for row in range(len(self._times[name])))
        for name, row in islice(rows, _TRIED):
            try:
                height, width = self._load(name, row).shape
            except UnreadableError as error:
                first = first or error
            else:
                return height, width
        assert first is not None
        raise first

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC: the minute in each file name, in rising order."""
        return self._times[channel]

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image, (Y, X) float32; thread-safe."""
        image = self._load(channel, row)
        if image.shape != self.shape:
            raise InputError(
                f"{self._storage.name(self._path(channel, row))}: image of {image.shape[0]}×{image.shape[1]} "
                f"among images of {self.shape[0]}×{self.shape[1]}"
            )
        return image

    def header(self, channel: str, row: int) -> Header:
        """Return what the file name says: the time in the instrument's own notation and the wavelength."""
        known = CHANNELS[NAMES.index(channel)]
        write = format_utc if known.instrument == "AIA" else format_tai
        return {"T_OBS": write(self._times[channel][row : row + 1])[0], "WAVELNTH": known.wavelength}

    def stored_bytes(self) -> int | None:
        """Bytes of all files that are named as images, or None if the store did not say."""
        return self._bytes

    def _walk(self) -> Iterator[tuple[str, list[tuple[str, int | None]]]]:
        """Yield each folder below the root with its files and their sizes, sorted by folder."""
        storage = self._storage
        if self._is_file:
            folder, _, name = storage.root.rpartition("/")
            yield folder, [(name, storage.fs.size(storage.root))]
            return
        layouts = Layouts(storage)
        for folder, names in storage.tree():
            files = [(name, size) for name, (is_dir, size) in names.items() if not is_dir]
            layouts.look(folder, (name for name, _ in files))
            yield folder, files

    def _path(self, channel: str, row: int) -> str:
        """Return the path of one image below the root."""
        if self._is_file:
            return ""
        known = CHANNELS[NAMES.index(channel)]
        stamp = str(self._times[channel][row].astype("datetime64[m]"))
        stamp = stamp.replace("-", "").replace("T", "_").replace(":", "")
        folder = self._folders[self._where[channel][row]]
        return os.path.join(folder, f"{known.instrument}{stamp}_{known.v1_id}.npz")

    def _load(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        path = self._path(channel, row)
        name = self._storage.name(path)
        raw = self._storage.read(path, limit=_MAX_FILE)
        if raw is None:
            raise InputError(f"{name}: is gone since the folder was listed; check the storage")
        try:
            return _read_npz(raw)
        except InputError as error:
            raise self._unreadable(f"{name}: {error}") from error
        except MemoryError:
            raise
        # What zipfile, zlib and numpy raise at hostile bytes is of many kinds.
        except Exception as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise self._unreadable(
                f"{name}: is no readable npz file ({detail:.100}); fetch it again"
            ) from error

    def _unreadable(self, told: str) -> InputError:
        """Return the error of a damaged file: without the only one there is nothing to go on with."""
        return (InputError if self._is_file else UnreadableError)(told)


def _read_npz(raw: bytes) -> npt.NDArray[np.float32]:
    """Read the array ``x`` of an npz file; its size is checked before anything is unpacked."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if "x.npy" not in archive.namelist():
            held = " ".join(n.removesuffix(".npy") for n in archive.namelist()[:5])
            raise InputError(f"holds no array 'x', as SDOML v1 files do, but: {held[:100]}")
        member = archive.getinfo("x.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of the others zipfile unpacks all that it has read, however few bytes are asked for.
            raise InputError("its array 'x' is packed in another way than NumPy packs")
        if member.file_size > _MAX_FILE:
            # The header may claim as much, which NumPy reads before it looks.
            raise InputError(f"its array 'x' has {member.file_size} bytes, which no image has")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise InputError(f"npy format {version} is not one that images are stored in")
            shape, fortran, dtype = read_header(file)
            if dtype.kind != "f":
                raise InputError(f"its array 'x' has dtype {dtype}; SDOML v1 images are float32 or float16")
            if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > _MAX_PIXELS:
                raise InputError(f"its array 'x' has shape {shape}, which no image has")
            length = math.prod(shape) * dtype.itemsize
            pixels = file.read(length + 1)  # one more: only at its end does zipfile check the CRC
    if len(pixels) != length:
        raise InputError(f"its array 'x' does not have the {length} bytes that its shape {shape} needs")
    image = np.frombuffer(pixels, dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which `series` counts
        return np.ascontiguousarray(image, np.float32)
