"""The benchmarks of the paper: its numbers agree among themselves, ours with them, and PCA is PCA."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sunzip.channels import NAMES
from sunzip.nn.sigma_vae import BOTTLENECKS
from sunzip.normalize import Stabiliser
from sunzip.train.frames import Frames
from sunzip.weights import Model

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make `benchmarks` importable, and its results go elsewhere."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path / "results")


@pytest.fixture
def sizes(from_the_root: None) -> ModuleType:
    from benchmarks import paper_sizes

    return paper_sizes


@pytest.fixture
def paper(from_the_root: None) -> Any:
    from benchmarks.common import PAPER

    return json.loads(PAPER.read_text(encoding="utf-8"))


def test_the_papers_numbers_agree_among_themselves(paper: Any) -> None:
    assert [int(b) for b in paper["table_1"]] == [int(b) for b in paper["metrics"]] == list(BOTTLENECKS)
    for b, row in paper["table_1"].items():
        assert row["latents_mib"] == round(paper["frames"] * int(b) * 4 / 2**20, 1)
        assert row["total_mib"] == pytest.approx(row["weights_mib"] + row["latents_mib"], abs=0.11)
        assert row["percent"] == round(100 * row["total_mib"] / row["data_mib"], 2)
    for table in paper["metrics"].values():
        assert tuple(table) == NAMES
        for m in table.values():
            assert 0 < m["ppe10"] <= m["ppe50"] < 1
            assert 0 < m["r"] < 1
    # 2×2 sums of 171 Å err by hundreds of DN/s, and larger bottlenecks by less.
    assert [t["171A"]["rmse"] for t in paper["metrics"].values()] == [209.46, 203.55, 203.03, 201.71]


@pytest.mark.parametrize("bottleneck", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_table_1_comes_out_as_printed(sizes: ModuleType, paper: Any, bottleneck: int, tmp_path: Path) -> None:
    found = sizes.computed(bottleneck, paper["frames"], tmp_path)
    printed = paper["table_1"][str(bottleneck)]
    assert {k: round(v, 2 if k == "percent" else 1) for k, v in found.items()} == printed


def frames(count: int, rank: int, side: int = 16) -> Frames:
    """Frames that, in units of noise, are mixtures of a few patterns about a mean."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(rank, 12, side, side))
    stable = 40 + np.einsum("nk,kcyx->ncyx", rng.normal(size=(count, rank)), patterns)
    pixels = Stabiliser.for_channels(NAMES).inverse(stable.astype(np.float32)).astype(np.float16)
    time = np.datetime64("2014-01-01", "ms") + np.arange(count) * np.timedelta64(1, "h")
    return Frames(pixels, np.ones((count, 12), bool), time)


class TestComponents:
    def test_as_many_as_there_are_patterns_give_all_back(self) -> None:
        from benchmarks import pca

        some = frames(40, 5)
        found = pca.fit(some, 30)
        np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(len(found.axes)), atol=1e-4)
        x = some[7].pixels.astype(np.float32)
        errors = [np.sqrt(np.mean((decoded - x) ** 2)) / x.std() for decoded in found.coded(x, (1, 3, 5, 30))]
        assert 10 * errors[2] < errors[1] < errors[0]
        assert errors[3] <= errors[2] * 1.01

    def test_there_are_fewer_than_frames(self) -> None:
        from benchmarks import pca

        assert len(pca.fit(frames(10, 20), 256).axes) == 9
        assert len(pca.fit(frames(10, 20), 4).axes) == 4

    def test_frames_that_lack_a_channel_are_left_out(self) -> None:
        from benchmarks import pca

        some = frames(12, 20)
        present = some.present.copy()
        present[3, 5] = False
        pixels = np.stack([e.pixels for e in some])
        pixels[3, 5] = np.nan
        found = pca.fit(Frames(pixels, present, some.time), 256)
        assert len(found.axes) == 10
        assert np.isfinite(found.axes).all()

    def test_a_missing_channel_counts_as_its_mean(self) -> None:
        from benchmarks import pca

        some = frames(40, 5)
        found = pca.fit(some, 5)
        x = some[7].pixels.astype(np.float32)
        (mean,) = found.coded(x, (0,))
        lacking, filled = x.copy(), x.copy()
        lacking[3], filled[3] = np.nan, mean[3]
        (one,), (other,) = found.coded(lacking, (5,)), found.coded(filled, (5,))
        np.testing.assert_allclose(one, other, rtol=1e-4)


