"""The card of a trained model: what it saw, how it was made, what it does and what it fails at."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sunzip import __version__
from sunzip.train.measure import TOLERANCE, Measured, beside
from sunzip.weights import Model

#: A channel whose frames correlate less than this with what is decoded is named as a failure.
_POOR = 0.9


#: How a training began, by its `init`; otherwise that is a model's sha256.
_BEGAN = {"random": "", "pca": "It began at the principal components of these frames. "}


def versions() -> dict[str, str]:
    """Return what the numbers of a training depend on: versions, the commit if there is one, the machine."""
    found = {"sunzip": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    with suppress(OSError, subprocess.SubprocessError):
        # The repository around an environment that sunzip is installed in does not track it.
        _git("ls-files", "--error-unmatch", "--", Path(__file__).name)
        found["commit"] = _git("rev-parse", "--short=12", "HEAD")
    return found


def _git(*arguments: str) -> str:
    """Return what git says where this file lies."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def card(model: Model, notes: Mapping[str, Any], measured: Measured, began: Measured | None = None) -> str:
    """Return the text of README.md; `began` is measured of the model that it began with, if there is one."""
    return "\n".join(_lines(model, notes, measured, began)) + "\n"


def _lines(model: Model, notes: Mapping[str, Any], m: Measured, began: Measured | None) -> Iterator[str]:
    what = f"{notes['model']}, {model.config['parameters']:,} parameters"
    yield f"# {model.name}"
    yield ""
    yield f"{what}, {model.nbytes / 2**20:.1f} MiB, sha256 `{model.sha256}`."
    yield ""
    yield "## Trained on"
    yield ""
    data = notes["data"]
    for url in data["sources"]:
        yield f"- `{url}`"
    if more := data["more_sources"]:
        yield f"- and {more:,} more"
    yield ""
    yield (
        f"{data['train_frames']:,} frames from {data['first'][:16]} to {data['last'][:16]}, "
        f"{data['size'][0]}×{data['size'][1]} pixels. Held out by date: {data['held_out']}."
    )
    yield ""
    yield "## Made by"
    yield ""
    yield "```sh"
    yield str(notes["command"])
    yield "```"
    yield ""
    yield (
        _BEGAN.get(notes.get("init", "random"), f"It began with the model `{notes.get('init')}`. ")
        + f"{notes['steps']:,} steps in {notes['seconds'] / 60:.0f} min on {notes['device']} "
        f"({notes['precision']}), seed {notes['recipe']['seed']}; "
        + ", ".join(f"{k} {v}" for k, v in notes["versions"].items())
        + "."
    )
    yield ""
    yield "## Measured"
    yield ""
    seen = "frames that training saw, too" if data["fit_all"] else "held-out frames"
    if notes.get("init", "random") not in _BEGAN and not data["fit_all"]:
        # Nobody knows which these were: rules, and ends of sources, may have been others.
        seen = (
            "frames that this training held out (the model that it began with may have learned from them: "
            "its card tells)"
        )
    told = f"On {m.frames} {seen} from {m.first[:16]} to {m.last[:16]}, each coded by itself: "
    if m.latents_coded:
        yield (
            f"{told}{m.bits_per_latent:.3f} bit per latent "
            f"(float32 has 32), {m.bits_per_sample:.5f} bit per sample. Coding worsens a metric by at most "
            f"{100 * m.worst_change[0]:.2f} % ({m.worst_change[1]})."
        )
    else:
        yield f"{told}{m.bits_per_sample:.5f} bit per sample at quality {model.config['default_quality']}."
    if began is not None:
        yield f"The model that it began with takes {beside(m.as_dict(), began.as_dict())}."
    if "active_units" in notes:
        yield (
            f"{notes['active_units']} of {model.config['bottleneck']} latents are active; "
            f"the median step is {notes['coarseness']:.2f} standard deviations of the posterior."
        )
    yield ""
    exact = " r, float32 means | ppe50 | ppe10 | RMSE |" if m.latents_coded else ""
    yield f"| channel | r | ppe50 | ppe10 | RMSE |{exact} unit |"
    yield f"|---{'|---:' * (8 if exact else 4)}|---|"
    for name, row in m.metrics["coded"]["paper"].items():
        shown = [row, m.metrics["float32"]["paper"][name]] if exact else [row]
        cells = [_number(t[k]) for t in shown for k in ("r", "ppe50", "ppe10", "rmse")]
        yield f"| {name} | {' | '.join(cells)} | {row['unit']} |"
    yield ""
    yield "## Fails at"
    yield ""
    yield from _failures(notes, m)


def _failures(notes: Mapping[str, Any], m: Measured) -> Iterator[str]:
    poor = [n for n, row in m.metrics["coded"]["paper"].items() if row["r"] is None or row["r"] < _POOR]
    if poor:
        yield f"- {' '.join(poor)}: r is below {_POOR} or undefined."
    if m.latents_coded and m.worst_change[0] > TOLERANCE:
        yield f"- Coding worsens {m.worst_change[1]} by more than {100 * TOLERANCE:.0f} %."
    if any(str(u).startswith("synthetic:") for u in notes["data"]["sources"]):
        yield "- Real images: it learned from a synthetic Sun, which is coherent but not the Sun."
    if notes["data"]["fit_all"]:
        yield "- Telling how it does on frames it never saw: none was held out."
    yield "- What its frames did not show: other sizes, instruments, flares beyond the brightest one in them."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
