"""What tests of benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make `benchmarks` importable, and its results go elsewhere."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path / "results")
