"""Sources into an archive: what is to be done, who does it, and what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sunzip import archive as lat
from sunzip import weights
from sunzip.api._reports import CompressReport, OnProgress, Progress
from sunzip.api._series import Alignment, Sources, open_series
from sunzip.api._shards import Coded, Part, Plan, code_shards, encode, write
from sunzip.archive import Archive, ArchiveSpec, ArchiveWriter, open_archive
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError
from sunzip.sources.series import Series
from sunzip.weights import Model

if TYPE_CHECKING:
    from distributed import Client

#: Frames of one shard: a day at 12 minutes. A shard is the unit of resuming and of parallel writing.
FRAMES_PER_SHARD = 120

#: Frames that are coded to estimate a whole run.
_SAMPLE = 6


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
    workers: int | None = None,
    client: Client | str | None = None,
    progress: OnProgress | None = None,
) -> CompressReport:
    """Compress sources into an archive.

    Parameters
    ----------
    src
        As `open_series`, or a series that is open already.
    out
        The archive to write, customarily ``*.lat``, a local path or an fsspec URL such as ``s3://…``. While
        it is written there is a folder ``<out>.partial``.
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
    workers
        Code in so many processes of this machine instead of this one. As with all processes that Python
        spawns, a script must then do its work under ``if __name__ == "__main__":``.
    client
        Code on the workers of a Dask cluster: its `distributed.Client`, or the address or scheduler file of
        its scheduler. All must see `out`: a shared file system or an object store.
    progress
        Called at the beginning and after each stretch of frames, or of workers after each shard.

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
    if workers is not None and (client is not None or workers < 1):
        raise InputError("either a number of workers from 1 or a client of a cluster")
    path = os.fspath(out)
    if dry_run:
        return _estimate(series, codec, path, embed_model)
    given = None if isinstance(src, Series) and align is None else align or Alignment()
    spec = _specification(series, codec, block, given, degradation)
    raw = coded = 0
    with (
        _found(client, workers) as cluster,
        ArchiveWriter.create(path, spec, force=force, resume=resume) as writer,
    ):
        todo = writer.left()
        frames = [writer.frames_of(shard) for shard in todo]
        done = len(series) - sum(f.stop - f.start for f in frames)
        if progress:
            progress(Progress(done, len(series), 0, 0))
        try:
            with _coding(Plan(series, writer, block), codec, todo, cluster, workers) as finished:
                for part in finished:
                    done, raw, coded = done + part.frames, raw + part.raw_bytes, coded + part.coded_bytes
                    if progress:
                        progress(Progress(done, len(series), raw, coded))
        except (InputError, DamagedError):
            # A source may be out of reach for a while, so that days of work stay; without a whole shard there
            # is nothing to stay. On a cluster shards may still be written.
            if cluster is None and len(writer.left()) == writer.shards:
                writer.abort()
            raise
        size = writer.finish(codec.model.files if embed_model else None)
    with open_archive(path) as archive:
        return _report(archive, series, codec, size, clock.monotonic() - begin)


@contextmanager
def _found(client: Client | str | None, workers: int | None) -> Iterator[Client | None]:
    """Find the cluster, before anything is written: that it, or Dask, is missing leaves nothing behind."""
    if client is None and workers is None:
        yield None
        return
    from sunzip.api import _dask

    if isinstance(client, str):
        with _dask.connected(client) as made:
            yield made
    else:
        _dask.need()
        yield client


@contextmanager
def _coding(
    plan: Plan, codec: Codec, shards: Sequence[int], client: Client | None, workers: int | None
) -> Iterator[Iterator[Coded]]:
    """Have shards coded by this process, by processes of this machine or by a cluster."""
    with ExitStack() as stack:
        if not shards or (client is None and workers is None):
            coded = code_shards(plan, codec, shards)
        else:
            from sunzip.api import _dask

            if client is None:
                client = stack.enter_context(_dask.local_client(min(workers or 1, len(shards))))
            coded = _dask.code_shards_on(client, plan, codec.model, codec.quality, shards)
        yield stack.enter_context(closing(coded))


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
        _, part = encode(codec, cube, 1)
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


def _overhead(series: Series, codec: Codec, picks: Sequence[int], parts: list[Part]) -> int:
    """Estimate what a whole archive holds besides blocks, from one of the sample alone."""
    spec = replace(_specification(series, codec, 1, None, None), time=series.time[picks])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sample.lat")
        with ArchiveWriter.create(path, spec) as writer:
            write(writer, 0, parts)
            writer.finish()
        bytes_of = lat.summary(path)["parts"]
    shards = -(-len(series) // FRAMES_PER_SHARD)
    # Tables and keywords are packed shard by shard, and what frames have in common is stored once in each.
    return int(bytes_of["structure"] + shards * (bytes_of["tables"] + bytes_of["keywords"]))
