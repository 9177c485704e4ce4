"""Every codec of the benchmark holds the bound that it is measured at, and tables show what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sunzip.bounds import bounds_of
from sunzip.cube import Scale
from sunzip.sources.synthetic import render

pytest.importorskip("imagecodecs", reason="it comes with the extra bench")


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return render("2014-06-01T00:00", size=64)


def test_a_run_holds_all_to_their_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frame: np.ndarray
) -> None:
    pytest.importorskip("torch", reason="results name its version")
    from benchmarks import bounded, tables
    from benchmarks.rate_distortion.cases import Case

    def cases(real: Path, work: Path, *, quick: bool, only: tuple[str, ...]) -> list[Case]:
        film = np.stack([np.roll(frame[2:3], shift, axis=-1) for shift in range(3)])
        times = ("2014-06-01T00:00", "2014-06-01T02:00")
        return [
            Case("real-2024", "two channels", ("171A", "Bz"), frame[None, [2, 11]], False, True, times),
            Case("series-171", "a film", ("171A",), film, True, True, times),
        ]

    monkeypatch.setattr(bounded, "cases", cases)
    monkeypatch.setattr(bounded, "WISHES", ("2sigma", "20%", "10DN/s"))
    monkeypatch.setattr("sunzip.api._sample.QUALITIES", (50, 70))
    monkeypatch.setattr("sunzip.api._sample.NEARER", (25,))
    done = CliRunner().invoke(bounded.main, ["--real", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads((tmp_path / "results/bounded.json").read_text())
    rows = result["rows"]
    assert [(row["case"], row["bound"], row["of"]) for row in rows] == [
        ("real-2024", "2sigma", ["171A", "Bz"]),
        ("real-2024", "20%", ["171A", "Bz"]),
        ("real-2024", "10DN/s", ["171A"]),
        *(("series-171", wish, ["171A"]) for wish in ("2sigma", "20%", "10DN/s")),
    ]
    for row in rows:
        told = [row["sunzip"], *row["peers"].values()]
        told += [channel for codec in told for channel in codec["channels"].values()]
        assert [one["outside"] for one in told] == [0] * len(told)
        assert row["ratio"] == pytest.approx(row["sunzip"]["bits"] / row["peers"][row["best"]]["bits"], 1e-4)
        assert row["peers"][row["best"]]["bits"] == min(peer["bits"] for peer in row["peers"].values())
    for make in ("bounded", "bounded_channels", "bounded_speed"):
        text = getattr(tables, make)(result)
        assert "nan" not in text.lower()
        assert "None" not in text
    assert " 0 are outside" in tables.bounded(result)
    # What was measured is not measured again, but where it was measured otherwise.
    monkeypatch.setattr(bounded, "_row", lambda *_: 1 / 0)
    again = CliRunner().invoke(bounded.main, ["--real", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "results/bounded.json").read_text()) == result
    monkeypatch.setattr(bounded, "BLOCK", 2)
    otherwise = CliRunner().invoke(bounded.main, ["--real", str(tmp_path)])
    assert isinstance(otherwise.exception, ZeroDivisionError)


@pytest.mark.parametrize("wish", ["5sigma", "5%", "5G"])
def test_each_peer_uses_what_the_bound_lets_it(wish: str, frame: np.ndarray) -> None:
    from benchmarks.bounded import fewest, given, peers

    image, bound = frame[None, 11], bounds_of(wish, ["Bz"])["Bz"]
    scales = given(image, "Bz", bound)
    for peer in peers():
        found = fewest(peer, scales, "frames")
        assert found.nbytes > found.given.way.aside
        assert not bound.outside(image, found.shown, "Bz", Scale.MEAN)
        apart = np.abs(found.shown - image) / bound.tolerance(image, "Bz", Scale.MEAN)
        # ZFP keeps far below the error that it is asked for.
        assert apart.max() > (0.2 if peer.key == "zfp" else 0.9)


def test_quality_0_is_one_without_residual(monkeypatch: pytest.MonkeyPatch, frame: np.ndarray) -> None:
    from benchmarks import bounded
    from benchmarks.rate_distortion.cases import Case
    from sunzip import weights
    from sunzip.codec import Codec

    monkeypatch.setattr("sunzip.api._sample.QUALITIES", (0,))
    monkeypatch.setattr("sunzip.api._sample.NEARER", (100,))
    monkeypatch.setattr(bounded, "peers", lambda of=bounded.peers: of()[:1])
    case = Case("one", "one", ("171A",), frame[None, [2]], False, True, ("2014-06-01T00:00",) * 2)
    ours = bounded.Ours(Codec(weights.load()), case)
    row = bounded._row(ours, bounds_of("1e6DN/s", case.channels), False, None)
    assert row["without"]["quality"] == 0
    assert row["without"]["bits"] == row["sunzip"]["bits"]


def test_images_that_need_not_be_told_end_the_search(frame: np.ndarray) -> None:
    from benchmarks.bounded import fewest, given, peers

    image, bound = frame[None, 11] / 1000, bounds_of("20G", ["Bz"])["Bz"]
    for peer in peers():
        assert fewest(peer, given(image, "Bz", bound), "frames").nbytes < image.size


def test_integers_come_back_in_every_form(frame: np.ndarray) -> None:
    from benchmarks.bounded import Integers, peers

    film = np.stack([frame[2], frame[2] + 5, frame[3]])
    for peer in peers():
        for form in ("frames", *peer.films):
            shown = peer.unpack(peer.pack(film, 2, form), film.shape, form)
            assert np.abs(shown - film).max() < 2.001
            if isinstance(peer, Integers):
                assert np.array_equal(shown, peer.tried(film, 2, form)[1])
