"""Numbers that can be read, and objects that show themselves at a prompt and in a notebook."""

from __future__ import annotations

import doctest
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import sunzip
from sunzip import api, display
from sunzip.archive import verify
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model


def test_examples_in_the_documentation() -> None:
    assert doctest.testmod(display) == (0, 6)


@given(st.floats(0, 1e18))
def test_sizes_have_three_digits_and_say_what_they_mean(n):
    text = display.size(n)
    value, unit = text.replace(",", "").split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(value) * factor == pytest.approx(n, rel=0.006, abs=0.5)
    assert unit == "TB" or len(value.replace(".", "")) <= 3 + value.startswith("0.")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_three_digits(value):
    shown = float(display.number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.06 if abs(value) < 1e-4 else 0.006)


@given(st.floats(0, 1e7))
def test_durations_add_up(seconds):
    units = {"s": 1, "min": 60, "h": 3600}
    words = display.duration(seconds).replace(",", "").split()
    total = sum(float(n) * units[u] for n, u in zip(words[::2], words[1::2], strict=True))
    assert total == pytest.approx(seconds, rel=0.01, abs=1e-4)


def test_a_wide_table_goes_on_below_itself_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    head, rows = (
        ["", "1", "2", "3"],
        [["persistence", "1.00", "1.00", "1.00"], ["latents", "0.9", "0.8", "0.7"]],
    )
    whole = display.table(head, rows)
    assert len(whole) == 3
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns, height in ((80, 3), (31, 3), (30, 7), (24, 11), (4, 11)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = display.table(head, rows)
        assert len(lines) == height
        assert columns < 24 or max(map(len, lines)) <= columns
        assert " ".join(lines).split().count("latents") == (height + 1) // 4
    monkeypatch.setenv("COLUMNS", "31")
    assert display.table(head, rows) == whole


def test_tables_are_aligned():
    lines = display.table(["name", "n"], [["a", "1"], ["long name", "1,000"]], indent="")
    assert lines == ["name           n", "a              1", "long name  1,000"]


@dataclass(frozen=True, slots=True)
class Made(display.Report):
    """What came of a job that is made up."""

    some_path: str
    done: bool
    none: None
    pair: tuple[int, int]
    many: list[int]
    errors: dict[str, dict[str, float | None]]
    modes: dict[str, dict[str, dict[str, float]]]
    rows: list[dict[str, Any]]
    odd: dict[str, int]
    empty: dict[str, int]


MADE = Made(
    "s3://me:word@host/<b>\x1b[2J",
    True,
    None,
    (512, 512),
    list(range(40)),
    {"94A": {"rmse": 0.25, "r": None}, "Bz": {"rmse": float("nan"), "r": 0.5}},
    {"paper": {"94A": {"r": 0.5}, "Bz": {"r": 0.25}}, "strict": {"Bz": {"r": 1.0}}},
    [
        {"frame": 1, "what": ["a", "b", "c", "d"], "found": dict.fromkeys("abcd", 1)},
        {"frame": 2000, "what": [], "found": {"paper": {"Bz": {"r": 0.25}}}},
    ],
    {"image late": 3},
    {},
)


def test_reports_print_what_they_tell() -> None:
    assert str(MADE).splitlines() == [
        "Made",
        "  some path  s3://host/<b>�[2J",
        "  done       yes",
        "  none       –",
        "  pair       512 512",
        f"  many       {' '.join(map(str, range(24)))} … (40)",
        "  empty      –",
        "  errors",
        "          rmse      r",
        "    94A  0.250      –",
        "    Bz     nan  0.500",
        "  modes",
        "    paper",
        "               r",
        "      94A  0.500",
        "      Bz   0.250",
        "    strict",
        "             r",
        "      Bz  1.00",
        "  rows",
        "    frame         what                    found",
        "    1      a b c … (4)  a: 1, b: 1, c: 1, … (4)",
        "    2,000            –                 paper: …",
        "  odd",
        "    image late  3",
    ]


class Page(HTMLParser):
    """The cells of tables, in order, and whether all that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_notebook_shows_tables_and_nothing_that_a_name_could_smuggle_in() -> None:
    html = MADE._repr_html_()
    assert html is not None
    page = Page(html)
    assert not page.open
    assert page.cells[:4] == ["some path", "s3://host/<b>�[2J", "done", "yes"]
    assert {"94A", "0.250", "2,000", "image late", "3"} <= set(page.cells)
    assert "word" not in html


def test_what_users_hold_shows_itself(wavelet_model: Model, tmp_path: Path) -> None:
    from sunzip.torch import LatDataset

    series = join([Synthetic(frames=3, size=32, start="2014-01-01", channels=("171A", "Bz"))])
    report = api.compress(series, tmp_path / "a.lat", model=wavelet_model, max_error="10%")
    with sunzip.open(tmp_path / "a.lat") as sun:
        shown = (sun, sun.archive, sun.latents, sun.codec, sun.codec.model, series, report)
        for one in (*shown, LatDataset(tmp_path / "a.lat"), verify(tmp_path / "a.lat")):
            html = one._repr_html_()
            assert html is not None
            page = Page(html)
            assert not page.open
            assert len(page.cells) >= 6
        told = Page(sun._repr_html_() or "").cells
        assert told[told.index("frames") + 1] == "3"
        assert told[told.index("times") + 1] == "2014-01-01 00:00 to 2014-01-01 00:24"
        assert told[told.index("Bz") + 1 : told.index("Bz") + 3] == ["3", "3"]
        assert told[told.index("max error") + 1].startswith("171A=10%")
        assert repr(sun.codec.model).startswith("<Model ")
        assert repr(sun.codec).endswith("quality 50, pixels the same on every machine>")
        assert ", quality 0," in repr(sun.codec.at(0))
        assert "  ok              yes" in str(verify(tmp_path / "a.lat")).splitlines()
    assert np.isfinite(report.seconds)


def test_what_cannot_be_told_any_more_is_left_to_the_text(wavelet_model: Model, tmp_path: Path) -> None:
    series = join([Synthetic(frames=1, size=32, start="2014-01-01", channels=("171A",))])
    api.compress(series, tmp_path / "a.lat", model=wavelet_model)
    with sunzip.open(tmp_path / "a.lat") as sun:
        latents = sun.latents
    assert latents._repr_html_() is None
    assert repr(sun).startswith("<Sun ")
