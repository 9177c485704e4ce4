"""The xarray engine `sunzip`: archives as lazy datasets with CF metadata, decoded when they are computed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import channel
from sunzip.errors import InputError, needing

with needing("xarray", "the engine of xarray needs"):
    from xarray import Dataset, Variable
    from xarray.backends import BackendArray, BackendEntrypoint, CachingFileManager
    from xarray.core import indexing

if TYPE_CHECKING:
    from sunzip.sun import Sun

#: Pixels decoded at a time before they are cut out, so that a light curve needs no memory for whole images.
_PIXELS = 1 << 24

#: Milliseconds as float64 are exact and, unlike int64, fit into every netCDF format.
_TIME_ENCODING = {"units": "milliseconds since 1970-01-01", "calendar": "standard", "dtype": "float64"}

#: In files, texts of any size, for the reason that channels are: `str` as xarray writes it, which it need not
#: look for in objects. With a missing value they come back as objects, to which xarray appends texts; it is
#: as long as the longest unit, as xarray cuts a single text of Dask's to its length.
_TEXT_ENCODING = {"dtype": np.dtype(object, metadata={"element_type": str}), "missing_value": "none"}

#: What the decoding options of xarray may say, besides nothing: archives are opened in this way only.
_DECODED = {"mask_and_scale": True, "decode_times": True, "decode_timedelta": False, "use_cftime": False}

#: Names of the dimensions of latents after time.
_LATENT_DIMS = ("latent", "latent_y", "latent_x")


class SunzipBackend(BackendEntrypoint):
    """Opens `.lat` archives: ``xr.open_dataset("out.lat")``.

    Datasets may be shared by threads, pickled to other processes and used after a fork; no lock is needed.
    """

    description: ClassVar[str] = "Open sunzip archives (.lat): compressed images of the Sun"
    url: ClassVar[str] = "https://docs.xarray.dev/en/stable/internals/how-to-add-new-backend.html"

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is an archive by its last bytes, or something called `.lat` that may have been one.

        Of such a name only files are left to others that are neither empty nor begin as a zip does.
        """
        from sunzip.archive import ends_as_archive

        try:
            path = os.path.expanduser(os.fspath(filename_or_obj))
            named = path.endswith(".lat")
            if "://" in path or "::" in path:
                return bool(named)
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):
                    return False
                with open(path, "rb") as file:
                    head, ours = file.read(4), ends_as_archive(file)
            except OSError:
                # The engine says better than xarray what is wrong with it.
                return bool(named)
            return ours or (named and head in (b"", b"PK\3\4"))
        except (TypeError, ValueError):
            return False

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        model: str | Path | None = None,
        channels: str | Iterable[str] | None = None,
        latents: bool = False,
        anon: bool = False,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        decode_timedelta: Any = None,
        use_cftime: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
    ) -> Dataset:
        """Open an archive as a dataset whose variables are read and decoded when they are computed.

        Parameters
        ----------
        filename_or_obj
            Path or URL of a ``.lat`` file.
        drop_variables
            Names to leave out.
        model
            What decodes the archive, if it is neither embedded nor installed.
        channels
            Which channels to have, one name or several, in canonical order whatever the order here; None is
            all.
        latents
            Whether to have the variable `latents`, (time, …) float32, of which no images are made.
        anon
            Ask S3 or Google Cloud Storage without credentials.
        mask_and_scale, decode_times, decode_timedelta, use_cftime
            None, or what archives are opened as: masked, with times, spans as numbers, without cftime.
        concat_characters, decode_coords
            Without effect: there are no characters to join, and the coordinates are known.

        Returns
        -------
        dataset
            `cube` (time, channel, y, x) float32 in `unit`, NaN where there is no measurement. Coordinates are
            those of the archive's own Zarr metadata; times are datetime64[ms], `quality` is float64, NaN
            where unknown.

        Raises
        ------
        InputError, DamagedError, UnsupportedError
            If the archive cannot be used, or lacks a channel, or is to be opened without decoding.
        ModelNotFoundError
            If latents are wanted, or later if images are decoded, and the model is not on this machine.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            kind = type(filename_or_obj).__name__
            raise InputError(f"the engine sunzip opens paths and URLs of .lat files, not {kind}")
        given = (mask_and_scale, decode_times, decode_timedelta, use_cftime)
        for (option, only), value in zip(_DECODED.items(), given, strict=True):
            if value is not None and value is not only:
                raise InputError(
                    f"the engine sunzip opens archives decoded, with times and NaN: it takes {option}={only} "
                    "alone, and no decode_cf=False"
                )
        from sunzip.archive import absolute

        # Where it is opened again, in another process perhaps, the folder may be another one. A home is found
        # as xarray does it for its own engines, and for the names that `open_mfdataset` is given.
        path = absolute(os.path.expanduser(os.fspath(filename_or_obj)))
        manager = CachingFileManager(
            _open, path, mode="r", kwargs={"model": model, "anon": anon, "first": _First()}
        )
        try:
            dataset = _dataset(manager, channels, latents)
        except BaseException:
            manager.close()
            raise
        dataset.set_close(manager.close)
        if drop_variables is not None:
            drop = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables)
            dataset = dataset.drop_vars(drop, errors="ignore")
        return dataset


class _First:
    """What an archive was when it was opened first: its times are in memory since then."""

    identity: str | None = None


class _Shared:
    """An open archive, which xarray may close, having too many, while other threads read it.

    Only late releases wait until it is not in use.
    """

    def __init__(self, sun: Sun) -> None:
        self.sun = sun

    def close(self) -> None:
        """Do nothing: the file is closed when nobody has it any more."""


def _open(path: str, *, mode: str, model: str | Path | None, anon: bool, first: _First) -> _Shared:
    """Open an archive in this process; managers in other processes always state a mode."""
    from sunzip.sun import Sun

    sun = Sun(path, model, anon, first.identity)
    first.identity = sun.archive.identity
    return _Shared(sun)


def _dataset(manager: Any, channels: str | Iterable[str] | None, latents: bool) -> Dataset:
    sun: Sun = manager.acquire().sun
    archive = sun.archive
    names = sun.held(channels)
    pick = np.array([sun.channels.index(n) for n in names])
    known = [channel(n) for n in names]
    in_memory = {
        "time": sun.time,
        "channel": np.array(names, object),  # strings of fixed size would be of no specified type in Zarr
        "wavelength": np.array([c.wavelength for c in known], np.float64),
        "unit": np.array([c.unit for c in known], str),  # not objects, of which Dask cannot choose chunks
        "y": archive.axis("y"),
        "x": archive.axis("x"),
    }
    variables: dict[str, Variable] = {}
    for name, tree in archive.metadata().items():
        dims, attrs = tree["dimension_names"], dict(tree["attributes"])
        attrs.pop("coordinates", None)  # a dataset knows its coordinates
        encoding: dict[str, Any] = {}
        data: npt.NDArray[Any] | _Lazy
        if name in in_memory:
            data = in_memory[name]
        elif name == "cube":
            data = _Images(manager, (len(sun), len(names), *archive.shape), names)
        elif dims == ["time", "channel"]:
            data = _Table(manager, (len(sun), len(names)), name, pick)
        else:
            continue  # how coded bytes and keywords are stored is no matter of a dataset
        if name == "unit":
            encoding |= _TEXT_ENCODING
        if attrs.get("units") == _TIME_ENCODING["units"]:
            encoding |= _TIME_ENCODING
            del attrs["units"], attrs["calendar"]
        if name in ("t_obs", "quality"):
            # What stands for missing values in the archive is NaT and NaN here.
            attrs["long_name"] = attrs["long_name"].partition(";")[0]
        if isinstance(data, _Lazy):
            # All variables alike, or Dask's chunks of a dataset would contradict each other.
            whole = dict(zip(dims, data.shape, strict=True))
            encoding["preferred_chunks"] = whole | {"time": archive.frames_per_block}
        variables[name] = Variable(dims, _lazily(data), attrs, encoding)
    coordinates = {n: v for n, v in variables.items() if n != "cube"}
    data_variables = {"cube": variables["cube"]}
    if latents:
        shape = sun.latents.shape
        data_variables["latents"] = Variable(
            ("time", *_LATENT_DIMS[: len(shape) - 1]),
            _lazily(_Latents(manager, shape)),
            {"long_name": "latents as the synthesis transform takes them, of all channels", "units": "1"},
            {"preferred_chunks": {"time": archive.frames_per_block}},
        )
    return Dataset(data_variables, coordinates, _attributes(sun, names))


def _lazily(data: npt.NDArray[Any] | _Lazy) -> Any:
    return indexing.LazilyIndexedArray(data) if isinstance(data, _Lazy) else data


def _attributes(sun: Sun, names: Sequence[str]) -> dict[str, Any]:
    """Return what the dataset says of itself: attributes of CF and of how it was coded."""
    archive = sun.archive
    urls = archive.source.get("urls")
    return {
        "Conventions": "CF-1.11",
        "title": "Images of the Sun by SDO: " + " ".join(sun.channels),
        "source": " ".join(map(str, urls)) if isinstance(urls, list) else "unknown",
        "scale": str(sun.scale),
        **archive.origin(names),
    }


class _Lazy(BackendArray):
    """An array over time of which frames are read in pieces.

    Pickling takes the file by its path along; the manager opens it once in each process.
    """

    def __init__(self, manager: Any, shape: tuple[int, ...], dtype: str) -> None:
        self._manager = manager
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.VectorizedIndexer):
            outer = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, outer, self._outer)
        # The adapter fails on empty slices with a negative step, which are nothing special here.
        return self._outer(key.tuple)

    def _outer(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Index each axis by itself with an integer, a slice or a list of integers."""
        chosen = [np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)]
        frames, place = np.unique(chosen[0], return_inverse=True)
        rest = [np.atleast_1d(c) for c in chosen[1:]]
        out = np.empty((len(frames), *map(len, rest)), self.dtype)
        begin = 0
        for numbers in self._pieces(frames, self._samples(rest)) if out.size else []:
            # Anew for each piece: the file may have been closed as one of too many.
            with self._manager.acquire_context() as shared:
                out[begin : begin + len(numbers)] = self._read(shared.sun, numbers, rest)
            begin += len(numbers)
        if len(frames) != chosen[0].size or (np.diff(place.ravel()) < 0).any():
            out = out[place.ravel()]
        return out.reshape([n for c in chosen for n in c.shape])

    def _pieces(self, frames: npt.NDArray[np.int64], samples: int) -> list[npt.NDArray[np.int64]]:
        """Split frames of which so many samples each are decoded into those that are read at a time."""
        if not samples:
            return [frames]
        with self._manager.acquire_context() as shared:
            stretches = shared.sun.stretches(frames.tolist(), _PIXELS // samples)
            return [np.array(stretch) for stretch in stretches]

    def _samples(self, rest: Sequence[npt.NDArray[np.int64]]) -> int:
        """Return how many samples of a frame are decoded for this: of a table none."""
        return 0

    def _read(
        self, sun: Sun, frames: npt.NDArray[np.int64], rest: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[Any]:
        raise NotImplementedError


class _Images(_Lazy):
    """(T, C, Y, X) pixels: only the frames and channels asked for are decoded."""

    def __init__(self, manager: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
        super().__init__(manager, shape, "float32")
        self._names = names

    def _samples(self, rest: Sequence[npt.NDArray[np.int64]]) -> int:
        _, _, height, width = self.shape
        return len(np.unique(rest[0])) * height * width

    def _read(
        self, sun: Sun, frames: npt.NDArray[np.int64], rest: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[Any]:
        channels, place = np.unique(rest[0], return_inverse=True)
        images = sun.take(frames.tolist(), [self._names[c] for c in channels])
        return images[np.ix_(np.arange(len(frames)), place, *rest[1:])]


class _Latents(_Lazy):
    """(T, …) latents, of which no pixels are made."""

    def __init__(self, manager: Any, shape: tuple[int, ...]) -> None:
        super().__init__(manager, shape, "float32")

    def _samples(self, rest: Sequence[npt.NDArray[np.int64]]) -> int:
        return int(np.prod(self.shape[1:]))

    def _read(
        self, sun: Sun, frames: npt.NDArray[np.int64], rest: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[Any]:
        return sun.latents.take(frames.tolist())[np.ix_(np.arange(len(frames)), *rest)]


class _Table(_Lazy):
    """(T, C) of what is known of each image."""

    def __init__(self, manager: Any, shape: tuple[int, ...], name: str, pick: npt.NDArray[np.int64]) -> None:
        super().__init__(manager, shape, _DTYPES.get(name, "float32"))
        self._name = name
        self._pick = pick

    def _read(
        self, sun: Sun, frames: npt.NDArray[np.int64], rest: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[Any]:
        rows: npt.NDArray[Any] = sun.archive.rows(self._name, int(frames[0]), int(frames[-1]) + 1)
        rows = rows[np.ix_(frames - frames[0], self._pick[rest[0]])]
        if self._name == "quality":
            return np.where(rows == np.iinfo(np.int64).min, np.nan, rows)
        return rows


_DTYPES = {"t_obs": "datetime64[ms]", "quality": "float64", "valid": "bool"}
