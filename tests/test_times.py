"""Times as stores and users write them."""

from __future__ import annotations

import datetime as dt
import socket
import time

import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from sunzip.errors import InputError
from sunzip.times import (
    format_tai,
    format_utc,
    parse_counts,
    parse_date,
    parse_duration,
    parse_t_obs,
    parse_v1,
    tai_to_utc,
    utc_to_tai,
)

MS = st.integers(-(2 * 365 * 86_400_000) + 1_262_304_000_000, 2_500_000_000_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2010-08-27T15:00:08.07Z", "2010-08-27T15:00:08.070"),
        ("2010-08-27T15:00:08Z", "2010-08-27T15:00:08.000"),
        ("2010-08-27T15:00:08", "2010-08-27T15:00:08.000"),
        ("2010-08-27 15:00:08.1234567", "2010-08-27T15:00:08.123"),
        ("2010-08-27T15:00:08.9996Z", "2010-08-27T15:00:09.000"),
        ("2010.05.01_00:12:04_TAI", "2010-05-01T00:11:30.000"),
        ("2010.05.01_00:11:60_TAI", "2010-05-01T00:11:26.000"),
        ("2013.01.31_23:59:60_TAI", "2013-01-31T23:59:25.000"),
        ("2017.05.01_00:12:04.500_TAI", "2017-05-01T00:11:27.500"),
        ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.500"),
        ("2012-02-29T00:00:00Z", "2012-02-29T00:00:00.000"),
        (b"2010-08-27T15:00:08.07Z", "2010-08-27T15:00:08.070"),
        (dt.datetime(2014, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2014-01-01T00:00:00.000"),
        (np.datetime64("2014-01-01T01:02:03.004005", "us"), "2014-01-01T01:02:03.004"),
    ],
)
def test_understood(text, expected):
    assert str(parse_t_obs([text])[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        None, "", "NaT", "MISSING", 3.5, 20140101, True, [], "2010-02-29T00:00:00", "2010-13-01T00:00:00",
        "2010-00-01T00:00:00", "2010-01-00T00:00:00", "2010-01-01T24:00:00", "2010-01-01T00:60:00",
        "2010-01-01T00:00:61", "2010-01-01T00:00:00+01:00", "2010-01-01T00:00:00ZZ", "2010-01-01",
        "2010-01.01T00:00:00", "2010-01-01T00:00:0x", "x" * 1_000_000, "2010-01-01T00:00:00." + "1" * 30,
        "２０１０-01-01T00:00:00", "2010-01-01T00:00:00\0Z", "2010.05.01_00:12:04_TAI_",
        "0000-01-01T00:00:00",
    ],
)  # fmt: skip
def test_not_understood_is_nat_and_spoils_nothing(text):
    good = "2010-08-27T15:00:08.07Z"
    found = parse_t_obs([good, text, good])
    assert np.isnat(found[1])
    assert (found[[0, 2]] == np.datetime64("2010-08-27T15:00:08.070")).all()


@given(st.lists(st.text(max_size=30) | st.none() | st.floats()))
def test_any_text_gives_one_time_each(values):
    found = parse_t_obs(values)
    assert found.shape == (len(values),)
    assert found.dtype == np.dtype("datetime64[ms]")


@given(st.lists(MS, min_size=1, max_size=20))
def test_round_trip_through_both_notations(values):
    times = np.array(values, "datetime64[ms]")
    np.testing.assert_array_equal(parse_t_obs(format_utc(times)), times)
    # The leap seconds themselves have no datetime64; all other times come back through TAI.
    np.testing.assert_array_equal(parse_t_obs(format_tai(times)), times)


def test_nat_is_written_as_nothing():
    times = np.array(["NaT", "2013-01-31T00:00:00"], "datetime64[ms]")
    assert format_tai(times) == ["", "2013.01.31_00:00:35_TAI"]
    assert format_utc(times) == ["", "2013-01-31T00:00:00.000Z"]


def test_tai_agrees_with_astropy_around_leap_seconds():
    from astropy.time import Time

    # 2012-07-01, 2015-07-01 and 2017-01-01 brought one each; the second itself is left out.
    edges = [
        f"{d}T00:00:{s:02d}.25" for d in ("2012-07-01", "2015-07-01", "2017-01-01") for s in range(30, 45)
    ]
    edges += ["2010-05-01T00:12:04", "2011-11-11T11:11:11.111", "2020-02-29T23:59:59.999"]
    tai = np.array(edges, "datetime64[ms]")
    ours = tai_to_utc(tai)
    utc = Time(edges, format="isot", scale="tai").utc.isot
    inside = np.array([":60." in t for t in utc])
    assert inside.sum() == 3
    expected = np.array([t for t, leap in zip(utc, inside, strict=True) if not leap], "datetime64[ms]")
    np.testing.assert_array_equal(ours[~inside], expected)
    np.testing.assert_array_equal(utc_to_tai(ours[~inside]), tai[~inside])
    assert (np.diff(ours[:15]) >= np.timedelta64(0, "ms")).all()


def test_needs_no_network_and_leaves_astropys_configuration(monkeypatch):
    from astropy.utils import iers

    from sunzip import times

    def refuse(*_):
        raise AssertionError("network asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = iers.conf.auto_download
    times._leap_seconds.cache_clear()
    assert str(parse_t_obs(["2010.05.01_00:12:04_TAI"])[0]) == "2010-05-01T00:11:30.000"
    assert iers.conf.auto_download == before


def test_fast_enough_for_years_of_rows():
    rows = ["2010-08-27T15:00:08.07Z", "2010.05.01_00:12:04_TAI"] * 50_000
    parse_t_obs(rows[:2])
    begin = time.process_time()
    parse_t_obs(rows)
    assert time.process_time() - begin < 3


def test_v1_stamps():
    found = parse_v1(["20131125_0824", "20130131_0000", "20131399_0824", "20131125_2460"])
    assert found[:2].astype(str).tolist() == ["2013-11-25T08:24:00.000", "2013-01-31T00:00:00.000"]
    assert np.isnat(found[2:]).all()


@pytest.mark.parametrize(
    ("text", "ms"),
    [("12min", 720_000), ("1h", 3_600_000), ("36s", 36_000), ("1D", 86_400_000), ("1d", 86_400_000),
     ("1.5h", 5_400_000), (" 0.3 s ", 300), (dt.timedelta(minutes=6), 360_000),
     (np.timedelta64(2, "h"), 7_200_000)],
)  # fmt: skip
def test_durations(text, ms):
    assert parse_duration(text) == np.timedelta64(ms, "ms")


@pytest.mark.parametrize(
    "text",
    ["", "12", "min", "12 m", "12mins", "-1h", "0s", "1h30min", "١h", "nan h", "1e3s", "0.0005s",
     "9" * 30 + "h",
     np.timedelta64("NaT", "ms"), np.timedelta64(1, "M"), dt.timedelta(0),
     dt.timedelta(microseconds=5)],
)  # fmt: skip
def test_no_durations(text):
    with pytest.raises(InputError, match=r"^cadence .*(duration|longer than zero)"):
        parse_duration(text, name="cadence")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2014", "2014-01-01T00:00"), ("2014-02", "2014-02-01T00:00"), ("2014-02-03", "2014-02-03T00:00"),
     ("2014-02-03T04:05", "2014-02-03T04:05"), ("2014-02-03 04:05Z", "2014-02-03T04:05"),
     ("2014-02-03T04:05:06.7Z", "2014-02-03T04:05:06.700"), (dt.datetime(2014, 2, 3), "2014-02-03T00:00"),
     (np.datetime64("2014-02-03"), "2014-02-03T00:00"), (dt.date(2014, 2, 3), "2014-02-03T00:00"),
     ("2014.02.03_00:00:35_TAI", "2014-02-03T00:00")],
)  # fmt: skip
def test_dates(text, expected):
    assert parse_date(text) == np.datetime64(expected, "ms")


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (Time("2014-01-31T06:00:00"), "2014-01-31T06:00"),
        (Time("2014-01-31T06:00:35", scale="tai"), "2014-01-31T06:00"),
        (Time(56688.25, format="mjd", precision=9), "2014-01-31T06:00"),
        (Time("2016-12-31T23:59:60.5"), "2017-01-01T00:00:00.500"),
        (np.array("2014-01-31T06:00", "M8[ns]"), "2014-01-31T06:00"),
        ("2014-01-31T06:00:00+00:00", "2014-01-31T06:00"),
        ("2014-01-31 06:00:00.250-05:30", "2014-01-31T11:30:00.250"),
        ("2014-01-31T06:00+01:00", "2014-01-31T05:00"),
        ("2014-01-31T06", "2014-01-31T06:00"),
        ("2014-01-31 06Z", "2014-01-31T06:00"),
        ("2014-01-31T06:00:00+0000", "2014-01-31T06:00"),
        ("2014-01-31T06:00+01", "2014-01-31T05:00"),
        ("2014-01-31T06:00:00,5", "2014-01-31T06:00:00.500"),
        ("2014-01-31T05:59:60", "2014-01-31T06:00"),
        ("2014-01-31T06:00:00.2505001", "2014-01-31T06:00:00.251"),
    ],
)
def test_dates_of_other_libraries(moment, expected):
    assert parse_date(moment) == np.datetime64(expected, "ms")


