"""The default learned codec: convolutional transforms over all 12 channels and a mean-scale hyperprior.

After Ballé et al. 2018 and Minnen et al. 2018 (hyperprior), with one network for all rates through learned
gains (Cui et al. 2021). A presence mask tells the network which channels a frame has. Beside each nonlinear
transform runs a linear one over 16×16 blocks, which begins as the principal components of the data, so that
training starts from a transform codec instead of from nothing. The hyper-synthesis is a plain chain of
convolutions, so that it can be exported to `sunzip.nn.integer` and run exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sunzip.nn import HYPER_STRIDE, SCALES, STRIDE
from sunzip.nn.integer import ACTIVATION_BITS, IntegerNet, quantise_layer

#: The standard deviations are SCALES geometric steps over this range, in units of the quantiser step.
SCALE_RANGE = (0.06, 256.0)
_LOG_STEP = math.log(SCALE_RANGE[1] / SCALE_RANGE[0]) / (SCALES - 1)

#: Training draws qualities from 0 to 100; gains are learned at these anchors and interpolated between them.
QUALITY_MAX = 100
_ANCHORS = 6

#: The user's knob, also 0 to 100, reaches this much further: training spends no time where rounding hardly
#: matters any more, but finer steps follow from the gains alone.
REACH = 1.4

#: Natural logarithms of the gains at quality 0 and 100 that training begins with.
LOG_GAINS = (-2.1, 0.9)


def scale_table() -> list[float]:
    """Return the SCALES standard deviations, in units of the quantiser step."""
    return [SCALE_RANGE[0] * math.exp(_LOG_STEP * i) for i in range(SCALES)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return y


class Hyperprior(nn.Module):
    """Analysis and synthesis transforms, hyper-transforms, gains and the hyper-latents' prior.

    Parameters
    ----------
    channels
        Image channels C.
    wide, deep
        Feature widths at 1/4 and at 1/8 of the image size.
    latents
        Latent channels M at 1/16.
    hyper
        Hyper-latent channels at 1/64.
    hyper_wide
        Feature width of the hyper-transforms; a multiple of 3.
    """

    def __init__(
        self,
        channels: int = 12,
        wide: int = 96,
        deep: int = 128,
        latents: int = 128,
        hyper: int = 32,
        hyper_wide: int = 96,
    ) -> None:
        super().__init__()
        self.shape = {
            "channels": channels,
            "wide": wide,
            "deep": deep,
            "latents": latents,
            "hyper": hyper,
            "hyper_wide": hyper_wide,
        }
        # The mask enters as a bias after the first layers: as constant planes would, without their cost.
        self.mask_in = nn.Linear(channels, wide)
        self.mask_out = nn.Linear(channels, deep)
        block = channels * STRIDE**2
        self.linear_analysis = nn.Conv2d(block, latents, 1, bias=False)
        self.linear_synthesis = nn.Conv2d(latents, block, 1, bias=False)
        self.analysis_stem = nn.Conv2d(channels * 16, wide, 3, padding=1)
        self.analysis = nn.Sequential(
            _Residual(wide),
            nn.ReLU(),
            nn.Conv2d(wide, deep, 5, stride=2, padding=2),
            _Residual(deep),
            nn.ReLU(),
            nn.Conv2d(deep, latents, 5, stride=2, padding=2),
        )
        self.synthesis_stem = nn.Sequential(nn.Conv2d(latents, 4 * deep, 3, padding=1), nn.PixelShuffle(2))
        self.synthesis = nn.Sequential(
            _Residual(deep),
            nn.ReLU(),
            nn.Conv2d(deep, 4 * wide, 3, padding=1),
            nn.PixelShuffle(2),
            _Residual(wide),
            _Residual(wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels * 16, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(latents, hyper_wide, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hyper_wide, hyper_wide, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(hyper_wide, hyper, 5, stride=2, padding=2),
        )
        third = hyper_wide // 3
        self.hyper_synthesis = nn.ModuleList(
            [
                nn.Conv2d(hyper, 4 * 2 * third, 3, padding=1),
                nn.Conv2d(2 * third, 4 * 4 * third, 3, padding=1),
                nn.Conv2d(4 * third, 2 * latents, 1),
            ]
        )
        self.hyper_shuffles: Sequence[int] = (2, 2, 1)
        self.log_gain = nn.Parameter(torch.linspace(*LOG_GAINS, _ANCHORS)[:, None].repeat(1, latents))
        self.log_inverse_gain = nn.Parameter(-self.log_gain.detach().clone())
        # Three logistics a channel: enough for the skewed, peaked hyper-latents and cheap to tabulate.
        self.prior_mean = nn.Parameter(torch.linspace(-2, 2, 3).repeat(hyper, 1))
        self.prior_log_scale = nn.Parameter(torch.zeros(hyper, 3))
        self.prior_logit = nn.Parameter(torch.zeros(hyper, 3))

    @torch.no_grad()
    def begin_as(self, components: Tensor, deviations: Tensor) -> None:
        """Set the linear transforms to principal components and silence the nonlinear ones.

        Parameters
        ----------
        components
            (M, C·256) orthonormal rows over pixel-unshuffled 16×16 blocks.
        deviations
            (M,) standard deviation of each component's coefficient.
        """
        self.linear_analysis.weight.copy_(components[:, :, None, None])
        self.linear_synthesis.weight.copy_(components.T[:, :, None, None])
        for layer in (self.analysis[-1], self.synthesis[-2], self.hyper_synthesis[-1]):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            layer.weight.mul_(0.01)
            layer.bias.zero_()
        last = self.hyper_synthesis[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.bias[len(deviations) :] = torch.log(deviations / SCALE_RANGE[0]) / _LOG_STEP

    def analyse(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, C, Y, X) stabilised images, 0 where missing, and (N, C) presence to (N, M, Y/16, X/16)."""
        y = self.analysis_stem(F.pixel_unshuffle(x, 4)) + self.mask_in(mask)[:, :, None, None]
        found: Tensor = self.analysis(y) + self.linear_analysis(F.pixel_unshuffle(x, STRIDE))
        return found

    def synthesise(self, y: Tensor, mask: Tensor) -> Tensor:
        """Map (N, M, h, w) dequantised latents and (N, C) presence back to (N, C, 16h, 16w)."""
        x = self.synthesis_stem(y) + self.mask_out(mask)[:, :, None, None]
        image: Tensor = self.synthesis(x) + F.pixel_shuffle(self.linear_synthesis(y), STRIDE)
        return image

    def gains(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, M, 1, 1) gains and inverse gains for (N,) qualities between 0 and QUALITY_MAX."""
        position = quality.float() / QUALITY_MAX * (_ANCHORS - 1)
        low = position.floor().clamp(0, _ANCHORS - 2).long()
        share = (position - low)[:, None]
        gain, inverse = (
            torch.exp(table[low] * (1 - share) + table[low + 1] * share)[:, :, None, None]
            for table in (self.log_gain, self.log_inverse_gain)
        )
        return gain, inverse

    def hyper_analyse(self, y: Tensor) -> Tensor:
        """Map scaled latents to (N, hyper, ceil(h/4), ceil(w/4)) real-valued hyper-latents."""
        h, w = y.shape[-2:]
        padded = F.pad(y, (0, -w % HYPER_STRIDE, 0, -h % HYPER_STRIDE))
        return self.hyper_analysis(padded)  # type: ignore[no-any-return]

    def hyper_synthesise(self, z: Tensor, gain: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Return mean and fractional scale index, each (N, M, h, w); the exported network's float twin."""
        last = len(self.hyper_synthesis) - 1
        for n, (layer, shuffle) in enumerate(zip(self.hyper_synthesis, self.hyper_shuffles, strict=True)):
            z = layer(z)
            if n < last:
                z = F.relu(z)
            if shuffle > 1:
                z = F.pixel_shuffle(z, shuffle)
        mean, scale = z[..., :h, :w].chunk(2, dim=1)
        # A gain moves every scale by as many table steps: the network need not learn that.
        return mean, scale + torch.log(gain) / _LOG_STEP

    def prior_bits(self, z: Tensor) -> Tensor:
        """Return the code length in bits of each hyper-latent: −log2 of its unit interval's probability."""
        c = (slice(None), slice(None), None, None)
        total = torch.zeros_like(z)
        weight = self.prior_logit.softmax(1)
        for k in range(3):
            scale = torch.exp(-self.prior_log_scale[:, k])[c[1:]]
            centred = torch.abs(z - self.prior_mean[:, k][c[1:]])
            # The symmetric tail keeps the difference of two sigmoids away from 1 − 1.
            p = torch.sigmoid((0.5 - centred) * scale) - torch.sigmoid((-0.5 - centred) * scale)
            total = total + weight[:, k][c[1:]] * p
        return -torch.log2(total.clamp_min(1e-9))

    @staticmethod
    def latent_bits(deviation: Tensor, scale_index: Tensor) -> Tensor:
        """Return the code length in bits of latents at a distance from their mean under the scale tables."""
        sigma = SCALE_RANGE[0] * torch.exp(_LOG_STEP * scale_index.clamp(0, SCALES - 1))
        centred = torch.abs(deviation)
        p = _normal_cdf((0.5 - centred) / sigma) - _normal_cdf((-0.5 - centred) / sigma)
        return -torch.log2(p.clamp_min(1e-9))

    def prior_probabilities(self, limit: int) -> Tensor:
        """Return (hyper, 2·limit + 1) probabilities of the integers −limit … limit."""
        symbols = torch.arange(-limit, limit + 1, dtype=torch.float32)
        hyper = self.prior_mean.shape[0]
        z = symbols.expand(1, hyper, 1, -1)
        return torch.exp2(-self.prior_bits(z))[0, :, 0]

    def export_hyper_synthesis(self) -> IntegerNet:
        """Return the hyper-synthesis as an exact integer network.

        Its outputs are mean and scale index at gain 1, in that order along the channel axis.
        """
        layers = []
        last = len(self.hyper_synthesis) - 1
        for n, (layer, shuffle) in enumerate(zip(self.hyper_synthesis, self.hyper_shuffles, strict=True)):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            layers.append(quantise_layer(weight, bias, shuffle=shuffle, relu=n < last))
        return IntegerNet(layers)

    @torch.no_grad()
    def export_gains(self) -> dict[str, Tensor]:
        """Tabulate what the quality decides, so that decoding computes no exponential.

        Returns
        -------
        dict
            (101, M) each: ``gain`` and ``inverse`` float32; ``index_offset`` int32, how far the
            gain moves the scale indexes, in the unit of the integer network's outputs.
        """
        knob = torch.arange(101) * REACH
        gain, inverse = (g[:, :, 0, 0].contiguous() for g in self.gains(knob))
        offset = torch.round(torch.log(gain) / _LOG_STEP * 2**ACTIVATION_BITS).int()
        return {"gain": gain, "inverse": inverse, "index_offset": offset}


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * (-1 / math.sqrt(2)))
