"""The recorder over weeks: frames come in, passes take them away, and what does not fit is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sunzip.studies.onboard.mission import Floats, Mission

#: Seconds of a step, how many steps are simulated, and how often with other luck.
STEP, STEPS, RUNS = 60.0, 28 * 1440, 32

#: Times that the rarest pass is due in what is simulated, at least: else it might never be.
TURNS = 4

#: Hours for which a frame's bytes stay what they are: as long as the Sun's face hardly changes.
PERSISTENCE = 6.0

#: Bytes of a space packet and of the header in it, after the HMI compression study (HMI-TN-2004-005).
PACKET, HEADER = 1776, 38

# Of what is drawn: of passes that fail, and of frames.
_SEED = 0

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


def simulate(
    mission: Mission, ways: dict[str, dict[str, Floats]], shares: dict[str, float]
) -> dict[str, Recorder]:
    """Run a recorder for each way of sending: `STEPS` steps, `RUNS` times, the same luck for all.

    A step is that of `step_of`. Every run has one of the periods, as many runs as its share says; every
    `PERSISTENCE` hours one of its measured frames is drawn, whose bytes all frames of these hours have. A
    pass fails as a whole, with the probability that the mission states. Frames go down in the order in which
    they came. The instrument's own double buffer holds two frames beside the recorder.

    Parameters
    ----------
    mission
        The mission.
    ways
        Of each way and period: (N,) bytes of the mission's frames.
    shares
        Of each period: its share of the time.
    """
    rng = np.random.default_rng(_SEED)
    step = step_of(mission)
    edges: Floats = np.arange(STEPS + 1) * np.float64(step)
    days = float(edges[-1]) / 86400
    counts = np.diff(np.floor(edges / mission.cadence))
    names = list(shares)
    weights = np.array([shares[n] for n in names])
    # In proportion, not by lot: of so few draws at a half, 20 of 32 are nothing rare.
    upto = np.cumsum(weights / weights.sum())[:-1]
    regime = np.searchsorted(upto, (np.arange(RUNS) + rng.random()) / RUNS, side="right")
    stretches = math.ceil(days * 24 / PERSISTENCE)
    luck = rng.random((RUNS, stretches))
    carried = _carried(mission, edges, rng)
    per_frame: Floats = np.empty((len(ways), RUNS, stretches))
    for w, sizes in enumerate(ways.values()):
        for run in range(RUNS):
            known = np.sort(sizes[names[regime[run]]])
            per_frame[w, run] = known[(luck[run] * len(known)).astype(int)]
    per_frame *= PACKET / (PACKET - HEADER)
    stretch = np.minimum((edges[:-1] / 3600 / PERSISTENCE).astype(int), stretches - 1).tolist()
    room = mission.storage + 2 * per_frame.max(2)
    fill: Floats = np.zeros((len(ways), RUNS))
    lost: Floats = np.zeros((len(ways), RUNS))
    came: Floats = np.zeros((STEPS + 1, len(ways), RUNS))
    gone: Floats = np.zeros((STEPS + 1, len(ways), RUNS))
    for k in range(STEPS):
        new = counts[k] * per_frame[:, :, stretch[k]]
        # What does not fit is not written; what is written stays until it is sent.
        over = np.clip(fill + new - carried[k] - room, 0, new)
        have = fill + new - over
        down = np.minimum(have, carried[k])
        fill = have - down
        came[k + 1] = came[k] + new - over
        gone[k + 1] = gone[k] + down
        lost += over
    offered = came[-1] + lost
    found = {}
    for w, way in enumerate(ways):
        per_day = float(offered[w].mean()) / days
        found[way] = Recorder(
            bytes_per_day=per_day,
            capacity_per_day=mission.rate / 8 * 86400 * mission.contact,
            lost=float(lost[w].sum() / offered[w].sum()),
            overflow=float((lost[w] > 0).mean()),
            latency=_latency(edges, came[:, w], gone[:, w]),
            years=mission.storage / per_day / 365.25 if mission.storage else None,
            fill=_drawn(edges, came[:, w] - gone[:, w]),
        )
    return found


def step_of(mission: Mission) -> float:
    """Return the seconds of a step of the simulation, to which latencies are rounded up.

    It is a frame's interval or `STEP`, whichever is shorter, but long enough for `TURNS` of the rarest pass.
    """
    turns = TURNS * max(p.every for p in mission.passes)
    return max(min(STEP, mission.cadence), turns / STEPS)


def _carried(mission: Mission, edges: Floats, rng: np.random.Generator) -> Floats:
    """Return (STEPS, RUNS) bytes that the downlink can carry in each step."""
    out = np.zeros((STEPS, RUNS))
    middle, step = (edges[:-1] + edges[1:]) / 2, np.diff(edges)[:, None]
    for one in mission.passes:
        which = np.floor((middle - one.begins) / one.every).astype(int)
        which -= which.min()
        happens = rng.random((int(which.max()) + 1, RUNS)) < mission.usable
        out += one.shares(edges)[:, None] * happens[which]
    return np.minimum(out, 1) * step * mission.rate / 8


def _latency(edges: Floats, came: Floats, gone: Floats) -> dict[str, float] | None:
    """Return how long bytes wait, by when as many have gone as had come when they came."""
    waits = []
    for into, out in zip(came.T, gone.T, strict=True):
        # Sums of many numbers: what has come has gone when it has but for rounding.
        due = into * (1 - 1e-9)
        arrived = np.flatnonzero((np.diff(into) > 0) & (due[1:] <= out[-1]))
        if arrived.size:
            waits.append(edges[np.searchsorted(out, due[arrived + 1])] - edges[arrived])
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
    each = max(1, len(fill) // _DRAWN)
    used = fill[: each * _DRAWN].reshape(_DRAWN, each, -1).max(1)
    return {
        "days": (edges[: each * _DRAWN : each] / 86400).round(3).tolist(),
        "median": np.median(used, axis=1).round().tolist(),
        "worst": used.max(1).round().tolist(),
    }
