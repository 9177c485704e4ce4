"""Times as stores and users write them, turned into UTC milliseconds, whole columns at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sunzip.errors import InputError

Times = npt.NDArray[np.datetime64]


class Wrapped(Protocol):
    """A time or a number as NumPy, astropy and xarray have it: an array without axes."""

    @property
    def ndim(self) -> int:
        """How many axes it has: none."""


#: A time as users give it: see `parse_date`.
When = str | date | Wrapped

#: A longer text is no time; the limit keeps a hostile string from widening the whole column.
_MAX_TEXT = 40
_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}

#: By how many milliseconds the scales of TIMESYS are ahead of TAI, which is one of them. TDB is TT, but for
#: 2 ms at most; the names after it are deprecated.
_AHEAD_OF_TAI = {"TAI": 0, "TT": 32_184, "TDB": 32_184, "GPS": -19_000} | {
    "IAT": 0,
    "TDT": 32_184,
    "ET": 32_184,
}

#: Times of the years 1 to 9999: those of ISO 8601.
_FIRST, _END = np.array(["0001-01-01", "10000-01-01"], "datetime64[ms]")

#: What numbers count, by CF's words for it: the milliseconds of each, and into how many parts it is cut.
_COUNTED: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("d", "day", "days"), (_MS["d"], 1)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), (_MS["h"], 1)),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), (_MS["min"], 1)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), (_MS["s"], 1)),
    **dict.fromkeys(("ms", "msec", "msecs", "millisec", "millisecs", "millisecond", "milliseconds"), (1, 1)),
    **dict.fromkeys(("us", "microsec", "microsecs", "microsecond", "microseconds"), (1, 10**3)),
    **dict.fromkeys(("ns", "nanosec", "nanosecs", "nanosecond", "nanoseconds"), (1, 10**6)),
}

#: From when on they do: ``1992-10-8 15:15:42.5 -6:00``, of which all behind the date may be left out.
_SINCE = re.compile(
    r"\s*(\w+)\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T\s]\s*(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,9}))?)?)?"
    r"\s*(?:Z|UTC|GMT|([+-]?)(\d{1,2}):?(\d\d)?)?\s*",
    re.ASCII | re.IGNORECASE,
)
#: From which day on the calendar of the world is the one that NumPy has for all times.
_GREGORIAN = datetime(1582, 10, 15)


def parse_t_obs(values: Iterable[object]) -> Times:
    """Turn a column of observation times into UTC.

    Understood are AIA's ``2010-08-27T15:00:08.07Z`` (any number of decimals, with or without ``Z``, blank
    or ``_`` for ``T``), HMI's ``2010.05.01_00:12:04_TAI`` (seconds may read ``60``), and numpy's and
    Python's own dates. Decimals beyond the millisecond are rounded.

    Parameters
    ----------
    values
        N times in any mixture; an array of datetime64 is converted as it is.

    Returns
    -------
    numpy.ndarray
        (N,) datetime64[ms], UTC; NaT for whatever is no time, None included.

    Examples
    --------
    >>> parse_t_obs(["2010-08-27T15:00:08.07Z", "2010.05.01_00:11:60_TAI", None]).astype(str).tolist()
    ['2010-08-27T15:00:08.070', '2010-05-01T00:11:26.000', 'NaT']
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        times: Times = values.astype("datetime64[ms]")
        return times
    text = np.array([_as_bytes(v) for v in values], dtype=f"S{_MAX_TEXT}")
    # Two zero bytes of margin on the right let every row be asked for what follows its last digit.
    raw = np.zeros((text.size, _MAX_TEXT + 8), np.uint8)
    raw[:, :_MAX_TEXT] = text.view(np.uint8).reshape(text.size, _MAX_TEXT)

    good = np.ones(text.size, bool)

    def number(first: int, last: int) -> npt.NDArray[np.int64]:
        nonlocal good
        digits = raw[:, first:last].astype(np.int64) - ord("0")
        good &= ((digits >= 0) & (digits <= 9)).all(axis=1)
        total: npt.NDArray[np.int64] = digits @ 10 ** np.arange(last - first - 1, -1, -1)
        return total

    def mark(at: int, allowed: bytes) -> None:
        nonlocal good
        good &= np.isin(raw[:, at], np.frombuffer(allowed, np.uint8))

    year, month, day = number(0, 4), number(5, 7), number(8, 10)
    hour, minute, second = number(11, 13), number(14, 16), number(17, 19)
    for at, allowed in ((4, b"-."), (7, b"-."), (10, b"T_ "), (13, b":"), (16, b":")):
        mark(at, allowed)
    good &= raw[:, 4] == raw[:, 7]
    # 60 is a leap second in UTC and a rounding slip in HMI's TAI: both mean the second after 59.
    good &= (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 60) & (year >= 1)

    dot = raw[:, 19] == ord(".")
    digits = raw[:, 20:_MAX_TEXT] - np.uint8(ord("0"))  # others wrap around to more than 9
    decimal = np.logical_and.accumulate((digits <= 9) & dot[:, None], axis=1)
    end = 19 + dot + decimal.sum(axis=1)
    nanos = np.where(decimal[:, :9], digits[:, :9], 0) @ 10 ** np.arange(8, -1, -1)

    rest = np.take_along_axis(raw, end[:, None] + np.arange(5), axis=1).reshape(-1).view("S5")
    tai = np.isin(rest, np.array([b"_TAI", b" TAI"]))
    good &= tai | np.isin(rest, np.array([b"", b"Z", b"_UTC", b" UTC"]))

    months = np.where(good, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    start = months.astype("datetime64[D]")
    following = (months + np.timedelta64(1, "M")).astype("datetime64[D]")
    good &= (day >= 1) & (day <= (following - start).astype(np.int64))
    ms = ((day - 1) * 24 + hour) * _MS["h"] + minute * _MS["min"] + second * _MS["s"]
    ms += (nanos + 500_000) // 1_000_000
    times = start.astype("datetime64[ms]") + np.where(good, ms, 0).astype("timedelta64[ms]")
    times[~good] = np.datetime64("NaT", "ms")
    tai &= good
    if tai.any():
        times[tai] = tai_to_utc(times[tai])
    return times


def time_of(header: Mapping[str, object], *keys: str) -> np.datetime64:
    """Return the time in a FITS header that the first of some keywords gives, if it is one, UTC; else NaT.

    A text that does not name its scale itself, as SDO's do, has that of TIMESYS: one of those in which atomic
    clocks tell time, as the FITS standard 4.0 has them (section 9.2.1), or else UTC.
    """
    system = str(header.get("TIMESYS", "")).partition("(")[0].strip().upper()
    ahead = _AHEAD_OF_TAI.get(system)
    for key in keys:
        value = header.get(key)
        times = parse_t_obs([value])
        # To a text that names its scale another one cannot be added.
        if ahead is not None and isinstance(value, str) and not np.isnat(parse_t_obs([f"{value}_TAI"])[0]):
            times = tai_to_utc(times - np.timedelta64(ahead, "ms"))
        if not np.isnat(times[0]):
            return times[0]  # type: ignore[no-any-return]
    return np.datetime64("NaT", "ms")


def parse_v1(stamps: Sequence[str]) -> Times:
    """Turn the ``20131125_0824`` of SDOML v1 file names into UTC.

    Returns
    -------
    numpy.ndarray
        (N,) datetime64[ms]; NaT where the digits are no date.
    """
    return parse_t_obs([f"{s[:4]}-{s[4:6]}-{s[6:8]}T{s[9:11]}:{s[11:]}:00" for s in stamps])


def parse_counts(values: npt.NDArray[Any], units: str, calendar: str = "standard") -> Times:
    """Turn numbers that count time from a date into UTC, as the CF conventions have them (section 4.4).

    Parameters
    ----------
    values
        Integers or floating point, of any shape.
    units
        ``"hours since 2010-01-01 00:00:00"`` or the like, in days down to nanoseconds.
    calendar
        ``"standard"``, ``"gregorian"`` or ``"proleptic_gregorian"``.

    Returns
    -------
    numpy.ndarray
        datetime64[ms] of the shape of `values`; NaT for what is no date of the years 1 to 9999, as NaN.

    Raises
    ------
    InputError
        If units or calendar are others.

    Examples
    --------
    >>> parse_counts(np.array([0.5, np.nan]), "hours since 2014-1-1 6:00 +01:00").astype(str).tolist()
    ['2014-01-01T05:30:00.000', 'NaT']
    """
    wanted = "write seconds since 1970-01-01, or texts as 2014-01-31T06:00:00"
    if calendar.strip().lower() not in ("standard", "gregorian", "proleptic_gregorian"):
        raise InputError(f"is of the calendar {calendar!r:.60}; {wanted}")
    match = _SINCE.fullmatch(units)
    unit = _COUNTED.get(match[1].lower()) if match else None
    if match is None or unit is None:
        raise InputError(f"counts {units!r:.60}, which is not understood; {wanted}")
    try:
        since = datetime(*(int(match[i] or 0) for i in range(2, 8)))  # type: ignore[arg-type]
        since += timedelta(microseconds=round(float(f"0.{match[8] or 0}") * 1e6))
        west = timedelta(hours=int(match[10] or 0), minutes=int(match[11] or 0))
        since += west if match[9] == "-" else -west
    except (ValueError, OverflowError):
        raise InputError(f"counts {units!r:.60}, where there is no such date; {wanted}") from None
    if since < _GREGORIAN and "proleptic" not in calendar.lower():
        raise InputError(f"counts {units!r:.60} by the calendar that was in use before 1582; {wanted}")
    start = np.datetime64(since, "us").astype("datetime64[ms]")
    each, parts = unit
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
    # The least of all numbers is how NumPy and xarray write that there is no time.
    least = max(-(int((start - _FIRST).astype(np.int64)) * parts // each), 1 - 2**63)
    most = min((int((_END - start).astype(np.int64)) * parts - 1) // each, 2**63 - 1)
    known = (values >= least) & (values <= most)
    if values.dtype.kind == "f":
        ms = np.rint(values[known] * each / parts).astype(np.int64)
    else:
        whole, rest = np.divmod(values[known].astype(np.int64), parts)
        ms = whole * each + (2 * rest >= parts) * (parts > 1)
    times = np.full(values.shape, np.datetime64("NaT", "ms"), "datetime64[ms]")
    times[known] = start + ms.astype("timedelta64[ms]")
    return times


def tai_to_utc(times: Times) -> Times:
    """Convert times from TAI to UTC with the leap seconds that astropy carries; needs no network.

    Times inside a leap second, which datetime64 cannot tell, come out as the second after it.

    Parameters
    ----------
    times
        datetime64[ms] in TAI, from 1972 on.
    """
    starts, offsets = _leap_seconds()
    return times - offsets[np.maximum(np.searchsorted(starts + offsets, times, side="right") - 1, 0)]


def utc_to_tai(times: Times) -> Times:
    """Convert times from UTC to TAI, the inverse of `tai_to_utc`; datetime64[ms], from 1972 on."""
    starts, offsets = _leap_seconds()
    return times + offsets[np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)]


def format_tai(times: Times) -> list[str]:
    """Write UTC times as HMI's keywords do, ``YYYY.MM.DD_HH:MM:SS_TAI``; ``""`` for NaT.

    Whole seconds are written without decimals, as HMI does; others keep their milliseconds.
    """
    known = ~np.isnat(times)
    tai = times.astype("datetime64[ms]").copy()
    tai[known] = utc_to_tai(tai[known])
    texts = np.datetime_as_string(tai, unit="ms").tolist()
    return [
        f"{t[:10].replace('-', '.')}_{t[11:].removesuffix('.000')}_TAI" if ok else ""
        for t, ok in zip(texts, known.tolist(), strict=True)
    ]


def format_utc(times: Times) -> list[str]:
    """Write UTC times as AIA's keywords do, ``2010-08-27T15:00:08.070Z``; ``""`` for NaT."""
    texts = np.datetime_as_string(times.astype("datetime64[ms]"), unit="ms").tolist()
    return [f"{t}Z" if t != "NaT" else "" for t in texts]


def t_obs_keyword(time: np.datetime64, instrument: Literal["AIA", "HMI"]) -> str:
    """Write a UTC time (ms) as the keyword T_OBS of an instrument: AIA in UTC, HMI in TAI.

    Examples
    --------
    >>> t_obs_keyword(np.datetime64("2010-05-01T00:11:30.000", "ms"), "HMI")
    '2010.05.01_00:12:04_TAI'
    >>> t_obs_keyword(np.datetime64("2010-08-27T15:00:08.070", "ms"), "AIA")
    '2010-08-27T15:00:08.070Z'
    """
    return (format_tai if instrument == "HMI" else format_utc)(np.array([time], "datetime64[ms]"))[0]


def parse_duration(value: str | timedelta | np.timedelta64, *, name: str = "duration") -> np.timedelta64:
    """Turn ``"12min"``, ``"1h"``, ``"36s"`` or ``"1D"`` into milliseconds.

    Parameters
    ----------
    value
        A number and one of the units s, min, h, D; or a timedelta.
    name
        What the user calls it, for the message.

    Returns
    -------
    numpy.timedelta64
        Of unit ms, greater than zero.

    Raises
    ------
    InputError
        If it is no duration, or not a positive whole number of milliseconds.
    """
    wanted = f"{name} {str(value)!r} is not a duration; write a number and a unit: 36s, 12min, 1h, 1D"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\.(\d{1,3}))?\s*(s|min|h|[dD])\s*", value, re.ASCII)
        if match is None:
            raise InputError(wanted)
        thousandths = int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))
        ms, odd = divmod(thousandths * _MS[match[3].lower()], 1000)
    else:
        if not isinstance(value, timedelta | np.timedelta64) or np.isnat(np.timedelta64(value)):
            raise InputError(wanted)
        span = np.timedelta64(value)
        if np.datetime_data(span.dtype)[0] in ("Y", "M", "generic"):
            raise InputError(wanted)
        us = int(span.astype("timedelta64[us]").astype(np.int64))
        ms, odd = divmod(us, 1000)
    if odd or ms <= 0:
        raise InputError(f"{name} {str(value)!r} must be longer than zero and whole milliseconds")
    return np.timedelta64(ms, "ms")


