"""What a walk through a pyramid asks: symbols for tables, of one that reads them or one that chooses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sunzip.codec.family import Float
from sunzip.codec.light import LEVELS
from sunzip.codec.prices import LARGEST, WORTH
from sunzip.codec.tiles import TILES
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import PRECISION, Tables
from sunzip.nn.planes import LOG_RATIO, LOG_SMALLEST, SCALES, TRUST_MOST, TRUST_UNIT, UNCERTAIN

Int = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

#: Tables of a scale: the mean lies 0 to 4 eighths of a step beside a symbol, which is 0 or another one; and
#: two where symbols count from the mean, which rounds to 0 or not.
VARIANTS, CENTRED = 12, (10, 11)

#: Furthest that the scales of a level are shifted from what the network foretells: the encoder corrects it
#: where a Sun is not like those that it has seen.
SHIFT_MOST = 8

#: Of fewer coefficients than this no shift is worth its bits, or the search for it.
_TOO_FEW = 20

#: One over the variance of coefficients of each scale, and of rounding; bits of a squared error of 1.
_SCALE = np.exp(LOG_SMALLEST + LOG_RATIO * np.arange(SCALES))
_CERTAIN = (1 / (2 * _SCALE**2 + UNCERTAIN)).astype(np.float32)
_NATS = 0.5 / math.log(2)

#: Symbols around the mean whose bits the encoder weighs.
_WEIGHED = 24


class Sets(NamedTuple):
    """A model's tables: of bands' symbols, coarsest picture, levels left out, weights, shifts of scales.

    And of mean disks and of trusts, of which models have none that were made before there were any.
    """

    bands: Tables
    base: Tables
    silent: Tables
    weights: Tables
    shifts: Tables
    disk: Tables | None
    trusts: Tables | None

    @property
    def tiles(self) -> Tables:
        """Those of tiles, the same with every model."""
        return TILES

    @property
    def levels(self) -> Tables:
        """That of levels, likewise."""
        return LEVELS


class Coefficients(NamedTuple):
    """Coefficients of bands of C channels, all other arrays of one shape.

    Attributes
    ----------
    channels
        (C,) the channels.
    tables
        Their tables.
    whole, flip
        The symbol next to the mean, from which tables count, and whether they count downwards.
    values
        The coefficients in steps, where they are known.
    """

    channels: Int
    tables: Int
    whole: Int
    flip: npt.NDArray[np.bool_]
    values: Float | None


class Coder(Protocol):
    """What the walk through a pyramid asks: symbols for tables, and what stands for them."""

    def symbols(self, these: Coefficients) -> Int:
        """Return the symbols of coefficients."""

    def side(self, kind: str, index: Int, values: Int | None) -> Int:
        """Return symbols that are not chosen here.

        Parameters
        ----------
        kind
            What of `Sets` they are coded by.
        index
            (N,) tables of it.
        values
            (N,) the symbols, where they are known.
        """

    def shifts(self, index: Int, before: Int, these: Coefficients) -> Int:
        """Return by how much (C,) shifts of scales differ from those of the level before.

        Parameters
        ----------
        index
            (C,) tables of the shifts.
        before
            (C,) shifts of the level before.
        these
            (C, N) coefficients that come first, without any shift.
        """

    def trusts(
        self, index: Int, before: Int, mean: Float, others: Float, scale: Int, values: Float | None
    ) -> Int:
        """Return by how much (C,) trusts differ from those of the level before.

        Parameters
        ----------
        index
            (C,) tables of the trusts.
        before
            (C,) trusts of the level before.
        mean, others, scale
            (C, N) what the network foretells, and what others tell as it is.
        values
            (C, N) the coefficients in steps, where they are known.
        """


class Reader:
    """Takes symbols from a payload."""

    def __init__(self, decoder: Decoder, tables: Sets) -> None:
        self._decoder, self._tables = decoder, tables

    def symbols(self, these: Coefficients) -> Int:
        """See `Coder.symbols`."""
        read = self._decoder.pop(these.tables, self._tables.bands)
        np.negative(read, out=read, where=these.flip)
        read += these.whole
        return read

    def side(self, kind: str, index: Int, values: Int | None) -> Int:
        """See `Coder.side`."""
        tables: Tables = getattr(self._tables, kind)
        return self._decoder.pop(index, tables)

    def shifts(self, index: Int, before: Int, these: Coefficients) -> Int:
        """See `Coder.shifts`."""
        return self.side("shifts", index, None)

    def trusts(
        self, index: Int, before: Int, mean: Float, others: Float, scale: Int, values: Float | None
    ) -> Int:
        """See `Coder.trusts`."""
        return self.side("trusts", index, None)


class Writer:
    """Chooses symbols and puts them into a payload.

    Parameters
    ----------
    encoder
        Where to; None for nowhere.
    tables
        The model's.
    bits
        (K, 2 · `_WEIGHED` + 1) bits of the symbols around each table's zero.
    shifted
        (2 · `SHIFT_MOST` + 1, K · (2 · `_WEIGHED` + 1)), the same with scales shifted.
    """

    def __init__(self, encoder: Encoder | None, tables: Sets, bits: Float, shifted: Float) -> None:
        self._encoder, self._tables = encoder, tables
        self._bits, self._shifted = bits, shifted
        #: Symbols as they are without shifts, which mostly are none.
        self._tried: tuple[Coefficients, tuple[Int, Int]] | None = None

    def put(self, kind: str, index: Int, entries: Int) -> None:
        """Put symbols, counted from the zero of their tables."""
        if self._encoder is not None:
            self._encoder.push(entries, index, getattr(self._tables, kind))

    def begin_with(self, kind: str, index: Int, entries: Int) -> None:
        """Put symbols before all others."""
        if self._encoder is not None:
            self._encoder.push(entries, index, getattr(self._tables, kind), first=True)

    def symbols(self, these: Coefficients) -> Int:
        """See `Coder.symbols`."""
        near, apart = self._tried[1] if self._tried and these is self._tried[0] else self._chosen(these)
        self.put("bands", these.tables.ravel(), apart.ravel())
        return near

    def _chosen(self, these: Coefficients) -> tuple[Int, Int]:
        """Choose of the two symbols around a value the better bargain, not the nearer.

        Returns
        -------
        The symbols, and their distance from the mean's.
        """
        channels, tables, whole, flip, values = these
        assert values is not None
        values = np.clip(values, -LARGEST, LARGEST)
        near = np.rint(values).astype(np.int32)
        big = np.flatnonzero(near)
        if big.size:
            high, middle, table = (x.ravel()[big] for x in (near, whole, tables))
            v = values.ravel()[big]
            low = high - np.sign(high)
            sign = np.where(flip.ravel()[big], -1, 1).astype(np.int32)
            worth = WORTH[channels][big // near.shape[1]]
            costs = []
            for candidate in (high, low):
                bits = self._bits.ravel()[_entries(table, (candidate - middle) * sign)]
                costs.append((v - candidate) ** 2 + worth * bits)
            near.reshape(-1)[big] = np.where(costs[1] < costs[0], low, high)
        apart = near - whole
        np.negative(apart, out=apart, where=flip)
        return near, apart

    def shifts(self, index: Int, before: Int, these: Coefficients) -> Int:
        """See `Coder.shifts`: those that save the most bits, of the other half as many as of this."""
        wanted = np.zeros(len(index), np.int32)
        if these.tables.shape[1] >= _TOO_FEW:
            self._tried = these, self._chosen(these)
            weighed = _entries(these.tables, self._tried[1][1])
            for n in range(len(index)):
                wanted[n] = self._shift(int(index[n]), int(before[n]), weighed[n])
        return self.side("shifts", index, wanted)

    def trusts(
        self, index: Int, before: Int, mean: Float, others: Float, scale: Int, values: Float | None
    ) -> Int:
        """See `Coder.trusts`: those with which means come nearest to values, if that is worth it."""
        assert values is not None
        tables = self._tables.trusts
        assert tables is not None
        wanted = np.zeros(len(index), np.int32)
        if mean.shape[1] >= _TOO_FEW:
            weight = _CERTAIN[scale]
            way = np.clip(others - mean, -LARGEST, LARGEST)
            pull = way * weight
            along = (pull * np.clip(values - mean, -LARGEST, LARGEST)).sum(1, dtype=np.float64)
            size = (pull * way).sum(1, dtype=np.float64)
            # Squared error that is left, but for what no trust changes.
            tried = np.arange(TRUST_MOST + 1)
            shares = tried * TRUST_UNIT
            left = shares**2 * size[:, None] - 2 * shares * along[:, None]
            for n, table in enumerate(index.tolist()):
                change = tried - before[n]
                wanted[n] = change[np.argmin(_NATS * left[n] + _side_bits(tables, table, change))]
        return self.side("trusts", index, wanted)

    def _shift(self, table: int, before: int, weighed: Int) -> int:
        """Return the best change of one channel's shift."""
        # How often each entry occurs is shorter. No product of matrices: libraries sum it in their threads'
        # order, and the bytes would depend on their number.
        counts = np.bincount(weighed)
        here = np.flatnonzero(counts)
        costs = 2 * np.einsum("ij,j->i", self._shifted[:, here], counts[here].astype(np.float32))
        change = np.arange(-SHIFT_MOST, SHIFT_MOST + 1) - before
        costs += _side_bits(self._tables.shifts, table, change)
        return int(change[np.argmin(costs)])

    def side(self, kind: str, index: Int, values: Int | None) -> Int:
        """See `Coder.side`."""
        assert values is not None
        self.put(kind, index, values)
        return values


