"""The context network while it is trained: what it sees of a wavelet band's surroundings, what it foretells.

Coefficients are coded from coarse to fine. At each level the network sees, at the resolution of the bands to
be coded, what is known already: the picture so far, the same bands of other channels, and those of the frame
before. It foretells of every coefficient a mean and a scale; and once a level's symbols are known, where in
its cell each coefficient most likely lies. All that it sees or hands on are integers of 8 bits, so that
`sunzip.nn.exact` can run it exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sunzip.nn.exact import ACTIVATION_MAX
from sunzip.nn.planes import (
    COUNT_NOW,
    COUNT_TIME,
    CROSS,
    FLAGS,
    FURTHEST,
    GATES,
    LEVELS,
    LOG_RATIO,
    LOG_SMALLEST,
    MEANS,
    SCALES,
    TRUST_MOST,
    TRUST_UNIT,
    UNCERTAIN,
    WIDE,
    WIDTHS,
    decoded_planes,
    network_of,
)

#: Planes are sixteenths, activations thirty-seconds of what the float network computes with.
PLANE_UNIT, ACTIVATION_UNIT = 1 / 16, 1 / 32

#: The scale's number where the network puts out 0.
SCALE_OFFSET = 20.0

#: Symbols in training are those of cells [|q| − OFFSET, |q| + 1 − OFFSET]: about what an encoder chooses.
#: Those that count from a mean are nearly all 0, and another is chosen only for more.
OFFSET, OFFSET_CENTRED = 0.4, 0.25


class Foretold(NamedTuple):
    """Of every coefficient, in units of its step: where its distribution lies and how wide it is."""

    mean: Tensor
    log_scale: Tensor


class Coded(NamedTuple):
    """What coding a level comes to: bits of every coefficient, and what is decoded of it, in steps."""

    bits: Tensor
    decoded: Tensor


def _activate(x: Tensor) -> Tensor:
    """Clip and round as the integers will be; gradients pass through the rounding."""
    y = x.clamp(0, ACTIVATION_MAX * ACTIVATION_UNIT)
    return y + ((y / ACTIVATION_UNIT).round() * ACTIVATION_UNIT - y).detach()


def _gate(x: Tensor) -> Tensor:
    """Clip to a share in 16ths; gradients pass through the rounding."""
    y = x.clamp(0, 1)
    return y + ((y * 16).round() / 16 - y).detach()


class LevelNet(nn.Module):
    """The network of one level of the pyramid, for any number of channels, each by itself.

    Parameters
    ----------
    width
        Channels of its hidden layers.
    below
        Width of the next coarser level's network, whose features it is given.
    """

    def __init__(self, width: int, below: int) -> None:
        super().__init__()
        self.now = nn.Conv2d(COUNT_NOW, width, 3, padding=1)
        self.time = nn.Conv2d(COUNT_TIME, width, 3, padding=1, bias=False)
        self.carry = nn.Conv2d(below, width, 1, bias=False)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 1)
        self.first_out = nn.Conv2d(width, 12, 1)
        self.beside = nn.Conv2d(COUNT_TIME, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 1)
        self.second_out = nn.Conv2d(width, 12, 1)
        self.after = nn.Conv2d(COUNT_TIME, width, 3, padding=1, bias=False)
        self.settle = nn.Conv2d(width, width, 1)
        self.settle_out = nn.Conv2d(width, 9, 1)
        for out in (self.first_out, self.second_out, self.settle_out):
            nn.init.normal_(out.weight, std=0.02)
            assert out.bias is not None
            nn.init.zeros_(out.bias)
            with torch.no_grad():
                out.bias[CROSS] = 0.5
        with torch.no_grad():
            self.time.weight *= 0.3
            self.deep.weight[:, :, 1, 1] += torch.eye(width)


class Context(nn.Module):
    """All levels' networks, and what tells channel, level and step apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(LevelNet(width, WIDTHS[max(i - 1, 0)]) for i, width in enumerate(WIDTHS))
        self.channel = nn.Embedding(channels, 16)
        self.depth = nn.Embedding(LEVELS, 8)
        last = nn.Linear(64, 4 * max(WIDTHS))
        self.condition = nn.Sequential(nn.Linear(16 + 8 + 3, 64), nn.ReLU(), last)
        self.flags = nn.Parameter(torch.zeros(LEVELS, FLAGS, max(WIDTHS)))
        with torch.no_grad():
            last.weight *= 0.3

    def biases(self, channels: Tensor, level: int, log_step: Tensor, width: int) -> Tensor:
        """Return (4, C, width) what channel, level and ln of the step (C,) add in four places."""
        x = (log_step - 4.5) / 2
        known = [self.channel(channels), self.depth.weight[level].expand(len(channels), -1)]
        out = self.condition(torch.cat([*known, torch.stack([x, x * x, torch.exp(-x)], 1)], 1))
        added: Tensor = out.view(len(channels), 4, -1).transpose(0, 1)[..., :width]
        return added


