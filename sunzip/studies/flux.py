"""Daily radio flux in the layout of LISIRD's files: F3.2 to F30 as observed, or that of the synthetic Sun."""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown

import numpy as np
import numpy.typing as npt

from sunzip.errors import InputError
from sunzip.files import put, read_within
from sunzip.sinks.base import refuse
from sunzip.sources.synthetic import radio_flux

Dates = npt.NDArray[np.datetime64]
Doubles = npt.NDArray[np.float64]

#: Larger files are no daily series: a century of days is 2 MB.
MAX_BYTES = 1 << 26

#: No day had so much at any of these wavelengths: the highest of a cycle are some hundreds of units.
NO_FLUX = 9_999

#: The name of a column that says that nothing in the file was observed; it holds the seed.
SYNTHETIC = "synthetic"

_TIME, _UNIT = "time (yyyy MM dd)", "solar flux unit (SFU)"
_DATE = re.compile(r"(\d{4}) (\d{1,2}) (\d{1,2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Flux:
    """A daily series of radio flux.

    Attributes
    ----------
    path, column
        Where it is from: the column's bare name.
    date
        (N,) datetime64[D], ascending, each once; there may be gaps.
    values
        (N,) float64 in solar flux units, NaN where there is none.
    synthetic
        Whether the file says that it was made up.
    """

    path: str
    column: str
    date: Dates
    values: Doubles
    synthetic: bool

    def at(self, dates: Dates) -> Doubles:
        """Return the values of some dates, NaN where there is none."""
        place = np.minimum(np.searchsorted(self.date, dates), len(self.date) - 1)
        return np.where(self.date[place] == dates, self.values[place], np.nan)


def read_flux(path: str | os.PathLike[str], column: str) -> Flux:
    """Read one column of a file as https://lasp.colorado.edu/lisird gives it as CSV.

    Parameters
    ----------
    path
        Of rows ``2014 1 31,158.1,…`` (dates are not padded) below a header of names and, in parentheses,
        units.
    column
        By its bare name: ``adjusted_f30``, ``absolute_f107_c``. ``f30`` is short for ``adjusted_f30``, the
        flux at 1 au: images, whose disks are of one size, know nothing of the Sun's distance.

    Returns
    -------
    Flux
        Values that are missing, not above 0, or above what the Sun ever gave in a day are NaN.

    Raises
    ------
    InputError
        If the file cannot be read, is of another layout, or lacks the column.
    """
    name = os.fspath(path)
    if "://" in name:
        raise InputError(f"{name}: a flux is read from a local file; fetch it first")
    data = read_within(name, MAX_BYTES, "a century of daily fluxes has 2 MB")
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{name}: is no CSV of LISIRD") from None
    head = [title.partition("(")[0].strip() for title in rows[0]] if rows else []
    if not head or rows[0][0].strip() != _TIME:
        # LISIRD has other layouts, too: Penticton's F10.7 is of three values a day, by Julian date.
        begins = shown(rows[0][0].strip()) if rows and rows[0] else "nothing"
        raise InputError(
            f"{name}: begins with {begins} where LISIRD's cls_radio_flux_… files have {_TIME!r} and commas; "
            "fetch one of these, of F10.7 cls_radio_flux_f107, or write the series as they are"
        )
    bare = column if column in head else f"adjusted_{column}"
    if not text.endswith(("\n", "\r")):
        # Its last value may have lost digits.
        raise InputError(f"{name}: ends within a line; fetch it again")
    if head.count(bare) != 1 or bare == head[0]:
        known = ", ".join(h for h in head[1:] if not h.endswith(("_c", "_p", "_f")) and h != SYNTHETIC)
        raise InputError(f"{name}: has no column {column!r}; it has {' '.join(known.split())[:400]}")
    place = head.index(bare)
    # Editors end files with empty lines, and spreadsheets with some of commas.
    days = [(n, row) for n, row in enumerate(rows[1:], start=2) if any(map(str.strip, row))]
    dates, values = np.empty(len(days), "M8[D]"), np.full(len(days), np.nan)
    for i, (n, row) in enumerate(days):
        where = f"{name}: line {n}"
        if len(row) != len(head):
            raise InputError(
                f"{where} has {len(row)} values where the header has {len(head)}; fetch it again"
            )
        dates[i] = _date(row[0], where)
        if i and dates[i] <= dates[i - 1]:
            raise InputError(f"{where}: {shown(row[0])} does not come after the line before")
        if cell := row[place].strip():
            try:
                value = float(cell)
            except ValueError:
                raise InputError(f"{where}: {shown(cell)} in column {bare} is no number") from None
            # LISIRD marks gaps by NaN, others by numbers that no flux has: -1, 0, 99999.
            values[i] = value if 0 < value < NO_FLUX else np.nan
    if not np.isfinite(values).any():
        raise InputError(f"{name}: column {bare} holds no flux")
    return Flux(name, bare, dates, values, SYNTHETIC in head)


def _date(text: str, where: str) -> np.datetime64:
    found = _DATE.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        return np.datetime64("{}-{:0>2}-{:0>2}".format(*found.groups()), "D")
    except ValueError:
        raise InputError(f"{where}: {shown(text)} is no date as in 2014 1 31") from None


def write_flux(path: str | os.PathLike[str], times: Dates, seed: int) -> None:
    """Write the flux of a synthetic Sun in LISIRD's layout, with a column that says what it is.

    Parameters
    ----------
    path
        A file that does not exist yet.
    times
        Of frames; the flux is that of all days from the first to the last.
    seed
        Of the Sun.

    Raises
    ------
    OutputError
        If the file exists or cannot be written.
    """
    first, last = times.min().astype("M8[D]"), times.max().astype("M8[D]")
    dates = np.arange(first, last + np.timedelta64(1, "D"))
    titles, columns = [_TIME], list[Doubles]()
    for name, both in radio_flux(dates, seed=seed).items():
        for kind, values in zip(("absolute", "adjusted"), both, strict=True):
            titles.append(f"{kind}_{name} ({_UNIT})")
            columns.append(values)
    lines = [",".join([*titles, SYNTHETIC])]
    for date, *row in zip(dates.tolist(), *columns, strict=True):
        numbers = ",".join(f"{value:.1f}" for value in row)
        lines.append(f"{date.year} {date.month} {date.day},{numbers},{seed}")
    refuse(Path(path))
    put({path: "\n".join([*lines, ""]).encode("ascii")})
