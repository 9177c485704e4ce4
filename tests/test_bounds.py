"""Bounds as users say them, and what they allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip.bounds import Bound, Measure, bounds_in, bounds_of, in_short, told
from sunzip.channels import NAMES, channel
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.normalize import NOISE

SOME = ("171A", "193A", "Bz")


@pytest.mark.parametrize(
    ("wish", "means"),
    [
        ("5%", "171A=5%,193A=5%,Bz=5%"),
        ("2 sigma", "171A=2sigma,193A=2sigma,Bz=2sigma"),
        ("2σ, Bz=20G", "171A=2sigma,193A=2sigma,Bz=20G"),
        ("10DN/s", "171A=10DN/s,193A=10DN/s"),
        ("10DN/s,20 Gauss", "171A=10DN/s,193A=10DN/s,Bz=20G"),
        ("AIA171=0.5dn , hmi bz=1e2g", "171A=0.5DN/s,Bz=100G"),
        ("2sigma,20G,171A=5%", "171A=5%,193A=2sigma,Bz=20G"),
        ("20G,2sigma", "171A=2sigma,193A=2sigma,Bz=20G"),
        ({"193A": "1.50%", "bz": "3sigma"}, "193A=1.5%,Bz=3sigma"),
    ],
)
def test_what_is_wished_is_read(wish, means):
    assert told(bounds_of(wish, SOME)) == means


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("", "'' is no bound"),
        ("5", "is no bound; a bound is 5%"),
        ("0%", "is no bound"),
        ("-1%", "is no bound"),
        ("nan%", "is no bound"),
        ("1e999%", "is no bound"),
        ("1.2.3%", "is no bound"),
        ("5 apples", "is no bound"),
        ("5%,", "'' is no bound"),
        ("304A=5%", "there is no 304A among 171A 193A Bz"),
        ("999A=5%", r"^max_error \(--max-error\): unknown channel '999A'"),
        ("171A=5G", "171A is in DN/s, not in G"),
        ("5%,2sigma", "'2sigma' bounds once more"),
        ("171A=5%,0171=6%", "once more"),
        ("10DN/s,20DN/s", "once more"),
        (5, "text or texts by channel"),
        ({"171A": 5}, "text or texts by channel"),
    ],
)
def test_what_is_no_bound_is_refused(wish, says):
    with pytest.raises(InputError, match=says):
        bounds_of(wish, SOME)


def test_a_bound_must_hold_for_something():
    with pytest.raises(InputError, match="holds for none of 171A"):
        bounds_of("20G", ["171A"])


@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.tuples(st.sampled_from(Measure), st.floats(1e-12, 1e9)), min_size=1
    )
)
def test_what_is_told_is_read_back(sizes):
    bounds = {name: Bound(*sizes[name]) for name in NAMES if name in sizes}
    assert bounds_of(told(bounds)) == bounds
    assert bounds_in({"max_error": told(bounds)}, NAMES) == bounds
    for text in told(bounds).split(","):
        assert text.partition("=")[2] in in_short(bounds)


@pytest.mark.parametrize(
    "text", [None, 5, "", "2sigma", "193A=2sigma,171A=2sigma", "171A=2.0sigma", "1" * 2000]
)
def test_a_configuration_of_a_stranger_says_it_as_sunzip_does(text):
    with pytest.raises(InputError):
        bounds_in({"max_error": text}, SOME)


def test_no_bound_is_none():
    assert bounds_in({}, SOME) == {}


def test_what_is_allowed():
    x = np.array([0, 100, -100, np.nan], np.float32)
    a, b = NOISE["171A"]
    sigma = np.sqrt([a * b, a * (100 + b), a * (100 + b), np.nan])

    def allowed(text, scale=Scale.MEAN, pixels=x):
        return bounds_of(f"171A={text}")["171A"].tolerance(pixels, "171A", scale)

    np.testing.assert_allclose(allowed("5%"), [0, 5, 5, np.nan], atol=1e-30)
    np.testing.assert_array_equal(allowed("10DN/s"), [10, 10, 10, np.nan])
    np.testing.assert_array_equal(allowed("10DN/s", Scale.SUM), [10, 10, 10, np.nan])
    np.testing.assert_allclose(allowed("2sigma"), 2 * sigma)
    # A sum is four means, and so is its noise.
    np.testing.assert_allclose(allowed("2sigma", Scale.SUM, 4 * x), 8 * sigma)
    # As text, too, which an archive's own scale is.
    np.testing.assert_array_equal(allowed("2sigma", "sum", 4 * x), allowed("2sigma", Scale.SUM, 4 * x))
    with pytest.raises(InputError, match="a scale is 'mean' or 'sum', not 'both'"):
        allowed("2sigma", "both")
    assert channel("Bz").unit == "G"
    bz = bounds_of("Bz=1sigma")["Bz"]
    np.testing.assert_array_equal(bz.tolerance(x, "Bz", Scale.SUM), bz.tolerance(x, "Bz", Scale.MEAN))


def test_pixels_outside_are_counted():
    x = np.array([1, 2, 3, np.nan], np.float32)
    bound = bounds_of("171A=1DN/s")["171A"]
    assert bound.outside(x, np.array([2, 3.01, 1.9, 5], np.float32), "171A", Scale.MEAN) == 2
    assert bound.outside(x, np.array([2, 3, np.nan, 5], np.float32), "171A", Scale.MEAN) == 0
