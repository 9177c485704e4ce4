"""The variance-stabilising transform: exactly undone, odd, monotone, and worth its name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip.channels import NAMES
from sunzip.normalize import NOISE, Stabiliser

#: All magnitudes that SDO's images have, and beyond.
VALUES = st.floats(-1e6, 1e6, width=32)


def columns(values: list[float], names: tuple[str, ...] = NAMES) -> np.ndarray:
    """(C, 1, n): the same values in every channel."""
    return np.broadcast_to(np.float32(values), (len(names), 1, len(values))).copy()


def with_spread() -> Stabiliser:
    plain = Stabiliser.for_channels(NAMES)
    return Stabiliser(plain.a, plain.b, np.linspace(0.5, 60, 12, dtype=np.float32))


@pytest.mark.parametrize("transform", [Stabiliser.for_channels(NAMES), with_spread()])
@given(values=st.lists(VALUES, min_size=1, max_size=30))
def test_inverse_undoes_forward(transform: Stabiliser, values: list[float]) -> None:
    x = columns(values)
    back = transform.inverse(transform.forward(x))
    # √(|x| + b) is rounded to 2^-24 of itself, which the square doubles; b is what is lost next to zero.
    tolerance = 2e-6 * (np.abs(x) + transform.b[:, None, None])
    assert (np.abs(back - x) <= tolerance).all()


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_it_is_odd_and_keeps_zero(values: list[float]) -> None:
    transform = with_spread()
    x = columns([*values, 0.0])
    y = transform.forward(x)
    np.testing.assert_array_equal(transform.forward(-x), -y)
    np.testing.assert_array_equal(transform.inverse(-y), -transform.inverse(y))
    assert (y[..., -1] == 0).all()
    assert (np.sign(y) * np.sign(x) >= 0).all()


@given(st.lists(VALUES, min_size=2, max_size=50))
def test_it_never_decreases(values: list[float]) -> None:
    y = with_spread().forward(columns(sorted(values)))
    assert (np.diff(y, axis=-1) >= 0).all()


def test_distinct_values_stay_distinct_far_apart() -> None:
    y = with_spread().forward(columns([-1000, -10, -1, 0, 1, 10, 1000]))
    assert (np.diff(y, axis=-1) > 0).all()


def test_missing_pixels_stay_missing_and_alone() -> None:
    transform = Stabiliser.for_channels(["171A", "Bz"])
    x = np.float32([[[1, np.nan]], [[np.nan, -3]]])
    y = transform.forward(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(np.isnan(transform.inverse(y)), np.isnan(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [30.0, 300.0, 3000.0, -300.0])
def test_noise_becomes_one(name: str, level: float) -> None:
    a, b = NOISE[name]
    variance = a * (abs(level) + b)
    if np.sqrt(variance) > 0.15 * (abs(level) + b):
        pytest.skip("noise as large as the signal: the stabilisation is asymptotic")
    rng = np.random.default_rng(0)
    x = (level + rng.normal(0, np.sqrt(variance), (1, 200, 200))).astype(np.float32)
    y = Stabiliser.for_channels([name]).forward(x)
    assert y.std() == pytest.approx(1, rel=0.02)


def test_noise_is_that_of_the_instruments() -> None:
    # 171 Å: 1.168 DN per photon in 2 s exposures; 64 pixels are averaged: 100 DN/s have a variance of
    # 100 · 1.168 / (2 · 64) from photons and (1.2 / 2)² / 64 from reading.
    a, b = NOISE["171A"]
    assert a * (100 + b) == pytest.approx(100 * 1.168 / 128 + 0.36 / 64)
    a, b = NOISE["Bz"]
    # A few G at zero field, and twice that variance at 100 G.
    assert 1 < np.sqrt(a * b) < 10
    assert a * (100 + b) == pytest.approx(2 * a * b)


def test_spread_divides_and_subset_picks() -> None:
    plain, spread = Stabiliser.for_channels(NAMES), with_spread()
    x = columns([-50, 7, 900])
    y = plain.forward(x)
    np.testing.assert_allclose(spread.forward(x), y / spread.spread[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(spread.subset([2, 11]).forward(x[[2, 11]]), spread.forward(x)[[2, 11]])


def test_leading_axes_are_frames() -> None:
    transform = Stabiliser.for_channels(["94A", "Bx"])
    x = np.random.default_rng(0).normal(0, 100, (3, 2, 4, 5)).astype(np.float32)
    y = transform.forward(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y[1], transform.forward(x[1]))
    assert x is not y
