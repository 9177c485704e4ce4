"""What the benchmarks share: the inputs by name, what machine this is, and how results are kept."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import sunzip
from benchmarks.real_inputs import main as wrap_real
from sunzip import weights
from sunzip.api import Alignment
from sunzip.errors import ModelNotFoundError
from sunzip.files import put
from sunzip.weights import Model

RESULTS = Path(__file__).parent / "results"

_NUMBERS = re.compile(r"\[(?:\s*(?:-?\d[-+.\de]*|null),?)+\s*\]")

#: The numbers that the paper prints.
PAPER = Path(__file__).parent / "paper_numbers.json"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a benchmark.

    Attributes
    ----------
    name
        As tables show it.
    url
        What `sunzip compress` is given.
    align
        How its images are aligned and which are taken.
    seen
        Whether the model's training saw these frames; ``None`` if some of them.
    """

    name: str
    url: str
    align: Alignment
    seen: bool | None


def inputs(real: Path, work: Path, model: str, *, synthetic_frames: int = 12) -> list[Input]:
    """Return the real inputs, split by what a model's training saw, and a synthetic Sun that it never saw."""
    wrap_real(real, work)
    # Trained before it was known which frames the comparison with other codecs would need.
    first = model == "hyperprior-12"
    hourly = "2017-08-12" if first else "2017-08-10"
    v2 = str(real / "sdomlv2_real.zarr")
    synthetic = f"synthetic:frames={synthetic_frames},size=512,seed=777001,start=2013-05-01,cadence=1D"
    return [
        Input("SDOML v2 store, whole (193 Å 2017, 8 channels 2024)", v2, Alignment(), None),
        Input("… 193 Å from 2017-01-16", v2, Alignment(start="2017-01-16", stop="2018-01-01"), False),
        Input("… 193 Å before 2017-01-16", v2, Alignment(stop="2017-01-16"), True),
        Input("… 8 channels 2024-10-04", v2, Alignment(start="2024-01-01"), first),
        Input("AIA FITS, 8 channels 2024-10-04", str(real / "fits"), Alignment(), first),
        Input("SDOML v1 Bz 2013-01-31", str(real / "sdoml_v1"), Alignment(), False),
        Input("171 Å hourly 128², all 130", str(work / "aia171_hourly.h5"), Alignment(), None),
        Input(f"… from {hourly}", str(work / "aia171_hourly.h5"), Alignment(start=hourly), False),
        Input(
            "HMI line of sight from 2026-03-01",
            str(work / "hmi_los.h5"),
            Alignment(start="2026-03-01"),
            False,
        ),
        Input("synthetic Sun, 12 channels 512²", synthetic, Alignment(cadence="1D", tolerance="1h"), False),
    ]


def load(model: str) -> Model:
    """Load a model by name or folder, as commands beside tables name σ-VAEs, which do not come with sunzip.

    Raises
    ------
    click.ClickException
        If there is none.
    """
    try:
        return weights.load(model)
    except ModelNotFoundError as error:
        raise click.ClickException(
            f"{error}; how the σ-VAEs of the tables were made is in docs/how-to/reproduce-the-paper.md"
        ) from None


def machine() -> dict[str, Any]:
    """Describe where the numbers come from; of packages that are not installed, None."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sunzip": sunzip.__version__,
        "numpy": _release("numpy"),
        "sklearn": _release("scikit-learn"),
        "torch": _release("torch"),
        "zarr": _release("zarr"),
    }


def _release(package: str) -> str | None:
    """Return the release of a package without importing it, which for PyTorch takes seconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_kib() -> int:
    """Return the most memory that this process and those that it started had, each by itself."""
    # What getrusage says starts with the memory of the process that started this one.
    texts = [Path(f"/proc/{process.pid}/status").read_text() for process in _processes()]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("VmHWM:")]
    return sum(int(line.split()[1]) for line in lines)


def cpu_seconds() -> float:
    """Return the processor time that this process and those that it started have had."""
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


def _processes() -> list[Any]:
    import psutil

    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def command(module: str) -> str:
    """Return the command that runs a benchmark as it was run, so that a table says how to make it again."""
    return shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])


def keep(name: str, content: dict[str, Any]) -> Path:
    """Write results as ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **content}, indent=1)
    # Curves are long lists of numbers, which belong on one line.
    text = _NUMBERS.sub(lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    put({target: f"{text}\n".encode()})
    return target
