"""Dask workers that code shards, on this machine or on a cluster: the code of one process, and its bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from sunzip import __version__, weights
from sunzip.api._shards import Coded, Plan, code_shards
from sunzip.archive import partial_of
from sunzip.bounds import Bounds
from sunzip.codec import Codec, codec_for
from sunzip.errors import InputError, OutputError, SunzipError, needing
from sunzip.sources.series import Notes
from sunzip.tasks import Task
from sunzip.weights import Model

if TYPE_CHECKING:
    from distributed import Client

#: Seconds that a scheduler may take to answer.
_PATIENCE = 15
#: Seconds between two looks whether there is anybody left to do the work.
_PAUSE = 0.1
#: Bytes of a scheduler file that are read.
_MOST_TOLD = 1 << 20
#: What Python's tracker of semaphores, which inherits this, says of workers that end amid their work: they
#: leave the lock that numcodecs makes in each process, and it is removed.
_UNSAID = "ignore:resource_tracker:UserWarning:multiprocessing.resource_tracker"
#: Files that Dask has open at a time at least: for itself, and for each worker of this machine.
_FILES, _FILES_EACH = 12, 12


@dataclass(frozen=True, slots=True)
class Errand:
    """What workers are sent once: the plan and the model.

    Attributes
    ----------
    plan
        What is to be coded.
    model
        Complete, as the worker's machine need not have it.
    quality, bounds
        The codec's.
    version
        Of sunzip: another one may give other bytes.
    """

    plan: Plan
    model: Model
    quality: int
    bounds: Bounds
    version: str


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, each with one lane, and stop them at the end.

    Raises
    ------
    InputError
        If they cannot be started.
    """
    distributed = need()
    if multiprocessing.current_process().daemon:
        # With Python 3.14 Dask waits for ever for workers that may not be.
        raise InputError(
            "workers (--workers): a daemonic process, as those of multiprocessing.Pool are, may start none; "
            "leave them out"
        )
    _allow_files(_FILES + _FILES_EACH * workers)

    def begin() -> Client:
        # Workers hold a few stretches of frames, whatever the size of the job: nothing needs to be limited.
        # What Dask would print of workers that end is either in order or said by the job's own error.
        cluster = begun.enter_context(
            distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.CRITICAL + 1,
            )
        )
        made: Client = begun.enter_context(distributed.Client(cluster, set_as_default=False))
        made.run(_ignore_ctrl_c)
        return made

    with ExitStack() as begun:
        # Dask cannot close what has half begun, and complains at the program's end: an interrupt that comes
        # meanwhile leaves this thread to finish before all is closed.
        with ThreadPoolExecutor(1, initializer=_hold_back_ctrl_c) as pool:
            made = _started(Task(pool, begin))
        yield made


def _allow_files(count: int) -> None:
    """Refuse where fewer files may be opened: Dask waits for ever then, or complains at length itself."""
    try:
        with ExitStack() as opened:
            for _ in range(count):
                opened.enter_context(open(os.devnull, "rb"))
    except OSError as error:
        raise InputError(
            f"workers (--workers): they take {count} open files or more, which this process may not have "
            f"({error.strerror}); raise the limit (ulimit -n), or ask for fewer, or for none"
        ) from error


def _started(begun: Task[Client]) -> Client:
    try:
        return begun.result()
    except (OSError, RuntimeError) as error:
        # Dask says that they did not start; why is said by what came first.
        first: BaseException = error
        while before := first.__cause__ or first.__context__:
            first = before
        raise InputError(
            f"workers (--workers): they cannot be started here ({first}); ask for fewer, or for none; "
            'in a script they need its work below `if __name__ == "__main__":`'
        ) from error


