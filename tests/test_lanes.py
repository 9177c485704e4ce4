"""Lanes: frames side by side with bytes that no number of threads changes, and a process left as it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from sunzip.codec import groups, lanes
from sunzip.codec.lanes import alone, as_ready, here, side_by_side

ROOT = Path(__file__).parents[1]

# The default model: the sums of smaller ones are too short for libraries to split them among threads.
CODE = """
import hashlib, sys
import numpy as np
from sunzip import weights
from sunzip.codec import Codec
from sunzip.codec.lanes import count
codec = Codec(weights.load())
rng = np.random.default_rng(0)
up, right = np.mgrid[:512, :512] / 512 * 6
waves = [np.sin(up * (1 + c / 5)) * np.cos(right + c) for c in range(12)]
data = (100 + 80 * np.stack(waves) + rng.normal(0, 5, (12, 512, 512))).astype(np.float32)[None]
names = ("94A 131A 171A 193A 211A 304A 335A 1600A 1700A Bx By Bz").split()
digest = hashlib.sha256()
film = np.repeat(data, 5, 0) + np.arange(5, dtype=np.float32)[:, None, None, None]
for frames, channels, side in ((data, slice(None), 512), (data, slice(2, 3), 81), (film, slice(2, 5), 96)):
    part, which = np.ascontiguousarray(frames[:, channels, :side, :side]), names[channels]
    blocks = codec.encode(part, which, frames_per_block=len(part))
    digest.update(b"".join(blocks))
    digest.update(codec.decode(blocks, which, part.shape[2:]).tobytes())
print(count(), "torch" in sys.modules, digest.hexdigest())
"""


def test_bytes_and_pixels_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    for threads in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        lanes_used, pytorch_used, digest = done.stdout.split()
        assert (lanes_used, pytorch_used) == (str(threads), "False")
        found.append(digest)
    assert found[0] == found[1]


def test_there_are_as_many_lanes_as_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    monkeypatch.setattr(lanes, "_PROCESSORS", tmp_path)
    assert lanes._cores() == 5  # of a system that does not tell which processors are one core
    for processor, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        (tmp_path / f"cpu{processor}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{processor}" / lanes._SIBLINGS).write_text(siblings)
    assert lanes._cores() == 4
    for wanted, cores in (("3", 3), ("2,1", 2), ("0", 4), ("many", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert lanes._cores() == cores


def test_pytorch_says_how_many_cores_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert lanes._cores() == 7


@pytest.mark.parametrize(
    ("told", "limits", "cores"),
    [
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/kubepods/pod_7\n", {"kubepods/cpu.max": "50000 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "900000 100000"}, 5),
        (
            "9:cpu,cpuacct:/job_7\n0::/\n",
            {"cpu/job_7/cpu.cfs_quota_us": "400000", "cpu/job_7/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ("", {"cpu.max": "of another system"}, 5),
    ],
)
def test_a_share_of_the_time_of_cores_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, limits: dict[str, str], cores: int
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    monkeypatch.setattr(lanes, "_PROCESSORS", tmp_path / "unknown")
    monkeypatch.setattr(groups, "_GROUPS", tmp_path)
    monkeypatch.setattr(groups, "_GROUPS_OF_THIS", tmp_path / "told")
    (tmp_path / "told").write_text(told)
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit + "\n")
    assert lanes._cores() == cores
    torch = ModuleType("torch")
    torch.get_num_threads = lambda: 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert lanes._cores() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # asked for
    assert lanes._cores() == 5


def test_pytorch_may_be_about_to_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # as another thread has it that imports it
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert lanes._cores() == 3


IMPORTING = """
import shutil, sys, threading
from importlib.util import module_from_spec, spec_from_file_location
from numpy.linalg import lapack_lite as small
from sunzip.codec.lanes import _libraries
name, ended = small.__name__, threading.Event()

def load():
    for n in range(300):
        spec = spec_from_file_location(name, shutil.copy(small.__file__, f"{sys.argv[1]}/{n}.so"))
        try:
            module_from_spec(spec)
        except ImportError:
            pass  # one that is loaded once for all; its file was loaded
    ended.set()

threading.Thread(target=load, daemon=True).start()
while not ended.is_set():
    _libraries.__wrapped__()
