"""Every peer codes and decodes, costs less where it errs more, and is measured as itself; tables show it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sunzip import weights
from sunzip.channels import NAMES
from sunzip.errors import InputError
from sunzip.normalize import Stabiliser
from sunzip.sources.synthetic import render
from sunzip.weights import Model

KEYS = (
    "jpeg2000", "htj2k", "jpegxl", "sperr", "sz3", "zfp", "fpack", "hevc-still", "av1-still", "blosc",
    "hevc-film", "av1-film",
)  # fmt: skip


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return render("2014-06-01T00:00", size=128)


def peer_of(key: str) -> Any:
    from benchmarks.rate_distortion.peers import peers

    (found,) = [peer for peer in peers() if peer.key == key]
    pytest.importorskip(found.needs, reason="it comes with the extra bench")
    return found


def test_these_are_all() -> None:
    from benchmarks.rate_distortion.peers import peers

    assert tuple(peer.key for peer in peers()) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_peer_gives_back_what_it_was_given(key: str, frame: np.ndarray) -> None:
    peer = peer_of(key)
    physical = np.stack([frame[2], frame[2][::-1]])
    images = physical if peer.physical else Stabiliser.for_channels(["171A"]).forward(physical[:, None])[:, 0]
    levels = list(peer.levels(images))
    coarse, fine = levels[len(levels) // 3], levels[-1]
    sizes, errors = [], []
    for level in (coarse, fine):
        pieces = peer.encode(images, level)
        assert all(type(piece) is bytes for piece in pieces)
        decoded = peer.decode(pieces, images.shape)
        assert decoded.shape == images.shape
        assert decoded.dtype == np.float32
        sizes.append(sum(map(len, pieces)))
        errors.append(float(np.sqrt(np.mean((decoded - images) ** 2))))
    if key == "blosc":
        assert errors == [0, 0]
        return
    assert len(pieces) == (1 if peer.film else 2)
    assert sizes[0] < sizes[1]
    assert errors[0] > errors[1]
    # The image has a spread of its own, of which the finest setting leaves a small part.
    assert errors[1] < 0.1 * images.std()


@pytest.mark.parametrize("key", [key for key in KEYS if key != "blosc" and not key.endswith("-film")])
def test_settings_of_a_lossy_peer_go_on_until_a_bit_per_sample(key: str, frame: np.ndarray) -> None:
    # Films have the settings of stills.
    peer = peer_of(key)
    field = Stabiliser.for_channels(["Bz"]).forward(frame[None, 11:])[:, 0]
    assert 8 * sum(map(len, peer.encode(field, peer.levels(field)[-1]))) >= field.size


@pytest.mark.parametrize("key", ["hevc-still", "hevc-film"])
def test_threads_change_no_image(key: str, frame: np.ndarray) -> None:
    peer = peer_of(key)
    images = np.stack([frame[3], frame[4]])
    level = peer.levels(images)[-1]
    assert np.array_equal(
        peer.decode(peer.encode(images, level), images.shape),
        peer.decode(peer.encode(images, level, threads=2), images.shape, threads=2),
    )


def test_integers_are_undone(frame: np.ndarray) -> None:
    from benchmarks.rate_distortion.peers import unwhole, whole

    for contrast in (1.0, 0.125):
        values, header = whole(frame[2], 16, contrast)
        assert np.ptp(values) == pytest.approx(contrast * 65535, abs=2)
        step = np.ptp(frame[2]) / (contrast * 65535)
        assert np.abs(unwhole(values, header) - frame[2]).max() < step
    flat = np.full((4, 4), 7, np.float32)
    assert np.allclose(unwhole(*whole(flat, 10)), 7)


def test_an_absent_library_is_named_with_its_extra() -> None:
    from benchmarks.rate_distortion.peers import library

    with pytest.raises(
        InputError, match=r"needs nothing_of_this_name, which is not installed; .*\.\[bench\]"
    ) as error:
        library("nothing_of_this_name")
    assert "\n" not in str(error.value)


def test_similarity_is_that_of_the_paper() -> None:
    from benchmarks.rate_distortion.measure import ms_ssim

    rng = np.random.default_rng(5)
    x = rng.random((192, 192), np.float32)
    assert ms_ssim(x, x, 1.0) == pytest.approx(1)
    noisy = [ms_ssim(x, x + s * rng.standard_normal(x.shape, np.float32), 1.0) for s in (0.05, 0.2)]
    assert 1 > noisy[0] > noisy[1] > 0
    # A shift of the mean touches the luminance of the coarsest scale alone.
    m, shift, c1 = 0.5, 0.3, 0.01**2
    flat = np.full((192, 192), m, np.float32)
    luminance = (2 * m * (m + shift) + c1) / (m**2 + (m + shift) ** 2 + c1)
    assert ms_ssim(flat, flat + np.float32(shift), 1.0) == pytest.approx(luminance**0.1333, rel=1e-4)
    assert np.isnan(ms_ssim(x[:128], x[:128], 1.0))


def test_errors_are_in_units_of_noise(frame: np.ndarray) -> None:
    from benchmarks.rate_distortion.measure import METRICS, Judge

    judge = Judge("171A", frame[None, 2])
    rng = np.random.default_rng(6)
    found = judge(judge.physical(judge.stable + rng.normal(0, 3, judge.stable.shape).astype(np.float32)))
    assert tuple(sorted(found)) == tuple(sorted(METRICS))
    assert found["rmse_sigma"] == pytest.approx(3, rel=0.03)
    exact = judge(judge.images)
    assert (exact["rmse_sigma"], exact["max_error"], exact["ppe50"]) == (0, 0, 1)
    assert exact["r"] == pytest.approx(1)


def test_a_sweep_stops_at_its_rate_but_has_three_points() -> None:
    from benchmarks.rate_distortion.measure import sweep

    def rates(*levels: float) -> list[float]:
        return [row["bits"] for _, row in sweep(levels, lambda b: {"bits": b}, lambda low, high: None)]

    assert rates(0.5, 0.9, 1.5, 3.0) == [0.5, 0.9, 1.5]
    assert rates(2.0, 3.0, 4.0, 5.0) == [2.0, 3.0, 4.0]


def test_a_sweep_measures_between_neighbours_that_lie_far_apart() -> None:
    from benchmarks.rate_distortion.measure import sweep
    from benchmarks.rate_distortion.ours import between

    # Nothing up to 40, then all at once, as noise is.
    found = sweep((0, 10, 50, 60, 90), lambda q: {"bits": 0.002 * max(1.0, 1.15 ** (q - 40))}, between)
    assert [q for q, _ in found] == [
        *(0, 10, 30, 40, 42, 45, 47, 50, 52, 55, 57, 60, 63, 67, 71, 75, 78, 82, 86, 90)
    ]
    # Of what is whole there is nothing between neighbours, however far apart.
    assert [q for q, _ in sweep((3, 4), lambda q: {"bits": 10.0 ** (q - 4)}, between)] == [3, 4]


def test_between_settings_of_a_peer_there_are_others() -> None:
    for key, low, high, middle in (
        ("sperr", 0.1, 0.4, 0.2),
        ("sperr", 0.1, 0.101, None),
        ("jpegxl", (0.5, 4), (0.5, 1), (0.5, 2)),
        ("jpegxl", (0.125, 5), (0.5, 20), None),
        ("hevc-film", (1.0, 51), (1.0, 48), (1.0, 49)),
        ("av1-still", (1.0, 51), (1.0, 50), None),
        ("av1-still", (0.125, 52), (1.0, 63), None),
    ):
        assert peer_of(key).between(low, high) == middle


def test_a_transform_is_undone_and_gathers_what_channels_share(frame: np.ndarray) -> None:
    from benchmarks.rate_distortion.klt import Transform

    names = NAMES[1:6]
    stable = Stabiliser.for_channels(names).forward(frame[1:6])[None]
    for equal, finest in ((False, 1), (True, 1), (False, 1.5), (True, 1.5)):
        finer = np.array([1, 1, finest, 1, 1])
        found = Transform.fit(stable, finer, equal=equal)
        lost = np.linalg.norm(found.synthesis, axis=1) / (stable[0].std((1, 2)) if equal else 1)
        assert lost * finer == pytest.approx(np.ones(5), rel=0.01)
        assert found.nbytes == 32 + 10
        assert found.synthesis @ found.analysis == pytest.approx(np.eye(5), abs=1e-9)
        mixed = np.einsum("kc,tcyx->kyx", found.analysis, stable).reshape(5, -1)
        correlations = np.abs(np.corrcoef(mixed) - np.eye(5))
        assert correlations.max() < 0.3
        assert np.abs(np.corrcoef(stable[0].reshape(5, -1)) - np.eye(5)).max() > 0.7


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, frame: np.ndarray) -> None:
    """Put tiny cases in the place of the real ones."""
    from benchmarks.rate_distortion import __main__ as program
    from benchmarks.rate_distortion.cases import Case

    def cases(real: Path, work: Path, *, quick: bool) -> list[Case]:
        still = np.ascontiguousarray(frame[None, 2:5])
        film = np.stack([np.roll(frame[2:3], shift, axis=-1) for shift in range(3)])
        times = ("2014-06-01T00:00", "2014-06-01T02:00")
        return [
            Case("still", "three channels", tuple(NAMES[2:5]), still, False, True, times),
            Case("film", "a series", ("171A",), film, True, True, times),
        ]

    monkeypatch.setattr(program, "cases", cases)
    monkeypatch.setattr(program.draw, "draw", lambda result, target: None)


def test_a_run_compares_keeps_and_continues(small: None, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="results name its version")
    pytest.importorskip("imagecodecs", reason="it comes with the extra bench")
    pytest.importorskip("av", reason="it comes with the extra bench")
    from benchmarks import tables
    from benchmarks.rate_distortion.__main__ import main

    def run(*keys: str) -> dict[str, Any]:
        only = [word for key in keys for word in ("--only", key)]
        done = CliRunner().invoke(main, ["--real", str(tmp_path), "--quick", *only])
        assert done.exit_code == 0, done.output
        text = (tmp_path / "results/rate_distortion_quick.json").read_text()
        return dict(json.loads(text))

    first = run("sperr", "klt-sperr", "hevc-film")
    second = run("sunzip")
    # What was not asked for is as it was, and what was is compared with it.
    assert second["peers"] == first["peers"]
    assert second["mixtures"] == first["mixtures"]
    (model,) = second["models"]
    found = second["comparison"][model]
    assert set(found["overall"]) == {"still", "film"}
    assert {"sperr", "KLT + sperr", "best"} <= set(found["overall"]["still"])
    assert set(found["channels"]["still"]) == {"171A", "193A", "211A"}
    assert set(found["blocks"]) == {"film"}
    curve = second["peers"]["still"]["sperr"]["171A"]
    assert curve["bits"] == sorted(curve["bits"])
    assert curve["rmse_sigma"] == sorted(curve["rmse_sigma"], reverse=True)
    for make in ("", "_peers", "_channels", "_series", "_metrics", "_speed", "_shares"):
        text = getattr(tables, f"rate_distortion{make}")(second)
        assert "nan" not in text.lower()
        assert "None" not in text
    assert "SPERR" in tables.rate_distortion_peers(second)
    assert "KLT + SPERR" in tables.rate_distortion(second)


@pytest.mark.parametrize("kind", ["tiny_model", "wavelet_model"])
def test_a_model_is_measured_together_alone_and_in_blocks(
    kind: str, frame: np.ndarray, request: pytest.FixtureRequest
) -> None:
    from benchmarks.rate_distortion import ours
    from benchmarks.rate_distortion.cases import Case
    from benchmarks.rate_distortion.measure import METRICS, Judge
    from sunzip.codec import Codec

    codec = Codec(request.getfixturevalue(kind))
    data = np.stack([frame[2:4, 32:96, 32:96], frame[2:4, 32:96, 31:95]])
    names = tuple(NAMES[2:4])
    judges = [Judge(name, data[:, c].copy()) for c, name in enumerate(names)]
    for series in (False, True):
        case = Case("case", "two frames", names, data, series, True, ("", ""))
        found = ours.measure(codec, case, judges, (0, 50, 100))
        assert ("single" in found) == series
        bits = found["frame"]["bits"]
        assert bits[0] < bits[-1]
        # Settings that were not asked for are there where rates would lie far apart.
        assert {0, 50}.issubset(found["frame"]["quality"])
        steps = zip(pairwise(found["frame"]["quality"]), pairwise(bits), strict=True)
        assert all(high - low == 1 or max(ab) <= 2 * min(ab) or min(ab) >= 1 for (low, high), ab in steps)
        assert set(found["channels"]) == set(names)
        for name in names:
            assert set(found["frame"]["channels"][name]) == set(METRICS)
            assert len(found["channels"][name]["bits"]) >= 3
        if series:
            # A block of both frames has one header where two frames by themselves have two.
            assert found["frame"]["bits"][0] < found["single"]["bits"][0]


def test_a_codec_is_timed_at_its_rate(monkeypatch: pytest.MonkeyPatch, frame: np.ndarray) -> None:
    from benchmarks.rate_distortion import speed

    monkeypatch.setattr(speed, "_SECONDS", 0.01)
    names = NAMES[2:4]
    found = speed.of_peer(peer_of("sperr"), names, frame[2:4].copy(), threads=2)
    assert speed.RATE <= found["bits"] < 4 * speed.RATE
    assert min(found.values()) > 0
    ours = speed.of_model(weights.DEFAULT, names, frame[2:4].copy(), threads=1)
    shares = ours.pop("shares")
    assert ours["bits"] >= speed.RATE
    assert min(ours.values()) > 0
    assert set(shares) == {"encode", "decode"}
    for found in shares.values():
        assert min(found.values()) > 0
        assert found["network"] + found["entropy"] < 1


def test_multiplications_are_those_of_the_network(wavelet_model: Model, frame: np.ndarray) -> None:
    from sunzip.codec import Codec, lanes
    from sunzip.nn.exact import macs_per_position
    from sunzip.nn.planes import level_of, network_of
    from sunzip.pyramid import grid_of
    from sunzip.studies.encoder import CountingContext, through

    codec, context = Codec(wavelet_model, 100), CountingContext(wavelet_model.arrays("context"))
    names, side = NAMES[2:4], 128
    (block,) = codec.encode(frame[None, 2:4], names)
    with lanes.here():
        pixels = through(codec, context).decode([block], names, (side, side))
        assert np.array_equal(pixels, codec.decode([block], names, (side, side)))
    grid = grid_of(side, side)
    levels = [grid.level(n) for n in range(grid.depth)]
    every = 2 * sum(h * w * macs_per_position(network_of(level_of(h, w))) for h, w in levels)
    # Some layers are not run everywhere, and none for other frames, of which there are none.
    assert every / 3 < context.macs < every


def test_shares_are_marked_by_their_targets() -> None:
    from benchmarks import tables

    def result(codecs: dict[str, Any]) -> dict[str, Any]:
        machine = {"cpu": "x", "cores": 2, "numpy": "2"}
        return {"command": "c", "speed": {"machine": machine, "case": "a frame", "codecs": codecs}}

    good = {"network": 0.7, "entropy": 0.15, "network_gmac_s": 20.0, "matrix_gmac_s": 40.0}
    bad = {"network": 0.7, "entropy": 0.16, "network_gmac_s": 19.0, "matrix_gmac_s": 40.0}
    timed = {"1": {"shares": {"encode": bad, "decode": good}}}
    text = tables.rate_distortion_shares(result({"peer": {"1": {}}, "ours": timed}))
    assert "| `ours`, encode | 70.0 % | 16.0 % | **no** | 14.0 % | 19.0 | 40.0 | 47.5 % | **no** |" in text
    assert "| `ours`, decode | 70.0 % | 15.0 % | yes | 15.0 % | 20.0 | 40.0 | 50.0 % | yes |" in text
    assert "Not measured yet" in tables.rate_distortion_shares(result({"peer": {"1": {}}}))


@pytest.mark.slow
def test_every_timing_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, frame: np.ndarray) -> None:
    from benchmarks import tables
    from benchmarks.rate_distortion import speed
    from benchmarks.rate_distortion.cases import Case

    peer_of("htj2k")
    case = Case("still", "a frame", ("171A",), frame[None, 2:3].copy(), False, True, ("", ""))
    result: dict[str, Any] = {"speed": {}, "names": {"htj2k": "HTJ2K"}, "command": "c"}
    speed.measure_all(result, case, ["htj2k"], [])
    assert set(result["speed"]["codecs"]["htj2k"]) == {"1", "2"}
    assert "HTJ2K" in tables.rate_distortion_speed(result)


def test_a_table_says_what_is_not_covered() -> None:
    from benchmarks.tables import _times

    assert _times({"ratio": None, "covered": 0.0, "who": None}) == "–"
    assert _times({"ratio": 0.345, "covered": 1.0, "who": "a"}, {"a": "A"}) == "0.34 × A"
    assert _times({"ratio": 2.0, "covered": 0.4, "who": None}) == "2.00 × (40 % of the range)"
