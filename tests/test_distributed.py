"""Workers: however many, and whatever dies, the archive has the bytes of a run in one process."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sunzip import __version__, api, cli, errors
from sunzip.archive import ArchiveWriter, verify
from sunzip.cube import Scale
from sunzip.errors import InputError, OutputError
from sunzip.sinks import open_sink
from sunzip.sources.base import Source
from sunzip.sources.series import Series, join
from sunzip.weights import Model, write

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[1]
FRAMES, SIZE = 22, 32
CHANNELS = ("171A", "Bz")


class Slow(Source):
    """Made-up images, two channels, some of them missing, that take a while to be read."""

    url, layout, scale, channels, shape = "slow:", "test", Scale.MEAN, CHANNELS, (SIZE, SIZE)

    def __init__(self, seconds: float = 0, broken_row: int | None = None, frames: int = FRAMES) -> None:
        self.counts: Counter[str] = Counter()
        self.absent: set[tuple[str, int, int]] = set()
        self.seconds, self.broken_row, self.frames = seconds, broken_row, frames

    def times(self, channel: str) -> np.ndarray:
        return np.datetime64("2014-01-01T00:00:01", "ms") + np.arange(self.frames) * np.timedelta64(12, "m")

    def read(self, channel: str, row: int) -> np.ndarray:
        time.sleep(self.seconds)
        if row == self.broken_row:
            raise InputError(f"slow:{channel}: row {row} cannot be read")
        if row % 5 == 3 and row < FRAMES:
            self.absent.add((channel, 0, row))
            return np.full(self.shape, np.nan, np.float32)
        rng = np.random.default_rng([row, channel == "Bz"])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
        return (100 + 80 * waves + rng.normal(0, 5, self.shape)).astype(np.float32)

    def header(self, channel: str, row: int) -> dict[str, str | int | float | bool | None]:
        return {"T_OBS": f"row {row}", "EXPTIME": 2.0}

    def stored_bytes(self) -> int | None:
        return None


def series(**how: float | None) -> Series:
    return join([Slow(**how)])  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight shards; workers learn of it by the specification that travels with the writer."""
    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", 3)


