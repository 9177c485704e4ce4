"""The CDF 9/7 wavelet by lifting, in single sums and products: every machine gets the same bits.

Each step is an elementwise IEEE operation on whole arrays. None depends on the order of a sum, and none may
be fused with the next, so that NumPy and PyTorch on any processor agree to the last bit. (Daubechies and
Sweldens 1998, "Factoring wavelet transforms into lifting steps"; the filter is that of JPEG 2000 part 1,
annex F.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", npt.NDArray[np.float32], Tensor)
else:
    Array = TypeVar("Array")

#: Lifting steps, applied to odd, even, odd and even samples in turn.
_STEPS = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)

#: Low-pass samples are multiplied and high-pass ones divided by it: a constant grows by √2 a dimension, and
#: the transform is as near to orthonormal as it can be.
_SCALE = 1.149604398860241


def _lift(target: Array, other: Array, step: float, axis: int, ahead: bool) -> None:
    """Add `step` times the sum of its two neighbours to every sample of one parity; edges are mirrored.

    Both are (..., h, w), the axis is −1 or −2.
    """
    # Neighbours along rows are as many places apart as along columns, only fewer: all are added at once, over
    # the ends of rows and images too, and what that makes of edges is replaced.
    apart = 1 if axis == -1 else other.shape[-1]
    edge = (..., -1 if ahead else 0, *(slice(None),) * (-1 - axis))
    flat, total = other.reshape(-1), _empty(other, other.shape)
    inner = total.reshape(-1)[:-apart] if ahead else total.reshape(-1)[apart:]
    if isinstance(flat, np.ndarray):
        np.add(flat[:-apart], flat[apart:], out=inner)
    else:
        inner[:] = flat[:-apart] + flat[apart:]
    total[edge] = other[edge] * 2
    total *= step
    target += total


def _split(x: Array, axis: int) -> tuple[Array, Array]:
    """Transform along an axis of even length: the low-pass and the high-pass half."""
    first: tuple[slice, ...] = (slice(None),) * (axis % x.ndim)
    low, high = _copy(x[(*first, slice(0, None, 2))]), _copy(x[(*first, slice(1, None, 2))])
    for n, step in enumerate(_STEPS):
        if n % 2:
            _lift(low, high, step, axis, ahead=False)
        else:
            _lift(high, low, step, axis, ahead=True)
    low *= _SCALE
    high *= 1 / _SCALE
    return low, high


def _merge(low: Array, high: Array, axis: int) -> Array:
    """Invert `_split`."""
    low, high = low * (1 / _SCALE), high * _SCALE
    for n in range(len(_STEPS) - 1, -1, -1):
        if n % 2:
            _lift(low, high, -_STEPS[n], axis, ahead=False)
        else:
            _lift(high, low, -_STEPS[n], axis, ahead=True)
    first: tuple[slice, ...] = (slice(None),) * (axis % low.ndim)
    shape = list(low.shape)
    shape[axis] *= 2
    out = _empty(low, shape)
    out[(*first, slice(0, None, 2))] = low
    out[(*first, slice(1, None, 2))] = high
    return out


def _empty(like: Array, shape: Sequence[int]) -> Array:
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def _copy(x: Array) -> Array:
    return x.copy() if isinstance(x, np.ndarray) else x.clone()


def analyse(x: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    """Take one step down.

    Parameters
    ----------
    x
        (..., Y, X) float32 of even Y and X.

    Returns
    -------
    low
        (..., Y/2, X/2).
    bands
        The same three times: what is high-pass along x, along y, along both.
    """
    low, high = _split(x, -2)
    low, across = _split(low, -1)
    along, both = _split(high, -1)
    return low, (across, along, both)


def synthesise(low: Array, bands: Sequence[Array]) -> Array:
    """Invert `analyse`: (..., h, w) and three of the same to (..., 2h, 2w)."""
    across, along, both = bands
    return _merge(_merge(low, across, -1), _merge(along, both, -1), -2)
