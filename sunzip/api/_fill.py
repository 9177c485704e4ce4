"""Images that a frame lacks, foretold from those that it has: for whom a guess is better than a gap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel
from sunzip.codec.images import indexes_of, stable_frame
from sunzip.cube import Cube, Scale, summed
from sunzip.normalize import Stabiliser
from sunzip.pyramid import Grid, grid_of, places_of, to_picture, to_pyramid
from sunzip.rotation import MAX_MINUTES, turned
from sunzip.sun import Sun

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: The keyword of an image that was foretold: the share of its variance that is expected to be right in it.
FILLED = "SZ_FILL"

#: Frames that tell how channels go together, and bytes of pixels that they may have; fewer than a few that
#: have a channel tell nothing of it.
_FRAMES, _BYTES, _FEW = 16, 1 << 27, 3

#: Less than this share foretold is no image.
_TELLING = 0.5

#: After so long the Sun shows its other side: frames further apart are no more unlike.
_UNLIKE = np.timedelta64(14, "D")

#: What is added to the variance of channels, in units of it, where one is foretold; the best is chosen.
_RIDGES = (0.1, 0.4, 1.6, 6.4)

_TINY = 1e-9

#: A variance, in units of noise, below which a channel is silent.
_SILENT = 1e-4

#: Positions of pyramids that are multiplied at once.
_CHUNK = 1 << 14


class Filler:
    """Foretells what frames of an archive lack; frames are given to it in the order of time.

    In units of noise, images are taken apart into wavelet bands. In each level a missing channel is foretold
    from those that are there by linear regression on frames of the same archive that have both. If an earlier
    frame has the channel, it is turned by the Sun's rotation, and what the regression misses there is added
    as far as the other channels are still as they were, those of the same instrument if there are any: with x
    the channels that there are, c the missing one, ′ the earlier frame and ρ how x and x′ correlate,
    c = A·x + ρ·(c′ − A·x′). For two moments of a stationary Gaussian process whose channels all decay alike
    that is the conditional mean.

    How well that does is not asked of the frames that it was learned from. Each frame that has the channel is
    foretold from those that are as far from it in time as the frame in question is from all of them.

    Parameters
    ----------
    sun
        The archive.
    channels
        The channels that are wanted.
    start
        The number of the first frame that will be given. What is foretold does not depend on it, as the last
        images before are looked up.
    """

    def __init__(self, sun: Sun, channels: Sequence[str], start: int = 0) -> None:
        self._sun = sun
        self._wanted = np.isin(sun.channels, channels)
        self._instruments = np.array([channel(name).instrument for name in sun.channels])
        self._indexes = indexes_of(sun.channels)
        self._stabiliser = Stabiliser.for_channels(NAMES)
        self._grid = grid_of(*sun.archive.shape)
        #: By channel, the last frame that had it.
        self._last: dict[int, _Frame] = {}
        #: By channel, those there are and what could be learned from what, how well that does.
        self._trials: dict[tuple[int, bytes, bytes], _Trial] = {}
        held = sun.archive.valid[:start]
        for t in sorted({int(np.flatnonzero(shown)[-1]) for shown in held.T if shown.any()}):
            cube = sun.cube(t, t + 1).to_scale(Scale.MEAN)
            self._keep(_Frame(cube.time[0], cube.data[0], cube.valid[0]))

    def fill(self, cube: Cube) -> tuple[Cube, npt.NDArray[np.bool_]]:
        """Fill in images that are missing where at least half of their variance can be foretold.

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
            self._keep(now)
        # Frames that are kept must not keep the cube.
        kept = {id(frame): frame.apart() for frame in self._last.values()}
        self._last = {c: kept[id(frame)] for c, frame in self._last.items()}
        return cube.to_scale(scale), cube.valid & ~known

    def _keep(self, frame: _Frame) -> None:
        self._last |= dict.fromkeys(np.flatnonzero(frame.shown).tolist(), frame)

    @cached_property
    def _together(self) -> _Together:
        """How channels go together in this archive."""
        sun, grid = self._sun, self._grid
        valid = sun.archive.valid
        most = max(_FEW, min(_FRAMES, _BYTES // (4 * valid.shape[1] * int(np.prod(sun.archive.shape)))))
        chosen = _telling(valid, most)
        pixels = sun.take(chosen.tolist())
        for c, name in enumerate(sun.channels):
            pixels[:, c] /= np.float32(summed(name, sun.scale))
        pyramids = np.empty((*valid[chosen].shape, grid.height, grid.width), np.float32)
        for images, pyramid in zip(pixels, pyramids, strict=True):
            to_pyramid(stable_frame(images, self._indexes, self._stabiliser), grid, pyramid)
        return _Together(sun.time[chosen], pyramids, valid[chosen], grid)

    @cached_property
    def _kept(self) -> Doubles:
        """(C,) share of the variance of a channel's images that coding has kept."""
        # Where one of both images is the same all over, there is no r, and nothing is kept.
        r = np.nan_to_num(self._sun.archive.stats["err_r"].astype(np.float64))
        out: Doubles = np.square(r).sum(0) / np.maximum(self._sun.archive.valid.sum(0), 1)
        return out

    def _pyramid(self, frame: _Frame, minutes: int = 0) -> Float:
        """Return the (C, Y, X) pyramid of a frame, turned; of channels that it lacks any."""
        if minutes in frame.made:
            return frame.made[minutes]
        image = stable_frame(frame.pixels, self._indexes, self._stabiliser)
        if minutes:
            image = turned(image, minutes)
        found = to_pyramid(image, self._grid)
        # Of all turns only the last is asked for again, by the other channels that the same frame lacks.
        frame.made = {m: p for m, p in frame.made.items() if not m} | {minutes: found}
        return found

    def _foretold(self, now: _Frame, c: int) -> tuple[Float, float] | None:
        """Return the image (Y, X) of a channel that a frame lacks, and how well it is foretold."""
        has = np.flatnonzero(now.shown)
        trial = self._trial(now.time, has, c)
        if trial is None:
            return None
        rule, mean = self._together.rule_of(c)
        here = self._pyramid(now) - mean
        before = self._last.get(c)
        there, both, alike = None, has[:0], self._instruments == self._instruments[c]
        if before is not None:
            minutes = round(float((now.time - before.time) / np.timedelta64(1, "m")))
            both = has[before.shown[has]]
            if len(both) and minutes <= MAX_MINUTES:
                there = self._pyramid(before, minutes) - mean
        out = np.zeros((1, *here.shape[1:]), np.float32)
        left = 0.0
        for n in range(-1, self._grid.depth):
            ridge, likeness = trial.ridges[n + 1], 0.0
            x = _level(here, self._grid, n)
            value = np.tensordot(rule.weights(n, has, ridge), x[has], 1)
            if there is not None:
                earlier = _level(there, self._grid, n)
                likeness = _likeness(x, earlier, both[alike[both]] if alike[both].any() else both)
                less = np.tensordot(rule.weights(n, both, ridge), earlier[both], 1)
                value += likeness * (earlier[c] - less)
            _put(out, self._grid, n, value)
            left += trial.energies[n + 1] * (1 - likeness**2)
        missed = trial.missed * left / max(float(trial.energies.sum()), _TINY)
        share = float(self._kept[c]) * (1 - missed)
        if share < _TELLING:
            return None
        return self._pixels(out + mean[c], c)[0], share

    def _trial(self, time: np.datetime64, has: npt.NDArray[np.intp], c: int) -> _Trial | None:
        """Return how well a channel is foretold from others at a time; None if too few frames tell."""
        together = self._together
        own = together.shown[:, c]
        if not own.any():
            return None
        gap = min(np.abs(together.time[own] - time).min(), _UNLIKE)
        learn = np.abs(together.time[:, None] - together.time) >= gap
        held = np.flatnonzero(own & (learn & own).any(1))
        if len(held) < _FEW:
            return None
        key = c, has.tobytes(), learn.tobytes()
        if key not in self._trials:
            errors, ridges, energies = together.held_out(held, learn[held], has, c)
            pyramids = together.pyramids[held, c]
            truth = self._pixels(pyramids, c).astype(np.float64)
            error = self._pixels(pyramids - errors, c) - truth
            missed = np.square(error).mean((1, 2)) / np.maximum(truth.var((1, 2)), _TINY)
            self._trials[key] = _Trial(ridges, float(missed.mean()), energies)
        return self._trials[key]

    def _pixels(self, pyramids: Float, c: int) -> Float:
        """Return the images (n, Y, X) that pyramids (n, Y, X) of one channel are of."""
        height, width = self._sun.archive.shape
        images = to_picture(pyramids, self._grid, self._grid.depth)[:, None, :height, :width]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.nan_to_num(self._stabiliser.subset([self._indexes[c]]).inverse(images)[:, 0])


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
class _Trial:
    """How well a channel is foretold in frames that nothing was learned from.

    Attributes
    ----------
    ridges
        (1 + depth,) what does best in each level.
    missed
        Mean square of what is wrong in an image, in units of its variance: the mean over the frames.
    energies
        (1 + depth,) how it is distributed over the levels, in units of noise.
    """

    ridges: Doubles
    missed: float
    energies: Doubles


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a channel is foretold from others, by the frames that have it.

    Attributes
    ----------
    shares
        (T, C) of frames in the means about which channels are looked at: those that have both.
    relation
        (1 + depth, C, C) correlation of channels in each level, each of two by the frames that have both.
    along
        (1 + depth, C) correlation of each channel with the one that is foretold.
    scale
        (1 + depth, C) of what is foretold, in units of each channel.
    """

    shares: Doubles
    relation: Doubles
    along: Doubles
    scale: Doubles

    def weights(self, n: int, has: npt.NDArray[np.intp], ridge: float) -> Float:
        """Return the weights (len(has),) of channels that foretell the other in level n.

        Few frames tell little of what channels have in common: against that helps the ridge.
        """
        out = np.zeros(len(has), np.float32)
        met = self.shares[:, has].any(0)
        has = has[met]
        values, vectors = np.linalg.eigh(self.relation[n + 1][np.ix_(has, has)])
        values = np.maximum(values, 0)
        # Channels that were not seen in the same frames leave a matrix that need not be a covariance. In one,
        # no direction goes together with another channel more than it varies.
        bound = np.sqrt(values)
        along = np.clip(vectors.T @ self.along[n + 1, has], -bound, bound)
        out[met] = vectors @ (along / (values + ridge)) * self.scale[n + 1, has]
        return out


class _Together:
    """Frames that tell how channels go together.

    Parameters
    ----------
    time
        (T,) of the frames.
    pyramids
        (T, C, Y, X) their pyramids in units of noise; of channels that a frame lacks they become 0.
    shown
        (T, C) which channels frames have.
    grid
        Of the pyramids.
    """

    def __init__(
        self, time: npt.NDArray[np.datetime64], pyramids: Float, shown: npt.NDArray[np.bool_], grid: Grid
    ) -> None:
        self.time = time
        self.pyramids = pyramids
        self.shown = shown
        self._grid = grid
        self._rules: dict[int, _Rule] = {}
        self._mean: tuple[bytes, Float] | None = None
        pyramids[~shown] = 0
        #: (1 + depth, T, C, T, C) mean products of images about the mean of their channel, of which any mean,
        #: covariance or error of some of the frames can be made.
        self._products = np.stack([self._multiplied(n) for n in range(-1, grid.depth)])

    def _multiplied(self, n: int) -> Doubles:
        size = self.shown.size
        out, count = np.zeros((size, size)), 0
        for band in self._bands(n):
            h, w = band.shape[2:]
            for some in np.array_split(band, -(-h * w // _CHUNK), axis=2):
                x = some.reshape(*self.shown.shape, -1).astype(np.float64)
                x -= x.sum(0) / np.maximum(self.shown.sum(0), 1)[:, None]
                x[~self.shown] = 0
                rows = x.reshape(size, -1)
                out += rows @ rows.T
                count += rows.shape[1]
        return (out / count).reshape(self.shown.shape * 2)

    def _bands(self, n: int) -> Sequence[Float]:
        """Return the bands (T, C, h, w) of level n; of level −1 the coarsest pictures alone."""
        h, w = self._grid.level(max(n, 0))
        return [self.pyramids[..., :h, :w]] if n < 0 else places_of(self.pyramids, h, w)

    def rule_of(self, c: int) -> tuple[_Rule, Float]:
        """Return how a channel is foretold, by all frames, and the mean pyramid (C, Y, X) for that."""
        if c not in self._rules:
            self._rules[c] = self.rule(np.ones(len(self.time), bool), c)
        shares = self._rules[c].shares
        # Channels that a frame lacks are often missing together elsewhere.
        if self._mean is None or self._mean[0] != shares.tobytes():
            mean = np.einsum("tc,tcyx->cyx", shares.astype(np.float32), self.pyramids)
            self._mean = shares.tobytes(), mean
        return self._rules[c], self._mean[1]

    def rule(self, frames: npt.NDArray[np.bool_], c: int) -> _Rule:
        """Return how a channel is foretold, by some (T,) of the frames."""
        own = (self.shown & frames[:, None]).T
        both = (own[:, None] & own).astype(np.float64)
        count = np.maximum(both.sum(2), 1)
        shares = both / count[..., None]
        # Means of products, less products of means.
        products = self._products
        covariance = np.einsum("njajb,abj->nab", products, shares)
        covariance -= np.einsum("niajb,abi,abj->nab", products, shares, shares, optimize=True)
        variance = np.einsum("njaja,abj->nab", products, shares)
        variance -= np.einsum("niaja,abi,abj->nab", products, shares, shares, optimize=True)
        size = np.sqrt(np.maximum(variance, _SILENT))
        relation = np.clip(covariance / (size * size.transpose(0, 2, 1)), -1, 1)
        # A channel that happens to be quiet in the frames that it shares with the other would be overrated
        # where it is as loud as it is elsewhere.
        usual = np.diagonal(size, axis1=1, axis2=2)
        scale = size[:, c] / np.maximum(size[:, :, c], usual / 2)
        return _Rule(shares[c].T, relation, relation[:, c], scale)

    def held_out(
        self, held: npt.NDArray[np.intp], learn: npt.NDArray[np.bool_], has: npt.NDArray[np.intp], c: int
    ) -> tuple[Float, Doubles, Doubles]:
        """Foretell a channel in frames that have it, with the ridges that do best.

        Parameters
        ----------
        held
            (n,) the frames.
        learn
            (n, T) the frames that are learned from for each of them.
        has
            The channels that it is foretold from, where the frames have them.
        c
            The channel.

        Returns
        -------
        errors
            (n, Y, X) pyramids of what is wrong.
        ridges
            (1 + depth,) of each level.
        energies
            (1 + depth,) of what is wrong in each level.
        """
        rules = [self.rule(frames, c) for frames in learn]
        out = np.zeros((len(held), 1, *self.pyramids.shape[2:]), np.float32)
        ridges, energies = np.zeros((2, 1 + self._grid.depth))
        for n in range(-1, self._grid.depth):
            products = self._products[n + 1].reshape(self.shown.size, -1)
            tried = []
            for ridge in _RIDGES:
                factors = np.zeros((len(held), *self.shown.shape))
                for factor, frame, rule in zip(factors, held, rules, strict=True):
                    there = has[self.shown[frame, has]]
                    weights = rule.weights(n, there, ridge)
                    factor[frame, c] = 1
                    factor[frame, there] = -weights
                    factor[:, c] -= rule.shares[:, c]
                    factor[:, there] += weights * rule.shares[:, there]
                rows = factors.reshape(len(held), -1)
                tried.append((float(np.sum(rows @ products * rows)), ridge, rows.astype(np.float32)))
            _, ridges[n + 1], rows = min(tried, key=lambda one: one[0])
            errors = [
                (rows @ band.reshape(self.shown.size, -1)).reshape(-1, *band.shape[2:])
                for band in self._bands(n)
            ]
            for pyramid, bands in zip(out, zip(*errors, strict=True), strict=True):
                _put(pyramid, self._grid, n, bands)
            energies[n + 1] = sum(float(np.square(e, dtype=np.float64).sum()) for e in errors)
        return out[:, 0], ridges, energies


def _telling(valid: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.intp]:
    """Return the numbers of frames that tell most of how (T, C) channels go together.

    Those that have the most channels come first, evenly spread in time; then those that make a few of each
    channel, if there are so many.
    """
    held = valid.sum(1)
    chosen = np.zeros(0, np.intp)
    for count in np.unique(held)[::-1]:
        chosen = np.append(chosen, _spread(np.flatnonzero(held == count), most - len(chosen)))
    for c in range(valid.shape[1]):
        others = np.setdiff1d(np.flatnonzero(valid[:, c]), chosen)
        chosen = np.append(chosen, _spread(others, _FEW - int(valid[chosen, c].sum())))
    return np.sort(chosen)


def _spread(frames: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """Return at most so many of some frames, evenly spread."""
    return frames[np.linspace(0, len(frames) - 1, max(min(most, len(frames)), 0)).astype(np.intp)]


def _level(pyramid: Float, grid: Grid, n: int) -> Float:
    """Return (C, 3, h, w), the bands of level n of a pyramid; of level −1 (C, 1, h, w), its coarsest."""
    h, w = grid.level(max(n, 0))
    return pyramid[:, None, :h, :w] if n < 0 else np.stack(places_of(pyramid, h, w), 1)


def _put(pyramid: Float, grid: Grid, n: int, values: Iterable[Float]) -> None:
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
