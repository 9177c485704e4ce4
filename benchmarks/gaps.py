"""Measure what missing pixels cost, and what they do to those around: ``python -m benchmarks.gaps --real …``.

Pixels of one frame are taken out as telescopes and their software lose them: each by itself, in blocks, in
rows, half of the image, or all that is off the disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import command, inputs, keep
from sunzip import weights
from sunzip.api import open_series
from sunzip.channels import channel
from sunzip.codec import Codec
from sunzip.cube import Cube, disk_radius
from sunzip.gaps import pack_gaps
from sunzip.normalize import Stabiliser

Bool = npt.NDArray[np.bool_]

#: Side of the blocks that are lost, in pixels.
BLOCK = 16


def masks(side: int) -> dict[str, Bool]:
    """Return which pixels (Y, X) are taken out."""
    rng = np.random.default_rng(4)
    blocks = rng.random((side // BLOCK, side // BLOCK)) < 0.03
    rows = np.zeros((side, side), bool)
    rows[side // 5 : side // 5 + 4] = rows[side // 2 : side // 2 + 3] = True
    half = np.zeros((side, side), bool)
    half[side // 2 :] = True
    offset = np.arange(side) - (side - 1) / 2
    return {
        "none": np.zeros((side, side), bool),
        "0.1 %, each by itself": rng.random((side, side)) < 0.001,
        "1 %, each by itself": rng.random((side, side)) < 0.01,
        f"3 %, blocks of {BLOCK}×{BLOCK}": blocks.repeat(BLOCK, 0).repeat(BLOCK, 1),
        "7 rows": rows,
        "half of the image": half,
        "all off the disk": np.hypot(offset[:, None], offset) > disk_radius(side),
    }


def measure(name: str, cube: Cube, quality: int) -> list[dict[str, Any]]:
    """Return a row for each way to lose pixels of a frame, in all channels alike."""
    codec = Codec(weights.load(), quality)
    aia = [c for c, of in enumerate(cube.channels) if channel(of).instrument == "AIA"]
    units = Stabiliser.for_channels([cube.channels[c] for c in aia])
    rows = []
    for lost, missing in masks(cube.data.shape[-1]).items():
        shown = np.where(missing, np.float32(np.nan), cube.data)
        (block,) = codec.encode(shown, cube.channels, cube.scale)
        (zeros,) = codec.encode(np.nan_to_num(shown), cube.channels, cube.scale)
        decoded = codec.decode([block], cube.channels, missing.shape, cube.scale)
        x, y = (of[0, aia][:, ~missing] for of in (cube.data, decoded))
        apart = (units.forward(of[:, :, None]) for of in (x, y))
        error = np.subtract(*apart)
        off = y.sum(1, dtype=np.float64) / x.sum(1, dtype=np.float64) - 1
        rows.append(
            {
                "name": name,
                "lost": lost,
                "bytes": len(block),
                "map_bytes": len(pack_gaps(missing[None].repeat(len(cube.channels), 0))),
                "zeros_bytes": len(zeros),
                "rmse": float(np.sqrt(np.square(error).mean(dtype=np.float64))),
                "light_off": float(np.abs(off).mean()),
            }
        )
        click.echo(f"{name}: {lost}", err=True)
    return rows


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
def main(real: Path) -> None:
    """Measure a real and a synthetic frame."""
    model = weights.load()
    quality = Codec(model).quality
    with tempfile.TemporaryDirectory() as folder:
        found = {case.name: case for case in inputs(real, Path(folder), model.name)}
        cases = (found["… 8 channels 2024-10-04"], found["synthetic Sun, 12 channels 512²"])
        cubes = [(of.name.removeprefix("… "), open_series(of.url, align=of.align).read(0, 1)) for of in cases]
        rows = [row for name, cube in cubes for row in measure(name, cube, quality)]
    about = {"name": model.name, "sha256": model.sha256}
    content = {"command": command("gaps"), "model": about, "quality": quality, "rows": rows}
    click.echo(keep("gaps", content))


if __name__ == "__main__":
    main()
