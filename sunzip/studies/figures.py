"""Figures of studies, for people who look before they read."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from sunzip.errors import needing
from sunzip.imports import without_home
from sunzip.studies.forecast import LINEAR, PERSISTENCE

if TYPE_CHECKING:
    from sunzip.studies.forecast import ForecastReport, Score


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
    from matplotlib.figure import Figure

    both = {"months held out": report.methods} | (
        {"every month in turn": report.folds} if report.folds else {}
    )
    figure = Figure(figsize=(11, 4.2 * len(both) + 0.5), layout="constrained", dpi=120)
    panels = figure.subplots(len(both), 2, squeeze=False)
    colours = {name: f"C{n}" for n, name in enumerate(report.methods)}
    for (what, methods), (left, right) in zip(both.items(), panels, strict=True):
        for n, (name, scores) in enumerate(methods.items()):
            # Beside each other, so that intervals can be told apart.
            x = [s.horizon + 0.05 * (n - (len(methods) - 1) / 2) for s in scores]
            style = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "capsize": 2, "elinewidth": 0.8}
            line = ":" if "shuffled" in name else "--" if name.endswith(LINEAR) else "-"
            style |= {"color": colours[name], "label": name, "linestyle": line}
            left.errorbar(x, [s.rmse for s in scores], _bars(scores, "rmse", "low", "high"), **style)
            ratios = _bars(scores, "ratio", "ratio_low", "ratio_high")
            right.errorbar(x, [s.ratio for s in scores], ratios, **style)
        # What knows nothing would make the rest small.
        most = 1.1 * max(score.high for score in methods[PERSISTENCE])
        # Names of files and columns are as they are: `$` in them is no formula.
        left.set_title(f"{report.column}, {what}", parse_math=False)
        left.set(ylabel="RMSE (sfu)", ylim=(0, most))
        right.set(title="over persistence", ylabel="RMSE / RMSE of persistence", ylim=(0, 2))
        right.axhline(1, color="0.3", linewidth=0.8)
        for panel in (left, right):
            panel.set_xlabel("days ahead")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.25)
        left.legend(fontsize=7.5)
    made = "SYNTHETIC Sun and flux" if report.synthetic else report.flux
    figure.suptitle(
        f"{made}; latents of {report.model}; bars: {report.interval['level']:.0%} of block bootstrap",
        parse_math=False,
    )
    figure.savefig(target, format="png")


def _bars(scores: list[Score], value: str, low: str, high: str) -> list[list[float]]:
    # A value can lie outside the percentiles of its own draws, by a hair.
    return [
        [max(0.0, getattr(s, value) - getattr(s, low)) for s in scores],
        [max(0.0, getattr(s, high) - getattr(s, value)) for s in scores],
    ]
