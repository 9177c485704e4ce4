"""The plots of the synthetic Sun beside the real one say what is drawn along which axis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks import synthetic_sun


def test_plots_name_their_axes_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {}
    monkeypatch.setattr(synthetic_sun, "_keep", lambda figure, name: kept.update({name: figure}))
    results = Path(synthetic_sun.__file__).parent / "results/synthetic_sun.json"
    synthetic_sun.draw(json.loads(results.read_text(encoding="utf-8")))
    for name in ("profiles", "spectra", "histograms"):
        figure = kept[name]
        assert figure.get_supxlabel()
        assert figure.get_supylabel()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["real", "synthetic"]
    (axes,) = kept["hours"].axes
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 3
