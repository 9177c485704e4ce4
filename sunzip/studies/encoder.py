"""The half of a model that flies, family by family: its network, and what that needs around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sunzip.codec import Codec
from sunzip.codec.family import Family, Latents
from sunzip.codec.hyperprior import HyperpriorFamily
from sunzip.codec.sigma_vae import SigmaVaeFamily
from sunzip.errors import UnsupportedError
from sunzip.nn import HYPER_STRIDE
from sunzip.nn.exact import ExactContext

if TYPE_CHECKING:
    from torch import nn

Float = npt.NDArray[np.float32]


class Encoder(ABC):
    """What exporting and counting ask of a family; a new one is added in `_ENCODERS` and nowhere else.

    Attributes
    ----------
    size
        Pixels along a side of the images that the exported network takes, unless the user says otherwise.
    outputs
        Names of what the network returns, in order.
    network_arrays
        How the names of those arrays of a model begin that the exported network replaces.
    on_ground
        Parts of the family's network that only decoding, or training, needs.
    """

    size: int
    outputs: tuple[str, ...]
    on_ground: tuple[str, ...]
    network_arrays = "network."

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the analysis network alone; it takes what `feed` gives, in its order."""

    @abstractmethod
    def feed(self, images: Float, present: Float, quality: int) -> dict[str, Float]:
        """Name the network's inputs for (1, 12, Y, X) stabilised images and (1, 12) presence."""

    @abstractmethod
    def latents(self, outputs: Sequence[Float], quality: int) -> Latents:
        """Turn the network's outputs into the latents of one frame."""

    @abstractmethod
    def kept_float(self) -> Sequence[tuple[str, ...]]:
        """Say which layers may have to stay float32 in an int8 network, from the fastest try to the finest.

        Each names layers as the network does.
        """

    def integer_macs(self, height: int, width: int) -> int:
        """Return the multiplications of the exact integer network that encoding runs beside the float one."""
        return 0

    @abstractmethod
    def symbols(self, height: int, width: int) -> int:
        """Return how many symbols of a frame are entropy-coded."""


