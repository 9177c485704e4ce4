"""Figures of studies, for people who look before they read."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

from sunzip.drawing import as_designed
from sunzip.errors import needing
from sunzip.imports import without_home
from sunzip.studies.forecast import LINEAR, PERSISTENCE, SHUFFLED

if TYPE_CHECKING:
    from sunzip.studies.forecast import ForecastReport, Score


# Black and the colours of Okabe and Ito (2008) that are seen on white; one for each method with trees.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#888888", "#e69f00")
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<")


def need_matplotlib() -> None:
    """Refuse to begin what will be drawn without matplotlib.

    Raises
    ------
    InputError
        If it is not installed.
    """
    with needing("plot", "a plot needs"), without_home():
        import matplotlib.figure  # noqa: F401


def forecast_figure(report: ForecastReport, target: str | os.PathLike[str] | IO[bytes]) -> None:
    """Draw errors by horizon, beside them those errors over persistence's, as figure 4 of the paper has them.

    Parameters
    ----------
    report
        What was found.
    target
        PNG to write.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    need_matplotlib()
    with as_designed():
        _draw(report, target)


def _draw(report: ForecastReport, target: str | os.PathLike[str] | IO[bytes]) -> None:
    from matplotlib.figure import Figure

    both = {"months held out": report.methods} | (
        {"every month in turn": report.folds} if report.folds else {}
    )
    figure = Figure(figsize=(11, 4.2 * len(both) + 1.3), layout="constrained", dpi=120)
    panels = figure.subplots(len(both), 2, squeeze=False)
    for (what, methods), (left, right) in zip(both.items(), panels, strict=True):
        for n, (name, scores) in enumerate(methods.items()):
            # Beside each other, so that intervals can be told apart.
            x = [s.horizon + 0.05 * (n - (len(methods) - 1) / 2) for s in scores]
            style = _style(name, list(report.methods)) | {"label": name, "linewidth": 1.2, "capsize": 2}
            style |= {"markersize": 4, "elinewidth": 0.8}
            left.errorbar(x, [s.rmse for s in scores], _bars(scores, "rmse", "low", "high"), **style)
            ratios = _bars(scores, "ratio", "ratio_low", "ratio_high")
            right.errorbar(x, [s.ratio for s in scores], ratios, **style)
        # What knows nothing would make the rest small; all that might know anything is there.
        shown = [s for name, scores in methods.items() if SHUFFLED not in name for s in scores]
        most = max(s.high if s in methods[PERSISTENCE] else s.rmse for s in shown)
        # Names of files and columns are as they are: `$` in them is no formula.
        left.set_title(f"{report.column}, {what}", parse_math=False)
        left.set(ylabel="RMSE (sfu)", ylim=(0, 1.1 * most))
        most = max(2.0, *(1.1 * s.ratio for s in shown))
        right.set(title="over persistence", ylabel="RMSE / RMSE of persistence", ylim=(0, most))
        right.axhline(1, color="0.3", linewidth=0.8)
        for panel in (left, right):
            panel.set_xlabel("days ahead")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.25)
    # Beside the panels: in them it would hide what it names.
    figure.legend(handles=panels[0, 0].containers, loc="outside lower center", ncols=3, fontsize=8.5)
    made = "SYNTHETIC Sun and flux" if report.synthetic else os.path.basename(report.flux)
    level = 100 * report.interval["level"]
    title = f"{made}; latents of {report.model}; bars: {level:.0f} % of block bootstrap"
    # Twelve points, or as many as leave room for all of it.
    figure.suptitle(title, size=min(12, 1250 / len(title)), parse_math=False)
    figure.savefig(target, format="png")


def _style(name: str, names: list[str]) -> dict[str, Any]:
    """Return how a method is drawn: told apart by marker and line, too, where colours are not seen."""
    learnt = [n for n in names if not n.endswith(LINEAR)]
    n = learnt.index(name.removesuffix(LINEAR))
    lines = (":", "-.") if SHUFFLED in name else ("-", "--")
    return {
        "color": _COLOURS[n],
        "marker": _MARKERS[n],
        "linestyle": lines[name.endswith(LINEAR)],
    }


def _bars(scores: list[Score], value: str, low: str, high: str) -> list[list[float]]:
    # A value can lie outside the percentiles of its own draws, by a hair.
    return [
        [max(0.0, getattr(s, value) - getattr(s, low)) for s in scores],
        [max(0.0, getattr(s, high) - getattr(s, value)) for s in scores],
    ]
