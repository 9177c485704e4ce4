"""Bad input, bad targets, damage: one line that helps, the right exit code, nothing lost or half written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from astropy.io import fits
from click.testing import CliRunner
from PIL import Image

import sunzip as sunzip_package
from sunzip import api, errors, weights
from sunzip.cli import program
from sunzip.sinks import LAYOUTS
from sunzip.sinks.sdoml_v2 import SdomlV2Sink
from sunzip.sources.series import Series


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- sources -------------------------------------------------------------------------------------------


def v2_store(path: Path, data: np.ndarray) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2).create_group("2014")
    array = group.create_array("171A", shape=data.shape, chunks=data.shape, dtype=data.dtype)
    array[:] = data
    array.attrs.put({"T_OBS": ["2014-01-01T00:00:00.34Z", "2014-01-01T00:12:00.34Z"]})
    return path


def missing(folder: Path) -> Path:
    return folder / "nothing.zarr"


def empty_store(folder: Path) -> Path:
    zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    return folder / "a.zarr"


def empty_folder(folder: Path) -> Path:
    (folder / "a").mkdir()
    return folder / "a"


def wrong_dtype(folder: Path) -> Path:
    return v2_store(folder / "a.zarr", np.ones((2, 16, 16), "i4"))


def wrong_shape(folder: Path) -> Path:
    return v2_store(folder / "a.zarr", np.ones((2, 16), "f4"))


def too_small(folder: Path) -> Path:
    return v2_store(folder / "a.zarr", np.ones((2, 8, 8), "f4"))


def text_as_fits(folder: Path) -> Path:
    (folder / "a.fits").write_text("SIMPLE = no\nand not FITS either")
    return folder / "a.fits"


def truncated_npz(folder: Path) -> Path:
    file = folder / "AIA20140101_0000_0171.npz"
    np.savez_compressed(file, x=np.random.default_rng(0).random((32, 32), np.float32))
    file.write_bytes(file.read_bytes()[:700])
    return file


def text_as_hdf5(folder: Path) -> Path:
    (folder / "a.h5").write_text("no")
    return folder / "a.h5"


def odd_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file["cube"] = np.ones((2, 8), "f4")
    return folder / "a.h5"


def other_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no")
    return folder / "notes.txt"


BAD = [
    (missing, "nothing is there; check the path"),
    (empty_store, "no SDOML v2 array found"),
    (empty_folder, "the folder is empty"),
    (wrong_dtype, "'<i4'"),
    (wrong_shape, "(2, 16)"),
    (
        too_small,
        "8×8 pixels are smaller than the model's 16×16; take larger ones, or a --size of 16",
    ),
    (text_as_fits, "FITS"),
    (truncated_npz, "AIA20140101_0000_0171.npz"),
    (text_as_hdf5, "HDF5"),
    (odd_hdf5, "cube"),
    (other_file, "is no kind of file that is known here"),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_a_bad_source_is_named_and_leaves_nothing(sunzip, model, tmp_path, make, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = make(tmp_path / "in")
    line = sunzip("compress", source, tmp_path / "out" / "a.lat", "--model", model, code=1).stderr
    assert words in line
    assert str(source) in line
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("command", ["compress", "evaluate", "show"])
def test_every_command_names_a_missing_source(sunzip, model, archive, tmp_path, command):
    gone = tmp_path / "gone.zarr"
    args = {
        "compress": [gone, tmp_path / "a.lat", "--model", model],
        "evaluate": [gone, archive],
        "show": [gone, tmp_path / "a.png"],
    }
    assert f"{gone}: nothing is there" in sunzip(command, *args[command], code=1).stderr


def test_an_archive_is_named_as_a_file_and_a_source_by_a_name(sunzip, model, store, tmp_path):
    line = sunzip("compress", store, f"{tmp_path}/a.lat/", "--model", model, code=1).stderr
    assert f"{tmp_path}/a.lat/: an archive is a file; name it without the slash" in line
    assert "no source named" in sunzip("compress", "", tmp_path / "a.lat", "--model", model, code=1).stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--channels", "172A"], "unknown channel '172A'; the channels are 94A"),
        (["--channels", ","], "no channel named"),
        (["--start", "soon"], "start 'soon' is not a date; write 2014-01-31"),
        (["--start", "2020"], "no image in the chosen times; it holds images from 2012-"),
        (["--start", "2012-03-02", "--stop", "2012-03-01"], "is not before"),
        (["--cadence", "5 parsec"], "write a number and a unit"),
        (["--every", "7min"], "not a multiple of the cadence"),
        (["--size", "100"], "cannot be averaged to 100×100"),
        (["--hmi", "gone.zarr"], "gone.zarr"),
        (["--degradation", "gone"], "only FITS files are corrected for degradation"),
    ],
)
def test_an_option_that_cannot_be_met_says_how_to_write_it(sunzip, model, store, tmp_path, args, words):
    line = sunzip("compress", store, tmp_path / "a.lat", "--model", model, *args, code=1).stderr
    assert words in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see sunzip --help"),
        (["compress", "--frobnicate", "a", "b"], "No such option"),
        (["compress", "a.zarr"], "Missing argument 'SRC...'; see sunzip compress --help"),
        (["compress", "a", "b", "--quality", "101"], "101 is not in the range"),
        (["compress", "a", "b", "--block", "0"], "'0' is neither auto nor a number"),
        (["decompress", "a", "b", "--layout", "gif"], "'gif' is not one of 'sdoml-v2'"),
        (["show", "a.lat", "b.png", "--time", "2012", "--frame", "1"], "exclude each other"),
        (["models", "export", "out", "--encoder", "--onnx"], "Missing argument 'OUT'"),
    ],
)
def test_usage_errors_are_one_line_too(sunzip, args, words):
    assert words in sunzip(*args, code=2).stderr


EXPORT = ["models", "export", "gone", "out", "--encoder", "--onnx"]
DRAW = ["generate", "a.png", "--latents", "gone.lat"]
GUESS = ["forecast", "gone.lat", "--flux", "gone.csv"]
BETWEEN = ["--between", "2012", "2013", "--count", "2"]
FAULTS = ["study", "faults", "--out", "a.html"]
ONBOARD = ["study", "onboard", "--preset", "sdo", "--out", "a.html"]


@pytest.mark.parametrize(
    ("command", "idle", "when", "missing"),
    [
        (EXPORT, ["--hmi", "h"], "without --calibrate", ["--calibrate", "gone.zarr"]),
        (EXPORT, ["--anon"], "without --calibrate", ["--calibrate", "gone.zarr"]),
        (DRAW, ["--hmi", "h"], "without --compare SRC", ["--compare", "gone.zarr"]),
        ([*DRAW, "--compare", "gone.lat"], ["--hmi", "h"], "without --compare SRC", None),
        ([*DRAW[:2], "--model", "gone"], ["--anon"], "without --latents or --compare", DRAW[2:]),
        (DRAW + BETWEEN, ["--seed", "0"], "with --between, which draws nothing", None),
        (GUESS, ["--embargo", "14"], "without --folds", ["--folds"]),
        (GUESS, ["--force"], "without --plot", ["--plot", "a.png"]),
        (FAULTS, ["--hmi", "h"], "without --source", ["--source", "gone.zarr"]),
        (FAULTS, ["--anon"], "without --source", ["--source", "gone.zarr"]),
        (ONBOARD, ["--hmi", "h"], "without --source", ["--source", "gone.zarr"]),
        (ONBOARD, ["--anon"], "without --source", ["--source", "gone.zarr"]),
        (["show", "gone.lat", "a.png"], ["--hmi", "h"], "without --source", ["--source", "gone.zarr"]),
        (["show", "gone.lat", "a.png"], ["--degradation", "d"], "without --source", None),
        (["show", "gone.zarr", "a.png"], ["--model", "m"], "where no archive is decoded", None),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    sunzip, tmp_path, monkeypatch, command, idle, when, missing
):
    monkeypatch.chdir(tmp_path)
    assert f"{idle[0]} does nothing {when}; see" in sunzip(*command, *idle, code=2).stderr
    if command is EXPORT:
        pytest.importorskip("onnxruntime")
    if missing is not None:
        # With what it belongs to, the command goes on until it finds that its input is not there.
        result = CliRunner().invoke(program, [*command, *idle, *missing])
        assert "gone" in result.stderr
        assert result.exit_code in (1, 4)


def numbers_of(command: click.Command) -> Iterator[click.Parameter]:
    if isinstance(command, click.Group):
        for other in command.commands.values():
            yield from numbers_of(other)
    yield from (p for p in command.params if isinstance(p.type, click.types.FloatParamType))


def test_no_option_takes_what_is_no_finite_number():
    found = list(numbers_of(program))
    assert {"checkpoint", "rate", "loss", "target_ratio"} <= {p.name for p in found}
    for option in found:
        for value in ("nan", "inf", "-inf", "1e999"):
            with pytest.raises(click.BadParameter):
                option.type.convert(value, option, None)


@pytest.mark.parametrize(("args", "words"), [([], "compress"), (["models"], "list")])
def test_without_a_command_there_is_help(args, words):
    result = CliRunner().invoke(program, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: sunzip")
    assert words in result.stderr


# --- targets -------------------------------------------------------------------------------------------


def test_an_existing_target_is_never_touched(sunzip, model, store, archive, tmp_path):
    shutil.copytree(store, tmp_path / "a.zarr")
    for name in ("a.lat", "a.h5", "a.png"):
        (tmp_path / name).write_bytes(b"years of work")
    before = digest(tmp_path)
    for args in (
        ["compress", store, tmp_path / "a.lat", "--model", model],
        ["compress", store, tmp_path / "a.lat", "--model", model, "--resume"],
        ["compress", store, tmp_path / "a.zarr", "--model", model],
        ["decompress", archive, tmp_path / "a.h5"],
        ["decompress", archive, tmp_path / "a.zarr"],
        ["show", archive, tmp_path / "a.png"],
        ["synth", tmp_path / "a.zarr"],
    ):
        assert "exists; remove it, choose another name or use --force" in sunzip(*args, code=1).stderr
    assert digest(tmp_path) == before


def test_force_replaces_nothing_that_sunzip_would_not_write(sunzip, model, store, archive, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    (home / "map.fits").write_text("")
    (home / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\nyears of work")
    (home / "a.lat").write_text("latitudes")
    (home / "a.png").write_text("no PNG")
    os.symlink(home, tmp_path / "link")
    before = digest(home)
    for args in (
        ["compress", store, home / "a.h5", "--model", model],
        ["compress", store, f"file://{home}/a.lat", "--model", model],
        ["compress", store, home, "--model", model],
        ["compress", store, "/dev/null", "--model", model],
        ["decompress", archive, home],
        ["decompress", archive, home / "thesis.tex"],
        ["show", archive, home / "a.png"],
    ):
        assert "--force does not replace it" in sunzip(*args, "--force", code=1).stderr
    assert digest(home) == before
    assert Path("/dev/null").is_char_device()


def theirs(home: Path, archive: Path, store: Path, sunzip) -> dict[str, list[object]]:
    """Make what users have under names that sunzip gives; return the commands that would replace it."""
    home.mkdir()
    with h5py.File(home / "lab.h5", "w") as file:
        file["precious"] = [1, 2, 3]
    (home / "sums").mkdir()
    np.savez(home / "sums" / "thesis.npz", a=[1])
    day = home / "v1" / "2014" / "01" / "01"
    day.mkdir(parents=True)
    np.savez_compressed(day / "AIA20140101_0000_0171.npz", x=np.zeros((4, 4), np.float32))
    zarr.open_group(home / "genome.zarr", mode="w", zarr_format=2).create_array("dna", shape=(4,), dtype="u1")
    zarr.open_group(home / "sdoml.zarr", mode="w", zarr_format=2).create_group("2014").create_array(
        "171A", shape=(1, 4, 4), chunks=(15, 4, 4), dtype="<f4"
    )
    (home / "maps").mkdir()
    name = "aia_0171_20140101T000000.fits"
    fits.PrimaryHDU(np.zeros((4, 4), np.float32)).writeto(home / "maps" / name)
    (home / "none").mkdir()
    for path, layout in (("more.zarr", "sdoml-v2"), ("more", "fits"), ("more_v1", "sdoml-v1")):
        sunzip("decompress", archive, home / path, "--layout", layout)
    (home / "more.zarr" / "2012" / "notes.txt").write_text("mine")
    shutil.copy(home / "maps" / name, home / "more" / "aia_0171_19991231T000000.fits")
    shutil.copy(day / "AIA20140101_0000_0171.npz", home / "more_v1" / "mine.npz")
    shutil.copy(home / "lab.h5", home / "features.h5")
    sunzip("decompress", archive, home / "other.h5")
    with h5py.File(home / "other.h5", "a") as file:
        file["precious"] = [1, 2, 3]
    sunzip("features", archive, home / "features.zarr")
    (home / "features.zarr" / "mine").write_text("mine")
    Image.new("L", (4, 4)).save(home / "holiday.png")
    (home / "votes.csv").write_text("time,f0,comment\n2014-01-01T00:00:00.000Z,1,yes\n")
    pq.write_table(pa.table({"time": [1], "f0": [2.0]}), home / "mine.parquet")
    (home / "page.html").write_text('<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Me')
    (home / "encoder").mkdir()
    (home / "encoder" / "encoder.json").write_text('{"files": {"a.onnx": 1}}')
    (home / "encoder" / "a.onnx").write_text("")
    (home / "encoder" / "mine").write_text("mine")
    (home / "random.lat").write_bytes(bytes(range(100)))
    for path in ("empty.h5", "empty.png", "empty.csv"):
        (home / path).write_bytes(b"")
    cubes = ["lab.h5", "sums", "v1", "genome.zarr", "sdoml.zarr", "maps", "none"]
    cubes += ["more.zarr", "more", "more_v1", "other.h5", "features.h5", "features.zarr", "empty.h5"]
    tables = ["features.h5", "features.zarr", "votes.csv", "mine.parquet", "empty.csv", "other.h5"]
    commands = {path: ["decompress", archive, home / path] for path in cubes}
    commands |= {f"features of {path}": ["features", archive, home / path] for path in tables}
    commands["random.lat"] = ["compress", store, home / "random.lat"]
    commands |= {path: ["show", archive, home / path] for path in ("holiday.png", "empty.png")}
    commands |= {f"synth of {path}": ["synth", home / path] for path in ("genome.zarr", "more.zarr")}
    commands["flux"] = ["synth", home / "new.zarr", "--flux", home / "votes.csv"]
    commands["page"] = ["study", "faults", "--out", home / "page.html"]
    commands["encoder"] = ["models", "export", "tiny", home / "encoder", "--encoder", "--onnx"]
    return commands


def test_force_destroys_nothing_that_sunzip_never_wrote(sunzip, store, archive, tmp_path):
    home = tmp_path / "home"
    commands = theirs(home, archive, store, sunzip)
    before = digest(home)
    for what, args in commands.items():
        assert "--force does not replace it" in sunzip(*args, "--force", code=1).stderr, what
    assert digest(home) == before


@pytest.mark.parametrize(
    ("name", "args"),
    [
        *((f"a{layout}", ["decompress", "--layout", layout]) for layout in LAYOUTS),
        *((name, ["features"]) for name in ("a.h5", "a.zarr", "a.csv", "a.parquet")),
        ("a.png", ["show"]),
    ],
)
def test_force_replaces_what_an_earlier_run_wrote(sunzip, archive, tmp_path, name, args):
    command, *options = args
    for force in ([], ["--force"]):
        sunzip(command, archive, tmp_path / name, *options, *force)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("part", [slice(None, -9), slice(100, None), slice(None)])
def test_force_replaces_an_archive_that_is_damaged(sunzip, model, store, archive, tmp_path, part):
    out = tmp_path / "a.lat"
    out.write_bytes(archive.read_bytes()[part])
    sunzip("compress", store, out, "--model", model, "--channels", "171A", "--force")
    assert sunzip("verify", out)


@pytest.mark.parametrize("command", ["compress", "decompress", "export"])
def test_force_replaces_a_link_to_nothing(sunzip, model, store, archive, tmp_path, command):
    target = tmp_path / "to"
    target.symlink_to(tmp_path / "gone")
    args = {
        "compress": ["compress", store, target, "--model", model, "--channels", "171A"],
        "decompress": ["decompress", archive, target],
        "export": ["models", "export", model, target, "--encoder", "--onnx"],
    }[command]
    assert "exists" in sunzip(*args, code=1).stderr
    sunzip(*args, "--force")
    assert target.exists()


def test_a_source_is_never_the_target(sunzip, model, store, archive, tmp_path):
    shutil.copy(archive, tmp_path / "a.lat")
    shutil.copytree(store, tmp_path / "in" / "a.zarr")
    os.symlink(tmp_path / "a.lat", tmp_path / "b.lat")
    before = digest(tmp_path)
    copy = tmp_path / "in" / "a.zarr"
    for args in (
        ["compress", copy, copy, "--model", model],
        ["compress", store, copy, copy, "--model", model],
        ["compress", store, copy, "--hmi", copy, "--model", model],
        ["compress", copy, tmp_path / "in", "--model", model],
        ["decompress", tmp_path / "b.lat", tmp_path / "a.lat"],
        ["decompress", tmp_path / "a.lat", tmp_path],
    ):
        line = sunzip(*args, "--force", code=1).stderr
        assert "source" in line
        assert "name another target" in line
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("gone/a.lat", "gone does not exist; create it first"),
        ("file/a.lat", "file is no folder"),
        ("s3://bucket/a/", "is a folder; name an object in it"),
        ("-", "name a file"),
        ("", "name a file"),
        ("/proc/a.lat", "/proc/a.lat: cannot be written: "),
    ],
)
def test_a_target_that_cannot_be_is_refused(sunzip, model, store, tmp_path, monkeypatch, target, words):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert words in sunzip("compress", store, target, "--model", model, code=1).stderr
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["decompress", "ARCHIVE", "/proc/a.h5"], "/proc/a.h5: cannot be written: "),
        (["show", "ARCHIVE", "/proc/a.png"], "/proc/a.png: cannot be written: "),
        (["show", "ARCHIVE", "a.pdf"], "name it *.png"),
        (["synth", "a.h5"], "name it *.zarr"),
        (["synth", "/proc/a.zarr", "--frames", "1", "--size", "16"], "/proc/a.zarr: cannot be written: "),
    ],
)
def test_other_targets_are_refused_alike(sunzip, archive, args, words):
    assert words in sunzip(*[archive if a == "ARCHIVE" else a for a in args], code=1).stderr


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, which looks as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_compress_that_cannot_write_on_keeps_what_is_done(sunzip, model, store, archive, tmp_path):
    out = tmp_path / "a.lat"
    out.write_bytes(archive_bytes := archive.read_bytes()[:-9])
    args = ["compress", store, out, "--model", model, "--force"]
    with files_at_most(8000):  # enough for every object, not for the archive
        line = sunzip(*args, code=1).stderr
    assert f"{out}: cannot be written: File too large" in line
    assert f"what is done is in {out}.partial, and the same command with --resume continues it" in line
    assert out.read_bytes() == archive_bytes
    sunzip(*args, "--resume")
    assert sunzip("verify", out)
    assert os.listdir(tmp_path) == ["a.lat"]


@pytest.mark.parametrize("name", ["a.h5", "a.zarr", "a.png"])
def test_another_job_that_cannot_write_on_leaves_nothing(sunzip, archive, tmp_path, name):
    command = "show" if name.endswith("png") else "decompress"
    with files_at_most(4000):
        line = sunzip(command, archive, tmp_path / name, code=1).stderr
    assert f"{tmp_path / name}: cannot be written: File too large" in line
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(sunzip, model, store, archive, small_disk):
    full = {
        "a.lat": ["compress", store, small_disk / "a.lat", "--model", model, "--embed-model"],
        "a.h5": ["decompress", archive, small_disk / "a.h5"],
        "a.zarr": ["synth", small_disk / "a.zarr", "--frames", "40", "--size", "32"],
    }
    for name, args in full.items():
        line = sunzip(*args, code=1).stderr
        assert f"{small_disk / name}: cannot be written: No space left on device" in line
        assert not (small_disk / name).exists()
        shutil.rmtree(small_disk / "a.lat.partial", ignore_errors=True)
        assert os.listdir(small_disk) == []


def test_what_synth_completed_beside_a_store_that_it_could_not_is_told(sunzip, tmp_path, monkeypatch):
    out, hmi, flux = (tmp_path / name for name in ("a.zarr", "hmi.zarr", "f.csv"))
    finish = SdomlV2Sink._finish

    def full(sink):
        if sink.path.name.startswith("a.zarr"):
            raise OSError(28, "No space left on device")
        finish(sink)

    args = ["synth", out, "--frames", "2", "--size", "16", "--hmi", hmi, "--flux", flux]
    with monkeypatch.context() as broken:
        broken.setattr(SdomlV2Sink, "_finish", full)
        line = sunzip(*args, code=1).stderr
        assert f"{out}: cannot be written: No space left on device; complete, and in the way" in line
        assert f": {hmi}, {flux}\n" in line
        assert sorted(os.listdir(tmp_path)) == ["f.csv", "hmi.zarr"]
    sunzip(*args, "--force")
    old = flux.read_bytes()
    monkeypatch.setattr(SdomlV2Sink, "_finish", full)
    assert "in the way" not in sunzip(*args, "--force", "--seed", "1", code=1).stderr
    assert flux.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "f.csv", "hmi.zarr"]


def test_a_read_only_disk(sunzip, model, store, archive, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for args in (
        ["compress", store, small_disk / "a.lat", "--model", model],
        ["decompress", archive, small_disk / "a.h5"],
        ["show", archive, small_disk / "a.png"],
    ):
        assert f"{args[2]}: cannot be written: Read-only file system" in sunzip(*args, code=1).stderr


# --- archives and models -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "verify", "decompress", "show"])
def test_what_is_no_archive_is_called_so(sunzip, tmp_path, command):
    text = tmp_path / "a.lat"
    text.write_text("no archive\n" * 100)
    more = {"decompress": ["b.h5"], "show": ["b.png"]}.get(command, [])
    assert f"{text}: not a sunzip archive" in sunzip(command, text, *more, code=1).stderr
    assert "no such file" in sunzip(command, tmp_path / "gone.lat", *more, code=1).stderr
    assert "is a directory" in sunzip(command, tmp_path, *more, code=1).stderr or command == "show"


def test_verify_names_the_damaged_frame(sunzip, archive, tmp_path):
    broken = tmp_path / "a.lat"
    data = bytearray(archive.read_bytes())
    with sunzip_package.open(archive) as sun:
        block = sun.archive.block(2)
    assert data.count(block) == 1
    data[data.index(block) + len(block) - 3] ^= 1
    broken.write_bytes(data)

    result = sunzip("verify", broken, code=3)
    assert result.stdout.startswith(f"{broken} is damaged\n")
    assert "frame 2, 2012-03-01T00:24:00.000Z" in result.stdout
    assert f"{broken}: is damaged in 1 place" in result.stderr
    found = json.loads(sunzip("verify", broken, "--json", code=3).stdout)
    assert not found["ok"]
    assert [p["frames"] for p in found["problems"]] == [[2, 3]]

    line = sunzip("decompress", broken, tmp_path / "a.h5", code=3).stderr
    assert f"{broken}: frame 2: " in line
    assert os.listdir(tmp_path) == ["a.lat"]
    # Info decodes nothing, and what it reads is whole.
    sunzip("info", broken)


def test_repair_saves_the_frames_that_are_whole(sunzip, archive, tmp_path):
    broken, copy, out = (tmp_path / f"{name}.lat" for name in ("a", "b", "c"))
    data = archive.read_bytes()
    with sunzip_package.open(archive) as sun:
        start, size = sun.archive.extent(2)
        pixels, headers = sun[:], [sun.archive.headers(i) for i in range(6)]
    broken.write_bytes(data[: start + 25] + bytes(8) + data[start + 33 :])
    copy.write_bytes(data[: start + size])

    result = sunzip("repair", broken, out, code=3)
    assert (
        "lost: cube: images are lost, and marked as missing (frame 2, 2012-03-01T00:24:00.000Z)"
        in result.stdout
    )
    assert f"{broken}: not all of it could be saved; what could is in {out}" in result.stderr
    sunzip("verify", out)
    with sunzip_package.open(out) as sun:
        rest = [0, 1, 3, 4, 5]
        np.testing.assert_array_equal(sun.take(rest), pixels[rest])
        assert np.isnan(sun[2]).all()
        assert [sun.archive.headers(i) for i in rest] == [headers[i] for i in rest]
    with xr.open_dataset(out) as ds:
        assert ds["valid"].values.all(axis=1).tolist() == [i != 2 for i in range(6)]
        np.testing.assert_array_equal(ds["cube"][3].values, pixels[3])
    sunzip("decompress", out, tmp_path / "c.h5")

    assert "exists" in sunzip("repair", broken, out, code=1).stderr
    found = json.loads(sunzip("repair", broken, out, "--force", "--from", copy, "--json").stdout)
    assert (found["ok"], found["same"], found["lost"]) == (True, True, [])
    assert [t["path"] for t in found["taken"]] == [str(broken), str(copy)]
    assert out.read_bytes() == data
    assert "nothing was written" in sunzip("repair", archive, tmp_path / "d.lat").stdout
    assert "name a copy of it by --from" in sunzip("repair", copy, tmp_path / "d.lat", code=3).stderr
    assert "is the source itself" in sunzip("repair", broken, copy, "--from", copy, "--force", code=1).stderr
    assert sorted(os.listdir(tmp_path)) == ["a.lat", "b.lat", "c.h5", "c.lat"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_archive_is_damaged_for_every_command(sunzip, archive, store, tmp_path, share):
    broken = tmp_path / "a.lat"
    data = archive.read_bytes()
    broken.write_bytes(data[: int(share * len(data))])
    for command, *more in (["info"], ["decompress", tmp_path / "a.h5"], ["show", tmp_path / "a.png"]):
        assert str(broken) in sunzip(command, broken, *more, code=3).stderr
    assert str(broken) in sunzip("evaluate", store, broken, code=3).stderr
    assert str(broken) in sunzip("diff", broken, broken, code=3).stderr
    found = json.loads(sunzip("verify", broken, "--json", code=3).stdout)
    assert found["problems"][0]["object"] == "directory"
    assert os.listdir(tmp_path) == ["a.lat"]


def test_a_model_that_is_not_here(sunzip, model, store, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_ROOTS", (tmp_path,))
    monkeypatch.setattr(weights, "_REGISTERED", {})
    out = tmp_path / "a.lat"
    line = sunzip("compress", store, out, code=4).stderr
    assert f"no model '{weights.DEFAULT}' on this machine" in line
    assert "no model 'nix'" in sunzip("compress", store, out, "--model", "nix", code=4).stderr
    assert "no model there" in sunzip("compress", store, out, "--model", tmp_path, code=4).stderr
    sunzip("compress", store, out, "--model", model)
    sha = weights.read_folder(model).sha256
    monkeypatch.setattr(weights, "_REGISTERED", {})
    for args in (
        ["decompress", out, tmp_path / "a.h5"],
        ["show", out, tmp_path / "a.png"],
        ["evaluate", store, out],
        ["diff", store, out],
    ):
        assert sha[:12] in sunzip(*args, code=4).stderr
    # What decodes nothing needs no model.
    sunzip("info", out)
    sunzip("verify", out)
    sunzip("decompress", out, tmp_path / "a.h5", "--model", model)


@pytest.mark.parametrize(
    "command",
    [
        ["decompress", "{archive}", "{folder}/a.h5"],
        ["show", "{archive}", "{folder}/a.png"],
        ["evaluate", "{store}", "{archive}"],
        ["diff", "{archive}", "{store}"],
        ["features", "{archive}", "{folder}/a.csv", "--pool", 1],
        ["generate", "{folder}/b.zarr", "--latents", "{archive}", "--from", "posterior"],
        ["forecast", "{archive}", "--flux", "{flux}", "--plot", "{folder}/a.png"],
    ],
    ids=lambda command: command[0],
)
def test_a_model_that_is_not_the_archives_is_the_users_mistake(
    sunzip, archive, store, tmp_path_factory, command
):
    folder = tmp_path_factory.mktemp("out")
    flux = tmp_path_factory.mktemp("flux") / "flux.csv"
    flux.write_text("time (yyyy MM dd),adjusted_f30\n2012 3 1,100\n2012 3 2,101\n")
    places = {"archive": archive, "store": store, "folder": folder, "flux": flux}
    args = [str(word).format(**places) for word in command]
    line = sunzip(*args, "--model", weights.DEFAULT, code=1).stderr
    assert f"{archive}: was coded with model tiny (" in line
    assert f"not with the model given, {weights.DEFAULT} (" in line
    assert os.listdir(folder) == []


def test_show_names_what_it_has_not(sunzip, archive, store, tmp_path):
    out = tmp_path / "a.png"
    assert "has no frame 6; it has frames 0 to 5" in sunzip("show", archive, out, "--frame", 6, code=1).stderr
    assert "has no frame -7" in sunzip("show", store, out, "--frame", -7, code=1).stderr
    assert "--time 'noon' is not a date" in sunzip("show", archive, out, "--time", "noon", code=1).stderr
    assert "is no archive" in sunzip("show", store, out, "--source", store, code=1).stderr
    other = "synthetic:frames=2,size=32,start=2013-01-01"
    assert "has no frame at 2012-03-01" in sunzip("show", archive, out, "--source", other, code=1).stderr
    smaller = "synthetic:frames=6,size=16"
    assert "16×16" in sunzip("show", archive, out, "--source", smaller, code=1).stderr
    assert os.listdir(tmp_path) == []


# --- what nobody expects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ValueError("deep\nin the\x1b[31m heart"),
            1,
            "error: internal: ValueError: deep in the�[31m heart; run again",
        ),
        (KeyError(), 1, "error: internal: KeyError; run again with --debug"),
        (MemoryError(), 1, "error: the memory of this machine is not enough; take smaller images (--size)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB"),
            1,
            "error: the memory of this machine",
        ),
        (RuntimeError("could not create a primitive"), 1, "error: the memory of this machine is not enough"),
        (RuntimeError("can't start new thread"), 1, "error: no more threads can be started here; allow"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            1,
            "error: a package that is needed cannot be imported (libtorch_cpu.so: failed to map segment from "
            "shared object); install sunzip again, with all that it needs, or allow more address space",
        ),
        (
            ModuleNotFoundError("No module named 'zarr'", name="zarr"),
            1,
            "error: a package that is needed cannot be imported (No module named 'zarr'); install",
        ),
        (
            ImportError("cannot import name 'a' from 'sunzip.b'", name="sunzip.b"),
            1,
            "error: internal: ImportError: cannot import name 'a' from 'sunzip.b'; run again",
        ),
        (OSError(28, "No space left on device", "x.tmp"), 1, "error: x.tmp: No space left on device\n"),
        (ValueError("https://me:word@host/a?b"), 1, "error: internal: ValueError: https://host/a?b; run"),
        (errors.BoundNotMetError("193A: 6 %"), 5, "error: 193A: 6 %\n"),
        (errors.UnsupportedError("a.lat: newer"), 3, "error: a.lat: newer\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(sunzip, model, store, tmp_path, monkeypatch, error, code, line):
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(api, "compress", fail)
    result = sunzip("compress", store, tmp_path / "a.lat", "--model", model, code=code)
    assert result.stderr.startswith(f"sunzip: {line}")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("command", "error", "line"),
    [
        (
            "compress",
            MemoryError(),
            "machine is not enough; take smaller images (--size), fewer channels (--channels) or fewer "
            "frames in a block (--block)",
        ),
        (
            "train",
            RuntimeError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
            ),
            "GPU is not enough; take fewer samples in a step (--batch), smaller images (--size) or fewer "
            "channels (--channels)",
        ),
        ("decompress", MemoryError(), "machine is not enough; take fewer channels (--channels)"),
        ("models list", MemoryError(), "machine is not enough"),
    ],
)
def test_where_memory_is_short_options_of_that_command_are_named(monkeypatch, command, error, line):
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(type(program), "invoke", fail)
    result = CliRunner().invoke(program, command.split())
    assert (result.exit_code, result.stderr) == (1, f"sunzip: error: the memory of this {line}\n")


@pytest.mark.skipif(os.name == "nt", reason="there a folder in use cannot be removed")
def test_a_current_folder_that_is_gone_is_named(sunzip, store, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = sunzip("compress", store, tmp_path / "a.lat", code=1)
    assert result.stderr.startswith("sunzip: error: the current folder does not exist any more;")


@pytest.mark.parametrize("args", [["--debug", "info"], ["info", "--debug"]])
def test_debug_adds_the_traceback(tmp_path, args):
    result = CliRunner().invoke(program, [*args, str(tmp_path / "gone.lat")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith(f"sunzip: error: {tmp_path / 'gone.lat'}: no such file\n")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_threads_that_fail_print_a_traceback_only_for_debug(
    sunzip, model, store, tmp_path, monkeypatch, debug
):
    def fail(*_args: object, **_options: object) -> None:
        def full() -> None:
            raise OSError(28, "No space left on device")

        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        raise errors.OutputError("a.lat: cannot be written")

    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(api, "compress", fail)
    args = ["compress", str(store), str(tmp_path / "a.lat"), "--model", str(model), *debug]
    result = CliRunner().invoke(program, args)
    assert result.stderr.endswith("sunzip: error: a.lat: cannot be written\n")
    assert len(told) == len(debug)
    assert threading.excepthook == told.append


def test_a_source_that_fails_late_leaves_what_is_done(sunzip, model, store, tmp_path, monkeypatch):
    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", 2)
    out = tmp_path / "a.lat"
    args = ["compress", store, out, "--model", model]
    read = Series.read

    def flaky(self: Series, start: int, stop: int):
        if stop > limit:
            raise errors.InputError("the network is gone")
        return read(self, start, stop)

    monkeypatch.setattr(Series, "read", flaky)
    limit = 1
    assert "--resume" not in sunzip(*args, code=1).stderr
    assert os.listdir(tmp_path) == []
    limit = 5
    line = sunzip(*args, code=1).stderr
    assert (
        f"the network is gone; what is done is in {out}.partial, and the same command with --resume" in line
    )
    limit = 6
    assert "continue it with --resume or begin again with --force" in sunzip(*args, code=1).stderr
    sunzip(*args, "--resume")
    sunzip("compress", store, tmp_path / "b.lat", "--model", model)
    assert out.read_bytes() == (tmp_path / "b.lat").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.lat", "b.lat"]