@pytest.fixture(scope="module")
def one_process(
    tiny_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, api.CompressReport]:
    path = tmp_path_factory.mktemp("distributed") / "one.lat"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api._compress, "FRAMES_PER_SHARD", 3)
        report = api.compress(series(), path, model=tiny_model)
    return path.read_bytes(), report


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """Two worker processes, used by several tests; what each needs of a model comes with its job."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=100
    ) as made:
        yield made


@pytest.fixture
def client(cluster: distributed.LocalCluster) -> Iterator[distributed.Client]:
    with distributed.Client(cluster, set_as_default=False) as made:
        yield made


def test_what_travels_can_be_pickled() -> None:
    source = series()
    source.read(0, 5)
    there = pickle.loads(pickle.dumps(source))
    assert there.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(there.read(0, 5).data, source.read(0, 5).data)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.SunzipError):
            again = pickle.loads(pickle.dumps(kind("a: b; c")))
            assert (type(again), str(again), again.exit_code) == (kind, "a: b; c", kind.exit_code)


def test_what_was_read_elsewhere_is_in_the_report() -> None:
    here, there = series(), series()
    there.read(3, 14)
    assert here.report.odd == {}
    for _ in range(2):  # twice told is counted once
        here.note(there.notes(3, 9))
        here.note(there.notes(9, 14))
    assert here.report == there.report
    assert here.report.odd == {"image without a measurement": 6, "chunk absent": 6}


def test_a_client_has_workers_do_it(
    client: distributed.Client,
    one_process: tuple[bytes, api.CompressReport],
    tiny_model: Model,
    tmp_path: Path,
) -> None:
    seen: list[api.Progress] = []
    path = tmp_path / "a.lat"
    report = api.compress(series(), path, model=tiny_model, client=client, progress=seen.append)
    whole, alone = one_process
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["a.lat"]
    assert verify(path).ok
    # All that is told but for the path and the time it took.
    mine, theirs = report.as_dict(), alone.as_dict()
    assert {k for k in mine if mine[k] != theirs[k]} == {"path", "seconds"}
    assert len(seen) == 9
    assert (seen[0].done, seen[-1].done) == (0, FRAMES)
    for a, b in itertools.pairwise(seen):
        assert a.done < b.done
        assert a.raw_bytes < b.raw_bytes
    assert (seen[-1].raw_bytes, seen[-1].coded_bytes) == (report.raw_bytes, report.coded_bytes)


def test_workers_add_frames(client: distributed.Client, tiny_model: Model, tmp_path: Path) -> None:
    written = []
    for name, workers in (("a.lat", client), ("b.lat", None)):
        path = tmp_path / name
        api.compress(series(frames=7), path, model=tiny_model, block=3)
        report = api.append(series(), path, client=workers)
        assert report.alignment["odd"]["image without a measurement"] > 0
        written.append((path.read_bytes(), report.alignment))
    assert written[0] == written[1]


def test_a_run_is_resumed_with_another_number_of_workers(
    client: distributed.Client,
    one_process: tuple[bytes, api.CompressReport],
    tiny_model: Model,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.lat"
    with pytest.raises(InputError, match=r"row 10 cannot be read"):
        api.compress(series(broken_row=10), path, model=tiny_model)
    with pytest.raises(InputError, match=r"^slow:171A: row 17 cannot be read$"):
        api.compress(series(seconds=0.01, broken_row=17), path, model=tiny_model, client=client, resume=True)
    seen: list[api.Progress] = []
    api.compress(series(), path, model=tiny_model, client=client, resume=True, progress=seen.append)
    assert 9 <= seen[0].done < FRAMES
    assert path.read_bytes() == one_process[0]


def test_a_worker_that_is_killed_costs_nothing_but_time(
    cluster: distributed.LocalCluster,
    client: distributed.Client,
    one_process: tuple[bytes, api.CompressReport],
    tiny_model: Model,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.lat"
    killed: list[int] = []

    def kill(p: api.Progress) -> None:
        if p.done > 3 and not killed:
            pid = client.run(os.getpid)
            killed.append(next(iter(pid.values())))
            os.kill(killed[0], signal.SIGKILL)

    api.compress(series(seconds=0.02), path, model=tiny_model, client=client, progress=kill)
    assert killed
    assert path.read_bytes() == one_process[0]


def test_workers_that_look_at_another_disk_are_found_out(
    client: distributed.Client, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lat"
    sees = {"_root": b"what this machine sees"}
    monkeypatch.setattr(ArchiveWriter, "__getstate__", lambda writer: writer.__dict__ | sees)
    with pytest.raises(
        OutputError, match=r"a\.lat\.partial: a Dask worker on .* does not see it; name an absolute"
    ):
        api.compress(series(), path, model=tiny_model, client=client)


def test_workers_of_another_version_are_refused(
    client: distributed.Client, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sunzip.api import _dask

    monkeypatch.setattr(_dask, "__version__", "9.9")
    with pytest.raises(InputError, match=f"a Dask worker has sunzip {__version__}, not 9.9"):
        api.compress(series(), tmp_path / "a.lat", model=tiny_model, client=client)


# --- the command line ----------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sunzip.api import _dask

    monkeypatch.setattr(_dask, "_PATIENCE", 1)
    # A client that cannot be made would go on complaining.
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: pytest.fail("made a client"))
    args = ["compress", "synthetic:frames=1,size=16", str(tmp_path / "a.lat"), "--dask"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listening = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        for address in ("tcp://127.0.0.1:9", "nonsense", "tcp://127.0.0.1", "tls://127.0.0.1:9", listening):
            done = CliRunner().invoke(cli.program, [*args, address])
            assert done.exit_code == 1, done.output
            assert done.stderr.startswith(f"sunzip: error: {address}: no Dask scheduler answers there")
            assert done.stderr.count("\n") == 1
    empty, other = tmp_path / "empty.json", tmp_path / "other.json"
    empty.write_text("{}")
    other.write_text('{"address": "foo bar"}')
    for address in (str(empty), str(other), "foo bar", "http://127.0.0.1:1/"):
        done = CliRunner().invoke(cli.program, [*args, address])
        assert done.exit_code == 1, done.output
        assert done.stderr.startswith(f"sunzip: error: {address}: is n")
        assert done.stderr.count("\n") == 1
    empty.unlink()
    other.unlink()
    done = CliRunner().invoke(cli.program, [*args, "tcp://127.0.0.1:9", "--workers", "2"])
    assert done.exit_code == 1
    assert "either" in done.stderr
    assert os.listdir(tmp_path) == []


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    args = ["compress", "synthetic:frames=1,size=16", str(tmp_path / "a.lat"), "--workers", "2"]
    done = CliRunner().invoke(cli.program, args)
    assert done.exit_code == 1
    assert "pip install '.[dask]'" in done.stderr
    assert os.listdir(tmp_path) == []


def test_workers_that_cannot_be_started_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    def few(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.") from OSError(24, "Too many open files")

    args = ["compress", "synthetic:frames=1,size=16", str(tmp_path / "a.lat"), "--workers", "1"]
    with monkeypatch.context() as m:
        m.setattr(distributed, "LocalCluster", few)
        done = CliRunner().invoke(cli.program, args)
    assert done.exit_code == 1
    assert done.stderr == (
        "sunzip: error: workers (--workers): they cannot be started here ([Errno 24] Too many open files); "
        'ask for fewer, or for none; in a script they need its work below `if __name__ == "__main__":`\n'
    )
    # As a worker of multiprocessing.Pool is.
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    done = CliRunner().invoke(cli.program, args)
    assert done.exit_code == 1
    assert done.stderr == (
        "sunzip: error: workers (--workers): a daemonic process, as those of multiprocessing.Pool are, may "
        "start none; leave them out\n"
    )
    assert os.listdir(tmp_path) == []


def test_workers_for_which_too_few_files_may_be_open_are_refused_before_dask_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource")
    from sunzip.api import _dask

    monkeypatch.setattr(distributed, "LocalCluster", lambda **_: pytest.fail("Dask was asked"))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as free:
        few = free.fileno() + 20  # the limit counts those that are open already
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, allowed[1]))
    try:
        with pytest.raises(InputError, match=r"take 36 open files or more.*raise the limit \(ulimit -n\)"):
            _dask.local_client(2).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def test_an_interrupt_while_workers_begin_waits_until_they_can_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sunzip.api import _dask

    told: list[str] = []

    class Begun(contextlib.AbstractContextManager[object]):
        def __init__(self, *_: object, **__: object) -> None:
            time.sleep(0.2)  # by then it is waited for
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            told.append("begun")

        def __exit__(self, *_: object) -> None:
            told.append("closed")

        def run(self, _: object) -> None:
            # Processes that are started from here get no Ctrl-C either.
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            told.append("runs")

    monkeypatch.setattr(distributed, "LocalCluster", Begun)
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: contextlib.nullcontext(Begun.__new__(Begun)))
    # A shell that starts this in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), _dask.local_client(1):
            pytest.fail("was not interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == ["begun", "runs", "closed"]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no tracker of semaphores")
def test_nothing_is_said_of_semaphores_that_workers_leave_which_end_amid_their_work() -> None:
    program = """
