"""Can latents foretell the Sun's radio flux? The paper's experiment on an archive, with fairer rivals."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip import display
from sunzip.api import OnStep
from sunzip.display import Report
from sunzip.errors import InputError
from sunzip.studies import extractors
from sunzip.studies.extractors import Days
from sunzip.studies.flux import Flux, read_flux
from sunzip.studies.forecasters import GRID, Space, grow, linear, need_sklearn
from sunzip.studies.splits import Dates, Months, Parts, Rows, month_folds
from sunzip.sun import Sun
from sunzip.sun import open as open_sun
from sunzip.weights import Model

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: What all others are measured against: the flux of the day of the image.
PERSISTENCE = "persistence"
LATENTS, SHUFFLED = "latents", "shuffled latents"

#: What the names of methods end with that learn straight lines instead of trees.
LINEAR = ", linear"

#: Methods that every month in turn is tested with.
CROSSED = (
    LATENTS,
    f"{PERSISTENCE} + {LATENTS}",
    f"{PERSISTENCE} + {LATENTS}{LINEAR}",
    f"{PERSISTENCE} + {SHUFFLED}",
    f"{PERSISTENCE} + {SHUFFLED}{LINEAR}",
)

HORIZONS = tuple(range(1, 8))
EMBARGO = 14

#: Principal components where latents are maps and nothing else is asked for.
PCA = 64

# Errors of neighbouring days are alike: intervals are made of blocks of so many days.
_BLOCK, _DRAWS, _LEVEL = 14, 2000, 0.95

# Fewer rows than this to learn from, to choose by or to judge by say nothing.
_MIN_ROWS = 8

# Days before and after that are tried, by which features may be ahead, and the share of the variance above
# which that counts.
_LAGS, _MAX_LAG, _TELLS = 10, 2, 0.3


@dataclass(frozen=True, slots=True)
class Score:
    """How good forecasts of one horizon are.

    Attributes
    ----------
    horizon
        In days.
    rows
        Forecasts that were judged.
    rmse, low, high
        Root mean square error in solar flux units, and its 95 % interval.
    ratio, ratio_low, ratio_high
        The same over that of persistence on the same rows, drawn together.
    trees
        Chosen number; None where nothing grows.
    """

    horizon: int
    rows: int
    rmse: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    trees: int | None


@dataclass(frozen=True, slots=True)
class ForecastReport(Report):
    """What `forecast` found.

    Attributes
    ----------
    archive, model, model_sha256, flux, column
        What was read.
    synthetic
        Whether the flux is that of a synthetic Sun.
    days, first, last
        Days with both an image and a flux.
    latent_shape, pool, pca, features, kept
        Of one frame; how it was pooled; principal components; numbers that the trees see; share of the
        variance in them.
    test_months, validation_months
        Months of targets.
    rows
        By horizon as text: how many rows train, choose and judge.
    methods
        By name: a `Score` for each horizon.
    folds
        The same over twelve folds, each of which tests one month of all years; None if not asked for.
    embargo
        Days around each fold's month that it learns nothing from; None without folds.
    lag, lag_share
        Of which day's flux the latents tell most, counted from the image's, and the share of its variance;
        None where there are too few days to learn from to tell.
    interval
        ``block`` days, ``draws`` and ``level`` of the intervals.
    seed
        Of trees, draws and shuffles.
    seconds
        Wall time.
    """

    archive: str
    model: str
    model_sha256: str
    flux: str
    column: str
    synthetic: bool
    days: int
    first: str
    last: str
    latent_shape: tuple[int, ...]
    pool: int | None
    pca: int | None
    features: int
    kept: float
    test_months: tuple[int, ...]
    validation_months: tuple[int, ...]
    rows: dict[str, dict[str, int]]
    methods: dict[str, list[Score]]
    folds: dict[str, list[Score]] | None
    embargo: int | None
    lag: int | None
    lag_share: float | None
    interval: dict[str, float]
    seed: int
    seconds: float


def forecast(
    path: str | os.PathLike[str],
    flux: str | os.PathLike[str],
    *,
    column: str = "f30",
    horizons: Sequence[int] = HORIZONS,
    pool: int | None = None,
    pca: int | None = None,
    decode: bool = False,
    resnet: str | os.PathLike[str] | None = None,
    test: Sequence[int] = (1,),
    validation: Sequence[int] = (3,),
    grid: Sequence[int] = GRID,
    folds: bool = False,
    embargo: int = EMBARGO,
    seed: int = 0,
    model: str | Path | Model | None = None,
    anon: bool = False,
    step: OnStep | None = None,
) -> ForecastReport:
    """Forecast a daily radio flux from the latents of an archive, and say how well against its rivals.

    Each day's first whole frame forecasts the flux of the days that follow. Rows are split by the month of
    the target; means, scales and components are those of days to be learnt from; the number of trees is
    chosen on the validation months; every method is judged on the same rows.

    Parameters
    ----------
    path
        The archive; of other than daily cadence, too.
    flux, column
        See `sunzip.studies.flux.read_flux`.
    horizons
        Days ahead.
    pool, pca
        Average latent maps over `pool` × `pool` fields, then take `pca` principal components, 0 being none;
        by default maps are averaged over 4×4 fields, of which 64 components are taken, and vectors are left
        as they are, as in the paper.
    decode
        Decode the images, too, for rivals that look at channel means, and at components of pixels.
    resnet
        Weights of a ResNet-18, for the rival of the paper; images of 211 Å are decoded for it.
    test, validation
        Months, 1 to 12; none to choose by if the grid has one number.
    grid
        Numbers of trees to choose from.
    folds
        Also test each month in turn, of all years, on trees that have seen the other months.
    embargo
        Days around a fold's month that nothing is learnt from.
    seed
        Of trees, draws and shuffles.
    model, anon
        As in `sunzip.open`.
    step
        Called as work advances.

    Raises
    ------
    InputError
        If files cannot be used, there are too few days, or the features know the flux of days to come.
    DamagedError, ModelNotFoundError
        See `sunzip.errors`.

    References
    ----------
    Sections 2.2 and 3.3 of Brown et al., "Learning the solar latent space".
    """
    begin = clock.monotonic()
    need_sklearn()
    if not horizons or min(horizons) < 1 or not grid or min(grid) < 1 or min(embargo, pca or 0) < 0:
        raise InputError(
            "horizons and numbers of trees must be at least 1, an embargo and principal components at least 0"
        )
    if not validation and len(set(grid)) > 1:
        raise InputError(
            "there are several numbers of trees and no month to choose one by; name one of either"
        )
    series = read_flux(flux, column)
    network = None if resnet is None else extractors.load_resnet(resnet)
    months = Months(tuple(test), tuple(validation))
    with open_sun(path, model=model, anon=anon) as sun:
        # What cannot be is found out before hours of work.
        if network is not None:
            sun.held([extractors.RESNET_CHANNEL])
        days = Days.of(sun)
        days = days.take(np.flatnonzero(np.isfinite(series.at(days.date))))
        shape = sun.latents.shape[1:]
        if len(shape) == 3 and pool is None:
            pool = min(extractors.POOL, *shape[1:])
        if len(shape) == 3 and pca is None and shape[0] * (pool or 1) ** 2 > PCA:
            pca = PCA
        pca = pca or None
        table, split, turns = _plan(days, series, horizons, os.fspath(path), months, folds, embargo)
        count = _counter(step, "reading latents", len(days.frames))
        latents = extractors.latent_features(sun, days, pool, count)
        coded = np.isfinite(latents).all(1)
        if not coded.all():
            # Frames that are stored as pixels have no latents.
            days, latents = days.take(np.flatnonzero(coded)), latents[coded]
            table, split, turns = _plan(days, series, horizons, os.fspath(path), months, folds, embargo)
        seen = months.seen(days.date)
        space = Space.fit(latents[seen], pca)
        told = alignment(space(latents), days.date, series, months)
        if told and told[0] > _MAX_LAG and told[1] > _TELLS:
            raise InputError(
                f"{os.fspath(path)}: its frames tell the flux of {told[0]} days later better than that of "
                f"their own day, as if they were of later days: times there or in {series.path} are wrong"
            )
        sets = {LATENTS: (latents, pca)} | _rivals(sun, days, network, decode, pca, step)
        name, sha256 = sun.codec.model.name, sun.codec.model.sha256
    order = np.random.default_rng([seed, 1]).permutation(len(latents))
    sets[SHUFFLED] = (latents[order], pca)
    ways = _ways(sets)
    growing = [name for name, way in ways.items() if not way.linear]
    trees = max(grid) * len(growing) + min(grid) * len({*growing} & {*CROSSED}) * len(turns)
    count = _counter(step, "growing trees", trees * len(table.horizons))
    spaces = _spaces(table, months, sets)
    errors = {h: _errors(table, split[h], spaces, ways, grid, seed, count) for h in table.horizons}
    methods = _scores({h: (table.targets(h)[split[h].test], e) for h, e in errors.items()}, seed)
    crossed = None
    if turns:
        crossed = _cross(table, sets, {n: ways[n] for n in CROSSED}, turns, min(grid), seed, count)
    return ForecastReport(
        archive=os.fspath(path),
        model=name,
        model_sha256=sha256,
        flux=series.path,
        column=series.column,
        synthetic=series.synthetic,
        days=len(days.frames),
        first=str(days.date[0]),
        last=str(days.date[-1]),
        latent_shape=tuple(shape),
        pool=pool,
        pca=pca,
        features=pca or latents.shape[1],
        kept=space.kept,
        test_months=months.test,
        validation_months=months.validation,
        rows={
            str(h): {"train": len(p.train), "validation": len(p.validation), "test": len(p.test)}
            for h, p in split.items()
        },
        methods=methods,
        folds=crossed,
        embargo=embargo if folds else None,
        lag=told[0] if told else None,
        lag_share=told[1] if told else None,
        interval={"block": _BLOCK, "draws": _DRAWS, "level": _LEVEL},
        seed=seed,
        seconds=clock.monotonic() - begin,
    )


def _counter(step: OnStep | None, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if step:
            step(what, done, total)

    count(0)
    return count


def _rivals(
    sun: Sun, days: Days, network: Any, decode: bool, pca: int | None, step: OnStep | None
) -> dict[str, tuple[Float, int | None]]:
    """Return what rivals look at, which takes decoding: by name, features and how many components of them."""
    if not decode and network is None:
        return {}
    count = _counter(step, "decoding images", len(days.frames))
    seen = extractors.picture_features(sun, days, network, count)
    out: dict[str, tuple[Float, int | None]] = {}
    if decode:
        out["channel means"] = seen.means, None
        out["components of pixels"] = seen.fields, min(pca or PCA, seen.fields.shape[1])
    if seen.resnet is not None:
        out[f"ResNet, {extractors.RESNET_CHANNEL}"] = seen.resnet, None
    return out


class _Way(NamedTuple):
    """A method: the set that it looks at, whether it sees the day's flux, too, and what it learns."""

    source: str
    persistent: bool
    linear: bool = False


