"""Rate-distortion plots, one for each channel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rate_distortion.curves import RateCurve
from benchmarks.rate_distortion.peers import library

#: Colours of the peers; a film and a still codec never share a plot, and sunzip is drawn black.
COLOURS = {
    "jpeg2000": "C0",
    "htj2k": "C9",
    "jpegxl": "C4",
    "sperr": "C2",
    "av1-still": "C1",
    "hevc-still": "C3",
    "sz3": "C5",
    "zfp": "C6",
    "fpack": "C8",
    "av1-film": "C1",
    "hevc-film": "C3",
}
_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 4


def _used(curve: Mapping[str, Any]) -> RateCurve:
    return RateCurve(curve["bits"], curve["rmse_sigma"])


def draw(result: Mapping[str, Any], target: Path) -> None:
    """Draw error over rate of every channel of the real frames, and of the real series, coded by itself."""
    library("matplotlib")
    from matplotlib.figure import Figure

    panels = [(case, name) for case, c in result["cases"].items() if c["real"] for name in c["channels"]]
    rows = -(-(len(panels) + 1) // _COLUMNS)
    figure = Figure(figsize=(12, 2.7 * rows), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, _COLUMNS)).ravel())
    lines: dict[str, Any] = {}
    for axis, (case, name) in zip(axes, panels, strict=False):
        for peer, channels in result["peers"].get(case, {}).items():
            if peer in COLOURS:
                label, c = result["names"][peer], _used(channels[name])
                style = "--" if peer.endswith("-film") else "-"
                (lines[label],) = axis.plot(c.bits, c.error, style, color=COLOURS[peer], lw=1)
        for (model, found), style in zip(result["models"].items(), _STYLES, strict=False):
            if case in found:
                c = _used(found[case]["channels"][name])
                (lines[f"sunzip {model}"],) = axis.plot(c.bits, c.error, "k", ls=style, lw=2)
        axis.set(xscale="log", yscale="log", xlim=(5e-4, 1.5))
        axis.set_title(f"{name}: {result['cases'][case]['title']}", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3)
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    axes[len(panels)].legend(lines.values(), lines.keys(), fontsize=8, loc="center", ncols=2)
    figure.supxlabel("bits per sample", fontsize=9)
    figure.supylabel("error, in standard deviations of the noise", fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=75, pil_kwargs={"optimize": True})
