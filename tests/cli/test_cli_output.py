"""What text shows: numbers that can be read, and nothing that steers a terminal."""

from __future__ import annotations

import doctest
import io
import json
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

import sunzip.cli.output as output
from sunzip.api import Progress
from sunzip.cli.accounts import Accounts
from sunzip.sources.base import tell_progress


def test_examples_in_the_documentation():
    assert doctest.testmod(output) == (0, 1)


@given(st.text())
def test_an_error_is_one_line_and_steers_no_terminal(text):
    line = output.one_line(text)
    assert line.splitlines() in ([], [line])
    assert "\x1b" not in line
    assert line.isprintable()


def test_what_lets_others_in_is_not_shown(capsys):
    output.result(False, {}, ["https://me:word@host/a.lat holds"])
    assert capsys.readouterr().out == "https://host/a.lat holds\n"
    assert output.one_line("opening https://me:word@host/a.lat") == "opening https://host/a.lat"


def test_names_from_strangers_cannot_steer_the_terminal(capsys):
    output.result(False, {}, ["model \x1b]0;owned\x07 \u202e"])
    assert capsys.readouterr().out == "model �]0;owned� �\n"


def test_json_is_one_object_of_finite_numbers(capsys):
    output.result(True, {"a": 1}, [])
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    with pytest.raises(ValueError, match="JSON"):
        output.result(True, {"a": float("nan")}, [])


def test_accounts_count_as_table_1_does():
    # The paper's Table 1 for 256 latents: 310.1 MiB of latents, 131.1 MiB of model, 238,174.5 MiB of images.
    mib = 2**20
    costs = Accounts(317_566, 238_174 * mib // 4, None, 310 * mib, 131 * mib, 310 * mib, 310 * mib)
    found = costs.as_dict()
    assert found["with_model"]["ratio_float32"] == pytest.approx(1 / 0.00185, rel=2e-3)
    assert found["without_model"]["bytes_per_frame"] == pytest.approx(1024, rel=2e-3)
    assert found["with_model"]["ratio_source"] is None
    assert found["latent_ratio"] == 1
    assert len(list(costs.lines())) == 6


def test_accounts_of_nothing_divide_by_nothing():
    found = Accounts(0, 0, None, 0, 0, 0, None).as_dict()
    assert found["with_model"]["ratio_float32"] is None
    assert found["latent_ratio"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_tells_speed_ratio_and_what_is_left(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with output.frames_bar(False, "opening \x1b[2J") as update:
        assert "opening �[2J" in screen.getvalue()
        # A resumed run begins in the middle.
        update(Progress(40, 100, 0, 0))
        time.sleep(0.15)  # tqdm redraws ten times a second
        update(Progress(100, 100, 60_000_000, 60_000))
    shown = screen.getvalue()
    assert "40/100 frames" in shown
    assert "100/100 frames" in shown
    assert "ratio 1,000" in shown
    assert "left" in shown


def test_what_is_done_once_all_frames_are_is_told(monkeypatch):
    for seen in ([Progress(0, 100, 0, 0), Progress(100, 100, 6, 6)], [Progress(100, 100, 0, 0)]):
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        with output.frames_bar(False, "opening", "packing sun.lat") as update:
            for progress in seen:
                assert "packing" not in screen.getvalue()
                update(progress)
            assert screen.getvalue().rstrip().endswith("packing sun.lat")


@pytest.mark.parametrize("kind", [output.frames_bar, output.steps_bar])
def test_how_far_sources_are_looked_through_is_told(monkeypatch, kind):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with kind(False, "opening fits"):
        tell_progress("looking through fits\x1b[2J", 1, 20_000)
        time.sleep(0.15)
        tell_progress("looking through fits\x1b[2J", 5_000, 20_000)
        shown = screen.getvalue()
        tell_progress("looking through fits\x1b[2J", 20_000, 20_000)
        assert screen.getvalue().rstrip().endswith("opening fits")
    assert "looking through fits�[2J:  25%" in shown
    assert "5000/20000" in shown
    monkeypatch.setattr("sys.stderr", told := io.StringIO())
    with kind(False, "opening fits"):
        tell_progress("looking through fits", 1, 20_000)
    assert not told.getvalue()


def test_no_terminal_no_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with output.frames_bar(False, "opening") as update:
        assert update is None
    monkeypatch.setattr("sys.stderr", Terminal())
    with output.frames_bar(True, "opening") as update, output.bytes_bar(True) as other:
        assert update is None
        assert other is None


def test_the_bar_of_bytes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with output.bytes_bar(False) as update:
        update(0, 5_000_000)
        time.sleep(0.15)
        update(5_000_000, 5_000_000)
    assert "5.00M/5.00M" in screen.getvalue()
