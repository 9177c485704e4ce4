"""Tables: integer probabilities, so that what an entropy decoder computes never depends on float rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sunzip.errors import DamagedError

#: log2 of the sum of every table's frequencies. It is constriction's own precision, so its models hold our
#: integers unchanged. On discretised Gaussians of scale 0.1 to 40 a precision of 16 bits cost and gained
#: nothing measurable against 24; 24 keeps long tables free of loss: 4,096 entries of at least 1 would claim
#: 6 % of 2**16.
PRECISION = 24

#: Most tables in one set, so that a table's number fits 16 bits.
MAX_TABLES = 1 << 16

#: Most entries of one table, its escape included.
MAX_LENGTH = 1 << 16

#: Least probability of the escape from a Gaussian, as it has outside 4.3 standard deviations each side.
#: Networks err in rare symbols far outside more often than a Gaussian would have it: such a symbol costs some
#: 24 bits, while all others together pay 1 bit per 45,000 symbols for the reserve.
_RESERVE = 2.0**-16

_TOTAL = 1 << PRECISION
_INT32 = np.iinfo(np.int32)


def escape_code(
    symbols: npt.NDArray[np.int64], lowest: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number the symbols outside a table by their distance from it: 0 just above, 1 just below, 2 next above.

    Parameters
    ----------
    symbols
        (N,) int64: symbols below `lowest` or above ``lowest + length - 2``.
    lowest, length
        (N,) int64: the first symbol and the number of entries of each symbol's table.

    Returns
    -------
    (N,) int64, from 0 to 2**33.
    """
    above = symbols - (lowest + length - 1)
    return np.where(above >= 0, 2 * above, 2 * (lowest - 1 - symbols) + 1)


