"""Lanes: threads that code frames side by side, each on one core, so that bytes do not depend on how many.

Frames are independent, so that several lanes are faster than one frame on all cores. And inside PyTorch, by
which some families compute, two threads sum in another order than one, which moves a latent over a rounding
edge now and then. Networks therefore run in lanes alone, where libraries may use one thread.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from sunzip.codec.groups import folders_of
from sunzip.tasks import Task

_T = TypeVar("_T")
_Item = TypeVar("_Item")

#: Lanes that the frames of a block keep busy, some of which wait for others.
BUSY = 3

#: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h, and of how many bytes they are made: the second
#: is the largest that glibc takes.
_MALLOC = {-1: 128 << 20, -3: 32 << 20}


#: Where Linux tells of each processor, and there which of them are one core.
_PROCESSORS, _SIBLINGS = Path("/sys/devices/system/cpu"), "topology/thread_siblings_list"


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_here = threading.local()

#: How many lanes work, and how many threads libraries took before for products of matrices.
_working = 0
_before: dict[Any, int] = {}


def count() -> int:
    """Return how many frames are coded at a time, which is settled when first asked: one for each core.

    Fewer where a container or a batch system gives the time of fewer cores, if ``OMP_NUM_THREADS`` says so,
    or ``torch.set_num_threads`` where PyTorch is in use.
    """
    return _lanes()._max_workers


def side_by_side(work: Callable[[_Item], _T], items: Iterable[_Item]) -> Iterator[_T]:
    """Yield ``work(item)`` of every item in order; the lanes do all of it, even of a single item.

    Called in a lane, the work is done there and then. If it fails, or the iterator is closed, items that were
    not begun are left.
    """
    if getattr(_here, "is_lane", False):
        yield from map(work, items)
        return
    left = threading.Event()

    def unless_left(item: _Item) -> list[_T]:
        if left.is_set():
            return []
        with _each_alone():
            return [work(item)]

    pool = _lanes()
    tasks = deque(Task(pool, unless_left, item) for item in items)
    try:
        while tasks:
            yield tasks.popleft().result()[0]
    finally:
        left.set()


def as_ready(work: Callable[[int], _T], waits: Sequence[Collection[int]]) -> list[_T]:
    """Return ``work(n)`` for the number of every item, each done by a lane once those it waits for are.

    Of those that are ready the first go first. Called in a lane, the work is done there and then, in order.
    If it fails, items that were not begun are left.

    Parameters
    ----------
    work
        May use what it made of items that are waited for.
    waits
        The numbers of those, for each item; all are smaller than its own.
    """
    if getattr(_here, "is_lane", False):
        return [work(n) for n in range(len(waits))]
    pool = _lanes()
    followers: list[list[int]] = [[] for _ in waits]
    open_for = [len(set(of)) for of in waits]
    for n, of in enumerate(waits):
        for other in set(of):
            followers[other].append(n)
    done: SimpleQueue[int] = SimpleQueue()

    def told(n: int) -> _T:
        try:
            with _each_alone():
                return work(n)
        finally:
            done.put(n)

    ready = [n for n, count_left in enumerate(open_for) if not count_left]
    tasks: dict[int, Task[_T]] = {}
    found: dict[int, _T] = {}
    while len(found) < len(waits):
        # Not all at once: what becomes ready meanwhile may come before others.
        while ready and len(tasks) - len(found) < pool._max_workers:
            n = heappop(ready)
            tasks[n] = Task(pool, told, n)
        n = done.get()
        found[n] = tasks[n].result()
        for follower in followers[n]:
            open_for[follower] -= 1
            if not open_for[follower]:
                heappush(ready, follower)
    return [found[n] for n in range(len(waits))]


def in_lane() -> bool:
    """Tell whether the calling thread is a lane."""
    return getattr(_here, "is_thread_of_pool", False)


@contextmanager
def here() -> Iterator[None]:
    """Have the calling thread do itself what it gives to `side_by_side`, products of matrices on one thread.

    What PyTorch computes here may not be what it computes in a lane.
    """
    _keep_memory()
    before = getattr(_here, "is_lane", False)
    _here.is_lane = True
    try:
        with _each_alone():
            yield
    finally:
        _here.is_lane = before


@cache
def _keep_memory() -> None:
    """Have this process keep some of the memory that it frees, for the images that follow.

    Left to itself, glibc gives much of it back to the system after every image, and asks for it again,
    zeroed, page by page; as Dask starts its workers, with ``MALLOC_TRIM_THRESHOLD_=65536``, nearly all of it.
    """
    # Other libraries of C have no such function, and other systems none without a name.
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def _lanes() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _keep_memory()
            _pool = ThreadPoolExecutor(_cores(), "sunzip-lane", _begin_lane)
        return _pool


def _begin_lane() -> None:
    _here.is_lane = _here.is_thread_of_pool = True


def _cores() -> int:
    """Return how many cores this process may use."""
    wanted = 0
    with suppress(ValueError):
        wanted = max(int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]), 0)
    # Another thread may be about to import it.
    if threads := getattr(sys.modules.get("torch"), "get_num_threads", None):
        found = int(threads())
    else:
        found = wanted or _cores_there()
    # Who asks for so many is to have them.
    return found if wanted else min([found, *_shares()])


def _cores_there() -> int:
    """Return how many cores this process may run on."""
    return _cores_of(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores_of_machine()


def cores_of_machine() -> int:
    """Return how many cores there are, whoever may use them."""
    return _cores_of(range(os.cpu_count() or 1))


def _cores_of(processors: Collection[int]) -> int:
    """Return how many cores some processors are."""
    try:
        # Two threads of one core get in each other's way.
        return len({(_PROCESSORS / f"cpu{n}" / _SIBLINGS).read_text() for n in processors})
    except OSError:
        return len(processors)


def _shares() -> Iterator[int]:
    """Yield how many cores' time the control groups of this process leave it, whatever it may run on.

    More threads would be stopped for most of every tenth of a second, and each takes its memory.
    """
    second, first = folders_of("cpu")
    files = [[folder / "cpu.max"] for folder in second]
    files += [[folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"] for folder in first]
    for told in files:
        # No limit is "max" in version 2, and -1 in version 1.
        with suppress(OSError, ValueError):
            quota, period = map(int, " ".join(file.read_text() for file in told).split())
            if quota > 0 and period > 0:
                yield -(-quota // period)


@contextmanager
def _each_alone() -> Iterator[None]:
    """Hold products of matrices to one thread while a lane works, or who does what lanes would do.

    There are enough lanes; and products as small as these gain nothing by several threads, which wait for
    each other many times as long where other work keeps the cores busy. It is held in the lane itself, as
    some libraries ask each thread; of others it is the whole process's, and no longer than any lane works,
    though a caller takes its time over what it was given.
    """
    global _working
    with _lock:
        _working += 1
        for library in _libraries():
            if (before := library.num_threads) != 1:
                _set(library, 1)
                _before[library] = before
    try:
        yield
    finally:
        with _lock:
            _working = max(_working - 1, 0)  # who forked meanwhile counts anew
            if not _working:
                _set_back()


@cache
def _libraries() -> list[Any]:
    """Return what sets how many threads libraries use: NumPy's among them, which was loaded before."""
    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


