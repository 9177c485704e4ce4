"""What forecasts are made with: extremely randomised trees, as in the paper, and straight lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sunzip.errors import InputError, needing

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: Numbers of trees that the paper chooses from.
GRID = (250, 500, 750, 1000, 1500, 2000)

#: Penalties that a ridge regression chooses from, as shares of the number of rows, and the stretches of time
#: that it leaves out in turn to choose.
PENALTIES, _STRETCHES = tuple(float(p) for p in np.geomspace(0.003, 3, 7)), 5


def need_sklearn() -> None:
    """Refuse to begin without scikit-learn.

    Raises
    ------
    InputError
        If it is not installed.
    """
    with needing("features", "a forecast needs"):
        import sklearn  # noqa: F401


@dataclass(frozen=True, slots=True)
class Space:
    """How features are normalised: by the days that may be learnt from, and by no other.

    Attributes
    ----------
    mean
        (F,) float32.
    axes
        (K, F) float32: of principal components, each over the standard deviation along it; None without.
    scale
        (F,) float32: standard deviations; 1 with components.
    kept
        Share of the variance that the components hold.
    """

    mean: Float
    axes: Float | None
    scale: Float
    kept: float

    @classmethod
    def fit(cls, features: Float, components: int | None) -> Space:
        """Fit to (N, F) features of the days that may be learnt from.

        Raises
        ------
        InputError
            If there are fewer days or features than components.
        """
        if components is None:
            scale = features.std(axis=0, dtype=np.float64)
            scale[scale == 0] = 1
            mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
            return cls(mean, None, scale.astype(np.float32), 1.0)
        if components > min(features.shape):
            raise InputError(
                f"{components} principal components of {features.shape[1]} features on {len(features)} days; "
                "there can be no more than of either: take fewer, or none (--pca)"
            )
        from sklearn.decomposition import PCA

        pca = PCA(components, svd_solver="randomized", random_state=0).fit(features)
        spread = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(np.float32).tiny))
        return cls(
            pca.mean_.astype(np.float32),
            (pca.components_ / spread[:, None]).astype(np.float32),
            np.ones(features.shape[1], np.float32),
            float(pca.explained_variance_ratio_.sum()),
        )

    def __call__(self, features: Float) -> Float:
        """Return (N, K) float32 of (N, F) features."""
        centred: Float = (features - self.mean) / self.scale
        return centred if self.axes is None else np.matmul(centred, self.axes.T, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Trees:
    """Forecasts of an ensemble whose size was chosen on validation data.

    Attributes
    ----------
    test
        (M,) float64.
    count
        Trees.
    """

    test: Doubles
    count: int


def grow(
    train: tuple[Float, Doubles],
    validation: tuple[Float, Doubles],
    test: Float,
    *,
    grid: Sequence[int] = GRID,
    seed: int = 0,
    grown: Callable[[int], None] | None = None,
) -> Trees:
    """Forecast by as many extremely randomised trees as validate best (Geurts et al. 2006).

    The trees are those of ``ExtraTreesRegressor(n, random_state=seed)`` with all else at its default, for
    every n of the grid: the first ones of the largest forest. They are thrown away once they have spoken, as
    2000 of them take a gigabyte.

    Parameters
    ----------
    train, validation
        (N, F) features, float32, and (N,) targets. Validation may be empty if the grid has one number.
    test
        (M, F) features.
    grid
        Numbers of trees.
    seed
        Of the trees.
    grown
        Called with each number of further trees.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    counts = sorted(set(grid))
    rng = np.random.RandomState(seed)
    both = np.concatenate([validation[0], test])
    total, done = np.zeros(len(both)), 0
    best, error = Trees(np.zeros(len(test)), 0), np.inf
    for count in counts:
        forest = ExtraTreesRegressor(count - done, random_state=rng, n_jobs=-1).fit(*train)
        # Threads would add the trees up in any order, and the last digit would depend on it.
        forest.n_jobs = 1
        total += forest.predict(both) * (count - done)
        if grown:
            grown(count - done)
        done = count
        mean = total / count
        square = float(np.mean((mean[: len(validation[1])] - validation[1]) ** 2)) if len(counts) > 1 else 0.0
        if square < error:
            best, error = Trees(mean[len(validation[1]) :], count), square
    return best


def linear(train: tuple[Float, Doubles], test: Float) -> Doubles:
    """Forecast by a ridge regression (Hoerl & Kennard 1970).

    Its penalty is the one with the least error on stretches of the rows to learn from that it has not seen;
    rows of other months are not needed to choose by.

    Parameters
    ----------
    train
        (N, F) features, float32, in order of time, and (N,) targets.
    test
        (M, F) features. Lines end as far beyond the values to learn from as these are apart.

    Returns
    -------
    (M,) forecasts.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    alphas = [share * len(train[1]) for share in PENALTIES]
    turns = KFold(min(_STRETCHES, len(train[1])))
    ridge = RidgeCV(alphas, cv=turns, scoring="neg_mean_squared_error")
    model = make_pipeline(StandardScaler(), ridge).fit(train[0].astype(np.float64), train[1])
    low, high = train[0].min(axis=0).astype(np.float64), train[0].max(axis=0).astype(np.float64)
    # What was next to constant may be thousands of its deviations off one day, as a latent of a channel that
    # mostly is nothing but noise: forecasts of thousands of units would come of it.
    found: Doubles = model.predict(np.clip(test.astype(np.float64), 2 * low - high, 2 * high - low))
    return found
