"""The study of a mission: measured, simulated, counted, and written down with every assumption."""

from __future__ import annotations

import json
import os
import time as clock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sunzip import __version__, weights
from sunzip.channels import channel
from sunzip.codec import Codec
from sunzip.errors import InputError
from sunzip.files import put
from sunzip.studies.onboard.compute import (
    BANDWIDTH_REACHED,
    CYCLES_SAMPLE,
    CYCLES_SYMBOL,
    PROCESSORS,
    count,
    effort,
)
from sunzip.studies.onboard.measure import measure, periods, statistics
from sunzip.studies.onboard.mission import Mission
from sunzip.studies.onboard.recorder import HEADER, PACKET, PERSISTENCE, RUNS, STEPS, simulate, step_of
from sunzip.weights import Model

#: Frames of each period, and pixels along a side at which they are measured, unless the user says otherwise.
FRAMES, SIDE = 24, 512

#: A σ-VAE takes this size only.
_SIGMA_SIDE = 128


def study(
    mission: Mission,
    *,
    model: str | Path | Model | None = None,
    quality: int | None = None,
    sources: Sequence[str] = (),
    frames: int = FRAMES,
    size: int | None = None,
    hmi: str | None = None,
    anon: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> dict[str, Any]:
    """Study what a model would do for a mission.

    Parameters
    ----------
    mission
        The mission.
    model, quality
        What would fly; default the default model at its own quality.
    sources
        Where frames come from; default the synthetic Sun, quiet and active.
    frames
        Most frames of each period.
    size
        Pixels along a side of a measured frame; default 512, or the mission's own size if that is smaller.
    hmi, anon
        Of the sources, as in `sunzip.api.open_series`.
    progress
        Called with what is done, how much of it and of how much.

    Returns
    -------
    Plain values, fit for JSON; `sunzip.studies.onboard.report.page` shows them.

    Raises
    ------
    InputError
        If the sources cannot be used, or the model cannot code frames of that size.
    """
    begin = clock.monotonic()
    if frames < 2:
        raise InputError(f"{frames} frames of a period; statistics need at least 2")
    found = model if isinstance(model, Model) else weights.load(model or weights.DEFAULT)
    weights.register(found)
    codec = Codec(found, quality)
    side = size or min(_SIGMA_SIDE if found.family == "sigma-vae" else SIDE, mission.side)
    codec.family.check_size(side, side)
    if side > mission.side:
        raise InputError(f"frames of {side}² pixels are larger than the mission's of {mission.side}²")
    advance = progress or (lambda what, done, total: None)
    known = periods(mission, sources, frames, side, hmi=hmi, anon=anon)
    measured = measure(mission, codec, known, side, advance)
    tiles = (mission.side / side) ** 2
    shares = {p.name: p.share for p in known}
    advance("filling recorders", 0, 1)
    wholes = {
        key: {name: values * tiles for name, values in by_period.items()}
        for key, by_period in measured.sizes.bytes.items()
    }
    recorders = simulate(mission, wholes, shares)
    ways = {}
    for key, whole in wholes.items():
        mean = sum(shares[n] * float(v.mean()) for n, v in whole.items()) / sum(shares.values())
        by_name = {name: statistics(values) for name, values in whole.items()}
        ways[key] = {
            "title": measured.sizes.ways[key],
            "note": measured.sizes.notes[key],
            "bits_per_sample": 8 * mean / mission.pixels,
            "frame": {
                "mean": mean,
                **{k: max(s[k] for s in by_name.values()) for k in ("p95", "p999", "worst")},
            },
            "periods": by_name,
            "recorder": recorders[key].as_dict(),
        }
    advance("counting", 0, 1)
    cost = count(codec, mission.channels, side)
    efforts = [effort(p, cost, tiles, mission).as_dict() for p in PROCESSORS]
    reference = mission.present if mission.present in ways else "raw"
    return {
        "sunzip": __version__,
        "mission": mission.as_dict(),
        "model": {
            "name": found.name,
            "family": found.family,
            "sha256": found.sha256,
            "bytes": found.nbytes,
            "quality": codec.shown_quality,
        },
        "measured": {
            "side": side,
            "tiles": tiles,
            "periods": [
                {"name": p.name, "share": p.share, "source": p.source, "frames": p.count} for p in known
            ],
            "errors": measured.errors,
            "curve": measured.curve,
            "stress": {title: size * tiles for title, size in measured.stress.items()},
        },
        "present": reference,
        "absent": {
            measured.sizes.ways[k]: measured.sizes.notes[k] for k in measured.sizes.ways if k not in ways
        },
        "ways": ways,
        "compute": {
            "counted": cost.as_dict(),
            "frame": {
                "macs": cost.macs * tiles,
                "traffic": cost.traffic * tiles,
                "symbols": cost.symbols * tiles,
            },
            "here": {
                "seconds": measured.seconds * tiles,
                "keeps_cadence": measured.seconds * tiles <= mission.cadence,
            },
            "processors": efforts,
        },
        "assumptions": _assumptions(mission, side, tiles, max(p.count for p in known)),
        "seconds": clock.monotonic() - begin,
    }


def _assumptions(mission: Mission, side: int, tiles: float, frames: int) -> list[str]:
    step = step_of(mission)
    instruments = {channel(name).instrument for name in mission.channels}
    top = 1 << (mission.bits - 1)
    return [
        *mission.assumptions,
        f"Frames are coded as {tiles:.3g} tiles of {side}×{side} pixels, each of which takes as many "
        f"bytes as a whole "
        f"Sun of {side}×{side} pixels does: pixels count, not what is in them",
        *(
            [
                "AIA-like images have the noise of AIA's detector (gain and read noise of SolarSoft's error "
                "table, usual exposure times), averaged over "
                f"{mission.binning}×{mission.binning} detector pixels; all ways code the same images"
            ]
            if "AIA" in instruments
            else []
        ),
        *(
            [
                f"Magnetograms are read in steps of 1 G from −{top:,} to {top - 1:,} G, beyond which fields "
                "count as these, and have the noise of the frames that are measured"
            ]
            if "HMI" in instruments
            else []
        ),
        "Each channel is coded as the channel of SDO that it is like, with that channel's weights",
        f"Percentiles beyond what {frames} frames of a period show are those of a generalised Pareto "
        f"distribution "
        "fitted to the largest tenth; the worst is the largest that was seen",
        f"Recorder: {RUNS} runs of {STEPS * step / 86400:.3g} days in steps of {step:.3g} s, to which "
        f"latencies are "
        "rounded up; it begins empty, and what it holds in the end counts as not lost; one period a run; "
        "the bytes of a measured "
        f"frame for {PERSISTENCE:.0f} h; first in, first out; passes fail as a whole; two frames fit into "
        f"the "
        "instrument's own buffers",
        f"Packets of {PACKET} bytes with {HEADER} bytes of header; latency leaves out the light's way",
        f"Processors: {CYCLES_SAMPLE} cycles for a sample that is stabilised and {CYCLES_SYMBOL} for a "
        f"symbol that is "
        f"entropy-coded, on one core; {BANDWIDTH_REACHED:.0%} of the memory's peak rate; of arithmetic "
        f"and memory the "
        "slower counts; wavelets and other plain operations are not counted, but are in the time measured "
        "here",
        *(f"{p.name}: {p.source}. Assumed: {p.assumed}" for p in PROCESSORS),
    ]


def write(page: str, result: dict[str, Any], html: str | os.PathLike[str]) -> None:
    """Write a report and, beside it, the same as JSON; neither if one of them cannot be written.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    target = Path(html)
    data = json.dumps(result, indent=1, allow_nan=False) + "\n"
    put({target: page.encode(), target.with_suffix(".json"): data.encode()})