def _ways(sets: Iterable[str]) -> dict[str, _Way]:
    """Return all methods by name."""
    rivals = [name for name in sets if name not in (LATENTS, SHUFFLED)]
    return {
        LATENTS: _Way(LATENTS, False),
        f"{PERSISTENCE} + {LATENTS}": _Way(LATENTS, True),
        f"{LATENTS}{LINEAR}": _Way(LATENTS, False, linear=True),
        f"{PERSISTENCE} + {LATENTS}{LINEAR}": _Way(LATENTS, True, linear=True),
        **{name: _Way(name, False) for name in rivals},
        SHUFFLED: _Way(SHUFFLED, False),
        f"{PERSISTENCE} + {SHUFFLED}": _Way(SHUFFLED, True),
        f"{PERSISTENCE} + {SHUFFLED}{LINEAR}": _Way(SHUFFLED, True, linear=True),
    }


class _Table:
    """Days with an image, and the flux that follows them."""

    def __init__(self, days: Days, flux: Flux, horizons: Sequence[int], path: str) -> None:
        self._days, self._flux, self._path = days, flux, path
        self.horizons = sorted(set(horizons))

    def _rows(self, horizon: int) -> tuple[npt.NDArray[np.intp], Rows]:
        targets = self._days.date + np.timedelta64(horizon, "D")
        which = np.flatnonzero(np.isfinite(self._flux.at(targets)))
        return which, Rows(self._days.date[which], targets[which])

    def which(self, horizon: int) -> npt.NDArray[np.intp]:
        """(N,) the days that are inputs of the rows of a horizon."""
        return self._rows(horizon)[0]

    def targets(self, horizon: int) -> Dates:
        """(N,) the days that they forecast."""
        return self._rows(horizon)[1].targets

    def flux(self, horizon: int) -> tuple[Doubles, Doubles]:
        """(N,) flux of the inputs' days and of the targets'."""
        _, rows = self._rows(horizon)
        return self._flux.at(rows.inputs), self._flux.at(rows.targets)

    @property
    def date(self) -> Dates:
        """(D,) all days."""
        return self._days.date

    def parts(self, horizon: int, months: Months) -> Parts:
        """Split the rows of a horizon.

        Raises
        ------
        InputError
            If a part has too few rows, or an image, or another that it is coded given, is not before its
            target.
        """
        which, rows = self._rows(horizon)
        time, known, begin = self._days.time[which], self._days.known[which], rows.targets.astype("M8[ms]")
        if (time >= begin).any():
            raise InputError(f"{self._path}: the frame of {time[time >= begin][0]} is not before its target")
        if (late := known >= begin).any():
            raise InputError(
                f"{self._path}: the frame of {time[late][0]} is coded given others as late as "
                f"{known[late][0]}, which its target is not after; compress the images with --block 1"
            )
        parts = months.parts(rows)
        held = [*months.test, *months.validation]
        needed = {
            f"to learn from, in months other than {_listed(held)},": parts.train,
            f"to test, in month {_listed(months.test)},": parts.test,
        }
        if months.validation:
            needed[f"to choose by, in month {_listed(months.validation)},"] = parts.validation
        for what, rows_of in needed.items():
            if len(rows_of) < _MIN_ROWS:
                raise InputError(
                    f"{self._path}: has {display.count(len(rows_of), 'day')} {what} with images of all its "
                    f"channels and, {display.count(horizon, 'day')} later, a flux; a forecast needs "
                    f"{_MIN_ROWS}"
                )
        return parts