def plain(value: Any) -> Any:
    """Return astropy's Time as text in UTC, and an array of no axes as what it holds; all else as it is."""
    # Who has one has imported it; to import it here would take longer than to open an archive.
    astropy = sys.modules.get("astropy.time")
    if getattr(value, "ndim", None) != 0:
        return value
    if astropy is not None and isinstance(value, astropy.Time):
        return value.utc.isot
    return np.asarray(value)[()]


def parse_date(value: When, *, name: str = "date") -> np.datetime64:
    """Turn a user's ``2014-01-01``, ``2014-01``, ``2014-01-01T06:00`` … into a UTC time.

    Parameters
    ----------
    value
        ISO 8601 with dashes, with or without ``Z`` or an offset, HMI's TAI notation, or a date object of
        Python, NumPy, pandas or astropy; naive ones are UTC.
    name
        What the user calls it, for the message.

    Returns
    -------
    numpy.datetime64
        Of unit ms.

    Raises
    ------
    InputError
        If it is no date.
    """
    value = plain(value)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d{4}(-\d\d)?", text, re.ASCII):
            text += "-01-01"[len(text) - 4 :]
        moment: str | datetime = text
        # Python takes anything between date and time, the sign of an offset, too; and decimals of an hour
        # or a minute, which ISO has, for those of a second.
        if re.fullmatch(r"\d{4}-\d\d-\d\d([T_ ](?!\d\d(:?\d\d)?[.,]).*)?", text, re.ASCII):
            with suppress(ValueError):
                moment = datetime.fromisoformat(text)
        time: np.datetime64 = parse_t_obs([moment])[0]
    elif isinstance(value, datetime):
        time = parse_t_obs([value])[0]
    elif isinstance(value, date):
        time = np.datetime64(value, "ms")
    elif isinstance(value, np.datetime64):
        time = value.astype("datetime64[ms]")
    else:
        time = np.datetime64("NaT", "ms")
    if np.isnat(time):
        raise InputError(f"{name} {str(value)!r} is not a date; write 2014-01-31 or 2014-01-31T06:00")
    return time


