"""SDOML version 2, written: a Zarr format 2 store as the public one is, so that its readers take it.

Group ``YYYY`` for the nominal year, in it one array per channel (N, Y, X) ``<f4``, chunks of 15 images, or
of fewer beyond 1024², Blosc zstd-5 with bitshuffle; every keyword an array attribute with a list of length N,
null where a row lacks it. Only images that exist are rows, so N differs per channel. AIA pixels are means.
AIA and HMI share one store, where the public data have two. The root attribute ``sunzip_layout`` tells that
sunzip wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import channel
from sunzip.cube import Cube, Header, Scale
from sunzip.sinks.base import MARK, Sink, taken_at
from sunzip.times import parse_t_obs, t_obs_keyword, time_of

#: Images per chunk, as in the public store, and pixels at most: who writes or reads holds one per channel.
_CHUNK, _CHUNK_PIXELS = 15, 2**24


class SdomlV2Sink(Sink):
    """Writes an SDOML v2 store; holds at most one chunk of images per channel.

    Parameters
    ----------
    path, channels, shape, about
        As `Sink`; the last is JSON, of the root group.
    """

    layout = "sdoml-v2"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channels: Sequence[str],
        shape: tuple[int, int],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._year: str | None = None
        self._arrays: dict[str, _Rows] = {}
        super().__init__(path, channels=channels, shape=shape, scale=Scale.MEAN, about=about)

    def _begin(self) -> None:
        import zarr

        # Mode "w" would make the folder anew, and it is held.
        self._root = zarr.create_group(self._partial, zarr_format=2)
        self._root.attrs.put({MARK: self.layout, **self._about})

    def _write(self, cube: Cube) -> None:
        years = np.datetime_as_string(cube.time, unit="Y")
        for t in self._frames(cube):
            if years[t] != self._year:
                self._finish_year()
                self._year = str(years[t])
                self._group = self._root.create_group(self._year)
            for c, name in enumerate(self.channels):
                if not cube.valid[t, c]:
                    continue
                header = dict(cube.headers[t][c])
                # Rows are found by T_OBS, so one that is no time would lose the image; and one in the scale
                # of a FITS header's TIMESYS would be read as UTC.
                told = parse_t_obs([header.get("T_OBS")])[0]
                if np.isnat(told) or told != time_of(header, "T_OBS"):
                    header["T_OBS"] = t_obs_keyword(taken_at(cube, t, c), channel(name).instrument)
                if name not in self._arrays:
                    self._arrays[name] = _Rows(self._group, name, self.shape)
                self._arrays[name].append(cube.data[t, c], header)

    def _finish(self) -> None:
        self._finish_year()

    def _finish_year(self) -> None:
        for rows in self._arrays.values():
            rows.finish()
        self._arrays.clear()


class _Rows:
    """One array that grows by rows, written a whole chunk at a time as a chunk is the unit of coding."""

    def __init__(self, group: Any, name: str, shape: tuple[int, int]) -> None:
        from numcodecs import Blosc

        self._depth = max(1, min(_CHUNK, _CHUNK_PIXELS // (shape[0] * shape[1])))
        self._array = group.create_array(
            name,
            shape=(0, *shape),
            chunks=(self._depth, *shape),
            dtype="<f4",
            fill_value=0.0,
            compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
            # A dropped chunk reads as +0.0, and an image of -0.0 would come back changed.
            config={"write_empty_chunks": True},
        )
        self._shape = shape
        self._written = 0
        self._held: list[npt.NDArray[np.float32]] = []
        self._keywords: dict[str, list[str | int | float | bool | None]] = {}

    def append(self, image: npt.NDArray[np.float32], header: Header) -> None:
        row = self._written + len(self._held)
        self._held.append(image.copy())  # the caller's cube may be large, and is let go of
        for key, value in header.items():
            if key not in self._keywords:
                self._keywords[key] = [None] * row
            self._keywords[key].append(value)
        for values in self._keywords.values():
            if len(values) == row:
                values.append(None)
        if len(self._held) == self._depth:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._array.attrs.put(self._keywords)

    def _flush(self) -> None:
        if self._held:
            stop = self._written + len(self._held)
            self._array.resize((stop, *self._shape))
            self._array[self._written : stop] = np.stack(self._held)
            self._written = stop
            self._held.clear()
