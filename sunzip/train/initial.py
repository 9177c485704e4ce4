"""Where the σ-VAE's training begins: at the principal components of its frames, in closed form.

From random weights the network needs many hours of a GPU to become as good as principal components. It can be
given those, as it is: a feature that two filters hold, one its positive and one its negative part, passes
through a ReLU unchanged, so that a network of such pairs is linear. Its filters are the principal components
of the patches that they see, its bottleneck those of whole frames among the images that the network can make,
and how exactly a latent is known is what probabilistic PCA says. Training goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sunzip.channels import NAMES
from sunzip.nn.sigma_vae import SigmaVAE

Doubles = npt.NDArray[np.float64]
_Layer = TypeVar("_Layer", bound=nn.Module)

#: Batches of frames that tell channels' weights.
_PILOT = 16

#: Frames whose patches tell the filters, patches that a layer's are fitted to, and frames that tell the
#: means and variances of layers.
_FEW, _PATCHES, _FEWEST = 128, 16_000, 32

#: What is added to the inner products of the features' images, as a share of their mean: features that
#: differ by less only pass on rounding errors.
_RIDGE = 1e-6

#: No variance, and no error, is smaller.
_TINY = 1e-6

#: How much the mean frame counts for filters.
_STILL = 30.0

#: Iterations that find components.
_ITERATIONS = 12

#: Channels are weighed by what components of one in so many batches leave of them.
_EARLY = 4

#: How much more the field's channels count for filters, and for components: it is made of small things, which
#: take more of them, and is the first to be lost, as most of what is left of it is noise.
_FAVOUR = 1.5
_FIELD = [NAMES.index(name) for name in ("Bx", "By", "Bz")]

#: Rounds in which channels' weights and errors are brought to agree.
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class _Kernels:
    """Linear convolutions one upon the other, seen as one.

    Attributes
    ----------
    values
        (F, C, S, S) float32.
    stride
        In pixels.
    places
        Of each kernel, along an axis.
    """

    values: Tensor
    stride: int
    places: int

    @classmethod
    def of(cls, filters: list[Tensor], strides: list[int], side: int) -> _Kernels:
        """Compose filters (F, C, k, k), the first of which sees frames of so many pixels."""
        values = torch.eye(len(filters[-1]), device=filters[0].device)[:, :, None, None]
        for weight, stride in zip(reversed(filters), reversed(strides), strict=True):
            values = F.conv_transpose2d(values, weight, stride=stride)
        step = int(np.prod(strides))
        return cls(values, step, (side - values.shape[-1]) // step + 1)

    def scaled(self, weight: Tensor) -> _Kernels:
        """Return the kernels that make images whose channels (C,) weigh so many times as much."""
        return _Kernels(self.values * weight[:, None, None], self.stride, self.places)

    def analyse(self, x: Tensor) -> Tensor:
        """Return the features (N, F·P·P) of frames (N, C, Y, X), in the order of a flattened (F, P, P)."""
        flat, side = self.values.flatten(1), self.values.shape[-1]
        at = [i * self.stride for i in range(self.places)]
        found = [x[:, :, i : i + side, j : j + side].flatten(1) @ flat.T for i in at for j in at]
        return torch.stack(found, 2).flatten(1)

    def synthesise(self, features: Tensor, side: int) -> Tensor:
        """Return the images (N, C, Y, X) that features (N, F·P·P) make; 0 where no filter reaches."""
        planes = features.reshape(len(features), -1, self.places, self.places)
        images = F.conv_transpose2d(planes, self.values, stride=self.stride)
        lost = side - images.shape[-1]
        return F.pad(images, (0, lost, 0, lost))

    def products(self) -> Doubles:
        """Return (F·P·P, F·P·P) inner products of the images that features make, one feature at a time."""
        k, side, n = self.values, self.values.shape[-1], self.places
        out = np.zeros((len(k), n, n, len(k), n, n))
        for di in range(n):
            for dj in range(1 - n, n):
                i, j = di * self.stride, dj * self.stride
                if i >= side or abs(j) >= side:
                    continue
                a = k[:, :, i:, max(j, 0) : side + min(j, 0)].flatten(1)
                b = k[:, :, : side - i, max(-j, 0) : side - max(j, 0)].flatten(1)
                found = (a @ b.T).double().cpu().numpy()
                for y in range(n - di):
                    for x in range(max(0, -dj), n - max(0, dj)):
                        out[:, y, x, :, y + di, x + dj] = found
                        out[:, y + di, x + dj, :, y, x] = found.T
        return out.reshape(len(k) * n * n, -1)


def begin(
    network: SigmaVAE,
    frames: Callable[[int], Tensor],
    batches: int,
    *,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Set a network's parameters so that it codes frames by their principal components.

    Parameters
    ----------
    network
        To be set. With one σ for each channel, channels count by what is left of them, the field half as much
        again.
    frames
        Called with the number of a batch, it returns stabilised frames (N, 12, 128, 128), 0 where missing.
    batches
        How many batches tell the principal components of frames.
    seed
        Of which patches the filters are fitted to.
    progress
        Called with the batches done and all of them.

    References
    ----------
    Tipping and Bishop, "Probabilistic principal component analysis" (1999), for weights and posterior:
    with λ the variance along a component and σ² that of the noise, a latent is decoded by √(λ − σ²), and
    has the variance σ²/λ where the frame is known. With channels weighed by what is left of them alone, that
    is the minimum of Eq. 2 among linear networks.
    """
    strides = [layer.stride[0] for layer in _of(network.analysis, nn.Conv2d)]
    with torch.no_grad():
        x = torch.cat([frames(i) for i in range(min(batches, _PILOT))])
        base = _rim(x)
        weigh = network.log_sigma.ndim > 0
        left, shown = _pilot(x, network.bottleneck, weigh=weigh)
        drawn = _Scale(base, _prominence(shown) if weigh else torch.ones_like(left))
        rng = torch.Generator().manual_seed(seed)
        filters = _filters(network, drawn.of(shown.mean(0)), drawn.of(shown[:_FEW]), rng)
        own = _Kernels.of(filters, strides, x.shape[-1])
        turns = [-(-batches // _EARLY), batches] if weigh else [batches]
        for turn, count in enumerate(turns):
            scale = _Scale(base, _favoured(1 / left) if weigh else 1 / left)
            kernels = own.scaled(scale.weight / drawn.weight)
            found = _Moments()
            for i in range(count):
                scaled = scale.of(frames(i))
                found.add(kernels.analyse(scaled), scaled)
                if progress:
                    progress(sum(turns[:turn]) + i + 1, sum(turns))
            components = _Components.of(found, kernels.products(), network.bottleneck, x[0].numel(), rng)
            if turn + 1 < len(turns):
                left = _left(components, kernels, scale, x)

        def tensor(values: Doubles) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(x.device)

        # Both halves of a pair carry half of a feature.
        linear = network.synthesis[0]
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(_paired_rows(tensor(components.decoder.T)).T / 2)
        linear.bias.copy_(_paired_rows(tensor(components.steady[None]))[0] / 2)
        x = x[:_FEWEST]
        gain = _encoder(network, filters, _Scale(base, scale.weight**2 / drawn.weight), x)
        network.mean.weight.copy_(_paired_rows(tensor(components.encoder)) / gain)
        network.mean.bias.copy_(tensor(components.offset))
        network.log_variance.weight.zero_()
        network.log_variance.bias.copy_(tensor(np.log(components.variance)))
        error = x - _decoder(network, filters, drawn, network.encode(x)[0])
        error = error.square().mean((0, 2, 3))
        error = error if network.log_sigma.ndim else error.mean()
        network.log_sigma.copy_(0.5 * error.clamp_min(_TINY).log())


@dataclass(frozen=True, slots=True)
class _Scale:
    """What frames go through before the linear network, by channel: (x − base)·weight.

    Attributes
    ----------
    base, weight
        (C,).
    """

    base: Tensor
    weight: Tensor

    def of(self, x: Tensor) -> Tensor:
        return (x - self.base[:, None, None]) * self.weight[:, None, None]


class _Moments:
    """Sums over frames: of features, of their products, and of the squares of what they are features of."""

    def __init__(self) -> None:
        self.count, self.power = 0, 0.0
        self._first: Doubles | float = 0.0
        self._second: Doubles | float = 0.0

    def add(self, features: Tensor, x: Tensor) -> None:
        self.count += len(x)
        self.power += float(x.double().square().sum())
        self._first = self._first + features.double().sum(0).cpu().numpy()
        self._second = self._second + (features.T @ features).double().cpu().numpy()

    def mean(self) -> Doubles:
        return np.asarray(self._first / self.count)

    def covariance(self) -> Doubles:
        mean = self.mean()
        return np.asarray(self._second / self.count - np.outer(mean, mean))


@dataclass(frozen=True, slots=True)
class _Components:
    """Probabilistic principal components among the images that F features can make.

    Attributes
    ----------
    decoder, steady
        (F, B) and (F,): features of B latents z are decoder·z + steady.
    encoder, offset
        (B, F) and (B,): latents of features f are encoder·f + offset.
    variance
        (B,) of the posterior, at most 1.
    """

    decoder: Doubles
    steady: Doubles
    encoder: Doubles
    offset: Doubles
    variance: Doubles

    @classmethod
    def of(
        cls, found: _Moments, products: Doubles, count: int, numbers: int, rng: torch.Generator
    ) -> _Components:
        """Find so many components of what has been seen, of frames with so many numbers.

        The images that features f make have the inner products f·G·f, and a frame's features are its inner
        products with them: the axes a that frames vary most along are those of C·a = λ·G·a.
        """
        size = len(products)
        products = products + np.eye(size) * (_RIDGE * np.trace(products) / size)
        mean = found.mean()
        steady = scipy.linalg.solve(products, mean, assume_a="pos")
        root = scipy.linalg.cholesky(products, lower=True)
        half = scipy.linalg.solve_triangular(root, found.covariance(), lower=True)
        whole = scipy.linalg.solve_triangular(root, half.T, lower=True)
        values, rows = _strongest(torch.from_numpy(whole), min(count, size), rng)
        strength = np.maximum(values.numpy(), _TINY)
        axes = scipy.linalg.solve_triangular(root, rows.numpy().T, lower=True, trans="T")
        rest = found.power / found.count - mean @ steady - strength.sum()
        noise = max(rest / numbers, _TINY)
        decoded = np.sqrt(np.maximum(strength - noise, 0))
        encoder = (axes * (decoded / strength)).T
        return cls(
            axes * decoded, steady, encoder, -encoder @ mean, np.minimum(noise / strength, 1)
        )  # fmt: skip


def _left(components: _Components, kernels: _Kernels, scale: _Scale, x: Tensor) -> Tensor:
    """Return (C,) root mean square of what components leave of the channels of frames (N, C, Y, X)."""
    errors = []
    for begin in range(0, len(x), _FEWEST):
        scaled = scale.of(x[begin : begin + _FEWEST])
        features = kernels.analyse(scaled).double().cpu().numpy()
        latents = features @ components.encoder.T + components.offset
        shown = torch.from_numpy((latents @ components.decoder.T + components.steady).astype(np.float32))
        errors.append((scaled - kernels.synthesise(shown.to(x.device), x.shape[-1])).square().mean((2, 3)))
    return torch.cat(errors).mean(0).clamp_min(_TINY).sqrt() / scale.weight


def _of(module: nn.Module, kind: type[_Layer]) -> list[_Layer]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def _paired_rows(rows: Tensor) -> Tensor:
    """Return (N, 2·F) of (N, F): what reads or makes features as the difference of two."""
    return torch.cat([rows, -rows], 1)


def _paired(weight: Tensor) -> Tensor:
    """Return (2·F, 2·C, k, k) of filters (F, C, k, k): from pairs to pairs."""
    rows = _paired_rows(weight)
    return torch.cat([rows, -rows])


def _rim(x: Tensor) -> Tensor:
    """Return (C,) the mean of what no filter makes: the last rows and columns, where only the bias shows."""
    lost = 2
    return torch.cat([x[:, :, -lost:].flatten(2), x[:, :, :, -lost:].flatten(2)], 2).mean((0, 2))


def _pilot(x: Tensor, count: int, *, weigh: bool) -> tuple[Tensor, Tensor]:
    """Look at a few frames, which have fewer components, to tell what matters.

    Returns
    -------
    left
        (C,) root mean square of what components leave of each channel, by which channels are weighed; 1 if
        they all count the same.
    shown
        Half of the frames as the components of the others show them: filters need not fit noise.
    """
    mean = x.mean(0)
    fitted, other = ((part - mean).flatten(2).transpose(0, 1) for part in (x[::2], x[1::2]))
    own = torch.bmm(fitted, fitted.transpose(1, 2)).double()
    across = torch.bmm(other, fitted.transpose(1, 2)).double()
    power = other.double().square().sum((1, 2))
    size = other[0].numel()
    left = (power / size).clamp_min(_TINY).sqrt() if weigh else torch.ones_like(power)
    for _ in range(_ROUNDS if weigh else 1):
        weights = (left**-2)[:, None, None]
        values, vectors = torch.linalg.eigh((weights * own).sum(0))
        used = slice(-min(count, len(values) - 1), None)
        share = (weights * across).sum(0) @ (vectors[:, used] / values[used]) @ vectors[:, used].T
        explained = 2 * (share * across).sum((1, 2)) - ((share @ own) * share).sum((1, 2))
        if weigh:
            left = ((power - explained) / size).clamp_min(_TINY).sqrt()
    shown = torch.einsum("nm,cmd->ncd", share.float(), fitted).reshape(-1, *x.shape[1:]) + mean
    return left.float(), shown


def _prominence(shown: Tensor) -> Tensor:
    """Return (C,) weights for filters: what can be shown of channels (N, C, Y, X) is brought to one size."""
    weight = (shown - shown.mean(0)).square().mean((0, 2, 3)).clamp_min(_TINY).rsqrt()
    return _favoured(weight)


def _favoured(weight: Tensor) -> Tensor:
    """Return weights (C,) of channels, those of the field larger."""
    weight = weight.clone()
    weight[_FIELD] *= _FAVOUR
    return weight


def _filters(network: SigmaVAE, mean: Tensor, x: Tensor, rng: torch.Generator) -> list[Tensor]:
    """Return (F, C, k, k) filters for half of each layer's: principal components of the patches it sees.

    The mean frame (C, Y, X) counts more than what the frames add to it: features that do not vary have to
    make it, and would fail at the limb.
    """
    still, out, first = mean[None], [], 0
    for layer in _of(network.analysis, nn.Conv2d):
        size, stride = layer.kernel_size[0], layer.stride[0]
        if stride == 1:
            out.append(_taps(layer.out_channels // 2, x.shape[1], size, first).to(x.device))
        else:
            seen = _patches(x, size, stride)
            chosen = torch.randperm(seen[..., 0, 0, 0].numel(), generator=rng)[:_PATCHES]
            rows = seen[tuple(i.to(x.device) for i in torch.unravel_index(chosen, seen.shape[:3]))].flatten(1)
            steady = _patches(still, size, stride).flatten(3).flatten(0, 2)
            second = rows.T @ rows / len(rows) + steady.T @ steady * (_STILL / len(steady))
            _, weight = _strongest(second, layer.out_channels // 2, rng)
            out.append(weight.reshape(-1, x.shape[1], size, size))
            first = len(weight)
        x, still = (F.conv2d(of, out[-1], stride=stride) for of in (x, still))
    return out


def _patches(x: Tensor, size: int, stride: int) -> Tensor:
    """Return a view of images (N, C, Y, X): the patches (N, Y', X', C, k, k) that a filter sees."""
    return x.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)


def _taps(filters: int, channels: int, size: int, first: int) -> Tensor:
    """Return filters (F, C, k, k) that shift: what a valid convolution loses at the rim, copies keep.

    Layers of stride 1 need not mix what they see. They make four copies of the `first` features, each of
    which drifts into a corner of its own, so that together they see all of the Sun. The first such layer has
    room for two: it makes four of the stronger features, and one of the weaker, which lose a little of the
    rim.
    """
    out = torch.zeros(filters, channels, size, size)
    strong, feature, end = first // 3, torch.arange(first), size - 1
    weak = feature[strong:]
    if channels == first:
        out[3 * strong + weak, weak, end // 2, end // 2] = 1
    for i, (y, x) in enumerate(((0, 0), (0, end), (end, 0), (end, end))):
        if channels == first:
            out[i * strong + feature[:strong], feature[:strong], y, x] = 1
            continue
        copy = torch.where(feature < strong, i * strong, 3 * strong) + feature
        out[i * first + feature, i * first + feature if channels == 4 * first else copy, y, x] = 1
    return out


def _strongest(second: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return about the largest eigenvalues (K,) of a matrix (D, D), and their vectors as rows (K, D).

    By subspace iteration, which takes a small part of the time of finding all.
    """
    basis = torch.randn(len(second), count, generator=rng, dtype=torch.float64).to(second)
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(second @ basis)
    values, vectors = torch.linalg.eigh(basis.T @ second @ basis)
    return values.flip(0), (basis @ vectors.flip(1)).T.contiguous()


def _settle(norm: nn.BatchNorm2d, y: Tensor) -> float:
    """Have a batchnorm keep the mean it takes away, and scale all filters alike; return by how much."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    scale = float(y.square().mean().clamp_min(1e-12).rsqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(scale * mean)
    return scale


def _encoder(network: SigmaVAE, filters: list[Tensor], scale: _Scale, x: Tensor) -> float:
    """Set the analysis; return by how much its features are larger than those of the filters."""
    gain = 1.0
    convolutions, norms = _of(network.analysis, nn.Conv2d), _of(network.analysis, nn.BatchNorm2d)
    for layer, norm, weight in zip(convolutions, norms, filters, strict=True):
        assert layer.bias is not None
        if layer is convolutions[0]:
            layer.weight.copy_(torch.cat([weight, -weight]) * scale.weight[:, None, None])
            layer.bias.copy_(-layer.weight.sum((2, 3)) @ scale.base)
        else:
            layer.weight.copy_(_paired(weight))
            layer.bias.zero_()
        y = layer(x)
        gain *= _settle(norm, y)
        x = F.relu(norm.eval()(y))
    return gain


def _decoder(network: SigmaVAE, filters: list[Tensor], scale: _Scale, z: Tensor) -> Tensor:
    """Set the synthesis, but for its linear layer, and return what it makes of latents."""
    y: Tensor = network.synthesis[1](network.synthesis[0](z))
    gain = 1.0
    layers, norms = _of(network.synthesis, nn.ConvTranspose2d), _of(network.synthesis, nn.BatchNorm2d)
    for layer, weight in zip(layers, reversed(filters), strict=True):
        assert layer.bias is not None
        if layer is layers[-1]:
            layer.weight.copy_(torch.cat([weight, -weight]) / (gain * scale.weight[:, None, None]))
            layer.bias.copy_(scale.base)
            y = layer(y)
        else:
            layer.weight.copy_(_paired(weight))
            layer.bias.zero_()
            norm = norms.pop(0)
            y = layer(y)
            gain *= _settle(norm, y)
            y = F.relu(norm.eval()(y))
    return y
