"""Rate-distortion curves: interpolation between measured points, and mean ratios of bytes (Bjøntegaard)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import linprog

Array = npt.NDArray[np.float64]

#: Points of a log-spaced grid that a mean runs over.
_GRID = 48
#: How often `Mixture` allows for correlated errors at the rate that it found with the last allowance.
_ROUNDS = 3


class RateCurve:
    """Bits per sample of a codec as a function of its error, from measured points.

    A point that costs more bits than another without a smaller error is none that anybody would use, and is
    left out. Between points the logarithm of the rate is a monotone cubic function of that of the error;
    beyond them the curve is NaN, never continued.

    Parameters
    ----------
    bits, error
        (N,) of the points, in any order; None, NaN and errors of 0 are left out.
    """

    def __init__(self, bits: Sequence[float | None], error: Sequence[float | None]) -> None:
        points = sorted((b, e) for b, e in zip(bits, error, strict=True) if b and e and b > 0 and e > 0)
        kept: list[tuple[float, float]] = []
        for b, e in points:
            if not kept or e < kept[-1][1]:
                if kept and b == kept[-1][0]:
                    kept.pop()
                kept.append((b, e))
        self.bits = np.array([b for b, _ in kept])
        self.error = np.array([e for _, e in kept])
        self._inner: Callable[[Array], Array] | None = None
        if len(kept) > 1:
            self._inner = PchipInterpolator(
                np.log(self.error[::-1]), np.log(self.bits[::-1]), extrapolate=False
            )

    def __call__(self, error: npt.ArrayLike) -> Array:
        """Return bits per sample at errors; NaN outside the measured ones."""
        wanted = np.asarray(error, np.float64)
        if self._inner is None:
            return np.full(wanted.shape, np.nan)
        return np.exp(self._inner(np.log(wanted)))

    def at_most(self, error: npt.ArrayLike) -> Array:
        """Return what an error of that or less costs: beyond the largest error, the fewest bits there are."""
        wanted = np.asarray(error, np.float64)
        if not len(self.error):
            return np.full(wanted.shape, np.nan)
        return np.where(wanted >= self.error[0], self.bits[0], self(wanted))


@dataclass(frozen=True)
class Mean:
    """A mean ratio of bytes at equal error.

    Attributes
    ----------
    ratio
        Ours over theirs, the geometric mean over the logarithm of the error; None where nothing overlaps.
    covered
        The share of our range of errors in which there is something to compare with.
    who
        What was cheapest over most of it, where there were several.
    """

    ratio: float | None
    covered: float
    who: str | None = None

    def as_dict(self) -> dict[str, float | str | None]:
        """Return plain values for JSON."""
        ratio = None if self.ratio is None else float(f"{self.ratio:.4g}")
        return {"ratio": ratio, "covered": round(self.covered, 3), "who": self.who}


def mean_ratio(error: Array, ours: Array, theirs: Mapping[str, Array]) -> Mean:
    """Return the mean over log-error of ours over the cheapest of theirs.

    Parameters
    ----------
    error
        (N,), where both are known, falling or rising.
    ours
        (N,) bits at these errors.
    theirs
        (N,) bits of each of the others; NaN where it was not measured.

    References
    ----------
    Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with errors
    instead of PSNR, and monotone interpolation.
    """
    if not theirs or len(error) < 2:
        return Mean(None, 0.0)
    table = np.stack(list(theirs.values()))
    known = np.isfinite(table).any(0) & np.isfinite(ours)
    # Of each stretch of the grid half belongs to either end.
    steps = np.abs(np.diff(np.log(error)))
    weight = np.zeros(len(error))
    weight[:-1] += steps / 2
    weight[1:] += steps / 2
    total = weight[known].sum()
    if not total:
        return Mean(None, 0.0)
    filled = np.where(np.isfinite(table), table, np.inf)
    best = filled.min(0)
    mean = float((weight[known] * np.log(ours[known] / best[known])).sum() / total)
    wins = [weight[known & (filled.argmin(0) == i)].sum() for i in range(len(table))]
    return Mean(float(np.exp(mean)), float(total / weight.sum()), list(theirs)[int(np.argmax(wins))])


def bjontegaard(ours: RateCurve, theirs: Mapping[str, RateCurve], low: float, high: float) -> Mean:
    """Return the mean ratio of bytes where our rate is between two.

    Parameters
    ----------
    ours, theirs
        The curves; of theirs the cheapest at every error counts, with its coarsest setting if that errs less.
    low, high
        Bits per sample of ours.
    """
    error = within(ours, low, high)
    return mean_ratio(error, ours(error), {name: c.at_most(error) for name, c in theirs.items()})


def within(ours: RateCurve, low: float, high: float) -> Array:
    """Return errors at which a curve's rate is between two, evenly spaced in their logarithm; or none."""
    if len(ours.bits) < 2:
        return np.empty(0)
    low, high = max(low, ours.bits[0]), min(high, ours.bits[-1])
    if low >= high:
        return np.empty(0)
    # The curve gives rates of errors; its monotone inverse is found on a fine grid.
    fine = np.geomspace(ours.error[0], ours.error[-1], 4001)
    fine[0], fine[-1] = ours.error[0], ours.error[-1]
    rates = ours(fine)
    first, last = np.interp(np.log([low, high]), np.log(rates), np.log(fine))
    return np.clip(np.exp(np.linspace(first, last, _GRID)), ours.error[-1], ours.error[0])


