"""What frames would cost at which error: a sample of them, coded at a ladder of qualities."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.api import Alignment, OnStep, Sample, Sources, judging, sampled
from sunzip.arguments import whole
from sunzip.codec import Codec
from sunzip.codec.processes import ahead, settle
from sunzip.cube import Scale
from sunzip.display import Report
from sunzip.errors import InputError
from sunzip.metrics import over_images
from sunzip.sources.series import Series
from sunzip.times import format_utc
from sunzip.weights import Model

Float = npt.NDArray[np.float32]

#: From coarse to fine; the model's default is always among them.
QUALITIES = (5, 15, 25, 35, 50, 65, 80, 95)


@dataclass(frozen=True, slots=True)
class RateRow:
    """What one quality gives.

    Attributes
    ----------
    quality
        0 to 100; None if the model has none.
    archive_bytes, coded_bytes
        Estimated size of the archive of all frames, without a model, and of the coded blocks in it.
    bytes_per_frame, bits_per_sample, ratio
        Of that archive: bytes a frame, bits a pixel, and how many times smaller than float32 it is.
    rmse_sigma, r, ppe10, ppe50
        Means over all images of the sample, as the paper counts: see `sunzip.metrics.ChannelMetrics`; None if
        none of them has it.
    constant
        Images that `r` leaves out, as they, or what they are decoded to, are the same everywhere.
    in_mb_s, out_mb_s
        MB of float32 a second: from the source to bytes and errors measured, as `compress` does it; and
        decoded.
    seconds
        That `compress` would take here for all frames.
    metrics
        By mode (``paper``, ``strict``) and channel: see `sunzip.metrics.ChannelMetrics`.
    """

    quality: int | None
    archive_bytes: int
    coded_bytes: int
    bytes_per_frame: float
    bits_per_sample: float
    ratio: float
    rmse_sigma: float | None
    r: float | None
    ppe10: float | None
    ppe50: float | None
    constant: int
    in_mb_s: float
    out_mb_s: float
    seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RateReport(Report):
    """What frames would cost at which error.

    Attributes
    ----------
    source
        Where they come from.
    frames, images, channels, shape, first, last
        All of them, as `compress` would code them; images are summed over channels.
    block
        Frames coded together.
    model, model_sha256, default_quality
        What would code them; a quality of None is that of a model that has none.
    raw_bytes, source_bytes
        Their images as float32, and as they are in the source (None if unknown).
    sample_frames, sample_images
        How many were coded.
    seconds
        Wall time of the study.
    rows
        From the coarsest quality to the finest; one of a model that has no qualities.
    alignment
        What became of every image of the sources.
    """

    source: str
    frames: int
    images: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    first: str
    last: str
    block: int
    model: str
    model_sha256: str
    default_quality: int | None
    raw_bytes: int
    source_bytes: int | None
    sample_frames: int
    sample_images: int
    seconds: float
    rows: tuple[RateRow, ...]
    alignment: dict[str, Any]


def rate(
    src: Sources | Series,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
    model: str | Path | Model = weights.DEFAULT,
    qualities: Iterable[int] | None = None,
    progress: OnStep | None = None,
) -> RateReport:
    """Tell what frames would cost at which error, by coding a sample of them at several qualities.

    The sample is that of a dry run of `sunzip.compress`, so that both estimate the same sizes: beginnings of
    blocks from all over the series, 2 GB at most. Each quality codes and decodes it once.

    Parameters
    ----------
    src, hmi, anon, degradation, align, model
        As `sunzip.compress`.
    qualities
        Which ones, from 0 to 100; by default some from coarse to fine, the model's own among them.
    progress
        Told what is done, how much of it and of how much.

    Raises
    ------
    InputError, ModelNotFoundError, DamagedError
        As `sunzip.compress`; also if there is no quality.

    Examples
    --------
    >>> found = rate("synthetic:frames=2,size=64", qualities=[10, 60])
    >>> [row.quality for row in found.rows], found.rows[0].archive_bytes < found.rows[1].archive_bytes
    ([10, 60], True)
    """
    begin = clock.monotonic()
    advance = progress or (lambda *_: None)
    codec = Codec(model if isinstance(model, Model) else weights.load(model))
    ladder = _ladder(qualities, codec.quality) if codec.family.has_qualities else [codec.quality]
    series, sample = sampled(src, codec, hmi=hmi, anon=anon, degradation=degradation, align=align)
    advance("coding a sample", 0, len(ladder))
    nbytes = sum(cube.nbytes for cube in sample.cubes)
    rows = []
    with ahead(len(ladder) * nbytes):
        settle(partial(sample.code, codec))
        for done, quality in enumerate(ladder, start=1):
            rows.append(_row(series, sample, codec.at(quality), nbytes))
            advance("coding a sample", done, len(ladder))
    first, last = format_utc(series.time[[0, -1]])
    return RateReport(
        source=", ".join(series.urls),
        frames=len(series),
        images=sample.images,
        channels=series.channels,
        shape=series.shape,
        first=first,
        last=last,
        block=sample.spec.frames_per_block,
        model=codec.model.name,
        model_sha256=codec.model.sha256,
        default_quality=codec.family.default_quality if codec.family.has_qualities else None,
        raw_bytes=sample.raw_bytes,
        source_bytes=series.stored_bytes,
        sample_frames=sum(map(len, sample.cubes)),
        sample_images=sum(int(cube.valid.sum()) for cube in sample.cubes),
        seconds=clock.monotonic() - begin,
        rows=tuple(rows),
        alignment=series.report.as_dict(),
    )


def _ladder(wanted: Iterable[int] | None, own: int) -> list[int]:
    """Return the qualities to be studied, rising."""
    if wanted is None:
        return sorted({*QUALITIES, own})
    ladder = sorted({whole(quality, "a quality (--qualities)", 0, 100) for quality in wanted})
    if not ladder:
        raise InputError(
            "no quality (--qualities) named; name some from 0 to 100, or leave them to the study"
        )
    return ladder


def _row(series: Series, sample: Sample, codec: Codec, nbytes: int) -> RateRow:
    """Code and decode a sample of so many bytes, and measure what was lost."""
    found = sample.code(codec)

    def decode(n: int) -> Float:
        cube = sample.cubes[n]
        return codec.decode(found.blocks[n : n + 1], cube.channels, series.shape, cube.scale)[: len(cube)]

    begin = clock.monotonic()
    decoded = sample.each(decode)
    decoding = clock.monotonic() - begin
    gather = judging(series.channels, series.shape)
    for cube, pixels in zip(sample.cubes, decoded, strict=True):
        shown = replace(cube, data=pixels)
        gather.add(cube.to_scale(Scale.MEAN).data, shown.to_scale(Scale.MEAN).data, cube.valid)
    metrics: dict[str, Any] = gather.as_dict()
    size = found.coded_bytes + found.overhead
    return RateRow(
        quality=codec.shown_quality,
        archive_bytes=size,
        coded_bytes=found.coded_bytes,
        bytes_per_frame=size / len(series),
        bits_per_sample=32 * size / sample.raw_bytes,
        ratio=sample.raw_bytes / size,
        **{key: over_images(metrics["paper"], key) for key in ("rmse_sigma", "r", "ppe10", "ppe50")},
        constant=sum(m["constant"] for m in metrics["paper"].values()),
        in_mb_s=sample.raw_bytes / found.seconds / 1e6,
        out_mb_s=nbytes / decoding / 1e6,
        seconds=found.seconds,
        metrics=metrics,
    )
