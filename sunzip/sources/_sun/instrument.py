"""What AIA and HMI make of the synthetic Sun: point spread, scattered light, degradation and noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from sunzip.channels import CHANNELS, DETECTOR_SIDE, READ_NOISE_DN
from sunzip.sources._sun.sphere import Floats, Grid, grid_of

#: Share of the light that mirrors and meshes scatter wide: a few per cent (Poduval et al. 2013).
_SCATTERED = 0.03

#: Noise of Bx, By, Bz in G at 512²: what is left of HMI's 100 G and 10 G after binning.
_FIELD_NOISE = (52.0, 52.0, 4.5)

#: Sensitivity left in each AIA channel, as SDOML's DEG_COR has it, at the beginning of these years: rounded
#: from SolarSoft's calibration tables. Before and after, it stays what it was.
_YEARS = (2010.35, 2011, 2012, 2013, 2014, 2015, 2016, 2017, 2018, 2019, 2020, 2021)
_SENSITIVITY = (
    (1.03, 1.19, 1.01, 0.99, 0.88, 0.87, 0.85, 0.87, 0.91, 0.95, 0.99, 1.00),
    (0.98, 0.89, 0.82, 0.80, 0.75, 0.70, 0.64, 0.58, 0.52, 0.51, 0.52, 0.52),
    (0.99, 0.96, 0.96, 0.89, 0.86, 0.80, 0.69, 0.70, 0.72, 0.74, 0.77, 0.78),
    (1.00, 0.99, 0.95, 0.94, 0.91, 0.88, 0.81, 0.75, 0.69, 0.60, 0.53, 0.53),
    (0.99, 0.97, 0.91, 0.87, 0.81, 0.80, 0.78, 0.75, 0.66, 0.54, 0.45, 0.45),
    (0.93, 0.56, 0.30, 0.36, 0.27, 0.16, 0.092, 0.071, 0.059, 0.058, 0.059, 0.059),
    (0.97, 0.79, 0.80, 0.59, 0.45, 0.35, 0.26, 0.23, 0.22, 0.20, 0.18, 0.16),
    (0.99, 0.96, 0.73, 0.64, 0.62, 0.56, 0.50, 0.46, 0.43, 0.39, 0.34, 0.34),
    (1.00, 1.01, 0.84, 0.81, 0.85, 0.88, 0.88, 0.87, 0.87, 0.83, 0.78, 0.77),
)


def sensitivity(index: int, t: float) -> float:
    """Share of its first sensitivity that AIA channel `index` has at `t`, in days since 2000."""
    return float(np.interp(2000 + t / 365.25, _YEARS, _SENSITIVITY[index]))


def blur(images: Floats, grid: Grid) -> None:
    """Spread (K, n, n) images in place: the core of the point spread, and light scattered wide."""
    n = grid.n
    # A third of a pixel of 512: three taps of that variance on each axis.
    tap = np.float32(min((0.0016 * grid.radius) ** 2 / 2, 0.25))
    for image in images:
        image[1:-1] += tap * (image[2:] + image[:-2] - 2 * image[1:-1])
        image[:, 1:-1] += tap * (image[:, 2:] + image[:, :-2] - 2 * image[:, 1:-1])
    step, m = grid.step, len(grid.coarse) - 2
    short = m * step - n
    whole = np.pad(images, ((0, 0), (0, short), (0, short)), mode="edge") if short else images
    blocks = whole.reshape(-1, m, step, m, step).mean((2, 4), dtype=np.float32)
    k = 2 * np.pi * np.hypot(np.fft.fftfreq(2 * m)[:, None], np.fft.rfftfreq(2 * m)[None, :])
    k = k * grid.radius / step
    halo = 0.6 * np.exp(-((k * 0.06) ** 2) / 2) + 0.4 * np.exp(-((k * 0.3) ** 2) / 2)
    spectra = scipy.fft.rfft2(blocks, s=(2 * m, 2 * m)) * halo.astype(np.float32)
    wide = scipy.fft.irfft2(spectra, s=(2 * m, 2 * m))[:, :m, :m]
    images *= np.float32(1 - _SCATTERED)
    for image, light in zip(images, np.pad(wide, ((0, 0), (1, 1), (1, 1)), mode="edge"), strict=True):
        image += grid.refine(np.float32(_SCATTERED) * light)


def add_noise(image: npt.NDArray[np.float32], t: float, rng: np.random.Generator) -> None:
    """Add photon and read noise to (12, n, n) in place, as it is left in means over native pixels.

    The images are corrected for degradation, so that noise grows with it.
    """
    n = image.shape[-1]
    binned = (DETECTOR_SIDE / n) ** 2
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    for i, known in enumerate(CHANNELS):
        if known.gain is not None and known.exposure is not None:
            left = known.exposure * sensitivity(i, t)
            variance = np.maximum(image[i], 0) * np.float32(known.gain / left / binned)
            variance += np.float32(READ_NOISE_DN**2 / left**2 / binned)
            image[i] += noise[i] * np.sqrt(variance)
    disk = grid_of(n).disk
    for i, sigma in enumerate(_FIELD_NOISE, start=9):
        image[i] += noise[i] * np.float32(sigma * n / 512) * disk
