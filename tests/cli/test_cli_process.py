"""The command as its own process: signals, pipes, streams, terminals, and what it loads before it answers."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sunzip import api

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SUNZIP = [sys.executable, "-m", "sunzip"]


def start(*args: object, program: list[str] = SUNZIP, **options: object) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(  # type: ignore[call-overload]
        [*program, *map(str, args)], env=ENVIRONMENT, preexec_fn=hear_ctrl_c, **streams
    )


def hear_ctrl_c() -> None:
    """Undo what a shell does to jobs in its background: their children would never hear of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*args: object) -> tuple[int, str, str]:
    process = start(*args)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# --- streams and exit codes ----------------------------------------------------------------------------


def test_results_go_to_stdout_and_errors_to_stderr(archive, tmp_path):
    code, out, err = run("info", archive, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["frames"] == 6
    code, out, err = run("info", tmp_path / "gone.lat")
    assert (code, out, err) == (1, "", f"sunzip: error: {tmp_path / 'gone.lat'}: no such file\n")
    code, out, err = run("info")
    assert (code, out) == (2, "")
    assert err == "sunzip: error: Missing argument 'IN.lat'; see sunzip info --help\n"


def test_exit_codes_3_and_4(archive, tmp_path):
    broken = tmp_path / "a.lat"
    broken.write_bytes(archive.read_bytes()[:-1])
    assert run("info", broken)[0] == 3
    code, out, err = run("compress", "synthetic:frames=1,size=16", tmp_path / "b.lat", "--model", "nix")
    assert (code, out) == (4, "")
    assert err.startswith("sunzip: error: no model 'nix'")
    assert os.listdir(tmp_path) == ["a.lat"]


def test_a_reader_that_leaves_early_is_no_error(archive):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("info", archive, stdout=writer)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_result_that_cannot_be_printed_is_one_line(archive):
    with open("/dev/full", "w") as full:
        process = start("info", archive, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "sunzip: error: the result cannot be printed: No space left on device\n"


def test_a_result_that_goes_nowhere_is_no_success(archive):
    process = start("-c", '"$@" >&-', "sh", *SUNZIP, "info", archive, program=["sh"])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "sunzip: error: the result cannot be printed: stdout is closed; redirect it (> FILE)\n"


def test_a_terminal_that_lacks_a_character():
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"}
    out = subprocess.run([*SUNZIP, "compress", "--help"], env=environment, capture_output=True, check=True)
    assert b"s3://\\u2026" in out.stdout
    assert out.stderr == b""


def test_the_screen_of_a_notebook_is_not_needed(archive, tmp_path):
    pytest.importorskip("sunpy.visualization.colormaps")
    # As kernels set it, matplotlib takes it only where what draws in notebooks is installed as well.
    environment = {**ENVIRONMENT, "MPLBACKEND": "unknown-here"}
    done = subprocess.run(
        [*SUNZIP, "show", archive, tmp_path / "a.png"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_for_terminals(tmp_path, quiet):
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    args = ["synth", tmp_path / "a.zarr", "--frames", "3", "--size", "16", "--json", *["-q"] * quiet]
    process = start(*args, stderr=terminal)
    os.close(terminal)
    out = process.stdout.read()
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(master)
    process.stdout.close()
    assert process.wait(60) == 0
    assert json.loads(out)["frames"] == 3
    if quiet:
        assert shown == b""
    else:
        assert b"preparing the Sun" in shown
        assert b"/3 frames" in shown
        assert b"frames/s" in shown
        assert b"B/s" in shown


# --- Ctrl-C --------------------------------------------------------------------------------------------

# Shards of two frames, each read slowly, so that there is time to interrupt.
SLOW = """
import os
import time
from sunzip import api
from sunzip.cli import main
from sunzip.sources.series import Series

read = Series.read

def slow(self, start, stop):
    time.sleep(0.25)
    return read(self, start, stop)

Series.read = slow
api._compress.FRAMES_PER_SHARD = 2
os.fsync = lambda _: None
main()
"""


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_keeps_what_is_done_and_resume_ends_with_the_same_bytes(sunzip, model, tmp_path, monkeypatch):
    out = tmp_path / "a.lat"
    args = ["compress", "synthetic:frames=8,size=16", out, "--model", model]
    process = start(*args, program=[sys.executable, "-c", SLOW])
    partial = tmp_path / "a.lat.partial"
    wait_for(partial / "cube" / "c" / "0", process)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    hint = f"what is done is in {partial}, and the same command with --resume continues it"
    assert err == f"sunzip: interrupted; {hint}\n"
    assert os.listdir(tmp_path) == ["a.lat.partial"]
    done = len(list((partial / "cube" / "c").iterdir()))
    assert 1 <= done < 4

    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", 2)
    monkeypatch.chdir(tmp_path)
    assert "is unfinished, continue with --resume" in sunzip("info", out, code=1).stderr
    sunzip(*args, "--resume")
    sunzip(*args[:2], "whole.lat", *args[3:])
    assert out.read_bytes() == (tmp_path / "whole.lat").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.lat", "whole.lat"]


def test_ctrl_c_leaves_nothing_of_other_jobs(tmp_path):
    process = start("synth", tmp_path / "a.zarr", "--frames", "5000", "--size", "64")
    wait_for(tmp_path / "a.zarr.partial" / "2012", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "sunzip: interrupted; nothing was left behind\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_jobs_as_ctrl_c_does(model, tmp_path, number):
    """Sent twice, as `timeout` and shells do."""
    process = start("synth", tmp_path / "a.zarr", "--frames", "5000", "--size", "64")
    wait_for(tmp_path / "a.zarr.partial" / "2012", process)
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"sunzip: interrupted by {number.name}; nothing was left behind\n"
    assert os.listdir(tmp_path) == []

    job = ["compress", "synthetic:frames=8,size=16", tmp_path / "a.lat", "--model", model]
    process = start(*job, program=[sys.executable, "-c", SLOW])
    wait_for(tmp_path / "a.lat.partial" / "cube" / "c" / "0", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.startswith(f"sunzip: interrupted by {number.name}; what is done is in ")


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_during_imports_gives_its_exit_code(tmp_path, number):
    """Many of them make functions from texts, under `python -m` as well."""
    (tmp_path / "job.py").write_text(
        "import click, os, signal\n"
        "from sunzip.cli.program import Program, run\n"
        f"importing = click.Command('importing', callback=lambda: exec('os.kill(os.getpid(), {number})'))\n"
        "run(Program(commands=[importing]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "job", "importing"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + number, done.stderr


def test_a_hang_up_that_is_ignored_stays_so(tmp_path):
    job = ["synth", tmp_path / "a.zarr", "--frames", "40", "--size", "32"]
    process = start(*job, program=["nohup", *SUNZIP], stdin=subprocess.DEVNULL)
    wait_for(tmp_path / "a.zarr.partial" / "2012", process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


# --- what is loaded ------------------------------------------------------------------------------------

REPORT = """
import sys
from sunzip.cli import program
try:
    program.main(sys.argv[1:])
except SystemExit as end:
    assert end.code in (0, None), end.code
print(*sorted({m.partition(".")[0] for m in sys.modules}), file=sys.stderr)
"""
HEAVY = {
    "torch",
    "zarr",
    "numcodecs",
    "astropy",
    "h5py",
    "scipy",
    "fsspec",
    "matplotlib",
    "sunpy",
    "constriction",
}


@pytest.mark.parametrize(
    ("args", "more"),
    [
        (["--help"], {"numpy"}),
        (["compress", "--help"], {"numpy"}),
        (["--version"], set()),
        (["info", "ARCHIVE"], set()),
        (["info", "ARCHIVE", "--json"], set()),
        (["models", "list"], set()),
    ],
)
def test_what_answers_at_once_loads_nothing_heavy(archive, args, more):
    process = start(*[archive if a == "ARCHIVE" else a for a in args], program=[sys.executable, "-c", REPORT])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "click" in err.split()
    assert not set(err.split()) & (HEAVY | more)


@pytest.mark.parametrize("command", [["--help"], ["info", "ARCHIVE"], ["models", "list"]])
def test_answers_cost_well_under_half_a_second(archive, command):
    def cost() -> float:
        # Time of the processor, since that of the clock depends on who else works on this machine.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*[archive if a == "ARCHIVE" else a for a in command])[0] == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(3)) < 0.4
