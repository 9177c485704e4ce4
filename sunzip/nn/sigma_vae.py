"""The paper's σ-VAE, exactly: 12 channels of 128×128 pixels through 256 to 2048 latents, and its loss."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sunzip.channels import CHANNELS
from sunzip.errors import InputError

#: Side of the images that the network takes.
SIZE = 128

#: The bottlenecks that the paper trains.
BOTTLENECKS = (256, 512, 1024, 2048)

# Table 2: filters, filter size, stride. Without padding they take 128 to 63, 30, 27, 24, 21, 19, 9, 4.
_LAYERS = (
    (64, 4, 2),
    (128, 4, 2),
    (256, 4, 1),
    (512, 4, 1),
    (512, 4, 1),
    (512, 3, 1),
    (512, 3, 2),
    (512, 3, 2),
)
_FEATURES = (512, 4, 4)

# 30 → 63 is the one stride-2 layer of the mirror where the encoder's floor has dropped a pixel.
_PADDED_LAYER = 1

# The reference implementation of the σ-VAE keeps ln σ above this, so that the loss stays bounded.
_MIN_LOG_SIGMA = -6.0

Sigma = Literal["scalar", "per-channel"]


class SigmaVAE(nn.Module):
    """The network of Table 2 with its mirror, and the learnable σ of Eq. 2.

    Eight valid convolutions with batchnorm and ReLU; a linear head each for the mean and the
    log-variance of the latents; a linear layer back; eight transposed convolutions, the last one bare.

    Parameters
    ----------
    bottleneck
        B, the number of latents; the paper's are 256, 512, 1024 and 2048.
    sigma
        ``"scalar"`` for one σ as in the paper, ``"per-channel"`` for one of each channel, so that
        the noisy magnetic channels do not set the noise level of all.

    Attributes
    ----------
    log_sigma
        () or (12,): ln σ before the soft clip of `elbo`.

    Raises
    ------
    InputError
        If the bottleneck or the kind of σ is not possible.

    References
    ----------
    Brown et al., "Learning the solar latent space: sigma-variational autoencoders for multiple
    channel solar imaging": section 2.1, Tables 1 and 2. That the convolutions are valid, that they
    and the batchnorm are affine, and where the output padding is, follows from the sizes of Table 1.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     network = SigmaVAE(256)
    >>> sum(p.numel() for p in network.parameters())
    34390669
    """

    def __init__(self, bottleneck: int, sigma: Sigma = "scalar") -> None:
        super().__init__()
        if bottleneck < 1:
            raise InputError(f"bottleneck must be at least 1, not {bottleneck}")
        if sigma not in ("scalar", "per-channel"):
            raise InputError(f"sigma must be 'scalar' or 'per-channel', not {sigma!r}")
        widths = (len(CHANNELS), *(filters for filters, _, _ in _LAYERS))
        down: list[nn.Module] = []
        for i, (filters, size, stride) in enumerate(_LAYERS):
            down += [
                nn.Conv2d(widths[i], filters, size, stride),
                nn.BatchNorm2d(filters),
                nn.ReLU(inplace=True),
            ]
        up: list[nn.Module] = []
        for i, (filters, size, stride) in reversed(list(enumerate(_LAYERS))):
            padding = int(i == _PADDED_LAYER)
            up += [nn.ConvTranspose2d(filters, widths[i], size, stride, output_padding=padding)]
            if i:
                up += [nn.BatchNorm2d(widths[i]), nn.ReLU(inplace=True)]
        features = _FEATURES[0] * _FEATURES[1] * _FEATURES[2]
        self.bottleneck = bottleneck
        self.analysis = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(features, bottleneck)
        self.log_variance = nn.Linear(features, bottleneck)
        self.synthesis = nn.Sequential(nn.Linear(bottleneck, features), nn.Unflatten(1, _FEATURES), *up)
        self.log_sigma = nn.Parameter(torch.zeros(() if sigma == "scalar" else (len(CHANNELS),)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (N, B) each, of the latents of normalised frames.

        Parameters
        ----------
        x
            (N, 12, 128, 128), without NaN: what is missing must have been filled.

        Raises
        ------
        InputError
            If the frames have another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (len(CHANNELS), SIZE, SIZE):
            wanted = f"(N, {len(CHANNELS)}, {SIZE}, {SIZE})"
            raise InputError(f"frames must have shape {wanted} for the σ-VAE, not {tuple(x.shape)}")
        features = self.analysis(x)
        # In float32 even under autocast: half the digits are coarser than narrow posteriors are wide.
        kind = "cpu" if x.is_meta else x.device.type  # no autocast knows what is of no device
        with torch.autocast(kind, enabled=False):
            features = features.float()
            return self.mean(features), self.log_variance(features)

    def decode(self, z: Tensor) -> Tensor:
        """Return normalised frames (N, 12, 128, 128) of latents (N, B).

        Raises
        ------
        InputError
            If the latents have another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.bottleneck:
            raise InputError(f"latents must have shape (N, {self.bottleneck}), not {tuple(z.shape)}")
        frames: Tensor = self.synthesis(z)
        return frames

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoded frames, and mean and log-variance of their latents.

        In training the latents are drawn from the posterior, with `generator` if given; in
        evaluation they are its mean.
        """
        mu, logvar = self.encode(x)
        z = mu
        if self.training:
            noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
            z = mu + torch.exp(0.5 * logvar) * noise
        return self.decode(z), mu, logvar


class Elbo(NamedTuple):
    """The loss with its parts; each but `log_sigma` is (N,), one value per frame.

    Attributes
    ----------
    loss
        Summed over pixels and latents, in nats; the loss of a batch is its mean.
    kl
        Divergence of the posterior from N(0, I), in nats.
    mse
        Mean squared error of the frame's channels that are present; 0 if none is.
    log_sigma
        () or (C,): ln σ as used, after the soft clip; 0 in mode ``"beta"``.
    """

    loss: Tensor
    kl: Tensor
    mse: Tensor
    log_sigma: Tensor


def elbo(
    x: Tensor,
    x_hat: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_sigma: Tensor | None = None,
    mode: Literal["scalar", "per-channel", "optimal", "beta"] = "scalar",
    *,
    mask: Tensor | None = None,
    beta: float = 1.0,
) -> Elbo:
    r"""Return the loss of Eq. 2 (or, in mode ``"beta"``, Eq. 1) per frame.

    With D the number of values of a frame that are present:

    .. math::
        L &= \mathrm{KL} + \frac{D}{2\sigma^2}\mathrm{MSE} + D \ln\sigma \quad (2) \\
        L &= \beta\,\mathrm{KL} + \frac{D}{2}\mathrm{MSE} \quad (1)

    Both parts are sums: averaging the error over pixels while summing KL over latents would drown the
    frames in KL, and the posterior would collapse. ln σ is soft-clipped as −6 + softplus(ln σ + 6).

    Parameters
    ----------
    x, x_hat
        (N, C, Y, X), normalised and decoded frames. `x` may be NaN where the mask is False.
    mu, logvar
        (N, B), of the posterior.
    log_sigma
        () in mode ``"scalar"``, (C,) in mode ``"per-channel"``; not used in the others.
    mode
        ``"scalar"`` is the paper's; ``"per-channel"`` has a σ for each channel; ``"optimal"`` sets
        σ² to the batch's MSE, where Eq. 2 has its minimum; ``"beta"`` is Eq. 1.
    mask
        (N, C) bool, which channels are present, or (N, C, Y, X) bool, which pixels are; all if absent. The
        others neither cost nor get gradient.
    beta
        Factor of KL in mode ``"beta"``.

    Raises
    ------
    InputError
        If `mode` is unknown or shapes do not agree.

    References
    ----------
    Eq. 1 and 2 of Brown et al.; Rybkin, Daniilidis and Levine, "Simple and effective VAE training
    with calibrated decoders", for the optimal σ and the soft clip.
    """
    n, c = x.shape[:2]
    if x_hat.shape != x.shape:
        raise InputError(f"frames have shape {tuple(x.shape)}, decoded ones {tuple(x_hat.shape)}")
    present = torch.ones(n, c, dtype=torch.bool, device=x.device) if mask is None else mask
    if present.shape not in ((n, c), x.shape):
        raise InputError(f"mask must have shape {(n, c)} or {tuple(x.shape)}, not {tuple(present.shape)}")
    pixels = present if present.ndim == 4 else present[:, :, None, None]
    # `where` rather than a product: 0 times the NaN of a missing channel would be NaN.
    error = torch.where(pixels, x - x_hat, 0.0)
    squares = error.square().sum((2, 3))
    size = pixels.expand_as(x).sum((2, 3))
    mse = squares.sum(1) / size.sum(1).clamp(min=1)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)

    if mode == "beta":
        return Elbo(beta * kl + 0.5 * squares.sum(1), kl, mse, x.new_zeros(()))
    if mode == "optimal":
        # At the optimum the loss is flat in σ, so that its gradient may be left out.
        raw = 0.5 * (squares.detach().sum() / size.sum().clamp(min=1)).log()
    elif mode in ("scalar", "per-channel"):
        shape = () if mode == "scalar" else (c,)
        if log_sigma is None or log_sigma.shape != shape:
            got = None if log_sigma is None else tuple(log_sigma.shape)
            raise InputError(f"log_sigma must have shape {shape} in mode {mode!r}, not {got}")
        raw = log_sigma
    else:
        raise InputError(f"mode must be scalar, per-channel, optimal or beta, not {mode!r}")
    used = _MIN_LOG_SIGMA + F.softplus(raw - _MIN_LOG_SIGMA)
    likelihood = (0.5 * squares * torch.exp(-2 * used) + size * used).sum(1)
    return Elbo(kl + likelihood, kl, mse, used)
