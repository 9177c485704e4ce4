"""The flux that `synth` writes beside the images, and how `forecast` tells how far it is."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest

from sunzip.cli.output import steps_bar
from sunzip.sources.synthetic import radio_flux
from sunzip.studies.flux import read_flux

FRAMES = ("--frames", 3, "--size", 16, "--cadence", "2d", "--start", "2013-05-01", "--seed", 4)


def test_synth_writes_the_flux_of_its_sun(sunzip: Any, tmp_path: Any) -> None:
    out, flux = tmp_path / "a.zarr", tmp_path / "f.csv"
    found = json.loads(sunzip("synth", out, *FRAMES, "--flux", flux, "--json").stdout)
    assert found["flux"] == str(flux)
    series = read_flux(flux, "f30")
    np.testing.assert_array_equal(series.date, np.arange("2013-05-01", "2013-05-06", dtype="M8[D]"))
    np.testing.assert_allclose(series.values, radio_flux(series.date, seed=4)["f30"][1], atol=0.051)
    assert series.synthetic


def test_a_flux_is_replaced_only_when_forced(sunzip: Any, tmp_path: Any) -> None:
    flux, theirs = tmp_path / "f.csv", tmp_path / "theirs.csv"
    sunzip("synth", tmp_path / "a.zarr", *FRAMES, "--flux", flux)
    assert "exists" in sunzip("synth", tmp_path / "b.zarr", *FRAMES, "--flux", flux, code=1).stderr
    sunzip("synth", tmp_path / "b.zarr", *FRAMES, "--flux", flux, "--force")
    theirs.write_text("time (yyyy MM dd),absolute_f30 (solar flux unit (SFU)),absolute_f30_c\n")
    error = sunzip("synth", tmp_path / "c.zarr", *FRAMES, "--flux", theirs, "--force", code=1).stderr
    assert "is no flux of sunzip synth" in error
    assert "name it *.csv" in sunzip("synth", tmp_path / "c.zarr", "--flux", "f.txt", code=1).stderr
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr", "f.csv", "theirs.csv"]


def test_progress_names_each_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sunzip.cli.output.shows_progress", lambda quiet: not quiet)
    with steps_bar(False, "opening\na.lat") as step:
        assert step is not None
        for what, total in (("reading latents", 3), ("growing trees", 50)):
            for done in range(total + 1):
                step(what, done, total)
    shown = capsys.readouterr().err
    assert "opening a.lat" in shown
    assert shown.index("reading latents") < shown.index("growing trees")
    with steps_bar(True, "a.lat") as step:
        assert step is None
    assert capsys.readouterr().err == ""
