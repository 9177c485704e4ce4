"""What was lost: an archive held against its source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sunzip.api._pairs import Decoded, Stabilise, in_both
from sunzip.api._reports import EvaluateReport, OnProgress, Progress
from sunzip.api._series import Sources, settled, source_of
from sunzip.bounds import told
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.metrics import Accumulator
from sunzip.sources.series import Series
from sunzip.sun import open
from sunzip.weights import Model


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

    ``anon`` is for both.
    The source is aligned as it was when the archive was made. Images count where both have the image with
    the same time of observation.

    Raises
    ------
    InputError
        If they have no image in common.
    """
    with open(path, model=model, anon=anon) as sun:
        series = source_of(sun, src, hmi=hmi, anon=anon, degradation=degradation)
        # Frames that the archive left out for an image without measurement are not absent from it.
        series = settled(series, sun.time)
        ours, theirs = in_both(series.time, series.t_obs, sun.time, sun.archive.t_obs)
        gather = judging(sun.channels, sun.archive.shape)
        images = frames = raw = 0
        known = int(sun.archive.valid.sum())
        elsewhere = np.delete(series.t_obs, ours, axis=0)
        offered = int(np.count_nonzero(~np.isnat(elsewhere)))
        bounds = sun.archive.bounds
        outside = dict.fromkeys(bounds, 0)
        if progress:
            progress(Progress(0, len(ours), 0, 0))
        frames_of = Decoded(sun)
        for done, (a, b) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True), start=1):
            cube, read = frames_of.read(b), series.read(a, a + 1)
            decoded, original = cube.to_scale(Scale.MEAN), read.to_scale(Scale.MEAN)
            same = original.valid & decoded.valid & (original.t_obs == decoded.t_obs)
            # A bound is meant in the archive's own scale.
            there = read.to_scale(cube.scale) if bounds else read
            for name, bound in bounds.items():
                c = sun.channels.index(name)
                if same[0, c]:
                    outside[name] += bound.outside(there.data[0, c], cube.data[0, c], name, cube.scale)
            gather.add(original.data, decoded.data, same)
            images, frames = images + int(same.sum()), frames + bool(same.any())
            offered += int(original.valid.sum())
            raw += original.nbytes
            if progress:
                progress(Progress(done, len(ours), raw, 0))
        if not images:
            raise InputError(
                f"{series.urls[0]}: has no image in common with {path}; is it the archive's source?"
            )
        pixels = known * sun.archive.shape[0] * sun.archive.shape[1]
        about = sun.archive.summary()
        # As `compress` and `info` count: without a model inside, whose size is only what the archive says.
        size = max(1, about["bytes"] - about["parts"]["model"])
        return EvaluateReport(
            source=", ".join(series.urls),
            archive=os.fspath(path),
            frames=frames,
            images=images,
            absent=known + offered - 2 * images,
            scale=str(sun.scale),
            metrics=gather.as_dict(),
            bits_per_sample=8 * size / pixels,
            ratio=4 * pixels / size,
            max_error=told(bounds) or None,
            outside=outside,
        )


def judging(channels: Sequence[str], shape: tuple[int, int]) -> Accumulator:
    """Return what takes the metrics of images of a shape (Y, X), AIA pixels as means."""
    # A rectangle has no nominal disk: strict metrics then count all pixels.
    on_disk = None if shape[0] == shape[1] else np.ones(shape, bool)
    return Accumulator(channels, stabilise=Stabilise(), on_disk=on_disk)
