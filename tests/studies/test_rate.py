"""The study of rate and error: as a dry run estimates, and as evaluating measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sunzip import api
from sunzip.archive import open_archive
from sunzip.cli.study import _rated, _speed
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.studies.rate import rate
from sunzip.weights import Model

CHANNELS = ("171A", "Bz")


@pytest.fixture(scope="module")
def film() -> Series:
    return join([Synthetic(frames=3, size=32, start="2012-03-01", channels=CHANNELS)])


def test_sizes_are_those_of_a_dry_run_and_errors_those_of_evaluate(
    film: Series, wavelet_model: Model, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    report = rate(
        film, model=wavelet_model, qualities=[70, 20, 70], progress=lambda _, n, of: told.append((n, of))
    )
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert [row.quality for row in report.rows] == [20, 70]
    assert (report.frames, report.images, report.block, report.sample_frames) == (3, 6, 3, 3)
    for row in report.rows:
        path = tmp_path / f"{row.quality}.lat"
        settings = {"model": wavelet_model, "quality": row.quality}
        estimate = api.compress(film, path, dry_run=True, **settings)
        assert (row.archive_bytes, row.coded_bytes) == (estimate.archive_bytes, estimate.coded_bytes)
        assert row.ratio == pytest.approx(estimate.raw_bytes / estimate.archive_bytes)
        assert row.bytes_per_frame * 3 == pytest.approx(row.archive_bytes)
        assert row.bits_per_sample * row.ratio == pytest.approx(32)
        api.compress(film, path, **settings)
        # The sample is the whole film.
        measured = api.evaluate(film, path, model=wavelet_model).metrics
        assert row.metrics == measured
        assert row.ppe10 == pytest.approx(np.mean([measured["paper"][c]["ppe10"] for c in CHANNELS]))
        assert min(row.in_mb_s, row.out_mb_s, row.seconds) > 0
    coarse, fine = report.rows
    assert coarse.archive_bytes < fine.archive_bytes
    assert coarse.rmse_sigma > fine.rmse_sigma
    json.dumps(report.as_dict(), allow_nan=False)


def test_frames_that_stand_alone_are_coded_side_by_side_to_the_same_sizes(
    wavelet_model: Model, tmp_path: Path
) -> None:
    source = Synthetic(frames=3, size=32, start="2012-03-01", cadence="2d", channels=CHANNELS)
    src = join([source], cadence="2d", tolerance="1h")
    report = rate(src, model=wavelet_model, qualities=[40])
    assert (report.block, report.sample_frames) == (1, 3)
    path = tmp_path / "a.lat"
    known = api.compress(src, path, model=wavelet_model, quality=40)
    assert report.rows[0].coded_bytes == known.coded_bytes
    assert report.rows[0].metrics == api.evaluate(src, path, model=wavelet_model).metrics


def test_the_ladder_holds_what_compress_would_take(
    film: Series, wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sunzip.studies.rate.QUALITIES", (90,))
    report = rate(film, model=wavelet_model)
    assert sorted(row.quality for row in report.rows) == sorted([report.default_quality, 90])


class Sums(Synthetic):
    """The synthetic Sun as SDOML v1 has it."""

    def __init__(self, frames: int, size: int, channels: tuple[str, ...]) -> None:
        super().__init__(frames=frames, size=size, channels=channels)
        self.scale = Scale.SUM

    def read(self, channel: str, row: int) -> np.ndarray:
        return super().read(channel, row) * np.float32(4)


def test_errors_of_sums_are_those_of_means(wavelet_model: Model) -> None:
    one, other = (
        rate(join([made(frames=1, size=32, channels=("171A",))]), model=wavelet_model, qualities=[50]).rows[0]
        for made in (Synthetic, Sums)
    )
    assert other.metrics["paper"]["171A"]["rmse"] == pytest.approx(one.metrics["paper"]["171A"]["rmse"])


@pytest.mark.parametrize("qualities", [[], [101], ["10"]])
def test_qualities_that_are_none_are_refused(
    film: Series, wavelet_model: Model, qualities: list[int]
) -> None:
    with pytest.raises(InputError, match="--qualities"):
        rate(film, model=wavelet_model, qualities=qualities)


def test_a_model_without_qualities_is_told_none(sigma_model: Model, tmp_path: Path) -> None:
    sun = join([Synthetic(frames=1, size=128, start="2012-03-01", channels=CHANNELS)])
    report = rate(sun, model=sigma_model)
    assert report.default_quality is None
    assert [row.quality for row in report.rows] == [None]
    text = "\n".join(_rated(report))
    assert "no other" not in text
    assert report.rows[0].archive_bytes > 0
    done = api.compress(sun, tmp_path / "a.lat", model=sigma_model)
    assert done.quality is None
    with open_archive(tmp_path / "a.lat") as archive:
        assert archive.coding["quality"] is None
        assert "quality" not in archive.codec


@pytest.mark.parametrize(
    ("speed", "told"), [(0.0412, "0.041"), (0.3, "0.3"), (5.04, "5"), (9.6, "10"), (1234.5, "1,234")]
)
def test_speeds_below_one_are_not_told_as_none(speed: float, told: str) -> None:
    assert _speed(speed) == told
