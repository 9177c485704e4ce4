"""What decoding lost: the paper's metrics, the error in units of noise, and what learned rivals report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from sunzip.metrics import image_metrics
from sunzip.normalize import Stabiliser

Float = npt.NDArray[np.float32]

#: Columns of a curve besides its rate.
METRICS = ("rmse_sigma", "r", "ppe10", "ppe50", "rmse", "max_error", "psnr_log", "ms_ssim_log")

#: Weights of the scales, the finest first (Wang, Simoncelli & Bovik 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()
_SMALLEST = len(_WINDOW) << (len(_SCALES) - 1)

#: Neighbours on a curve whose rates differ by more than this factor have others measured between them.
_APART = 2.0


def ms_ssim(x: Float, y: Float, peak: float) -> float:
    """Return the multi-scale structural similarity of two (Y, X) images; NaN where they are too small for it.

    Wang, Simoncelli & Bovik, "Multiscale structural similarity for image quality assessment", 2003: Gaussian
    windows of 11 pixels and σ = 1.5, K = (0.01, 0.03), five scales, luminance at the coarsest alone.
    """
    if min(x.shape) < _SMALLEST:
        return float("nan")
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    result = 1.0
    for scale, weight in enumerate(_SCALES):
        if scale:
            x, y = _halved(x), _halved(y)
        mean_x, mean_y = _blurred(x), _blurred(y)
        var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
        covariance = _blurred(x * y) - mean_x * mean_y
        contrast = (2 * covariance + c2) / (var_x + var_y + c2)
        if scale == len(_SCALES) - 1:
            contrast *= (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        # A negative mean has no fractional power; others take it as no similarity, too.
        result *= max(float(contrast.mean()), 0.0) ** weight
    return result


def _blurred(x: Float) -> Float:
    edge = len(_WINDOW) // 2
    blurred = correlate1d(correlate1d(x, _WINDOW, 0), _WINDOW, 1)
    return np.asarray(blurred[edge:-edge, edge:-edge])


def _halved(x: Float) -> Float:
    y, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    x = x[:y, :w]
    return np.asarray((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4)


def logarithm(x: Float) -> Float:
    """Return log2(x + 1) as learned rivals take it, with the sign of a signed field kept."""
    return np.asarray(np.copysign(np.log2(np.abs(x) + 1), x))


class Judge:
    """Measures decoded images of one channel against the originals.

    Parameters
    ----------
    name
        The channel.
    images
        (T, Y, X) float32 in DN/s or G.
    """

    def __init__(self, name: str, images: Float) -> None:
        self.images = images
        self._units = Stabiliser.for_channels([name])
        #: (T, Y, X) float32 in units of noise.
        self.stable = self.stabilised(images)
        self._logs = logarithm(images)

    def stabilised(self, images: Float) -> Float:
        """Return (T, Y, X) images in DN/s or G in units of noise."""
        return self._units.forward(images[:, None])[:, 0]

    def physical(self, stable: Float) -> Float:
        """Return (T, Y, X) images in units of noise in DN/s or G."""
        return self._units.inverse(stable[:, None])[:, 0]

    def __call__(self, decoded: Float) -> dict[str, float]:
        """Return `METRICS` of (T, Y, X) decoded images in DN/s or G.

        Means over images, but for `rmse_sigma`, whose squares are averaged, and `max_error`, the largest.
        """
        m = image_metrics(self.images, decoded, stabilise=self._stabilise)
        # A constant image has no correlation.
        r = m.r[np.isfinite(m.r)]
        found = {"r": float(r.mean()) if r.size else float("nan")}
        found |= {key: float(np.mean(getattr(m, key))) for key in ("ppe10", "ppe50", "rmse")}
        psnr, similar = [], []
        for x, y in zip(self._logs, logarithm(decoded), strict=True):
            # As the rivals do: each image is scaled by its own smallest and largest value.
            peak = max(float(np.ptp(x)), 1e-6)
            error = float(np.sqrt(np.mean((x - y) ** 2, dtype=np.float64)))
            psnr.append(20 * np.log10(peak / error) if error else np.inf)
            similar.append(ms_ssim((x - x.min()) / peak, (y - x.min()) / peak, 1.0))
        return {
            "rmse_sigma": float(np.sqrt(np.mean(m.rmse_sigma**2))),
            **found,
            "max_error": float(np.max(m.max_error)),
            "psnr_log": float(np.mean(psnr)),
            "ms_ssim_log": float(np.mean(similar)),
        }

    def _stabilise(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        stable = self._units.forward(values.astype(np.float32).reshape(1, 1, -1))
        return stable.reshape(-1).astype(np.float64)


#: A curve: for each key of `METRICS`, and "bits" per sample, a list of one number a setting.
Curve = dict[str, list[float | None]]


def curve(rows: Sequence[dict[str, float]]) -> Curve:
    """Turn rows into columns that JSON can have, with no more digits than mean something."""
    out: Curve = {}
    for key in rows[0] if rows else ():
        out[key] = [_short(row[key]) for row in rows]
    return out


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def sweep(
    levels: Sequence[Any],
    measured: Callable[[Any], dict[str, Any]],
    between: Callable[[Any, Any], Any],
    most: float = 1.0,
) -> list[tuple[Any, dict[str, Any]]]:
    """Measure settings, the coarsest first, until the rate passes `most` bits per sample.

    Three are measured at least, so that codecs which cannot go so low have a curve too. Where the rates of
    neighbours lie far apart, settings between them are measured too: noise begins to cost bits all at once.

    Parameters
    ----------
    levels
        The settings.
    measured
        Returns of a setting "bits" per sample, and whatever else.
    between
        Returns the setting halfway between two, or None if there is none.
    most
        See above.

    Returns
    -------
    Settings and what was measured of them.
    """
    found: list[tuple[Any, dict[str, Any]]] = []
    for level in levels:
        found.append((level, measured(level)))
        if found[-1][1]["bits"] > most and len(found) >= 3:
            break

    def filled(low: tuple[Any, Any], high: tuple[Any, Any]) -> list[tuple[Any, dict[str, Any]]]:
        few, many = sorted((low[1]["bits"], high[1]["bits"]))
        level = between(low[0], high[0]) if few < most and many > _APART * few else None
        if level is None:
            return []
        middle = level, measured(level)
        return [*filled(low, middle), middle, *filled(middle, high)]

    inner = [filled(*pair) for pair in pairwise(found)]
    return [one for first, others in zip(found, [*inner, []], strict=True) for one in (first, *others)]
