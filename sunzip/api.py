"""The main jobs: sources into archives, archives into sinks and arrays, and what was lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time as clock
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip import archive as lat
from sunzip import weights
from sunzip.archive import Archive, ArchiveSpec, ArchiveWriter, ShardTable, open_archive
from sunzip.channels import canonical
from sunzip.codec import Codec
from sunzip.cube import Cube, Scale
from sunzip.errors import (
    DamagedError,
    InputError,
    OutputError,
    SunzipError,
)
from sunzip.metrics import Accumulator, image_metrics
from sunzip.normalize import NOISE, Stabiliser
from sunzip.sinks import open_sink
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sun import Sun, open
from sunzip.weights import Model

#: Frames of one shard: a day at 12 minutes. A shard is the unit of resuming and of parallel writing.
FRAMES_PER_SHARD = 120

#: Frames that are coded to estimate a whole run.
_SAMPLE = 6

#: float32 pixels held at a time: frames are read, coded and written in stretches of this many.
_STRETCH_PIXELS = 1 << 24

_T = TypeVar("_T")

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come: frames done of all, their bytes as float32, and their coded bytes."""

    done: int
    total: int
    raw_bytes: int
    coded_bytes: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class CompressReport:
    """What `compress` did, or with ``dry_run`` would do.

    Attributes
    ----------
    path
        The archive.
    dry_run
        Whether sizes and times are estimates from a sample and nothing was written.
    frames, images, channels, shape, first, last
        What it holds: nominal times of the first and last frame, images summed over channels.
    model, model_sha256, quality
        What coded it.
    seconds
        Wall time.
    raw_bytes
        Its images as float32.
    source_bytes
        Bytes that they occupy in the source; None if unknown.
    archive_bytes
        Size of the file.
    coded_bytes
        The coded blocks alone.
    latent_bytes
        The same latents as float32, the paper's way of storing them.
    model_bytes
        The model's files, encoder and decoder: what a receiver needs once.
    errors
        Per channel, means over images of the error statistics measured at encoding.
    alignment
        What became of every image of the sources.
    """

    path: str
    dry_run: bool
    frames: int
    images: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    first: str
    last: str
    model: str
    model_sha256: str
    quality: int
    seconds: float
    raw_bytes: int
    source_bytes: int | None
    archive_bytes: int
    coded_bytes: int
    latent_bytes: int
    model_bytes: int
    errors: dict[str, dict[str, float | None]]
    alignment: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DecompressReport:
    """What `decompress` wrote."""

    path: str
    layout: str
    frames: int
    images: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    seconds: float
    raw_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EvaluateReport:
    """What was lost, measured by holding an archive against its source.

    Attributes
    ----------
    frames, images
        Frames and images that are in both.
    absent
        Images that only one of them has.
    metrics
        By mode (``paper``, ``strict``) and channel: see `sunzip.metrics.ChannelMetrics`.
    bits_per_sample
        Coded bits per pixel of an image that is there.
    ratio
        Bytes as float32 over bytes of the archive file.
    """

    source: str
    archive: str
    frames: int
    images: int
    absent: int
    metrics: dict[str, Any]
    bits_per_sample: float
    ratio: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Alignment:
    """How images are brought onto one time axis: the arguments of `sunzip.sources.series.join`."""

    cadence: str | None = "12min"
    tolerance: str | None = None
    start: str | None = None
    stop: str | None = None
    every: str | None = None
    channels: tuple[str, ...] | None = None
    missing: Literal["mask", "drop"] = "mask"
    size: int | None = None


def open_series(
    src: Sources,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
) -> Series:
    """Open one or several sources as aligned frames.

    Parameters
    ----------
    src
        Paths, fsspec URLs or ``synthetic:…``; several are joined in time.
    hmi
        The second store of SDOML v2.
    anon
        Ask S3 without credentials.
    degradation
        Folder with tables of AIA's degradation, for FITS files that do not state theirs.
    align
        How; by default onto a grid of 12 minutes.

    Raises
    ------
    InputError
        If a source cannot be used or no image is left.
    """
    urls = [src] if isinstance(src, str | os.PathLike) else list(src)
    if not urls:
        raise InputError("no source named")
    sources = [
        open_source(os.fspath(u), hmi=None if i else hmi, anon=anon, degradation=degradation)
        for i, u in enumerate(urls)
    ]
    return join(sources, **asdict(align or Alignment()))