import multiprocessing, os
from sunzip.api import _dask
_dask._hold_back_ctrl_c()
lock = multiprocessing.get_context("spawn").Lock()  # as numcodecs makes one to unpack the chunks of Zarr
os._exit(0)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert ran.stderr == ""


def test_workers_that_are_all_gone_are_not_waited_for(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sunzip.api import _dask

    code = _dask.code_shards_on

    def alone(client: distributed.Client, *args: object, **how: object) -> object:
        assert how == {"ours": True}
        client.cluster.scale(0)
        return code(client, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(_dask, "code_shards_on", alone)
    with pytest.raises(
        OutputError, match=r"a\.lat: all workers \(--workers\) ended and could not be started"
    ):
        api.compress(series(seconds=0.5), tmp_path / "a.lat", model=tiny_model, workers=1)


# A shard of three frames, so that there are many of them; the workers get it with the specification.
COMMAND = """
from sunzip import api
from sunzip.cli import main
api._compress.FRAMES_PER_SHARD = 3
if __name__ == "__main__":
    main()
"""


class Command:
    """`sunzip compress sun.h5 a.lat --workers 2` as a process of its own, in a session of its own."""

    SHARDS = 80

    def __init__(self, folder: Path, model: Model) -> None:
        write(model, folder / "model")
        source = join([Slow(frames=3 * self.SHARDS)])
        with open_sink(folder / "sun.h5", "hdf5", channels=CHANNELS, shape=(SIZE, SIZE)) as sink:
            sink.write(source.read(0, len(source)))
        program = folder / "program.py"
        program.write_text(COMMAND)
        self.shards = folder / "a.lat.partial" / "cube" / "c"
        self.process = subprocess.Popen(
            [sys.executable, program, "compress", "sun.h5", "a.lat", "--model", "model", "--workers", "2"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def done(self) -> int:
        return sum(not p.name.startswith(".") for p in self.shards.rglob("*") if p.is_file())

    def until_begun(self) -> None:
        deadline = time.monotonic() + 120
        while self.done() < 2:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_killed_command_is_resumed_to_the_same_bytes(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = Command(tmp_path, tiny_model)
    command.until_begun()
    command.process.kill()
    # Workers end with the one that started them, and with them the pipe's other ends.
    assert command.process.communicate(timeout=60)[0] == ""
    done = command.done()
    time.sleep(0.5)
    assert 2 <= command.done() == done < Command.SHARDS
    seen: list[api.Progress] = []
    api.compress("sun.h5", "a.lat", model=tiny_model, resume=True, progress=seen.append)
    # What died while it was being written is not taken for done.
    assert 3 <= seen[0].done <= 3 * done
    api.compress("sun.h5", "whole.lat", model=tiny_model)
    assert Path("a.lat").read_bytes() == Path("whole.lat").read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_keeps_what_is_done(tiny_model: Model, tmp_path: Path) -> None:
    command = Command(tmp_path, tiny_model)
    command.until_begun()
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does it: all processes get it
    out, err = command.process.communicate(timeout=60)
    hint = "what is done is in a.lat.partial, and the same command with --resume continues it"
    assert (command.process.returncode, out, err) == (130, "", f"sunzip: interrupted; {hint}\n")
    assert 2 <= command.done() < Command.SHARDS
