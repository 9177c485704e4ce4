"""The context network while it codes: integers of 8 bits carried in float32, so that every machine agrees.

Integers up to 2^8 are exact in bfloat16 and TF32 as well, and sums of their products that stay below 2^24 are
exact in float32 in any order. `ExactContext` proves that bound for each layer when it is loaded. What comes
out is then the same for every number of threads, batch, memory format and library, whatever precision a
library is set to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.errors import DamagedError, UnsupportedError
from sunzip.nn.planes import COUNT_NOW, COUNT_TIME, FLAGS, LEVELS, WIDTHS, network_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Float = npt.NDArray[np.float32]

#: Largest integers of planes, activations and weights. Weights keep to what bfloat16 has exactly.
PLANE_MAX, ACTIVATION_MAX, WEIGHT_MAX = 127, 255, 256
EXACT = 2**24
MAX_SHIFT = 20

#: Outputs for three bands: means in 64ths of a step, gates of time and channels in 16ths, scales.
_OUTPUTS = 12
QUALITIES = 101


def parts_of(width: int, below: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return a network's weights: shape, and the largest integer of what they are applied to."""
    return {
        "now": ((width, COUNT_NOW, 3, 3), PLANE_MAX),
        "time": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "carry": ((width, below, 1, 1), ACTIVATION_MAX),
        "deep": ((width, width, 3, 3), ACTIVATION_MAX),
        "first": ((width, width, 1, 1), ACTIVATION_MAX),
        "first_out": ((_OUTPUTS, width, 1, 1), ACTIVATION_MAX),
        "beside": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "second": ((width, width, 1, 1), ACTIVATION_MAX),
        "second_out": ((_OUTPUTS, width, 1, 1), ACTIVATION_MAX),
        "after": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "settle": ((width, width, 1, 1), ACTIVATION_MAX),
        "settle_out": ((9, width, 1, 1), ACTIVATION_MAX),
    }


#: The sums that layers form: of which weights, and which of the four tabled biases they have.
LAYERS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "enter": (("now", "time", "carry"), 0),
    "deep": (("deep",), 1),
    "first": (("first",), None),
    "first_out": (("first_out",), None),
    "second": (("second", "beside"), 2),
    "second_out": (("second_out",), None),
    "settle": (("settle", "after"), 3),
    "settle_out": (("settle_out",), None),
}