def _listed(months: Sequence[int]) -> str:
    return " and ".join(map(str, sorted(months)))


def _plan(
    days: Days,
    flux: Flux,
    horizons: Sequence[int],
    path: str,
    months: Months,
    folds: bool,
    embargo: int,
) -> tuple[_Table, dict[int, Parts], dict[Months, dict[int, Parts]]]:
    """Return the table of some days, its split by horizon, and that of each fold.

    Raises
    ------
    InputError
        If a part has too few rows.
    """
    table = _Table(days, flux, horizons, path)
    return table, {h: table.parts(h, months) for h in table.horizons}, _turns(table, embargo) if folds else {}


def _spaces(table: _Table, months: Months, sets: Mapping[str, tuple[Float, int | None]]) -> dict[str, Float]:
    """Return by name of each set what trees see of it, normalised by the days that may be learnt from."""
    seen = months.seen(table.date)
    return {n: Space.fit(features[seen], k)(features) for n, (features, k) in sets.items()}


def _errors(
    table: _Table,
    parts: Parts,
    spaces: Mapping[str, Float],
    ways: Mapping[str, _Way],
    grid: Sequence[int],
    seed: int,
    count: Callable[[int], None],
) -> dict[str, tuple[Doubles, int | None]]:
    """Return by name of each method its errors on the test rows, and its number of trees."""
    horizon = int((parts.rows.targets[0] - parts.rows.inputs[0]).astype(int))
    which = table.which(horizon)
    now, then = table.flux(horizon)
    out: dict[str, tuple[Doubles, int | None]] = {PERSISTENCE: ((now - then)[parts.test], None)}
    for name, way in ways.items():
        x, y = spaces[way.source][which], then
        if way.persistent:
            # They tell the change: no mean of targets that trees have seen is beyond the largest of them.
            x, y = np.concatenate([now[:, None].astype(np.float32), x], axis=1), then - now
        if way.linear:
            out[name] = linear((x[parts.train], y[parts.train]), x[parts.test]) - y[parts.test], None
            continue
        trees = grow(
            (x[parts.train], y[parts.train]),
            (x[parts.validation], y[parts.validation]),
            x[parts.test],
            grid=grid,
            seed=seed,
            grown=count,
        )
        out[name] = trees.test - y[parts.test], trees.count
    return out


