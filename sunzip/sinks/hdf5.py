"""One HDF5 file, written: the layout "cube-1", which keeps all that a `Cube` holds and any tool can open.

Datasets: ``cube`` (time, channel, y, x) float32, one chunk an image, NaN where there is none; ``channel``
names; ``time`` and ``t_obs`` int64 ms since 1970 UTC (-2^63: missing); ``valid``; ``keywords``, each the JSON
of one FITS header ("" where there is no image). Root attributes ``sunzip_layout``, ``scale``, and what is to
be said of all images besides.
"""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sunzip.cube import Cube
from sunzip.sinks.base import MARK, Sink, Target


class Hdf5Target(Target):
    """One HDF5 file being written, on a disk that may be full."""

    _is_file: ClassVar[bool] = True
    _stream: _Stream | None = None
    _file: Any = None

    def _begin(self) -> None:
        import h5py

        self._stream = _Stream(self._partial)
        self._file = h5py.File(self._stream, "w")
        self._lay_out(self._file)

    @abstractmethod
    def _lay_out(self, file: Any) -> None:
        """Make the attributes and datasets of a new h5py file."""

    @contextmanager
    def _checked(self) -> Iterator[Any]:
        """Yield the h5py file to write to."""
        assert self._stream is not None
        try:
            yield self._file
        except (OSError, RuntimeError):
            # HDF5 may stumble over what the stream could not keep, and that is then the reason.
            self._stream.check()
            raise
        self._stream.check()

    def _finish(self) -> None:
        assert self._stream is not None
        self._file.close()
        self._stream.close()
        self._stream.check()

    def _discard(self) -> None:
        with suppress(OSError, RuntimeError):
            if self._file is not None:
                self._file.close()
        if self._stream is not None:
            self._stream.close()


class Hdf5Sink(Hdf5Target, Sink):
    """Writes one HDF5 file, growing along time."""

    layout = "hdf5"

    def _lay_out(self, file: Any) -> None:
        import h5py

        c, (y, x) = len(self.channels), self.shape
        file.attrs[MARK] = "cube-1"
        file.attrs["scale"] = self.scale.value
        file.attrs.update(self._about)
        file.create_dataset(
            "cube",
            (0, c, y, x),
            "<f4",
            maxshape=(None, c, y, x),
            chunks=(1, 1, y, x),
            shuffle=True,
            compression="gzip",
            compression_opts=4,
            fillvalue=np.nan,
        )
        text = h5py.string_dtype()
        file.create_dataset("channel", data=list(self.channels), dtype=text)
        for name, shape, dtype in (
            ("time", (), "<i8"),
            ("t_obs", (c,), "<i8"),
            ("valid", (c,), np.bool_),
            ("keywords", (c,), text),
        ):
            file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1024, *shape))
        for name in ("time", "t_obs"):
            file[name].attrs["units"] = "milliseconds since 1970-01-01"
        for name, labels in (
            ("cube", ("time", "channel", "y", "x")),
            ("t_obs", ("time", "channel")),
            ("valid", ("time", "channel")),
            ("keywords", ("time", "channel")),
        ):
            for dim, label in zip(file[name].dims, labels, strict=True):
                dim.label = label

    def _write(self, cube: Cube) -> None:
        with self._checked() as file:
            self._append(cube, file)

    def _append(self, cube: Cube, file: Any) -> None:
        start = file["time"].shape[0]
        stop = start + len(cube)
        for name in ("cube", "time", "t_obs", "valid", "keywords"):
            file[name].resize(stop, axis=0)
        file["time"][start:] = cube.time.astype("M8[ms]").astype(np.int64)
        file["t_obs"][start:] = cube.t_obs.astype("M8[ms]").astype(np.int64)
        file["valid"][start:] = cube.valid
        for t in self._frames(cube):
            file["keywords"][start + t] = [
                json.dumps(dict(header)) if ok else ""
                for header, ok in zip(cube.headers[t], cube.valid[t], strict=True)
            ]
            for c in np.flatnonzero(cube.valid[t]):
                file["cube"][start + t, c] = cube.data[t, c]


class _Stream(io.RawIOBase):
    """The file under HDF5, which keeps the first error to itself until it is asked.

    HDF5 (1.14) on a full disk may lose the error while it closes a dataset, so that a broken file looks
    finished, and ends the process when the file is closed after an error. Here it sees a disk that is
    never full, and the sink asks `check`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong first, if anything did."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        # Bytes that were never written read as zeros, as they would from a file with a hole.
        size = len(buffer)
        done = self._file.readinto(buffer) or 0
        memoryview(buffer)[done:] = bytes(size - done)
        return size

    def write(self, data: Any) -> int:
        done = 0
        try:
            while self._error is None and done < len(data):
                done += self._file.write(data[done:]) or 0
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        try:
            if self._error is None:
                self._file.truncate(size)
        except OSError as error:
            self._error = error
        return size

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        super().close()
