"""Processes in which lanes have frames coded: threads of Python wait for each other, processes do not.

A lane does itself what it is given until it has worked for a while beside others, or not at all if there is
much ahead; then it starts a process, and goes on itself until that is ready. What goes wrong with a process
costs time alone: its lane does the work again. Results do not depend on where they are made, as a process is
of the same program, with the same libraries on the same machine, and works as a lane does.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sunzip.codec.groups import folders_of
from sunzip.codec.lanes import cores_of_machine, count, here, in_lane
from sunzip.weights import Model

_T = TypeVar("_T")

#: Seconds of work beside other lanes after which a lane starts a process: about what that costs.
PATIENCE = 0.7

#: Bytes of images for each lane that take so long to encode that to start its process at once pays.
_MUCH = 96 << 20

#: Seconds after which no process is waited for that is not ready.
_SETTLED = 30.0

#: Seconds without work after which a process ends.
IDLE = 60

#: Seconds between looks at whether a process that has work has been stopped.
_LOOK = 1.0

#: Bytes of arrays that are handed to a process at most, and that come back. Of larger images each operation
#: takes so long that lanes hardly wait for each other, and memory is short.
_MOST = 64 << 20

#: Bytes of memory that a process may take; all together get half of what there is.
_NEEDED = 576 << 20

#: Settings of how many threads libraries use that compute: OpenMP's, and those of products of matrices.
_THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)

#: Arrays begin at multiples of so many bytes.
_ALIGNED = 64

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from sunzip.codec.processes import serve
serve(*map(int, sys.argv[2:]))
"""


class _GoneError(Exception):
    """A process does not answer."""


class _Seat(threading.local):
    """Of each lane its process, and for how many seconds it has worked without one beside others."""

    process: _Process | None = None
    worked: float = 0.0


_seat = _Seat()
_lock = threading.Lock()
_working = 0
_lasting = 0
_processes: list[_Process] = []


def elsewhere(function: Callable[..., _T], *args: Any, back: int = 0) -> _T:
    """Return ``function(*args)``, from the process of the lane that calls if it has one.

    Parameters
    ----------
    function, args
        The function may not change what it is given, nor keep it. What cannot be pickled stays here.
    back
        Bytes of the arrays that it returns, or a few more.
    """
    with _Beside() as beside:
        process = _seat.process
        if process is not None:
            try:
                if process.ready():
                    return process.call(function, args, back)
            except _GoneError:
                # One that had nothing to do may be followed by another, one that broke down may not.
                _seat.process, _seat.worked = None, 0.0 if process.idle else -math.inf
        begin = time.monotonic()
        result = function(*args)
    if beside.others and in_lane() and _seat.process is None:
        _seat.worked += time.monotonic() - begin
        patience = 0 if _lasting else PATIENCE
        if _seat.worked > patience and _to_send(function, args, back):
            _seat.process, _seat.worked = _started(), 0.0
    return result


@contextlib.contextmanager
def ahead(nbytes: int) -> Iterator[None]:
    """Tell how many bytes of images are to be encoded: if these are many, lanes start processes at once."""
    global _lasting
    much = nbytes > _MUCH * count()
    with _lock:
        _lasting += much
    try:
        yield
    finally:
        with _lock:
            _lasting -= much


