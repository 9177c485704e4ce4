"""How long work takes: the fastest of several rounds, as what else a machine does only slows it."""

from __future__ import annotations

import time
from collections.abc import Callable


def fastest(work: Callable[[], object], seconds: float, rounds: int, *, warm: bool = False) -> float:
    """Return the seconds of the fastest round.

    Parameters
    ----------
    work
        A round; one is done before the clock starts.
    seconds, rounds
        As long it goes on at least, and so often.
    warm
        Whether that has been seen to, so that no round is left out.
    """
    if not warm:
        work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < rounds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