def _turns(table: _Table, embargo: int) -> dict[Months, dict[int, Parts]]:
    """Return the rows of all folds by horizon.

    Raises
    ------
    InputError
        If a fold has too few rows.
    """
    out = {}
    for months in month_folds(embargo):
        out[months] = {
            h: months.parts(Rows(table.date[table.which(h)], table.targets(h))) for h in table.horizons
        }
        for parts in out[months].values():
            if len(parts.train) < _MIN_ROWS or not len(parts.test):
                raise InputError(
                    f"month {months.test[0]} cannot be a fold: {len(parts.train)} days to learn from, "
                    f"{len(parts.test)} to test; folds need an archive of all months of some years"
                )
    return out


def _cross(
    table: _Table,
    sets: Mapping[str, tuple[Float, int | None]],
    ways: Mapping[str, _Way],
    turns: Mapping[Months, Mapping[int, Parts]],
    trees: int,
    seed: int,
    count: Callable[[int], None],
) -> dict[str, list[Score]]:
    """Test each month of all years in turn; errors of all folds are judged together."""
    targets: dict[int, list[Dates]] = {h: [] for h in table.horizons}
    errors: dict[int, list[dict[str, tuple[Doubles, int | None]]]] = {h: [] for h in table.horizons}
    used = {way.source: sets[way.source] for way in ways.values()}
    for months, split in turns.items():
        spaces = _spaces(table, months, used)
        for h, parts in split.items():
            targets[h].append(parts.rows.targets[parts.test])
            errors[h].append(_errors(table, parts, spaces, ways, (trees,), seed, count))
    found = {}
    for h in table.horizons:
        dates = np.concatenate(targets[h])
        order = np.argsort(dates)
        found[h] = (
            dates[order],
            {
                name: (np.concatenate([e[name][0] for e in errors[h]])[order], count_of)
                for name, (_, count_of) in errors[h][0].items()
            },
        )
    return _scores(found, seed)


