"""Turn a run of train_default.py into the shipped model.

Run as ``python scripts/export_default.py --run runs/default --out models/hyperprior-12``.
"""

from __future__ import annotations

from pathlib import Path

import click
from safetensors.torch import load_file

from sunzip.nn.hyperprior import Hyperprior
from sunzip.normalize import Stabiliser
from sunzip.train.export import export_hyperprior, write


@click.command()
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--quality", default=50, help="The model's default quality.")
def main(run: Path, out: Path, quality: int) -> None:
    """Export the averaged weights of RUN to OUT."""
    state = load_file(run / "average.safetensors")
    stabiliser = Stabiliser(*(state.pop(f"stabiliser.{k}").numpy() for k in ("a", "b", "spread")))
    network = Hyperprior()
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    log = (run / "log.txt").read_text().splitlines()
    notes = {"recipe": next(line for line in log if "recipe" in line).split("recipe ", 1)[1]}
    model = export_hyperprior(network.eval(), stabiliser, out.name, default_quality=quality, notes=notes)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
