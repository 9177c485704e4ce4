"""Archives into sinks, and the replacing of what a job wrote before."""

from __future__ import annotations

import os
import shutil
import time as clock
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sunzip.api._fill import Filler
from sunzip.api._reports import DecompressReport, OnProgress, Progress
from sunzip.api._shards import frames_at_a_time
from sunzip.errors import InputError, OutputError
from sunzip.files import keep_mode
from sunzip.sinks import open_sink
from sunzip.sinks.base import replaceable
from sunzip.sources.layouts import layout_of
from sunzip.sun import open
from sunzip.tasks import Task
from sunzip.times import When
from sunzip.weights import Model


def decompress(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    start: int | When | None = None,
    stop: int | When | None = None,
    channels: str | Iterable[str] | None = None,
    fill_missing: bool = False,
    model: str | Path | Model | None = None,
    anon: bool = False,
    force: bool = False,
    progress: OnProgress | None = None,
) -> DecompressReport:
    """Decode an archive into files that other programs read.

    Parameters
    ----------
    path
        The archive, a local path or an fsspec URL.
    out
        What to write; it appears under its name only when it is complete.
    layout
        ``"sdoml-v2"``, ``"sdoml-v1"``, ``"hdf5"`` or ``"fits"``; by default what `out` looks like: ``.zarr``,
        ``.h5``, ``.hdf5``, ``.nc`` or ``.nc4``, otherwise the layout that the archive was made from.
    start, stop
        Frame numbers or times, start included, stop not.
    channels
        One name or several; by default all.
    fill_missing
        Write what a frame lacks as it is foretold by what it has, and by earlier frames, where at least half
        of what varies can be; such images have the keyword ``SZ_FILL``.
    model, anon
        As `open`.
    force
        Replace what is at `out`.
    progress
        Called with a `Progress` at the beginning and after each stretch of frames.

    Raises
    ------
    InputError, OutputError, DamagedError, ModelNotFoundError
        See `sunzip.errors`.
    """
    begin = clock.monotonic()
    with open(path, model=model, anon=anon) as sun:
        names = sun.held(channels)
        frames = sun.frames_from(start, stop)
        form = layout or _layout_of(os.fspath(out), sun.archive.source)
        if fill_missing and form == "sdoml-v1":
            raise InputError(
                "SDOML v1 has no place to say that an image is foretold: write another layout (--layout), or "
                "leave out fill_missing (--fill-missing)"
            )
        filler = Filler(sun, names, frames.start) if fill_missing else None
        raw = filled = 0
        images = np.zeros(len(names), np.int64)
        sizes, t = sun.archive.block_bytes, sun.archive.frames_per_block
        pixels = len(names) * sun.archive.shape[0] * sun.archive.shape[1]
        step = frames_at_a_time(pixels, t if sun.codec.family.sequential else 1, stretches=1)
        with replacing(os.fspath(out), force) as target:
            sink = open_sink(
                target,
                form,
                channels=names,
                shape=sun.archive.shape,
                scale=sun.scale,
                about=sun.archive.origin(names),
            )
            # After Ctrl-C the pool waits for what is being written, which can be a thousand files.
            with sink, ThreadPoolExecutor(1, thread_name_prefix="sunzip") as pool, sink.fed():
                written: Task[None] | None = None
                if progress:
                    progress(Progress(0, frames.stop - frames.start, 0, 0))
                for stretch in sun.stretches(range(frames.start, frames.stop), step):
                    a, b = stretch[0], stretch[-1] + 1
                    cube = sun.cube(a, b, None if filler else names)
                    if filler:
                        cube, foretold = filler.fill(cube)
                        filled += int(foretold.sum())
                        cube = cube.pick(names)
                    if written:
                        written.result()
                    written = Task(pool, sink.write, cube)
                    raw, images = raw + cube.nbytes, images + cube.valid.sum(axis=0)
                    if progress:
                        coded = int(sizes[frames.start // t : -(-b // t)].sum())
                        progress(Progress(b - frames.start, frames.stop - frames.start, raw, coded))
                if written:
                    written.result()
        return DecompressReport(
            path=os.fspath(out),
            layout=form,
            frames=frames.stop - frames.start,
            images=int(images.sum()),
            filled=filled,
            channels=tuple(name for name, n in zip(names, images.tolist(), strict=True) if n),
            shape=sun.archive.shape,
            seconds=clock.monotonic() - begin,
            raw_bytes=raw,
        )


def _layout_of(out: str, source: Any) -> str:
    name = out.rstrip("/").lower()
    if name.endswith(".zarr"):
        return "sdoml-v2"
    if layout_of(name) == "hdf5":
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
        If what an earlier run left aside is in the way, or the old one cannot give way.
    """
    if not force or not os.path.lexists(path):
        # With a trailing slash what lies aside would lie inside.
        yield path.rstrip("/") or path
        return
    path = replaceable(path)
    aside, old = f"{path}.new", f"{path}.old"
    for name in (aside, old):
        if os.path.lexists(name):
            raise OutputError(f"{name}: is in the way; remove it")
    try:
        yield aside
    except BaseException:
        # What else was written in the same job may have failed after this was complete.
        if os.path.lexists(aside):
            _remove(aside)
        raise
    keep_mode(path, aside)
    try:
        os.rename(path, old)
        try:
            os.rename(aside, path)
        except BaseException:
            os.rename(old, path)
            raise
    except OSError as error:
        left = f", the old one {old}" if os.path.lexists(old) else ""
        raise OutputError(
            f"{path}: cannot be replaced: {error.strerror}; the new one is {aside}{left}"
        ) from None
    try:
        _remove(old)
    except KeyboardInterrupt as error:
        error.add_note(f"{path} is complete; remove the old one, {old}")
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: is complete, but the old one cannot be removed: {error.strerror}; remove {old}"
        ) from None


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)
