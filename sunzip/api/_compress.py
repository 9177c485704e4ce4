"""Sources into an archive: what is to be done, who does it, and what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.api._reports import CompressReport, OnProgress
from sunzip.api._run import code_archive, wanted_workers
from sunzip.api._sample import Sample
from sunzip.api._series import Alignment, Sources, open_series, refuse_idle, settled
from sunzip.archive import Archive, ArchiveSpec, open_archive
from sunzip.arguments import positive, whole
from sunzip.bounds import Wish, bounds_of, told
from sunzip.codec import Codec
from sunzip.errors import InputError
from sunzip.sources.series import Series
from sunzip.times import format_utc
from sunzip.weights import Model

if TYPE_CHECKING:
    from distributed import Client

#: Frames of one shard: a day at 12 minutes. A shard is the unit of resuming and of parallel writing.
FRAMES_PER_SHARD = 120

#: Frames of a block where frames build on each other. The first one costs ten times the others and more, so
#: that longer blocks save less and less; a whole one is held in memory; to read a frame some four others are
#: decoded first; and 24 divide a shard.
_TOGETHER = 24

#: Pixels of such a block at most, 1.2 GB: those of 24 frames of 12 channels of 1024². Up to three such blocks
#: are in memory at a time.
_BLOCK_PIXELS = _TOGETHER * 12 * 1024**2

#: Frames further apart have too little in common for that.
_APART = np.timedelta64(1, "D")

#: How many frames are coded together, or to choose it by the model and the times of the frames.
Block = int | Literal["auto"]


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
    target_ratio: float | None = None,
    target_bytes: int | None = None,
    max_error: Wish | None = None,
    block: Block = "auto",
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
        As `open_series`; an archive of a series keeps the last two, by which `append` opens sources.
        With ``missing="drop"``, here or where a given series was made, all images are read
        once before the first is coded: only so it is known in which frames one holds no measurement.
    model
        A model, or its name, sha256 or folder.
    quality
        0 (smallest) to 100 (finest); None is the model's default.
    target_ratio, target_bytes
        Instead of a quality: choose the finest whose archive is so many times smaller than its images as
        float32, or has so many bytes at most. It is found by coding a few frames from all over, so that what
        comes out is near the target, not below it for certain. An embedded model counts.
    max_error
        How far any decoded pixel may be from the original: ``"5%"`` of it, ``"2sigma"`` of its noise,
        ``"10DN/s"`` or ``"20G"``; by channel as in ``"2sigma,193A=5%"`` or as texts by name. See
        `sunzip.bounds.bounds_of`. Without a quality the one is chosen that takes the fewest bytes, by coding
        a few frames from all over; where a channel has no bound, of those from the model's default on.
    block
        Frames coded together. ``"auto"`` is 24 if the model codes frames given each other and most are at
        most a day apart, else 1.
    embed_model
        Store the model in the archive, so that the file is enough to decode it for ever.
    force
        Replace an existing archive.
    resume
        Continue a run that was broken off; the result has the same bytes as an unbroken one.
    dry_run
        Write nothing; estimate sizes and time from a few frames. With ``missing="drop"`` all are read.
    workers
        Code in so many processes of this machine instead of this one. As with all processes that Python
        spawns, a script must then do its work under ``if __name__ == "__main__":``.
    client
        Code on the workers of a Dask cluster: its `distributed.Client`, or the address or scheduler file of
        its scheduler. All must see `out`: a shared file system or an object store.
    progress
        Called with a `Progress` at the beginning and after each stretch of frames, or of workers after each
        shard.

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
    series = _opened(src, codec, hmi, anon, degradation, align)
    workers = wanted_workers(workers, client)
    if sum(wish is not None for wish in (quality, target_ratio, target_bytes)) > 1:
        raise InputError("a quality, a target ratio and a target size exclude each other")
    if max_error is not None:
        if target_ratio is not None or target_bytes is not None:
            raise InputError("bounded errors take the bytes that they take: give no target, or no max_error")
        codec = codec.within(bounds_of(max_error, series.channels), quality)
    looking = clock.monotonic()
    # The frames of an archive are fixed before the first one is coded.
    series = settled(series)
    looking = clock.monotonic() - looking
    spec, path = _specifying(src, series, codec, block, degradation, align), os.fspath(out)
    if target_ratio is not None:
        target_ratio = positive(target_ratio, "target_ratio (--target-ratio)")
    elif target_bytes is not None:
        target_bytes = whole(target_bytes, "target_bytes (--target-bytes)", 1)
    open_quality = bool(codec.bounds) and quality is None
    if dry_run or target_ratio is not None or target_bytes is not None or open_quality:
        sample = Sample(series, spec(codec))
        if target_ratio is not None:
            target_bytes = _within(sample.raw_bytes, target_ratio)
        embedded = codec.model.nbytes if embed_model else 0
        if target_bytes is not None:
            try:
                codec = codec.at(sample.finest(codec, target_bytes, embedded))
            except InputError as error:
                wish = f"{target_bytes:,} bytes"
                if target_ratio is not None:
                    wish += f" ({target_ratio:g} times smaller than float32)"
                raise InputError(f"{path}: cannot be held to {wish}: {error}") from None
        if open_quality:
            codec = codec.at(sample.cheapest(codec))
        if dry_run:
            return _estimated(sample, series, codec, path, embedded, target_bytes, looking)
        del sample
    size, now = code_archive(
        path,
        series,
        codec,
        spec(codec),
        embed=codec.model.files if embed_model else None,
        force=force,
        resume=resume,
        workers=workers,
        client=client,
        progress=progress,
    )
    with open_archive(path) as archive:
        return report(archive, series, codec, size, clock.monotonic() - begin, now, target_bytes)


def _opened(
    src: Sources | Series,
    codec: Codec,
    hmi: str | None,
    anon: bool,
    degradation: str | None,
    align: Alignment | None,
) -> Series:
    """Open sources whose images a codec can code."""
    if isinstance(src, Series):
        refuse_idle(hmi=hmi)
        series = src
    else:
        series = open_series(src, hmi=hmi, anon=anon, degradation=degradation, align=align)
    try:
        codec.family.check_size(*series.shape)
    except InputError as error:
        # The model knows what is wrong, not whose images they are.
        raise InputError(f"{series.urls[0]}: {error}") from None
    return series


def _specifying(
    src: Sources | Series,
    series: Series,
    codec: Codec,
    block: Block,
    degradation: str | None,
    align: Alignment | None,
) -> Callable[[Codec], ArchiveSpec]:
    """Return what tells the archive that a codec makes of frames, at any quality."""
    return partial(
        _specification,
        series,
        frames=series.fingerprint(),
        block=_frames_per_block(block, codec, series.time, series.pixels),
        align=None if isinstance(src, Series) and align is None else align or Alignment(),
        degradation=degradation,
    )


def sampled(
    src: Sources | Series,
    codec: Codec,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
) -> tuple[Series, Sample]:
    """Return the frames of sources, and the sample of them that a dry run of `compress` codes.

    Parameters
    ----------
    src, hmi, anon, degradation, align
        As `compress`.
    codec
        At any quality.

    Raises
    ------
    InputError, DamagedError
        As `compress`.
    """
    series = settled(_opened(src, codec, hmi, anon, degradation, align))
    return series, Sample(series, _specifying(src, series, codec, "auto", degradation, align)(codec))


def longest_block(pixels: int) -> int:
    """Return the most frames of so many pixels that are coded together unless others are asked for."""
    return min(_TOGETHER, max(1, _BLOCK_PIXELS // pixels))


def _frames_per_block(wanted: Block, codec: Codec, time: npt.NDArray[np.datetime64], pixels: int) -> int:
    """Return how many frames are coded together; shards have a whole number of blocks."""
    if isinstance(wanted, str) and wanted == "auto":
        if not codec.family.sequential or len(time) < 2 or np.median(np.diff(time).astype("m8[ms]")) > _APART:
            return 1
        return min(longest_block(pixels), FRAMES_PER_SHARD, len(time))
    return whole(wanted, "block (--block), if not 'auto',", 1, FRAMES_PER_SHARD)


def _within(raw_bytes: int, ratio: float) -> int:
    """Return the bytes of an archive that is so many times smaller than its images as float32."""
    size = raw_bytes / ratio
    if not np.isfinite(size):
        raise InputError(f"target_ratio (--target-ratio) is too small: {ratio}")
    return int(size)


def _specification(
    series: Series,
    codec: Codec,
    frames: str,
    block: int,
    align: Alignment | None,
    degradation: str | None,
) -> ArchiveSpec:
    quality = codec.shown_quality
    coding = {
        "quality": quality,
        "frames_per_block": block,
        # So that what the latents would take as float32 can be told without the model.
        "latents_per_frame": _latents(codec, series.shape),
        "exact": codec.family.exact,
        # None if the frames came as a series that somebody else had aligned.
        "align": asdict(align) if align else None,
        "degradation": degradation,
    }
    held = {"max_error": told(codec.bounds)} if codec.bounds else {}
    coding |= held
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
            **({} if quality is None else {"quality": quality}),
            **held,
        },
        model={"name": codec.model.name, "sha256": codec.model.sha256, "bytes": codec.model.nbytes},
        source={
            "urls": list(series.urls),
            "layouts": list(series.layouts),
            "stored_bytes": series.stored_bytes,
        },
        coding=coding,
        fingerprint=fingerprint_of(frames, codec.model.sha256, coding=coding),
    )


def fingerprint_of(*identities: str, coding: Mapping[str, Any]) -> str:
    """Return what tells an archive from others: by all that it is made from, and how."""
    text = "\n".join([*identities, json.dumps(coding, sort_keys=True)])
    return hashlib.sha256(text.encode()).hexdigest()


def _latents(codec: Codec, shape: tuple[int, int]) -> int | None:
    """Return how many numbers a frame is, before they are coded; None if latents are not what is coded."""
    return int(np.prod(codec.family.latent_shape(*shape))) if codec.family.latents_coded else None


def _errors(
    channels: Sequence[str], stats: dict[str, npt.NDArray[np.float32]]
) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for i, name in enumerate(channels):
        out[name] = {}
        for key, values in stats.items():
            known = values[:, i][np.isfinite(values[:, i])].astype(np.float64)
            of_all = known.max if key == "err_max" else known.mean
            out[name][key.removeprefix("err_")] = float(of_all()) if known.size else None
        # Measured, and yet without a correlation: the image, or what is left of it, is one number.
        measured = np.isfinite(stats["err_rmse"][:, i])
        out[name]["constant"] = int(np.count_nonzero(measured & np.isnan(stats["err_r"][:, i])))
    return out


def report(
    done: Archive,
    series: Series,
    codec: Codec,
    size: int,
    seconds: float,
    frames_coded: int,
    target: int | None = None,
    before: int = 0,
    odd: Mapping[str, int] | None = None,
) -> CompressReport:
    """Return what there is to tell of an archive, whose last frames are those of a series.

    Parameters
    ----------
    done, series, codec
        The archive, the series, and what coded it.
    size, seconds, frames_coded, target
        As `CompressReport` has them.
    before
        Frames of the archive that there was, whose first stand before those of the series.
    odd
        How much of what could not be added to it, if anything could be.
    """
    valid = done.valid
    # A run that was continued has not read all images itself.
    series.note_valid(valid[done.frames - len(series) :])
    alignment = series.report.as_dict()
    alignment["odd"] |= {what: n for what, n in (odd or {}).items() if n}
    return _report(
        done,
        codec,
        path=done.path,
        dry_run=False,
        frames_before=before,
        frames_anew=before - (done.frames - len(series)),
        images=int(valid.sum()),
        target=target,
        seconds=seconds,
        frames_coded=frames_coded,
        archive_bytes=size,
        coded_bytes=int(done.block_bytes.sum()),
        stats=done.stats,
        alignment=alignment,
    )


def _estimated(
    sample: Sample,
    series: Series,
    codec: Codec,
    path: str,
    embedded: int,
    target: int | None,
    looking: float,
) -> CompressReport:
    found = sample.code(codec)
    return _report(
        sample.spec,
        codec,
        path=path,
        dry_run=True,
        frames_before=0,
        frames_anew=0,
        images=sample.images,
        target=target,
        seconds=looking + found.seconds,
        frames_coded=len(series),
        archive_bytes=found.coded_bytes + found.overhead + embedded,
        coded_bytes=found.coded_bytes,
        stats=found.stats,
        alignment=series.report.as_dict(),
    )


def _report(
    of: Archive | ArchiveSpec,
    codec: Codec,
    *,
    path: str,
    dry_run: bool,
    frames_before: int,
    frames_anew: int,
    images: int,
    target: int | None,
    seconds: float,
    frames_coded: int,
    archive_bytes: int,
    coded_bytes: int,
    stats: dict[str, npt.NDArray[np.float32]],
    alignment: dict[str, Any],
) -> CompressReport:
    frames, latents = len(of.time), _latents(codec, of.shape)
    first, last = format_utc(of.time[[0, -1]])
    return CompressReport(
        path=path,
        dry_run=dry_run,
        frames=frames,
        frames_before=frames_before,
        frames_anew=frames_anew,
        images=images,
        channels=of.channels,
        shape=of.shape,
        scale=str(of.scale),
        first=first,
        last=last,
        model=codec.model.name,
        model_sha256=codec.model.sha256,
        quality=codec.shown_quality,
        max_error=told(codec.bounds) or None,
        block=of.frames_per_block,
        target_bytes=target,
        seconds=seconds,
        frames_coded=frames_coded,
        raw_bytes=4 * images * of.shape[0] * of.shape[1],
        # As found at the beginning: listing a large remote store once more would take minutes.
        source_bytes=of.source["stored_bytes"],
        archive_bytes=archive_bytes,
        coded_bytes=coded_bytes,
        latent_bytes=None if latents is None else 4 * latents * frames,
        model_bytes=codec.model.nbytes,
        errors=_errors(of.channels, stats),
        alignment=alignment,
    )
