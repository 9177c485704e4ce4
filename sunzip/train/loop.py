"""The training loop of the hyperprior codec: rate + λ·distortion at random qualities until time is up."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sunzip.nn import STRIDE
from sunzip.nn.hyperprior import QUALITY_MAX, Hyperprior
from sunzip.train.data import Loader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train.

    Attributes
    ----------
    minutes
        Wall time; the learning rate follows a cosine over it.
    rate
        Peak learning rate of Adam.
    multiplier
        λ at quality 0 and at quality 100, geometric between: bits per sample against squared error in units
        of the channel's stabilised spread.
    decay
        Of the exponential moving average of weights that is kept in the end.
    seed
        Of initialisation and quantisation noise.
    """

    minutes: float = 60.0
    rate: float = 8e-4
    multiplier: tuple[float, float] = (0.05, 12.0)
    decay: float = 0.999
    seed: int = 0


def principal_components(loader: Loader, count: int, batches: int) -> tuple[Tensor, Tensor]:
    """Find the linear transform to begin with: the principal components of 16×16 blocks of all channels.

    Returns
    -------
    components
        (count, C·256) orthonormal rows, the strongest first.
    deviations
        (count,) root mean square of each component's coefficient.
    """
    second, blocks = torch.zeros(1), 0
    for n, (images, _, _) in enumerate(loader):
        if n == batches:
            break
        cut = F.pixel_unshuffle(torch.from_numpy(images), STRIDE)
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


def train(
    model: Hyperprior,
    loader: Loader,
    recipe: Recipe,
    *,
    validate: Callable[[Hyperprior, int], None] | None = None,
    save: Callable[[Hyperprior], None] | None = None,
) -> Hyperprior:
    """Train until the time is up and return the averaged model, in evaluation mode.

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.
    """
    torch.manual_seed(recipe.seed)
    log.info("recipe %s", asdict(recipe))
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    # Principal components have entries near 1/√3072: full steps would overwrite them before they are of use.
    linear = [p for n, p in model.named_parameters() if n.startswith("linear_")]
    other = [p for n, p in model.named_parameters() if not n.startswith("linear_")]
    optimiser = torch.optim.Adam([{"params": other, "share": 1.0}, {"params": linear, "share": 0.05}])
    low, high = (math.log(m) for m in recipe.multiplier)
    begin = last_save = time.monotonic()
    shown: list[tuple[float, float]] = []
    for step, (images_, masks_, finite_) in enumerate(loader):
        progress = (time.monotonic() - begin) / (60 * recipe.minutes)
        if progress >= 1:
            break
        warm = min(1.0, (step + 1) / 200)
        for group in optimiser.param_groups:
            group["lr"] = (
                group["share"] * recipe.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            )
        images, masks, finite = (torch.from_numpy(a) for a in (images_, masks_, finite_))
        images = images.contiguous(memory_format=torch.channels_last)
        quality = torch.rand(len(images)) * QUALITY_MAX
        multiplier = torch.exp(low + (high - low) * quality / QUALITY_MAX)
        samples = images[0].numel()
        with torch.autocast("cpu", torch.bfloat16):
            bits, descend, error = rate_distortion(model, images, masks, finite, quality)
        # Dividing by λ's root keeps the gradients of coarse and fine qualities of one size.
        loss = ((descend + multiplier * error) / samples / multiplier.sqrt()).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(recipe.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        counted = finite.sum((1, 2, 3)).clamp_min(1)
        shown.append((float((bits / counted).mean()), float((error.detach() / counted).mean())))
        if step % 100 == 0:
            rate, distortion = np.mean(shown[-100:], axis=0)
            log.info(
                "step %d, %.1f min: loss %.4f, %.4f bit/sample, squared error %.4f",
                step,
                progress * recipe.minutes,
                loss.item(),
                rate,
                distortion,
            )
        if validate and step % 1000 == 999:
            validate(average, step)
        if save and time.monotonic() - last_save > 300:
            save(average)
            last_save = time.monotonic()
    return average.eval()
