"""Measure what coding does to sums: the light of the disk and of regions, frame by frame, and magnetic flux.

Run as ``python -m benchmarks.sums --real ../shared/data/real``. Errors of single pixels tell little of these:
they may cancel in a sum, or all lie to one side.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import sunzip
from benchmarks.common import Input, command, inputs, keep
from sunzip import weights
from sunzip.api import Alignment, open_series
from sunzip.channels import channel
from sunzip.metrics import disk_mask

Float = npt.NDArray[np.float64]

#: Regions are squares of the image's side over this.
REGIONS = 16

#: Field strength, in G, of what stands out of the noise.
STRONG = 100

#: How each input is coded; films also frame by frame, and fields below their noise.
WAYS: tuple[dict[str, Any], ...] = (
    {"quality": 20},
    {"quality": 35},
    {"quality": 60},
    {"max_error": "2sigma"},
)
ALONE: dict[str, Any] = {"quality": 35, "block": 1}
FIELD: dict[str, Any] = {"max_error": "Bz=2G"}

CHOSEN = (
    "171 Å hourly 128², from 2017-08-10",
    "193 Å from 2017-01-16",
    "8 channels 2024-10-04",
    "SDOML v1 Bz 2013-01-31",
)


def cases(real: Path, work: Path) -> list[Input]:
    """Return real frames that training did not see, and hours of a synthetic Sun."""
    found = []
    for case in inputs(real, work, weights.load().name):
        name = case.name.replace("… from 2017-08", "171 Å hourly 128², from 2017-08").removeprefix("… ")
        if name in CHOSEN:
            found.append(Input(name, case.url, case.align, case.seen))
    synthetic = "synthetic:frames=24,size=256,seed=777001,start=2013-05-01,cadence=1h"
    return [*found, Input("synthetic Sun hourly 256²", synthetic, Alignment(cadence="1h"), False)]


def light(x: Float, y: Float) -> dict[str, float | None]:
    """Return how far sums over images (T, Y, X) are off, in hundredths of them.

    Parameters
    ----------
    x, y
        Originals and what they decode to.
    """
    disk = disk_mask((x.shape[1], x.shape[2]))
    before, after = x[:, disk].sum(1), y[:, disk].sum(1)
    off = after / before - 1
    side = x.shape[1] // REGIONS
    split = (len(x), REGIONS, side, REGIONS, side)
    whole = disk.reshape(split[1:]).all((1, 3))
    regions, decoded = (z.reshape(split).sum((2, 4))[:, whole] for z in (x, y))
    apart, frames = decoded / regions - 1, np.arange(len(x))
    found = {
        "disk": off.mean(),
        "disk_changes": np.sqrt(np.square(np.diff(off)).mean()) if len(x) > 1 else None,
        "sun_changes": np.sqrt(np.square(np.diff(before) / before[1:]).mean()) if len(x) > 1 else None,
        "region": np.sqrt(np.square(apart).mean()),
        "brightest": apart[frames, regions.argmax(1)].mean(),
    }
    return {key: None if value is None else 100 * float(value) for key, value in found.items()}


def flux(x: Float, y: Float) -> dict[str, float | None]:
    """Return which share of the unsigned flux of (T, Y, X) is left, and the mean field of both in G."""
    disk = disk_mask((x.shape[1], x.shape[2]))
    before, after = x[:, disk], y[:, disk]
    strong = np.abs(before) > STRONG
    return {
        "unsigned": float(np.abs(after).sum() / np.abs(before).sum()),
        "strong": float(np.abs(after[strong]).sum() / np.abs(before[strong]).sum()) if strong.any() else None,
        "net": float(before.mean()),
        "net_decoded": float(after.mean()),
    }


def run(case: Input, work: Path) -> list[dict[str, Any]]:
    """Return a row for each channel and way of coding."""
    rows = []
    series = open_series(case.url, align=case.align)
    ways = [*WAYS, *([ALONE] if "hourly" in case.name else []), *([FIELD] if "Bz" in series.channels else [])]
    for way in ways:
        out = work / "case.lat"
        report = sunzip.compress(case.url, out, align=case.align, force=True, **way)
        with sunzip.open(out) as sun:
            decoded, original = sun.cube(0, len(sun)), series.read(0, len(series))
        for c, name in enumerate(decoded.channels):
            there = decoded.valid[:, c]
            x, y = (cube.data[there, c].astype(np.float64) for cube in (original, decoded))
            aia = channel(name).instrument == "AIA"
            if way is FIELD and name != "Bz":
                continue
            rows.append(
                {
                    "name": case.name,
                    "channel": name,
                    "frames": int(there.sum()),
                    "wish": way.get("max_error"),
                    "block": way.get("block"),
                    "quality": report.quality,
                    "bits_per_sample": 32 * report.coded_bytes / report.raw_bytes,
                    **(light(x, y) if aia else flux(x, y)),
                }
            )
        click.echo(f"{case.name}: {way}", err=True)
    return rows


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
def main(real: Path) -> None:
    """Measure all inputs."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = [row for case in cases(real, work) for row in run(case, work)]
    model = weights.load()
    about = {"name": model.name, "sha256": model.sha256}
    click.echo(keep("sums", {"command": command("sums"), "model": about, "rows": rows}))


if __name__ == "__main__":
    main()