"""


@pytest.mark.skipif(os.name == "nt", reason="no file that is loaded can be removed there")
def test_libraries_are_looked_for_while_others_are_loaded(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", IMPORTING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )


def threads(_: object = None) -> set[int]:
    """Return how many threads products of matrices take."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_products_of_matrices_take_one_thread_while_lanes_work() -> None:
    with threadpool_limits(2, "blas"):
        before = threads()
        within = side_by_side(threads, range(2))
        assert next(within) == {1}
        # Of two callers the last sets them back.
        assert as_ready(threads, [[], [0]]) == [{1}, {1}]
        assert list(within) == [{1}]
        assert threads() == before == {2}
        with pytest.raises(ZeroDivisionError):
            as_ready(lambda n: 1 // n, [[]])
        assert threads() == before


def test_who_does_the_work_of_lanes_does_it_on_one_thread_too() -> None:
    with threadpool_limits(2, "blas"):
        with here():
            assert threads() == {1}
            assert list(side_by_side(threads, range(2))) == [{1}, {1}]
        assert threads() == {2}


def test_who_takes_results_one_by_one_has_all_threads_between_them() -> None:
    with threadpool_limits(2, "blas"):
        within = side_by_side(threads, range(3))
        assert next(within) == {1}
        deadline = time.monotonic() + 20
        while threads() != {2} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threads() == {2}


def test_whichever_caller_comes_last_sets_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the one that set them is a thread that goes on, as those of Dask and asyncio do."""
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    both, ended = threading.Barrier(2, timeout=20), threading.Event()

    def first(_: int) -> set[int]:
        both.wait()
        return threads()

    def last(_: int) -> set[int]:
        both.wait()
        assert ended.wait(20)
        return threads()

    with threadpool_limits(2, "blas"), ThreadPoolExecutor(2) as callers:
        found = [callers.submit(lambda work=work: list(side_by_side(work, [0]))) for work in (first, last)]
        assert found[0].result(20) == [{1}]
        ended.set()
        assert found[1].result(20) == [{1}]
        assert threads() == {2}
        assert list(side_by_side(threads, [0])) == [{1}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_process_forked_while_lanes_work_has_the_threads_of_before() -> None:
    begun, forked = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        begun.set()
        assert forked.wait(20)

    with threadpool_limits(2, "blas"):
        caller = threading.Thread(target=lambda: list(side_by_side(wait, [0])))
        caller.start()
        assert begun.wait(20)
        child = os.fork()
        if not child:
            os._exit(0 if threads() == {2} else 1)
        forked.set()
        caller.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert threads() == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_who_forks_while_it_does_the_work_of_lanes_has_its_threads_afterwards() -> None:
    with threadpool_limits(2, "blas"):
        with here():
            child = os.fork()
        if not child:
            within = list(side_by_side(threads, [0]))
            os._exit(0 if within == [{1}] and threads() == {2} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert threads() == {2}


FREED = """
import resource
import numpy as np
from sunzip.codec.lanes import here, side_by_side

def faults(_):
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        images = [np.ones(1 << 18, np.float32) for _ in range(16)]
        del images
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if __import__("sys").argv[1] == "lane":
    print(*side_by_side(faults, range(1)))
else:
    with here():
        print(faults(0))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc keeps memory as it likes")
@pytest.mark.parametrize("place", ["lane", "here"])
def test_memory_of_images_is_kept_for_those_that_follow(place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED, place],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_TRIM_THRESHOLD_": "65536"},  # as Dask's workers
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 256  # of the 4,096 pages of those images


def test_results_come_in_order_and_several_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 3)
    all_here = threading.Barrier(3, timeout=20)

    def work(n: int) -> int:
        all_here.wait()
        time.sleep(0.03 * (3 - n % 3))
        return n * n

    assert list(side_by_side(work, range(6))) == [0, 1, 4, 9, 16, 25]


def test_what_is_waited_for_comes_first_and_all_else_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 3)
    waits = [[], [0], [0, 1], [1], [2], [2, 3, 2], [], []]
    done: list[int] = []
    # 2 and 3 wait for the same alone, and so do 6 and 7: two at a time or never.
    pairs = {n: threading.Barrier(2, timeout=20) for n in (2, 6)}

    def work(n: int) -> int:
        assert set(waits[n]) <= set(done)
        if n in (2, 3, 6, 7):
            pairs[n & ~1].wait()
        done.append(n)
        return n * n

    assert as_ready(work, waits) == [n * n for n in range(8)]
    assert sorted(done) == list(range(8))


def test_the_first_of_those_that_are_ready_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 1)
    done: list[int] = []
    as_ready(done.append, [[], [], [0], [0], [1], []])
    assert done == [0, 1, 2, 3, 4, 5]


def test_a_lane_does_what_is_to_wait_in_order_and_alone() -> None:
    def inside(_: int) -> list[int]:
        here = threading.get_ident()
        return as_ready(lambda n: n if threading.get_ident() == here else -1, [[], [0], [], [1, 2]])

    assert list(side_by_side(inside, [0])) == [[0, 1, 2, 3]]


def test_nothing_waits_for_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    begun: list[int] = []

    def work(n: int) -> None:
        begun.append(n)
        if n == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        as_ready(work, [[], [0], [1], [1], [2]])
    assert begun == [0, 1]
    assert as_ready(lambda n: n, []) == []


def fresh() -> int:
    """Return how many threads PyTorch takes in a thread that is new."""
    import torch

    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_a_lane_works_alone_and_leaves_pytorch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def inside(_: int) -> int:
        alone()
        return threads()

    threads = torch.get_num_threads
    before = threads(), fresh()
    monkeypatch.setattr(lanes, "_pool", None)
    assert list(side_by_side(inside, range(5))) == [1] * 5
    # Within a lane no other one is waited for: with one lane that would be for ever.
    assert list(side_by_side(lambda n: list(side_by_side(lambda m: m + n, range(2))), [1])) == [[1, 2]]
    alone()  # no lane
    assert (threads(), fresh()) == before


def test_a_lane_that_cannot_be_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container may have no more threads."""
    torch = pytest.importorskip("torch")

    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if getattr(thread, "_target", None) is torch.set_num_threads:
            raise RuntimeError("can't start new thread")
        start(thread)

    before = fresh()
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(side_by_side(lambda _: alone(), [0]))
    assert fresh() == before


def test_what_failed_or_was_left_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        time.sleep(0.01)
        if n == 3:
            raise KeyError(n)
        return n

    with pytest.raises(KeyError):
        list(side_by_side(work, range(1000)))
    some = side_by_side(lambda n: work(n + 10), range(1000))
    assert next(some) == 10
    some.close()
    time.sleep(0.1)
    assert len(begun) < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    assert list(side_by_side(np.sqrt, [4.0])) == [2.0]
    child = os.fork()
    if not child:
        os._exit(0 if list(side_by_side(np.sqrt, [9.0])) == [3.0] else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for lanes that it has not")
