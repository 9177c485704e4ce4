"""The metrics against cases worked out by hand, and against what must hold for any images."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sunzip.channels import NAMES
from sunzip.errors import InputError
from sunzip.metrics import MODES, Accumulator, disk_mask, image_metrics, over_images

pytestmark = pytest.mark.filterwarnings("error")

NAN = math.nan


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@st.composite
def image_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 images of one shape; the first with zeros, negatives and NaN."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8))
    finite = st.one_of(st.just(0.0), st.floats(-1e6, 1e6, width=32))
    x = draw(hnp.arrays(np.float32, shape, elements=st.one_of(finite, st.just(NAN))))
    y = draw(hnp.arrays(np.float32, shape, elements=finite))
    return x, y


def test_hand_computed_case() -> None:
    #         miss: x=0  |e|=.5<1  |e|=1 not<1  |e|=4<5  |e|=5 not<5; negative: |e|=.5<1
    x = row(0, 10, 10, 10, 10, -10)
    y = row(0, 10.5, 9, 14, 15, -9.5)
    m = image_metrics(x, y)
    assert m.pixels == 6
    assert m.lost == 0
    assert m.ppe10 == 2 / 6
    assert m.ppe50 == 4 / 6
    assert m.max_error == 5
    assert m.rmse == pytest.approx(math.sqrt((0.25 + 1 + 16 + 25 + 0.25) / 6), rel=1e-15)
    assert m.r == pytest.approx(np.corrcoef(x[0].astype(float), y[0].astype(float))[0, 1], rel=1e-12)
    assert np.isnan(m.rmse_sigma)


def test_strict_mode_leaves_out_zeros_and_off_disk() -> None:
    x = row(0, 10, 10, -10, 7)
    y = row(3, 10.5, 14, -20, 99)
    disk = np.array([[True, True, True, True, False]])
    m = image_metrics(x, y, strict=True, on_disk=disk)
    assert m.pixels == 3
    assert m.ppe10 == 1 / 3
    assert m.ppe50 == 2 / 3
    assert m.max_error == 10
    assert m.rmse == pytest.approx(math.sqrt((0.25 + 16 + 100) / 3), rel=1e-15)


def test_relative_limits_are_strict_and_exact() -> None:
    # 0.5·|x| is exact in binary, so the pixel on the limit must be a miss.
    assert image_metrics(row(8), row(4)).ppe50 == 0
    assert image_metrics(row(8), row(np.nextafter(np.float32(4), np.float32(5)))).ppe50 == 1
    assert image_metrics(row(-8), row(8)).ppe50 == 0


def test_nan_of_the_original_is_left_out() -> None:
    m = image_metrics(row(NAN, 10, 20, np.inf), row(5, 10, 30, 1))
    assert m.pixels == 2
    assert m.ppe10 == 0.5
    assert m.max_error == 10


def test_all_nan_has_no_value() -> None:
    for strict in (False, True):
        m = image_metrics(np.full((4, 4), NAN), np.zeros((4, 4)), strict=strict)
        assert m.pixels == 0
        assert all(np.isnan(v) for v in (m.r, m.ppe10, m.ppe50, m.rmse, m.max_error))


def test_lost_pixels_are_misses_and_counted() -> None:
    m = image_metrics(row(1, 2, 4, 8), row(1, 2, NAN, np.inf))
    assert (m.pixels, m.lost) == (4, 2)
    assert m.ppe10 == 0.5
    assert m.rmse == 0
    gone = image_metrics(row(1, 2), row(NAN, NAN))
    assert (gone.pixels, gone.lost, gone.ppe50) == (2, 2, 0)
    assert np.isnan(gone.rmse)


def test_all_zero_image() -> None:
    m = image_metrics(np.zeros((4, 4)), np.zeros((4, 4)))
    assert (m.ppe10, m.ppe50, m.rmse, m.pixels) == (0, 0, 0, 16)
    assert np.isnan(m.r)
    assert image_metrics(np.zeros((4, 4)), np.zeros((4, 4)), strict=True).pixels == 0


@pytest.mark.parametrize("value", [0.1, 1e-3, 1234.5678, 3e8])
def test_constant_image_has_no_correlation(value: float) -> None:
    # The float64 mean of 0.1 repeated is not 0.1, so a variance would come out as a tiny non-zero.
    constant = np.full((7, 11), value)
    other = np.arange(77.0).reshape(7, 11)
    assert np.isnan(image_metrics(constant, other).r)
    assert np.isnan(image_metrics(other, constant).r)
    assert not np.isnan(image_metrics(other, other).r)


def test_leading_axes_are_independent() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(2, 50, (2, 3, 6, 6)).astype(np.float32)
    y = (x + rng.normal(0, 5, x.shape)).astype(np.float32)
    x[1, 2, 0, 0] = NAN
    m = image_metrics(x, y, strict=True)
    assert m.r.shape == m.pixels.shape == (2, 3)
    for i in np.ndindex(2, 3):
        one = image_metrics(x[i], y[i], strict=True)
        for name in ("r", "ppe10", "ppe50", "rmse", "max_error", "pixels"):
            assert getattr(m, name)[i] == getattr(one, name)


def test_no_images() -> None:
    assert image_metrics(np.zeros((0, 3, 4, 4)), np.zeros((0, 3, 4, 4))).r.shape == (0, 3)


def test_accumulates_in_float64() -> None:
    # In float32, 1 is lost beside 2^25.
    x = np.full((64, 64), 2.0**25, np.float32)
    x[::2] += 4
    y = x.copy()
    y[0, 0] += 4
    m = image_metrics(x, y)
    assert m.rmse == pytest.approx(4 / 64, rel=1e-12)
    assert 0.999 < m.r < 1


@given(image_pairs())
def test_ranges(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for strict in (False, True):
        m = image_metrics(*pair, strict=strict, on_disk=np.ones(pair[0].shape, bool))
        assert np.isnan(m.r) or -1 <= m.r <= 1
        if m.pixels:
            assert 0 <= m.ppe10 <= m.ppe50 <= 1
            assert m.rmse <= m.max_error * (1 + 1e-12)


@given(image_pairs(), st.randoms(use_true_random=False))
def test_order_of_pixels_does_not_matter(pair: tuple[np.ndarray, np.ndarray], random) -> None:
    x, y = pair
    order = list(range(x.size))
    random.shuffle(order)
    before = image_metrics(x, y)
    after = image_metrics(x.ravel()[order].reshape(x.shape), y.ravel()[order].reshape(x.shape))
    for name in ("ppe10", "ppe50", "max_error", "pixels"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    np.testing.assert_allclose(before.rmse, after.rmse, rtol=1e-12)
    np.testing.assert_allclose(before.r, after.r, rtol=1e-6, atol=1e-9)


@given(image_pairs())
def test_perfect_reconstruction(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = pair
    m = image_metrics(x, x)
    measured = x[~np.isnan(x)]
    assert m.pixels == measured.size
    if measured.size:
        assert m.rmse == m.max_error == 0
        assert m.ppe10 == m.ppe50 == np.count_nonzero(measured) / measured.size
        if np.unique(measured).size > 1:
            assert m.r == pytest.approx(1, abs=1e-12)
        else:
            assert np.isnan(m.r)


def test_same_input_gives_same_bits_with_dirty_memory() -> None:
    """Nothing is divided into memory that was never written: off-disk zeros would show it."""
    x = np.zeros((32, 32), np.float32)
    x[8:24, 8:24] = 50
    seen = set()
    for fill in (1.0, -1e30, NAN):
        dirt = [np.full((32, 32), fill) for _ in range(50)]
        del dirt
        m = image_metrics(x, x + 1)
        seen.add((float(m.r), float(m.ppe10), float(m.ppe50), float(m.rmse)))
    assert seen == {(1.0, 0.25, 0.25, 1.0)}


def test_rmse_in_noise_sigma() -> None:
    m = image_metrics(row(1, 4, 9), row(4, 9, 25), stabilise=lambda v: 2 * np.sqrt(v))
    assert m.rmse_sigma == pytest.approx(math.sqrt((4 + 4 + 16) / 3))
    outside = image_metrics(row(1, 4), row(-1, 4), stabilise=np.sqrt)
    assert np.isnan(outside.rmse_sigma)


@pytest.mark.parametrize(("n", "radius"), [(512, 203.3), (128, 50.8), (64, 25.4)])
def test_disk_has_the_radius_of_sdoml(n: int, radius: float) -> None:
    mask = disk_mask((n, n))
    assert mask.sum() == pytest.approx(math.pi * radius**2, rel=0.01)
    assert (mask == mask[::-1]).all()
    assert (mask == mask.T).all()
    assert mask[n // 2].sum() == pytest.approx(2 * radius, abs=1.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: image_metrics(np.zeros((2, 2)), np.zeros((2, 3))),
        lambda: image_metrics(np.zeros(4), np.zeros(4)),
        lambda: image_metrics(np.zeros((2, 3)), np.zeros((2, 3)), strict=True),
        lambda: image_metrics(np.zeros((2, 2)), np.zeros((2, 2)), strict=True, on_disk=np.ones((3, 3), bool)),
        lambda: Accumulator(["Bz", "171A"]),
        lambda: Accumulator(["170A"]),
        lambda: Accumulator(["171A"]).add(np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 4))),
        lambda: Accumulator(["171A"]).add(np.zeros((1, 4, 4)), np.zeros((1, 4, 4))),
        lambda: Accumulator(["171A"]).add(*[np.zeros((1, 1, 4, 4))] * 2, np.ones((2, 1), bool)),
        lambda: Accumulator(["171A"]).merge(Accumulator(["193A"])),
    ],
)
def test_wrong_input_is_one_line(call) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        call()


def _frames(t: int, seed: int, n: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.gamma(2, 50, (t, 2, n, n)).astype(np.float32)
    x[:, :, :2] = 0
    y = (x * rng.normal(1, 0.2, x.shape)).astype(np.float32)
    return x, y, rng.random((t, 2)) < 0.8


@pytest.mark.parametrize("mode", MODES)
def test_accumulator_averages_over_images(mode: str) -> None:
    x, y, valid = _frames(9, 1)
    x[0, 0] = 5
    x[1, 1] = NAN
    valid[0, 0] = valid[1, 1] = True
    total = Accumulator(["171A", "Bz"])
    for part in np.array_split(np.arange(9), 4):
        total.add(x[part], y[part], valid[part])
    result = total.result()[mode]
    each = image_metrics(x, y, strict=mode == "strict")
    for c, name in enumerate(("171A", "Bz")):
        there = valid[:, c] & (each.pixels[:, c] > 0)
        for key in ("r", "ppe10", "ppe50", "rmse"):
            assert getattr(result[name], key) == pytest.approx(
                np.nanmean(getattr(each, key)[there, c]), rel=1e-12
            )
        assert result[name].max_error == each.max_error[there, c].max()
        assert result[name].images == there.sum()
        assert result[name].pixels == each.pixels[there, c].sum()
        assert result[name].empty == (c == 1)
        assert result[name].constant == (c == 0)
    assert result["171A"].unit == "DN/s"
    assert result["Bz"].unit == "G"


def test_accumulators_merge() -> None:
    x, y, valid = _frames(8, 2)
    whole, first, second = (Accumulator(["171A", "Bz"]) for _ in range(3))
    whole.add(x, y, valid)
    first.add(x[:3], y[:3], valid[:3])
    second.add(x[3:], y[3:], valid[3:])
    first.merge(pickle.loads(pickle.dumps(second)))
    for mode in MODES:
        for name in ("171A", "Bz"):
            a, b = whole.as_dict()[mode][name], first.as_dict()[mode][name]
            assert {
                k: v if isinstance(v, str) else pytest.approx(v, rel=1e-12) for k, v in a.items() if v
            } == {k: v for k, v in b.items() if v}


def test_accumulator_counts_lost_images_apart_from_constant_ones() -> None:
    total = Accumulator(["171A"])
    x = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    total.add(x, np.full_like(x, NAN))
    total.add(x, x)
    m = total.result()["paper"]["171A"]
    assert (m.images, m.constant, m.lost) == (2, 0, 64)
    assert m.ppe10 == pytest.approx(63 / 64 / 2)
    assert m.r == pytest.approx(1)


def test_stabiliser_is_told_the_channel() -> None:
    gain = {"171A": 1.0, "Bz": 3.0}
    total = Accumulator(["171A", "Bz"], stabilise=lambda v, name: v * gain[name])
    x = np.ones((1, 2, 4, 4))
    total.add(x, x + 2)
    table = total.result()["paper"]
    assert table["171A"].rmse_sigma == pytest.approx(2)
    assert table["Bz"].rmse_sigma == pytest.approx(6)


def test_means_over_images_count_each_once() -> None:
    total = Accumulator(["171A", "Bz"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 2, 8, 8))
    # Of Bz one image of four has a correlation, as most of weak magnetograms decode to nothing.
    y[1:, 1] = 0
    total.add(x, y)
    found = image_metrics(x, y)
    paper = total.as_dict()["paper"]
    assert over_images(paper, "r") == pytest.approx(np.nanmean(found.r))
    assert over_images(paper, "ppe50") == pytest.approx(found.ppe50.mean())
    assert over_images(paper, "rmse_sigma") is None


def test_json_has_no_nan() -> None:
    total = Accumulator(NAMES)
    total.add(np.zeros((1, 12, 4, 4)), np.zeros((1, 12, 4, 4)))
    table = json.loads(json.dumps(total.as_dict(), allow_nan=False))
    assert list(table) == list(MODES)
    assert list(table["paper"]) == list(NAMES)
    assert table["paper"]["94A"]["r"] is None
    assert table["paper"]["94A"]["constant"] == 1
    assert table["strict"]["94A"]["empty"] == 1
    assert json.dumps(Accumulator(["94A"]).as_dict(), allow_nan=False)


def test_memory_does_not_grow_with_the_frames() -> None:
    one, many = Accumulator(["171A", "Bz"]), Accumulator(["171A", "Bz"])
    x, y, valid = _frames(2, 3)
    one.add(x, y, valid)
    for _ in range(50):
        many.add(x, y, valid)
    assert len(pickle.dumps(many)) == pytest.approx(len(pickle.dumps(one)), abs=64)
