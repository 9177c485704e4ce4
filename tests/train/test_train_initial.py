"""A σ-VAE set to principal components: as good as those are, linear, and with their posterior."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sunzip.nn import sigma_vae
from sunzip.nn.sigma_vae import SigmaVAE, elbo
from sunzip.train import initial

NOISE = 0.2


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the paper's network a quarter as wide, and look at few frames."""
    monkeypatch.setattr(sigma_vae, "_LAYERS", tuple((f // 4, k, s) for f, k, s in sigma_vae._LAYERS))
    monkeypatch.setattr(sigma_vae, "_FEATURES", (128, 4, 4))
    for name, value in (("_PILOT", 4), ("_FEW", 16), ("_PATCHES", 2000), ("_FEWEST", 8)):
        monkeypatch.setattr(initial, name, value)


def frames_of(rank: int, lacking: tuple[int, ...] = (), seed: int = 0) -> Callable[[int], Tensor]:
    """Return what makes batches of frames: so many smooth patterns, the same in all channels, and noise."""
    y, x = np.mgrid[:128, :128] / 128
    waves = [np.cos(np.pi * (i % 3 + 1) * y + i) * np.cos(np.pi * (i // 3 + 1) * x) for i in range(rank)]
    # Dark at the rim, which the paper's network does not see to the last pixel.
    patterns = torch.tensor(np.stack(waves) * np.sin(np.pi * y) * np.sin(np.pi * x), dtype=torch.float32)

    def frames(n: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed + n)
        strength = torch.randn(16, rank, generator=rng) * torch.linspace(3, 1, rank)
        clean = torch.einsum("nr,ryx->nyx", strength, patterns) + patterns[0]
        found = clean[:, None] * torch.linspace(0.5, 1.5, 12)[:, None, None]
        found = found + NOISE * torch.randn(found.shape, generator=rng)
        found[:, list(lacking)] = 0
        return found

    return frames


def begun(frames: Callable[[int], Tensor], bottleneck: int = 6, **how: object) -> SigmaVAE:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = SigmaVAE(bottleneck, **how)  # type: ignore[arg-type]
    initial.begin(network, frames, 8, seed=1)
    return network.eval()


@torch.no_grad()
def error(network: SigmaVAE, x: Tensor) -> float:
    return float((network(x)[0] - x).square().mean())


@pytest.mark.parametrize("sigma", ["scalar", "per-channel"])
def test_it_errs_by_little_more_than_principal_components(sigma: str) -> None:
    frames = frames_of(6)
    network = begun(frames, sigma=sigma)
    # Six components hold the six patterns, so that what is left is the noise.
    assert error(network, frames(100)) < 1.3 * NOISE**2
    # A network of half as many latents, on the other hand, cannot have them all.
    assert error(begun(frames, 3, sigma=sigma), frames(100)) > 2 * NOISE**2
    assert torch.exp(network.log_sigma).mean().item() == pytest.approx(NOISE, rel=0.1)


@torch.no_grad()
def test_it_is_linear_through_all_its_relus() -> None:
    frames = frames_of(6)
    network = begun(frames)
    a, b = frames(50)[:2], frames(51)[:2]
    between = network(0.3 * a + 0.7 * b)[0]
    assert torch.allclose(between, 0.3 * network(a)[0] + 0.7 * network(b)[0], atol=2e-3)
    # Far from all frames, too: nothing is clipped.
    far = network(20 * a - 19 * b)[0]
    assert torch.allclose(far, 20 * network(a)[0] - 19 * network(b)[0], atol=5e-2)


@torch.no_grad()
def test_its_posterior_is_where_the_loss_has_its_minimum() -> None:
    frames = frames_of(6)
    network = begun(frames)
    x = torch.cat([frames(i) for i in range(8)])
    mu, logvar = network.encode(x)
    # Of the prior's variance 1, the means have what the posterior leaves.
    assert torch.allclose(mu.var(0) + logvar.exp().mean(0), torch.ones(6), atol=0.15)

    def loss(offset: float) -> float:
        sampled = mu + torch.exp((logvar + offset) / 2) * torch.randn(
            mu.shape, generator=torch.Generator().manual_seed(5)
        )
        return float(elbo(x, network.decode(sampled), mu, logvar + offset, network.log_sigma).loss.mean())

    assert loss(0.0) < min(loss(-0.7), loss(0.7))


def test_it_is_a_function_of_frames_and_seed() -> None:
    first, second = (begun(frames_of(6)).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_channels_that_are_missing_everywhere_are_left_at_nothing() -> None:
    frames = frames_of(6, lacking=(4, 9))
    network = begun(frames, sigma="per-channel")
    with torch.no_grad():
        x_hat = network(frames(100))[0]
    assert torch.isfinite(x_hat).all()
    assert x_hat[:, [4, 9]].abs().max() < 1e-2
    assert error(network, frames(100)) < 1.3 * NOISE**2


def test_filters_see_all_channels_at_one_size_and_the_field_half_as_large_again() -> None:
    """What is bright, or has little noise, would have all filters otherwise."""
    size = torch.tensor([10.0, 1.0, 0.1] * 4)[:, None, None]
    shown = 5 + size * torch.randn(40, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    weighed = (shown * initial._prominence(shown)[:, None, None]).std((0, 2, 3))
    torch.testing.assert_close(weighed, torch.tensor([1.0] * 9 + [1.5] * 3), rtol=0.05, atol=0)
