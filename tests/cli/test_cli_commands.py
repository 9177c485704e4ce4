"""Each command, done right: what it writes, prints and reports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from PIL import Image

import sunzip as sunzip_package
from sunzip import weights
from sunzip.archive import summary
from sunzip.channels import NAMES
from sunzip.cli import program
from sunzip.sources import open_source
from sunzip.sources.series import join


def as_json(result: Any) -> Any:
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_synth_writes_a_store_that_sources_read(sunzip, tmp_path):
    out = tmp_path / "a.zarr"
    found = as_json(
        sunzip("synth", out, "--frames", 3, "--size", 16, "--cadence", "1min", "--seed", 3, "--json")
    )
    assert found["frames"] == 3
    assert found["images"] == 36
    assert found["shape"] == [16, 16]
    assert [found["first"], found["last"]] == ["2012-03-01T00:00:00.000Z", "2012-03-01T00:02:00.000Z"]
    series = join([open_source(str(out))], cadence="1min")
    assert len(series) == 3
    assert series.channels == NAMES
    assert zarr.open_group(out, mode="r")["2012/171A"].shape == (3, 16, 16)


def test_synth_gives_the_synthetic_source(sunzip, store):
    ours, direct = (join([open_source(url)]) for url in (str(store), "synthetic:frames=6,size=32"))
    a, b = ours.read(0, 6), direct.read(0, 6)
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(a.time, b.time)


def test_synth_replaces_only_when_forced(sunzip, tmp_path):
    out = tmp_path / "a.zarr"
    sunzip("synth", out, "--frames", 1, "--size", 16)
    assert "exists" in sunzip("synth", out, "--frames", 2, "--size", 16, code=1).stderr
    sunzip("synth", out, "--frames", 2, "--size", 16, "--force")
    assert len(join([open_source(str(out))])) == 2
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_compress_reports_what_the_archive_holds(sunzip, model, store, tmp_path):
    out = tmp_path / "a.lat"
    result = sunzip("compress", store, out, "--model", model, "--json")
    found = as_json(result)
    assert found["frames"] == 6
    assert found["images"] == 72
    assert found["channels"] == list(NAMES)
    assert found["archive_bytes"] == out.stat().st_size
    assert found["raw_bytes"] == 72 * 32 * 32 * 4
    assert found["latent_bytes"] == 6 * 8 * 2 * 2 * 4
    assert found["model"] == "tiny"
    assert not found["dry_run"]
    alone, whole = found["costs"]["without_model"], found["costs"]["with_model"]
    assert alone["ratio_float32"] == pytest.approx(found["raw_bytes"] / out.stat().st_size)
    assert whole["bytes"] == out.stat().st_size + found["model_bytes"]
    assert os.listdir(tmp_path) == ["a.lat"]


def test_compress_prints_a_report_without_what_did_not_happen(sunzip, model, store, tmp_path):
    text = sunzip("compress", store, tmp_path / "a.lat", "--model", model).stdout
    assert "6 frames, 72 images of 32×32" in text
    assert "ratio to float32" in text
    assert "found on the way" not in text
    text = sunzip("compress", store, tmp_path / "b.lat", "--model", model, "--every", "24min").stdout
    assert re.search(r"found on the way\n +36 +images outside --start, --stop and --every\n", text)


def test_reports_say_where_errors_are_those_of_sums_and_where_not(sunzip, model, store, archive, tmp_path):
    sunzip("decompress", archive, tmp_path / "v1", "--layout", "sdoml-v1")
    for source, sums in ((tmp_path / "v1", True), (store, False)):
        for how in (["--dry-run"], []):
            command = "compress", source, tmp_path / f"{sums}.lat", "--model", model, "--force", *how
            assert ("; AIA pixels are 2×2 sums" in sunzip(*command).stdout) is sums
            assert as_json(sunzip(*command, "--json"))["scale"] == ("sum" if sums else "mean")
        # In the same unit, and a quarter of what compress has just told.
        command = "evaluate", source, tmp_path / f"{sums}.lat"
        assert (
            "AIA pixels, which are 2×2 sums there, are compared as means" in sunzip(*command).stdout
        ) is sums
        assert as_json(sunzip(*command, "--json"))["scale"] == ("sum" if sums else "mean")


def test_of_archives_without_aia_nothing_is_said_of_its_pixels(sunzip, model, archive, tmp_path):
    v1, out = tmp_path / "v1", tmp_path / "a.lat"
    sunzip("decompress", archive, v1, "--layout", "sdoml-v1", "--channels", "Bx,Bz")
    for command in (
        ["compress", v1, out, "--model", model, "--dry-run"],
        ["compress", v1, out, "--model", model],
        ["info", out],
        ["evaluate", v1, out],
    ):
        assert "AIA" not in sunzip(*command).stdout.replace(str(v1), "")
    with sunzip_package.open(out) as sun:
        assert "2×2" not in sun.archive._repr_html_()
    assert "2×2" not in join([open_source(str(v1))])._repr_html_()


def test_compress_selects(sunzip, model, store, tmp_path):
    args = [
        "--start",
        "2012-03-01T00:12",
        "--stop",
        "2012-03-01T00:48",
        "--channels",
        "bz, 0171",
        "--size",
        16,
    ]
    found = as_json(sunzip("compress", store, tmp_path / "a.lat", "--model", model, *args, "--json"))
    assert found["channels"] == ["171A", "Bz"]
    assert found["frames"] == 3
    assert found["shape"] == [16, 16]
    assert found["first"].startswith("2012-03-01T00:12")


def test_compress_joins_sources_and_codes_blocks(sunzip, model, store, tmp_path):
    out = tmp_path / "a.lat"
    later = "synthetic:frames=2,size=32,start=2012-03-02"
    sunzip("compress", store, later, out, "--model", model, "--block", 4, "--quality", 30)
    found = as_json(sunzip("info", out, "--json"))
    assert found["frames"] == 8
    assert found["frames_per_block"] == 4
    assert found["coding"]["quality"] == 30
    assert found["source"]["urls"] == [str(store), later]
    assert f"against {store}, {later}: " in sunzip("evaluate", store, later, out, "--model", model).stdout


def test_dry_run_writes_nothing_and_says_that_it_estimates(sunzip, model, store, archive, tmp_path):
    found = as_json(sunzip("compress", store, tmp_path / "a.lat", "--model", model, "--dry-run", "--json"))
    assert found["dry_run"]
    assert os.listdir(tmp_path) == []
    done = as_json(sunzip("info", archive, "--json"))
    assert found["coded_bytes"] == done["parts"]["blocks"]  # six frames: the sample is the whole
    text = sunzip("compress", store, tmp_path / "a.lat", "--model", model, "--dry-run").stdout
    assert "would hold about" in text
    # An existing archive is in nobody's way here.
    before = archive.read_bytes()
    sunzip("compress", store, archive, "--model", model, "--dry-run")
    assert archive.read_bytes() == before


def test_force_replaces_an_archive(sunzip, model, store, tmp_path):
    out = tmp_path / "a.lat"
    out.write_bytes(b"")  # as mktemp leaves it
    sunzip("compress", store, out, "--model", model, "--channels", "171A", "--force")
    sunzip("compress", store, out, "--model", model, "--channels", "193A", "--force")
    assert as_json(sunzip("info", out, "--json"))["channels"] == ["193A"]
    assert os.listdir(tmp_path) == ["a.lat"]


@pytest.mark.parametrize(
    ("name", "option", "layout"),
    [
        ("a.h5", None, "hdf5"),
        ("a.zarr", None, "sdoml-v2"),
        ("plain", None, "sdoml-v2"),
        ("a", "sdoml-v1", "sdoml-v1"),
        ("b", "fits", "fits"),
    ],
)
def test_decompress_writes_each_layout(sunzip, archive, tmp_path, name, option, layout):
    out = tmp_path / name
    args = ["--layout", option] if option else []
    found = as_json(sunzip("decompress", archive, out, *args, "--stop", "2012-03-01T00:24", "--json"))
    assert found["layout"] == layout
    assert found["frames"] == 2
    assert os.listdir(tmp_path) == [name]
    cube = join([open_source(str(out))]).read(0, 2)
    with sunzip_package.open(archive) as sun:
        expected = sun.cube(0, 2).to_scale(cube.scale)
    np.testing.assert_array_equal(cube.data, expected.data)
    assert cube.channels == expected.channels


def test_decompress_selects_channels_and_replaces_when_forced(sunzip, archive, tmp_path):
    out = tmp_path / "a.h5"
    sunzip("decompress", archive, out)
    text = sunzip("decompress", archive, out, "--channels", "Bz", "--force").stdout
    assert "6 frames, 6 images of 32×32: Bz" in text
    with h5py.File(out) as file:
        assert file["cube"].shape == (6, 1, 32, 32)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_info_counts_the_model_and_does_not(sunzip, archive, model):
    found = as_json(sunzip("info", archive, "--json"))
    size = archive.stat().st_size
    model_bytes = sum(f.stat().st_size for f in model.iterdir())
    assert found["model"] == found["model"] | {"name": "tiny", "bytes": model_bytes, "embedded": True}
    assert sum(found["parts"].values()) == size
    alone, whole = found["costs"]["without_model"], found["costs"]["with_model"]
    assert alone["bytes"] == size - model_bytes
    assert whole["bytes"] == size
    samples = 72 * 32 * 32
    assert whole["bits_per_sample"] == pytest.approx(8 * size / samples)
    assert whole["ratio_float32"] == pytest.approx(4 * samples / size)
    assert whole["bytes_per_frame"] == pytest.approx(size / 6)
    assert whole["ratio_source"] == pytest.approx(found["source"]["stored_bytes"] / size)
    assert found["costs"]["latent_bytes"] == 6 * 8 * 2 * 2 * 4
    assert found["costs"]["latent_ratio"] == found["costs"]["latent_bytes"] / found["parts"]["blocks"]


def test_info_counts_only_what_can_be_true(sunzip, archive, monkeypatch):
    told = summary(archive)
    told["source"]["stored_bytes"] = told["coding"]["latents_per_frame"] = 10**400
    monkeypatch.setattr("sunzip.archive.summary", lambda *_, **__: told)
    costs = as_json(sunzip("info", archive, "--json"))["costs"]
    assert costs["source_bytes"] is costs["latent_bytes"] is None
    assert costs["without_model"]["bytes"] > 0
    assert "ratio to float32" in sunzip("info", archive).stdout


def test_info_says_whether_pixels_are_the_same_bits_everywhere(sunzip, model, store, tmp_path):
    for name, says in (
        (model, "but for rounding"),
        ("wavelet-12", "the same bits on every machine"),
    ):
        out = tmp_path / f"{says[:3]}.lat"
        sunzip("compress", store, out, "--model", name, "--every", "1h")
        assert says in sunzip("info", out).stdout
    # Archives from before this was told say nothing.
    assert re.search(
        r"pixels +–", sunzip("info", Path(__file__).parents[1] / "golden" / "archive-v1.lat").stdout
    )


def test_info_is_readable(sunzip, archive, store):
    text = sunzip("info", archive).stdout
    for words in (
        "tiny",
        "embedded",
        f"{store} (sdoml-v2)",
        "2012-03-01 00:00 to 2012-03-01 01:00 UTC",
        "6 of 32×32",
        "without model  with model",
        "bits per sample",
        "latents: 768 B as float32",
        "keywords",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 120 + len(str(store))


def test_verify_says_that_a_whole_archive_is_whole(sunzip, archive):
    assert "is whole" in sunzip("verify", archive).stdout
    found = as_json(sunzip("verify", archive, "--json"))
    assert found["ok"]
    assert found["problems"] == []
    assert found["frames"] == found["blocks"] == 6
    assert found["bytes"] == archive.stat().st_size


def test_evaluate_agrees_with_what_was_measured_at_encoding(sunzip, model, store, archive, tmp_path):
    found = as_json(sunzip("evaluate", store, archive, "--json"))
    assert found["images"] == 72
    assert found["absent"] == 0
    assert set(found["metrics"]) == {"paper", "strict"}
    report = as_json(sunzip("compress", store, tmp_path / "a.lat", "--model", model, "--json"))
    for name in NAMES:
        assert found["metrics"]["paper"][name]["rmse"] == pytest.approx(
            report["errors"][name]["rmse"], rel=1e-4
        )
    # One name, one meaning: whether the model is in the archive or not.
    embedded = tmp_path / "b.lat"
    sunzip("compress", store, embedded, "--model", model, "--embed-model")
    for path in (archive, embedded):
        costs = as_json(sunzip("info", path, "--json"))["costs"]["without_model"]
        found = as_json(sunzip("evaluate", store, path, "--json"))
        assert found["bits_per_sample"] == pytest.approx(costs["bits_per_sample"])
        assert found["ratio"] == pytest.approx(costs["ratio_float32"])
    text = sunzip("evaluate", store, archive).stdout
    assert text.count("171A") == 2
    assert "as the paper counts" in text


def test_images_that_have_no_correlation_are_told_below_its_mean(sunzip, model, tmp_path):
    images = np.random.default_rng(0).gamma(2, 100, (3, 16, 16)).astype(np.float32)
    images[1:] = 7.5
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = images
        file["cube"].attrs["channel"] = "171A"
        file["time"] = 1_400_000_400_000 + 720_000 * np.arange(3)
        file["time"].attrs["units"] = "milliseconds since 1970-01-01"
    source, out = tmp_path / "a.h5", tmp_path / "a.lat"
    told = "r without those that are, or decode to, one number: 2 images of 171A\n"
    assert told in sunzip("compress", source, out, "--model", model).stdout
    assert sunzip("evaluate", source, out).stdout.count(told) == 2
    report = as_json(sunzip("compress", source, out, "--model", model, "--force", "--json"))
    assert report["errors"]["171A"]["constant"] == 2
    images[1:] += images[:1]
    with h5py.File(source, "r+") as file:
        file["cube"][:] = images
    assert "one number" not in sunzip("compress", source, out, "--model", model, "--force").stdout


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_show_tells_that_it_looks_through_a_source(archive, store, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr("sunzip.cli.output.shows_progress", lambda quiet: not quiet)
    for what, more in ((store, []), (archive, ["--source", str(store)])):
        words = ["show", str(what), str(tmp_path / "a.png"), "--frame", "9", *more, *quiet]
        result = CliRunner().invoke(program, words)
        assert "has no frame 9" in result.stderr
        assert (f"opening {store}" in result.stderr) is not bool(quiet)


def test_show_draws_a_frame_of_an_archive_and_of_a_source(sunzip, archive, store, tmp_path, monkeypatch):
    drawn = []

    def note(rows, channels, title, target, *, times):
        drawn.append((list(rows), channels, title, times))
        Image.new("L", (4, 4)).save(target, format="png")

    monkeypatch.setattr("sunzip.quicklook.render", note)
    out = tmp_path / "a.png"
    sunzip("show", archive, out)
    sunzip("show", archive, out, "--time", "2012-03-01T00:25", "--force")
    sunzip("show", archive, out, "--frame", -1, "--source", store, "--force")
    sunzip("show", store, out, "--frame", 1, "--force")
    some = ["--channels", "Bz,171A", "--force"]
    sunzip("show", archive, out, "--source", store, *some)
    sunzip("show", store, out, *some)
    assert [labels for labels, *_ in drawn] == [
        ["decoded"],
        ["decoded"],
        ["original", "decoded"],
        ["original"],
        ["original", "decoded"],
        ["original"],
    ]
    minutes = [str(times[2])[11:16] for *_, times in drawn[:4]]  # 171 Å is taken a third of a second later
    assert minutes == ["00:00", "00:24", "01:00", "00:12"]
    assert [channels for _, channels, *_ in drawn[4:]] == [("171A", "Bz"), ("171A", "Bz")]
    assert drawn[0][1] == NAMES
    assert drawn[0][2].startswith("sun.lat")
    assert os.listdir(tmp_path) == ["a.png"]


def test_show_writes_a_picture(sunzip, archive, tmp_path):
    pytest.importorskip("sunpy", reason="pictures need the extra `plot`")
    out = tmp_path / "a.png"
    result = sunzip("show", archive, out)
    assert result.stdout == ""
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert out.stat().st_size > 10_000


def test_models_list_tells_which_is_the_default_and_which_is_damaged(sunzip, model, tmp_path, monkeypatch):
    root = tmp_path / "models"
    shutil.copytree(model, root / "tiny")
    shutil.copytree(model, root / "broken")
    (root / "broken" / weights.CONFIG).write_text("{}")
    monkeypatch.setattr(weights, "_ROOTS", (root,))
    monkeypatch.setattr(weights, "DEFAULT", "tiny")
    broken, tiny = as_json(sunzip("models", "list", "--json"))["models"]
    assert tiny["default"]
    assert tiny["family"] == "hyperprior"
    assert tiny["sha256"] == weights.read_folder(model).sha256
    assert tiny["parameters"] > 1000
    assert tiny["bytes"] == sum(f.stat().st_size for f in model.iterdir())
    assert broken["name"] == "broken"
    assert "fetch the model again" in broken["problem"]
    whole = (model / weights.TENSORS).read_bytes()
    (root / "broken" / weights.CONFIG).write_bytes((model / weights.CONFIG).read_bytes())
    (root / "broken" / weights.TENSORS).write_bytes(whole[:-100])
    assert "fetch the model again" in as_json(sunzip("models", "list", "--json"))["models"][0]["problem"]
    text = sunzip("models", "list").stdout
    assert re.search(rf"tiny +hyperprior .* {tiny['sha256'][:12]} +default\n", text)


def test_models_are_added_listed_used_and_removed(sunzip, model, store, tmp_path, monkeypatch):
    home = tmp_path / "models"
    monkeypatch.setenv("SUNZIP_MODELS", str(home))
    sha256 = weights.read_folder(model).sha256
    args = ["models", "add", model, "--name", "mine"]
    told = sunzip(*args).stdout.splitlines()
    assert told[:3] == ["mine was added", "  family  hyperprior", f"  sha256  {sha256}"]
    assert told[4:] == [f"  folder  {home}/{sha256}"]
    again = as_json(sunzip(*args, "--sha256", sha256[:12], "--json"))
    assert (again["name"], again["new"], again["path"]) == ("mine", False, f"{home}/{sha256}")
    assert sunzip(*args).stdout.startswith("mine is on this machine already\n")
    text = sunzip("models", "list").stdout
    assert re.search(rf"\nmine +hyperprior .* {sha256[:12]} +added\nadded: in {home}\n$", text)
    *ours, mine = as_json(sunzip("models", "list", "--json"))["models"]
    assert not any(row["added"] for row in ours)
    assert (mine["name"], mine["added"], mine["path"]) == ("mine", True, f"{home}/{sha256}")

    sunzip("compress", store, tmp_path / "a.lat", "--model", "mine")
    assert as_json(sunzip("info", tmp_path / "a.lat", "--json"))["model"]["sha256"] == sha256
    monkeypatch.setattr(weights, "_REGISTERED", {})
    sunzip("evaluate", store, tmp_path / "a.lat")
    removed = as_json(sunzip("models", "remove", sha256[:12], "--json"))
    assert removed == {"removed": f"{home}/{sha256}"}
    monkeypatch.setattr(weights, "_REGISTERED", {})
    assert "sunzip models add" in sunzip("evaluate", store, tmp_path / "a.lat", code=4).stderr
    assert "no model 'mine' on this machine" in sunzip("models", "remove", "mine", code=4).stderr


def test_a_name_is_taken_from_another_model_only_by_force(sunzip, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SUNZIP_MODELS", str(tmp_path / "models"))
    twin = tmp_path / "twin"
    shutil.copytree(model, twin)
    (twin / weights.CONFIG).write_bytes((twin / weights.CONFIG).read_bytes() + b" ")
    old, new = (weights.read_folder(folder).sha256 for folder in (model, twin))
    sunzip("models", "add", model)
    assert f"another model that was added ({old[:12]}…)" in sunzip("models", "add", twin, code=1).stderr
    told = sunzip("models", "add", twin, "--force").stdout
    assert told.endswith(f"  what was called so before is found by its sha256, {old[:12]}\n")
    assert re.search(
        rf"\ntiny .* {new[:12]} +added\n– .* {old[:12]} +added\n", sunzip("models", "list").stdout
    )
    assert sunzip("models", "remove", "tiny").stdout == f"tiny was removed from {tmp_path / 'models'}\n"
    assert [row["sha256"] for row in as_json(sunzip("models", "list", "--json"))["models"][2:]] == [old]


def test_no_model_is_said_in_words(sunzip, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_ROOTS", (tmp_path,))
    assert sunzip("models", "list").stdout == "no model on this machine\n"
    assert as_json(sunzip("models", "list", "--json")) == {"models": []}


def test_version_names_formats_and_libraries(sunzip):
    text = sunzip("--version").stdout
    for words in (f"sunzip {sunzip_package.__version__}", "archive format", "numpy", "torch", "zarr"):
        assert words in text


@pytest.mark.parametrize(
    "args",
    [
        [],
        *([c] for c in ("compress", "append", "decompress", "info", "verify", "repair", "evaluate", "diff")),
        *([c] for c in ("show", "models", "synth", "bench", "study")),
    ],
)
def test_help_fits_a_terminal(sunzip, args):
    text = sunzip(*args, "--help").stdout
    assert text.startswith("Usage: sunzip")
    assert max(map(len, text.splitlines())) <= 100


def test_study_rate_prints_a_row_for_each_quality(sunzip, model, store):
    args = ("study", "rate", store, "--model", model, "--channels", "171A,Bz", "--qualities", "60,10")
    text = sunzip(*args).stdout
    assert "6 frames, 12 images of 32×32: 171A Bz" in text
    assert re.findall(r"^  (\d+) +\d", text, re.MULTILINE) == ["10", "60"]
    assert max(map(len, text.splitlines())) <= 100
    found = as_json(sunzip(*args, "--json"))
    assert [row["quality"] for row in found["rows"]] == [10, 60]
    assert {*found["rows"][0]["metrics"]["paper"]} == {"171A", "Bz"}


@pytest.mark.parametrize("wrong", ["", "10,", "x", "101", "-1", "1.5"])
def test_study_rate_takes_whole_numbers(sunzip, store, wrong):
    error = sunzip("study", "rate", store, "--qualities", wrong, code=2).stderr
    assert "is no list of numbers from 0 to 100" in error


def test_bench_prints_a_row_for_each_number_of_cores_and_fails_on_wrong_pixels(sunzip, monkeypatch):
    from sunzip.studies import bench

    row = bench.BenchRow(1, 24, 14.5, 18.4, 110.0, 140.0, 19.2, 2.53, 411_000_000)
    report = bench.BenchReport(
        *("a processor", "a system", "wavelet-12", "0" * 64, 35, 24, NAMES, (512, 512)),
        load=6.5,
        exact=True,
        seconds=30.0,
        rows=(row, bench.BenchRow(2, 48, *[1.0] * 6, None)),
    )
    monkeypatch.setattr(bench, "bench", lambda **_: report)
    text = sunzip("bench").stdout
    assert "a processor, 2 cores" in text
    assert re.search(r"1 +14\.5 +18\.4 +19\.2 h +110 +140 +2\.53 h +411 MB\n", text)
    assert "exact" in text
    assert "6.50 other programs" in text
    assert as_json(sunzip("bench", "--json"))["rows"][0]["cores"] == 1
    monkeypatch.setattr(bench, "bench", lambda **_: dataclasses.replace(report, exact=False))
    failed = sunzip("bench", code=3)
    assert "wrong" in failed.stdout
    assert "cannot be trusted" in failed.stderr


def test_help_names_every_command(sunzip):
    text = sunzip("--help").stdout
    for name in program.commands:
        assert len(re.findall(rf"^  {name} +\S", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("group", [program, program.commands["models"], program.commands["study"]])
def test_commands_say_what_they_do_without_docstrings_too(group):
    """As under `python -OO`."""
    assert all(command.short_help for command in group.commands.values())
