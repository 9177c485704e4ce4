"""Holds the tables of README and model cards to the measured results that they are made of."""

from __future__ import annotations

import subprocess
import sys
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
