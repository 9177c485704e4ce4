"""Principal components, the baseline that a bottleneck must beat: as many numbers a frame, and linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from sunzip.channels import NAMES
from sunzip.normalize import Stabiliser
from sunzip.train.frames import Frames

Float = npt.NDArray[np.float32]

# Components of less variance than this share of the first's are rounding errors.
_TINY = 1e-7
_COLUMNS = 4096


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of frames.

    Attributes
    ----------
    stabiliser
        To units of noise over each channel's standard deviation: what a component is linear in.
    shape
        (C, Y, X) of a frame.
    mean
        (D,) float32, D = C·Y·X.
    axes
        (K, D) float32, orthonormal, by falling variance.
    """

    stabiliser: Stabiliser
    shape: tuple[int, ...]
    mean: Float
    axes: Float

    def coded(self, frame: Float, counts: Sequence[int]) -> list[Float]:
        """Return a frame (C, Y, X), NaN where missing, as decoded from each number of components."""
        # A missing channel is its mean, or components of what it is not would take its part in the others.
        y = np.nan_to_num(self.stabiliser.forward(frame).ravel() - self.mean)
        numbers = self.axes[: max(counts)] @ y
        out = []
        for k in counts:
            decoded = (self.mean + numbers[:k] @ self.axes[:k]).reshape(self.shape)
            with np.errstate(over="ignore"):
                out.append(np.nan_to_num(self.stabiliser.inverse(decoded)))
        return out


def fit(frames: Frames, most: int) -> Components:
    """Return at most so many components of frames that have all channels: one fewer than frames at best.

    Memory is that of the frames as float32 and little more, as the components take their place: D is larger
    than their number, so that the eigenvectors of the frames' inner products give them (Sirovich 1987, the
    method of snapshots).
    """
    whole = frames.take(frames.present.all(1))
    units = Stabiliser.for_channels(NAMES)
    squares = np.zeros((2, len(NAMES)))
    for example in whole:
        y = _stable(units, example.pixels.astype(np.float32)).reshape(len(NAMES), -1).astype(np.float64)
        squares += y.mean(1), (y**2).mean(1)
    mean, square = squares / len(whole)
    spread = np.sqrt(np.maximum(square - mean**2, np.finfo(np.float32).tiny)).astype(np.float32)
    stabiliser = Stabiliser(units.a, units.b, spread)

    x = np.empty((len(whole), len(NAMES) * whole.side[0] * whole.side[1]), np.float32)
    for row, example in zip(x, whole, strict=True):
        row[:] = _stable(stabiliser, example.pixels.astype(np.float32))
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x -= centre
    gram = np.zeros((len(x), len(x)))
    blocks = [slice(begin, begin + _COLUMNS) for begin in range(0, x.shape[1], _COLUMNS)]
    for columns in blocks:
        # In float32 the small ones of products that span seven decades would be rounding errors.
        part = x[:, columns].astype(np.float64)
        gram += part @ part.T
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = min(most, len(x) - 1, int((values > _TINY * values[0]).sum()))
    turn = (vectors[:, :count] / np.sqrt(values[:count])).T.astype(np.float32)
    for columns in blocks:
        x[:count, columns] = turn @ x[:, columns]
    return Components(stabiliser, (len(NAMES), *whole.side), centre, x[:count])


def _stable(stabiliser: Stabiliser, frame: Float) -> Float:
    """Return a stabilised frame as a vector, 0 where there is no measurement."""
    return np.nan_to_num(stabiliser.forward(frame)).ravel()
