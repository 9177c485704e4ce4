"""What the loop trains: each family's network, its batches, its loss, and what it decodes by the way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sunzip.channels import CHANNELS
from sunzip.nn import STRIDE
from sunzip.nn.hyperprior import QUALITY_MAX, Hyperprior
from sunzip.nn.sigma_vae import SIZE, SigmaVAE, elbo
from sunzip.normalize import Stabiliser
from sunzip.train import initial
from sunzip.train.data import Float, Views, WholeFrames

#: How the σ-VAE's loss sets σ: see `sunzip.nn.sigma_vae.elbo`.
Mode = Literal["scalar", "optimal", "per-channel", "beta"]

#: Numbers of a frame of the σ-VAE: losses are shown, and gradients clipped, per number.
_NUMBERS = len(CHANNELS) * SIZE * SIZE


class Family(ABC):
    """What differs between the kinds of models while they are trained.

    Attributes
    ----------
    network
        What is trained.
    stabiliser
        What its inputs go through.
    batches
        Called with the step, the rank and the number of ranks, it makes a batch of arrays.
    partial
        Whether some parameters may have no part in a step.
    statistics
        Names of what `losses` reports. The last one is the squared error, by which divergence is told.
    """

    network: nn.Module
    stabiliser: Stabiliser
    statistics: tuple[str, ...]
    partial: bool = False
    batches: Callable[[int, int, int], tuple[npt.NDArray[Any], ...]]

    def train(self, network: nn.Module) -> None:
        """Put a network into training mode."""
        network.train()

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimiser, each with its ``share`` of the learning rate."""
        return [{"params": [p for p in self.network.parameters() if p.requires_grad], "share": 1.0}]

    def few(self, batch: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return a small batch of a larger one, for a trial."""
        return [array[:2] for array in batch]

    @abstractmethod
    def losses(self, batch: Sequence[Tensor], kl_weight: float) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its statistics (S,), float32 and detached; called under autocast."""

    @abstractmethod
    def reconstruct(self, network: nn.Module, pixels: Float, present: npt.NDArray[np.bool_]) -> Float:
        """Return frames as a network in evaluation mode shows them: (N, 12, Y, X) in DN/s and G."""

    @abstractmethod
    def calibrate(self, network: nn.Module, batch: Sequence[Tensor]) -> None:
        """Show a batch to a network in training mode, for the statistics that its layers keep."""


class SigmaVaeFamily(Family):
    """The paper's σ-VAE.

    Parameters
    ----------
    batches
        Of whole frames of 128².
    stabiliser
        What they go through.
    bottleneck
        Number of latents.
    mode
        How σ is set; ``"beta"`` is Eq. 1 of the paper, without any.
    beta
        Factor of the KL divergence in mode ``"beta"``.
    settled
        Whether batchnorm keeps the statistics that the network begins with, see `begin`: those of a batch
        would take away what a linear network tells frames apart by.
    """

    statistics = ("kl", "sigma", "mse")

    def __init__(
        self,
        batches: WholeFrames,
        stabiliser: Stabiliser,
        bottleneck: int,
        mode: Mode,
        beta: float = 1.0,
        *,
        settled: bool = False,
    ) -> None:
        self.network: SigmaVAE = SigmaVAE(bottleneck, "per-channel" if mode == "per-channel" else "scalar")
        # What gets no gradient would keep several processes waiting for one.
        self.network.log_sigma.requires_grad_(mode in ("scalar", "per-channel"))
        self.batches = batches
        self.stabiliser = stabiliser
        self.mode: Mode = mode
        self.beta = beta
        self.settled = settled

    def train(self, network: nn.Module) -> None:
        """See `Family.train`."""
        network.train()
        if self.settled:
            for norm in network.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eval()

    def groups(self) -> list[dict[str, Any]]:
        """σ learns thirty times as fast: it is a number or twelve, and lags behind the error otherwise."""
        sigma = self.network.log_sigma
        other = [p for p in self.network.parameters() if p is not sigma]
        # Decay is for what multiplies; batchnorm and biases have their own scale.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in other if p.ndim > 1], "share": 1.0, "weight_decay": 0.01},
            {"params": [p for p in other if p.ndim <= 1], "share": 1.0},
        ]
        return [*groups, {"params": [sigma], "share": 30.0}] if sigma.requires_grad else groups

    def begin(
        self, batches: WholeFrames, count: int, *, seed: int, progress: Callable[[int, int], object]
    ) -> None:
        """Set the network to the principal components of so many batches, see `sunzip.train.initial`."""
        initial.begin(
            self.network,
            lambda n: self._prepare([torch.from_numpy(a) for a in batches(n)])[0],
            count,
            seed=seed,
            progress=progress,
        )

    def _prepare(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Stabilise a batch where it lies: frames with 0 for what is missing, and what is not."""
        pixels, present = batch
        x = pixels.float()
        b, gain = (
            torch.from_numpy(v).to(x.device)[:, None, None]
            for v in (self.stabiliser.b, 2 / np.sqrt(self.stabiliser.a) / self.stabiliser.spread)
        )
        ok = torch.isfinite(x) & present[:, :, None, None]
        y = torch.copysign(((x.abs() + b).sqrt() - b.sqrt()) * gain, x)
        return torch.where(ok, y, 0.0).contiguous(memory_format=torch.channels_last), ok

    def losses(self, batch: Sequence[Tensor], kl_weight: float) -> tuple[Tensor, Tensor]:
        """See `Family.losses`: Eq. 2 or 1 per number of a frame, in nats; kl in nats per frame."""
        x, ok = self._prepare(batch)
        x_hat, mu, logvar = self.network(x)
        found = elbo(
            x, x_hat.float(), mu, logvar, self.network.log_sigma, self.mode, mask=ok, beta=self.beta
        )  # fmt: skip
        if self.mode == "optimal":
            with torch.no_grad():
                self.network.log_sigma.copy_(found.log_sigma)
        factor = self.beta if self.mode == "beta" else 1.0
        loss = ((found.loss - (1 - kl_weight) * factor * found.kl) / _NUMBERS).mean()
        parts = (found.kl.mean(), found.log_sigma.exp().mean(), found.mse.mean())
        return loss, torch.stack([p.detach().float() for p in parts])

    @torch.no_grad()
    def calibrate(self, network: nn.Module, batch: Sequence[Tensor]) -> None:
        """See `Family.calibrate`. Decoders see the posterior's mean, as they will when they decode."""
        assert isinstance(network, SigmaVAE)
        mu, _ = network.encode(self._prepare(batch)[0])
        network.decode(mu)

    @torch.inference_mode()
    def reconstruct(self, network: nn.Module, pixels: Float, present: npt.NDArray[np.bool_]) -> Float:
        """See `Family.reconstruct`: from the posterior's mean."""
        assert isinstance(network, SigmaVAE)
        device = network.log_sigma.device
        x, _ = self._prepare([torch.from_numpy(a).to(device) for a in (pixels, present)])
        mean, _ = network.encode(x)
        return self.stabiliser.inverse(network.decode(mean).float().cpu().contiguous().numpy())


class HyperpriorFamily(Family):
    """The hyperprior codec: rate + λ·distortion at random qualities.

    Parameters
    ----------
    batches
        Of views.
    network
        To train; one of the default widths if absent.
    multiplier
        λ at quality 0 and at quality 100, geometric between: bits per sample against squared error in units
        of the channel's stabilised spread.
    """

    statistics = ("bits_per_sample", "mse")

    #: Quality of what `reconstruct` shows.
    SHOWN = 56

    def __init__(
        self,
        batches: Views,
        network: Hyperprior | None = None,
        multiplier: tuple[float, float] = (0.05, 12.0),
    ) -> None:
        self.network: Hyperprior = Hyperprior() if network is None else network
        self.batches = self.views = batches
        self.stabiliser = batches.stabiliser
        self.multiplier = multiplier

    def groups(self) -> list[dict[str, Any]]:
        """Principal components have entries near 1/√3072: full steps would overwrite them at once."""
        named = list(self.network.named_parameters())
        linear = [p for n, p in named if n.startswith("linear_")]
        other = [p for n, p in named if not n.startswith("linear_")]
        return [{"params": other, "share": 1.0}, {"params": linear, "share": 0.05}]

    def losses(self, batch: Sequence[Tensor], kl_weight: float) -> tuple[Tensor, Tensor]:
        """See `Family.losses`. There is no KL divergence: the weight is not looked at."""
        images, masks, finite = batch
        images = images.contiguous(memory_format=torch.channels_last)
        quality = torch.rand(len(images), device=images.device) * QUALITY_MAX
        low, high = (math.log(m) for m in self.multiplier)
        multiplier = torch.exp(low + (high - low) * quality / QUALITY_MAX)
        bits, descend, error = rate_distortion(self.network, images, masks, finite, quality)
        # Dividing by λ's root keeps the gradients of coarse and fine qualities of one size.
        loss = ((descend + multiplier * error) / images[0].numel() / multiplier.sqrt()).mean()
        counted = finite.sum((1, 2, 3)).clamp_min(1)
        return loss, torch.stack([(bits / counted).mean(), (error.detach() / counted).mean()]).float()

    def calibrate(self, network: nn.Module, batch: Sequence[Tensor]) -> None:
        """See `Family.calibrate`: there are no such layers."""

    @torch.inference_mode()
    def reconstruct(self, network: nn.Module, pixels: Float, present: npt.NDArray[np.bool_]) -> Float:
        """See `Family.reconstruct`: from latents rounded at the quality `SHOWN`."""
        assert isinstance(network, Hyperprior)
        device = network.log_gain.device
        y = self.stabiliser.forward(pixels)
        y = np.where(np.isfinite(y) & present[:, :, None, None], y, np.float32(0))
        masks = torch.from_numpy(present.astype(np.float32)).to(device)
        gain, inverse = network.gains(torch.full((len(y),), float(self.SHOWN), device=device))
        latents = network.analyse(torch.from_numpy(y).to(device), masks)
        # About what is coded: the mean that symbols are rounded around is left out.
        shown = network.synthesise(torch.round(latents * gain) * inverse, masks)
        return self.stabiliser.inverse(shown.float().cpu().numpy())


def principal_components(views: Views, count: int, batches: int) -> tuple[Tensor, Tensor]:
    """Find the linear transform to begin with: the principal components of 16×16 blocks of all channels.

    Returns
    -------
    components
        (count, C·256) orthonormal rows, the strongest first.
    deviations
        (count,) root mean square of each component's coefficient.
    """
    second, blocks = torch.zeros(1), 0
    for step in range(batches):
        cut = F.pixel_unshuffle(torch.from_numpy(views(step)[0]), STRIDE)
        rows = cut.permute(0, 2, 3, 1).reshape(-1, cut.shape[1]).double()
        second, blocks = second + rows.T @ rows, blocks + len(rows)
    values, vectors = torch.linalg.eigh(second / blocks)
    order = torch.argsort(values, descending=True)[:count]
    return vectors[:, order].T.float().contiguous(), values[order].clamp_min(1e-6).sqrt().float()


def rate_distortion(
    model: Hyperprior, images: Tensor, masks: Tensor, finite: Tensor, quality: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return bits, what to descend on for their sake, and squared error; each (N,) and summed.

    The scales are fitted to the symbols that will be coded. The latents cannot be, as rounding has no
    gradient: for them uniform noise stands in for it, which overstates the bits where scales are small.
    """
    y = model.analyse(images, masks)
    gain, inverse = model.gains(quality)
    y = y.float() * gain
    z = model.hyper_analyse(y).float()
    z_bits = model.prior_bits(z + torch.rand_like(z) - 0.5)
    # Straight-through rounding for what the networks see, noise for what the rate is measured on.
    z_hat = z + (torch.round(z) - z).detach()
    mean, scale = (t.float() for t in model.hyper_synthesise(z_hat, gain, *y.shape[-2:]))
    deviation = y - mean
    symbols = torch.round(deviation).detach()
    y_bits = model.latent_bits(symbols, scale)
    noisy_bits = model.latent_bits(deviation + torch.rand_like(y) - 0.5, scale.detach())
    y_hat = mean + deviation + (symbols - deviation).detach()
    x_hat = model.synthesise(y_hat * inverse, masks).float()
    error = (((x_hat - images) ** 2) * finite).sum((1, 2, 3))
    bits = (z_bits.sum((1, 2, 3)) + y_bits.sum((1, 2, 3))).detach()
    descend = z_bits.sum((1, 2, 3)) + y_bits.sum((1, 2, 3)) + noisy_bits.sum((1, 2, 3))
    return bits, descend, error