@pytest.mark.parametrize(
    "moment",
    [
        Time(["2014-01-31", "2014-02-01"]),
        "2014-02-30T06:00:00+00:00",
        "2014-01-31-06",
        "2014-01-31T06.5",  # half an hour, which Python takes for half a second
        "2014-01-31T06:30,5+01:00",
        "0001-01-01T00:00+01:00",
    ],
)
def test_what_only_looks_like_a_date(moment):
    with pytest.raises(InputError, match="is not a date"):
        parse_date(moment)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "today",
        "NaT",
        "14",
        "2014-13",
        "2014-02-30",
        "1.1.2014",
        np.datetime64("NaT", "ms"),
        "20140101",  # of NumPy a year
        "2014-01-31+06:00",
    ],
)
def test_no_dates(text):
    with pytest.raises(InputError, match=r"^start .* is not a date; write 2014-01-31"):
        parse_date(text, name="start")


@pytest.mark.parametrize(
    ("count", "units", "expected"),
    [
        (1.5, "days since 1970-01-01", "1970-01-02T12:00:00.000"),
        (np.int32(2), "HOURS since 2010-1-1 0:0:0", "2010-01-01T02:00:00.000"),
        (np.float32(30), "minutes since 2010-01-01T00:00Z", "2010-01-01T00:30:00.000"),
        (0, "s since 1992-10-8 15:15:42.5 -6:00", "1992-10-08T21:15:42.500"),
        (0, "sec since 1992-10-8 15:15:42.5 +0530", "1992-10-08T09:45:42.500"),
        (-1, "milliseconds since 2014-01-01 00:00:00 GMT", "2013-12-31T23:59:59.999"),
        (1_500, "microseconds since 2014-01-01", "2014-01-01T00:00:00.002"),
        (1_499_999, "ns since 2014-01-01", "2014-01-01T00:00:00.001"),
        (2**63 - 1, "nanoseconds since 1970-01-01", "2262-04-11T23:47:16.855"),
        (np.uint64(2**63), "days since 1970-01-01", "NaT"),
        (-(2**63), "nanoseconds since 1970-01-01", "NaT"),
        (2**63 - 1, "days since 1970-01-01", "NaT"),
        (np.nan, "days since 1970-01-01", "NaT"),
        (-np.inf, "days since 1970-01-01", "NaT"),
        (9.96921e36, "days since 1970-01-01", "NaT"),
    ],
)
def test_numbers_count_as_cf_says(count, units, expected):
    assert str(parse_counts(np.array([[count]]), units)[0, 0]) == expected


@pytest.mark.parametrize(
    ("units", "calendar", "part"),
    [
        ("months since 2010-01-01", "standard", "counts 'months since 2010-01-01', which is not understood"),
        ("days", "standard", "counts 'days', which is not understood"),
        ("days since 2010-02-30", "standard", "where there is no such date"),
        ("days since 0001-01-01 00:00:00 +01:00", "proleptic_gregorian", "where there is no such date"),
        ("days since 1-1-1", "gregorian", "by the calendar that was in use before 1582"),
        ("days since 2010-01-01", "noleap", "is of the calendar 'noleap'"),
    ],
)
def test_counts_that_are_not_understood_are_one_line(units, calendar, part):
    with pytest.raises(InputError, match=part) as found:
        parse_counts(np.zeros(1), units, calendar)
    assert "\n" not in str(found.value)


def test_counts_from_the_first_year_on():
    days = np.array([735_233.5])
    assert str(parse_counts(days, "days since 1-1-1", "proleptic_gregorian")[0]) == "2014-01-01T12:00:00.000"
