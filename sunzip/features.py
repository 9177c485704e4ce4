"""The latents of an archive as a table that other tools read: by time, pooled or as principal components."""

from __future__ import annotations

import json
import os
import time as clock
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sunzip.api import OnProgress, Progress, replacing
from sunzip.arguments import whole
from sunzip.display import Report
from sunzip.errors import InputError, needing, without_secrets
from sunzip.files import printable
from sunzip.sinks.base import MARK, Target, refuse
from sunzip.sinks.hdf5 import Hdf5Target
from sunzip.sun import Sun, open
from sunzip.times import When, format_utc, parse_date
from sunzip.weights import Model

Float = npt.NDArray[np.float32]

#: Columns of a table beyond which programs that read tables give up.
MAX_COLUMNS = 10_000

#: float32 numbers that are decoded at a time, and that are written as one chunk.
_STRETCH, _CHUNK = 1 << 22, 1 << 20

#: Frames and float32 numbers of one step of the principal components' fit.
_FIT_FRAMES, _FIT_NUMBERS = 1024, 1 << 23

#: float32 numbers, pooled, that are kept from the fit for being written; others are decoded once more.
_KEPT = 1 << 26

_UNITS = {"standard_name": "time", "units": "milliseconds since 1970-01-01", "calendar": "standard"}


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of flattened latents x: features are ``(x − mean) @ components.T``.

    Attributes
    ----------
    mean
        (D,) float32.
    components
        (K, D) float32, orthonormal rows.
    explained_variance_ratio
        (K,) float32: the share of the variance of the frames that were fitted.
    frames
        How many these were.
    """

    mean: Float
    components: Float
    explained_variance_ratio: Float
    frames: int

    def project(self, latents: Float) -> Float:
        """Return the (T, K) features of (T, D) latents."""
        features: Float = np.matmul(latents - self.mean, self.components.T, dtype=np.float32)
        return features


@dataclass(frozen=True, slots=True)
class FeaturesReport(Report):
    """What `export_features` wrote.

    Attributes
    ----------
    path, format
        The target, and whether it is ``"hdf5"``, ``"csv"``, ``"parquet"`` or ``"zarr"``.
    frames, empty
        Rows, and how many of them are NaN, for want of an image or because it is stored as pixels.
    features
        Numbers of a row.
    latent_shape
        Of one frame before components are taken: (B,), (M, Y/16, X/16), or (M, N, N) when pooled.
    pool, pca, fit_until
        As asked for.
    fitted
        Frames that the components were fitted on; None without.
    explained_variance
        Share of these frames' variance that the components hold together; None without.
    first, last
        Times of the first and last row.
    model, model_sha256
        What the latents are latents of.
    seconds
        Wall time.
    """

    path: str
    format: str
    frames: int
    empty: int
    features: int
    latent_shape: tuple[int, ...]
    pool: int | None
    pca: int | None
    fit_until: str | None
    fitted: int | None
    explained_variance: float | None
    first: str
    last: str
    model: str
    model_sha256: str
    seconds: float


def export_features(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pool: int | None = None,
    pca: int | None = None,
    fit_until: When | None = None,
    start: int | When | None = None,
    stop: int | When | None = None,
    model: str | Path | Model | None = None,
    anon: bool = False,
    force: bool = False,
    progress: OnProgress | None = None,
) -> FeaturesReport:
    """Write the latents of an archive as features by time; no images are made of them.

    Without `pca` they are the same to the bit on every machine. A frame without any image, and one that is
    stored as pixels, is a row of NaN.

    Parameters
    ----------
    path
        The archive.
    out
        ``*.h5``, ``*.hdf5``, ``*.zarr``, ``*.csv`` or ``*.parquet``; it has its name once it is complete.
    pool
        Average each channel of a latent map over a grid of `pool` × `pool` fields; 1 is the mean of the map.
    pca
        Write that many principal components of the centred, not standardised, latents instead of them;
        fewer than there are frames to fit them on.
    fit_until
        Fit the components only on frames before this time, so that nothing of later ones leaks into them.
        Latents of frames that were coded given later ones (`Sun.together`) know of those all the same.
    start, stop
        Frame numbers or times, start included, stop not.
    model
        What the archive was coded with, if it is neither embedded nor installed.
    anon
        Ask S3 without credentials.
    force
        Replace what is at `out`.
    progress
        Called with a `Progress` at the beginning and after each stretch of frames, of which the fit's count,
        too.

    Raises
    ------
    InputError, OutputError, DamagedError, ModelNotFoundError
        See `sunzip.errors`.
    """
    begin = clock.monotonic()
    target = os.fspath(out)
    kind = _kind(target)
    pool = None if pool is None else whole(pool, "pool (--pool)", 1)
    pca = None if pca is None else whole(pca, "pca (--pca)", 1)
    if not (force and os.path.lexists(target)):
        refuse(Path(target))
    if not isinstance(fit_until, str | None):
        fit_until = str(parse_date(fit_until, name="fit_until"))  # the file tells it
    if fit_until is not None and pca is None:
        raise InputError(
            "fit_until (--fit-until) says what principal components are fitted on: add pca (--pca)"
        )
    with open(path, model=model, anon=anon) as sun:
        frames = sun.frames_from(start, stop)
        latents = _Latents(sun, pool)
        width = latents.width if pca is None else pca
        if pca is not None and pca > latents.width:
            raise InputError(
                f"{pca} principal components; there can be 1 to {latents.width}, the latents' number"
            )
        if kind.is_table and width > MAX_COLUMNS:
            raise InputError(
                f"{target}: {width:,} columns are more than the {MAX_COLUMNS:,} that programs read: add pool "
                "(--pool) or pca (--pca), or write *.h5 or *.zarr"
            )
        until = frames.stop if fit_until is None else _before(sun, frames, fit_until)
        count = frames.stop - frames.start
        total = count + (until - frames.start if pca else 0)
        report = _Count(progress, total)
        components = None
        if pca:
            latents.keep(_KEPT)
            components = _fit(latents, frames.start, until, pca, report)
        quality = sun.archive.coding.get("quality")
        about = {
            MARK: "features-1",
            # No format takes a name that is no text.
            "archive": printable(without_secrets(os.fspath(path))),
            "model": sun.codec.model.name,
            "model_sha256": sun.codec.model.sha256,
            # What an archive says of its making is a stranger's, and not every value can be an attribute.
            "quality": quality if type(quality) is int and 0 <= quality <= 100 else None,
            "latent_shape": list(latents.shape),
            "pool": pool,
            "pca": pca,
            "fit_until": fit_until,
            "fitted": components.frames if components else None,
        }
        content = _Content(
            {k: v for k, v in about.items() if v is not None},
            sun.channels,
            sun.time[frames],
            sun.archive.valid[frames],
            width,
            components,
        )
        empty = 0
        with replacing(target, force) as aside, kind(aside, content) as file:
            rows = (
                found if components is None else components.project(found)
                for found in latents.read(frames.start, frames.stop, report)
            )
            for chunk in _chunks(rows, content.rows):
                file.write(chunk)
                empty += int(np.isnan(chunk[:, 0]).sum())
        first, last = format_utc(sun.time[[frames.start, frames.stop - 1]])
        return FeaturesReport(
            path=target,
            format=kind.format,
            frames=count,
            empty=empty,
            features=width,
            latent_shape=latents.shape,
            pool=pool,
            pca=pca,
            fit_until=fit_until,
            fitted=components.frames if components else None,
            explained_variance=float(components.explained_variance_ratio.sum()) if components else None,
            first=first,
            last=last,
            model=sun.codec.model.name,
            model_sha256=sun.codec.model.sha256,
            seconds=clock.monotonic() - begin,
        )


def pooled(latents: Float, fields: int) -> Float:
    """Average latent maps over a grid of fields, the same to the bit on every machine.

    Fields are those of adaptive average pooling: of a map of h rows, field i of n has the rows from ⌊i·h/n⌋
    to ⌈(i+1)·h/n⌉, the latter not included; the same for columns.

    Parameters
    ----------
    latents
        (T, M, h, w) float32.
    fields
        n, from 1 to the lesser of h and w.

    Returns
    -------
    (T, M, n, n) float32.

    Raises
    ------
    InputError
        If the latents are no maps, or smaller than the grid.

    Examples
    --------
    >>> pooled(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), 2)[0, 0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    """
    if latents.ndim != 4:
        raise InputError("the latents of this model are no maps: leave out pool (--pool)")
    fields = whole(fields, "pool (--pool)", 1)
    if fields > min(latents.shape[2:]):
        h, w = latents.shape[2:]
        raise InputError(f"latent maps of {h}×{w} cannot be pooled to {fields}×{fields} fields")
    sums, counts = latents.astype(np.float64), np.ones((1, 1), np.float64)
    for axis in (2, 3):
        size = sums.shape[axis]
        ends = [(i * size // fields, -(-(i + 1) * size // fields)) for i in range(fields)]
        lines = np.moveaxis(sums, axis, 0)
        # Line by line: a library's sum of many numbers may add them in another order elsewhere.
        added = np.stack([_sum(lines[a:b]) for a, b in ends])
        sums = np.moveaxis(added, 0, axis)
        counts = counts * np.array([b - a for a, b in ends]).reshape((-1, 1) if axis == 2 else (1, -1))
    return np.divide(sums, counts).astype(np.float32)


def _sum(lines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] = lines[0].copy()
    for line in lines[1:]:
        total += line
    return total


class _Latents:
    """The latents of an archive, pooled and flattened: (T, D)."""

    def __init__(self, sun: Sun, pool: int | None) -> None:
        self._sun = sun
        self._pool = pool
        whole = sun.latents.shape[1:]
        # What pooling makes of one frame, and what is wrong with it, is known before any frame is read.
        self.shape = whole if pool is None else pooled(np.zeros((1, *whole), np.float32), pool).shape[1:]
        self.width = int(np.prod(self.shape))
        self._size = int(np.prod(whole))
        self._step = max(1, _STRETCH // self._size)
        self._kept: dict[tuple[int, int], Float] = {}
        self._room = 0

    def keep(self, numbers: int) -> None:
        """Keep so many of the numbers that are read, as they will be read once more."""
        self._room = numbers

    def read(self, start: int, stop: int, report: _Count) -> Iterator[Float]:
        for stretch in self._sun.stretches(range(start, stop), self._step):
            begin, end = stretch[0], stretch[-1] + 1
            rows = self._kept.get((begin, end))
            if rows is None:
                found = self._sun.latents[begin:end]
                if self._pool is not None:
                    found = pooled(found, self._pool)
                rows = found.reshape(end - begin, self.width)
                if rows.size <= self._room:
                    self._room -= rows.size
                    self._kept[begin, end] = rows
            report.add(end - begin, 4 * self._size * (end - begin))
            yield rows


class _Count:
    """Tells how far the job is."""

    def __init__(self, progress: OnProgress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = self._bytes = 0
        self.add(0, 0)

    def add(self, frames: int, size: int) -> None:
        self._done += frames
        self._bytes += size
        if self._progress:
            self._progress(Progress(self._done, self._total, self._bytes, 0))


def _before(sun: Sun, frames: slice, fit_until: str) -> int:
    """Return the number of the first frame that components are not fitted on."""
    until = int(np.searchsorted(sun.time, parse_date(fit_until, name="fit_until"), side="left"))
    until = min(until, int(frames.stop))
    if until <= frames.start:
        raise InputError(f"{sun.archive.path}: no frame before {fit_until} to fit principal components on")
    return until


def _fit(latents: _Latents, start: int, stop: int, count: int, report: _Count) -> Components:
    """Fit components step by step (Ross et al. 2008), so that memory does not grow with the frames."""
    with needing("features", "principal components need"):
        from sklearn.decomposition import IncrementalPCA
    model = IncrementalPCA(count)
    step = max(count, min(_FIT_FRAMES, _FIT_NUMBERS // latents.width))
    waiting: list[Float] = []
    held = fitted = 0

    def fit(rows: Float) -> None:
        nonlocal fitted
        # All frames alike have no variance to share.
        with np.errstate(divide="ignore", invalid="ignore"):
            model.partial_fit(rows, check_input=False)
        fitted += len(rows)

    for found in latents.read(start, stop, report):
        waiting.append(found[~np.isnan(found[:, 0])])
        held += len(waiting[-1])
        # Each step needs as many frames as there are components; what stays is enough for the last one.
        if held >= step + count:
            rows = np.concatenate(waiting)
            fit(rows[:step])
            waiting, held = [rows[step:]], held - step
    # As many frames as components leave the last one nothing: the mean is taken off first.
    if fitted + held <= count:
        raise InputError(
            f"{count} principal components need more frames with latents than that to fit them on; there are "
            f"{held}"
        )
    fit(np.concatenate(waiting))
    return Components(
        model.mean_.astype(np.float32),
        model.components_.astype(np.float32),
        np.nan_to_num(model.explained_variance_ratio_).astype(np.float32),
        fitted,
    )


def _chunks(parts: Iterable[Float], rows: int) -> Iterator[Float]:
    """Cut a stream of rows anew, into chunks of `rows` and what is left."""
    waiting: list[Float] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part)
        if held >= rows:
            joined = np.concatenate(waiting)
            whole = held // rows * rows
            for begin in range(0, whole, rows):
                yield joined[begin : begin + rows]
            waiting, held = [joined[whole:]], held - whole
    if held:
        yield np.concatenate(waiting)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file of features holds, besides the features themselves.

    Attributes
    ----------
    about
        Where the features come from: plain values by name.
    channels, time, valid
        The C names, (T,) datetime64[ms] and (T, C) whether there is an image.
    width
        Features of each frame.
    components
        If the features are principal components, these.
    """

    about: dict[str, Any]
    channels: tuple[str, ...]
    time: npt.NDArray[np.datetime64]
    valid: npt.NDArray[np.bool_]
    width: int
    components: Components | None

    @property
    def shape(self) -> tuple[int, int]:
        """(T, features)."""
        return (len(self.time), self.width)

    @property
    def rows(self) -> int:
        """Rows that are written at a time."""
        return min(len(self.time), max(1, _CHUNK // self.width))

    @property
    def columns(self) -> list[str]:
        """The names of the features in a table."""
        return [f"f{i}" for i in range(self.width)]

    @property
    def arrays(self) -> dict[str, tuple[npt.NDArray[Any], tuple[str, ...]]]:
        """By name, all else that is stored as arrays, and its dimensions."""
        found: dict[str, tuple[npt.NDArray[Any], tuple[str, ...]]] = {
            "time": (self.time.astype("datetime64[ms]").astype(np.int64), ("time",)),
            "valid": (self.valid, ("time", "channel")),
        }
        if self.components is not None:
            found |= {
                "pca_mean": (self.components.mean, ("latent",)),
                "pca_components": (self.components.components, ("feature", "latent")),
                "pca_explained_variance_ratio": (self.components.explained_variance_ratio, ("feature",)),
            }
        return found


class _File(Target):
    """Features being written: chunks of rows go in, in time order."""

    format: ClassVar[str]
    is_table: ClassVar[bool] = False

    def __init__(self, path: str | os.PathLike[str], content: _Content) -> None:
        self._content = content
        self._row = 0
        super().__init__(path)

    def write(self, features: Float) -> None:
        rows = slice(self._row, self._row + len(features))
        with self._one_line():
            self._write(rows, features)
        self._row = rows.stop

    @abstractmethod
    def _write(self, rows: slice, features: Float) -> None: ...


class _Hdf5(Hdf5Target, _File):
    format = "hdf5"

    def _lay_out(self, file: Any) -> None:
        import h5py

        content = self._content
        file.attrs.update(content.about)
        file.create_dataset("features", content.shape, "<f4", chunks=(content.rows, content.width))
        file.create_dataset("channel", data=list(content.channels), dtype=h5py.string_dtype())
        labels = {"features": ("time", "feature"), "channel": ("channel",)}
        for name, (values, labels[name]) in content.arrays.items():
            file.create_dataset(name, data=values)
        file["time"].attrs.update(_UNITS)
        for name, dimensions in labels.items():
            for dim, label in zip(file[name].dims, dimensions, strict=True):
                dim.label = label

    def _write(self, rows: slice, features: Float) -> None:
        with self._checked() as file:
            file["features"][rows] = features


class _Zarr(_File):
    format = "zarr"
    _features: Any = None

    def _begin(self) -> None:
        import zarr

        content = self._content
        group: Any = zarr.create_group(str(self._partial), zarr_format=3)
        group.attrs.update(content.about)
        self._features = group.create_array(
            "features",
            shape=content.shape,
            chunks=(content.rows, content.width),
            dtype="float32",
            dimension_names=("time", "feature"),
        )
        with _no_final_specification():
            names = np.array(content.channels, dtype=np.dtypes.StringDType())
            group.create_array("channel", data=names, dimension_names=("channel",))
        for name, (values, labels) in content.arrays.items():
            group.create_array(name, data=values, dimension_names=labels)
        group["time"].attrs.update(_UNITS)

    def _write(self, rows: slice, features: Float) -> None:
        self._features[rows] = features

    def _finish(self) -> None:
        import zarr

        self._features = None
        with _no_final_specification():
            zarr.consolidate_metadata(str(self._partial))


@contextmanager
def _no_final_specification() -> Iterator[None]:
    """Keep zarr from warning of what format 3 has not settled: xarray writes and wants it the same way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Csv(_File):
    format = "csv"
    is_table = True
    _is_file = True
    _file: Any = None

    def _begin(self) -> None:
        self._file = self._partial.open("w", encoding="ascii", newline="\n")
        self._file.write(",".join(["time", *self._content.columns]) + "\n")

    def _write(self, rows: slice, features: Float) -> None:
        for moment, row in zip(format_utc(self._content.time[rows]), features, strict=True):
            # numpy writes a float32 with the fewest digits that lead back to it, unless it was told to print
            # as before 1.14.
            with np.printoptions(legacy=False):
                cells = ("" if v == "nan" else v for v in row.astype(str).tolist())
            self._file.write(",".join([moment, *cells]) + "\n")

    def _finish(self) -> None:
        self._file.close()

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


class _Parquet(_File):
    format = "parquet"
    is_table = True
    _is_file = True
    _file: Any = None
    _stream: Any = None

    def _begin(self) -> None:
        with needing("features", f"{self.path}: Parquet needs"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        names = [("time", pa.timestamp("ms", tz="UTC")), *((n, pa.float32()) for n in self._content.columns)]
        schema = pa.schema(names, metadata={"sunzip": json.dumps(self._content.about)})
        # Opened here, as Arrow takes no name that is not UTF-8.
        self._stream = self._partial.open("wb")
        self._file = pq.ParquetWriter(self._stream, schema)

    def _write(self, rows: slice, features: Float) -> None:
        import pyarrow as pa

        columns = [self._content.time[rows], *np.ascontiguousarray(features.T)]
        self._file.write_table(pa.table(columns, schema=self._file.schema))

    def _finish(self) -> None:
        self._file.close()
        self._stream.close()

    def _discard(self) -> None:
        for held in (self._file, self._stream):
            if held is not None:
                with suppress(OSError):
                    held.close()


_KINDS: dict[str, type[_File]] = {
    ".h5": _Hdf5,
    ".hdf5": _Hdf5,
    ".zarr": _Zarr,
    ".csv": _Csv,
    ".parquet": _Parquet,
}


def _kind(out: str) -> type[_File]:
    suffix = os.path.splitext(out.rstrip("/").lower())[1]
    try:
        return _KINDS[suffix]
    except KeyError:
        raise InputError(
            f"{out}: features are written to *.h5, *.zarr, *.csv or *.parquet; name it so"
        ) from None


__all__ = ["Components", "FeaturesReport", "export_features", "pooled"]
