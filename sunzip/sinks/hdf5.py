"""One HDF5 file, written: the layout "cube-1", which keeps all that a `Cube` holds and any tool can open.

Datasets: ``cube`` (time, channel, y, x) float32, one chunk an image, NaN where there is none; ``channel``
names; ``time`` and ``t_obs`` int64 ms since 1970 UTC (-2^63: missing); ``valid``; ``keywords``, each the JSON
of one FITS header ("" where there is no image). Root attributes ``sunzip_layout`` and ``scale``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np

from sunzip.cube import Cube
from sunzip.sinks.base import Sink


class Hdf5Sink(Sink):
    """Writes one HDF5 file, growing along time."""

    layout = "hdf5"
    _is_file: ClassVar[bool] = True
    _file: Any = None

    def _begin(self) -> None:
        import h5py

        c, (y, x) = len(self.channels), self.shape
        self._file = file = h5py.File(self._partial, "w")
        file.attrs["sunzip_layout"] = "cube-1"
        file.attrs["scale"] = self.scale.value
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
        file = self._file
        start = file["time"].shape[0]
        stop = start + len(cube)
        for name in ("cube", "time", "t_obs", "valid", "keywords"):
            file[name].resize(stop, axis=0)
        file["time"][start:] = cube.time.astype("M8[ms]").astype(np.int64)
        file["t_obs"][start:] = cube.t_obs.astype("M8[ms]").astype(np.int64)
        file["valid"][start:] = cube.valid
        for t, headers in enumerate(cube.headers):
            file["keywords"][start + t] = [
                json.dumps(dict(header)) if ok else ""
                for header, ok in zip(headers, cube.valid[t], strict=True)
            ]
            for c in np.flatnonzero(cube.valid[t]):
                file["cube"][start + t, c] = cube.data[t, c]

    def _finish(self) -> None:
        try:
            self._file.close()
        except RuntimeError as error:  # what h5py raises for a full disk at the last flush
            raise OSError(str(error)) from error

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError, RuntimeError):
                self._file.close()
