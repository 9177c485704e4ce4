"""What sets of frames look like in numbers, so that generated Suns can be held against real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sunzip.normalize import Stabiliser

Float = npt.NDArray[np.float32]
_Double = npt.NDArray[np.float64]

# Pixels along a side that histograms take of a frame.
_SAMPLED_SIDE = 64


class Looks:
    """What frames look like, in numbers: values, spectra and correlations of channels, in units of noise.

    Parameters
    ----------
    channels
        Of the frames.
    shape
        (Y, X) of the frames.
    """

    def __init__(self, channels: Sequence[str], shape: tuple[int, int]) -> None:
        self._stabiliser = Stabiliser.for_channels(channels)
        self._stride = max(1, min(shape) // _SAMPLED_SIDE)
        self._window = np.outer(*(np.hanning(n) for n in shape))
        frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
        # From structures of a quarter of the image to those of four pixels, in bins of equal ratio.
        edges = np.geomspace(4 / min(shape), 0.25, 13) if min(shape) > 16 else np.zeros(1)
        self._bin = np.digitize(frequency, edges)
        self._frequency = frequency
        self._bins = [b for b in range(1, len(edges)) if (self._bin == b).any()]
        self.values: list[Float] = []
        self._powers: list[_Double] = []
        self._correlations: list[_Double] = []

    def add(self, frame: Float) -> None:
        """Add (C, Y, X) in DN/s (2×2 means) and G; NaN counts as 0."""
        y = self._stabiliser.forward(np.nan_to_num(frame))
        self.values.append(y[:, :: self._stride, :: self._stride].reshape(len(y), -1))
        flat = y.reshape(len(y), -1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._correlations.append(np.corrcoef(flat).reshape(len(y), len(y)))
        spectrum = np.abs(np.fft.rfft2((y - y.mean((1, 2), keepdims=True)) * self._window)) ** 2
        self._powers.append(np.array([[s[self._bin == b].mean() for b in self._bins] for s in spectrum]))

    def slopes(self) -> list[float | None]:
        """Return per channel the exponent of the mean power spectrum; None where there is no spectrum."""
        power = np.mean(self._powers, axis=0)
        if len(self._bins) < 2:
            return [None] * len(power)
        x = np.log([self._frequency[self._bin == b].mean() for b in self._bins])
        return [float(np.polyfit(x, np.log(p), 1)[0]) if (p > 0).all() else None for p in power]

    def correlation(self) -> _Double:
        """Return the (C, C) correlation of the channels' pixels, averaged over frames; NaN where constant."""
        known = np.isfinite(self._correlations)
        total = np.where(known, self._correlations, 0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean: _Double = total / known.sum(axis=0)
        return mean


def distance(ours: Looks, theirs: Looks) -> tuple[list[float], float | None]:
    """Tell how far two sets of frames are apart.

    Returns
    -------
    values
        Per channel the Wasserstein distance of the distributions of pixel values, in units of noise: by how
        much pixels have to change on average until the histograms agree.
    correlation
        Root mean square of the differences between their correlations of channels; None if there are none.
    """
    from scipy.stats import wasserstein_distance

    values = [
        float(wasserstein_distance(np.concatenate(a), np.concatenate(b)))
        for a, b in zip(zip(*ours.values, strict=True), zip(*theirs.values, strict=True), strict=True)
    ]
    difference = (ours.correlation() - theirs.correlation())[np.triu_indices(len(values), 1)]
    known = difference[np.isfinite(difference)]
    return values, float(np.sqrt(np.mean(known**2))) if known.size else None


def nearest(points: Float, known: Float) -> float | None:
    """Return the median over (N, …) points of the distance to the nearest known one; None without any."""
    from scipy.spatial.distance import cdist

    if not known.size or known.shape[1:] != points.shape[1:]:
        return None
    flat = points.reshape(len(points), -1)
    near = np.full(len(flat), np.inf)
    for begin in range(0, len(known), 1024):
        some = known[begin : begin + 1024].reshape(-1, flat.shape[1])
        near = np.minimum(near, cdist(flat, some).min(axis=1))
    return float(np.median(near))
