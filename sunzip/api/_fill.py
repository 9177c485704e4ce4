"""Images that a frame lacks, foretold from those that it has: for whom a guess is better than a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sunzip.channels import channel
from sunzip.cube import Cube, Scale
from sunzip.normalize import Stabiliser
from sunzip.pyramid import Grid, grid_of, places_of, to_picture, to_pyramid
from sunzip.rotation import MAX_MINUTES, turned
from sunzip.sun import Sun

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: The keyword of an image that was foretold: the share of what varies that is expected to be right in it.
FILLED = "SZ_FILL"

#: Frames that tell how channels go together, and bytes of pixels that they may have; of a channel that none
#: of them has, a few that have it.
_FRAMES, _BYTES, _FEW = 16, 1 << 27, 3

#: Less than this share foretold is no image.
_TELLING = 0.5

_TINY = 1e-9

#: A variance, in units of noise, below which a channel is silent.
_SILENT = 1e-4


class Filler:
    """Foretells what frames of an archive lack; frames are given to it in the order of time.

    In units of noise, images are taken apart into wavelet bands. In each level a missing channel is foretold
    from those that are there by linear regression on frames of the same archive that have both. If an earlier
    frame has the channel, it is turned by the Sun's rotation, and what the regression misses there is added
    as far as the other channels are still as they were, those of the same instrument if there are any: with x
    the channels that there are, c the missing one, ′ the earlier frame and ρ how x and x′ correlate,
    c = A·x + ρ·(c′ − A·x′). For two moments of a stationary Gaussian process whose channels all decay alike
    that is the conditional mean.

    Parameters
    ----------
    sun
        The archive.
    channels
        The channels that are wanted.
    """

    def __init__(self, sun: Sun, channels: Sequence[str]) -> None:
        self._sun = sun
        self._wanted = np.isin(sun.channels, channels)
        self._instruments = np.array([channel(name).instrument for name in sun.channels])
        self._stabiliser = Stabiliser.for_channels(sun.channels)
        self._grid = grid_of(*sun.archive.shape)
        #: By channel, the last frame that had it.
        self._last: dict[int, _Frame] = {}

    def fill(self, cube: Cube) -> tuple[Cube, npt.NDArray[np.bool_]]:
        """Fill in images that are missing where at least half of what varies in them can be foretold.

        Parameters
        ----------
        cube
            All channels of the archive, later than what was given before. Its pixels are overwritten.

        Returns
        -------
        cube
            With the images that could be foretold; these have the keyword `FILLED` and no ``t_obs``.
        filled
            (T, C) which these are.
        """
        scale, cube = cube.scale, cube.to_scale(Scale.MEAN)
        known = cube.valid.copy()
        for t, shown in enumerate(known):
            now = _Frame(cube.time[t], cube.data[t], shown)
            for c in np.flatnonzero(self._wanted & ~shown) if shown.any() else ():
                found = self._foretold(now, int(c))
                if found is None:
                    continue
                cube.data[t, c], share = found
                cube.valid[t, c] = True
                cube.headers[t][c] = {FILLED: round(share, 3)}
            self._last |= dict.fromkeys(np.flatnonzero(shown).tolist(), now)
        # Frames that are kept must not keep the cube.
        kept = {id(frame): frame.apart() for frame in self._last.values()}
        self._last = {c: kept[id(frame)] for c, frame in self._last.items()}
        return cube.to_scale(scale), cube.valid & ~known

    @cached_property
    def _together(self) -> _Together:
        """How channels go together in this archive."""
        sun = self._sun
        valid = sun.archive.valid
        most = max(_FEW, min(_FRAMES, _BYTES // (4 * valid.shape[1] * int(np.prod(sun.archive.shape)))))
        chosen = _spread(valid, most)
        for c in range(valid.shape[1]):
            if not valid[chosen, c].any():
                here = np.flatnonzero(valid[:, c])
                chosen = np.union1d(chosen, here[_spread(valid[here], _FEW)])
        pixels = sun.take(chosen.tolist())
        frames = [_Frame(sun.time[t], x, valid[t]) for t, x in zip(chosen, pixels, strict=True)]
        return _Together.of([self._pyramid(frame) for frame in frames], valid[chosen], self._grid)

    def _pyramid(self, frame: _Frame, minutes: int = 0) -> Float:
        """Return the (C, Y, X) pyramid of a frame, turned; of channels that it lacks any."""
        if minutes in frame.made:
            return frame.made[minutes]
        image = self._stabiliser.forward(np.nan_to_num(frame.pixels))
        if minutes:
            image = turned(image, minutes)
        found = to_pyramid(image, self._grid)
        # Of all turns only the last is asked for again, by the other channels that the same frame lacks.
        frame.made = {m: p for m, p in frame.made.items() if not m} | {minutes: found}
        return found

    def _foretold(self, now: _Frame, c: int) -> tuple[Float, float] | None:
        """Return the image (Y, X) of a channel that a frame lacks, and how well it is foretold."""
        together = self._together
        has = np.flatnonzero(now.shown)
        here = self._pyramid(now) - together.mean
        before = self._last.get(c)
        there, both, alike = None, has[:0], self._instruments == self._instruments[c]
        if before is not None:
            minutes = round(float((now.time - before.time) / np.timedelta64(1, "m")))
            both = has[before.shown[has]]
            if len(both) and minutes <= MAX_MINUTES:
                there = self._pyramid(before, minutes) - together.mean
        out = np.zeros((1, *here.shape[1:]), np.float32)
        told = whole = 0.0
        for n in range(-1, self._grid.depth):
            weights, share = together.regression(n, has, c)
            rest, likeness = None, 0.0
            x = _level(here, self._grid, n)
            if there is not None:
                earlier = _level(there, self._grid, n)
                likeness = _likeness(x, earlier, both[alike[both]] if alike[both].any() else both)
                less, _ = together.regression(n, both, c)
                rest = likeness * (earlier[c] - np.tensordot(less, earlier[both], 1))
            value = np.tensordot(weights, x[has], 1)
            _put(out, self._grid, n, value if rest is None else value + rest)
            energy = float(together.covariance[n + 1, c, c]) * x[c].size
            told += energy * (share + (1 - share) * likeness**2)
            whole += energy
        if told < _TELLING * whole or not whole:
            return None
        out += together.mean[c]
        height, width = self._sun.archive.shape
        image = to_picture(out, self._grid, self._grid.depth)[:, :height, :width]
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = self._stabiliser.subset([c]).inverse(image)[0]
        return np.nan_to_num(pixels), told / whole


@dataclass(slots=True)
class _Frame:
    """A frame as it was decoded.

    Attributes
    ----------
    time
        Nominal.
    pixels
        (C, Y, X) DN/s and G, NaN where missing.
    shown
        (C,) which images there are.
    made
        Its pyramids, by the minutes that they are turned.
    """

    time: np.datetime64
    pixels: Float
    shown: npt.NDArray[np.bool_]
    made: dict[int, Float] = field(default_factory=dict)

    def apart(self) -> _Frame:
        """Return it without what it was cut from."""
        return _Frame(self.time, self.pixels.copy(), self.shown)


@dataclass(frozen=True, slots=True)
class _Together:
    """How the channels of frames go together, level by level.

    Attributes
    ----------
    mean
        (C, Y, X) pyramid: the mean of the frames and of one of zeros, as few frames are no mean.
    covariance
        (1 + depth, C, C) about it: of the coarsest picture, and of the bands of each level.
    ridge
        (C,) share of its own variance that is added to each channel's where one is foretold.
    """

    mean: Float
    covariance: Doubles
    ridge: Doubles

    @classmethod
    def of(cls, pyramids: list[Float], shown: npt.NDArray[np.bool_], grid: Grid) -> _Together:
        """Take it from pyramids (C, Y, X), of each the channels (T, C) that it has."""
        total = np.zeros(pyramids[0].shape, np.float64)
        for pyramid, row in zip(pyramids, shown, strict=True):
            total[row] += pyramid[row]
        mean = (total / (1 + shown.sum(0))[:, None, None]).astype(np.float32)
        channels = len(mean)
        out = np.zeros((1 + grid.depth, channels, channels))
        count = np.zeros((1 + grid.depth, channels, channels))
        for pyramid, row in zip(pyramids, shown, strict=True):
            apart = np.where(row[:, None, None], pyramid - mean, 0)
            for n in range(-1, grid.depth):
                x = _level(apart, grid, n).reshape(channels, -1).astype(np.float64)
                out[n + 1] += x @ x.T
                count[n + 1] += x.shape[1] * np.outer(row, row)
        out /= np.maximum(count, 1)
        return cls(mean, out, 1 / (1 + shown.sum(0)))

    def regression(self, n: int, has: npt.NDArray[np.intp], c: int) -> tuple[Float, float]:
        """Return the weights of channels that foretell another in level n, and what share of it they do.

        Few frames tell little of what channels have in common, and channels that were not seen in the same
        frames leave a matrix that need not be a covariance. Against both helps a ridge.
        """
        covariance = self.covariance[n + 1]
        size = np.sqrt(np.maximum(np.diagonal(covariance), _SILENT))
        relation = covariance / np.outer(size, size)
        values, vectors = np.linalg.eigh(relation[np.ix_(has, has)])
        values = np.maximum(values, 0)
        along = vectors.T @ relation[has, c]
        weights = along / (values + self.ridge[c])
        share = float(2 * weights @ along - weights @ (values * weights))
        scaled = vectors @ weights * size[c] / size[has]
        return scaled.astype(np.float32), min(max(share, 0.0), 1.0)


def _spread(valid: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.intp]:
    """Return the numbers of at most so many frames, evenly spread over those that have the most channels."""
    held = valid.sum(1)
    fullest = np.flatnonzero(held == held.max())
    return fullest[np.unique(np.linspace(0, len(fullest) - 1, min(most, len(fullest))).astype(np.intp))]


def _level(pyramid: Float, grid: Grid, n: int) -> Float:
    """Return (C, 3, h, w), the bands of level n of a pyramid; of level −1 (C, 1, h, w), its coarsest."""
    h, w = grid.level(max(n, 0))
    return pyramid[:, None, :h, :w] if n < 0 else np.stack(places_of(pyramid, h, w), 1)


def _put(pyramid: Float, grid: Grid, n: int, values: Float) -> None:
    """Store what `_level` gives of one channel in a pyramid of one channel."""
    h, w = grid.level(max(n, 0))
    places = [pyramid[0, :h, :w]] if n < 0 else [p[0] for p in places_of(pyramid, h, w)]
    for place, band in zip(places, values, strict=True):
        place[...] = band


def _likeness(now: Float, before: Float, rows: npt.NDArray[np.intp]) -> float:
    """Return the mean correlation of channels with what they were, at least 0."""
    a, b = (x[rows].reshape(len(rows), -1).astype(np.float64) for x in (now, before))
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return max(float(((a * b).sum(1) / np.maximum(size, _TINY)).mean()), 0.0)
