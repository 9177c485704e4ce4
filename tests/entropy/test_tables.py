"""Tables: rounding, fitting, and refusal of arrays that are no tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from sunzip.entropy.tables import MAX_LENGTH, MAX_TABLES, PRECISION, Tables
from sunzip.errors import DamagedError

TOTAL = 1 << PRECISION
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def table(tables, k):
    begin = tables.offsets[k]
    return tables.frequencies[begin : begin + tables.length[k]].astype(np.int64)


def arrays(frequencies=(TOTAL - 1, 1), lowest=(0,), length=(2,)):
    return {
        "frequencies": np.array(frequencies, np.uint32),
        "lowest": np.array(lowest, np.int32),
        "length": np.array(length, np.int32),
    }


weights = st.floats(0, 1e6, allow_subnormal=False)


@given(st.lists(st.lists(weights, min_size=1, max_size=30), min_size=1, max_size=5), weights)
def test_rounded_probabilities_are_valid_and_close(rows, escape):
    if any(sum(row) + escape == 0 for row in rows):
        rows = [[*row, 1.0] for row in rows]
    tables = Tables.from_probabilities(rows, [0] * len(rows), [escape] * len(rows))
    for k, row in enumerate(rows):
        got = table(tables, k)
        want = np.array([*row, escape]) / (math.fsum(row) + escape)
        assert got.min() >= 1
        assert got.sum() == TOTAL
        # An entry loses at most its share of the L ones, the most probable takes what floors leave over.
        assert np.abs(got - want * TOTAL).max() <= 2 * got.size + 1


def test_rounding_depends_on_the_weights_alone():
    rng = np.random.default_rng(0)
    rows = [rng.random(n) for n in (1, 7, 1000)]
    first = Tables.from_probabilities(rows, [0, 0, 0], [0.1, 0.1, 0.1])
    strided = [np.repeat(row, 3)[::3] for row in rows]
    again = Tables.from_probabilities(strided, [0, 0, 0], [0.1, 0.1, 0.1])
    np.testing.assert_array_equal(first.frequencies, again.frequencies)


@pytest.mark.parametrize("row", [[-1.0, 2.0], [math.nan], [math.inf], [0.0, 0.0]])
def test_weights_that_are_no_probabilities_are_refused(row):
    with pytest.raises(ValueError, match="probabilities"):
        Tables.from_probabilities([row], [0], [0.0])


@pytest.mark.parametrize("scale", [0.05, 0.11, 1.0, 8.3, 64.0])
def test_gaussian_probabilities(scale):
    tables = Tables.gaussian([scale])
    got = table(tables, 0) / TOTAL
    symbols = int(tables.lowest[0]) + np.arange(tables.length[0] - 1)
    want = norm.cdf(symbols + 0.5, scale=scale) - norm.cdf(symbols - 0.5, scale=scale)
    np.testing.assert_allclose(got[:-1], want, atol=2.0**-15)
    np.testing.assert_array_equal(table(tables, 0)[:-1], table(tables, 0)[-2::-1])
    assert 2.0**-17 < got[-1] < 2.0**-14
    outside = 2 * norm.sf(symbols[-1] + 0.5, scale=scale)
    assert outside <= 2.0**-16
    assert symbols[-1] == 0 or 2 * norm.sf(symbols[-1] - 0.5, scale=scale) > 2.0**-16


def test_gaussian_costs_what_the_source_holds():
    rng = np.random.default_rng(1)
    scales = np.array([0.12, 0.5, 3.0, 40.0])
    tables = Tables.gaussian(scales)
    index = np.repeat(np.arange(4), 20000)
    symbols = np.rint(rng.normal(0, scales[index])).astype(np.int32)
    log2p = np.log2(
        norm.cdf(symbols + 0.5, scale=scales[index]) - norm.cdf(symbols - 0.5, scale=scales[index])
    )
    assert tables.cost_bits(symbols, index) == pytest.approx(-log2p.sum(), rel=0.002)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e5])
def test_gaussian_refuses_impossible_scales(scale):
    with pytest.raises(ValueError, match="scale"):
        Tables.gaussian([scale])


@given(
    st.lists(st.integers(0, 2**40), max_size=40),
    st.integers(INT32_MIN, INT32_MAX - 40),
    st.integers(4, 64),
)
def test_fitted_tables_are_valid_and_bounded(counts, lowest, longest):
    tables = Tables.from_counts([counts], [lowest + np.arange(len(counts))], longest=longest)
    assert 2 <= tables.length[0] <= longest
    assert table(tables, 0).sum() == TOTAL


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_fitted_tables_code_unseen_data_near_its_entropy(scale):
    rng = np.random.default_rng(2)
    seen = np.rint(rng.laplace(0.3, scale, 5000)).astype(np.int64)
    fresh = np.rint(rng.laplace(0.3, scale, 20000)).astype(np.int64)
    symbols, counts = np.unique(seen, return_counts=True)
    tables = Tables.from_counts([counts], [symbols])
    share = np.unique(fresh, return_counts=True)[1] / fresh.size
    entropy = -(share * np.log2(share)).sum()
    assert tables.cost_bits(fresh, np.zeros_like(fresh)) / fresh.size < 1.01 * entropy + 0.005


def test_fitted_tables_leave_outliers_to_the_escape_and_collapsed_symbols_free():
    # What lies between symbols takes no memory.
    counts, symbols = [[10_000, 1, 1], [50_000], []], [[0, 100_000, INT32_MAX], [0], []]
    tables = Tables.from_counts(counts, symbols)
    assert tables.length[0] < 100
    zeros = np.zeros(1000, np.int64)
    assert tables.cost_bits(zeros, zeros) < 2
    assert tables.cost_bits(zeros, zeros + 1) < 0.1
    assert tables.cost_bits(np.array([100_000]), np.array([0])) < 48
    assert table(tables, 2).sum() == TOTAL  # a table that was never used still codes


@given(st.integers(2, 30), st.integers(1, 8))
def test_arrays_round_trip(length, k):
    tables = Tables.from_probabilities([np.arange(1, length)] * k, list(range(k)), [0.5] * k)
    again = Tables.from_arrays(tables.to_arrays())
    for name, array in tables.to_arrays().items():
        np.testing.assert_array_equal(array, again.to_arrays()[name])


def test_tables_do_not_share_memory_with_what_made_them():
    given_arrays = arrays()
    tables = Tables.from_arrays(given_arrays)
    given_arrays["frequencies"][0] = 7
    assert tables.frequencies[0] == TOTAL - 1
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0] = 7


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (arrays(frequencies=(TOTAL, 0)), "frequency is 0"),
        (arrays(frequencies=(TOTAL - 1, 2)), "sum"),
        (arrays(frequencies=(2**32 - 1, TOTAL + 1)), "sum"),
        (arrays(frequencies=(TOTAL,), length=(1,)), "fewer than 2"),
        (arrays(length=(-2,)), "fewer than 2"),
        (arrays(length=(2**31 - 1,)), "more than"),
        (arrays(length=(MAX_LENGTH + 1,)), "more than"),
        (arrays(length=(3,)), "2 frequencies"),
        (arrays(frequencies=(), lowest=(), length=()), "0 lengths"),
        (arrays(lowest=(0, 0)), "do not agree"),
        (arrays(frequencies=(1, TOTAL - 2, 1), lowest=(INT32_MAX,), length=(3,)), "largest 32-bit"),
        (arrays() | {"lowest": np.zeros(1, np.int64)}, "lowest"),
        (arrays() | {"length": np.full((1, 1), 2, np.int32)}, "length"),
        (arrays() | {"frequencies": np.array([0.5, 0.5])}, "frequencies"),
        (arrays(length=(2,) * (MAX_TABLES + 1), lowest=(0,) * (MAX_TABLES + 1)), "do not agree"),
        ({"lowest": np.zeros(1, np.int32)}, "no array 'frequencies'"),
    ],
)
def test_arrays_that_are_no_tables_are_refused(hostile, says):
    with pytest.raises(DamagedError, match=says):
        Tables.from_arrays(hostile)


def test_a_table_may_reach_both_ends_of_int32():
    tables = Tables.from_arrays(
        arrays((TOTAL - 1, 1, 1, TOTAL - 1), lowest=(INT32_MIN, INT32_MAX), length=(2, 2))
    )
    assert tables.cost_bits(np.array([INT32_MIN]), np.array([0])) < 1e-6
    # Escape of 24 bits, then 33 bits of distance in groups of 7.
    assert tables.cost_bits(np.array([INT32_MAX]), np.array([0])) == pytest.approx(24 + 40)


def test_cost_counts_the_escape_code():
    tables = Tables.from_arrays(arrays((TOTAL // 2, TOTAL // 2)))
    for symbol, groups in ((0, 0), (1, 1), (64, 1), (65, 2), (-64, 1), (-65, 2), (2**13, 2), (2**13 + 1, 3)):
        assert tables.cost_bits(np.array([symbol]), np.array([0])) == 1 + 8 * groups