def compress(
    src: Sources | Series,
    out: str | os.PathLike[str],
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
    model: str | Path | Model = weights.DEFAULT,
    quality: int | None = None,
    block: int = 1,
    embed_model: bool = False,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    progress: OnProgress | None = None,
) -> CompressReport:
    """Compress sources into an archive.

    Parameters
    ----------
    src
        As `open_series`, or a series that is open already.
    out
        The archive to write, customarily ``*.lat``. While it is written there is a folder ``<out>.partial``.
    hmi, anon, degradation, align
        As `open_series`.
    model
        A model, or its name, sha256 or folder.
    quality
        0 (smallest) to 100 (finest); None is the model's default.
    block
        Frames coded together.
    embed_model
        Store the model in the archive, so that the file is enough to decode it for ever.
    force
        Replace an existing archive.
    resume
        Continue a run that was broken off; the result has the same bytes as an unbroken one.
    dry_run
        Write nothing; estimate sizes and time from a few frames.
    progress
        Called at the beginning and after each stretch of frames.

    Raises
    ------
    InputError, OutputError, ModelNotFoundError, DamagedError
        See `sunzip.errors`. An existing archive is never touched unless `force` is given and all went well.

    Examples
    --------
    >>> report = compress("synthetic:frames=4,size=64", "/tmp/doc.lat", force=True)  # doctest: +SKIP
    """
    begin = clock.monotonic()
    codec = Codec(model if isinstance(model, Model) else weights.load(model), quality)
    series = (
        src
        if isinstance(src, Series)
        else open_series(src, hmi=hmi, anon=anon, degradation=degradation, align=align)
    )
    codec.family.check_size(*series.shape)
    if not 1 <= block <= FRAMES_PER_SHARD:
        raise InputError(f"blocks of {block} frames; they can have 1 to {FRAMES_PER_SHARD}")
    path = os.fspath(out)
    if dry_run:
        return _estimate(series, codec, path, embed_model)
    given = None if isinstance(src, Series) and align is None else align or Alignment()
    spec = _specification(series, codec, block, given, degradation)
    pool = ThreadPoolExecutor(2, thread_name_prefix="sunzip")
    coded = raw = done = 0
    with ArchiveWriter.create(path, spec, force=force, resume=resume) as writer, _closing(pool):
        written: Task[None] | None = None
        try:
            todo = [s for s in range(writer.shards) if not writer.done(s)]
            stretches = [(s, a, b) for s in todo for a, b in _stretches(writer.frames_of(s), series, block)]
            done = len(series) - sum(b - a for _, a, b in stretches)
            parts: list[_Part] = []
            if progress:
                progress(Progress(done, len(series), 0, 0))
            reading = _ahead(pool, stretches, lambda s: series.read(s[1], s[2]))
            for (shard, _, stop), cube in zip(stretches, reading, strict=True):
                part = _encode(codec, cube, block)
                parts.append(part)
                done, raw = done + len(cube), raw + cube.nbytes
                coded += sum(map(len, part.blocks))
                if progress:
                    progress(Progress(done, len(series), raw, coded))
                if stop == writer.frames_of(shard).stop:
                    if written:
                        written.result()
                    written = Task(pool, _write, writer, shard, parts)
                    parts = []
            if written:
                written.result()
        except (InputError, DamagedError):
            if written:
                with suppress(SunzipError):
                    written.result()
            # A source may be out of reach for a while, so that days of work stay; without a whole shard there
            # is nothing to stay.
            if not any(map(writer.done, range(writer.shards))):
                writer.abort()
            raise
        size = writer.finish(codec.model.files if embed_model else None)
    with open_archive(path) as finished:
        return _report(finished, series, codec, size, clock.monotonic() - begin)


@dataclass(slots=True)
class _Part:
    blocks: list[bytes]
    table: ShardTable


