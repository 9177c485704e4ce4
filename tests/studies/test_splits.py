"""Splits: the paper's numbers, and no way for a held-out day into what is learnt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip.errors import InputError
from sunzip.studies.splits import TEST, TRAIN, VALIDATION, Months, Parts, Rows, month_folds

DAY = np.timedelta64(1, "D")


def rows(horizon: int, first: str = "2010-06-01", last: str = "2018-12-31") -> Rows:
    targets = np.arange(first, np.datetime64(last) + DAY, dtype="M8[D]")
    return Rows(targets - np.timedelta64(horizon, "D"), targets)


def month(dates: np.ndarray) -> np.ndarray:
    return dates.astype("M8[M]").astype(int) % 12 + 1


def none() -> np.ndarray:
    return np.zeros(0, np.intp)


def test_the_papers_split() -> None:
    for horizon in range(1, 8):
        parts = Months().parts(rows(horizon))
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [2640, 248, 248]
        assert set(month(parts.rows.targets[parts.test])) == {1}
        assert set(month(parts.rows.targets[parts.validation])) == {3}


@given(
    st.integers(1, 30),
    st.sets(st.integers(1, 12), min_size=1, max_size=4),
    st.sets(st.integers(1, 12), max_size=4),
    st.one_of(st.none(), st.integers(0, 40)),
    st.integers(1, 1200),
)
@settings(deadline=None, max_examples=60)
def test_nothing_held_out_is_learnt(
    horizon: int, test: set[int], validation: set[int], embargo: int | None, days: int
) -> None:
    validation -= test
    last = str(np.datetime64("2011-03-05") + days * DAY)
    parts = Months(tuple(test), tuple(validation), embargo).parts(rows(horizon, "2011-03-05", last))
    inputs, targets = parts.rows.inputs, parts.rows.targets
    held = targets[np.isin(month(targets), [*test, *validation])]
    assert set(month(targets[parts.test])) <= test
    assert set(month(targets[parts.validation])) <= validation
    assert not set(targets[parts.train]) & set(held)
    if embargo is not None:
        for row in parts.train:
            window = np.arange(inputs[row] - embargo * DAY, targets[row] + (embargo + 1) * DAY)
            assert not np.isin(window, held).any()
        # Nothing is left out in vain.
        left = np.setdiff1d(np.flatnonzero(~np.isin(targets, held)), parts.train)
        for row in left:
            assert np.isin(
                np.arange(inputs[row] - embargo * DAY, targets[row] + (embargo + 1) * DAY), held
            ).any()
    else:
        assert len(parts.train) == (~np.isin(targets, held)).sum()


def test_parts_that_overlap_are_refused() -> None:
    ten = rows(3, "2012-01-01", "2012-01-10")
    Parts(ten, np.arange(3), none(), np.arange(5, 10), None)
    with pytest.raises(InputError, match="2012-01-03 is a target twice"):
        Parts(ten, np.arange(3), none(), np.arange(2, 10), None)
    with pytest.raises(InputError, match="2012-01-04 is a target twice"):
        Parts(ten, np.arange(3), np.arange(3, 5), np.array([3, 8]), None)


def test_windows_that_overlap_are_refused() -> None:
    ten = rows(3, "2012-01-01", "2012-01-10")
    # The last to learn from has its target two days before the first to test: no target is shared.
    train, test = np.arange(3), np.arange(4, 8)
    Parts(ten, train, none(), test, None)
    Parts(ten, train, none(), test, 1)
    with pytest.raises(InputError, match="to 2012-01-03 is within 2 days of a target that is held out"):
        Parts(ten, train, none(), test, 2)
    # One to learn from after the test sees, as its input, a flux that was to be forecast.
    late = np.array([9])
    Parts(ten, late, none(), test, None)
    with pytest.raises(InputError, match="from 2012-01-07 to 2012-01-10 is within 0 days"):
        Parts(ten, late, none(), test, 0)
    # The same holds for what trees are chosen by.
    with pytest.raises(InputError, match="from 2012-01-07 to 2012-01-10 is within 0 days"):
        Parts(ten, none(), late, test, 0)


def test_inputs_of_the_future_are_refused() -> None:
    ten = rows(3, "2012-01-01", "2012-01-10")
    for shift in (3, 4):
        shifted = Rows(ten.inputs + np.timedelta64(shift, "D"), ten.targets)
        with pytest.raises(InputError, match="is not before its target 2012-01-01"):
            Months().parts(shifted)


@pytest.mark.parametrize(
    ("test", "validation"), [((), (3,)), ((1, 1), ()), ((1,), (1,)), ((0,), (3,)), ((13,), ())]
)
def test_months_are_months(test: tuple[int, ...], validation: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="name some from 1 to 12, each once"):
        Months(test, validation)


def test_folds_test_every_day_once() -> None:
    tested = []
    for fold in month_folds(14):
        parts = fold.parts(rows(5))
        assert len(parts.train) > 2000
        assert not len(parts.validation)
        tested.append(parts.rows.targets[parts.test])
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), rows(5).targets)


def test_days_that_may_be_seen() -> None:
    dates = np.arange("2011-12-01", "2012-05-01", dtype="M8[D]")
    seen = Months().seen(dates)
    assert set(month(dates[seen])) == {12, 2, 4}
    part = Months().part(dates)
    assert [(part == p).sum() for p in (TRAIN, VALIDATION, TEST)] == [31 + 29 + 30, 31, 31]
    near = Months((1,), (), 10).seen(dates)
    assert (dates[~near].min(), dates[~near].max()) == (
        np.datetime64("2011-12-22"),
        np.datetime64("2012-02-10"),
    )