class HyperpriorEncoder(Encoder):
    """Analysis and hyper-analysis in one network; quantising and the integer hyper-synthesis stay NumPy."""

    size = 512
    outputs = ("main", "side")
    on_ground = ("synthesis", "synthesis_stem", "linear_synthesis", "mask_out", "hyper_synthesis", "log_gain",
                 "log_inverse_gain", "prior_mean", "prior_log_scale", "prior_logit")  # fmt: skip

    def __init__(self, family: HyperpriorFamily) -> None:
        self._family = family
        self._gain: Float = family.model.arrays("quality")["gain"][:, None, :, None, None]

    def network(self) -> nn.Module:
        """Return a network of images, presence and gains to latents and hyper-latents."""
        from torch import Tensor, nn

        class Analysis(nn.Module):
            def __init__(self, family: HyperpriorFamily) -> None:
                super().__init__()
                self.whole = family.network

            def forward(self, images: Tensor, present: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
                y = self.whole.analyse(images, present) * gain
                return y, self.whole.hyper_analyse(y)

        return Analysis(self._family).eval()

    def feed(self, images: Float, present: Float, quality: int) -> dict[str, Float]:
        """See `Encoder.feed`; the quality comes in as gains."""
        return {"images": images, "present": present, "gain": self._gain[quality]}

    def latents(self, outputs: Sequence[Float], quality: int) -> Latents:
        """See `Encoder.latents`."""
        return Latents(outputs[0][0], outputs[1][0])

    def kept_float(self) -> Sequence[tuple[str, ...]]:
        """See `Encoder.kept_float`: what makes the latents needs more range than 8 bits; then the input."""
        last = ("linear_analysis", "analysis.5", "mask_in")
        ends = (*last, "hyper_analysis.0", "hyper_analysis.2", "hyper_analysis.4")
        return (
            ends,
            (*ends, "analysis_stem"),
            (*ends, "analysis_stem", "analysis.3.first", "analysis.3.second"),
            (*ends, "analysis_stem", "analysis.3.first", "analysis.3.second", "analysis.2"),
        )

    def integer_macs(self, height: int, width: int) -> int:
        """Of the hyper-synthesis."""
        h, w = (-(-n // HYPER_STRIDE) for n in self._family.latent_shape(height, width)[1:])
        total = 0
        for layer in self._family.hyper_synthesis.layers:
            total += layer.weight.size * h * w
            h, w = h * layer.shuffle, w * layer.shuffle
        return total

    def symbols(self, height: int, width: int) -> int:
        """Latents and hyper-latents."""
        m, h, w = self._family.latent_shape(height, width)
        return int(m * h * w + self._family.hyper * -(-h // HYPER_STRIDE) * -(-w // HYPER_STRIDE))


class SigmaVaeEncoder(Encoder):
    """The paper's encoder up to the mean."""

    size = 128
    outputs = ("mean",)
    on_ground = ("synthesis", "log_variance", "log_sigma")

    def __init__(self, family: SigmaVaeFamily) -> None:
        self._family = family

    def network(self) -> nn.Module:
        """Return a network of images to means."""
        from torch import Tensor, nn

        class Analysis(nn.Module):
            def __init__(self, family: SigmaVaeFamily) -> None:
                super().__init__()
                self.analysis, self.mean = family.network.analysis, family.network.mean

            def forward(self, images: Tensor) -> Tensor:
                mean: Tensor = self.mean(self.analysis(images))
                return mean

        return Analysis(self._family).eval()

    def feed(self, images: Float, present: Float, quality: int) -> dict[str, Float]:
        """See `Encoder.feed`."""
        return {"images": images}

    def latents(self, outputs: Sequence[Float], quality: int) -> Latents:
        """See `Encoder.latents`."""
        return Latents(outputs[0][0] / self._family.steps, np.zeros(0, np.float32))

    def kept_float(self) -> Sequence[tuple[str, ...]]:
        """See `Encoder.kept_float`: the head; then the first layers, which see the image."""
        return (("mean",), ("mean", "analysis.0"), ("mean", "analysis.0", "analysis.3"))

    def symbols(self, height: int, width: int) -> int:
        """One a latent."""
        return self._family.bottleneck


_ENCODERS: dict[type[Family], Callable[..., Encoder]] = {
    HyperpriorFamily: HyperpriorEncoder,
    SigmaVaeFamily: SigmaVaeEncoder,
}


def encoder_of(codec: Codec) -> Encoder:
    """Return the encoder of a model.

    Raises
    ------
    UnsupportedError
        If its family has no analysis network that could be exported.
    """
    build = _ENCODERS.get(type(codec.family))
    if build is None:
        raise UnsupportedError(
            f"model {codec.model.name}: the family {codec.model.family!r} has no analysis network to export; "
            "hyperprior and sigma-vae have one: export hyperprior-12, which comes with sunzip, instead"
        )
    return build(codec.family)


def copied(codec: Codec) -> Codec:
    """Return a codec whose family may be changed without changing that of the first."""
    other = copy(codec)
    other.family = copy(codec.family)
    return other


def through(codec: Codec, context: ExactContext) -> Codec:
    """Return a codec of the wavelet family whose context network is another object."""
    other = copied(codec)
    other.family.context = context  # type: ignore[attr-defined]
    return other


class CountingContext(ExactContext):
    """A context network that counts what it does.

    Attributes
    ----------
    macs
        Products with a sum, as they are done: planes that are all 0 are left out.
    traffic
        Bytes of float32 that its layers read and write, each once.
    """

    macs = traffic = 0

    def convolved(self, known: Sequence[tuple[Float, Float]], bias: Float) -> Float:  # type: ignore[override]
        """See `ExactContext.convolved`."""
        out = super().convolved(known, bias)
        for planes, kernel in known:
            self._count(planes, kernel, out)
        return out

    def mixed(self, planes: Float, kernel: Float) -> Float:  # type: ignore[override]
        """See `ExactContext.mixed`."""
        out = super().mixed(planes, kernel)
        self._count(planes, kernel, out)
        return out

    def _count(self, planes: Float, kernel: Float, out: Float) -> None:
        self.macs += kernel.size * out[:, 0].size
        self.traffic += planes.nbytes + kernel.nbytes + out.nbytes