def _specification(
    series: Series, codec: Codec, block: int, align: Alignment | None, degradation: str | None
) -> ArchiveSpec:
    coding = {
        "quality": codec.quality,
        "frames_per_block": block,
        # So that what the latents would take as float32 can be told without the model.
        "latents_per_frame": int(np.prod(codec.family.latent_shape(*series.shape))),
        # None if the frames came as a series that somebody else had aligned.
        "align": asdict(align) if align else None,
        "degradation": degradation,
    }
    identity = [series.fingerprint(), codec.model.sha256, json.dumps(coding, sort_keys=True)]
    return ArchiveSpec(
        channels=series.channels,
        shape=series.shape,
        time=series.time,
        scale=series.scale,
        frames_per_block=block,
        frames_per_shard=FRAMES_PER_SHARD // block * block,
        codec={
            "version": 1,
            "model": codec.model.sha256,
            "channels": list(series.channels),
            "scale": str(series.scale),
            "quality": codec.quality,
        },
        model={"name": codec.model.name, "sha256": codec.model.sha256, "bytes": codec.model.nbytes},
        source={
            "urls": list(series.urls),
            "layouts": list(series.layouts),
            "stored_bytes": series.stored_bytes,
        },
        coding=coding,
        fingerprint=hashlib.sha256("\n".join(identity).encode()).hexdigest(),
    )


def _encode(codec: Codec, cube: Cube, block: int) -> _Part:
    """Code a stretch of frames, decode it again, and measure what was lost."""
    blocks = codec.encode(cube.data, cube.channels, cube.scale, frames_per_block=block)
    decoded = codec.decode(blocks, cube.channels, cube.data.shape[2:], cube.scale, frames=range(len(cube)))
    found = image_metrics(cube.data, decoded)
    stats = {
        "err_rmse": found.rmse,
        "err_max": found.max_error,
        "err_ppe10": found.ppe10,
        "err_r": found.r,
    }
    shown = {k: np.where(cube.valid, v, np.nan).astype(np.float32) for k, v in stats.items()}
    return _Part(blocks, ShardTable(cube.t_obs, cube.valid, cube.headers, shown))


def _write(writer: ArchiveWriter, shard: int, parts: list[_Part]) -> None:
    table = ShardTable(
        np.concatenate([p.table.t_obs for p in parts]),
        np.concatenate([p.table.valid for p in parts]),
        [row for p in parts for row in p.table.headers],
        {k: np.concatenate([p.table.stats[k] for p in parts]) for k in lat.STATS},
    )
    writer.write_shard(shard, [b for p in parts for b in p.blocks], table)


def _stretches(frames: slice, series: Series, block: int) -> Iterator[tuple[int, int]]:
    """Split frames into stretches of whole blocks that fit into memory."""
    pixels = len(series.channels) * series.shape[0] * series.shape[1]
    step = max(1, _STRETCH_PIXELS // (pixels * block)) * block
    for begin in range(frames.start, frames.stop, step):
        yield begin, min(begin + step, frames.stop)


class Task(Generic[_T]):
    """Work that another thread does.

    Unlike a Future, it bears Ctrl-C while it is waited for: at the wrong moment that leaves a Future locked,
    and the thread that wants to set its result waits for ever.
    """

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[..., _T], *args: Any) -> None:
        self._box: SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = SimpleQueue()
        pool.submit(self._run, work, args)

    def _run(self, work: Callable[..., _T], args: tuple[Any, ...]) -> None:
        try:
            self._box.put((work(*args), None))
        except BaseException as error:
            self._box.put((None, error))

    def result(self) -> _T:
        """Wait for the work to be done, and return or raise what came of it; as often as asked."""
        found = self._box.get()
        self._box.put(found)
        if found[1] is not None:
            raise found[1]
        return found[0]


def _ahead(pool: ThreadPoolExecutor, tasks: Sequence[_T], work: Callable[[_T], Cube]) -> Iterator[Cube]:
    """Do one task ahead of the one that is asked for, so that reading overlaps with coding."""
    following: Task[Cube] | None = None
    for n in range(len(tasks)):
        now = following or Task(pool, work, tasks[n])
        cube = now.result()
        following = Task(pool, work, tasks[n + 1]) if n + 1 < len(tasks) else None
        yield cube


