"""A density of latents: principal axes and a mixture of Gaussians along them, to draw new latents from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.errors import InputError, needing

Float = npt.NDArray[np.float32]
_Double = npt.NDArray[np.float64]

#: A density of fewer points than this says nothing.
MIN_FRAMES = 16

# Variance that the axes keep, and the numbers of Gaussians that are tried.
_KEPT = 0.99
_COMPONENTS = (1, 2, 4, 8, 16)


def library() -> tuple[Any, Any]:
    """Return scikit-learn's classes that fit a density, or say that it is missing: also before long work.

    Raises
    ------
    InputError
        If scikit-learn is not installed.
    """
    with needing("features", "a density needs"):
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture
    return PCA, GaussianMixture


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of Gaussians over the principal axes of latents.

    Attributes
    ----------
    mean
        (D,) float32, of the latents.
    axes
        (K, D) float32: principal axes, each as long as the standard deviation along it.
    kept
        Share of the variance along these axes.
    weights
        (M,) of the Gaussians.
    centres, widths
        (M, K): their means and standard deviations, in units of the axes.
    """

    mean: Float
    axes: Float
    kept: float
    weights: _Double
    centres: _Double
    widths: _Double

    @classmethod
    def fit(cls, latents: Float) -> Mixture:
        """Fit to (N, D) latents: the axes that hold 99 % of the variance, as many Gaussians as BIC wants.

        Raises
        ------
        InputError
            If scikit-learn is not installed, or all latents are the same.
        """
        PCA, GaussianMixture = library()
        if not np.ptp(latents, axis=0).any():
            raise InputError("all frames of the archive have the same latents; there is nothing to fit")
        pca = PCA(_KEPT, svd_solver="full", whiten=True)
        points = pca.fit_transform(latents).astype(np.float64)
        tried = [
            # Along the axes points are uncorrelated; within a Gaussian they are taken to be, too.
            GaussianMixture(k, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(points)
            for k in _COMPONENTS
            if k * MIN_FRAMES <= len(points)
        ]
        best = min(tried, key=lambda mixture: float(mixture.bic(points)))
        return cls(
            mean=pca.mean_,
            # In place, as they take as much memory as the latents.
            axes=np.multiply(pca.components_, np.sqrt(pca.explained_variance_)[:, None], out=pca.components_),
            kept=float(pca.explained_variance_ratio_.sum()),
            weights=best.weights_,
            centres=best.means_,
            widths=np.sqrt(best.covariances_),
        )

    def sample(self, rng: np.random.Generator) -> Float:
        """Draw one point: (D,) float32."""
        which = rng.choice(len(self.weights), p=self.weights)
        point = self.centres[which] + self.widths[which] * rng.standard_normal(len(self.axes))
        drawn: Float = self.mean + point.astype(np.float32) @ self.axes
        return drawn
