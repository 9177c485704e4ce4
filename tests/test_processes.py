"""Processes of lanes: the same results as from the lanes themselves, whatever becomes of the processes."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sunzip.channels import NAMES
from sunzip.codec import Codec, groups, lanes, processes
from sunzip.codec.lanes import side_by_side
from sunzip.codec.processes import elsewhere
from sunzip.errors import DamagedError, InputError
from sunzip.weights import Model

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="only where descriptors are handed on")

#: A script as somebody may write it, without a word of processes; it prints those that it had.
SCRIPT = """
import os, time
os.environ["OMP_NUM_THREADS"] = "2"
from sunzip.codec import processes
from sunzip.codec.lanes import side_by_side
from sunzip.codec.processes import elsewhere
processes.PATIENCE, processes._is_busy = 0.0, lambda: False
def where(_):
    elsewhere(time.sleep, 0.05)
    return elsewhere(os.getpid)
found = set()
while len(found - {os.getpid()}) < 2:
    found |= set(side_by_side(where, range(2)))
print(*found - {os.getpid()})
"""


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Two lanes, each with a process, all of which ends with the test; a parameter is how long they wait."""
    monkeypatch.setattr(processes, "IDLE", getattr(request, "param", 60))
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    monkeypatch.setattr(processes, "_is_busy", lambda: False)
    _until(lambda: len(_pids()) == 2 and not any(pid == os.getpid() for pid in _pids()))
    yield
    for process in processes._processes:
        process.end()
    processes._processes.clear()
    assert lanes._pool is not None
    lanes._pool.shutdown()


def _slowly(what: Callable[..., Any], *args: Any) -> Any:
    """Do something no faster than the other lane begins, too."""
    time.sleep(0.05)
    return what(*args)


def _pids() -> set[int]:
    """Return in which processes two lanes have work done."""
    return set(side_by_side(lambda _: elsewhere(_slowly, os.getpid), range(2)))


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["wavelet_model", "tiny_model", "sigma_model"])
def test_bytes_and_pixels_are_those_of_lanes(kind: str, two: None, request: pytest.FixtureRequest) -> None:
    codec = Codec(request.getfixturevalue(kind), 50)
    shape = (128, 128) if kind == "sigma_model" else (48, 64)
    data = np.random.default_rng(2).gamma(2, 60, (5, 3, *shape)).astype(np.float32)
    data[1, 1] = np.nan
    data[2, 0, 3:9] = np.nan
    names = ["171A", "193A", "Bz"]
    told = codec.encode(data, names, frames_per_block=5), codec.encode(data, names)
    pixels = [codec.decode(blocks, names, shape) for blocks in told]
    assert not any(pid == os.getpid() for pid in _pids())
    with lanes.here():
        alone = codec.encode(data, names, frames_per_block=5), codec.encode(data, names)
        assert told == alone
        for blocks, found in zip(alone, pixels, strict=True):
            np.testing.assert_array_equal(found, codec.decode(blocks, names, shape))
    # What came out of a process is the caller's own.
    pixels[0] += 1


def test_what_goes_wrong_is_told_as_ever(two: None, wavelet_model: Model) -> None:
    codec = Codec(wavelet_model, 50)
    data = np.full((2, 1, 32, 32), np.inf, np.float32)
    with pytest.raises(InputError, match="infinite") as told:
        codec.encode(data, ["171A"])
    assert "_code" in "".join(told.value.__notes__)
    (block,) = codec.encode(np.full((1, 1, 32, 32), 9, np.float32), ["171A"])
    with pytest.raises(DamagedError):
        codec.decode([block[:-9] + b"?" * 9] * 2, ["171A"], (32, 32))
    # They are as good as before.
    assert os.getpid() not in _pids()


def test_who_is_killed_is_missed_by_nobody(two: None) -> None:
    before = _pids()

    def killed(n: int) -> int:
        return elsewhere(_slowly, _struck_but_in, os.getpid(), signal.SIGKILL, n)

    assert list(side_by_side(killed, range(4))) == [0, 1, 4, 9]
    # What breaks down once may do so again: their lanes go on alone.
    assert before.isdisjoint(_pids())
    assert _pids() == {os.getpid()}


