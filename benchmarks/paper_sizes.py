"""Table 1 of the paper: sizes of its 317,566 frames from the real networks, beside archives on disk.

Run as ``python -m benchmarks.paper_sizes --models DIR --models DIR …``, with folders of `sunzip train`.
Columns of a bottleneck without a model stay empty, or with ``--add`` as an earlier run measured them; the
default model stands beside them for comparison.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

import sunzip
from benchmarks.common import PAPER, RESULTS, command, keep, load
from sunzip import weights
from sunzip.channels import NAMES
from sunzip.nn.sigma_vae import BOTTLENECKS, SIZE, SigmaVAE
from sunzip.weights import Model

MIB = 2**20
FRAME_BYTES = len(NAMES) * SIZE * SIZE * 4

#: A day each of a rising, a high, a falling and a low Sun, of a seed that no training uses.
DAYS = ("2011-03-01", "2014-02-01", "2015-11-01", "2018-06-01")


#: A day at 12 minutes, which is what a shard holds.
FRAMES_PER_DAY = 120


def _day(start: str) -> str:
    return f"synthetic:frames={FRAMES_PER_DAY},size={SIZE},seed=777003,start={start}"


def computed(bottleneck: int, frames: int, folder: Path) -> dict[str, float]:
    """Return what the paper counts: float32 means, and weights with buffers as PyTorch saves them."""
    with torch.device("meta"):
        network = SigmaVAE(bottleneck)
    file = folder / "network.pt"
    torch.save(network.to_empty(device="cpu").state_dict(), file)
    model = file.stat().st_size / MIB
    data, latents = frames * FRAME_BYTES / MIB, frames * bottleneck * 4 / MIB
    return {
        "data_mib": data,
        "weights_mib": model,
        "latents_mib": latents,
        "total_mib": model + latents,
        "percent": 100 * (model + latents) / data,
    }


def measured(model: Model, frames: int, folder: Path) -> dict[str, Any]:
    """Compress days of frames, and extrapolate: coded bytes by frame, everything else by shard."""
    one, all_days = ([_day(start) for start in days] for days in (DAYS[:1], DAYS))
    reports = [sunzip.compress(src, folder / "days.lat", model=model, force=True) for src in (one, all_days)]
    # Two archives tell what a shard costs and what an archive costs once.
    assert sunzip.info(folder / "days.lat")["frames_per_shard"] == FRAMES_PER_DAY
    rest = [r.archive_bytes - r.coded_bytes for r in reports]
    per_shard = (rest[1] - rest[0]) / (len(DAYS) - 1)
    whole = reports[1]
    per_frame = whole.coded_bytes / whole.frames
    shards = -(-frames // FRAMES_PER_DAY)
    coded = per_frame * frames
    archive = coded + rest[0] + per_shard * (shards - 1)
    return {
        "model": model.name,
        "sha256": model.sha256,
        "frames": whole.frames,
        "coded_bytes_per_frame": per_frame,
        "other_bytes_per_shard": per_shard,
        # Of a pyramid's coefficients nobody would keep float32 ones.
        "share_of_float32": whole.coded_bytes / whole.latent_bytes if whole.latent_bytes else None,
        "weights_mib": model.nbytes / MIB,
        "latents_mib": coded / MIB,
        "archive_mib": archive / MIB,
        "total_mib": (archive + model.nbytes) / MIB,
        "percent": 100 * (archive + model.nbytes) / (frames * FRAME_BYTES),
    }


@click.command()
@click.option("--models", multiple=True, metavar="DIR", help="Folder of a trained σ-VAE; repeat.")
@click.option("--add", is_flag=True, help="Keep what an earlier run measured of the other bottlenecks.")
def main(models: tuple[str, ...], add: bool) -> None:
    """Compute the paper's columns, and measure ours."""
    paper = json.loads(PAPER.read_text())
    frames = paper["frames"]
    trained = {m.config.get("bottleneck"): m for m in map(load, models)}
    if unknown := trained.keys() - set(BOTTLENECKS):
        raise click.UsageError(f"--models: bottleneck {unknown.pop()} is none of the paper's")
    old = json.loads((RESULTS / "paper_sizes.json").read_text()) if add else {"rows": []}
    kept = {row["bottleneck"]: row["measured"] for row in old["rows"]}
    run = command("paper_sizes")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bottleneck in BOTTLENECKS:
            model = trained.get(bottleneck)
            rows.append(
                {
                    "bottleneck": bottleneck,
                    "paper": paper["table_1"][str(bottleneck)],
                    "computed": computed(bottleneck, frames, Path(folder)),
                    "measured": measured(model, frames, Path(folder)) if model else kept.get(bottleneck),
                }
            )
            click.echo(json.dumps(rows[-1]))
        default = measured(weights.load(), frames, Path(folder))
        click.echo(json.dumps(default))
    content = {
        "command": f"{old['command']} && {run}" if add else run,
        "frames": frames,
        "rows": rows,
        "default": default,
    }
    click.echo(keep("paper_sizes", content))


if __name__ == "__main__":
    main()
