"""The coding of an archive: shard after shard, by this process, by others, or by those of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sunzip.api._reports import OnProgress, Progress
from sunzip.api._shards import Coded, Plan, code_shards
from sunzip.archive import Archive, ArchiveSpec, ArchiveWriter, size_if_complete
from sunzip.arguments import whole
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError
from sunzip.sources.series import Series

if TYPE_CHECKING:
    from distributed import Client


def code_archive(
    path: str,
    series: Series,
    codec: Codec,
    spec: ArchiveSpec,
    *,
    before: Archive | None = None,
    kept: int = 0,
    held: npt.NDArray[np.bool_] | None = None,
    embed: Mapping[str, bytes] | None,
    force: bool,
    resume: bool,
    workers: int | None,
    client: Client | str | None,
    progress: OnProgress | None,
) -> tuple[int, int]:
    """Code what is left to be coded, and pack; return the archive's bytes and the frames coded.

    Parameters
    ----------
    path
        The archive.
    series, codec
        The frames, and what codes them.
    spec
        What the archive will hold.
    before, kept
        The archive that is there, if the frames are to be added to so many of its own.
    held
        (T, C) which of the images it has; they must not turn out to hold no measurement.
    embed
        Files of the model, if the archive is to hold them.
    force, resume, workers, client, progress
        As `compress`.
    """
    raw = coded = 0
    if resume and not force and before is None:
        size = size_if_complete(path, spec, embedded=embed is not None)
        if size is not None:
            return size, 0
    with (
        _found(client, workers) as cluster,
        ArchiveWriter.create(path, spec, force=force, resume=resume, before=before, kept=kept) as writer,
    ):
        plan, todo = Plan(series, writer, spec.frames_per_block, held), writer.left()
        now = sum(f.stop - f.start for f in map(plan.frames_of, todo))
        done = len(series) - now
        if progress:
            progress(Progress(done, len(series), 0, 0))
        try:
            with _coding(plan, codec, todo, cluster, workers) as finished:
                for part in finished:
                    done, raw, coded = done + part.frames, raw + part.raw_bytes, coded + part.coded_bytes
                    if progress:
                        progress(Progress(done, len(series), raw, coded))
        except (InputError, DamagedError):
            # A source may be out of reach for a while, so that days of work stay; without a whole shard
            # there is nothing to stay. On a cluster shards may still be written.
            if cluster is None and not any(map(writer.done, todo)) and now == len(series):
                writer.abort()
            raise
        if not raw and now == len(series):
            writer.abort()
            damaged = f"; {n} of them are damaged: fetch them again" if (n := series.unreadable) else ""
            raise InputError(f"{series.urls[0]}: none of its images holds a measurement{damaged}")
        return writer.finish(embed), now


def wanted_workers(wanted: int | None, client: Client | str | None) -> int | None:
    """Return how many processes of this machine are wanted.

    Raises
    ------
    InputError
        If that is no whole number from 1 on, or a cluster is wanted, too.
    """
    if wanted is not None:
        wanted = whole(wanted, "workers (--workers)", 1)
        if client is not None:
            raise InputError("either a number of workers or a client of a cluster; give one of them")
    return wanted


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
        if client is not None and not hasattr(client, "submit"):
            raise InputError(
                f"client must be a distributed.Client or its address, not a {type(client).__name__}"
            )
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

            ours = client is None
            if client is None:
                client = stack.enter_context(_dask.local_client(min(workers or 1, len(shards))))
            coded = _dask.code_shards_on(client, plan, codec, shards, ours=ours)
        yield stack.enter_context(closing(coded))