class _Beside:
    """Counts one more who works, and tells whether others did at its beginning or at its end."""

    others = False

    def __enter__(self) -> _Beside:
        self._add(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._add(-1)

    def _add(self, one: int) -> None:
        global _working
        with _lock:
            self.others |= _working > (one < 0)
            _working += one


def settle(work: Callable[[], object]) -> None:
    """Do work until lanes have the processes that they start for it, so that what follows can be timed.

    Once at least; and not for long where lanes do not come to it.
    """
    begin = time.monotonic()
    work()
    while _are_starting() and time.monotonic() - begin < _SETTLED:
        work()


def pids() -> list[int]:
    """Return which processes of lanes run."""
    with _lock:
        return [process.pid for process in _processes if process.runs()]


def _are_starting() -> bool:
    with _lock:
        return any(process.runs() and not process.is_ready for process in _processes)


def _started() -> _Process | None:
    """Start a process, or return None where there can be none."""
    with _lock:
        _processes[:] = [process for process in _processes if process.runs()]
        try:
            if not _can_start() or _is_busy() or len(_processes) >= _room():
                return None
            process = _Process()
        except OSError:
            return None
        _processes.append(process)
        return process


def _can_start() -> bool:
    # Elsewhere descriptors are not handed on so; and a program that has Python built in may be anything.
    is_python = "python" in os.path.basename(sys.executable or "").lower()
    return os.name == "posix" and is_python and not getattr(sys, "frozen", False)


def _is_busy() -> bool:
    """Tell whether others, perhaps more of the same work, leave no core of this machine free.

    The load is that of all its cores, of which this process may be held to a few that others are kept from.
    """
    return os.getloadavg()[0] > max(count(), cores_of_machine()) + 1


def _room() -> int:
    """Return how many processes memory has room for, those that run included."""
    free: list[float] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    if not free:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
    free += _left_by_groups()
    return int(min(free) / 2 / _NEEDED) + len(_processes)


def _left_by_groups() -> Iterator[int]:
    """Yield how much the control groups of this process leave: they are told of all the machine's memory.

    Files that were read count as used until there is need: long jobs are at their limit by these alone.
    """
    names = (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    )
    for folders, (limit, used, total) in zip(folders_of("memory"), names, strict=True):
        for folder in folders:
            with contextlib.suppress(OSError, ValueError):
                most, now = (int((folder / file).read_text()) for file in (limit, used))
                with contextlib.suppress(OSError, ValueError):
                    stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                    now -= sum(int(stat.get(f"{total}{state}_file", 0)) for state in ("active", "inactive"))
                yield most - now


class _Process:
    """A process and the way to it: a pipe for what is short, two files in memory for arrays.

    Attributes
    ----------
    idle
        Whether it ended because there was nothing to do.
    is_ready
        Whether it has told that it can be given work.
    """

    def __init__(self) -> None:
        self.idle = False
        self._there, self._back = _file(), _file()
        self._models: set[str] = set()
        self.is_ready = False
        mine, theirs = Pipe()
        files = (theirs.fileno(), self._there.fileno(), self._back.fileno())
        # Programs put other things there, too, at which imports do not look.
        folders = [folder for folder in sys.path if isinstance(folder, str)]
        told = (json.dumps(folders), *map(str, (*files, IDLE)))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *told],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | dict.fromkeys(_THREADS, "1"),
                pass_fds=files,
            )
        finally:
            theirs.close()
        self._line = mine

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def runs(self) -> bool:
        """Tell whether it runs."""
        return self._process.poll() is None

    def ready(self) -> bool:
        """Tell whether it can be given work.

        Raises
        ------
        _GoneError
            If it ended.
        """
        try:
            if self._line.poll(0):
                self._line.recv_bytes()
                self.is_ready = True
        except (EOFError, OSError) as error:
            self.idle = self.is_ready
            self.end()
            raise _GoneError from error
        return self.is_ready

    def call(self, function: Callable[..., _T], args: tuple[Any, ...], back: int) -> _T:
        """See `elsewhere`; what cannot be sent is done here, as is what the process cannot do.

        Raises
        ------
        _GoneError
            If the process ended, or was stopped.
        """
        sent = _to_send(function, args, back)
        if sent is None:
            return function(*args)
        body, buffers, models = sent
        result: Any = None
        try:
            sizes = _put(self._there.fileno(), buffers)
            new = {sha256: model for sha256, model in models.items() if sha256 not in self._models}
            self._refuse_stopped()
            self._line.send_bytes(pickle.dumps((new, sizes, body)))
            self._models |= new.keys()
            done, sizes, body = pickle.loads(self._answer())
            arrays = list(_got(self._back.fileno(), sizes))
        except (EOFError, OSError) as error:
            self.end()
            raise _GoneError from error
        if done is not None:
            try:
                result = pickle.loads(body, buffers=arrays)
            except Exception:  # what classes of others raise when they are made anew
                done = None
        if done is None:
            return function(*args)
        if not done:
            raise result
        found: _T = result
        return found

    def _answer(self) -> bytes:
        """Wait for what it sends."""
        while not self._line.poll(_LOOK):
            self._refuse_stopped()
        return self._line.recv_bytes()

    def _refuse_stopped(self) -> None:
        """Kill it if it has been stopped, as by SIGSTOP: it may never go on, and what it was asked for waits.

        Schedulers that suspend a job let its processes go on one after another: one look is not enough.

        Raises
        ------
        EOFError
            If so.
        """
        if self._is_stopped():
            time.sleep(_LOOK)
            if self._is_stopped():
                self._process.kill()
                raise EOFError

    def _is_stopped(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return False
        # What is told is told again, and that it ended is left to be told to others.
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def leave(self) -> None:
        """Tell it that there is nothing to do any more."""
        for thing in (self._line, self._there, self._back):
            with contextlib.suppress(OSError):
                thing.close()

    def end(self) -> None:
        """Have it end."""
        self.leave()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(line: int, there: int, back: int, idle: int) -> None:
    """Do what a lane asks for until it asks no more: what a process runs.

    Parameters
    ----------
    line, there, back
        Descriptors of the pipe, and of the files for arrays of arguments and of results.
    idle
        Seconds without work after which it ends.
    """
    # Ctrl-C reaches all processes of a terminal; the one that was called says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    known: dict[str, Model] = {}
    mapped: mmap.mmap | bytes = b""
    with here(), Connection(line) as asked, contextlib.suppress(EOFError, OSError):
        asked.send_bytes(b"ready")
        while asked.poll(idle):
            models, sizes, body = pickle.loads(asked.recv_bytes())
            known |= models
            if sum(map(_padded, sizes)) > len(mapped):
                mapped = mmap.mmap(there, 0, access=mmap.ACCESS_READ)
            done, body, buffers = _done(body, _cut(memoryview(mapped), sizes), known)
            asked.send_bytes(pickle.dumps((done, _put(back, buffers), body)))


def _done(
    body: bytes, arrays: Iterator[memoryview], models: dict[str, Model]
) -> tuple[bool | None, bytes, Sequence[memoryview]]:
    """Do what is asked for; return its result, pickled, after True, what it raised after False.

    After None comes nothing: the caller has to do it. Functions of a script are not to be found here, nor is
    memory for what may go well where others have none.
    """
    with contextlib.suppress(Exception):
        function, args = _Unpickler(body, arrays, models).load()
        try:
            result, done = function(*args), True
        except MemoryError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            result, done = error, False
        return done, *_pickled(result)[:2]
    return None, b"", ()


class _Pickler(pickle.Pickler):
    """Leaves arrays and models out."""

    def __init__(self, file: io.BytesIO, arrays: list[memoryview], models: dict[str, Model]) -> None:
        super().__init__(file, 5, buffer_callback=lambda buffer: arrays.append(buffer.raw()))
        self._models = models

    def persistent_id(self, thing: Any) -> str | None:
        if isinstance(thing, Model):
            self._models[thing.sha256] = thing
            return thing.sha256
        return None


class _Unpickler(pickle.Unpickler):
    """Puts arrays and models back."""

    def __init__(self, body: bytes, arrays: Iterator[memoryview], models: dict[str, Model]) -> None:
        super().__init__(io.BytesIO(body), buffers=arrays)
        self._models = models

    def persistent_load(self, sha256: str) -> Model:
        return self._models[sha256]


def _pickled(thing: Any) -> tuple[bytes, list[memoryview], dict[str, Model]]:
    """Return a thing without its arrays and models, and these."""
    file, arrays, models = io.BytesIO(), [], {}  # type: ignore[var-annotated]
    _Pickler(file, arrays, models).dump(thing)
    return file.getvalue(), arrays, models


def _to_send(
    function: Callable[..., Any], args: tuple[Any, ...], back: int
) -> tuple[bytes, list[memoryview], dict[str, Model]] | None:
    """Return work as `_pickled` does; None if it cannot be, or it or what comes of it is too large."""
    try:
        found = _pickled((function, args)) if back <= _MOST else None
    except Exception:  # whatever things raise that were not made for it
        return None
    return None if found is None or sum(array.nbytes for array in found[1]) > _MOST else found


def _file() -> Any:
    """Open a file without a name, in memory where that can be."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("sunzip"), "r+b", 0)
    return tempfile.TemporaryFile(buffering=0)


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _put(file: int, buffers: Sequence[memoryview]) -> list[int]:
    """Write arrays; return their sizes."""
    begin = 0
    for buffer in buffers:
        written = 0
        while written < len(buffer):
            written += os.pwrite(file, buffer[written:], begin + written)
        begin += _padded(len(buffer))
    # What is mapped is whole pages; what lies beyond the file's end cannot be read.
    if begin > os.fstat(file).st_size:
        os.ftruncate(file, begin)
    return [len(buffer) for buffer in buffers]


def _got(file: int, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Yield what `_put` has written, in memory of its own."""
    begin = 0
    for size in sizes:
        buffer = np.empty(size, np.uint8).data
        read = 0
        # The position is used by nobody else; macOS before 11, and Python made for it, has no preadv.
        os.lseek(file, begin, os.SEEK_SET)
        while read < size:
            now = os.readv(file, [buffer[read:]])
            if not now:
                raise EOFError
            read += now
        begin += _padded(size)
        yield buffer


def _cut(mapped: memoryview, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Yield what `_put` has written, where it lies."""
    begin = 0
    for size in sizes:
        yield mapped[begin : begin + size]
        begin += _padded(size)


def _end_all() -> None:
    for process in _processes:
        process.leave()
    for process in _processes:
        process.end()


def _forget() -> None:
    # A fork's copies of the processes' lines are not its own.
    global _lock, _working, _lasting
    _processes.clear()
    _lock, _working, _lasting = threading.Lock(), 0, 0


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):  # Windows knows no fork
    os.register_at_fork(after_in_child=_forget)
