"""A walk through a pyramid from coarse to fine, to write or to read it: what is foretold, and the symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.codec.head import LINKED, NEWS, PLACED, TILED, Quality, Ways
from sunzip.codec.prices import LARGEST
from sunzip.codec.symbols import CENTRED, SHIFT_MOST, Coder, Coefficients, Draft, Int
from sunzip.codec.tiles import (
    EVERYWHERE,
    MANY,
    Bool,
    Tiles,
    Whole,
    above,
    are_tiled,
    below,
    expected,
    loudness,
    tiles_of,
    worthwhile,
)
from sunzip.errors import DamagedError
from sunzip.nn.exact import ExactContext
from sunzip.nn.planes import (
    COUNT_NOW,
    CROSS,
    FLAGS,
    FURTHEST,
    GATES,
    GROUPS,
    MEANS,
    SCALES,
    TRUST_MOST,
    TRUST_UNIT,
    WEIGHT_MOST,
    WEIGHT_UNIT,
    WIDE,
    WIDTHS,
    Places,
    channel_planes,
    decoded_planes,
    fitted,
    halves,
    halvings,
    level_of,
    network_of,
    picture_planes,
    place_planes,
    references,
)
from sunzip.pyramid import Grid, bands_of, finer, places_of, put_bands, woven

_Number = TypeVar("_Number", bound=np.generic)

#: Latents and channels of a frame.
Frame = tuple[Float, Sequence[int]]

#: A level in which no coefficient reaches this many steps is left out: none is worth its bits.
_AUDIBLE = 0.8

#: Squared error, in steps, by which new weights of other channels must be better than those they replace.
_WORTHWHILE = 1.5

#: What stands for `CENTRED` with networks from before, which did not learn what symbols that count from a
#: mean are like: there are no tables of them.
_CENTRED_AT_FIRST = (0, 5)


class Parts(Protocol):
    """What a walk needs of a model.

    Attributes
    ----------
    context
        The network.
    relation
        (12, 12) what a weight of 1 makes of coefficients of the second channel for the first.
    base_mean
        (12,) the usual value of the coarsest picture.
    halved
        (12,) by how many units of quality coarser the network is told that a picture of the whole Sun is
        coded, each time that it is half as large as one of 512×512.
    base_index, silent_index
        (2, 101, 12, depths) and (101,) tables of the coarsest picture and of levels left out.
    learned
        Whether the network learned that symbols of linked frames count from means.
    trusting
        Whether such frames tell how far others are to be trusted.
    """

    context: ExactContext
    relation: Float
    base_mean: Float
    halved: Int
    base_index: Int
    silent_index: Int
    learned: bool
    trusting: bool


class Plan(NamedTuple):
    """How a frame is coded.

    Attributes
    ----------
    channels
        Those that are present.
    ways
        How each of them is.
    grid
        Of the pyramid.
    quality
        How finely.
    bits
        `LINKED`, `PLACED`, `NEWS` and `TILED`, see `sunzip.codec.head`.
    time
        What other frames foretell of it.
    """

    channels: Sequence[int]
    ways: Ways
    grid: Grid
    quality: Quality
    bits: int
    time: Frame | None


class _Level(NamedTuple):
    """One level, the same for all groups of channels.

    Attributes
    ----------
    n
        Counted from the coarsest, 0.
    number
        As the network counts it.
    shape
        (h, w) of its bands.
    place
        What the network is told of places, or None.
    known
        Coefficients (3, h, w) of channels as their symbols tell them, in steps.
    coded
        Which of their tiles (tall, wide) are coded, if it is in tiles.
    """

    n: int
    number: int
    shape: tuple[int, int]
    place: Float | None
    known: dict[int, Float]
    coded: dict[int, Bool]


class _Carry(NamedTuple):
    """What the network of a level hands on to the next finer one for a channel.

    Attributes
    ----------
    features, row
        Of channels coded together, and which of them it is; or of windows.
    view
        Of the level.
    """

    features: Float
    row: int
    view: Whole | Tiles


class _Told(NamedTuple):
    """What is told of the bands of channels, in steps, (C, 3, h, w) or places of it, (C, 3, N).

    Attributes
    ----------
    cross
        By other channels; 0 where there are none.
    reference
        By other frames, or None.
    exact
        What they are, where they are known.
    likely
        What they would be if others were all that is known, or None where that is not asked.
    """

    cross: Float
    reference: Float | None
    exact: Float | None
    likely: Float | None

    def at(self, here: Places | None) -> _Told:
        """Return it at some places of the bands, or as it is."""
        if here is None:
            return self
        cross, *others = (None if x is None else x.reshape(*x.shape[:2], -1).take(here, -1) for x in self)
        assert cross is not None
        return _Told(cross, *others)


class Walk:
    """See the module.

    Parameters
    ----------
    parts
        Of the model.
    plan
        How the frame is coded.
    coder
        Gives or takes the symbols.
    pyramid
        (12, Y, X), or None where it is to be read.
    """

    def __init__(self, parts: Parts, plan: Plan, coder: Coder, pyramid: Float | None) -> None:
        self._parts, self._plan, self._coder, self._pyramid = parts, plan, coder, pyramid
        count = len(NAMES)
        self._names = list(plan.channels)
        self._step = plan.quality.step[:, None, None]
        self._inverse = plan.quality.inverse[:, None, None]
        self._linked = bool(plan.bits & LINKED)
        # How frames that build on others were coded at first: as if they did not, but for what is foretold.
        self._centred = (CENTRED if parts.learned else _CENTRED_AT_FIRST) if self._linked else None
        self._trusting = parts.trusting and self._linked
        self._timed = np.zeros(count, np.bool_)
        if plan.time is not None:
            self._timed[[c for c in self._names if c in plan.time[1]]] = True
        self._seen = references(self._names, plan.ways.lazy)
        times = halvings(*plan.grid.level(plan.grid.depth - 1)) if plan.bits & PLACED else 0
        self._told = np.maximum(plan.quality.of - times * parts.halved, 0)
        # What changes from level to level.
        self._out = np.zeros((count, plan.grid.height, plan.grid.width), np.float32)
        self._lows: dict[int, Float] = {}
        self._weights = np.zeros((count, 2), np.int32)
        self._shifts = np.zeros(count, np.int32)
        self._trusts = np.zeros((2, count), np.int32)
        self._carries: dict[int, _Carry] = {}
        self._loud: dict[int, Int] = {}
        self._coarser_tiles: dict[int, Bool] = {}
        self._ahead: dict[int, dict[int, Bool]] = {}
        self._tops = np.zeros(count, np.int32)

    def through(self, levels: int, coded: Int | None = None) -> Float:
        """Go through the pyramid.

        Parameters
        ----------
        levels
            How many levels to go through, from the coarsest; less than 0 is none.
        coded
            (C,) of how many levels, from the coarsest, symbols are written; None if of all in which any is
            worth its bits.

        Returns
        -------
        The pyramid (12, Y, X) as it is decoded.
        """
        grid, lazy, time = self._plan.grid, self._plan.ways.lazy, self._plan.time
        self._tops = tops = self._told_tops(coded)
        low = self._base()
        self._out[self._names, : low.shape[1], : low.shape[2]] = low
        self._lows = dict(zip(self._names, low, strict=True))
        for n in range(levels):
            going = [c for c in self._names if tops[c] > n]
            if not going:
                break
            shape = grid.level(n)
            place = place_planes(*shape) if self._plan.bits & PLACED else None
            level = _Level(n, level_of(*shape), shape, place, {}, {})
            for group in GROUPS:
                active = [c for c in group if c in going]
                if not active:
                    continue
                if self._plan.bits & TILED and are_tiled(shape):
                    bands = np.concatenate([self._group(level, [c]) for c in active])
                else:
                    bands = self._group(level, active)
                put_bands(self._out, bands, active)
                further = [a for a, c in enumerate(active) if tops[c] > n + 1]
                for kind, step_up in ((False, finer), (True, woven)):
                    rows = [a for a in further if lazy[active[a]] == kind]
                    if rows:
                        picture = np.stack([self._lows[active[a]] for a in rows])
                        made = step_up(picture, tuple(np.moveaxis(bands[rows], 1, 0)))
                        self._lows |= zip([active[a] for a in rows], made, strict=True)
        if time is not None and self._linked:
            for c in time[1]:
                for n in range(tops[c], levels):
                    put_bands(self._out, bands_of(time[0][[c]], *grid.level(n)), [c])
        return self._out

    def _told_tops(self, coded: Int | None) -> Int:
        """Give or take of how many levels (12,), from the coarsest, there are symbols."""
        plan, names = self._plan, self._names
        depth = plan.grid.depth
        values = None
        if self._pyramid is not None:
            if coded is None:
                heard = []
                for c in names:
                    apart = self._pyramid[c]
                    if self._linked and plan.time is not None and self._timed[c]:
                        apart = apart - plan.time[0][c]
                    heard.append(_audible(apart * self._inverse[c], plan.grid))
                coded = np.array(heard, np.int32)
            values = depth - coded
        index = self._parts.silent_index[plan.quality.frame] * len(NAMES) + np.array(names, np.int32)
        tops = np.zeros(len(NAMES), np.int32)
        tops[names] = depth - self._coder.side("silent", index, values)
        if tops.min() < 0 or tops.max() > depth:
            raise DamagedError("entropy-coded payload: a channel does without more levels than there are")
        return tops

    def _base(self) -> Float:
        """Code the coarsest picture (C, h, w): its distance from what is foretold or from the usual."""
        parts, names, grid = self._parts, self._names, self._plan.grid
        lazy, discs = (way[names] for way in self._plan.ways)
        timed = self._timed[names]
        h, w = grid.height >> grid.depth, grid.width >> grid.depth
        inverse = self._inverse[names]
        # The lazy wavelet lets no pixel grow.
        doubled = np.where(lazy, 0, grid.depth)
        means = parts.base_mean[names] * np.ldexp(np.float32(1), doubled)
        means[discs] = 0
        usual = np.broadcast_to(means[:, None, None], (len(names), h, w))
        if self._plan.time is not None:
            usual = np.where(timed[:, None, None], self._plan.time[0][names, :h, :w], usual)
        whole = np.rint(np.clip(usual * inverse, -(2.0**24), 2.0**24)).astype(np.int32)
        near = (timed | discs).astype(np.int32)
        index = parts.base_index[near, self._plan.quality.of[names], names, doubled]
        index = np.broadcast_to(index[:, None, None], whole.shape).ravel()
        values = None
        if self._pyramid is not None:
            scaled = np.clip(self._pyramid[names, :h, :w] * inverse, -(2.0**24), 2.0**24)
            values = (np.rint(scaled).astype(np.int32) - whole).ravel()
        symbols = self._coder.side("base", index, values)
        low: Float = (whole + symbols.reshape(whole.shape)).astype(np.float32) * self._step[names]
        return low

    def _group(self, level: _Level, active: list[int]) -> Float:
        """Code the bands of channels of a group, or of one that may be in tiles; return them (C, 3, h, w)."""
        exact = reference = None
        inverse = self._inverse[active][:, None]
        if self._pyramid is not None:
            exact = _bands(self._pyramid, active, level.shape) * inverse
        if self._plan.time is not None and self._timed[active].any():
            reference = _bands(self._plan.time[0], active, level.shape) * inverse
        cross = np.zeros((len(active), 3, *level.shape), np.float32)
        for a, c in enumerate(active):
            if any(r in level.known for r in self._seen[c]):
                cross[a] = self._crossed(c, level.shape, None if exact is None else exact[a])
        likely = self._likely(level, active, cross, reference) if self._trusting else None
        told = _Told(cross, reference, exact, likely)
        if not self._in_tiles(level.shape, active[0]):
            bands = self._coded(level, active, Whole(level.shape), told, None)
        else:
            (channel,) = active
            silent = next(x for x in (likely, reference, cross) if x is not None)
            coded = self._tiles(level, channel, None if exact is None else (exact - silent)[0])
            if coded.all():
                bands = self._coded(level, active, Whole(level.shape), told, None)
            elif coded.any():
                bands = self._coded(level, active, Tiles(coded, level.shape), told, silent)
            else:
                bands = silent
                level.known[channel] = silent[0]
                # Of finer levels nothing is coded either, but by those who wish harm.
                self._carries.pop(channel, None)
                self._loud.pop(channel, None)
        if isinstance(self._coder, Draft) and exact is not None:
            most = np.clip(exact, -LARGEST, LARGEST)
            self._coder.judge(active, np.square(bands - most, dtype=np.float64).sum((1, 2, 3)))
        return np.asarray(bands * self._step[active][:, None])

    def _in_tiles(self, shape: tuple[int, int], channel: int) -> bool:
        """Tell whether bands of a shape are in tiles: if others tell what a channel is like elsewhere."""
        others = bool(self._seen[channel]) or bool(self._timed[channel])
        return others and bool(self._plan.bits & TILED) and are_tiled(shape)

    def _tiles(self, level: _Level, channel: int, apart: Float | None) -> Bool:
        """Give or take in which tiles (tall, wide) the bands of a channel are coded.

        `apart` (3, h, w) tells by how much, in steps, they differ from what they are in others, if that is
        known. Tiles are coded in tiles of the coarser level alone: without what the network tells from there
        they would take many more bits.
        """
        coded, everywhere = np.ones(tiles_of(level.shape), np.bool_), None
        if apart is not None:
            coded = worthwhile(apart, channel, self._linked)
            needed = self._needed(level.n, channel)
            if needed is not None:
                coded |= needed
            everywhere = np.array([coded.mean() > MANY], np.int32)
        told = self._coder.side("tiles", EVERYWHERE, everywhere)
        if told.all():
            coded[:] = True
        else:
            seen = [level.coded[r] for r in self._seen[channel] if r in level.coded]
            index = expected(self._loud.get(channel), seen, self._linked, level.shape)
            inside = np.ones(index.shape, np.bool_)
            if channel in self._coarser_tiles:
                inside = below(self._coarser_tiles[channel], level.shape)
            wanted = None if apart is None else coded[inside].astype(np.int32)
            found = self._coder.side("tiles", index[inside], wanted)
            told = np.append(told, found)
            coded = np.zeros(index.shape, np.bool_)
            coded[inside] = found
        if told.min() < 0 or told.max() > 1:
            raise DamagedError("entropy-coded payload: a tile is neither coded nor left out")
        level.coded[channel] = self._coarser_tiles[channel] = coded
        return coded

    def _needed(self, n: int, channel: int) -> Bool | None:
        """Return in which tiles of level `n` any of finer levels will be coded, about; None if of none."""
        found = self._ahead.get(channel)
        if found is None:
            found = self._ahead[channel] = {}
            for finer_one in range(self._tops[channel] - 1, n, -1):
                wanted = worthwhile(self._surprise(finer_one, channel), channel, self._linked)
                if finer_one in found:
                    wanted |= found[finer_one]
                found[finer_one - 1] = above(wanted)
        return found.get(n)

    def _surprise(self, n: int, channel: int) -> Float:
        """Return by how much bands (3, h, w) of level `n`, in steps, differ from what others tell, about."""
        assert self._pyramid is not None
        shape = self._plan.grid.level(n)
        apart: Float = bands_of(self._pyramid[channel], *shape) * self._inverse[channel]
        if self._plan.time is not None and self._timed[channel]:
            apart -= bands_of(self._plan.time[0][channel], *shape) * self._inverse[channel]
        else:
            for weight, r in zip(self._weights[channel], self._seen[channel], strict=False):
                if self._tops[r] > n:
                    seen = self._seen_as(channel, r, bands_of(self._pyramid[r], *shape))
                    apart -= seen * np.float32(weight * WEIGHT_UNIT)
        return apart

    def _seen_as(self, channel: int, other: int, bands: Float) -> Float:
        """Return another channel's bands in steps of a channel, as a weight of 1 has them."""
        return np.asarray(bands * (self._parts.relation[channel, other] * self._inverse[channel, 0, 0]))

    def _coded(
        self, level: _Level, active: list[int], view: Whole | Tiles, told: _Told, silent: Float | None
    ) -> Float:
        """Code the coefficients of bands, one half after the other; return them (C, 3, h, w), in steps."""
        context, shape = self._parts.context, (len(active), 3, *level.shape)
        which = level.number, active, self._told[active]
        flags, planes, before = self._given(level, active, view, told)
        carry = self._carried(level, active, view)
        features, outputs = context.enter(*which, flags, planes, before, carry, view.asked[0])
        self._carries |= {c: _Carry(features, a, view) for a, c in enumerate(active)}
        rounded, symbols = np.zeros(shape, np.float32), None
        if any(self._in_tiles((2 * shape[2], 2 * shape[3]), c) for c in active):
            symbols = np.zeros(shape, np.int32)
        # The places of a checkerboard's one colour come first, and tell of those of the other.
        for k, colour in enumerate(halves(*level.shape)):
            if k:
                known = decoded_planes(view.windows(rounded))
                outputs = context.beside(*which, features, known, view.asked[1])
            if silent is not None:
                _flat(rounded)[..., colour] = _flat(silent)[..., colour]
            here = view.places[k]
            found, told_by = self._half(k, active, view.listed(outputs, k), told.at(here))
            _flat(rounded)[..., here] = found
            if symbols is not None:
                _flat(symbols)[..., here] = told_by
        if symbols is not None:
            self._loud |= zip(active, loudness(symbols), strict=True)
        level.known.update(zip(active, rounded, strict=True))
        if self._linked and not self._parts.learned:
            return rounded
        known = decoded_planes(view.windows(rounded))
        settled = view.listed(context.settle(*which, features, known, view.asked[2]), 2)
        here = view.places[2]
        if here is None:
            return rounded + _apart(settled.reshape(len(active), -1, *level.shape), rounded, told)
        bands = rounded.copy()
        near = _flat(rounded).take(here, -1)
        _flat(bands)[..., here] = near + _apart(settled, near, told.at(here))
        return bands

    def _given(
        self, level: _Level, active: list[int], view: Whole | Tiles, told: _Told
    ) -> tuple[Float, Float, Float | None]:
        """Return what the network is told of channels: flags, planes, and those of other frames."""
        ways, inverse = self._plan.ways, self._inverse[active]
        picture = view.windows(np.stack([self._lows[c] for c in active])[:, None], 1)[:, 0]
        shrink = np.where(
            ways.lazy[active], np.float32(1), np.float32(2.0 ** (level.n - self._plan.grid.depth))
        )
        planes = np.zeros((len(picture), COUNT_NOW, *(side - 2 for side in picture.shape[1:])), np.float32)
        planes[:, :3] = picture_planes(picture, inverse, shrink[:, None, None])
        if level.place is not None:
            planes[:, 15:] = view.windows(level.place[None])
        flags = np.zeros((len(active), FLAGS), np.float32)
        flags[:, 2] = self._timed[active]
        flags[:, 3] = ways.lazy[active]
        for a, c in enumerate(active):
            seen = self._seen[c]
            flags[a, : len(seen)] = 1
            loud = [level.known.get(r) for r in seen]
            if any(known is not None for known in loud):
                given = [None if known is None else view.windows(known[None]) for known in loud]
                planes[view.rows(a), 3:15] = channel_planes(
                    view.windows(told.cross[a, None]), given + [None] * (2 - len(seen))
                )
        before = None if told.reference is None else decoded_planes(view.windows(told.reference))
        return flags, planes, before

    def _likely(self, level: _Level, active: list[int], cross: Float, reference: Float | None) -> Float:
        """Return what other frames, or else other channels, tell (C, 3, h, w) of channels, in steps.

        What is new in other channels tells what is new in these.
        """
        time = self._plan.time
        if reference is None or time is None:
            return cross
        likely = np.where(self._timed[active][:, None, None, None], reference, cross)
        if not self._plan.bits & NEWS:
            return likely
        for a, c in enumerate(active):
            for weight, r in zip(self._weights[c], self._seen[c], strict=False):
                if self._timed[c] and self._timed[r] and r in level.known:
                    seen, foretold = (bands_of(p[r], *level.shape) for p in (self._out, time[0]))
                    likely[a] += self._seen_as(c, r, seen - foretold) * np.float32(weight * WEIGHT_UNIT)
        return likely

    def _carried(self, level: _Level, active: list[int], view: Whole | Tiles) -> Float | None:
        """Return what the network of the coarser level hands on, of channels of a group.

        To levels finer than those of an image of 512×512 nothing is: the last network serves them all, and
        takes what the one before it hands on, not what itself does.
        """
        carries = [self._carries[c] for c in active if c in self._carries]
        taken = WIDTHS[max(network_of(level.number) - 1, 0)]
        if not carries or carries[0].features.shape[1] != taken:
            return None
        features, rows = carries[0].features, [carry.row for carry in carries]
        given = carries[0].view.whole(features)
        return view.coarser(given if rows == list(range(len(given))) else given[rows])

    def _half(self, k: int, active: list[int], outputs: Float, told: _Told) -> tuple[Float, Int]:
        """Code the coefficients of half of a level's places; return them (C, 3, N), and their symbols.

        Parameters
        ----------
        k
            0 for the half that comes first, 1 for the other.
        outputs
            (C, 12, N) the network's.
        told
            At those places.
        """
        coder, count = self._coder, len(active)
        own = np.array(active, np.int32)
        wanted = None if told.exact is None else told.exact.reshape(count, -1)
        mean = _gated(outputs, told.cross, told.reference).reshape(count, -1)
        scale = np.clip(outputs[:, WIDE], 0, SCALES - 1).astype(np.int32).reshape(count, -1)
        if told.likely is not None:
            others, trusts = told.likely.reshape(count, -1), self._trusts[k]
            index = (2 * own + k) * 2 + self._timed[active]
            trusts[own] += coder.trusts(index, trusts[own], mean, others, scale, wanted)
            if trusts[own].min() < 0 or trusts[own].max() > TRUST_MOST:
                raise DamagedError("entropy-coded payload: others are trusted more than can be")
            mean += (others - mean) * (trusts[own] * TRUST_UNIT).astype(np.float32)[:, None]
        these, origin = _coefficients(own, mean, scale, wanted, self._centred)
        if not k:
            self._shifts[own] += coder.shifts(own, self._shifts[own], these)
            if not -SHIFT_MOST <= self._shifts.min() <= self._shifts.max() <= SHIFT_MOST:
                raise DamagedError("entropy-coded payload: scales are shifted more than any can")
        symbols = coder.symbols(_shifted(these, scale, self._shifts[own]))
        return (symbols + origin).reshape(count, 3, -1), symbols.reshape(count, 3, -1)

    def _crossed(self, channel: int, shape: tuple[int, int], exact: Float | None) -> Float:
        """Foretell the bands (3, h, w) of a channel, in its steps, by those of others that are decoded.

        Parameters
        ----------
        channel
            Whose up to two others are decoded.
        shape
            (h, w) of the bands.
        exact
            (3, h, w) the channel's bands in its steps, where they are known.
        """
        weights = self._weights[channel]
        bands = [
            self._seen_as(channel, other, bands_of(self._out[other], *shape)) for other in self._seen[channel]
        ]
        change = None
        if exact is not None:
            change = (fitted(exact, bands, weights, _WORTHWHILE) - weights)[: len(bands)]
        index = 2 * np.int32(channel) + np.arange(len(bands), dtype=np.int32)
        weights[: len(bands)] += self._coder.side("weights", index, change)
        if not -WEIGHT_MOST <= weights.min() <= weights.max() <= WEIGHT_MOST:
            raise DamagedError("entropy-coded payload: a channel weighs more than any can")
        out = np.zeros((3, *shape), np.float32)
        for band, weight in zip(bands, weights, strict=False):
            band *= np.float32(weight * WEIGHT_UNIT)
            out += band
        return out