def _as_bytes(value: object) -> bytes:
    """Return the text of one time as ASCII; empty where there is none."""
    if isinstance(value, np.datetime64):
        value = str(value.astype("datetime64[ms]"))
    elif isinstance(value, datetime):
        try:
            value = (value.astimezone(UTC) if value.tzinfo else value).replace(tzinfo=None)
        except OverflowError:  # in UTC it is of a year that Python does not have
            return b""
        value = value.isoformat(timespec="microseconds")
    elif isinstance(value, bytes) and len(value) <= _MAX_TEXT:
        value = value.decode("ascii", "replace")
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        return b""
    return value.strip().encode("ascii", "replace")


@cache
def _leap_seconds() -> tuple[Times, npt.NDArray[np.timedelta64]]:
    """Return the UTC dates from which each value of TAI - UTC holds, and the values.

    The table that comes with astropy is read directly: `astropy.time.Time` would be 12 s for a million
    rows, warn about years ahead, and may look for newer leap seconds on the network.
    """
    from astropy.utils.iers import LeapSeconds

    table = LeapSeconds.from_iers_leap_seconds()
    starts = np.array([f"{y:04d}-{m:02d}-01" for y, m in zip(table["year"], table["month"], strict=True)])
    offsets = np.round(np.asarray(table["tai_utc"], np.float64) * 1000).astype(np.int64)
    return starts.astype("datetime64[ms]"), offsets.astype("timedelta64[ms]")
