"""What is said of sums: light that is lost, light that only moves, and flux."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sums import flux, light


def test_light_that_is_lost_shows_in_sums_and_light_that_moves_within_a_region_does_not() -> None:
    x = np.random.default_rng(0).uniform(1, 2, (3, 64, 64))
    moved = x.copy()
    moved[:, 24:40:2, 24:40] = x[:, 25:41:2, 24:40]
    moved[:, 25:41:2, 24:40] = x[:, 24:40:2, 24:40]
    assert light(x, moved) == pytest.approx(light(x, x), abs=1e-9)
    fainter = light(x, x * np.array([0.98, 0.96, 0.98])[:, None, None])
    assert fainter["disk"] == pytest.approx(-8 / 3)
    assert fainter["disk_changes"] == pytest.approx(2)
    assert fainter["sun_changes"] == light(x, x)["sun_changes"] > 0
    assert fainter["brightest"] == pytest.approx(-8 / 3)
    assert light(x[:1], x[:1])["disk_changes"] is None


def test_the_flux_of_the_noise_is_told_apart_from_that_of_strong_field() -> None:
    x = np.random.default_rng(0).normal(0, 5, (1, 64, 64))
    x[0, 32, 30:34] = -1000
    smooth = np.where(np.abs(x) > 100, x / 2, 0)
    found = flux(x, smooth)
    assert found["strong"] == pytest.approx(0.5)
    assert 0 < found["unsigned"] < 0.5
    assert found["net_decoded"] < 0
    assert flux(x / 100, x / 100)["strong"] is None