class ExactContext:
    """Runs the networks of all levels.

    Parameters
    ----------
    arrays
        ``{net}.{part}`` int16 weights; ``{net}.{layer}.shift`` uint8 and ``{net}.{layer}.bias`` int32 of each
        output; ``bias.{net}`` (101, 12, depths, 4, width) int32 and ``flags.{net}`` (depths, 4, width) int32,
        which depend on quality, channel and how deep the level lies. Models that knew no lazy wavelet have
        three flags.

    Raises
    ------
    DamagedError
        If an array is missing, has a wrong dtype or shape, or a sum could reach 2^24.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = dict(arrays)
        for n, width in enumerate(WIDTHS):
            parts = parts_of(width, WIDTHS[max(n - 1, 0)])
            depths = LEVELS - len(WIDTHS) + 1 if n == 0 else 1
            tabled = self._take(f"bias.{n}", (QUALITIES, len(NAMES), depths, 4, width), np.int32)
            flags = self._arrays.get(f"flags.{n}")
            if flags is not None and flags.shape == (depths, FLAGS - 1, width):
                self._arrays[f"flags.{n}"] = np.concatenate((flags, np.zeros_like(flags[:, :1])), 1)
            flags = self._take(f"flags.{n}", (depths, FLAGS, width), np.int32)
            for layer, (names, place) in LAYERS.items():
                outputs = parts[names[0]][0][0]
                shift = self._take(f"{n}.{layer}.shift", (outputs,), np.uint8)
                total = np.abs(self._take(f"{n}.{layer}.bias", (outputs,), np.int32).astype(np.float64))
                for name in names:
                    shape, largest = parts[name]
                    weight = np.abs(self._take(f"{n}.{name}", shape, np.int16).astype(np.float64))
                    if weight.max() > WEIGHT_MAX:
                        raise DamagedError(f"context network: {n}.{name} has weights above {WEIGHT_MAX}")
                    total += largest * weight.sum((1, 2, 3))
                if place is not None:
                    total += np.abs(tabled[..., place, :].astype(np.float64)).max((0, 1, 2))
                if layer == "enter":
                    total += np.abs(flags.astype(np.float64)).sum(1).max(0)
                if shift.max() > MAX_SHIFT or not (total + 2.0**MAX_SHIFT < EXACT).all():
                    raise DamagedError(
                        f"context network: {n}.{layer} could exceed 2^24 and would not be exact"
                    )

    def _take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        found = self._arrays.get(name)
        if found is None or found.dtype != dtype or found.shape != shape:
            raise DamagedError(f"context network: {name} is missing or of a wrong shape")
        return found

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """Everything as float32 tensors, weights in the layout that convolutions are fastest in."""
        import torch

        _prove_convolutions()
        out = {}
        for name, array in self._arrays.items():
            # Powers of two are exact by construction, not by how well a library's exponential rounds.
            power = name.endswith(".shift")
            values = np.ldexp(1.0, -array.astype(np.int32)) if power else array
            tensor = torch.from_numpy(values.astype(np.float32))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            out[name] = tensor
        return out

    def _finish(self, total: Tensor, n: int, layer: str, clip: bool) -> Tensor:
        """Divide sums by their powers of two and round; activations are clipped."""
        scale = self._tensors[f"{n}.{layer}.shift"][:, None, None]
        total += self._tensors[f"{n}.{layer}.bias"][:, None, None]
        total *= scale
        total += 0.5
        total.floor_()
        return total.clamp_(0, ACTIVATION_MAX) if clip else total

    def enter(
        self,
        level: int,
        channels: Sequence[int],
        quality: int,
        flags: Float,
        planes: Float,
        time: Float | None,
        carry: Tensor | None,
    ) -> tuple[Tensor, Float]:
        """Look at what is known before any of a level's coefficients is.

        Parameters
        ----------
        level
            1 to `LEVELS`.
        channels
            The C channels coded together.
        flags
            (C, FLAGS) which of two references and of other frames are there, and which channels are
            lazy.
        planes, time
            (C, COUNT_NOW, h, w) and (C, COUNT_TIME, h, w), or None.
        carry
            Features of the next coarser level for the same channels, or None.

        Returns
        -------
        features
            Of this level, for `beside` and for the next finer level.
        outputs
            (C, 12, h, w) integers: means, two kinds of gates, numbers of scales, for the coefficients that
            come first.
        """
        import torch
        from torch.nn import functional as F

        t, n, depth = self._tensors, network_of(level), depth_of(level)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            h = F.conv2d(_tensor(planes), t[f"{n}.now"], padding=1)
            if time is not None:
                h += F.conv2d(_tensor(time), t[f"{n}.time"], padding=1)
            if carry is not None:
                h += F.interpolate(F.conv2d(carry, t[f"{n}.carry"]), size=h.shape[-2:])
            tabled = t[f"bias.{n}"][quality, list(channels), depth]
            # No product of matrices, which a library may be set to round.
            flagged = (torch.from_numpy(flags)[:, :, None] * t[f"flags.{n}"][depth]).sum(1)
            h += (tabled[:, 0] + flagged)[:, :, None, None]
            h = self._finish(h, n, "enter", clip=True)
            h = F.conv2d(h, t[f"{n}.deep"], padding=1)
            h += tabled[:, 1, :, None, None]
            h = self._finish(h, n, "deep", clip=True)
            first = self._finish(F.conv2d(h, t[f"{n}.first"]), n, "first", clip=True)
            out = self._finish(F.conv2d(first, t[f"{n}.first_out"]), n, "first_out", clip=False)
            return h, out.contiguous().numpy()

    def beside(
        self, level: int, channels: Sequence[int], quality: int, features: Tensor, known: Float
    ) -> Float:
        """Look at those coefficients of the level that came first, to foretell the others.

        Parameters
        ----------
        features
            What `enter` returned.
        known
            (C, COUNT_TIME, h, w) planes of the coefficients known, 0 elsewhere.

        Returns
        -------
        As the second of `enter`.
        """
        return self._branch(level, channels, quality, features, known, ("beside", "second"), 2)

    def settle(
        self, level: int, channels: Sequence[int], quality: int, features: Tensor, known: Float
    ) -> Float:
        """Look at all symbols of a level, to tell where in their cells the coefficients lie.

        Parameters
        ----------
        features, known
            As for `beside`.

        Returns
        -------
        (C, 9, h, w) integers: distances from the symbols in 64ths of a step, two kinds of gates in 16ths.
        """
        return self._branch(level, channels, quality, features, known, ("after", "settle"), 3)

    def _branch(
        self,
        level: int,
        channels: Sequence[int],
        quality: int,
        features: Tensor,
        known: Float,
        names: tuple[str, str],
        place: int,
    ) -> Float:
        import torch
        from torch.nn import functional as F

        t, n = self._tensors, network_of(level)
        near, layer = names
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            h = F.conv2d(_tensor(known), t[f"{n}.{near}"], padding=1)
            h += F.conv2d(features, t[f"{n}.{layer}"])
            h += t[f"bias.{n}"][quality, list(channels), depth_of(level), place][:, :, None, None]
            h = self._finish(h, n, layer, clip=True)
            out = self._finish(F.conv2d(h, t[f"{n}.{layer}_out"]), n, f"{layer}_out", clip=False)
            return out.contiguous().numpy()


@cache
def _prove_convolutions() -> None:
    """Try whether convolutions here are sums of products, which is what the bound on them speaks of.

    Libraries may compute them by transforms instead (Winograd's, Fourier's), of which no such bound holds,
    and choose by size: so it is tried on sizes that occur, with large integers, and compared in some places.

    Raises
    ------
    UnsupportedError
        If they are not.
    """
    import torch
    from torch.nn import functional as F

    rng = np.random.default_rng(0)
    for width, side in zip(WIDTHS[::-1], (128, 96, 64, 16, 8), strict=True):
        images = rng.integers(0, ACTIVATION_MAX + 1, (2, width, side + 2, side + 2))
        # Of one sign, and no larger than what keeps their sums below the bound.
        weight = rng.integers(0, EXACT // (9 * width * ACTIVATION_MAX), (width, width, 3, 3))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = F.conv2d(_tensor(images.astype(np.float32)), _tensor(weight.astype(np.float32)))
        for n, y, x in rng.integers(0, (2, side, side), (50, 3)):
            patch = images[n, :, y : y + 3, x : x + 3]
            if not np.array_equal(found[n, :, y, x].numpy(), (weight * patch).sum((1, 2, 3))):
                raise UnsupportedError(
                    f"convolutions of torch {torch.__version__} are not exact on this machine, so that no "
                    "wavelet model can be used here; switch off its fast mathematics, or take another torch"
                )


def depth_of(level: int) -> int:
    """Return which of its network's tables serves a level."""
    return level - 1 if network_of(level) == 0 else 0


def _tensor(planes: Float) -> torch.Tensor:
    import torch

    return torch.from_numpy(planes).contiguous(memory_format=torch.channels_last)


def macs_per_position(n: int) -> int:
    """Return the multiply-accumulates of network `n` for one position of a level's bands in one channel."""
    parts = parts_of(WIDTHS[n], WIDTHS[max(n - 1, 0)])
    return sum(int(np.prod(shape)) // (4 if name == "carry" else 1) for name, (shape, _) in parts.items())
