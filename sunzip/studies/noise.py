"""Errors in units of noise, so that channels of all brightness can be averaged."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sunzip.normalize import Stabiliser

Float = npt.NDArray[np.float32]


def noise_error(a: Float, b: Float, channels: tuple[str, ...]) -> float:
    """Return how far two frames are apart, in units of noise of pixels averaged to 512².

    Parameters
    ----------
    a, b
        (C, Y, X) in DN/s (2×2 means) and G; NaN where nothing is.
    channels
        Names of the C channels.

    Returns
    -------
    Root mean square of each image, averaged over the images that both have; NaN if there is none.
    """
    units = Stabiliser.for_channels(channels)
    squares = (units.forward(a) - units.forward(b)).astype(np.float64) ** 2
    means = [float(np.nanmean(s)) for s in squares if not np.isnan(s).all()]
    return sum(map(math.sqrt, means)) / len(means) if means else math.nan