class Mixture:
    """The least bits with which a codec of linear mixtures of channels keeps to an error for each channel.

    Components k are coded one by one, with squared error d_k at rate R_k(d_k), and channels are the mixtures
    x_c = Σ A_ck y_k, so that channel c has the squared error Σ A_ck² d_k if errors of components are
    uncorrelated. The best choice of all d_k is a linear programme over points of the components' curves.
    Where several components lose the same structure errors are correlated: some whole decodings tell by how
    much channels err more (or less) than the sum says, and the programme allows for it.

    Parameters
    ----------
    matrix
        (C, K): A.
    bits, error
        Of each component, of its points: bits per sample, and root mean squared error.
    extra
        Bits per sample over all channels that come on top, for the matrix.
    whole, excess
        (N,) bits per sample of whole decodings, and (C, N) errors of channels in them over what the sum says.
    """

    def __init__(
        self,
        matrix: Array,
        bits: Sequence[Sequence[float]],
        error: Sequence[Sequence[float]],
        extra: float,
        whole: Sequence[float],
        excess: Sequence[Sequence[float]],
    ) -> None:
        self.extra = extra
        order = np.argsort(whole)
        self._whole = np.log(np.asarray(whole)[order])
        self._excess = np.asarray(excess)[:, order]
        rates, squares, owner = [], [], []
        for k, (b, e) in enumerate(zip(bits, error, strict=True)):
            curve = RateCurve(b, e)
            fine = np.geomspace(curve.error[0], curve.error[-1], 96) if len(curve.bits) > 1 else curve.error
            found = curve(fine) if len(curve.bits) > 1 else curve.bits
            # The ends of a logarithmic grid may lie a rounding error outside of the curve.
            good = np.isfinite(found)
            rates += [*found[good], *curve.bits]
            squares += [*fine[good] ** 2, *curve.error**2]
            owner += [k] * (int(good.sum()) + len(curve.bits))
        self._rates = np.array(rates)
        self._squares = (matrix**2)[:, owner] * np.array(squares)
        self._one = np.zeros((matrix.shape[1], len(owner)))
        self._one[owner, np.arange(len(owner))] = 1

    def __call__(self, error: Sequence[float]) -> float:
        """Return bits per sample, a mean over channels, for (C,) errors; NaN if it cannot keep to them."""
        wanted = np.asarray(error, np.float64)
        price = self._least(wanted**2)
        for _ in range(_ROUNDS):
            if np.isfinite(price):
                excess = [np.interp(np.log(price), self._whole, row) for row in self._excess]
                price = self._least((wanted / excess) ** 2)
        return price

    def _least(self, bound: Array) -> float:
        # Each row in units of its bound, so that the solver's tolerance means the same for all.
        found = linprog(
            self._rates,
            A_ub=self._squares / bound[:, None],
            b_ub=np.ones(len(bound)),
            A_eq=self._one,
            b_eq=np.ones(len(self._one)),
            method="highs",
        )
        return float(found.fun or 0) / len(bound) + self.extra if found.success else float("nan")
