"""Exact convolutional networks: integers carried in float64, so that every machine computes the same.

A sum of products of integers is exact in float64, in any order, with or without fused multiply-add, as long
as every partial sum stays below 2^53. `IntegerNet` proves that bound for each layer when it is loaded and
clamps activations to keep it; so its outputs are the same to the bit on every machine, thread count, batch
size and BLAS. Entropy decoding depends on nothing else. Plain NumPy: no deep-learning library is needed to
read an archive's latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.errors import DamagedError, InputError

#: Fraction bits of activations and of weights, and the largest magnitude of an activation.
ACTIVATION_BITS = 8
WEIGHT_BITS = 12
ACTIVATION_LIMIT = 2**20
_EXACT = 2**53

#: What a stored network may be at most, so that running one costs no more memory than its images do.
_MAX_LAYERS = 16
_MAX_CHANNELS = 2**13
_MAX_KERNEL = 9
_MAX_SHUFFLE = 8

#: Numbers that stand in the windows of pixels that are computed at once: in those of all they stand k² times.
_UNROLLED = 2**20


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """One convolution with unit stride, zero padding and odd square kernel.

    Attributes
    ----------
    weight
        (C_out, C_in, k, k) int32, real weight times 2^WEIGHT_BITS.
    bias
        (C_out,) int64, real bias times 2^(WEIGHT_BITS + ACTIVATION_BITS).
    shuffle
        Factor s of the pixel shuffle that follows: C_out channels become C_out/s² of s times the size.
    relu
        Whether negative activations become zero afterwards.
    """

    weight: npt.NDArray[np.int32]
    bias: npt.NDArray[np.int64]
    shuffle: int
    relu: bool


class IntegerNet:
    """A chain of `IntegerLayer` with proven bounds.

    Raises
    ------
    DamagedError
        If the layers do not fit together or a partial sum could reach 2^53.
    """

    def __init__(self, layers: Sequence[IntegerLayer]) -> None:
        self.layers = tuple(layers)
        channels: int | None = None
        for n, layer in enumerate(self.layers):
            c_out, c_in, k, k2 = layer.weight.shape
            if (
                k != k2
                or k % 2 == 0
                or layer.shuffle < 1
                or c_out % layer.shuffle**2
                or layer.bias.shape != (c_out,)
            ):
                raise DamagedError(f"integer network: layer {n} has an impossible shape {layer.weight.shape}")
            if channels is not None and channels != c_in:
                raise DamagedError(f"integer network: layer {n} takes {c_in} channels but gets {channels}")
            channels = c_out // layer.shuffle**2
            w = np.abs(layer.weight.astype(np.float64)).sum(axis=(1, 2, 3))
            worst = float((w * ACTIVATION_LIMIT + np.abs(layer.bias.astype(np.float64))).max())
            if not worst + 2**WEIGHT_BITS < _EXACT:
                raise DamagedError(f"integer network: layer {n} could exceed 2^53 and would not be exact")
        if channels is None:
            raise DamagedError("integer network: no layer")
        self.channels_in = self.layers[0].weight.shape[1]
        self.channels_out = channels
        self._matrices = [
            layer.weight.astype(np.float64).reshape(layer.weight.shape[0], -1) for layer in self.layers
        ]

    def __call__(self, symbols: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Run the network on (C_in, Y, X) integers.

        Returns
        -------
        array
            (C_out, Y·s, X·s) int64 with ACTIVATION_BITS fraction bits, s the product of all shuffles.
        """
        x = np.clip(symbols.astype(np.float64) * 2**ACTIVATION_BITS, -ACTIVATION_LIMIT, ACTIVATION_LIMIT)
        for layer, matrix in zip(self.layers, self._matrices, strict=True):
            c_out, c_in, k, _ = layer.weight.shape
            _, height, width = x.shape
            padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
            windows = windows.transpose(0, 3, 4, 1, 2)
            out = np.empty((c_out, height, width))
            rows = max(1, _UNROLLED // (c_in * k * k * width))
            for begin in range(0, height, rows):
                band = windows[..., begin : begin + rows, :]
                total = matrix @ band.reshape(c_in * k * k, -1)
                total += layer.bias.astype(np.float64)[:, None]
                # Division by a power of two is exact, and so is the floor: an arithmetic shift with rounding.
                total = np.floor((total + 2 ** (WEIGHT_BITS - 1)) * 2.0**-WEIGHT_BITS)
                np.clip(total, 0 if layer.relu else -ACTIVATION_LIMIT, ACTIVATION_LIMIT, out=total)
                out[:, begin : begin + rows] = total.reshape(c_out, -1, width)
            s = layer.shuffle
            x = out.reshape(c_out // s**2, s, s, height, width)
            x = x.transpose(0, 3, 1, 4, 2).reshape(c_out // s**2, height * s, width * s)
        whole: npt.NDArray[np.int64] = x.astype(np.int64)
        return whole

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return named integer arrays that `from_arrays` takes."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for n, layer in enumerate(self.layers):
            arrays[f"{n}.weight"] = layer.weight
            arrays[f"{n}.bias"] = layer.bias
            arrays[f"{n}.form"] = np.array([layer.shuffle, layer.relu], np.int32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> IntegerNet:
        """Rebuild a network from the arrays of `to_arrays`.

        Raises
        ------
        DamagedError
            If an array is missing or has a wrong dtype, shape or value.
        """
        layers = []
        if len(arrays) > 3 * _MAX_LAYERS:
            raise DamagedError(f"integer network: it has more than {_MAX_LAYERS} layers")
        for n in range(-(-len(arrays) // 3)):
            try:
                weight, bias, form = (arrays[f"{n}.{part}"] for part in ("weight", "bias", "form"))
            except KeyError as error:
                raise DamagedError(f"integer network: {error} is missing") from None
            if (
                weight.dtype != np.int32
                or weight.ndim != 4
                or 0 in weight.shape
                or max(weight.shape[:2]) > _MAX_CHANNELS
                or max(weight.shape[2:]) > _MAX_KERNEL
                or bias.dtype != np.int64
                or bias.ndim != 1
                or form.dtype != np.int32
                or form.shape != (2,)
                or not 1 <= form[0] <= _MAX_SHUFFLE
                or form[1] not in (0, 1)
            ):
                raise DamagedError(f"integer network: layer {n} has arrays of wrong dtype or shape")
            layers.append(IntegerLayer(weight, bias, int(form[0]), bool(form[1])))
        return cls(layers)


def quantise_layer(
    weight: npt.NDArray[np.floating[Any]], bias: npt.NDArray[np.floating[Any]], *, shuffle: int, relu: bool
) -> IntegerLayer:
    """Round a trained float layer to integers with WEIGHT_BITS fraction bits.

    Raises
    ------
    InputError
        If a weight is not finite or does not fit; conversion would wrap it around in silence.
    """
    weights = np.rint(weight.astype(np.float64) * 2**WEIGHT_BITS)
    biases = np.rint(bias.astype(np.float64) * 2 ** (WEIGHT_BITS + ACTIVATION_BITS))
    if not ((np.abs(weights) < 2**31).all() and (np.abs(biases) < _EXACT).all()):
        raise InputError("a network's weights are too large, or not finite, to be made integers")
    return IntegerLayer(weights.astype(np.int32), biases.astype(np.int64), shuffle, relu)
