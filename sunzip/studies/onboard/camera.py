"""What a mission's camera makes of a frame: whole numbers of so many bits, with its own pixels' noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sunzip.channels import DETECTOR_SIDE, READ_NOISE_DN, channel
from sunzip.normalize import NOISE

Float = npt.NDArray[np.float32]
Raw = npt.NDArray[np.uint16]

#: What a dark pixel reads, so that read noise is not cut off at 0.
PEDESTAL = 100


class Camera:
    """Turns frames in DN/s and G into what a mission's cameras would have read, and back.

    An AIA-like pixel holds x·t digital numbers after t seconds, with variance (g·x·t + r²)/b², where g is the
    gain in DN per photon, r the read noise and b the mission's binning. The frames at hand are means over
    more detector pixels and so quieter; the noise that they lack is added. Magnetograms are rounded to 1 G
    and keep the noise that they have.

    Parameters
    ----------
    channels
        Names of the C channels.
    bits
        Of a pixel.
    binning
        Detector pixels along a side of one pixel.
    """

    def __init__(self, channels: tuple[str, ...], bits: int, binning: int) -> None:
        self.bits = bits
        self._binning = binning
        self._known = [channel(name) for name in channels]

    def expose(self, frame: Float, rng: np.random.Generator) -> Raw:
        """Read one frame out: (C, Y, X) in DN/s and G, NaN where nothing is, to (C, Y, X) uint16."""
        noisy = np.nan_to_num(frame)
        lacking = 1 / self._binning**2 - (frame.shape[-1] / DETECTOR_SIDE) ** 2
        for image, known in zip(noisy, self._known, strict=True):
            if known.gain is not None and known.exposure is not None and lacking > 0:
                variance = np.maximum(image, 0) * known.gain / known.exposure
                variance += (READ_NOISE_DN / known.exposure) ** 2
                image += rng.standard_normal(image.shape, np.float32) * np.sqrt(
                    variance * np.float32(lacking)
                )
        return self.counts(noisy)

    def counts(self, physical: Float) -> Raw:
        """Return what pixels of (C, Y, X) in DN/s and G read, without any noise."""
        raw = np.empty(physical.shape, np.uint16)
        for c, known in enumerate(self._known):
            if known.exposure is None:
                read = physical[c] + (1 << (self.bits - 1))
            else:
                read = physical[c] * np.float32(known.exposure) + PEDESTAL
            raw[c] = np.clip(np.rint(read), 0, (1 << self.bits) - 1)
        return raw

    def physical(self, raw: Raw) -> Float:
        """Return (C, Y, X) float32 in DN/s and G, as the codec takes them."""
        out = raw.astype(np.float32)
        for c, known in enumerate(self._known):
            if known.exposure is None:
                out[c] -= 1 << (self.bits - 1)
            else:
                out[c] = (out[c] - PEDESTAL) / np.float32(known.exposure)
        return out

    def noise(self, frame: Float) -> Float:
        """Return the standard deviation of the noise in each pixel of (C, Y, X), in DN/s and G.

        That of magnetograms is the nominal one of `sunzip.normalize`.
        """
        out = np.empty(frame.shape, np.float32)
        for c, known in enumerate(self._known):
            if known.gain is None or known.exposure is None:
                a, b = NOISE[known.name]
                out[c] = np.sqrt(a * (np.abs(frame[c]) + b))
            else:
                counts = np.maximum(frame[c], 0) * known.exposure
                variance = (counts * known.gain + READ_NOISE_DN**2) / self._binning**2 + 1 / 12
                out[c] = np.sqrt(variance) / known.exposure
        return out