def _set(library: Any, threads: int) -> None:
    # From threadpoolctl 3.8 on whichever thread sets OpenBLAS first keeps that to itself: of others it is
    # silently not done. Here whichever lane comes first sets it, and the last sets it back.
    free = getattr(library, "clear_controlling_thread", lambda **_: None)
    free(force=True)
    library.set_num_threads(threads)
    free()


def _set_back() -> None:
    for library, threads in _before.items():
        if library.num_threads == 1:  # nobody else has set it since
            _set(library, threads)
    _before.clear()


def alone() -> None:
    """Have PyTorch use one thread for what the calling thread does, if that is a lane."""
    if not in_lane() or getattr(_here, "is_alone", False):
        return
    import torch

    # One at a time, as this touches what is the whole process's: it also sets what threads to come will use.
    # A thread that only sets it back leaves the rest of the process, which may train a network meanwhile, as
    # it was.
    with _lock:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(others,))
        try:
            back.start()
        except RuntimeError:  # no more threads
            torch.set_num_threads(others)
            raise
        back.join()
    _here.is_alone = True


def _forget() -> None:
    # Threads do not survive a fork, but what they held the process to does.
    global _pool, _lock, _working
    _set_back()
    _pool, _lock, _working = None, threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # Windows knows no fork
    os.register_at_fork(after_in_child=_forget)
