"""Flux files of LISIRD: columns by bare name, gaps as gaps, and nothing wrong read from what is broken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip.errors import InputError, OutputError
from sunzip.studies.flux import Flux, read_flux, write_flux

REAL = Path(__file__).parents[3] / "shared/data/real/flux"

HEAD = (
    "time (yyyy MM dd),absolute_f30 (solar flux unit (SFU)),absolute_f30_c (solar flux unit (SFU)),"
    "absolute_f30_f,adjusted_f30 (solar flux unit (SFU))\n"
)
ROWS = "2013 9 30,90.1,90.2,0,91.0\n2013 10 1,92.5,92.6,1,93.0\n2013 10 3,70.0,71.0,0,72.0\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "f.csv"
    path.write_text(text)
    return path


def days(*text: str) -> np.ndarray:
    return np.array(text, "M8[D]")


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ("absolute_f30", [90.1, 92.5, 70.0]),
        ("absolute_f30_c", [90.2, 92.6, 71.0]),
        ("adjusted_f30", [91.0, 93.0, 72.0]),
        ("f30", [91.0, 93.0, 72.0]),
    ],
)
def test_a_column_is_found_by_its_bare_name(column: str, found: list[float], tmp_path: Path) -> None:
    flux = read_flux(written(tmp_path, HEAD + ROWS), column)
    np.testing.assert_array_equal(flux.date, days("2013-09-30", "2013-10-01", "2013-10-03"))
    np.testing.assert_array_equal(flux.values, found)
    assert not flux.synthetic
    assert flux.column in (column, f"adjusted_{column}")


def test_days_that_are_missing_have_no_flux(tmp_path: Path) -> None:
    rows = ROWS + "2013 10 4,,,,\n2013 10 5,NaN,1,0,nan\n2013 10 6,-99,1,0,-99.9\n2013 10 7,inf,1,0,inf\n"
    rows += "2013 10 8,99999,1,0,99999.0\n"
    flux = read_flux(written(tmp_path, HEAD + rows), "f30")
    asked = days(
        "2013-10-03",
        "2013-10-02",
        "1950-01-01",
        "2050-01-01",
        "2013-09-30",
        *(f"2013-10-0{d}" for d in "45678"),
    )
    np.testing.assert_array_equal(flux.at(asked), [72.0, np.nan, np.nan, np.nan, 91.0, *[np.nan] * 5])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_be_empty_and_end_as_any_system_has_them(end: str, tmp_path: Path) -> None:
    text = (HEAD + "\n" + ROWS + ",,,,\n \n\n").replace("\n", end)
    (tmp_path / "f.csv").write_bytes(text.encode())
    flux = read_flux(tmp_path / "f.csv", "f30")
    np.testing.assert_array_equal(flux.date, days("2013-09-30", "2013-10-01", "2013-10-03"))
    (tmp_path / "f.csv").write_bytes((text + f"2013 10 4,1{end}").encode())
    with pytest.raises(InputError, match="line 9 has 2 values"):
        read_flux(tmp_path / "f.csv", "f30")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "begins with nothing where LISIRD's cls_radio_flux_… files have"),
        ("a,b\n1,2\n", "begins with 'a' where"),
        ("time (Julian Date),observed_flux\n2455000.5,1\n", "begins with 'time (Julian Date)' where"),
        ("\x00\x01", "begins with '\\x00\\x01' where"),
        (HEAD, "holds no flux"),
        (HEAD + "2013 9 30,90,90,0\n", "line 2 has 4 values where the header has 5"),
        (HEAD + ROWS + "2013 10 3,1,1,0,1\n", "line 5: '2013 10 3' does not come after"),
        (HEAD + "2013 2 30,1,1,0,1\n", "line 2: '2013 2 30' is no date"),
        (HEAD + "2013-02-03,1,1,0,1\n", "is no date as in 2014 1 31"),
        (HEAD + "99999 1 1,1,1,0,1\n", "is no date"),
        (HEAD + "2013 9 30,1,1,0,much\n", "'much' in column adjusted_f30 is no number"),
        (HEAD + f"2013 9 30,1,1,0,{'9a' * 9999}\n", "9a' in column adjusted_f30 is no number"),
        (f'{HEAD[:-1]},"of\ntwo lines"\n'.replace("adjusted_f30", "flux"), "two lines"),
        (HEAD + "2013 9 30,1,1,0,0\n", "holds no flux"),
        (HEAD + ROWS[:-1], "ends within a line"),
        (HEAD.replace("absolute_f30 ", "adjusted_f30 ") + ROWS, "has no column 'f30'"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(text: str, what: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_flux(path, "f30")
    assert str(error.value).startswith(f"{path}: ")
    assert what in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 500


def test_an_unknown_column_names_those_there_are(tmp_path: Path) -> None:
    for column in ("f107", "time", "absolute_f30 (solar flux unit (SFU))"):
        with pytest.raises(InputError, match=r"it has absolute_f30, adjusted_f30$"):
            read_flux(written(tmp_path, HEAD + ROWS), column)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read: No such file"):
        read_flux(tmp_path / "none.csv", "f30")
    with pytest.raises(InputError, match=r"s3://bucket/f30\.csv: a flux is read from a local file"):
        read_flux("s3://bucket/f30.csv", "f30")
    with pytest.raises(InputError, match="Is a directory"):
        read_flux(tmp_path, "f30")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="no CSV"):
        read_flux(tmp_path / "latin", "f30")


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sunzip.studies.flux.MAX_BYTES", 100)
    with pytest.raises(InputError, match="has more than 100 bytes; a century of daily fluxes has 2 MB"):
        read_flux(written(tmp_path, HEAD + ROWS), "f30")


def test_no_prefix_of_a_file_gives_a_wrong_flux(tmp_path: Path) -> None:
    whole, text = read_flux(written(tmp_path, HEAD + ROWS), "f30"), HEAD + ROWS
    read = 0
    for end in range(len(text)):
        try:
            flux = read_flux(written(tmp_path, text[:end]), "f30")
        except InputError:
            continue
        read += 1
        np.testing.assert_array_equal(flux.values, whole.values[: len(flux.values)])
    assert read == 2


@given(st.sets(st.integers(-20_000, 20_000), min_size=1), st.sets(st.integers(-21_000, 21_000), min_size=1))
@settings(deadline=None, max_examples=50)
def test_each_date_gets_its_own_value(known: set[int], asked: set[int]) -> None:
    dates = np.array(sorted(known)).astype("M8[D]")
    flux = Flux("", "", dates, dates.astype(np.int64) + 0.5, False)
    found = flux.at(np.array(sorted(asked)).astype("M8[D]"))
    np.testing.assert_array_equal(found, [d + 0.5 if d in known else np.nan for d in sorted(asked)])


def test_the_synthetic_flux_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    write_flux(path, np.array(["2013-12-30T12:00", "2014-01-02"], "M8[ms]"), 5)
    f30, f107 = (read_flux(path, name) for name in ("f30", "f107"))
    assert f30.synthetic
    assert f107.synthetic
    np.testing.assert_array_equal(f30.date, np.arange("2013-12-30", "2014-01-03", dtype="M8[D]"))
    assert ((f30.values > 40) & (f30.values < f107.values) & (f107.values < 400)).all()
    # In January the Sun is near.
    assert (read_flux(path, "absolute_f30").values > f30.values).all()
    with pytest.raises(OutputError, match="exists"):
        write_flux(path, f30.date, 5)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_leaves_no_half_flux(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"f\.csv: cannot be written: File too large$"):
            write_flux(tmp_path / "f.csv", np.array(["2013-01-01", "2014-01-02"], "M8[ms]"), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real data in ../shared")
class TestReal:
    def test_f107(self) -> None:
        path = REAL / "cls_f107_19511101_20211202.csv"
        flux = read_flux(path, "f107")
        assert (flux.column, flux.synthetic, len(flux.date)) == ("adjusted_f107", False, 25_600)
        assert np.isfinite(flux.values).all()
        np.testing.assert_array_equal(flux.at(days("1951-11-01", "2021-12-02")), [105.6, 84.5])
        np.testing.assert_array_equal(read_flux(path, "absolute_f107").at(days("2021-12-01")), [86.0])

    def test_the_header_of_f30(self) -> None:
        flux = read_flux(REAL / "cls_f30_header_sample.csv", "f30")
        np.testing.assert_array_equal(flux.at(days("2026-09-05")), [80.3])
        np.testing.assert_array_equal(read_flux(flux.path, "absolute_f30_p").values, [2.7])
