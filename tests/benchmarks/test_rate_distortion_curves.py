"""Interpolation between measured rates and errors, and mean ratios of bytes, on curves that are known."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

RATES = np.geomspace(0.001, 1, 12)


@pytest.fixture
def curves() -> ModuleType:
    from benchmarks.rate_distortion import curves

    return curves


def power(rate: np.ndarray, scale: float = 1.0, exponent: float = 0.5) -> np.ndarray:
    """Return the error of a codec whose error falls as a power of the rate."""
    return scale * rate**-exponent


def test_a_power_law_is_met_between_points_and_never_continued(curves: ModuleType) -> None:
    curve = curves.RateCurve(RATES, power(RATES))
    between = np.geomspace(0.0011, 0.9, 50)
    assert curve(power(between)) == pytest.approx(between, rel=1e-9)
    assert np.isnan(curve(power(np.array([0.0009, 1.1])))).all()
    assert curve(power(RATES[[0, -1]])) == pytest.approx(RATES[[0, -1]])


def test_a_bend_is_met_closely(curves: ModuleType) -> None:
    def bent(rate: np.ndarray) -> np.ndarray:
        return 3 + 0.8 * rate**-0.7

    between = np.geomspace(0.002, 0.6, 200)
    curve = curves.RateCurve(RATES, bent(RATES))
    assert curve(bent(between)) == pytest.approx(between, rel=0.03)


def test_points_that_nobody_would_use_are_left_out(curves: ModuleType) -> None:
    # The third costs more than the second and errs more; the fourth is lossless, the last has no error.
    curve = curves.RateCurve([0.1, 0.2, 0.3, 20.0, 0.4, 0.5], [9.0, 5.0, 6.0, 0.0, 3.0, None])
    assert curve.bits.tolist() == [0.1, 0.2, 0.4]
    assert curve.error.tolist() == [9.0, 5.0, 3.0]
    # Of two at the same rate the better one stays.
    assert curves.RateCurve([0.1, 0.1, 0.2], [9.0, 8.0, 4.0]).error.tolist() == [8.0, 4.0]


def test_an_error_of_at_most_so_much_costs_no_more_than_the_coarsest_setting(curves: ModuleType) -> None:
    curve = curves.RateCurve(RATES, power(RATES))
    wanted = power(np.array([0.0001, 0.0005, 0.02, 2.0]))
    assert curve.at_most(wanted)[:3] == pytest.approx([0.001, 0.001, 0.02], rel=1e-6)
    assert np.isnan(curve.at_most(wanted)[3])
    assert np.isnan(curves.RateCurve([], []).at_most([1.0]))
    # So the best of all has a price where the cheap one cannot err as much, and the dear one can.
    ours = curves.RateCurve(RATES, power(RATES))
    half = RATES[RATES > 0.004]
    others = {
        "dear": curves.RateCurve(9 * RATES, power(RATES)),
        "cheap": curves.RateCurve(half / 2, power(half)),
    }
    assert curves.bjontegaard(ours, others, 0.001, 0.004).who == "cheap"


@pytest.mark.parametrize("bits", [[], [0.1]])
def test_less_than_two_points_are_no_curve(curves: ModuleType, bits: list[float]) -> None:
    curve = curves.RateCurve(bits, [5.0] * len(bits))
    assert np.isnan(curve([5.0, 4.0])).all()
    assert curves.bjontegaard(curve, {"other": curve}, 0, 1).ratio is None


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_a_codec_of_a_known_share_of_bytes_has_that_ratio(curves: ModuleType, factor: float) -> None:
    ours = curves.RateCurve(factor * RATES, power(RATES))
    found = curves.bjontegaard(ours, {"other": curves.RateCurve(RATES, power(RATES))}, 0.01, 0.1)
    assert found.ratio == pytest.approx(factor, rel=1e-6)
    assert found.covered == pytest.approx(1)
    assert found.who == "other"


def test_a_ratio_that_changes_is_averaged_over_log_error(curves: ModuleType) -> None:
    # Theirs: rate = e^-4, ours: rate = e^-2, so that ours over theirs is e^2; our rates from 0.01 to 0.1 are
    # errors from 10 down to √10, whose mean logarithm is 0.75 of that of 10.
    errors = np.geomspace(0.9, 40, 30)
    ours = curves.RateCurve(errors**-2, errors)
    found = curves.bjontegaard(ours, {"other": curves.RateCurve(errors**-4, errors)}, 0.01, 0.1)
    assert found.ratio == pytest.approx(10 ** (2 * 0.75), rel=1e-3)


def test_the_cheapest_counts_at_every_error_and_gaps_are_told(curves: ModuleType) -> None:
    ours = curves.RateCurve(RATES, power(RATES))
    half = RATES[RATES < 0.032]
    others = {
        "coarse": curves.RateCurve(half / 2, power(half)),
        "dear": curves.RateCurve(5 * RATES, power(RATES)),
    }
    low = curves.bjontegaard(ours, others, 0.001, 0.01)
    assert low.ratio == pytest.approx(2, rel=1e-6)
    assert low.who == "coarse"
    # Alone it reaches only a part of the range, and nothing is made up for the rest.
    part = curves.bjontegaard(ours, {"coarse": others["coarse"]}, 0.01, 0.1)
    assert part.ratio == pytest.approx(2, rel=1e-6)
    assert part.covered == pytest.approx(np.log(half[-1] / 0.01) / np.log(10), abs=0.03)
    nothing = curves.bjontegaard(ours, {"coarse": others["coarse"]}, 0.1, 0.5)
    assert (nothing.ratio, nothing.covered) == (None, 0)


def test_a_range_that_we_do_not_reach_has_no_ratio(curves: ModuleType) -> None:
    ours = curves.RateCurve(RATES[RATES > 0.02], power(RATES[RATES > 0.02]))
    assert curves.bjontegaard(ours, {"other": curves.RateCurve(RATES, power(RATES))}, 0, 0.01).ratio is None


def mixture(curves: ModuleType, matrix: np.ndarray, extra: float = 0.0, excess: float = 1.0) -> object:
    rates = np.geomspace(1e-4, 8, 40)
    # Components of spread 16 and 2, whose squared error halves with every half bit.
    errors = [spread * 2.0**-rates for spread in (16.0, 2.0)]
    ratios = np.full((2, 2), excess)
    return curves.Mixture(matrix, [rates, rates], errors, extra, [1e-4, 8], ratios)


def test_a_mixture_is_priced_as_rate_theory_says(curves: ModuleType) -> None:
    # Two channels turned by 45 degrees: for an error of 1 in each, both components are coded with an error of
    # 1, which takes log2 of their spreads.
    turn = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    assert mixture(curves, turn)([1.0, 1.0]) == pytest.approx((4 + 1) / 2, rel=0.01)
    assert mixture(curves, turn, extra=0.5)([1.0, 1.0]) == pytest.approx(3, rel=0.01)
    # Without a mixture every channel keeps to its own error.
    assert mixture(curves, np.eye(2))([4.0, 0.5]) == pytest.approx((2 + 2) / 2, rel=0.01)


def test_a_mixture_pays_for_errors_that_add_up(curves: ModuleType) -> None:
    # Channels that err twice as much as the sum says have to be coded for half the error: a bit more each.
    plain = mixture(curves, np.eye(2))([1.0, 1.0])
    assert mixture(curves, np.eye(2), excess=2.0)([1.0, 1.0]) == pytest.approx(plain + 1, rel=0.01)


def test_a_mixture_cannot_do_what_its_components_cannot(curves: ModuleType) -> None:
    assert np.isnan(mixture(curves, np.eye(2))([1e-6, 1.0]))


def result_of(share: float) -> dict[str, object]:
    """Return results of two cases: our bytes are a share of what the one peer needs for our errors."""
    quality = [0, 25, 50, 75, 100]
    errors = np.geomspace(12, 1.2, 5)

    def frame(names: dict[str, float]) -> dict[str, object]:
        each = {name: scale * errors for name, scale in names.items()}
        bits = share * sum(e**-2 for e in each.values()) / len(each)
        channels = {name: {"rmse_sigma": e.tolist()} for name, e in each.items()}
        return {"quality": quality, "bits": bits.tolist(), "channels": channels}

    swept = np.geomspace(0.5, 60, 25)
    peer = {"bits": (swept**-2).tolist(), "rmse_sigma": swept.tolist()}
    lossless = {"bits": [20.0], "rmse_sigma": [0.0]}
    channels = {"one": {"171A": 1.0, "Bz": 0.7}, "two": {"193A": 2.0}}
    cases = {case: {"series": False, "real": True} for case in channels}
    models = {
        case: {
            "frame": frame(names),
            "channels": {n: {"bits": (share * e**-2).tolist(), "rmse_sigma": e.tolist()}
                         for n, e in ((n, s * errors) for n, s in names.items())},
        }
        for case, names in channels.items()
    }  # fmt: skip
    peers = {
        case: {"x": dict.fromkeys(names, peer), "lossless": dict.fromkeys(names, lossless)}
        for case, names in channels.items()
    }
    return {"cases": cases, "models": {"ours": models}, "peers": peers, "mixtures": {}}


@pytest.mark.parametrize("share", [0.4, 2.0])
def test_channels_together_have_the_share_that_each_has(curves: ModuleType, share: float) -> None:
    from benchmarks.rate_distortion.compare import compare

    result = result_of(share)
    found = compare(result)["ours"]
    assert set(found["overall"]) == {"one", "two", "real"}
    for group in found["overall"].values():
        for peer in ("x", "best", "best without KLT"):
            known = [mean for mean in group[peer].values() if mean["ratio"] is not None]
            assert known
            assert [mean["ratio"] for mean in known] == pytest.approx([share] * len(known), rel=2e-3)
        assert {mean["ratio"] for mean in group["lossless"].values()} == {None}
    for spans in (s for c in found["channels"].values() for s in c.values()):
        assert spans["0.01 to 0.1"]["ratio"] == pytest.approx(share, rel=2e-3)
        assert spans["0.01 to 0.1"]["who"] == "x"


def test_a_channel_without_a_price_leaves_the_sum_open(curves: ModuleType) -> None:
    from benchmarks.rate_distortion.compare import overall

    result = result_of(1.0)
    peer = result["peers"]["one"]["x"]  # type: ignore[index]
    peer["Bz"] = {key: values[20:] for key, values in peer["Bz"].items()}
    # Of Bz only errors from 27 on are known, of which we have none.
    found = overall(result, "ours", ["one"])
    assert {mean["ratio"] for mean in found["best"].values()} == {None}
    assert overall(result, "ours", ["two"])["best"]["0.01 to 0.1"]["ratio"] == pytest.approx(1, rel=2e-3)
