"""Holds the tables of README and model cards to the measured results that they are made of."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sunzip import weights

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_models_of_before_are_told_from_those_of_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import tables

    now = weights.load("wavelet-12").sha256
    assert tables._named("wavelet-12", now) == "`wavelet-12`"
    assert tables._named("sigma-vae-256", "0" * 64) == "`sigma-vae-256`"
    assert tables._named("wavelet-12", "0" * 64) == "`wavelet-12` as it was before (00000000…)"


def test_commands_of_results_say_all_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    for file in sorted((ROOT / "benchmarks/results").glob("*.json")):
        for command in json.loads(file.read_text(encoding="utf-8"))["command"].split(" && "):
            python, m, name, *words = shlex.split(command)
            assert (python, m) == ("python", "-m")
            module = import_module(name if name != "benchmarks.rate_distortion" else f"{name}.__main__")
            for option in module.main.params:
                if option.required and option.param_type_name == "option":
                    assert set(option.opts) & set(words), f"{file.name}: {command}: lacks {option.opts[0]}"


def test_cadences_at_which_nothing_was_foretold_have_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import tables

    result = json.loads((ROOT / "benchmarks/results/filling.json").read_text(encoding="utf-8"))
    for found in result["rows"][-1]["channels"].values():
        found |= dict.fromkeys(("foretold", "before", "expected", "right"))
    text = tables.filling(result)
    assert re.search(r"[0-9], – was expected to be right, by `SZ_FILL`, and .*, – was:", text)


def test_the_best_codec_of_single_images_is_also_measured_behind_the_transform() -> None:
    result = json.loads((ROOT / "benchmarks/results/rate_distortion.json").read_text(encoding="utf-8"))
    overall = result["comparison"][result["default"]]["overall"]["real"]
    ratios = {peer: spans["0.01 to 0.1"]["ratio"] or 0 for peer, spans in overall.items()}
    best = max(result["names"].keys() & ratios.keys(), key=ratios.__getitem__)
    assert f"KLT + {best}" in ratios
