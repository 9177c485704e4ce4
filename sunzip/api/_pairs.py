"""What evaluate and diff share: the frames that are in both, an archive's one by one, and units of noise."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sunzip.api._shards import frames_at_a_time
from sunzip.cube import Cube
from sunzip.normalize import NOISE, Stabiliser
from sunzip.sun import Sun
from sunzip.times import Times


def in_both(
    time: Times, t_obs: Times, other_time: Times, other_t_obs: Times
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Find the frames that two have in common: of one nominal time, or else with an image of one time.

    The latter are those of the same images on another time axis, as that of times as they are.

    Parameters
    ----------
    time, other_time
        (T,) datetime64[ms], strictly increasing: the nominal times of each.
    t_obs, other_t_obs
        (T, C) datetime64[ms], of the same channels; NaT where there is no image.

    Returns
    -------
    The numbers of these frames in the first, which rise, and in the other.
    """
    _, ours, theirs = np.intersect1d(time, other_time, assume_unique=True, return_indices=True)
    for c in range(t_obs.shape[1]):
        left = np.setdiff1d(np.flatnonzero(~np.isnat(t_obs[:, c])), ours)
        other_left = np.setdiff1d(np.flatnonzero(~np.isnat(other_t_obs[:, c])), theirs)
        _, a, b = np.intersect1d(t_obs[left, c], other_t_obs[other_left, c], return_indices=True)
        ours, theirs = np.concatenate([ours, left[a]]), np.concatenate([theirs, other_left[b]])
    order = np.argsort(ours)
    return ours[order], theirs[order]


class Decoded:
    """An archive's frames, one by one: those that are decoded together are kept until others are asked for.

    Parameters
    ----------
    sun
        The archive.
    channels
        Which are decoded; by default all.
    """

    def __init__(self, sun: Sun, channels: tuple[str, ...] | None = None) -> None:
        self._sun = sun
        self._channels = sun.held(channels)
        self._begins: list[int] = []
        self._begin = 0
        self._cube: Cube | None = None

    def read(self, frame: int) -> Cube:
        """Return one frame; rising ones are decoded once.

        Raises
        ------
        DamagedError, ModelNotFoundError
            As `sunzip.sun.Sun.read` and `sunzip.sun.Sun.codec`.
        """
        if self._cube is None or not self._begin <= frame < self._begin + len(self._cube):
            sun = self._sun
            # Before the next ones are made: both together may be of gigabytes.
            self._cube = None
            if not self._begins:
                y, x = sun.archive.shape
                most = frames_at_a_time(len(self._channels) * y * x, sun.together, stretches=1)
                self._begins = [stretch[0] for stretch in sun.stretches(range(len(sun)), most)]
            n = bisect_right(self._begins, frame)
            self._begin = self._begins[n - 1]
            end = self._begins[n] if n < len(self._begins) else len(sun)
            self._cube = sun.cube(self._begin, end, self._channels)
        i = slice(frame - self._begin, frame - self._begin + 1)
        c = self._cube
        return Cube(c.data[i], c.channels, c.time[i], c.t_obs[i], c.valid[i], c.headers[i], c.scale)


@dataclass(slots=True)
class Stabilise:
    """Units of noise for the metrics; a class, so that an accumulator can be pickled."""

    made: dict[str, Stabiliser] = field(
        default_factory=lambda: {name: Stabiliser.for_channels([name]) for name in NOISE}
    )

    def __call__(self, values: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return self.made[name].forward(values.reshape(1, 1, -1)).reshape(-1)