def escape_decode(
    codes: npt.NDArray[np.int64], lowest: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Invert `escape_code`; the result may lie outside int32 if the codes were not written by it."""
    distance = codes >> 1
    return np.where(codes & 1, lowest - 1 - distance, lowest + length - 1 + distance)


def _round(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Turn (L,) weights into integers ≥ 1 that sum to 2**PRECISION, the same on every machine."""
    # fsum and elementwise IEEE operations are exactly specified; numpy's own sum depends on the SIMD width.
    free = _TOTAL - weights.size
    frequencies = np.floor(weights / math.fsum(weights) * free).astype(np.int64) + 1
    frequencies[np.argmax(weights)] += _TOTAL - int(frequencies.sum())
    return frequencies.astype(np.uint32)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Tables:
    """K probability tables over runs of consecutive integers, each with an escape for every other integer.

    Entry i < L_k − 1 of table k stands for the symbol ``lowest[k] + i``; its last entry is the escape.
    The probability of an entry is its frequency / 2**PRECISION. Equality is identity.

    Attributes
    ----------
    frequencies
        (Σ L_k,) uint32: the tables one after another; every entry ≥ 1, every table sums to 2**PRECISION.
    lowest
        (K,) int32: the symbol of each table's first entry.
    length
        (K,) int32: L_k, the number of entries of each table, its escape included; from 2 to `MAX_LENGTH`.

    Raises
    ------
    DamagedError
        If the arrays do not agree with that description.

    Examples
    --------
    >>> tables = Tables.from_probabilities([[0.25, 0.5, 0.25]], lowest=[-1], escape=[0.0])
    >>> tables.frequencies.tolist()
    [4194304, 8388607, 4194304, 1]
    >>> round(tables.cost_bits(np.array([0, 0, 1]), np.array([0, 0, 0])), 3)
    4.0
    """

    frequencies: npt.NDArray[np.uint32]
    lowest: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in (("frequencies", np.uint32), ("lowest", np.int32), ("length", np.int32)):
            given = getattr(self, name)
            if not isinstance(given, np.ndarray) or given.dtype != dtype or given.ndim != 1:
                raise DamagedError(f"entropy tables: {name} is not a one-dimensional {np.dtype(dtype)} array")
            own = given.copy()
            own.setflags(write=False)
            object.__setattr__(self, name, own)
        k = self.length.size
        if self.lowest.size != k or not 1 <= k <= MAX_TABLES:
            raise DamagedError(
                f"entropy tables: {k} lengths and {self.lowest.size} lowest symbols do not agree"
            )
        if self.length.min() < 2 or self.length.max() > MAX_LENGTH:
            raise DamagedError(f"entropy tables: a table has fewer than 2 or more than {MAX_LENGTH} entries")
        length = self.length.astype(np.int64)
        if int(length.sum()) != self.frequencies.size:
            raise DamagedError(
                f"entropy tables: {self.frequencies.size} frequencies; the lengths claim {int(length.sum())}"
            )
        if int((self.lowest + length - 2).max()) > _INT32.max:
            raise DamagedError("entropy tables: a table reaches beyond the largest 32-bit symbol")
        sums = np.add.reduceat(self.frequencies.astype(np.uint64), self.offsets)
        if self.frequencies.min() == 0 or (sums != _TOTAL).any():
            raise DamagedError(f"entropy tables: a frequency is 0, or a table does not sum to 2**{PRECISION}")

    def __len__(self) -> int:
        return self.length.size

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(K,) int64: where in `frequencies` each table begins."""
        length = self.length.astype(np.int64)
        return np.cumsum(length) - length

    @classmethod
    def from_probabilities(
        cls,
        probabilities: Sequence[npt.ArrayLike],
        lowest: Sequence[int] | npt.NDArray[np.integer],
        escape: Sequence[float] | npt.NDArray[np.floating],
    ) -> Tables:
        """Round probabilities to integer frequencies, deterministically and with every entry ≥ 1.

        Parameters
        ----------
        probabilities
            K arrays of shape (L_k − 1,): weights ≥ 0 of the symbols from ``lowest[k]`` upwards.
        lowest
            (K,) the first symbol of each table.
        escape
            (K,) weight of all other symbols together, in the same unit; the weights need not sum to 1.

        Raises
        ------
        ValueError
            If a weight is negative or not finite, or a table's weights are all zero.
        """
        rows = []
        for row, rest in zip(probabilities, escape, strict=True):
            weights = np.append(np.asarray(row, np.float64), rest)
            if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
                raise ValueError("probabilities must be finite, not negative and not all zero")
            rows.append(_round(weights))
        return cls(
            np.concatenate(rows), np.asarray(lowest, np.int32), np.array([r.size for r in rows], np.int32)
        )

    @classmethod
    def from_counts(
        cls,
        counts: Sequence[npt.ArrayLike],
        symbols: Sequence[npt.ArrayLike],
        *,
        longest: int = 4096,
    ) -> Tables:
        """Fit tables to histograms of symbols, with room for symbols that the sample happened not to show.

        A two-sided geometric distribution θ^|x−m| with the histogram's median m and mean absolute deviation
        is mixed in with the weight of as many observations as there are distinct symbols in the histogram
        (Witten and Bell 1991, method C): it fills gaps, extends the tails and says what the escape needs.

        Parameters
        ----------
        counts
            K arrays of shape (n_k,): how often each of the symbols was seen; may be all zero or empty where
            a table was never used.
        symbols
            K arrays of shape (n_k,), which rise: those that were seen are enough.
        longest
            Most entries of one table; what lies further from the median goes to the escape.
        """
        rows, first, escape = [], [], []
        for row, names in zip(counts, symbols, strict=True):
            seen, shown = np.asarray(row, np.float64), np.asarray(names, np.int64)
            total = float(seen.sum())
            median = int(shown[np.searchsorted(np.cumsum(seen), total / 2)]) if total else 0
            half = (longest - 2) // 2
            distance = np.abs(shown - median)
            near = distance <= half
            # The maximum-likelihood θ of a two-sided geometric distribution with mean absolute deviation a
            # solves a = 2θ/(1 − θ²); an extra observation at distance 1 keeps θ above 0.
            a = (float((seen * distance)[near].sum()) + 1) / (float(seen[near].sum()) + 1)
            theta = a / (1 + math.sqrt(1 + a * a))
            # Beyond `reach` a side of the prior weighs less than one unit of frequency.
            distinct = max(1, int(np.count_nonzero(seen)))
            reach = max(0, math.ceil(math.log(2.0**-PRECISION * (total / distinct + 1)) / math.log(theta)))
            used = shown[near & (seen > 0)]
            begin = max(min([median - reach, *used[:1].tolist()]), median - half, _INT32.min)
            end = min(max([median + reach, *used[-1:].tolist()]), median + half, _INT32.max)
            support = np.arange(begin, end + 1, dtype=np.int64)
            prior = (
                distinct * (1 - theta) / (1 + theta) * theta ** np.abs(support - median).astype(np.float64)
            )
            weights = prior.copy()
            inside = (shown >= begin) & (shown <= end)
            weights[shown[inside] - begin] += seen[inside]
            rows.append(weights)
            first.append(begin)
            escape.append(max(0.0, distinct - float(prior.sum())) + float(seen[~inside].sum()))
        return cls.from_probabilities(rows, first, escape)

    @classmethod
    def gaussian(
        cls,
        scales: Sequence[float] | npt.NDArray[np.floating],
        *,
        reach: int = 0,
    ) -> Tables:
        """Tables of zero-mean Gaussians integrated over the unit intervals around the integers.

        Each is as short as it can be with no more than the escape's least probability outside.

        Parameters
        ----------
        scales
            (K,) standard deviations in units of the quantisation step, > 0.
        reach
            Least number of symbols on each side of zero, however narrow the Gaussian.

        Raises
        ------
        ValueError
            If a scale is not above 0 or not below `MAX_LENGTH`.
        """
        from scipy.special import ndtr, ndtri

        rows, first, rest = [], [], []
        for scale in np.asarray(scales, np.float64).tolist():
            if not 0 < scale < MAX_LENGTH:
                raise ValueError(f"no table for a Gaussian of scale {scale}")
            half = max(math.ceil(-float(ndtri(_RESERVE / 2)) * scale - 0.5), reach)
            distance = np.abs(np.arange(-half, half + 1, dtype=np.float64))
            # Differences in the lower tail keep their relative accuracy; in the upper one they cancel.
            rows.append(ndtr((0.5 - distance) / scale) - ndtr((-0.5 - distance) / scale))
            first.append(-half)
            rest.append(max(_RESERVE, 2 * float(ndtr(-(half + 0.5) / scale))))
        return cls.from_probabilities(rows, first, rest)

    def to_arrays(self) -> dict[str, npt.NDArray[np.uint32] | npt.NDArray[np.int32]]:
        """Return the three arrays by name, for storage beside a model's weights."""
        return {"frequencies": self.frequencies, "lowest": self.lowest, "length": self.length}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Tables:
        """Build tables from stored arrays, which may come from strangers.

        Raises
        ------
        DamagedError
            If an array is missing or they do not describe tables.
        """
        missing = [name for name in ("frequencies", "lowest", "length") if name not in arrays]
        if missing:
            raise DamagedError(f"entropy tables: no array {missing[0]!r}")
        return cls(arrays["frequencies"], arrays["lowest"], arrays["length"])  # type: ignore[arg-type]

    def entries(
        self, symbols: npt.NDArray[np.integer], index: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Find each symbol's entry in its table.

        Parameters
        ----------
        symbols
            (N,) integers within int32.
        index
            (N,) integers: the table of each.

        Returns
        -------
        (N,) int64 entries, the last one of the table for a symbol outside, and (N,) bool: which are outside.
        """
        last = self.length.astype(np.int64)[index] - 1
        entries = symbols.astype(np.int64) - self.lowest[index]
        outside = (entries < 0) | (entries >= last)
        return np.where(outside, last, entries), outside

    def cost_bits(self, symbols: npt.NDArray[np.integer], index: npt.NDArray[np.integer]) -> float:
        """Ideal code length in bits of symbols (any shape) under the tables `index` (same shape)."""
        symbols, index = np.ravel(symbols), np.ravel(index)
        entries, outside = self.entries(symbols, index)
        bits = PRECISION - np.log2(self.frequencies[self.offsets[index] + entries])
        where = index[outside]
        codes = escape_code(
            symbols[outside].astype(np.int64),
            self.lowest[where].astype(np.int64),
            self.length[where].astype(np.int64),
        )
        # Seven bits of the code per byte, at least one byte.
        groups = 1 + sum((codes >> shift > 0).astype(np.int64) for shift in (7, 14, 21, 28))
        return float(bits.sum()) + 8 * int(np.sum(groups))
