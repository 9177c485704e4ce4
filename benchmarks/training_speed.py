"""How fast the σ-VAE learns here: frames/s in float32 and bfloat16, as a share of what matrix products allow.

Run as ``python -m benchmarks.training_speed``; on a GPU, if there is one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.common import command, keep
from sunzip.channels import NAMES
from sunzip.nn.sigma_vae import BOTTLENECKS, SIZE, SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.train.data import WholeFrames
from sunzip.train.families import SigmaVaeFamily
from sunzip.train.frames import Frames
from sunzip.train.loop import Place, Recipe, fit

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def multiplications(network: SigmaVAE) -> int:
    """Count the multiply-accumulate operations of one frame forward: convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        per_place = layer.weight[0].numel()
        # A transposed convolution spreads each input over its filter, the others gather each output.
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += per_place * places.numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    network(torch.empty(1, len(NAMES), SIZE, SIZE, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Return the rate of large matrix products in operations per second, two for each multiplication."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best


def training_rate(bottleneck: int, place: Place, half: bool, batch: int, steps: int) -> float:
    """Return samples per second of the training loop itself, everything included, after its first steps."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 10, (2 * batch, len(NAMES), SIZE, SIZE)).astype(np.float16)
    frames = Frames(
        pixels,
        np.ones((2 * batch, len(NAMES)), bool),
        np.datetime64("2014-01-01", "ms") + np.arange(2 * batch),
    )
    whole = WholeFrames(frames, batch=batch, seed=0, augment=False)
    family = SigmaVaeFamily(whole, Stabiliser.for_channels(NAMES), bottleneck, "optimal")
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fit(
            family,
            Recipe(steps=steps, minutes=None, batch=batch),
            place,
            Path(folder),
            settings={},
            half=half,
            progress=lambda now: seconds.append(now.elapsed),
        )
    first = len(seconds) // 3
    return batch * (len(seconds) - 1 - first) / (seconds[-1] - seconds[first])


@click.command()
@click.option("--steps", default=9, type=click.IntRange(2), help="Steps of each training.")
@click.option("--batch", default=None, type=int, help="Default 8 on a CPU, 128 on a GPU.")
@click.option("--bottleneck", "bottlenecks", multiple=True, type=int, default=BOTTLENECKS[:1])
def main(steps: int, batch: int | None, bottlenecks: tuple[int, ...]) -> None:
    """Measure and keep benchmarks/results/training_speed.json."""
    rows: list[dict[str, Any]] = []
    with Place.found("auto") as place:
        on_gpu = place.device.type == "cuda"
        size = batch or (128 if on_gpu else 8)
        for bottleneck in bottlenecks:
            with torch.device("meta"):
                forward = multiplications(SigmaVAE(bottleneck))
            for precision, dtype in _DTYPES.items():
                product = matrix_rate(place.device, dtype)
                rate = training_rate(bottleneck, place, precision == "bf16", size, steps)
                # Backward there are two products for each one forward: for inputs and for weights.
                operations = 3 * 2 * forward * rate
                rows.append(
                    {
                        "model": f"sigma-vae-{bottleneck}",
                        "precision": precision,
                        "batch": size,
                        "forward_multiplications": forward,
                        "frames_per_second": rate,
                        "operations_per_second": operations,
                        "matrix_product_per_second": product,
                        "share": operations / product,
                    }
                )
                click.echo(rows[-1])
        device = torch.cuda.get_device_name(place.device) if on_gpu else "CPU"
    told = {"command": command("training_speed"), "device": device, "threads": torch.get_num_threads()}
    click.echo(keep("training_speed", {**told, "rows": rows}))


if __name__ == "__main__":
    main()