class Draft(Writer):
    """Keeps symbols until it is known in how many levels of each channel they are worth their bits."""

    def __init__(self, tables: Sets, bits: Float, shifted: Float) -> None:
        super().__init__(None, tables, bits, shifted)
        self._kept: list[tuple[str, Int, Int]] = []
        self._costs: dict[int, list[float]] = {}
        self._lately: list[Float64] = []

    def put(self, kind: str, index: Int, entries: Int) -> None:
        """See `Writer.put`."""
        self._kept.append((kind, index, entries))

    def symbols(self, these: Coefficients) -> Int:
        """See `Coder.symbols`; what their bits are worth counts in `judge`."""
        near = super().symbols(these)
        _, index, entries = self._kept[-1]
        bits = self._bits.ravel()[_entries(index, entries)].reshape(these.tables.shape)
        self._lately.append(bits.sum(1, dtype=np.float64) * WORTH[these.channels])
        return near

    def judge(self, channels: Sequence[int], errors: Float64) -> None:
        """Be told the squared errors (C,), in steps, that symbols of one more level leave in it."""
        costs = errors + np.sum(self._lately, 0)
        self._lately.clear()
        for c, cost in zip(channels, costs.tolist(), strict=True):
            self._costs.setdefault(c, []).append(cost)

    def worth(self, channels: Sequence[int], left_out: Float64) -> Int | None:
        """Return of how many levels (C,), from the coarsest, symbols are worth it; None if of all.

        Parameters
        ----------
        channels
            The C.
        left_out
            (C, levels) squared errors of levels without symbols.
        """
        found = np.zeros(len(channels), np.int32)
        for n, c in enumerate(channels):
            costs = np.array(self._costs.get(c, []))
            gained = np.cumsum(left_out[n, : len(costs)] - costs)
            if len(gained) and gained.max() > 0:
                found[n] = 1 + int(np.argmax(gained))
        return None if found.sum() == sum(map(len, self._costs.values())) else found

    def cost(self, channels: Sequence[int], left_out: Float64, coded: Int | None) -> float:
        """Return what symbols cost and what error they leave, in so many levels; see `worth`."""
        total = 0.0
        for n, c in enumerate(channels):
            costs = self._costs.get(c, [])
            costs = costs if coded is None else costs[: coded[n]]
            total += sum(costs) + float(left_out[n, len(costs) :].sum())
        return total

    def hand_to(self, writer: Writer) -> None:
        """Put all into another."""
        for kept in self._kept:
            writer.put(*kept)


