"""Which days a forecast learns from and which it is judged by, such that nothing leaks from these to those.

A row has an input day and a target day, some days later. Rows are split by the month of the target, as in
the paper. Where cross-validation wants more, an embargo keeps what is learnt from some days away from every
target that is held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sunzip.errors import InputError

Dates = npt.NDArray[np.datetime64]
Indexes = npt.NDArray[np.intp]

TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one horizon.

    Attributes
    ----------
    inputs, targets
        (N,) datetime64[D]: the day whose image is seen, and the day that is forecast.
    """

    inputs: Dates
    targets: Dates


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows to learn from, to choose by and to judge by: indexes that nothing leaks between.

    Parameters
    ----------
    rows
        What they are indexes of.
    train, validation, test
        (…,) each.
    embargo
        Days that inputs and targets of a part must stay away from the targets of later parts; None asks only
        that no target is in two parts, as the paper's split does.

    Raises
    ------
    InputError
        If a target is in two parts, an input is not before its target, or the embargo is not kept.
    """

    rows: Rows
    train: Indexes
    validation: Indexes
    test: Indexes
    embargo: int | None

    def __post_init__(self) -> None:
        rows = self.rows
        late = np.flatnonzero(rows.inputs >= rows.targets)
        if late.size:
            raise InputError(
                f"the input of {rows.inputs[late[0]]} is not before its target {rows.targets[late[0]]}"
            )
        used = np.concatenate([self.train, self.validation, self.test])
        targets, times = np.unique(rows.targets[used], return_counts=True)
        if (times > 1).any():
            raise InputError(f"the flux of {targets[times > 1][0]} is a target twice")
        if self.embargo is None:
            return
        for earlier, later in (
            (self.train, np.concatenate([self.validation, self.test])),
            (self.validation, self.test),
        ):
            near = _within(rows, earlier, rows.targets[later], self.embargo)
            if near.any():
                at = earlier[near][0]
                raise InputError(
                    f"the row from {rows.inputs[at]} to {rows.targets[at]} is within {self.embargo} days of "
                    "a target that is held out"
                )


@dataclass(frozen=True, slots=True)
class Months:
    """A split by the month of the target.

    Attributes
    ----------
    test, validation
        Months, 1 to 12, whose days are held out, of every year.
    embargo
        As of `Parts`; what does not keep it is left out.
    """

    test: tuple[int, ...] = (1,)
    validation: tuple[int, ...] = (3,)
    embargo: int | None = None

    def __post_init__(self) -> None:
        months = [*self.test, *self.validation]
        if not self.test or not set(months) <= set(range(1, 13)) or len(set(months)) < len(months):
            raise InputError(
                f"months {self.test} to test and {self.validation} to choose by: "
                "name some from 1 to 12, each once"
            )

    def parts(self, rows: Rows) -> Parts:
        """Split some rows."""
        part = self.part(rows.targets)
        train, validation, test = (np.flatnonzero(part == p) for p in (TRAIN, VALIDATION, TEST))
        if self.embargo is not None:
            validation = validation[~_within(rows, validation, rows.targets[test], self.embargo)]
            train = train[~_within(rows, train, rows.targets[part != TRAIN], self.embargo)]
        return Parts(rows, train, validation, test, self.embargo)

    def part(self, dates: Dates) -> npt.NDArray[np.int64]:
        """Return the part of each date: `TRAIN`, `VALIDATION` or `TEST`."""
        month = dates.astype("M8[M]").astype(np.int64) % 12 + 1
        return np.where(
            np.isin(month, self.test), TEST, np.where(np.isin(month, self.validation), VALIDATION, TRAIN)
        )

    def seen(self, dates: Dates) -> npt.NDArray[np.bool_]:
        """Whether each date is one that may be learnt from, be it without any target."""
        part = self.part(dates)
        days = Rows(dates, dates)
        near = _within(days, np.arange(len(dates)), dates[part != TRAIN], self.embargo or 0)
        found: npt.NDArray[np.bool_] = (part == TRAIN) & ~near
        return found


def month_folds(embargo: int) -> Iterator[Months]:
    """Return twelve splits: each month is tested once; nothing is chosen, so nothing is held out for that."""
    for month in range(1, 13):
        yield Months((month,), (), embargo)


def _within(rows: Rows, which: Indexes, held: Dates, days: int) -> npt.NDArray[np.bool_]:
    """Whether anything between input and target of some rows is within so many days of dates held out."""
    if not held.size:
        return np.zeros(len(which), bool)
    held = np.unique(held)
    begin = rows.inputs[which] - np.timedelta64(days, "D")
    end = rows.targets[which] + np.timedelta64(days, "D")
    # The first date held out that is not before the window's begin: it lies inside, or none does.
    place = np.searchsorted(held, begin)
    found: npt.NDArray[np.bool_] = (place < len(held)) & (held[np.minimum(place, len(held) - 1)] <= end)
    return found
