"""The paper's network: its sizes against Table 1, and its loss against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sunzip.errors import InputError
from sunzip.nn.sigma_vae import BOTTLENECKS, Elbo, SigmaVAE, elbo

COUNTS = {256: 34_390_669, 512: 40_682_637, 1024: 53_266_573, 2048: 78_434_445}
MIB = {256: 131.23, 512: 155.23, 1024: 203.24, 2048: 299.25}


def on_meta(bottleneck: int, sigma: str = "scalar") -> SigmaVAE:
    with torch.device("meta"):
        return SigmaVAE(bottleneck, sigma)


@pytest.fixture(scope="module")
def network() -> SigmaVAE:
    torch.manual_seed(0)
    return SigmaVAE(256)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_size_is_that_of_table_1(bottleneck: int) -> None:
    network = on_meta(bottleneck)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[bottleneck]
    # The counters `num_batches_tracked` are int64 and 120 bytes in all: too few to show.
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    assert round(size / 2**20, 2) == MIB[bottleneck]
    assert all(t.dtype == torch.float32 for t in network.parameters())


def test_per_channel_sigma_has_eleven_more_parameters() -> None:
    network = on_meta(256, "per-channel")
    assert network.log_sigma.shape == (12,)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[256] + 11


def test_every_layer_has_the_size_that_the_paper_implies() -> None:
    network = on_meta(512)
    sides: dict[str, list[int]] = {"analysis": [], "synthesis": []}
    for part, seen in sides.items():
        for layer in getattr(network, part):
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(tuple(out.shape[1:])))
    x_hat, mu, logvar = network(torch.empty(3, 12, 128, 128, device="meta"))
    assert mu.shape == logvar.shape == (3, 512)
    assert x_hat.shape == (3, 12, 128, 128)
    down = [(64, 63), (128, 30), (256, 27), (512, 24), (512, 21), (512, 19), (512, 9), (512, 4)]
    up = [(512, 9), (512, 19), (512, 21), (512, 24), (256, 27), (128, 30), (64, 63), (12, 128)]
    assert sides["analysis"] == [(c, n, n) for c, n in down]
    assert sides["synthesis"] == [(c, n, n) for c, n in up]
    paddings = [m.output_padding for m in network.synthesis if isinstance(m, torch.nn.ConvTranspose2d)]
    assert sum(p == (1, 1) for p in paddings) == 1
    assert sum(p == (0, 0) for p in paddings) == 7
    # No batchnorm straight after the linear layer, and nothing after the last convolution.
    assert isinstance(network.synthesis[2], torch.nn.ConvTranspose2d)
    assert isinstance(network.synthesis[-1], torch.nn.ConvTranspose2d)


def test_batchnorm_and_relu_follow_every_convolution() -> None:
    network = on_meta(256)
    kinds = [type(m).__name__ for m in network.analysis]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 8 + ["Flatten"]
    kinds = [type(m).__name__ for m in network.synthesis]
    assert kinds == [
        "Linear",
        "Unflatten",
        *["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 7,
        "ConvTranspose2d",
    ]


def test_evaluation_is_deterministic_and_training_is_not(network: SigmaVAE) -> None:
    x = torch.randn(2, 12, 128, 128, generator=torch.Generator().manual_seed(1))
    network.eval()
    with torch.no_grad():
        first, mu, _ = network(x)
        second, _, _ = network(x)
        assert torch.equal(first, second)
        assert torch.equal(first, network.decode(mu))
        assert torch.equal(mu, network.encode(x)[0])
        network.train()
        drawn = [network(x, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_gradient_reaches_every_parameter(network: SigmaVAE) -> None:
    network.train()
    network.zero_grad()
    x = torch.randn(2, 12, 128, 128, generator=torch.Generator().manual_seed(2))
    x_hat, mu, logvar = network(x, torch.Generator().manual_seed(0))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 3] = mask[1, 9:] = False
    x_hat.retain_grad()
    loss = elbo(x, x_hat, mu, logvar, network.log_sigma, mask=mask).loss.mean()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias before batchnorm is subtracted again: its gradient is rounding noise only.
        if name.endswith("weight") or name == "log_sigma":
            assert parameter.grad.abs().max() > 0, name
    assert (x_hat.grad[0, 3] == 0).all()
    assert (x_hat.grad[1, 9:] == 0).all()
    assert (x_hat.grad[0, 4] != 0).any()


@pytest.mark.parametrize("shape", [(1, 12, 64, 64), (1, 11, 128, 128), (12, 128, 128)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="128"):
        on_meta(256).encode(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("shape", [(1, 255), (256,)])
def test_other_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="256"):
        on_meta(256).decode(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("arguments", [(0, "scalar"), (256, "each")])
def test_impossible_networks_are_refused(arguments: tuple[int, str]) -> None:
    with pytest.raises(InputError):
        SigmaVAE(*arguments)


class TestLoss:
    """Two frames of two channels of 1×2 pixels, three latents, in float64."""

    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[1.0, -1.0]]]], dtype=torch.float64)
    x_hat = torch.tensor([[[[1.5, 2.0]], [[3.0, 2.0]]], [[[0.0, 1.0]], [[1.0, 1.0]]]], dtype=torch.float64)
    mu = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    logvar = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    # KL of N(1,1), N(0,2), N(-2,1) from N(0,1): ½, ½(2 − 1 − ln 2), 2.
    kl = (0.5 + 0.5 * (1 - math.log(2)) + 2, 0.0)
    # Sums of squares by frame and channel.
    squares = ((0.25, 4.0), (1.0, 4.0))

    def call(self, *args: object, **kwargs: object) -> Elbo:
        return elbo(self.x, self.x_hat, self.mu, self.logvar, *args, **kwargs)

    @staticmethod
    def clipped(log_sigma: float) -> float:
        return -6 + math.log1p(math.exp(log_sigma + 6))

    @pytest.mark.parametrize("raw", [0.3, -1.0, -9.0])
    def test_scalar(self, raw: float) -> None:
        got = self.call(torch.tensor(raw, dtype=torch.float64))
        s = self.clipped(raw)
        for i in range(2):
            mse = sum(self.squares[i]) / 4
            assert got.mse[i] == pytest.approx(mse)
            assert got.kl[i] == pytest.approx(self.kl[i])
            assert got.loss[i] == pytest.approx(self.kl[i] + 4 / (2 * math.exp(2 * s)) * mse + 4 * s)
        assert got.log_sigma == pytest.approx(s)

    def test_per_channel(self) -> None:
        raw = (0.5, -0.5)
        got = self.call(torch.tensor(raw, dtype=torch.float64), "per-channel")
        for i in range(2):
            expected = self.kl[i]
            for c in range(2):
                s = self.clipped(raw[c])
                expected += self.squares[i][c] / (2 * math.exp(2 * s)) + 2 * s
            assert got.loss[i] == pytest.approx(expected)

    def test_equal_sigmas_per_channel_are_the_scalar(self) -> None:
        one = torch.tensor(0.7, dtype=torch.float64)
        assert torch.allclose(self.call(one).loss, self.call(one.repeat(2), "per-channel").loss)

    def test_beta(self) -> None:
        got = self.call(mode="beta", beta=3.0)
        for i in range(2):
            assert got.loss[i] == pytest.approx(3 * self.kl[i] + sum(self.squares[i]) / 2)

    def test_optimal_sigma_is_the_root_of_the_mse_and_minimises_the_loss(self) -> None:
        got = self.call(mode="optimal")
        mse = (0.25 + 4 + 1 + 4) / 8
        assert got.log_sigma == pytest.approx(self.clipped(0.5 * math.log(mse)))
        assert math.exp(2 * got.log_sigma) == pytest.approx(mse, rel=0.01)
        # The minimum over σ, found by a scan that knows nothing of the formula.
        scan = torch.linspace(-1, 1, 20001, dtype=torch.float64)
        losses = [self.call(raw).loss.mean() for raw in scan[::100]]
        best = scan[::100][torch.stack(losses).argmin()]
        assert math.exp(2 * self.clipped(float(best))) == pytest.approx(mse, rel=0.02)
        assert got.loss.mean() <= min(losses) + 1e-4

    def test_gradient_of_the_parameter_vanishes_at_the_optimum(self) -> None:
        mse = (0.25 + 4 + 1 + 4) / 8
        # Inverse of the soft clip.
        raw = math.log(math.expm1(0.5 * math.log(mse) + 6)) - 6
        log_sigma = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
        self.call(log_sigma).loss.mean().backward()
        assert log_sigma.grad == pytest.approx(0, abs=1e-9)

    def test_perfect_reconstruction_is_bounded_by_the_soft_clip(self) -> None:
        x = self.x.clone().requires_grad_()
        got = elbo(self.x, x, self.mu, self.logvar, mode="optimal")
        assert got.log_sigma == -6
        assert got.loss[1].item() == pytest.approx(4 * -6)
        got.loss.mean().backward()
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize("mode", ["scalar", "per-channel", "optimal", "beta"])
    def test_missing_channels_do_not_count(self, mode: str) -> None:
        x = self.x.clone()
        x[0, 1] = x[1, :] = math.nan
        x_hat = self.x_hat.clone().requires_grad_()
        mask = torch.tensor([[True, False], [False, False]])
        log_sigma = torch.full((2,) if mode == "per-channel" else (), 0.2, dtype=torch.float64)
        got = elbo(x, x_hat, self.mu, self.logvar, log_sigma, mode, mask=mask)
        raw = log_sigma[:1] if mode == "per-channel" else log_sigma
        alone = elbo(self.x[:1, :1], self.x_hat[:1, :1], self.mu[:1], self.logvar[:1], raw, mode)
        assert got.loss[0].item() == pytest.approx(alone.loss[0].item())
        assert got.mse[0].item() == pytest.approx(0.125)
        assert got.loss[1] == got.kl[1] == 0
        assert got.mse[1] == 0
        got.loss.sum().backward()
        assert (x_hat.grad[~mask] == 0).all()
        assert x_hat.grad[0, 0, 0, 0] > 0

    def test_summed_not_averaged(self) -> None:
        """Twice the pixels weigh twice against the same KL."""
        twice = elbo(
            self.x.repeat(1, 1, 1, 2), self.x_hat.repeat(1, 1, 1, 2), self.mu, self.logvar, torch.zeros(())
        )
        once = self.call(torch.zeros(()))
        assert torch.allclose(twice.loss - twice.kl, 2 * (once.loss - once.kl))
        assert torch.equal(twice.kl, once.kl)

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((), {}),
            ((torch.zeros(2),), {}),
            ((torch.zeros(()), "per-channel"), {}),
            ((torch.zeros(()), "best"), {}),
            ((torch.zeros(()),), {"mask": torch.ones(2, 3, dtype=torch.bool)}),
        ],
    )
    def test_wrong_arguments_are_one_line(self, args: tuple, kwargs: dict) -> None:
        with pytest.raises(InputError, match=r"^[^\n]+$"):
            self.call(*args, **kwargs)

    def test_decoded_frames_of_another_shape_are_refused(self) -> None:
        with pytest.raises(InputError):
            elbo(self.x, self.x_hat[:, :1], self.mu, self.logvar, torch.zeros(()))
