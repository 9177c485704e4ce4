"""The recorder over weeks: frames come in, passes take them away, and what does not fit is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.studies.onboard.mission import Mission, in_contact

Floats = npt.NDArray[np.float64]

#: Longest step in seconds, how many steps are simulated, and how often with other luck.
STEP, STEPS, RUNS = 60.0, 28 * 1440, 32

#: Hours for which a frame's bytes stay what they are: as long as the Sun's face hardly changes.
PERSISTENCE = 6.0

#: Bytes of a space packet and of the header in it, after the HMI compression study (HMI-TN-2004-005).
PACKET, HEADER = 1776, 38

# Points of the fill that reports draw.
_DRAWN = 336


@dataclass(frozen=True, slots=True)
class Recorder:
    """What became of the frames, sent one way.

    Attributes
    ----------
    bytes_per_day
        That come in, packet headers counted.
    capacity_per_day
        Bytes that the passes carry on average.
    lost
        Share of the bytes for which the recorder had no room, over all runs.
    overflow
        Share of the runs in which any were lost.
    latency
        Seconds from exposure to the last byte on the ground: ``mean``, ``p95``, ``worst``; None if bytes of
        no frame came down.
    years
        Of mission that one recorder holds without any pass; None without a recorder.
    fill
        ``days``, and of all runs ``median`` and ``worst`` bytes in the recorder.
    """

    bytes_per_day: float
    capacity_per_day: float
    lost: float
    overflow: float
    latency: dict[str, float] | None
    years: float | None
    fill: dict[str, list[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def simulate(mission: Mission, sizes: dict[str, Floats], shares: dict[str, float], seed: int = 0) -> Recorder:
    """Run the recorder for `STEPS` steps, `RUNS` times.

    A step is a frame's interval or `STEP`, whichever is shorter. Every run has one of the periods, with the
    probability of its share; every `PERSISTENCE` hours one of its measured frames is drawn, whose bytes all
    frames of these hours have. A pass fails as a whole, with the probability that the mission states. Frames
    go down in the order in which they came. The instrument's own double buffer holds two frames beside the
    recorder.

    Parameters
    ----------
    mission
        The mission.
    sizes
        Of each period: (N,) bytes of the mission's frames.
    shares
        Of each period: its share of the time.
    seed
        Of the draws: the same luck for each way of sending.
    """
    rng = np.random.default_rng(seed)
    step = step_of(mission)
    edges: Floats = np.arange(STEPS + 1) * np.float64(step)
    days = float(edges[-1]) / 86400
    counts = np.diff(np.floor(edges / mission.cadence))
    names = list(sizes)
    weights = np.array([shares[n] for n in names])
    regime = rng.choice(len(names), RUNS, p=weights / weights.sum())
    stretches = math.ceil(days * 24 / PERSISTENCE)
    luck = rng.random((RUNS, stretches))
    per_frame = np.empty((RUNS, stretches))
    for run in range(RUNS):
        known = np.sort(sizes[names[regime[run]]])
        per_frame[run] = known[(luck[run] * len(known)).astype(int)]
    per_frame *= PACKET / (PACKET - HEADER)
    stretch = np.minimum((edges[:-1] / 3600 / PERSISTENCE).astype(int), stretches - 1)
    carried = _carried(mission, step, rng)
    room = mission.storage + 2 * per_frame.max(1)
    fill: Floats = np.zeros(RUNS)
    came: Floats = np.zeros((STEPS + 1, RUNS))
    gone: Floats = np.zeros((STEPS + 1, RUNS))
    offered = np.zeros(RUNS)
    lost = np.zeros(RUNS)
    for k in range(STEPS):
        new = counts[k] * per_frame[:, stretch[k]]
        offered += new
        over = np.maximum(fill + new - carried[k] - room, 0)
        # What does not fit is not written; a frame in the making can wait, others cannot.
        over = np.minimum(over, new)
        have = fill + new - over
        down = np.minimum(have, carried[k])
        fill = have - down
        came[k + 1] = came[k] + new - over
        gone[k + 1] = gone[k] + down
        lost += over
    return Recorder(
        bytes_per_day=float(offered.mean()) / days,
        capacity_per_day=mission.rate / 8 * 86400 * mission.contact,
        lost=float(lost.sum() / offered.sum()),
        overflow=float((lost > 0).mean()),
        latency=_latency(edges, came, gone),
        years=mission.storage / (float(offered.mean()) / days) / 365.25 if mission.storage else None,
        fill=_drawn(edges, came - gone),
    )


def step_of(mission: Mission) -> float:
    """Return the seconds of a step of the simulation, to which latencies are rounded up."""
    return min(STEP, mission.cadence)


def _carried(mission: Mission, step: float, rng: np.random.Generator) -> Floats:
    """Return (STEPS, RUNS) bytes that the downlink can carry in each step."""
    out = np.zeros((STEPS, RUNS))
    begins = np.arange(STEPS) * step
    for one in mission.passes:
        share = np.array([in_contact([one], begin, begin + step) for begin in begins.tolist()])
        which = np.floor((begins + step / 2 - one.begins) / one.every).astype(int)
        which -= which.min()
        happens = rng.random((int(which.max()) + 1, RUNS)) < mission.usable
        out += share[:, None] * happens[which]
    return np.minimum(out, 1) * step * mission.rate / 8


def _latency(edges: Floats, came: Floats, gone: Floats) -> dict[str, float] | None:
    """Return how long bytes wait, by when as many have gone as had come when they came."""
    waits = []
    for run in range(came.shape[1]):
        into, out = came[:, run], gone[:, run]
        moved = np.flatnonzero(np.diff(out) > 0)
        arrived = np.flatnonzero((np.diff(into) > 0) & (into[1:] <= out[-1]))
        if not moved.size or not arrived.size:
            continue
        rising = np.concatenate([[0], moved + 1])
        when = np.interp(into[arrived + 1], out[rising], edges[rising])
        waits.append(np.maximum(when - edges[arrived], 0))
    if not waits:
        return None
    together = np.concatenate(waits)
    return {
        "mean": float(together.mean()),
        "p95": float(np.quantile(together, 0.95)),
        "worst": float(together.max()),
    }


def _drawn(edges: Floats, fill: Floats) -> dict[str, list[float]]:
    """Thin the fill out to what a plot shows: the highest of each stretch."""
    each = len(fill) // _DRAWN
    used = fill[: each * _DRAWN].reshape(_DRAWN, each, -1).max(1)
    return {
        "days": (edges[: each * _DRAWN : each] / 86400).round(3).tolist(),
        "median": np.median(used, axis=1).round().tolist(),
        "worst": used.max(1).round().tolist(),
    }
