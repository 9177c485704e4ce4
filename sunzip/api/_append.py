"""Frames that are added to an archive: what is new in its source is coded, and all else stays as it is."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sunzip.api._compress import fingerprint_of, report
from sunzip.api._reports import CompressReport, OnProgress
from sunzip.api._run import code_archive, wanted_workers
from sunzip.api._series import Sources, what_follows
from sunzip.archive import Archive, exists, open_archive, remove_left
from sunzip.errors import DamagedError, InputError
from sunzip.sources.series import Series
from sunzip.sun import Sun
from sunzip.times import When
from sunzip.weights import Model

if TYPE_CHECKING:
    from distributed import Client


def append(
    src: Sources | Series,
    path: str | os.PathLike[str],
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    stop: When | None = None,
    late: bool = False,
    model: str | Path | Model | None = None,
    force: bool = False,
    resume: bool = False,
    workers: int | None = None,
    client: Client | str | None = None,
    progress: OnProgress | None = None,
) -> CompressReport:
    """Add to an archive the frames of its source, or of another, that come after its last.

    They are coded as the archive was: channels, image size, time grid, model, quality, bounds of errors and
    frames of a block are its own. Frames that it has are not coded again, and decode to the same bits; a
    last block that is not full is filled up. The new archive is written beside the old one, which stays
    whole until it is replaced.

    Parameters
    ----------
    src, hmi, anon, degradation
        As `sunzip.compress`. What the archive has already is passed over; channels of the archive that the
        source lacks are missing in what is added.
    path
        The archive, a path or an fsspec URL. While it grows there is a folder ``<path>.partial``.
    stop
        Time to stop before; by default all is added.
    late
        Code anew, too, what the archive has from its first shard on that lacks frames or images that the
        source has now: late ones, or those that were lost. The source must have all that it has since.
    model
        Name, sha256 or folder of the archive's model, if it is neither in the archive nor on this machine.
    force
        Begin again if there is an unfinished archive; if nothing is new, remove it.
    resume
        Continue a run that was broken off; the result has the same bytes as an unbroken one.
    workers, client, progress
        As `sunzip.compress`.

    Returns
    -------
    CompressReport
        Of the whole archive. If nothing is new, no frame was coded, and the archive is as it was.
        `frames_anew` says how many of its frames were coded anew.

    Raises
    ------
    InputError, OutputError, ModelNotFoundError, DamagedError
        See `sunzip.errors`. The archive is never touched unless all went well. Without `late` frames that
        lie before its last and that it lacks are not added, nor images that its frames lack; the report's
        `alignment` counts both.

    Examples
    --------
    >>> report = append("synthetic:frames=6,size=64", "/tmp/doc.lat")  # doctest: +SKIP
    """
    begin = clock.monotonic()
    path = os.fspath(path)
    workers = wanted_workers(workers, client)
    if not exists(path):
        raise InputError(f"{path}: nothing is there to add to; `sunzip compress` makes an archive")
    with Sun(path, model=model, anon=anon) as sun:
        old = sun.archive
        # How the frames are to be brought together is told with it, so that nothing is right without.
        origins = _Origins.of(old)
        # Archives need not tell a quality: it is then the model's own, as for the Zarr codec.
        codec = sun.codec.within(old.bounds, old.codec.get("quality"))
        found = what_follows(old, src, hmi=hmi, anon=anon, degradation=degradation, stop=stop, late=late)
        series, align, kept = found.series, found.align, found.kept
        source = _sources(old, origins, kept, series)
        if not len(series):
            if resume or force:
                # A run may have been broken off after the new archive had taken its place, or be given up.
                remove_left(path, old, whatever=force and not resume)
            size, now = old.size, 0
        else:
            coding = {**old.coding, "align": asdict(align) if align else None}
            if degradation is not None:
                coding["degradation"] = degradation
            fingerprint = fingerprint_of(old.identity, series.fingerprint(), coding=coding)
            spec = old.longer(kept, series.time, source, coding, fingerprint)
            size, now = code_archive(
                path,
                series,
                codec,
                spec,
                before=old,
                kept=kept,
                held=found.held,
                embed=old.embedded_model(),
                force=force,
                resume=resume,
                workers=workers,
                client=client,
                progress=progress,
            )
    with open_archive(path, anon=anon) as archive:
        odd = found.late() | _lacking(archive, len(series))
        return report(
            archive,
            series,
            codec,
            size,
            clock.monotonic() - begin,
            now,
            before=old.frames,
            odd=odd,
        )


def _lacking(archive: Archive, added: int) -> dict[str, int]:
    """Return how many frames were added without the channels that those before them have, in words.

    Who forgot the second store is to learn of it.
    """
    before, new = np.split(archive.valid, [archive.frames - added])
    names = [archive.channels[i] for i in np.flatnonzero(before.any(axis=0) & ~new.any(axis=0))]
    what = f"frame added without {' '.join(names)}, which earlier ones have; with --late these can be added"
    return {what: added if names else 0}


class _Origins(NamedTuple):
    """Where an archive's frames came from: the URLs and layouts of its sources, and their bytes if known."""

    urls: list[str]
    layouts: list[str]
    size: int | None

    @classmethod
    def of(cls, old: Archive) -> _Origins:
        """Read it.

        Raises
        ------
        DamagedError
            If the archive does not say it.
        """
        urls, layouts, size = (old.source.get(key) for key in ("urls", "layouts", "stored_bytes"))
        if (
            not isinstance(urls, list)
            or not isinstance(layouts, list)
            or len(urls) != len(layouts)
            or not all(isinstance(text, str) for text in urls + layouts)
            or not (size is None or (type(size) is int and size >= 0))
        ):
            raise DamagedError(
                f"{old.path}: does not say where its frames came from and how they were brought together, as "
                "a repair cannot if the root was lost; nothing can be added: compress its source again"
            )
        return cls(urls, layouts, size)


def _sources(old: Archive, origins: _Origins, kept: int, series: Series) -> Mapping[str, Any]:
    """Return where all frames came from, those that are kept and others, each source named once."""
    before, kinds, size = origins
    if kept < old.frames and size is not None:
        # What is coded anew is counted with the series.
        valid = old.valid
        size = round(size * (int(valid[:kept].sum()) / max(int(valid.sum()), 1)))
    known = [pair for pair in zip(before, kinds, strict=True) if kept and pair[0] not in series.urls]
    known += zip(series.urls, series.layouts, strict=True)
    urls, layouts = map(list, zip(*known, strict=True))
    sizes = [size, series.stored_bytes]
    return {"urls": urls, "layouts": layouts, "stored_bytes": None if None in sizes else sum(sizes)}