def _side_bits(tables: Tables, table: int, symbols: npt.NDArray[np.int64]) -> Float64:
    """Return about how many bits symbols take in one table; an escape code takes two bytes."""
    entries, outside = tables.entries(symbols, np.full(len(symbols), table))
    bits: Float64 = PRECISION - np.log2(tables.frequencies[tables.offsets[table] + entries]) + 16 * outside
    return bits


def _entries(tables: Int, apart: Int) -> Int:
    """Return where the bits of symbols so far from the mean's stand in `WaveletFamily.bits`."""
    wide = 2 * _WEIGHED + 1
    return tables * np.int32(wide) + (np.clip(apart, -_WEIGHED, _WEIGHED) + np.int32(_WEIGHED))


def weighed(tables: Tables) -> Float:
    """Return (K, 2 · _WEIGHED + 1): bits of the symbols around each table's zero, for the encoder."""
    symbols = np.arange(-_WEIGHED, _WEIGHED + 1)
    out = np.empty((len(tables), len(symbols)), np.float32)
    for k, begin in enumerate(tables.offsets):
        entries, outside = tables.entries(symbols, np.full(len(symbols), k))
        out[k] = PRECISION - np.log2(tables.frequencies[begin + entries])
        out[k, outside] += 8
    return out


def as_shifted(bits: Float) -> Float:
    """Return (2 · SHIFT_MOST + 1, K · (2 · _WEIGHED + 1)): bits (K, …) with the scales of tables shifted."""
    scales = np.arange(SCALES)
    parts = bits.reshape(len(bits) // SCALES, SCALES, -1)
    shifts = range(-SHIFT_MOST, SHIFT_MOST + 1)
    return np.stack([parts[:, np.clip(scales + shift, 0, SCALES - 1)].ravel() for shift in shifts])
