"""Sunzip measured as its peers are: all channels of a case together, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.rate_distortion.cases import Case
from benchmarks.rate_distortion.measure import Curve, Judge, curve, sweep
from sunzip.codec import Codec
from sunzip.frame import MAX_FRAMES

#: Points of the quality knob.
QUALITIES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def measure(codec: Codec, case: Case, judges: Sequence[Judge], qualities: Sequence[int]) -> dict[str, Any]:
    """Measure a model on a case.

    Bytes are those of the blocks that `Codec.encode` makes: all that decoding needs besides the model.

    Returns
    -------
    ``frame``: quality, bits per sample over all channels, and the curve of each channel, of frames with all
    channels; ``channels``: the curve of each channel coded without the others; for a series coded in blocks,
    ``single`` is ``frame`` with every frame coded by itself.
    """
    together = min(len(case.data), MAX_FRAMES) if case.series else 1
    out: dict[str, Any] = {"frame": _frame(codec, case, judges, qualities, range(len(judges)), together)}
    if case.series:
        out["single"] = _frame(codec, case, judges, qualities, range(len(judges)), 1)
    if len(judges) == 1:
        found = out["frame"]
        out["channels"] = {n: {"bits": found["bits"], **c} for n, c in found["channels"].items()}
        return out
    channels: dict[str, Curve] = {}
    for c, name in enumerate(case.channels):
        alone = _frame(codec, case, judges, qualities, [c], together)
        channels[name] = {"bits": alone["bits"], **alone["channels"][name]}
    return {**out, "channels": channels}


def _frame(
    codec: Codec,
    case: Case,
    judges: Sequence[Judge],
    qualities: Sequence[int],
    picks: Sequence[int],
    together: int,
) -> dict[str, Any]:
    names = [case.channels[c] for c in picks]
    data = np.ascontiguousarray(case.data[:, list(picks)])

    def measured(quality: int) -> dict[str, Any]:
        blocks = codec.at(quality).encode(data, names, frames_per_block=together)
        decoded = codec.decode(blocks, names, data.shape[2:])
        rows = {
            name: judges[pick](np.ascontiguousarray(decoded[:, c]))
            for c, (pick, name) in enumerate(zip(picks, names, strict=True))
        }
        return {"bits": float(f"{8 * sum(map(len, blocks)) / data.size:.5g}"), "channels": rows}

    found = sweep(qualities, measured, between)
    return {
        "quality": [quality for quality, _ in found],
        "bits": [row["bits"] for _, row in found],
        "channels": {name: curve([row["channels"][name] for _, row in found]) for name in names},
    }


def between(low: int, high: int) -> int | None:
    """Return the quality halfway between two, or None if there is none."""
    middle = (low + high) // 2
    return None if middle in (low, high) else middle