def _struck_but_in(this: int, by: signal.Signals, n: int) -> int:
    if os.getpid() != this:
        os.kill(os.getpid(), by)
    return n * n


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system tells of no stopped process")
@pytest.mark.parametrize("when", ["before", "at work"])
def test_who_is_stopped_is_not_waited_for(when: str, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOOK", 0.05)
    before = _pids()
    if when == "before":
        for pid in before:
            os.kill(pid, signal.SIGSTOP)

    def stopped(n: int) -> int:
        return elsewhere(_slowly, _struck_but_in, os.getpid(), signal.SIGSTOP, n)

    assert list(side_by_side(stopped, range(4))) == [0, 1, 4, 9]
    assert not any(process.runs() for process in processes._processes)
    assert _pids() == {os.getpid()}


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system tells of no stopped process")
def test_who_is_stopped_for_a_moment_goes_on(two: None) -> None:
    before = _pids()
    (process, *_) = processes._processes
    os.kill(process._process.pid, signal.SIGSTOP)
    _until(process._is_stopped)
    waits = threading.Timer(0.2, os.kill, (process._process.pid, signal.SIGCONT))
    waits.start()
    assert _pids() == before
    waits.join()


@pytest.mark.parametrize("two", [5], indirect=True)
def test_who_has_nothing_to_do_ends_and_is_followed(two: None) -> None:
    before = _pids()
    _until(lambda: not any(process.runs() for process in processes._processes))
    # Lanes find that out, do it themselves, and have others before long.
    assert _pids() == {os.getpid()}
    _until(lambda: os.getpid() not in _pids())
    assert before.isdisjoint(_pids())


def test_large_images_stay_here(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_MOST", 999)

    def where(size: int) -> int:
        return elsewhere(_where, np.zeros(size, np.uint8))

    def back(size: int) -> int:
        return elsewhere(os.getpid, back=size)

    for large in (where, back):
        assert set(side_by_side(large, [1000, 1000])) == {os.getpid()}
        assert os.getpid() not in side_by_side(large, [999, 999])


def test_decoded_frames_are_judged_by_what_they_come_to(
    two: None, wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(
        processes._Process, "call", lambda self, function, args, back: told.append(back) or function(*args)
    )
    codec = Codec(wavelet_model, 50)
    frame = np.random.default_rng(0).gamma(2, 60, (1, 1, 64, 64)).astype(np.float32)
    data = np.repeat(frame, 3, 0)
    with lanes.here():
        alone, film = (codec.encode(data, ["171A"], frames_per_block=block) for block in (1, 3))
    size = 4 * 12 * 64 * 64
    codec.decode(alone, ["171A"], (64, 64))
    assert told == [size] * 3
    told.clear()
    codec.decode(film, ["171A"], (64, 64), frames=[1])
    assert set(told) == {size}  # what it builds on, and itself
    told.clear()
    codec.decode(film, ["171A"], (64, 64))
    assert set(told) == {size, 2 * size}


@pytest.mark.parametrize("kind", ["a lambda", "of a script", "memory", "what comes back"])
def test_what_a_process_cannot_do_its_lane_does(
    kind: str, two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, before = os.getpid(), _pids()
    if kind == "of a script":
        # It is called by a name under which a process finds nothing.
        monkeypatch.setattr(sys.modules["__main__"], "_of_a_script", _of_a_script, raising=False)
        monkeypatch.setattr(_of_a_script, "__module__", "__main__")
    work: Callable[[int], int] = {
        "a lambda": lambda this: os.getpid(),
        "of a script": _of_a_script,
        "memory": _short_of_memory_but_in,
        "what comes back": _hardly_pickled_but_in,
    }[kind]
    assert list(side_by_side(lambda _: elsewhere(work, here), range(2))) == [here, here]
    assert _pids() == before


def _of_a_script(this: int) -> int:
    return os.getpid()


def _short_of_memory_but_in(this: int) -> int:
    if os.getpid() != this:
        raise MemoryError
    return this


def _hardly_pickled_but_in(this: int) -> Any:
    return this if os.getpid() == this else lambda: None


def _where(_: object) -> int:
    return os.getpid()


def test_lanes_with_much_ahead_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    monkeypatch.setattr(processes, "PATIENCE", 1e9)
    monkeypatch.setattr(processes, "_MOST", 999)
    monkeypatch.setattr(processes, "_started", lambda: started.append(1))

    def work(size: int) -> None:
        list(side_by_side(lambda _: elsewhere(_slowly, _where, np.zeros(size, np.uint8)), range(2)))

    with processes.ahead(2 * processes._MUCH):
        work(9)
    assert not started
    with processes.ahead(2 * processes._MUCH + 1):
        work(1000)  # too much to be handed on
        assert not started
        with processes.ahead(1):
            pass
        _until(lambda: work(9) is None and len(started) >= 2)
    before = len(started)
    work(9)
    assert len(started) == before
    assert lanes._pool is not None
    lanes._pool.shutdown()


def test_without_memory_or_a_free_core_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores_of_machine", lanes.count)
    monkeypatch.setattr(os, "getloadavg", lambda: (lanes.count() + 1.1, 0.0, 0.0))
    assert processes._started() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (lanes.count() + 0.9, 0.0, 0.0))
    assert not processes._is_busy()
    # Of a machine that others share, the load is theirs, too.
    monkeypatch.setattr(processes, "cores_of_machine", lambda: 64)
    for load, busy in ((64.9, False), (65.1, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert processes._is_busy() is busy
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(processes, "_NEEDED", 1 << 60)
    assert processes._room() == 0
    assert processes._started() is None
    monkeypatch.setattr(processes, "_NEEDED", 1 << 20)
    assert processes._room() > 1
    monkeypatch.setattr(sys, "executable", "/usr/sbin/httpd")
    assert processes._started() is None


@pytest.mark.parametrize(
    ("told", "limited"),
    [
        ("0::/\n", ""),
        ("0::/system.slice/job_7/step_0\n", "system.slice/job_7/step_0"),
        ("0::/system.slice/job_7/step_0\n", "system.slice/job_7"),
        ("9:name=systemd:/\n4:memory:/slurm/job_7\n0::/\n", "memory/slurm/job_7"),
        ("4:memory:/docker/not/to/be/seen/here\n", "memory"),
        ("", "memory"),
    ],
)
def test_the_memory_of_a_job_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, limited: str
) -> None:
    monkeypatch.setattr(groups, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(groups, "_GROUPS_OF_THIS", tmp_path / "told")
    monkeypatch.setattr(processes, "_NEEDED", 1 << 20)
    (tmp_path / "told").write_text(told)
    group = tmp_path / "groups" / limited
    group.mkdir(parents=True)
    names, total = (
        (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_")
        if "memory" in limited
        else (("memory.max", "memory.current"), "")
    )
    before = processes._room()
    for name, mebibytes in zip(names, (8, 7), strict=True):
        (group / name).write_text(f"{mebibytes << 20}\n")
    # Files that were read make way.
    stat = "anon 2097152\n{0}inactive_file {1}\n{0}active_file {2}\n"
    (group / "memory.stat").write_text(stat.format(total, 3 << 20, 2 << 20))
    assert before > 3
    assert processes._room() == 3
    (group / names[0]).write_text("max\n")
    assert processes._room() > 3


def test_what_a_script_had_ends_with_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@given(
    st.lists(
        arrays.arrays(
            st.sampled_from([np.float32, np.int64, np.bool_]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=70),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_arrays_come_as_they_went(things: list[np.ndarray], turned: bool) -> None:
    sent = [thing.T[::-1] if turned and thing.ndim else thing for thing in things]
    body, buffers, models = processes._pickled((sent, "and more"))
    with processes._file() as file:
        sizes = processes._put(file.fileno(), buffers)
        found, more = processes._Unpickler(body, processes._got(file.fileno(), sizes), models).load()
    assert more == "and more"
    for one, other in zip(sent, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_arrays_come_where_files_are_not_read_at_offsets(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)  # as on macOS before 11
    process = processes._started()
    assert process is not None
    _until(process.ready)
    wanted = [np.arange(5), np.ones((3, 7), np.float32)]
    for found in (process.call(copy.copy, (wanted,), 0), process.call(copy.copy, (wanted[::-1],), 0)[::-1]):
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_models_travel_once(wavelet_model: Model) -> None:
    codec = Codec(wavelet_model, 30)
    body, _, models = processes._pickled((codec, codec.at(40)))
    assert len(body) < 1000
    assert models == {wavelet_model.sha256: wavelet_model}
    one, other = processes._Unpickler(body, iter([]), models).load()
    assert (one.quality, other.quality) == (30, 40)
    assert one.family is other.family


def test_struck_memory_is_that_of_the_encoder_that_is_asked(
    two: None, tiny_model: Model, frames_of: Callable[..., np.ndarray]
) -> None:
    faults = pytest.importorskip("sunzip.studies.faults")
    frames = list(frames_of(1, 12, 64, 64))
    found = faults.strike_weights(
        Codec(tiny_model), frames, NAMES, 40, np.random.default_rng(1), lambda *_: None
    )
    assert found["same"] < 40


def test_a_copy_is_a_codec_of_its_own(wavelet_model: Model) -> None:
    codec = Codec(wavelet_model, 30)
    other = copy.copy(codec)
    assert other is not codec
    assert (other.family, other.quality) == (codec.family, 30)


def test_what_cannot_be_found_out_or_sent_breaks_no_work(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [ROOT, *sys.path])
    process = processes._started()
    assert process is not None
    _until(process.ready)

    def unknown() -> bool:
        raise OSError

    monkeypatch.setattr(processes, "_is_busy", unknown)
    assert processes._started() is None


def test_work_is_repeated_until_no_process_is_starting_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, True, False])
    monkeypatch.setattr(processes, "_are_starting", lambda: next(answers))
    done: list[int] = []
    processes.settle(lambda: done.append(1))
    assert len(done) == 3
    monkeypatch.setattr(processes, "_are_starting", lambda: True)
    monkeypatch.setattr(processes, "_SETTLED", 0)
    processes.settle(lambda: done.append(1))
    assert len(done) == 4
