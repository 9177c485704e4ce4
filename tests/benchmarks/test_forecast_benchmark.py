"""The benchmark of forecasts says what it lacks before it begins, and how that is made."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from sunzip.errors import InputError

pytest.importorskip("sklearn")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = import_module("benchmarks.forecast")
    monkeypatch.setattr(module, "inputs", lambda *_: pytest.fail("frames were rendered"))
    return module


def test_a_model_that_does_not_come_with_sunzip_is_told_how_it_is_made(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    args = ["--real", tmp_path, "--work", tmp_path / "work", "--model", tmp_path / "no-sigma-vae"]
    done = CliRunner().invoke(benchmark.main, list(map(str, args)))
    assert done.exit_code == 1
    assert done.output.startswith("Error: no model ")
    assert done.output.endswith("is in docs/how-to/reproduce-the-paper.md\n")
    assert not (tmp_path / "work").exists()


def test_the_observed_flux_is_read_before_hours_of_work(benchmark: ModuleType, tmp_path: Path) -> None:
    args = ["--real", tmp_path, "--work", tmp_path / "work"]
    done = CliRunner().invoke(benchmark.main, list(map(str, args)))
    assert isinstance(done.exception, InputError)
    assert f"{benchmark.OBSERVED}: cannot be read: No such file" in str(done.exception)
    assert not (tmp_path / "work").exists()
