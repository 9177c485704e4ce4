"""The variance-stabilising transform: physical units to units of noise and back, by one formula.

For a pixel x whose noise variance grows as ``a·(|x| + b)`` the function

    f(x) = sign(x) · (2/√a) · (√(|x| + b) − √b)

has unit noise variance everywhere (Bartlett 1936, Anscombe 1948; the odd extension keeps the small
negative values that dark subtraction leaves, and serves the signed field of HMI as it is).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import DETECTOR_SIDE, NAMES, READ_NOISE_DN, channel, listed

_Real = TypeVar("_Real", np.float32, np.float64)

#: An SDOML pixel of 512² is the mean of 64 detector pixels.
_BINNED_PIXELS = (DETECTOR_SIDE // 512) ** 2

#: Noise in G at zero field and the field in G at which its variance has doubled. The transverse
#: components are about ten times as noisy as the line-of-sight one.
_HMI_NOISE_KNEE = {"Bx": (35.0, 500.0), "By": (35.0, 500.0), "Bz": (5.0, 100.0)}


def _noise(name: str) -> tuple[float, float]:
    if name in _HMI_NOISE_KNEE:
        sigma, knee = _HMI_NOISE_KNEE[name]
        return sigma**2 / knee, knee
    known = channel(name)
    assert known.gain is not None
    assert known.exposure is not None
    slope = known.gain / (known.exposure * _BINNED_PIXELS)
    return slope, READ_NOISE_DN**2 / (known.gain * known.exposure)


#: Per channel (a, b): noise variance of an SDOML v2 pixel is a·(|x| + b); DN/s or G.
NOISE: dict[str, tuple[float, float]] = {name: _noise(name) for name in NAMES}


@dataclass(frozen=True, slots=True)
class Stabiliser:
    """The transform for a list of channels, with an optional division that brings each to a common spread.

    Attributes
    ----------
    a, b
        (C,) float32: noise variance is ``a·(|x| + b)``.
    spread
        (C,) float32: what f(x) is divided by; 1 leaves units of noise.
    """

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]

    @classmethod
    def for_channels(cls, names: Sequence[str]) -> Stabiliser:
        """Return the transform to units of noise for the named channels."""
        a, b = np.array([NOISE[n] for n in listed(names)], dtype=np.float32).reshape(-1, 2).T
        return cls(a.copy(), b.copy(), np.ones(len(a), np.float32))

    def subset(self, indexes: Sequence[int]) -> Stabiliser:
        """Return the transform for some of the channels only."""
        i = list(indexes)
        return Stabiliser(self.a[i], self.b[i], self.spread[i])

    def forward(self, x: npt.NDArray[_Real]) -> npt.NDArray[_Real]:
        """Stabilise (..., C, Y, X) in DN/s (2×2 means) or G, in the precision given; NaN stays NaN."""
        y = np.abs(x)
        b, gain = self._shape(self.b).astype(y.dtype), self._shape(2 / np.sqrt(self.a) / self.spread)
        y += b
        np.sqrt(y, out=y)
        y -= np.sqrt(b)
        y *= gain
        return np.copysign(y, x, out=y)

    def inverse(self, y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Undo `forward`: (..., C, Y, X) float32 to DN/s or G."""
        gain, root, b = self.inverse_terms()
        x = np.abs(y)
        x *= gain
        x += root
        np.square(x, out=x)
        x -= b
        return np.copysign(x, y, out=x)

    def inverse_terms(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return g, r and b of x = sign(y)·((|y|·g + r)² − b), each (C, 1, 1) float32."""
        b = self._shape(self.b)
        return self._shape(np.sqrt(self.a) / 2 * self.spread), np.sqrt(b), b

    @staticmethod
    def _shape(v: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        return v.astype(np.float32)[:, None, None]