@contextmanager
def _closing(pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _latent_bytes(codec: Codec, shape: tuple[int, int], frames: int) -> int:
    return 4 * int(np.prod(codec.family.latent_shape(*shape))) * frames


def _errors(
    channels: Sequence[str], stats: dict[str, npt.NDArray[np.float32]]
) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for i, name in enumerate(channels):
        out[name] = {}
        for key, values in stats.items():
            known = values[:, i][np.isfinite(values[:, i])].astype(np.float64)
            reduce = np.max if key == "err_max" else np.mean
            out[name][key.removeprefix("err_")] = float(reduce(known)) if known.size else None
    return out


def _report(done: Archive, series: Series, codec: Codec, size: int, seconds: float) -> CompressReport:
    valid = done.valid
    return CompressReport(
        path=done.path,
        dry_run=False,
        frames=done.frames,
        images=int(valid.sum()),
        channels=done.channels,
        shape=done.shape,
        first=str(done.time[0]),
        last=str(done.time[-1]),
        model=codec.model.name,
        model_sha256=codec.model.sha256,
        quality=codec.quality,
        seconds=seconds,
        raw_bytes=int(valid.sum()) * done.shape[0] * done.shape[1] * 4,
        # As found at the beginning: listing a large remote store once more would take minutes.
        source_bytes=done.source["stored_bytes"],
        archive_bytes=size,
        coded_bytes=int(done.block_bytes.sum()),
        latent_bytes=_latent_bytes(codec, done.shape, int(valid.any(1).sum())),
        model_bytes=codec.model.nbytes,
        errors=_errors(done.channels, done.stats),
        alignment=series.report.as_dict(),
    )


def _estimate(series: Series, codec: Codec, path: str, embed: bool) -> CompressReport:
    # The network is loaded and warmed up by the first frame; only the others are timed.
    picks = sorted({int(i) for i in np.linspace(0, len(series) - 1, _SAMPLE)})
    parts, spent = [], []
    raw = images = 0
    for n, i in enumerate([picks[0], *picks]):
        started = clock.monotonic()
        cube = series.read(i, i + 1)
        part = _encode(codec, cube, 1)
        if n:
            spent.append(clock.monotonic() - started)
            parts.append(part)
            raw, images = raw + cube.nbytes, images + int(cube.valid.sum())
    grow = len(series) / len(picks)
    coded = round(grow * sum(len(b) for p in parts for b in p.blocks))
    overhead = _overhead(series, codec, picks, parts)
    stats = {k: np.concatenate([p.table.stats[k] for p in parts]) for k in lat.STATS}
    return CompressReport(
        path=path,
        dry_run=True,
        frames=len(series),
        images=round(grow * images),
        channels=series.channels,
        shape=series.shape,
        first=str(series.time[0]),
        last=str(series.time[-1]),
        model=codec.model.name,
        model_sha256=codec.model.sha256,
        quality=codec.quality,
        seconds=float(np.mean(spent)) * len(series),
        raw_bytes=round(grow * raw),
        source_bytes=series.stored_bytes,
        archive_bytes=coded + overhead + (codec.model.nbytes if embed else 0),
        coded_bytes=coded,
        latent_bytes=_latent_bytes(codec, series.shape, len(series)),
        model_bytes=codec.model.nbytes,
        errors=_errors(series.channels, stats),
        alignment=series.report.as_dict(),
    )


def _overhead(series: Series, codec: Codec, picks: Sequence[int], parts: list[_Part]) -> int:
    """Estimate what a whole archive holds besides blocks, from one of the sample alone."""
    spec = replace(_specification(series, codec, 1, None, None), time=series.time[picks])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sample.lat")
        with ArchiveWriter.create(path, spec) as writer:
            _write(writer, 0, parts)
            writer.finish()
        bytes_of = lat.summary(path)["parts"]
    shards = -(-len(series) // FRAMES_PER_SHARD)
    # Tables and keywords are packed shard by shard, and what frames have in common is stored once in each.
    return int(bytes_of["structure"] + shards * (bytes_of["tables"] + bytes_of["keywords"]))


def decompress(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    channels: Iterable[str] | None = None,
    model: str | Path | Model | None = None,
    force: bool = False,
    progress: OnProgress | None = None,
) -> DecompressReport:
    """Decode an archive into files that other programs read.

    Parameters
    ----------
    path
        The archive.
    out
        What to write; it appears under its name only when it is complete.
    layout
        ``"sdoml-v2"``, ``"sdoml-v1"``, ``"hdf5"`` or ``"fits"``; by default what `out` looks like: ``.zarr``,
        ``.h5`` or ``.hdf5``, otherwise the layout that the archive was made from.
    start, stop
        Times, start included, stop not.
    channels
        By default all.
    model
        As `open`.
    force
        Replace what is at `out`.
    progress
        Called at the beginning and after each stretch of frames.

    Raises
    ------
    InputError, OutputError, DamagedError, ModelNotFoundError
        See `sunzip.errors`.
    """
    begin = clock.monotonic()
    with open(path, model=model) as sun:
        names = sun.channels if channels is None else canonical(channels)
        frames = sun.frames(slice(start, stop))
        assert isinstance(frames, slice)
        if frames.start >= frames.stop:
            raise InputError(f"{path}: no frame from {start or 'its start'} to {stop or 'its end'}")
        form = layout or _layout_of(os.fspath(out), sun.archive.source)
        raw = images = 0
        sizes, t = sun.archive.block_bytes, sun.archive.frames_per_block
        with replacing(os.fspath(out), force) as target:
            sink = open_sink(target, form, channels=names, shape=sun.archive.shape, scale=sun.scale)
            pixels = len(names) * sun.archive.shape[0] * sun.archive.shape[1]
            step = max(1, _STRETCH_PIXELS // pixels)
            with sink, ThreadPoolExecutor(1, thread_name_prefix="sunzip") as pool:
                written: Task[None] | None = None
                if progress:
                    progress(Progress(0, frames.stop - frames.start, 0, 0))
                for a in range(frames.start, frames.stop, step):
                    cube = sun.cube(a, min(a + step, frames.stop), names)
                    if written:
                        written.result()
                    written = Task(pool, sink.write, cube)
                    raw, images = raw + cube.nbytes, images + int(cube.valid.sum())
                    if progress:
                        done = a + len(cube)
                        coded = int(sizes[frames.start // t : -(-done // t)].sum())
                        progress(Progress(done - frames.start, frames.stop - frames.start, raw, coded))
                if written:
                    written.result()
        return DecompressReport(
            path=os.fspath(out),
            layout=form,
            frames=frames.stop - frames.start,
            images=images,
            channels=tuple(names),
            shape=sun.archive.shape,
            seconds=clock.monotonic() - begin,
            raw_bytes=raw,
        )


def _layout_of(out: str, source: Any) -> str:
    name = out.rstrip("/").lower()
    if name.endswith(".zarr"):
        return "sdoml-v2"
    if name.endswith((".h5", ".hdf5")):
        return "hdf5"
    layouts = source.get("layouts")
    first = layouts[0] if isinstance(layouts, list) and layouts else None
    return first if first in ("sdoml-v1", "fits") else "sdoml-v2"


@contextmanager
def replacing(path: str, force: bool) -> Iterator[str]:
    """Yield the path to write to; with `force` that is aside, and takes the old one's place at the end.

    Raises
    ------
    OutputError
        If what an earlier run left aside is in the way.
    """
    # With a trailing slash what lies aside would lie inside.
    path = path.rstrip("/") or path
    if not force or not os.path.lexists(path):
        yield path
        return
    aside, old = f"{path}.new", f"{path}.old"
    for name in (aside, old):
        if os.path.lexists(name):
            raise OutputError(f"{name}: is in the way; remove it")
    yield aside
    try:
        os.rename(path, old)
        try:
            os.rename(aside, path)
        except OSError:
            os.rename(old, path)
            raise
        if os.path.isdir(old) and not os.path.islink(old):
            shutil.rmtree(old)
        else:
            os.remove(old)
    except OSError as error:
        raise OutputError(f"{path}: cannot be replaced: {error.strerror}; look for {aside}") from None


@dataclass(slots=True)
class _Stabilise:
    """Units of noise for the metrics; a class, so that an accumulator can be pickled."""

    made: dict[str, Stabiliser] = field(
        default_factory=lambda: {name: Stabiliser.for_channels([name]) for name in NOISE}
    )

    def __call__(self, values: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        stable = self.made[name].forward(values.astype(np.float32).reshape(1, 1, -1))
        return stable.reshape(-1).astype(np.float64)


def evaluate(
    src: Sources | Series,
    path: str | os.PathLike[str],
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    model: str | Path | Model | None = None,
    progress: OnProgress | None = None,
) -> EvaluateReport:
    """Hold an archive against its source, pixel by pixel, after decoding.

    The source is aligned as it was when the archive was made. Images count where both have the image with
    the same time of observation.

    Raises
    ------
    InputError
        If they have no image in common.
    """
    with open(path, model=model) as sun:
        series = source_of(sun, src, hmi=hmi, anon=anon, degradation=degradation)
        both, ours, theirs = np.intersect1d(series.time, sun.time, return_indices=True)
        gather = Accumulator(sun.channels, stabilise=_Stabilise(), on_disk=_on_disk(sun.archive.shape))
        images = frames = raw = 0
        known = int(sun.archive.valid.sum())
        elsewhere = np.delete(series.t_obs, ours, axis=0)
        offered = int(np.count_nonzero(~np.isnat(elsewhere)))
        if progress:
            progress(Progress(0, len(both), 0, 0))
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            original = series.read(int(a), int(a) + 1).to_scale(Scale.MEAN)
            decoded = sun.cube(int(b), int(b) + 1).to_scale(Scale.MEAN)
            same = original.valid & decoded.valid & (original.t_obs == decoded.t_obs)
            gather.add(original.data, decoded.data, same)
            images, frames = images + int(same.sum()), frames + bool(same.any())
            offered += int(original.valid.sum())
            raw += original.nbytes
            if progress:
                progress(Progress(n + 1, len(both), raw, 0))
        if not images:
            raise InputError(
                f"{series.urls[0]}: has no image in common with {path}; is it the archive's source?"
            )
        pixels = known * sun.archive.shape[0] * sun.archive.shape[1]
        size = os.path.getsize(path)
        return EvaluateReport(
            source=", ".join(series.urls),
            archive=os.fspath(path),
            frames=frames,
            images=images,
            absent=known + offered - 2 * images,
            metrics=gather.as_dict(),
            bits_per_sample=8 * float(sun.archive.block_bytes.sum()) / pixels,
            ratio=4 * pixels / size,
        )


def source_of(
    sun: Sun,
    src: Sources | Series,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
) -> Series:
    """Open an archive's source, aligned as it was when the archive was made.

    Parameters
    ----------
    sun
        The archive.
    src, hmi, anon, degradation
        As `open_series`.

    Raises
    ------
    InputError
        If the source has other channels or another image size than the archive.
    DamagedError
        If the archive does not say how its source was aligned.
    """
    path = sun.archive.path
    if isinstance(src, Series):
        series = src
    else:
        settings = sun.archive.coding.get("align", {})
        if settings is None:
            raise InputError(f"{path}: was made from a series in memory; hold it against that series")
        try:
            align = Alignment(**{**settings, "channels": sun.channels})
        except TypeError:
            align = None
        if align is None or not all(
            v is None or type(v) is (int if k == "size" else str)
            for k, v in asdict(align).items()
            if k != "channels"
        ):
            raise DamagedError(f"{path}: its alignment settings are not known to this sunzip")
        recorded = sun.archive.coding.get("degradation")
        if degradation is None and isinstance(recorded, str):
            degradation = recorded
        series = open_series(src, hmi=hmi, anon=anon, degradation=degradation, align=align)
    if series.shape != sun.archive.shape or series.channels != sun.channels:
        mine, theirs = ("×".join(map(str, shape)) for shape in (series.shape, sun.archive.shape))
        raise InputError(
            f"{series.urls[0]}: has {' '.join(series.channels)} at {mine} pixels, the archive {path} has "
            f"{' '.join(sun.channels)} at {theirs}; name the archive's own source"
        )
    return series


def _on_disk(shape: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    # A rectangle has no nominal disk: strict metrics then count all pixels.
    return None if shape[0] == shape[1] else np.ones(shape, bool)


__all__ = [
    "Alignment",
    "CompressReport",
    "DecompressReport",
    "EvaluateReport",
    "Progress",
    "compress",
    "decompress",
    "evaluate",
    "open_series",
    "source_of",
]
