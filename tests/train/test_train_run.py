"""`sunzip train` from sources to a folder: what is held out stays out, and what comes out decodes."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sunzip import weights
from sunzip.api import Alignment, open_series
from sunzip.channels import NAMES
from sunzip.cli import program
from sunzip.codec import Codec
from sunzip.cube import Cube, Scale
from sunzip.errors import DamagedError, DivergedError, InputError, OutputError
from sunzip.files import locked
from sunzip.nn import sigma_vae
from sunzip.nn.hyperprior import Hyperprior
from sunzip.sinks import open_sink
from sunzip.sources.series import Series
from sunzip.train import card, families
from sunzip.train import frames as frames_module
from sunzip.train import run as run_module
from sunzip.train import wavelet as wavelet_module
from sunzip.train.checkpoint import read_state
from sunzip.train.frames import Frames, cached, held_out
from sunzip.train.loop import CHECKPOINT, Advance, Place
from sunzip.train.measure import beside
from sunzip.train.run import Stage, TrainReport, train

DAILY = Alignment(cadence="1d", tolerance="2h")
SUN = "sun.h5"  # in the folder in which these tests run


def write_sun(path: Path, count: int, side: int, days: int, seed: int = 0) -> str:
    """Write frames of noise over all channels: what training does with them is not what is tested here."""
    rng = np.random.default_rng(seed)
    data = rng.gamma(2.0, 40.0, (count, 12, side, side)).astype(np.float32)
    data[:, 9:] -= 80
    time = np.datetime64("2014-01-01", "ms") + np.arange(count) * np.timedelta64(days, "D")
    t_obs = np.repeat(time[:, None], 12, axis=1)
    headers: list[list[Any]] = [[{} for _ in NAMES] for _ in time]
    valid = np.ones((count, 12), bool)
    with open_sink(path, "hdf5", channels=NAMES, shape=(side, side)) as sink:
        sink.write(Cube(data, NAMES, time, t_obs, valid, headers, Scale.MEAN))
    return str(path)


def days(*names: str) -> np.ndarray:
    return np.array(names, "datetime64[ms]")


# --- what is held out ------------------------------------------------------------------------------------


def test_held_out_by_dates_and_by_months() -> None:
    time = days("2011-01-31T23:59", "2011-02-01", "2011-03-01", "2012-01-01", "2012-02-01")
    assert held_out(time, ["months=1"]).tolist() == [True, False, False, True, False]
    assert held_out(time, ["months=1,3"]).tolist() == [True, False, True, True, False]
    assert held_out(time, ["2011-02..2011-03"]).tolist() == [False, True, False, False, False]
    both = held_out(time, ["2011-02..2011-03", "2012-02-01..2013"])
    assert both.tolist() == [False, True, False, False, True]


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=40, unique=True))
def test_by_default_the_last_tenth_of_the_time_is_held_out(minutes: list[int]) -> None:
    time = np.sort(np.array(minutes, "datetime64[m]")).astype("datetime64[ms]")
    found = held_out(time, [])
    assert found[-1]
    assert not found[0]
    # Nothing before a held-out frame is nearer to the end than what is learned from.
    assert (np.diff(found.astype(int)) >= 0).all()
    assert (time[found] - time[0] > 0.89 * (time[-1] - time[0])).all()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("2013", "is not understood"),
        ("months=13", "is not understood"),
        ("months=", "is not understood"),
        ("months=1,x", "is not understood"),
        ("days=1", "is not understood"),
        ("2013..x", "is not a date"),
        ("..2013", "is not a date"),
        ("2020..2021", "meets no frame"),
        ("months=7", "meets no frame"),
        ("2000..2020", "every frame is held out"),
    ],
)
def test_rules_that_hold_out_nothing_or_all_are_refused(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_out(days("2011-01-01", "2012-03-01"), [rule])


# --- frames ----------------------------------------------------------------------------------------------


def small(folder: Path, seed: int = 0) -> Series:
    """Five frames of which two channels are wanted."""
    path = folder / f"{seed}.h5"
    url = str(path) if path.exists() else write_sun(path, 5, 32, 1, seed)
    return open_series(url, align=Alignment(cadence="1d", tolerance="2h", channels=("171A", "Bz")))


def test_frames_are_read_once_over_all_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = small(tmp_path)
    seen: list[tuple[int, int]] = []
    first = cached(series, tmp_path, progress=lambda *now: seen.append(now))
    assert seen[0] == (0, 5)
    expected = series.read(0, 5)
    assert first.side == (32, 32)
    np.testing.assert_array_equal(first.time, series.time)
    for t, example in enumerate(first):
        assert np.flatnonzero(example.present).tolist() == [2, 11]
        np.testing.assert_allclose(example.pixels[[2, 11]], expected.data[t], rtol=1e-3, atol=1e-4)
        assert np.isnan(example.pixels[0]).all()
    read, rows = type(series).read, []
    monkeypatch.setattr(type(series), "read", lambda s, a, b: rows.append(a) or read(s, a, b))
    again = cached(series, tmp_path)
    assert rows == [0]  # the frame that tells whether the source is still the same
    np.testing.assert_array_equal(again[4].pixels, first[4].pixels)
    # What was not finished is continued, and what lost its marks is read again.
    marks = next(tmp_path.glob("*.present"))
    part = np.fromfile(marks, np.uint8)
    part[:30].tofile(marks)
    np.testing.assert_array_equal(cached(series, tmp_path)[3].pixels, first[3].pixels)
    part[12 * 3 : 12 * 4] = 255
    part.tofile(marks)
    rows.clear()
    np.testing.assert_array_equal(cached(series, tmp_path)[3].pixels, first[3].pixels)
    assert rows == [0, 3]


def test_marks_without_their_pixels_do_not_pass_for_frames_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = small(tmp_path)
    first = cached(series, tmp_path)
    kept = np.array(first[3].pixels)
    del first
    next(tmp_path.glob("*.f16")).unlink()

    def full(_: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as m:
        m.setattr("sunzip.train.frames.put", full)
        with pytest.raises(OutputError):
            cached(series, tmp_path)
    np.testing.assert_array_equal(cached(series, tmp_path)[3].pixels, kept)


def test_other_pixels_are_other_files(tmp_path: Path) -> None:
    for seed in (0, 1):
        cached(small(tmp_path, seed), tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*.f16"))) == 2


def test_frames_with_an_empty_image_are_left_out_if_incomplete_ones_are(tmp_path: Path) -> None:
    align = Alignment(cadence="1d", tolerance="2h", channels=("171A", "Bz"))
    paths = [write_sun(tmp_path / f"{n}.h5", 5, 32, 1, n) for n in range(2)]
    for path, rows in zip(paths, (3, slice(None)), strict=True):
        with h5py.File(path, "r+") as file:
            file["cube"][1, 11] = np.nan
            file["cube"][rows, 2] = 0
    series = open_series(paths[0], align=align)
    assert len(cached(series, tmp_path / "kept")) == 5
    some, none = (open_series(path, align=replace(align, missing="drop")) for path in paths)
    for _ in range(2):
        frames = cached(some, tmp_path / "kept")
        np.testing.assert_array_equal(frames.time, series.time[[0, 2, 4]])
        assert frames.present[:, [2, 11]].all()
    with pytest.raises(InputError, match=r"no frame has measurements in all of 171A Bz"):
        cached(none, tmp_path / "kept")


def test_trainings_that_begin_at_once_share_their_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, kept = small(tmp_path), tmp_path / "kept"
    expected = series.read(0, 5).data[:, 0].astype(np.float16)
    others: list[Frames] = []

    def right(frames: Frames) -> None:
        assert (frames.present == np.isin(np.arange(12), [2, 11])).all()
        np.testing.assert_array_equal([e.pixels[2] for e in frames], expected)

    # The other one reads all after this one has found nothing there, and before it makes the files.
    usage, fill = shutil.disk_usage, frames_module._fill

    def overtaken(path: Path) -> object:
        monkeypatch.setattr(shutil, "disk_usage", usage)
        others.append(cached(series, kept))
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", overtaken)
    right(cached(series, kept, progress=lambda *_: right(others[0])))
    # The other one makes its marks after this one has read.
    marks = next(kept.glob("*.present"))

    def unmarked(*args: Any) -> int:
        monkeypatch.setattr(frames_module, "_fill", fill)
        done = fill(*args)
        marks.write_bytes(b"\xff" * 60)
        return done

    marks.write_bytes(b"\xff" * 60)
    monkeypatch.setattr(frames_module, "_fill", unmarked)
    right(cached(series, kept))


def test_processes_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cached(small(tmp_path), tmp_path / "one")
    monkeypatch.setattr(frames_module, "_STRETCH", 2)
    seen: list[int] = []
    two = cached(small(tmp_path), tmp_path / "two", workers=2, progress=lambda done, _: seen.append(done))
    assert (seen[0], seen[-1], len(seen)) == (0, 5, 4)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


_READING = """
import multiprocessing, os, signal
from pathlib import Path
from sunzip.api import Alignment, open_series
from sunzip.train import frames
frames._STRETCH = 1
def told(done, total):
    if done == 1:
        those = multiprocessing.active_children() if {workers} else [multiprocessing.current_process()]
        for process in those:
            os.kill(process.pid, signal.SIGKILL)
