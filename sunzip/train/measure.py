"""What a trained model is worth: the paper's metrics uncoded and coded, and how coarse latents may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from sunzip.train.export import quantiser
from sunzip.train.frames import Frames

#: The metrics that coding may not worsen by more than this share.
COMPARED = ("r", "ppe10", "ppe50", "rmse")
TOLERANCE = 0.01

#: On frames that steps are found by metrics may worsen by this share of it, so that they hold on others, too:
#: on held-out ones coding was found to change them by up to 1.3 times as much.
_AIM = 0.75

#: r and ppe below this count as this much when a change is put as a share: of 0.002 that is noise, one
#: percent says nothing.
_FLOOR = 0.1

#: Steps over the posterior's standard deviation between which the coarsest admissible one is sought, and
#: how often their range is halved.
_COARSENESS = (0.25, 32.0)
_HALVINGS = 10

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


def worst_change(before: Accumulator, after: Accumulator) -> tuple[float, str]:
    """Return by how large a share a metric of the paper's mode worsens at most, and its name."""
    found = [(0.0, "none")]
    a, b = (m.result()["paper"] for m in (before, after))
    for name in before.channels:
        for key in COMPARED:
            old, new = getattr(a[name], key), getattr(b[name], key)
            loss = (new - old) / old if key == "rmse" and old else (old - new) / max(abs(old), _FLOOR)
            if math.isfinite(loss):
                found.append((loss, f"{key} of {name}"))
    return max(found)


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


def coarsest(
    network: SigmaVAE,
    stabiliser: Stabiliser,
    frames: Frames,
    deviations: Float,
    progress: Progress | None = None,
) -> float:
    """Find the coarsest steps with which no metric of the paper worsens by `TOLERANCE`, less some margin.

    Parameters
    ----------
    network
        In evaluation mode.
    stabiliser
        What its inputs go through.
    frames
        None of those on which the model is judged.
    deviations
        (B,) float32: root mean square of the posterior's standard deviation of each latent.

    Returns
    -------
    Steps over `deviations`; the finest that is tried if none will do.
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

    exact = decoded(means)
    low, high = (math.log(k) for k in _COARSENESS)
    for n in range(_HALVINGS):
        if progress:
            progress(n, _HALVINGS)
        middle = (low + high) / 2
        steps, on_trellis = quantiser(means, deviations, math.exp(middle))
        coded = trellis.dequantise(trellis.quantise(means / steps, on_trellis), on_trellis)
        change, _ = worst_change(exact, decoded(coded * steps))
        low, high = (middle, high) if change <= _AIM * TOLERANCE else (low, middle)
    return math.exp(low)


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
