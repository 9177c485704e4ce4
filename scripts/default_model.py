"""Make the default model from the synthetic Sun and the real frames before the dates below, together.

`sunzip train` learns from sources that are joined in time; this mixes sources of several sizes in stated
shares, with the same loop. Run as ``python -m scripts.default_model --real REAL --out models/NAME
--minutes 60``; REAL is the folder with the real data. Killed, it goes on with ``--resume``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.real_inputs import main as wrap_real
from sunzip.channels import NAMES
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import render
from sunzip.train.card import versions
from sunzip.train.data import Views
from sunzip.train.export import write
from sunzip.train.families import HyperpriorFamily, principal_components
from sunzip.train.frames import Example, examples
from sunzip.train.loop import Place, Recipe, bf16_is_faster, fit
from sunzip.train.run import COMPONENT_BATCHES, TRAINING, finish_hyperprior, stabiliser_of

#: Real frames from these dates on are never shown to the training; neither is the SDOML v1 Bz frame of 2013.
HELD_OUT = {"193A 2017": "2017-01-16", "171A hourly": "2017-08-12", "HMI line of sight": "2026-03-01"}

#: Which share of the training samples comes from which group of examples.
SHARES = {"2024": 0.3, "193A": 0.1, "171A": 0.05, "Bz": 0.07, "synthetic": 0.48}


def bank(series: Series) -> list[Example]:
    """Read a whole series into examples."""
    return [e for t in range(len(series)) for e in examples(series.read(t, t + 1))]


def synthetic_bank(count: int, seed: int) -> list[Example]:
    """Render frames of random Suns at random dates over one and a half cycles."""
    rng = np.random.default_rng(seed)
    out = []
    for n in range(count):
        day = int(rng.integers(0, 15 * 365))
        time = np.datetime64("2010-01-01T00:00:00") + np.timedelta64(
            day * 1440 + int(rng.integers(1440)), "m"
        )
        # One Sun serves eight dates: its state is costly to set up.
        frame = render(time, size=512, seed=seed + 1 + n // 8)
        out.append(Example(np.clip(frame, -60000, 60000).astype(np.float16), np.ones(len(NAMES), bool)))
    return out


def training_banks(real: Path, run: Path, count: int, seed: int) -> dict[str, list[Example]]:
    """Read the real frames that may be shown, and render `count` synthetic ones."""
    wrap_real(real, run / "inputs")
    v2 = str(real / "sdomlv2_real.zarr")
    cut = {
        "2024": join([open_source(v2)], start="2024-01-01"),
        "193A": join([open_source(v2)], stop=HELD_OUT["193A 2017"]),
        "171A": join([open_source(str(run / "inputs/aia171_hourly.h5"))], stop=HELD_OUT["171A hourly"]),
        "Bz": join([open_source(str(run / "inputs/hmi_los.h5"))], stop=HELD_OUT["HMI line of sight"]),
    }
    banks = {name: bank(series) for name, series in cut.items()}
    return {**banks, "synthetic": synthetic_bank(count, seed)}


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=60.0)
@click.option("--synthetic", "count", default=240)
@click.option("--seed", default=0)
@click.option("--resume", is_flag=True)
def main(real: Path, out: Path, minutes: float, count: int, seed: int, resume: bool) -> None:
    """Train, and write the model's folder; its card is written by hand."""
    run = out / TRAINING
    run.mkdir(parents=True, exist_ok=resume)
    banks = training_banks(real, run, count, seed)
    # The hourly and the line-of-sight frames come from 8-bit images: they say little of how channels spread.
    stabiliser = stabiliser_of("hyperprior", [banks["2024"], banks["193A"], banks["synthetic"]])
    views = Views([(SHARES[k], b) for k, b in banks.items()], stabiliser, batch=4, seed=seed)
    torch.manual_seed(seed)
    family = HyperpriorFamily(views)
    recipe = Recipe(steps=None, minutes=minutes, batch=views.batch, rate=8e-4, seed=seed)
    notes = {
        "recipe": asdict(recipe),
        "examples": {name: len(b) for name, b in banks.items()},
        "held_out": HELD_OUT,
    }
    family.network.begin_as(*principal_components(views, family.network.shape["latents"], COMPONENT_BATCHES))
    with Place.found("auto") as place:
        half = bf16_is_faster(family, place.device, views(0))
        outcome = fit(family, recipe, place, run, settings=notes, half=half, resume=resume)
    notes |= {"steps": outcome.steps, "seconds": round(outcome.seconds), "versions": versions()}
    model = finish_hyperprior(outcome.network, views, out.name, notes, lambda _: None)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