if __name__ == "__main__":
    series = open_series("synthetic:frames=500,size=64,seed=5,cadence=1h", align=Alignment(cadence="1h"))
    try:
        frames.cached(series, Path({folder!r}), workers=1, progress=told)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed there so")
@pytest.mark.parametrize("workers", [False, True])
def test_processes_that_read_end_with_the_first_and_it_tells_of_theirs(workers: bool, tmp_path: Path) -> None:
    script = tmp_path / "reading.py"
    script.write_text(_READING.format(workers=workers, folder=str(tmp_path / "kept")))
    # Whoever is left holds the pipe open.
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=60, text=True)
    assert done.returncode == (0 if workers else -signal.SIGKILL)
    assert ("SunzipError" in done.stdout and "was killed" in done.stdout) is workers


def test_processes_that_read_do_without_pytorch() -> None:
    code = "import sys; from sunzip.train import frames; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


_UNGUARDED = """
from pathlib import Path
from sunzip.api import open_series
from sunzip.train import frames
frames._STRETCH = 1
frames.cached(open_series("synthetic:frames=2,size=32"), Path({folder!r}))
"""


def test_a_script_that_runs_as_it_is_imported_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "reading.py"
    script.write_text(_UNGUARDED.format(folder=str(tmp_path / "kept")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=60, text=True)
    # Its processes print what befell them as well.
    assert "InputError" in done.stderr
    assert "below `if __name__" in done.stderr
    assert "was killed" not in done.stderr


def test_the_synthetic_sun_goes_to_other_processes() -> None:
    series = open_series("synthetic:frames=3,size=32,seed=5")
    again = pickle.loads(pickle.dumps(series))
    assert again.fingerprint() == series.fingerprint()
    np.testing.assert_array_equal(again.read(1, 2).data, series.read(1, 2).data)


def test_frames_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(OutputError, match=r"take [0-9.]+ MB as float16, 0\.1 MB are free.*--cache"):
        cached(small(tmp_path), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be kept there"):
        cached(small(tmp_path), tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_disk_that_becomes_full_is_told(tmp_path: Path) -> None:
    def fill(done: int, total: int) -> None:
        pixels = next(tmp_path.glob("*.f16"))
        pixels.unlink()
        pixels.symlink_to("/dev/full")

    series = small(tmp_path)
    with pytest.raises(OutputError, match=r"\.f16: frames cannot be kept there: No space left"):
        cached(series, tmp_path, progress=fill)


def test_frames_are_chosen_by_number_mask_and_evenly() -> None:
    pixels = np.arange(10, dtype=np.float16)[:, None, None, None] * np.ones((1, 12, 2, 2), np.float16)
    all_ = Frames(pixels, np.ones((10, 12), bool), np.datetime64("2014-01-01", "ms") + np.arange(10))
    some = all_.take(np.arange(10) % 2 == 1)[1:]
    assert [e.pixels[0, 0, 0] for e in some] == [3, 5, 7, 9]
    assert len(some.present) == len(some.time) == 4
    assert [e.pixels[0, 0, 0] for e in all_.spread_out(4)] == [0, 3, 6, 9]
    assert all_.spread_out(10) is all_


# --- the whole way ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that several tests learn from."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the frames are."""
    path = tmp_path_factory.mktemp("sun")
    write_sun(path / SUN, 12, 128, 10)
    return path


@pytest.fixture(autouse=True)
def thin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The σ-VAE with few filters, nothing measured for long, and the frames at hand."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sigma_vae, "_LAYERS", tuple((f // 32, k, s) for f, k, s in sigma_vae._LAYERS))
    monkeypatch.setattr(sigma_vae, "_FEATURES", (16, 4, 4))
    monkeypatch.setattr("sunzip.train.measure._ROUNDS", 2)
    monkeypatch.setattr(run_module, "_LOOK_PIXELS", 1)


def go(out: Path, cache: Path, **more: Any) -> TrainReport:
    options = {"model": "sigma-vae-256", "align": DAILY, "steps": 2, "batch": 2, "precision": "fp32"} | more
    report = train(SUN, out, cache=cache, **options)  # type: ignore[arg-type]
    assert report is not None
    return report


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ({"sigma": "scalar"}, ()),
        ({"sigma": "optimal"}, ()),
        ({"sigma": "per-channel"}, (12,)),
        ({"beta": 4.0}, ()),
    ],
)
def test_every_loss_gives_a_model_that_codes(loss: Any, shape: Any, tmp_path: Path, cache: Path) -> None:
    report = go(tmp_path / "mine", cache, **loss)
    model = weights.load(tmp_path / "mine")
    assert (model.name, model.sha256, model.nbytes) == ("mine", report.sha256, report.model_bytes)
    assert model.arrays("network")["log_sigma"].shape == shape
    x = open_series(SUN, align=DAILY).read(0, 1)
    codec = Codec(model)
    y = codec.decode(codec.encode(x.data, x.channels), x.channels, (128, 128))
    assert np.isfinite(y).all()
    notes = model.config["training"]
    assert notes["loss"] == ({"beta": 4.0} if "beta" in loss else {"sigma": loss["sigma"]})
    assert (notes["steps"], notes["precision"], notes["recipe"]["seed"]) == (2, "fp32", 0)
    # The network is the one that was measured: rounded to what the file holds.
    network = codec.family.network
    assert all(torch.equal(p, p.half().float()) for p in network.parameters() if p.ndim > 1)


def test_a_model_may_be_what_training_begins_with(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Enough features for 256 latents.
    layers = zip((8, 16, 32, 64, 64, 64, 64, 64), sigma_vae._LAYERS, strict=True)
    monkeypatch.setattr(sigma_vae, "_LAYERS", tuple((f, k, s) for f, (_, k, s) in layers))
    monkeypatch.setattr(sigma_vae, "_FEATURES", (64, 4, 4))
    report = go(tmp_path / "m", cache, init="pca", steps=0, sigma="per-channel")
    assert (report.steps, report.notes["init"]) == (0, "pca")
    # So few frames have about as few components: hardly another latent tells anything.
    assert report.notes["active_units"] < 20
    assert "It began at the principal components" in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(InputError, match="with init 'pca', not 'random'"):
        go(tmp_path / "m", cache, steps=0, sigma="per-channel", resume=True)


def test_a_vae_whose_last_step_was_wild_is_told_to_have_diverged(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DivergedError, match=r"weights of \S+ are too large for half precision.*--rate"):
        go(tmp_path / "m", cache, steps=1, rate=1e9)


def test_only_the_vae_begins_at_components(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--init belongs to the σ-VAE"):
        train(SUN, tmp_path / "m", model="hyperprior", steps=1, init="pca")


def test_channels_that_are_lacking_are_told_before_frames_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "cached", lambda *_, **__: pytest.fail("frames were read"))
    few = Alignment(cadence="1d", channels=("171A", "Bz"))
    for model, source in (("hyperprior", "synthetic:frames=2,size=256"), ("sigma-vae-256", SUN)):
        with pytest.raises(InputError, match=r"shows nothing of 94A 131A 193A .* By; this model"):
            train(source, tmp_path / "m", model=model, align=few, steps=1)
    assert not (tmp_path / "m").exists()


def test_one_frame_has_no_components(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="one frame to train on has no principal components"):
        go(tmp_path / "m", cache, init="pca", steps=0, augment=False, hold_out=["2014-01-02..2015"])


def test_optimal_sigma_is_kept_for_later(tmp_path: Path, cache: Path) -> None:
    go(tmp_path / "m", cache, sigma="optimal")
    assert weights.load(tmp_path / "m").arrays("network")["log_sigma"] != 0


def test_held_out_frames_are_never_learned_from(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Frames] = []
    whole = run_module.WholeFrames
    monkeypatch.setattr(
        run_module, "WholeFrames", lambda frames, **k: learned.append(frames) or whole(frames, **k)
    )
    spreads: list[Frames] = []
    spread = run_module.spread
    monkeypatch.setattr(run_module, "spread", lambda banks, s: spreads.extend(banks) or spread(banks, s))
    report = go(tmp_path / "m", cache, hold_out=["months=2", "2014-04-15..2014-05-01"])
    time = open_series(SUN, align=DAILY).time
    held = held_out(time, ["months=2", "2014-04-15..2014-05-01"])
    assert 0 < held.sum() < len(time)
    for used in (*learned, *spreads):
        np.testing.assert_array_equal(used.time, time[~held])
    assert report.train_frames == (~held).sum()
    assert report.measured["frames"] == held.sum() == report.notes["data"]["held_out_frames"]
    assert report.measured["first"] == f"{time[held][0]}Z"
    text = (tmp_path / "m" / "README.md").read_text()
    assert "Held out by date: months=2, 2014-04-15..2014-05-01." in text
    assert report.sha256 in text
    assert re.search(r"^\| 171A \|( [-\d.e]+ \|){8} DN/s \|$", text, re.MULTILINE)


def test_frames_that_reading_leaves_out_are_on_neither_side(tmp_path: Path) -> None:
    source = write_sun(tmp_path / "128.h5", 6, 128, 10)
    with h5py.File(source, "r+") as file:
        for row in (1, 5):
            file["cube"][row, 2] = np.nan
    report = train(
        source,
        tmp_path / "m",
        model="sigma-vae-256",
        align=replace(DAILY, missing="drop"),
        steps=1,
        batch=2,
        precision="fp32",
    )
    assert report is not None
    assert (report.train_frames, report.measured["frames"]) == (3, 1)
    assert report.notes["data"]["last"] == report.measured["last"] == "2014-02-10T00:00:00.000Z"


def test_sources_by_the_thousand_and_names_that_are_not_utf8_leave_a_model_that_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = run_module.open_series

    def many(*args: Any, **more: Any) -> Series:
        series = opened(*args, **more)
        series.urls = tuple(f"sun-{n:0200d}-\udcff.h5" for n in range(6000))
        return series

    monkeypatch.setattr(run_module, "open_series", many)
    go(tmp_path / "m", tmp_path / "kept", steps=0, command="sunzip train " + 600_000 * "é" + "\udcff")
    assert weights.load(tmp_path / "m").config["training"]["data"]["more_sources"] == 5900
    text = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "-?.h5`\n- and 5,900 more\n" in text
    with pytest.raises(OutputError, match="not UTF-8"):
        go(tmp_path / "\udcff" / "m", tmp_path / "kept", steps=0)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_repository_around_an_installed_sunzip_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    file = tmp_path / "lib" / "card.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(card, "__file__", str(file))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody's own")
    assert "commit" not in card.versions()
    git("add", ".")
    git("commit", "-q", "-m", "a checkout")
    assert card.versions()["commit"] == git("rev-parse", "--short=12", "HEAD")


def test_a_card_lets_nobody_into_the_source(tmp_path: Path, cache: Path) -> None:
    go(tmp_path / "m", cache, steps=0, command="sunzip train 'https://h/a.h5?sig=0f' --steps 0")
    text = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "sunzip train 'https://h/a.h5?sig=…' --steps 0" in text
    assert weights.load(tmp_path / "m").config["training"]["command"].endswith("sig=…' --steps 0")


def test_fit_all_learns_from_and_measures_on_everything(tmp_path: Path, cache: Path) -> None:
    report = go(tmp_path / "m", cache, fit_all=True)
    assert report.train_frames == report.measured["frames"] == 12
    text = (tmp_path / "m" / "README.md").read_text()
    assert "Held out by date: none." in text
    assert "frames that training saw, too" in text


def test_the_hyperprior_comes_by_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = functools.partial(Hyperprior, wide=8, deep=8, latents=6, hyper=4, hyper_wide=24)
    monkeypatch.setattr(families, "Hyperprior", narrow)
    monkeypatch.setattr(
        run_module, "principal_components", lambda v, m, n: (0.02 * torch.randn(m, 3072), torch.ones(m))
    )
    for name, value in (("_TABLE_BATCHES", 1), ("_QUALITIES", (20, 60)), ("_BANDS", 2)):
        monkeypatch.setattr(run_module, name, value)
    monkeypatch.setattr(families.HyperpriorFamily, "reconstruct", lambda s, n, x, p: x)
    source = write_sun(tmp_path / "192.h5", 4, 192, 10)
    report = train(
        source, tmp_path / "m", model="hyperprior", align=DAILY, steps=2, batch=2, precision="fp32"
    )
    assert report is not None
    assert report.train_frames == 3
    model = weights.load(tmp_path / "m")
    assert model.family == "hyperprior"
    assert model.arrays("quality")["band"].max() == 1
    assert model.config["training"]["model"] == "hyperprior"
    assert set(report.measured["metrics"]["coded"]["paper"]) == set(NAMES)


def test_the_wavelet_model_comes_by_the_same_way_and_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_FILMS", 3), ("_TABLE_FILMS", 2), ("_FILM_QUALITIES", (30, 80))):
        monkeypatch.setattr(run_module, name, value)
    monkeypatch.setattr(wavelet_module, "_FITTING", 3)
    source = write_sun(tmp_path / "32.h5", 10, 32, 1)
    seen = []
    last: dict[str, Any] = {"model": "wavelet", "align": DAILY, "steps": 2, "precision": "fp32"}
    first = train(source, tmp_path / "a", **last, progress=lambda now: seen.append(now))
    assert first is not None
    assert first.notes["init"] == "random"
    assert first.measured["latents_coded"] is False
    model = weights.load(tmp_path / "a")
    assert (model.family, model.config["default_quality"]) == ("wavelet", 35)
    second = train(source, tmp_path / "b", **last, begin_with=str(tmp_path / "a"), progress=seen.append)
    assert second is not None
    assert second.notes["init"] == first.sha256
    # What was held out the second time may have been learned from the first time.
    cards = [(tmp_path / name / "README.md").read_text() for name in ("a", "b")]
    assert ["held-out frames from" in text for text in cards] == [True, False]
    assert "frames that this training held out (the model that it began with may have" in cards[1]
    assert {s.what for s in seen if isinstance(s, Stage)} >= {"coding films", "entropy tables", "measuring"}
    text = (tmp_path / "b" / "README.md").read_text()
    assert f"It began with the model `{first.sha256}`" in text
    assert "bit per sample at quality 35." in text
    # Whether it was worth while.
    assert first.began is None
    assert second.began is not None
    assert second.began["bits_per_sample"] == pytest.approx(first.measured["bits_per_sample"])
    assert f"The model that it began with takes {beside(second.measured, second.began)}." in text
    worse = {
        "bits_per_sample": 2.2,
        "metrics": {"coded": {"paper": {"Bz": {"rmse": 3.0}, "By": {"rmse": None}}}},
    }
    better = {
        "bits_per_sample": 2.0,
        "metrics": {"coded": {"paper": {"Bz": {"rmse": 4.0}, "By": {"rmse": None}}}},
    }
    assert beside(better, worse) == "2.2 bit per sample, 10.0 % more, of errors that are 25.0 % smaller"
    assert "float32" not in text
    codec = Codec(weights.load(tmp_path / "b"))
    frames = np.full((2, 3, 48, 32), 90, np.float32)
    names = ("171A", "304A", "Bz")
    assert np.isfinite(codec.decode(codec.encode(frames, names), names, (48, 32))).all()


@pytest.mark.parametrize(("rows", "what"), [(range(3), "to train on"), ([3], "held out")])
def test_frames_without_any_image_are_nothing_to_learn_from(
    tmp_path: Path, rows: Sequence[int], what: str
) -> None:
    source = write_sun(tmp_path / "32.h5", 4, 32, 1)
    with h5py.File(source, "r+") as file:
        for row in rows:  # the last one is held out
            file["cube"][row] = np.nan
    with pytest.raises(InputError, match=f"no frame {what} has an image with measurements"):
        train(source, tmp_path / "m", model="wavelet", align=DAILY, steps=1, precision="fp32")


@pytest.mark.parametrize("fit_all", [False, True])
def test_frames_without_any_image_are_neither_counted_nor_shown(
    fit_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_sun(tmp_path / "s.h5", 6, 128, 10)
    with h5py.File(source, "r+") as file:
        for row in (1, 4):
            file["cube"][row] = np.nan
    shown: list[Frames] = []
    whole = run_module.WholeFrames
    monkeypatch.setattr(
        run_module, "WholeFrames", lambda frames, **k: shown.append(frames) or whole(frames, **k)
    )
    how = {"fit_all": True} if fit_all else {"hold_out": ["2014-02-10..2014-12-31"]}
    report = train(
        source, tmp_path / "m", model="sigma-vae-256", align=DAILY, steps=1, batch=2, precision="fp32", **how
    )
    assert report is not None
    (learned,) = shown
    assert learned.present.any(1).all()
    assert report.train_frames == len(learned) == report.notes["data"]["train_frames"]
    assert report.train_frames + report.notes["data"]["held_out_frames"] == 4


def test_a_wavelet_training_that_was_broken_off_ends_with_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_TABLE_FILMS", 1)
    monkeypatch.setattr(run_module, "_FILM_QUALITIES", (50,))
    source = write_sun(tmp_path / "32.h5", 6, 32, 1)
    last: dict[str, Any] = {"model": "wavelet", "align": DAILY, "steps": 3, "precision": "fp32"}
    whole = train(source, tmp_path / "a" / "m", **last)

    def interrupt(now: Stage | Advance) -> None:
        if isinstance(now, Advance) and now.step == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(source, tmp_path / "b" / "m", **last, progress=interrupt)
    again = train(source, tmp_path / "b" / "m", **last, resume=True)
    assert whole is not None
    assert again is not None
    files = [weights.load(tmp_path / n / "m").files["model.safetensors"] for n in ("a", "b")]
    assert files[0] == files[1]


def test_the_frame_that_tells_of_the_source_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rows = Series.read, []
    monkeypatch.setattr(Series, "read", lambda s, a, b: rows.append(a) or read(s, a, b))
    go(tmp_path / "m", tmp_path / "kept", steps=0)
    assert rows == [0, *range(12)]


# --- the command line ------------------------------------------------------------------------------------


def call(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(program, ["train", *map(str, args)])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.count("\n") == 1
        assert "internal" not in result.stderr
        return result.stderr
    assert result.stderr == ""
    return result.stdout


GRID = ("--cadence", "1d", "--tolerance", "2h")
VAE = ("--model", "sigma-vae-256", "--batch", 2, "--precision", "fp32", *GRID)


@pytest.mark.parametrize("option", ["epochs", "minutes", "rate", "beta"])
def test_what_is_no_number_is_refused_before_there_is_a_folder(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a number above 0"):
        train(SUN, tmp_path / "m", model="sigma-vae-256", align=DAILY, steps=1, **{option: np.nan})  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", -1), ("steps", 2.5), ("batch", 0), ("batch", 1), ("seed", -1), ("seed", 2**32)],
)
def test_numbers_that_the_command_refuses_are_refused_from_python(
    option: str, value: float, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--{option} must be a whole number"):
        train(SUN, tmp_path / "m", model="wavelet", align=DAILY, **{"steps": 1, option: value})  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_numbers_may_be_numpys(tmp_path: Path, cache: Path) -> None:
    """A training's notes are JSON, which knows none of them."""
    report = train(
        SUN,
        tmp_path / "m",
        model="wavelet",
        align=DAILY,
        steps=np.int64(1),
        batch=np.int16(2),
        seed=np.uint8(3),
        rate=np.float32(1e-3),
        precision="fp32",
        cache=cache,
    )
    assert report is not None
    assert report.steps == 1


def test_the_command_trains_refuses_and_resumes(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "mine"
    end = ("--out", out, "--cache", cache)
    report = json.loads(call(SUN, *VAE, *end, "--steps", 1, "--json"))
    assert report["path"] == str(out)
    assert report["notes"]["command"].startswith("sunzip ")
    assert "--resume to go on" in call(SUN, *VAE, *end, "--steps", 1, code=1)
    assert "was begun with" in call(SUN, *VAE, *end, "--steps", 2, "--resume", code=1)
    text = call(SUN, *VAE, *end, "--steps", 1, "--resume")
    assert "1 step" in text
    assert "171A" in text
    # The end may be further away than there are numbers.
    assert "was begun with" in call(SUN, *VAE, *end, "--epochs", 1e308, "--resume", code=1)
    again = json.loads(call(SUN, *VAE, *end, "--steps", 1, "--force", "--json", "--seed", 1))
    assert again["sha256"] != report["sha256"]
    assert [p.name for p in (out / "training").glob("*.f16")] == []


def test_a_training_that_begins_anew_keeps_no_frames_of_others(tmp_path: Path, cache: Path) -> None:
    kept = tmp_path / "m" / "training"
    few = replace(DAILY, stop="2014-03-01")
    go(tmp_path / "m", kept, align=few)
    names = {path.name for path in kept.glob("frames-*")}
    (kept / "frames-of-mine.txt").touch()
    go(tmp_path / "m", kept, align=few, force=True)
    assert names < {path.name for path in kept.glob("frames-*")}
    go(tmp_path / "m", cache, force=True)
    assert [path.name for path in kept.glob("frames-*")] == ["frames-of-mine.txt"]


@pytest.mark.parametrize("change", ["frames", "options", "damage"])
def test_what_cannot_be_resumed_is_told_before_frames_are_read(
    change: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    go(out, cache)
    options: dict[str, Any] = {"resume": True}
    error, message = InputError, "was begun with other frames than the sources give now; give those"
    if change == "frames":
        # As where a store has grown since.
        options["align"] = replace(DAILY, stop="2014-03-01")
    elif change == "options":
        options |= {"augment": False, "align": replace(DAILY, stop="2014-03-01")}
        message = "was begun with augment True, not False; resume with the same"
    else:
        (out / "training" / "checkpoint.safetensors").write_bytes(b"half")
        error, message = DamagedError, "is no checkpoint of sunzip train; begin anew with --force"
    monkeypatch.setattr(run_module, "cached", lambda *_, **__: pytest.fail("frames were read"))
    with pytest.raises(error, match=f"checkpoint.safetensors: {message}"):
        go(out, cache, **options)


@pytest.mark.parametrize(
    ("out", "steps", "longer"), [("m", 1, 0), ("m", 0, 1.5), ("on another machine", 0, 0)]
)
def test_processes_that_see_another_checkpoint_than_the_first_do_not_resume(
    out: str, steps: int, longer: float, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "m", cache)
    state = read_state(tmp_path / "m" / "training" / CHECKPOINT)
    first = [state["step"] + steps, state["elapsed"] + longer]

    @contextmanager
    def found(_: str) -> Iterator[Place]:
        yield Place(torch.device("cpu"), rank=1, world=2)

    monkeypatch.setattr(run_module.Place, "found", found)
    monkeypatch.setattr(run_module.Place, "agree", lambda *_: first)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: is not the checkpoint that the first"):
        train(SUN, tmp_path / out, model="sigma-vae-256", align=DAILY, steps=2, batch=2, resume=True)


@pytest.mark.parametrize("name", ["m" * 101, "m\nm", "m\udcff"])
def test_a_folder_that_no_model_can_be_called_after_is_refused_at_once(name: str, tmp_path: Path) -> None:
    assert "no name of up to 100" in call(SUN, *VAE, "--steps", 1, "--out", tmp_path / name, code=1)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_one_folder(tmp_path: Path, cache: Path) -> None:
    go(tmp_path / "m", cache)
    kept = tmp_path / "m" / "training"
    before = {path: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    lock = locked(kept)
    for how in ({"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match=r"m/training: another run writes it; wait for that"):
            go(tmp_path / "m", cache, **how)
    assert {path: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before
    if lock is not None:
        os.close(lock)
    go(tmp_path / "m", cache, resume=True)
    go(tmp_path / "m", cache, force=True)


def test_folders_that_are_not_of_a_training_are_left_alone(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    end = ("--out", tmp_path / "mine", "--cache", cache, "--steps", 1)
    for how in ("--force", "--resume"):
        assert "no folder of an earlier training" in call(SUN, *VAE, *end, how, code=1)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    assert "cannot be made" in call(SUN, *VAE, "--out", tmp_path / "mine/letter.txt/a", "--steps", 1, code=1)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--steps", 1), 2, "--model"),
        (("--model", "sigma-vae-7", "--steps", 1), 1, "sigma-vae-256"),
        (("--model", "sigma-vae-256"), 1, "--time-limit"),
        (("--model", "sigma-vae-256", "--steps", -1), 2, "--steps"),
        (("--model", "sigma-vae-256", "--batch", 1, "--steps", 1), 2, "--batch"),
        (("--model", "sigma-vae-256", "--steps", 1, "--sigma", "fixed"), 2, "--sigma"),
        (("--model", "sigma-vae-256", "--steps", 1, "--sigma", "scalar", "--beta", 1), 1, "one of them"),
        (("--model", "hyperprior", "--steps", 1, "--beta", 1), 1, "σ-VAE"),
        (("--model", "hyperprior", "--steps", 1), 1, "192×192"),
        (("--model", "hyperprior", "--steps", 1, "--from", "wavelet-12"), 1, "--from belongs to wavelet"),
        (("--model", "wavelet", "--steps", 1, "--init", "pca"), 1, "--init belongs to the σ-VAE"),
        (("--model", "wavelet", "--steps", 1, "--sigma", "scalar"), 1, "wavelet has neither"),
        (("--model", "wavelet", "--steps", 1, "--from", "nothing"), 4, "nothing"),
        (("--model", "wavelet", "--steps", 1, "--from", "hyperprior-12"), 1, "not wavelet"),
        (
            ("--model", "wavelet", "--steps", 1, "--size", 16),
            1,
            "from 32 on, not from 16×16; average larger ones",
        ),
        (("--model", "sigma-vae-256", "--steps", 1, "--fit-all", "--hold-out", "months=1"), 1, "one of them"),
        (("--model", "sigma-vae-256", "--steps", 1, "--hold-out", "soon"), 1, "not understood"),
        (("--model", "sigma-vae-256", "--steps", 1, "--size", 64), 1, "average larger ones with --size 128"),
        (("--model", "sigma-vae-256", "--steps", 1, "--channels", "171A"), 1, "nothing of 94A"),
        (("--model", "sigma-vae-256", "--steps", 1, "--device", "abacus"), 1, "abacus"),
        (("--model", "sigma-vae-256", "--steps", 1, "--stop", "2014-01-02"), 1, "--fit-all"),
    ],
)
def test_errors_are_one_line(
    args: tuple[object, ...], code: int, message: str, tmp_path: Path, cache: Path
) -> None:
    assert message in call(SUN, *GRID, "--out", tmp_path / "m", "--cache", cache, *args, code=code)
    assert not (tmp_path / "m" / weights.CONFIG).exists()


def test_divergence_is_one_line_with_an_exit_code(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = families.SigmaVaeFamily.losses
    monkeypatch.setattr(
        families.SigmaVaeFamily, "losses", lambda s, b, w: tuple(x * np.nan for x in losses(s, b, w))
    )
    end = ("--out", tmp_path / "m", "--cache", cache, "--steps", 2)
    assert "diverged at step 0" in call(SUN, *VAE, *end, code=1)


def test_the_place_of_an_interrupted_training_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "fit", interrupt)
    end = ("--out", tmp_path / "m", "--cache", cache, "--steps", 2)
    assert "--resume continues it" in call(SUN, *VAE, *end, code=130)
