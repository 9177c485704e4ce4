"""What a trained model is worth: the paper's metrics uncoded and coded, and how coarse latents may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sunzip.channels import NAMES
from sunzip.codec import Codec, trellis
from sunzip.frame import Block
from sunzip.metrics import Accumulator
from sunzip.nn.sigma_vae import SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.times import format_utc
from sunzip.train.data import Float
from sunzip.train.export import varied
from sunzip.train.frames import Frames

#: The metrics that coding may not worsen by more than this share.
COMPARED = ("r", "ppe10", "ppe50", "rmse")
TOLERANCE = 0.01

#: On frames that steps are found by metrics may worsen by this share of it, so that they hold on others, too:
#: on held-out ones coding was found to change r of By, which is mostly noise, 1.5 times as much.
_AIM = 0.65

#: r and ppe below this count as this much when a change is put as a share: of 0.002 that is noise, one
#: percent says nothing.
_FLOOR = 0.1

#: Rounds in which steps are tried, weights of channels with which they begin, and how often these are
#: corrected between two rounds.
_ROUNDS, _FIRST, _CORRECTIONS = 8, 1 / 40, 400

#: No step is larger: means of a latent that tells nothing stay far below half of it.
_MOST = 16.0

#: No weight of a channel is smaller.
_TINY = 1e-12

#: Frames and random directions by which a latent's effect on each channel is found.
_PROBED, _PROBES = 16, 4

#: A latent whose mean varies less than this over frames carries nothing (Burda et al. 2016, A_u).
ACTIVE_VARIANCE = 0.01

_BATCH = 16

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on frames.

    Attributes
    ----------
    frames, first, last
        How many, and the times of the first and the last in ISO 8601.
    metrics
        ``"float32"``, from latents that were never rounded, and ``"coded"``: by mode and channel, see
        `sunzip.metrics.ChannelMetrics`.
    worst_change
        By how large a share coding worsens a metric of the paper at most, and which.
    bits_per_latent, bits_per_sample
        Of the payload.
    latents_coded
        Whether latents are what is coded. If not, all of the loss is coding's, and ``"float32"``, the worst
        change and the bits of a latent say nothing.
    """

    frames: int
    first: str
    last: str
    metrics: dict[str, dict[str, dict[str, dict[str, Any]]]]
    worst_change: tuple[float, str]
    bits_per_latent: float
    bits_per_sample: float
    latents_coded: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def pixels_of(frames: Frames, rows: slice) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Return frames as (N, 12, Y, X) float32, NaN where missing, and presence (N, 12)."""
    chosen = frames[rows]
    x = np.stack([e.pixels for e in chosen]).astype(np.float32)
    present = chosen.present
    x[~present] = np.nan
    return x, present


def measure(codec: Codec, frames: Frames, progress: Progress | None = None) -> Measured:
    """Code frames as an archive would, and hold against them what is decoded, with rounding and without."""
    exact, coded = Accumulator(NAMES), Accumulator(NAMES)
    bits = latents = samples = 0
    for t in range(len(frames)):
        x, present = pixels_of(frames, slice(t, t + 1))
        blocks = codec.encode(x, NAMES)
        exact.add(x, codec.unquantised(x, NAMES), present)
        coded.add(x, codec.decode(blocks, NAMES, frames.side), present)
        bits += 8 * len(Block.unpack(blocks[0]).payloads[0])
        latents += math.prod(codec.family.latent_shape(*frames.side))
        samples += int(np.isfinite(x).sum())
        if progress:
            progress(t + 1, len(frames))
    first, last = format_utc(frames.time[[0, -1]])
    return Measured(
        len(frames),
        first,
        last,
        {"float32": exact.as_dict(), "coded": coded.as_dict()},
        worst_change(exact, coded),
        bits / latents,
        bits / max(samples, 1),
        codec.family.latents_coded,
    )


def beside(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Say in words what another model does with the same frames, held against this one: bits and errors.

    Parameters
    ----------
    now, before
        `Measured` as plain values: of this model, and of the other.
    """
    rows = [m["metrics"]["coded"]["paper"] for m in (before, now)]
    pairs = [(old["rmse"], rows[1][name]["rmse"]) for name, old in rows[0].items()]
    # The mean over channels, whose units differ.
    logs = [math.log(old / new) for old, new in pairs if old and new]
    error = math.exp(sum(logs) / len(logs)) if logs else 1.0
    bits, own = before["bits_per_sample"], now["bits_per_sample"]
    more = _more(bits / own if own else 1.0, "more", "fewer")
    return f"{bits:.4g} bit per sample, {more}, of errors that are {_more(error, 'larger', 'smaller')}"


def _more(ratio: float, above: str, below: str) -> str:
    return f"{abs(ratio - 1):.1%} {above if ratio >= 1 else below}".replace("%", " %")


def worst_changes(before: Accumulator, after: Accumulator) -> dict[str, tuple[float, str]]:
    """Return by how large a share a metric of the paper worsens at most in each channel, and its name."""
    found = {}
    a, b = (m.result()["paper"] for m in (before, after))
    for name in before.channels:
        losses = [(0.0, "none")]
        for key in COMPARED:
            old, new = getattr(a[name], key), getattr(b[name], key)
            loss = (new - old) / old if key == "rmse" and old else (old - new) / max(abs(old), _FLOOR)
            if math.isfinite(loss):
                losses.append((loss, f"{key} of {name}"))
        found[name] = max(losses)
    return found


def worst_change(before: Accumulator, after: Accumulator) -> tuple[float, str]:
    """Return by how large a share a metric of the paper's mode worsens at most, and its name."""
    return max(worst_changes(before, after).values())


