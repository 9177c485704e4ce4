"""Give a wavelet model tables of how far to trust others, fitted to the frames that the default model saw.

Run as ``python -m scripts.add_trusts --real REAL --model models/wavelet-12 --out runs/trusts``. The network
stays as it is, and so do the bytes of frames that build on none.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from scripts.default_model import training_films
from sunzip.train.films import whole
from sunzip.train.wavelet import add_trusts
from sunzip.weights import load, write

#: Qualities at which films are coded, and how often tables are fitted.
_QUALITIES, _TIMES = tuple(range(6, 90, 6)), 2


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--model", "name", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--synthetic", "count", default=10, help="Films.")
@click.option("--seed", default=0)
def main(real: Path, name: Path, out: Path, count: int, seed: int) -> None:
    """Write the model's folder."""
    groups = training_films(real, out / "training", count, None, seed)
    films = [
        ([whole(f.images, f.channels) for f in film], film[0].channels)
        for group in groups.values()
        for film in group
        if len(film) > 1
    ]
    order = np.random.default_rng(seed).permutation(len(films))
    model = load(name)
    for _ in range(_TIMES):
        model = add_trusts(model, [films[i] for i in order], _QUALITIES)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