def _scores(
    found: Mapping[int, tuple[Dates, Mapping[str, tuple[Doubles, int | None]]]], seed: int
) -> dict[str, list[Score]]:
    """Turn errors by horizon and method into scores by method and horizon."""
    out: dict[str, list[Score]] = {}
    for horizon, (dates, errors) in found.items():
        draws = blocks(dates, np.random.default_rng([seed, 2, horizon]))
        base = errors[PERSISTENCE][0] ** 2
        if not base.any():
            raise InputError(
                f"the flux never changes within {horizon} days of those to test: nothing to forecast"
            )
        drawn = np.maximum(np.sqrt(base[draws].mean(axis=1)), np.finfo(np.float32).tiny)
        for name, (error, trees) in errors.items():
            square = error**2
            rmse, many = float(np.sqrt(square.mean())), np.sqrt(square[draws].mean(axis=1))
            tails = (50 * (1 - _LEVEL), 100 - 50 * (1 - _LEVEL))
            low, high = np.percentile(many, tails)
            ratio_low, ratio_high = np.percentile(many / drawn, tails)
            score = Score(
                horizon, len(error), rmse, float(low), float(high), rmse / float(np.sqrt(base.mean())),
                float(ratio_low), float(ratio_high), trees,
            )  # fmt: skip
            out.setdefault(name, []).append(score)
    return out