def posteriors(
    network: SigmaVAE, stabiliser: Stabiliser, frames: Frames, progress: Progress | None = None
) -> tuple[Float, Float]:
    """Return means and log-variances, (N, B) float32 each, of frames' latents."""
    means: list[Float] = []
    log_variances: list[Float] = []
    device = network.log_sigma.device
    for x, present in _batches(frames):
        y = stabiliser.forward(x)
        y = np.where(np.isfinite(y) & present[:, :, None, None], y, np.float32(0))
        with torch.inference_mode():
            found = network.encode(torch.from_numpy(y).to(device, memory_format=torch.channels_last))
        for rows, tensor in zip((means, log_variances), found, strict=True):
            rows.append(tensor.cpu().numpy())
        if progress:
            progress(sum(map(len, means)), len(frames))
    return np.concatenate(means), np.concatenate(log_variances)


def quantisation_steps(
    network: SigmaVAE, stabiliser: Stabiliser, frames: Frames, progress: Progress | None = None
) -> Float:
    """Find the steps (B,) of the fewest bits with which no metric worsens by `TOLERANCE`, less some margin.

    If latent j's step Δ_j adds a_cj Δ_j² to the squared error of channel c, the fewest bits that keep the
    errors of all channels below bounds are those of Δ_j = 1 / √(Σ_c w_c a_cj) (Lagrange multipliers w_c).
    How much of a channel's metrics an error of 1 costs is the mean over some rounds, each of which tries the
    steps that the rounds before it lead to: what one trial costs is a matter of luck.

    Parameters
    ----------
    network
        In evaluation mode.
    stabiliser
        What its inputs go through.
    frames
        None of those on which the model is judged.
    progress
        Called with the rounds done and all of them.
    """
    means, _ = posteriors(network, stabiliser, frames)

    def decoded(latents: Float) -> Accumulator:
        total = Accumulator(NAMES)
        begin = 0
        for x, present in _batches(frames):
            z = torch.from_numpy(latents[begin : begin + len(x)]).to(network.log_sigma.device)
            with torch.inference_mode():
                y = network.decode(z).float().cpu().contiguous().numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                total.add(x, stabiliser.inverse(y), present)
            begin += len(x)
        return total

    exact, effect = decoded(means), effects(network, means)
    weights, most = np.full(len(NAMES), _FIRST), _AIM * TOLERANCE
    lost, erred = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for n in range(_ROUNDS):
        if progress:
            progress(n, _ROUNDS)
        steps = _coarse(weights, effect)
        on_trellis = varied(means, steps)
        coded = trellis.dequantise(trellis.quantise(means / steps, on_trellis), on_trellis)
        changes = worst_changes(exact, decoded(coded * steps))
        lost += [changes[name][0] for name in NAMES]
        erred += effect @ np.square(steps, dtype=np.float64)
        for _ in range(_CORRECTIONS):
            share = lost / erred * (effect @ np.square(_coarse(weights, effect), dtype=np.float64)) / most
            weights = np.maximum(weights * np.sqrt(share), _TINY)
    return _coarse(weights, effect)


def _coarse(weights: npt.NDArray[np.float64], effect: npt.NDArray[np.float64]) -> Float:
    """Return the steps (B,) that weights (12,) of channels make of latents' effects (12, B) on them."""
    return np.asarray(1 / np.sqrt(weights @ effect + 1 / _MOST**2), np.float32)


def effects(network: SigmaVAE, means: Float) -> npt.NDArray[np.float64]:
    """Return by how much (12, B) the latents' squares add to a channel's squared error, in units of its σ².

    Of the linear decoder about some of the means (N, B): the square of a derivative along random signs of all
    pixels is on average the sum of the squares of their derivatives (Hutchinson 1990).
    """
    rng = torch.Generator().manual_seed(0)
    chosen = means[np.linspace(0, len(means) - 1, min(_PROBED, len(means))).astype(int)]
    z = torch.from_numpy(chosen).to(network.log_sigma.device).requires_grad_()
    y = network.decode(z).float()
    found = np.zeros((len(NAMES), means.shape[1]))
    for c in range(len(NAMES)):
        for _ in range(_PROBES):
            signs = torch.randint(0, 2, y[:, c].shape, generator=rng).to(y) * 2 - 1
            (slope,) = torch.autograd.grad((y[:, c] * signs).sum(), z, retain_graph=True)
            found[c] += slope.square().mean(0).double().cpu().numpy() / _PROBES
    variance = torch.exp(2 * network.log_sigma.detach().double()).cpu().numpy()
    return np.asarray(found / np.broadcast_to(variance, len(NAMES))[:, None])


def active_units(means: Float) -> int:
    """Count the latents whose (N, B) means vary over frames."""
    return int(np.count_nonzero(means.var(axis=0) > ACTIVE_VARIANCE))


def _batches(frames: Frames) -> Iterator[tuple[Float, npt.NDArray[np.bool_]]]:
    for begin in range(0, len(frames), _BATCH):
        yield pixels_of(frames, slice(begin, begin + _BATCH))


def correlations(frames: Sequence[npt.NDArray[np.float32]]) -> dict[str, float | None]:
    """Return r by channel between two (N, 12, Y, X) arrays, NaN where missing; None where there is none."""
    x, x_hat = frames
    total = Accumulator(NAMES)
    total.add(x, x_hat, np.asarray(np.isfinite(x).any((2, 3))))
    return {name: m["r"] for name, m in total.as_dict()["paper"].items()}  # type: ignore[misc]
