"""Measure how near foretold images come to missing ones: run as ``python -m benchmarks.filling``.

Each frame of a synthetic Sun lacks a quarter of its channels, each channel every fourth frame. It goes
through an archive and out with ``--fill-missing``; what was foretold is compared with what had been left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import command, keep
from sunzip import api, weights
from sunzip.channels import NAMES
from sunzip.cube import Cube
from sunzip.sinks.sdoml_v2 import SdomlV2Sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic

SIDE = 128
#: The last is longer than any earlier frame is of use.
CADENCES = ("12min", "12h", "10D")


def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float | None:
    """Return Pearson's r of two images; None where one has no structure."""
    if not (a.std() and b.std()):
        return None
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def right(truth: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Return the share of an image's variance that is right in another."""
    error = found.astype(np.float64) - truth
    return 1 - float(np.square(error).mean() / truth.var(dtype=np.float64))


def measure(cadence: str, frames: int, folder: Path) -> dict[str, Any]:
    """Return by channel r of coded and of foretold images, and of the last image that there is instead.

    Of the foretold ones, too, what share of the variance is right, and what ``SZ_FILL`` says of it.
    """
    import h5py

    start, seed = "2014-01-01", 777003
    cube = join([Synthetic(frames=frames, size=SIDE, start=start, cadence=cadence, seed=seed)]).read(
        0, frames
    )
    lacks = np.add.outer(np.arange(frames), np.arange(len(NAMES))) % 4 == 3
    shown = cube.data.copy()
    shown[lacks] = np.nan
    headers = [
        [{} if gone else header for gone, header in zip(gap, row, strict=True)]
        for gap, row in zip(lacks, cube.headers, strict=True)
    ]
    given = Cube(shown, cube.channels, cube.time, cube.t_obs, ~lacks, headers, cube.scale)
    store, archive, out = (folder / f"{cadence}{ending}" for ending in (".zarr", ".lat", ".h5"))
    with SdomlV2Sink(store, channels=NAMES, shape=(SIDE, SIDE)) as sink:
        sink.write(given)
    api.compress([str(store)], archive, align=api.Alignment(cadence=cadence))
    report = api.decompress(archive, out, fill_missing=True)
    with h5py.File(out) as file:
        decoded, valid = file["cube"][:], file["valid"][:]
        words = file["keywords"].asstr()[:]
    channels: dict[str, dict[str, list[float]]] = {}
    for c, name in enumerate(NAMES):
        keys = ("coded", "foretold", "before", "expected", "right")
        rows: dict[str, list[float | None]] = {key: [] for key in keys}
        for t in range(4, frames):
            truth = cube.data[t, c]
            if not lacks[t, c]:
                rows["coded"].append(correlation(truth, decoded[t, c]))
            elif valid[t, c]:
                rows["foretold"].append(correlation(truth, decoded[t, c]))
                rows["before"].append(correlation(truth, decoded[t - 1, c]))
                rows["expected"].append(json.loads(words[t, c])["SZ_FILL"])
                rows["right"].append(right(truth, decoded[t, c]))
        channels[name] = {key: [v for v in found if v is not None] for key, found in rows.items()}
    return {
        "cadence": cadence,
        "images": int(lacks.sum()),
        "filled": report.filled,
        "channels": {
            name: {key: float(np.mean(v)) if v else None for key, v in found.items()}
            for name, found in channels.items()
        },
    }


@click.command()
@click.option("--frames", default=48, show_default=True, help="At each cadence.")
def main(frames: int) -> None:
    """Measure all cadences."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(cadence, frames, Path(folder)) for cadence in CADENCES]
    for row in rows:
        click.echo(f"{row['cadence']}: {row['filled']} of {row['images']} images")
    model = weights.load()
    content = {
        "command": command("filling"),
        "model": {"name": model.name, "sha256": model.sha256},
        "frames": frames,
        "side": SIDE,
        "rows": rows,
    }
    click.echo(keep("filling", content))


if __name__ == "__main__":
    main()
