"""What quantising and coding the latents saves and costs: float32 latents beside coded ones, per quality.

Run as ``python -m benchmarks.latents --real ../shared/data/real``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Input, command, inputs, keep
from sunzip import weights
from sunzip.api import open_series
from sunzip.codec import Codec
from sunzip.weights import Model

QUALITIES = (0, 20, 40, 60, 80, 100)


def _rmse(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
    good = np.isfinite(x)
    return float(np.sqrt(np.mean((x[good].astype(np.float64) - y[good]) ** 2)))


def run(case: Input, model: Model, quality: int) -> dict[str, Any]:
    """Code one input's frames at one quality, and decode them with and without rounding."""
    codec = Codec(model, quality)
    series = open_series(case.url, align=case.align)
    frames = min(len(series), 4)
    cube = series.read(0, frames)
    blocks = codec.encode(cube.data, cube.channels, cube.scale)
    coded = codec.decode(blocks, cube.channels, series.shape, cube.scale)
    exact = codec.unquantised(cube.data, cube.channels, cube.scale)
    numbers = int(np.prod(codec.family.latent_shape(*series.shape))) * int(cube.valid.any(1).sum())
    size = sum(map(len, blocks))
    channels = {}
    for i, name in enumerate(cube.channels):
        if not cube.valid[:, i].any():
            continue
        with_rounding, without = _rmse(cube.data[:, i], coded[:, i]), _rmse(cube.data[:, i], exact[:, i])
        channels[name] = {
            "rmse_coded": with_rounding,
            "rmse_float32": without,
            "ratio": with_rounding / without,
        }
    return {
        "name": case.name,
        "seen_in_training": case.seen,
        "quality": quality,
        "frames": frames,
        "latents": numbers,
        "float32_bytes": 4 * numbers,
        "coded_bytes": size,
        "coded_share": size / (4 * numbers),
        "bits_per_latent": 8 * size / numbers,
        "bits_per_sample": 8 * size / (cube.nbytes / 4),
        "channels": channels,
        "worst_ratio": max(c["ratio"] for c in channels.values()),
    }


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--model", "name", default="hyperprior-12")
def main(real: Path, name: str) -> None:
    """Measure all inputs at all qualities."""
    model = weights.load(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in inputs(real, Path(folder), model.name, synthetic_frames=4):
            if case.seen is None:
                continue
            for quality in QUALITIES:
                rows.append(run(case, model, quality))
                row = rows[-1]
                click.echo(
                    f"{case.name} quality {quality}: {row['bits_per_sample']:.4f} bit/sample, "
                    f"1/{1 / row['coded_share']:.0f} of float32, RMSE × {row['worst_ratio']:.4f} at worst"
                )
    content = {
        "command": command("latents"),
        "model": {"name": model.name, "sha256": model.sha256},
        "rows": rows,
    }
    click.echo(keep("latents", content))


if __name__ == "__main__":
    main()