def _flat(bands: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return bands (C, 3, h, w) as (C, 3, h · w), in the same memory."""
    return bands.reshape(*bands.shape[:2], -1)


def _audible(apart: Float, grid: Grid) -> int:
    """Return how many levels, from the coarsest, have anything in them that may be worth its bits."""
    for n in range(grid.depth - 1, -1, -1):
        bands = places_of(apart, *grid.level(n))
        if any(max(band.max(), -band.min()) >= _AUDIBLE for band in bands):
            return n + 1
    return 0


def _bands(pyramid: Float, rows: list[int], shape: tuple[int, int]) -> Float:
    """Return the bands (C, 3, h, w) of some channels of a pyramid (12, Y, X)."""
    return np.stack([band[rows] for band in places_of(pyramid, *shape)], 1)


def _gated(outputs: Float, cross: Float, reference: Float | None) -> Float:
    """Return (C, 3, …) of what the network puts out: its means, and as much of others as its gates let by."""
    total: Float = outputs[:, MEANS] * np.float32(1 / 64)
    for gates, values in ((CROSS, cross), (GATES, reference)):
        if values is not None:
            gate = np.clip(outputs[:, gates], 0, 16)
            gate *= np.float32(1 / 16)
            gate *= values
            total += gate
    return total


def _coefficients(
    channels: Int, mean: Float, scale: Int, values: Float | None, centred: tuple[int, int] | None
) -> tuple[Coefficients, Float | np.float32]:
    """Return what is foretold of (C, N) coefficients of channels (C,).

    Beside it stand the values, in steps, at which symbols are 0: 0; or the means, if they are `centred` on
    these, whose tables are then of two variants: for means that round to 0 and for others.
    """
    rounded = np.clip(mean, -(2.0**20), 2.0**20)
    rounded *= np.float32(8)
    rounded += np.float32(0.5)
    eighths = np.floor(rounded, out=rounded).astype(np.int32)
    whole = (eighths + 4) >> 3
    if centred is not None:
        index = scale + SCALES * np.where(whole == 0, *centred).astype(np.int32)
        origin = eighths * np.float32(1 / 8)
        none = np.zeros(origin.shape, np.int32)
        apart = None if values is None else values - origin
        return Coefficients(channels, index, none, none != 0, apart), origin
    part = eighths - 8 * whole
    index = scale + SCALES * (np.abs(part) + np.int32(5) * (whole != 0))
    return Coefficients(channels, index, whole, part < 0, values), np.float32(0)


def _shifted(these: Coefficients, scale: Int, shifts: Int) -> Coefficients:
    """Return (C, N) coefficients with the scales of each channel shifted from (C, N)."""
    if not shifts.any():
        return these
    tables = these.tables - scale
    tables += np.clip(scale + shifts[:, None], 0, SCALES - 1)
    return these._replace(tables=tables)


def _apart(outputs: Float, symbols: Float, told: _Told) -> Float:
    """Turn what the network puts out into how far from its symbol each coefficient is put, in steps."""
    reference = None if told.reference is None else told.reference - symbols
    apart = _gated(outputs, told.cross - symbols, reference)
    return np.clip(apart, np.float32(-FURTHEST), np.float32(FURTHEST), out=apart)