SUN = "synthetic:frames=30,size=128,cadence=1d"


def test_a_model_that_is_not_the_papers_is_refused(sigma_model: Model, tmp_path: Path) -> None:
    from benchmarks import paper_metrics
    from sunzip.weights import write

    write(sigma_model, tmp_path / "model")
    result = CliRunner().invoke(paper_metrics.main, ["nowhere.zarr", "--models", str(tmp_path / "model")])
    # Before anything is read.
    assert "bottleneck 8 is none of the paper's" in result.output


def test_a_channel_has_collapsed_where_its_mean_does_as_well() -> None:
    from benchmarks.paper_metrics import collapsed

    still = {name: {"r": r, "rmse": 2.0} for name, r in zip(NAMES, (0.5, 0.5, 0.5, None), strict=False)}
    shown = zip(NAMES, ((0.6, 1.0), (0.5, 1.0), (0.9, 2.0), (0.1, 1.9)), strict=False)
    assert collapsed({name: {"r": r, "rmse": e} for name, (r, e) in shown}, still) == [NAMES[1], NAMES[2]]


@pytest.mark.slow
def test_metrics_end_to_end_with_an_untrained_model(tmp_path: Path) -> None:
    import torch

    from benchmarks import paper_metrics, tables
    from sunzip.nn.sigma_vae import SigmaVAE
    from sunzip.train.export import export_sigma_vae
    from sunzip.weights import write

    units = Stabiliser.for_channels(NAMES)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = export_sigma_vae(
        SigmaVAE(256).eval(),
        Stabiliser(units.a, units.b, np.full(12, 20, np.float32)),
        rng.normal(0, 0.5, (50, 256)).astype(np.float32),
        np.full(256, 0.03, np.float32),
        "untrained",
        notes={},
    )
    write(model, tmp_path / "model")
    args = [
        SUN,
        "--cadence",
        "1d",
        "--hold-out",
        "2012-03-25..2012-03-28",
        "--models",
        str(tmp_path / "model"),
    ]
    result = CliRunner().invoke(
        paper_metrics.main, [*args, "--cache", str(tmp_path), "--figures", str(tmp_path / "figures")]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results" / "paper_metrics.json").read_text())
    assert found["data"]["frames"] == 3
    assert found["data"]["training_frames"] == 27
    assert [r["components"] for r in found["pca"]["rows"]] == [26] * 4
    # What was never trained keeps nothing, and the benchmark says so.
    assert not found["rows"][0]["holds"]["r"]
    assert found["pca"]["rows"][0]["metrics"]["1700A"]["r"] > 0.9
    assert found["rows"][0]["collapsed"] == list(NAMES)
    whole, tenth = found["default"]["rows"]
    assert whole["bytes"] <= 1024
    assert tenth["quality"] < whole["quality"]
    assert tenth["bytes"] <= 103 or tenth["quality"] == 0
    assert "r of 193A" not in whole["not_better"]
    assert "1,024 B" in tables.paper_default(found)
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["untrained-2012-03-25T0000.png"]
    assert tables.paper_metrics(found).count("\n| 171A |") == 4
    assert "**not 94A" in tables.paper_latents(found)


def test_a_model_trained_anew_has_its_forecasts_of_its_own_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sigma_model: Model
) -> None:
    from benchmarks import forecast

    written: list[str] = []

    def compress(url: str, archive: Path, *, model: Model, **_: Any) -> None:
        written.append(model.sha256)
        archive.touch()

    monkeypatch.setattr(forecast, "compress", compress)
    monkeypatch.setattr(forecast, "write_flux", lambda path, *_: path.touch())
    anew = replace(sigma_model, sha256="0" * 64)
    found = [forecast.inputs(tmp_path, model)[0] for model in (sigma_model, sigma_model, anew)]
    assert written == [sigma_model.sha256, anew.sha256]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("module", "words", "why"),
    [
        ("training_speed", ("--steps", "1"), "not in the range"),
        ("random_access", ("--distinct", "7"), "no multiple of 15"),
        ("random_access", ("--disk", "1"), "not in the range"),
    ],
)
def test_too_little_to_measure_is_said_at_once(module: str, words: tuple[str, ...], why: str) -> None:
    pytest.importorskip("moto", reason="random access needs a server")
    done = CliRunner().invoke(import_module(f"benchmarks.{module}").main, words)
    assert done.exit_code == 2
    assert why in done.output