def _hold_back_ctrl_c() -> None:
    """Keep Ctrl-C from what this thread starts, from its first moment on, as from what Dask starts again.

    It reaches all processes of a terminal, but only the one that was called has to say something of it.
    """
    if hasattr(signal, "pthread_sigmask"):
        # Whoever starts this one first no longer holds anything back.
        sys.warnoptions.append(_UNSAID)
        try:
            resource_tracker.ensure_running()
        finally:
            sys.warnoptions.remove(_UNSAID)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows holds none back


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect to a scheduler by its address (``tcp://host:8786``) or its scheduler file.

    Raises
    ------
    InputError
        If Dask is not installed or no scheduler answers.
    """
    distributed = need()
    # A client that cannot be made leaves its half behind, which complains when it is forgotten.
    asked = _scheduler_of(address) if os.path.isfile(address) else address
    kind, _, place = asked.rpartition("://")
    if kind not in ("", *distributed.comm.registry.backends) or not place or set(place) & set(" \t\n"):
        raise InputError(
            f"{address}: is neither the address of a Dask scheduler, as tcp://host:8786 is, nor its file"
        )
    try:
        _reach(asked)
        made = distributed.Client(asked, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{address}: no Dask scheduler answers there ({reason}); start one with `dask scheduler`"
        ) from error
    with made:
        yield made


def _reach(address: str) -> None:
    """Connect once. A client that cannot waits for half a minute when it is forgotten, and complains."""
    distributed = need()
    security = distributed.Security().get_connection_args("client")

    async def connect() -> None:
        try:
            # What answers and is no scheduler is not given up by itself.
            found = await asyncio.wait_for(distributed.comm.connect(address, **security), _PATIENCE)
        except TimeoutError:
            raise OSError(f"nothing within {_PATIENCE} s") from None
        found.abort()

    # A notebook's own loop runs already; this one is the client's.
    runner = distributed.utils.LoopRunner()
    runner.start()
    try:
        runner.run_sync(connect)
    finally:
        runner.stop()


def _scheduler_of(path: str) -> str:
    """Return the address in a scheduler file."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_MOST_TOLD))["address"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, str):
        raise InputError(f"{path}: is no scheduler file, as `dask scheduler --scheduler-file` writes it")
    return found


def need() -> Any:
    """Return the package `distributed`.

    Raises
    ------
    InputError
        If it is not installed.
    """
    with needing("dask", "workers need"):
        import distributed
    return distributed


def code_shards_on(
    client: Client, plan: Plan, codec: Codec, shards: Sequence[int], *, ours: bool = False
) -> Generator[Coded, None, None]:
    """Have workers code and write shards, telling after each shard. See `code_shards`.

    Parameters
    ----------
    ours
        Whether the workers are those of `local_client`: once all are gone, no others come.

    Raises
    ------
    OutputError
        If workers cannot see the archive in the making, die of a shard again and again, or are all gone.
    InputError, DamagedError
        As `code_shards`, whichever worker it happens to; the other shards are given up.
    """
    import dask

    errand = Errand(plan, codec.model, codec.quality, codec.bounds, __version__)
    job = f"sunzip-{uuid.uuid4().hex}"
    # Pickled here and unpickled by a task: where a worker dies with the only copy, the scheduler makes a new
    # one, which it cannot do for scattered data. It is large on purpose.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
        sent = client.submit(pickle.loads, pickle.dumps(errand, protocol=5), key=f"{job}-errand", pure=False)
        begun = [client.submit(_code, sent, s, key=f"{job}-{s}", pure=False, priority=-i)
                 for i, s in enumerate(shards)]  # fmt: skip
    try:
        for future in _as_done(client, begun, plan.writer.path, ours):
            coded, notes = _result(future, plan)
            plan.series.note(notes)
            future.release()
            yield coded
    finally:
        # A scheduler that is gone has nothing left to cancel.
        with suppress(Exception):
            client.cancel([sent, *begun], force=True)  # type: ignore[no-untyped-call]


def _as_done(client: Client, begun: Sequence[Any], path: str, ours: bool) -> Iterator[Any]:
    done = need().as_completed(begun, loop=client.loop)
    cluster = client.cluster if ours else None
    for _ in begun:
        while cluster is not None and not done.has_ready():
            # Dask forgets workers that end and do not come back, and what they were to do waits for ever.
            if not cluster.workers:
                raise OutputError(
                    f"{path}: all workers (--workers) ended and could not be started again; give them more "
                    "memory, or ask for fewer, or for none"
                )
            time.sleep(_PAUSE)
        yield next(done)


def _code(errand: Errand, shard: int) -> tuple[Coded, Notes] | SunzipError:
    """Code one shard in a worker. What goes wrong is a result, or Dask would print and wrap it."""
    plan, writer = errand.plan, errand.plan.writer
    try:
        if errand.version != __version__:
            raise InputError(
                f"a Dask worker has sunzip {__version__}, not {errand.version}; install the same everywhere"
            )
        if not writer.sees_its_own():
            import socket

            raise OutputError(
                f"{partial_of(writer.path)}: a Dask worker on {socket.gethostname()} does not see it; name "
                "an absolute path on a file system that all workers share, or an object store (s3://…)"
            )
        weights.register(errand.model)
        codec = codec_for(errand.model.sha256, errand.quality, errand.bounds)
        total = [sum(column) for column in zip(*code_shards(plan, codec, [shard]), strict=True)]
        return Coded(*total), plan.notes(shard)
    except SunzipError as error:
        return error


def _result(future: Any, plan: Plan) -> tuple[Coded, Notes]:
    path = plan.writer.path
    if future.status not in ("finished", "error"):
        raise OutputError(f"{path}: the Dask scheduler gave the work up or is gone")
    try:
        found = future.result()
    except need().KilledWorker as error:
        raise OutputError(f"{path}: one worker after another died; give them more memory") from error
    except ModuleNotFoundError as error:
        raise InputError(f"a Dask worker lacks {error.name}; install the same sunzip everywhere") from error
    if isinstance(found, SunzipError):
        raise found
    return found  # type: ignore[no-any-return]
