"""What benchmarks say of the machine: without importing what they do not measure."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest


def test_a_machine_is_described_without_importing_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import common

    for package in ("torch", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    found = common.machine()
    assert found["numpy"] == version("numpy")
    assert common._release("no-such-package") is None
