"""Studies of a mission: bytes, recorder, downlink and computing with a model on board, and as it is today."""

from __future__ import annotations

from sunzip.studies.onboard.mission import Mission, parse, preset, presets, read
from sunzip.studies.onboard.study import study, write

__all__ = ["Mission", "parse", "preset", "presets", "read", "study", "write"]