def foretell(
    model: Context,
    channels: Tensor,
    level: int,
    log_step: Tensor,
    flags: Tensor,
    planes: Tensor,
    time: Tensor | None,
    reference: Tensor | None,
    cross: Tensor,
    values: Tensor,
    shown: Tensor,
    carry: Tensor | None,
) -> tuple[Coded, Tensor]:
    """Run one level whose coefficients are known, as in training.

    Parameters
    ----------
    channels, log_step
        (C,)
    flags
        (C, FLAGS) which of two references and of other frames are there, and which channels are lazy.
    planes
        (C, COUNT_NOW, h, w) integers.
    time, reference
        (C, COUNT_TIME, h, w) integers and (C, 3, h, w) in steps, of other frames; or None.
    cross
        (C, 3, h, w) in steps, what other channels foretell.
    values
        (C, 3, h, w) in steps, to be coded.
    shown
        (C, 1, h, w) 1 in tiles that are coded, 0 where all is as others tell.
    carry
        (C, width, h/2, w/2) features of the next coarser level, or None.

    Returns
    -------
    What it comes to, (C, 3, h, w); and the features for the next finer level, 0 in tiles that are not coded.
    """
    net = model.levels[network_of(level)]
    assert isinstance(net, LevelNet)
    width = net.now.out_channels
    bias = model.biases(channels, level - 1, log_step, width)
    flagged = flags @ model.flags[level - 1, :, :width]
    h = net.now(planes * PLANE_UNIT) + (bias[0] + flagged)[:, :, None, None]
    if time is not None:
        h = h + net.time(time * PLANE_UNIT)
    if carry is not None:
        h = h + F.interpolate(net.carry(carry), scale_factor=2)
    h = _activate(h)
    h = _activate(net.deep(h) + bias[1][:, :, None, None])
    first = net.first_out(_activate(net.first(h)))
    height, wide = values.shape[-2:]
    places = [torch.arange(n, device=values.device) for n in (height, wide)]
    board = (places[0][:, None] + places[1]) % 2 == 0
    mean = _mean(first.float(), cross, reference, values, board)
    coded, silent = shown > 0, cross if reference is None else reference
    begin = torch.where(coded, _rounded(values, mean.detach(), reference is not None), silent)
    beside = net.beside(decoded_planes(torch.where(board, begin, 0)) * PLANE_UNIT)
    second = net.second_out(_activate(net.second(h) + beside + bias[2][:, :, None, None]))
    mean = torch.where(board, mean, _mean(second.float(), cross, reference, values, ~board))
    log_scale = _log_scale(torch.where(board, first, second).float())
    rounded = _rounded(values, mean.detach(), reference is not None)
    if reference is None:
        coding = laplace_bits(rounded, Foretold(mean, log_scale))
    else:
        # Symbols count from the mean, and what is decoded moves with it.
        symbols, moving = rounded - mean.detach(), mean - mean.detach()
        coding = laplace_bits(symbols, Foretold(moving, log_scale), OFFSET_CENTRED)
        rounded = rounded + moving
    rounded = torch.where(coded, rounded, silent)
    after = net.after(decoded_planes(rounded.detach()) * PLANE_UNIT)
    settled = net.settle_out(_activate(net.settle(h) + after + bias[3][:, :, None, None])).float()
    apart = settled[:, MEANS] + settled[:, CROSS].clamp(0, 1) * (cross - rounded)
    if reference is not None:
        apart = apart + settled[:, GATES].clamp(0, 1) * (reference - rounded)
    return Coded(coding * shown, rounded + apart.clamp(-FURTHEST, FURTHEST) * shown), h * shown


def _log_scale(out: Tensor) -> Tensor:
    """Return ln of the scales that outputs foretell; gradients pass through the rounding."""
    scale = 4 * out[:, WIDE] + SCALE_OFFSET
    scale = scale.clamp(0, SCALES - 1)
    scale = scale + (scale.round() - scale).detach()
    return LOG_SMALLEST + LOG_RATIO * scale


def _mean(out: Tensor, cross: Tensor, reference: Tensor | None, values: Tensor, here: Tensor) -> Tensor:
    """Return the means of values at the places `here`, in eighths; gradients pass through the rounding.

    Where other frames are known, an encoder tells how far they are moved from what the network foretells
    towards what these tell as it is.
    """
    mean = out[:, MEANS] + _gate(out[:, CROSS]) * cross
    if reference is not None:
        mean = mean + _gate(out[:, GATES]) * reference
        with torch.no_grad():
            certain = here / (2 * (2 * _log_scale(out)).exp() + UNCERTAIN)
            way = reference - mean
            size = (certain * way * way).sum((1, 2, 3))
            share = (certain * way * (values - mean)).sum((1, 2, 3)) / (size + 1e-6)
            share = (share / TRUST_UNIT).round().clamp(0, TRUST_MOST)
            share = (share * TRUST_UNIT)[:, None, None, None]
        mean = mean + share * (reference - mean)
    return mean + ((mean * 8).round() / 8 - mean).detach()


def _rounded(values: Tensor, mean: Tensor, centred: bool) -> Tensor:
    """Return what symbols tell of values, without gradient: symbols count from 0, or from the mean."""
    apart, offset = (values - mean, OFFSET_CENTRED) if centred else (values, OFFSET)
    symbols = torch.copysign((apart.abs() + offset).floor(), apart)
    return symbols + mean if centred else symbols


def laplace_bits(symbols: Tensor, foretold: Foretold, offset: float = OFFSET) -> Tensor:
    """Return the bits of symbols whose cells are [|q| − offset, |q| + 1 − offset], the middle one wider."""
    magnitude = symbols.abs()
    half = torch.where(magnitude == 0, 1 - offset, 0.5)
    centre = torch.where(magnitude == 0, 0.0, symbols.sign() * (magnitude + 0.5 - offset))
    a = (centre - foretold.mean).abs()
    b = foretold.log_scale.exp()
    inside = 1 - torch.exp(-half / b) * torch.cosh(torch.minimum(a, half) / b)
    outside = -(a - half).clamp_min(0) / b + torch.log(0.5 * (1 - torch.exp(-2 * half / b)) + 1e-30)
    return -torch.where(a < half, torch.log(inside.clamp_min(1e-7)), outside.clamp_min(-30)) / math.log(2)
