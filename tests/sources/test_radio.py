"""The synthetic Sun's radio flux: of the state that its images show, and as unsteady as the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sunzip.sources._sun import Sun, field, radio
from sunzip.sources.synthetic import radio_flux

REAL = Path(__file__).parents[3] / "shared/data/real/flux/cls_f107_19511101_20211202.csv"


def days(first: str, last: str) -> np.ndarray:
    return np.arange(first, last, dtype="M8[D]")


def test_it_is_a_function_of_date_and_seed() -> None:
    dates = days("2013-03-01", "2013-03-20")
    one, part, other = radio_flux(dates), radio_flux(dates[7:9]), radio_flux(dates, seed=1)
    for name in ("f30", "f107"):
        np.testing.assert_array_equal(one[name][1][7:9], part[name][1])
        assert (one[name][1] != other[name][1]).all()
    assert (one["f30"][1] < one["f107"][1]).all()


def test_the_distance_is_the_earths() -> None:
    dates = np.array(["2014-01-04", "2014-07-04"], "M8[D]")
    observed, adjusted = radio_flux(dates)["f30"]
    # Perihelion and aphelion: 0.9833 and 1.0167 au.
    np.testing.assert_allclose(observed / adjusted, [1 / 0.9833**2, 1 / 1.0167**2], rtol=1e-3)


def test_regions_fade_behind_the_limb() -> None:
    z = np.linspace(-1, 1, 401)
    seen = radio._seen(z, 0.5, 0.05)
    assert (np.diff(seen) >= 0).all()
    assert np.abs(np.diff(seen)).max() < 0.02
    assert (seen[0], seen[-1]) == (pytest.approx(0, abs=1e-9), 1)
    # A day beyond the limb a region is still half as bright as on it; after a quarter of a turn it is gone.
    assert radio._seen(-np.sin(np.deg2rad([13.2, 90])), 0.5, 0.05) == pytest.approx([0.29, 0], abs=0.05)


def test_it_is_of_the_regions_that_images_show() -> None:
    sun = Sun(0)
    (window,) = sun.windows(4800.0, 0.0)
    biggest = int(np.argmax(window.flux))
    flux = np.zeros_like(window.flux)
    flux[biggest] = window.flux[biggest]
    alone = field.Window(**{n: flux if n == "flux" else getattr(window, n) for n in field.Window.__slots__})
    t = window.birth[biggest] + np.arange(0, 40, 0.25)
    plage = np.array([radio.components([alone], v)[0] for v in t])
    lon = window.lon[biggest] + field.rotation(window.lat[biggest : biggest + 1])[0] * (t - t[0])
    behind = np.cos(lon) < -0.6
    assert behind.any()
    assert plage[behind].max() < 0.05 * plage.max()
    assert plage[np.cos(lon) > 0].max() == plage.max()


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_file(), reason="needs the real data in ../shared")
def test_f107_is_like_the_observed_one() -> None:
    from sunzip.studies.flux import read_flux

    dates = days("2013-01-01", "2015-01-01")
    real, ours = read_flux(REAL, "f107").at(dates), radio_flux(dates)["f107"][1]
    assert ours.mean() == pytest.approx(real.mean(), rel=0.2)
    assert ours.std() == pytest.approx(real.std(), rel=0.5)
    for lag in (1, 3, 7):
        change = [np.sqrt(np.mean((x[lag:] - x[:-lag]) ** 2)) for x in (ours, real)]
        assert change[0] == pytest.approx(change[1], rel=0.5)
