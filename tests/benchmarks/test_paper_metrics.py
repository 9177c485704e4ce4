"""The default model by the paper's metrics: quality that bytes allow, large frames, what ``--add`` keeps."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from sunzip.api import Alignment, open_series
from sunzip.codec import Codec
from sunzip.weights import Model


@pytest.fixture(autouse=True)
def results_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have results kept and sought in one place."""
    pytest.importorskip("torch")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.paper_metrics.RESULTS", tmp_path)


def sun(size: int) -> str:
    return f"synthetic:frames=4,size={size},cadence=1d"


@pytest.mark.parametrize(("most", "quality"), [(5, 0), (10, 0), (11, 1), (49.9, 39), (50, 40), (1e9, 100)])
def test_the_highest_quality_that_bytes_allow(most: float, quality: int) -> None:
    from benchmarks.paper_metrics import highest

    assert highest(lambda q: [bytes(5), bytes(5 + q)], most) == quality


def test_small_frames_are_means_of_the_large_ones() -> None:
    from benchmarks.paper_metrics import judge, smaller, taken

    times = open_series(sun(64), align=Alignment(cadence="1d")).time[[1, 3]]
    large, small = (
        taken(open_series(sun(64), align=Alignment(cadence="1d", size=size)), times) for size in (64, 16)
    )
    assert large.time.tolist() == small.time.tolist() == times.tolist()
    metrics = judge(small, smaller(np.stack([e.pixels for e in large]).astype(np.float32), 4))
    # But for rounding to half precision.
    assert all(m["r"] > 0.9999 for m in metrics.values())
    with pytest.raises(click.UsageError, match="no frame of 2012-03-02T12"):
        taken(open_series(sun(64), align=Alignment(cadence="1d")), times + np.timedelta64(12, "h"))


@pytest.mark.slow
def test_the_default_at_512_is_judged_there_and_made_small(sigma_model: Model) -> None:
    from benchmarks import tables
    from benchmarks.paper_metrics import of_large, rival, taken

    small, large = (
        taken(series, series.time[:1])
        for series in (open_series(sun(512), align=Alignment(cadence="1d", size=s)) for s in (128, 512))
    )
    found = of_large(rival(Codec(sigma_model), small), small, large, lambda line: None)
    assert found["against"]["side"] == 128
    assert [(row["share"], row["judged_at"]) for row in found["rows"]] == [
        (1.0, 512),
        (1.0, 128),
        (0.1, 512),
        (0.1, 128),
    ]
    whole, shrunk, *_ = found["rows"]
    # 8 numbers of 4 bytes, times 16.
    assert whole["bytes"] == shrunk["bytes"] <= 512
    # Means of 16 pixels have a quarter of their noise.
    assert shrunk["metrics"]["Bx"]["rmse"] < whole["metrics"]["Bx"]["rmse"] / 2
    assert shrunk["metrics"]["171A"]["r"] > whole["metrics"]["171A"]["r"]
    result = {
        "large": found,
        "data": {"name": "the Sun", "frames": 1},
        "command": "this",
        "machine": {"cores": 2, "cpu": "any", "torch": "2"},
    }
    assert tables.paper_large(result).count("\n| 171A |") == 2


def test_what_is_not_measured_now_is_kept(tmp_path: Path) -> None:
    from benchmarks import paper_metrics

    args = [sun(128), "--cadence", "1d", "--hold-out", "2012-03-02..2012-03-03", "--pca-frames", "0"]
    runner, file = CliRunner(), tmp_path / "paper_metrics.json"
    result = runner.invoke(paper_metrics.main, [*args, "--large", sun(512)])
    assert "--large: name a σ-VAE to compare with" in result.output
    assert not file.exists()

    result = runner.invoke(paper_metrics.main, args)
    assert result.exit_code == 0, result.output
    before = json.loads(file.read_text())
    assert before["large"] is None
    result = runner.invoke(paper_metrics.main, [*args, "--large", sun(512), "--add"])
    assert "--large: no σ-VAE was measured on large frames yet" in result.output
    before |= {"command": "before", "large": {"frames": 3}, "pca": {"frames": 7, "rows": []}}
    file.write_text(json.dumps(before))
    result = runner.invoke(paper_metrics.main, [*args, "--add"])
    assert result.exit_code == 0, result.output
    after = json.loads(file.read_text())
    assert after["large"] == before["large"]
    assert after["pca"] == before["pca"]
    assert after["command"].startswith("before && python -m benchmarks.paper_metrics")