def blocks(
    dates: Dates, rng: np.random.Generator, *, days: int = _BLOCK, draws: int = _DRAWS
) -> npt.NDArray[np.intp]:
    """Draw rows again and again in blocks of so many days (circular block bootstrap).

    Parameters
    ----------
    dates
        (M,) datetime64[D], ascending.
    rng
        Draws where blocks begin.
    days
        Length of a block; of a shorter run, which ends where nothing is for longer, all of it. A block that
        comes to the end of its run goes on at the run's beginning, so that all rows are drawn alike often.
    draws
        How often.

    Returns
    -------
    (draws, M) indexes.

    References
    ----------
    Politis & Romano 1992, "A circular block-resampling procedure for stationary data".
    """
    gaps = np.diff(dates).astype(np.int64)
    breaks = np.flatnonzero(gaps > days) + 1
    long = max(1, round(days / float(np.median(gaps)))) if len(gaps) else 1
    begins = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([begins, [len(dates)]]))
    run = np.repeat(np.arange(len(begins)), lengths)
    start = rng.integers(len(dates), size=(draws, -(-len(dates) // long)))
    first, length = begins[run[start]][..., None], lengths[run[start]][..., None]
    out: npt.NDArray[np.intp] = first + (start[..., None] - first + np.arange(long)) % length
    return out.reshape(draws, -1)[:, : len(dates)]


def alignment(features: Float, dates: Dates, flux: Flux, months: Months) -> tuple[int, float] | None:
    """Tell of which day's flux features know most: that of their own, or they carry wrong times.

    Ridge regressions to the flux of up to ten days before and after, each judged on fifths of the days that
    it has not seen; days that are held out have no part in it.

    Parameters
    ----------
    features
        (N, K), normalised.
    dates
        (N,) their days.
    flux, months
        The targets, and which of them may be looked at.

    Returns
    -------
    lag
        In days from the features' own.
    share
        Of the flux's variance that is told at that lag, 0 to 1.

    None if there are too few days to learn from to judge at any lag.
    """
    told: tuple[int, float] | None = None
    for lag in sorted(range(-_LAGS, _LAGS + 1), key=abs):
        then = dates + np.timedelta64(lag, "D")
        good = months.seen(dates) & months.seen(then) & np.isfinite(flux.at(then))
        x, y = features[good].astype(np.float64), flux.at(then)[good]
        if len(y) < 5 * _MIN_ROWS:
            continue
        fifth = np.arange(len(y)) * 5 // len(y)
        error = np.empty(len(y))
        for n in range(5):
            a, b, middle = x[fifth != n], y[fifth != n], y[fifth != n].mean()
            weights = np.linalg.solve(a.T @ a + len(a) * 0.01 * np.eye(a.shape[1]), a.T @ (b - middle))
            error[fifth == n] = x[fifth == n] @ weights + middle - y[fifth == n]
        share = max(0.0, 1 - float((error**2).mean() / y.var())) if y.var() > 0 else 0.0
        if told is None or share > told[1]:
            told = lag, share
    return told
