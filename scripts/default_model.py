"""Make the default model, hyperprior-12, from the synthetic Sun and the real frames before the dates below.

Run as ``python -m scripts.default_model train --real REAL --run runs/default --minutes 52``, then
``python -m scripts.default_model export --real REAL --run runs/default --out models/hyperprior-12``;
REAL is the folder with the real data.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.real_inputs import main as wrap_real
from sunzip.channels import NAMES
from sunzip.nn.hyperprior import Hyperprior
from sunzip.normalize import Stabiliser
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import render
from sunzip.train.data import Example, Loader, examples, spread
from sunzip.train.export import export_hyperprior, fit_tables, write
from sunzip.train.loop import Recipe, principal_components, rate_distortion, train

log = logging.getLogger("train")

#: Real frames from these dates on are never shown to the training; neither is the SDOML v1 Bz frame of 2013.
HELD_OUT = {"193A 2017": "2017-01-16", "171A hourly": "2017-08-12", "HMI line of sight": "2026-03-01"}

#: The transverse field is mostly noise: its errors count a sixteenth.
TRANSVERSE = 4.0


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


#: Which share of the training samples comes from which group of examples.
SHARES = {"2024": 0.3, "193A": 0.1, "171A": 0.05, "Bz": 0.07, "synthetic": 0.48}


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


def groups(banks: dict[str, list[Example]]) -> list[tuple[float, list[Example]]]:
    """Return the banks as a loader takes them."""
    return [(SHARES[name], bank) for name, bank in banks.items()]


def load_run(run: Path, network: Hyperprior) -> Stabiliser:
    """Put a run's averaged weights into a network and return the stabiliser that they were trained with."""
    state = load_file(run / "average.safetensors")
    stabiliser = Stabiliser(*(state.pop(f"stabiliser.{k}").numpy() for k in ("a", "b", "spread")))
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    return stabiliser


@click.group()
def main() -> None:
    """Make the default model."""


@main.command("train")
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--run", "out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=52.0)
@click.option("--synthetic", "count", default=240)
@click.option("--seed", default=0)
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="A run to begin from.")
@click.option("--regain", default=0.0, help="Shift of ln of all gains at the start, for another range of λ.")
def train_command(
    real: Path, out: Path, minutes: float, count: int, seed: int, start: Path | None, regain: float
) -> None:
    """Train and keep the averaged weights in the run's folder."""
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", handlers=[logging.FileHandler(out / "log.txt")]
    )
    banks = training_banks(real, out, count, seed)
    log.info("examples %s", {name: len(b) for name, b in banks.items()})

    units = Stabiliser.for_channels(NAMES)
    width = spread([banks["2024"], banks["193A"], banks["synthetic"]], units)
    width[[NAMES.index("Bx"), NAMES.index("By")]] *= TRANSVERSE
    stabiliser = Stabiliser(units.a, units.b, width)
    log.info("spread %s", dict(zip(NAMES, width.round(2).tolist(), strict=True)))

    held = {
        "193A": bank(
            join([open_source(str(real / "sdomlv2_real.zarr"))], start="2017-01-20", stop="2017-01-22")
        )[0],
        "synthetic": synthetic_bank(1, 10_000 + seed)[0],
    }

    def validate(model: Hyperprior, step: int) -> None:
        for name, example in held.items():
            y = stabiliser.forward(example.pixels.astype(np.float32))
            ok = np.isfinite(y) & example.present[:, None, None]
            x = torch.from_numpy(np.where(ok, y, np.float32(0)))[None]
            mask = torch.from_numpy(example.present[None].astype(np.float32))
            for quality in (0, 25, 50, 75, 100):
                with torch.inference_mode():
                    bits, _, error = rate_distortion(
                        model, x, mask, torch.from_numpy(ok[None].astype(np.float32)), torch.tensor([quality])
                    )
                log.info(
                    "held out %s quality %d: %.4f bit/sample, squared error %.4f",
                    name, quality, bits.item() / ok.sum(), error.item() / ok.sum(),
                )  # fmt: skip

    def save(model: Hyperprior) -> None:
        state = {f"network.{k}": v.contiguous() for k, v in model.state_dict().items()}
        for key in ("a", "b", "spread"):
            state[f"stabiliser.{key}"] = torch.from_numpy(getattr(stabiliser, key).copy())
        save_file(state, out / "average.safetensors.new")
        (out / "average.safetensors.new").replace(out / "average.safetensors")

    torch.manual_seed(seed)
    model = Hyperprior()
    if start:
        stabiliser = load_run(start, model)
        with torch.no_grad():
            model.log_gain += regain
            model.log_inverse_gain -= regain
    else:
        first = Loader(groups(banks), stabiliser, batch=4, seed=seed + 1)
        model.begin_as(*principal_components(first, model.shape["latents"], 120))
    validate(model, -1)
    loader = Loader(groups(banks), stabiliser, batch=4, seed=seed)
    recipe = Recipe(minutes=minutes, seed=seed)
    model = train(model, loader, recipe, validate=validate, save=save)
    save(model)
    validate(model, 0)
    log.info("done")


@main.command("export")
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--quality", default=56, help="The model's default quality.")
@click.option("--batches", default=30, help="Batches of training views that the tables are fitted to.")
def export_command(real: Path, run: Path, out: Path, quality: int, batches: int) -> None:
    """Turn a run into a model: integers, half-precision weights, fitted tables."""
    network = Hyperprior()
    stabiliser = load_run(run, network)
    lines = (run / "log.txt").read_text().splitlines()
    notes = {
        "recipe": next(line for line in lines if " recipe " in line).split(" recipe ", 1)[1],
        "steps": max(int(line.split(" step ")[1].split(",")[0]) for line in lines if " step " in line),
        "examples": next(line for line in lines if " examples " in line).split(" examples ", 1)[1],
        "held_out": HELD_OUT,
    }
    model = export_hyperprior(network.eval(), stabiliser, out.name, default_quality=quality, notes=notes)
    loader = Loader(groups(training_banks(real, run, 40, 20_000)), stabiliser, batch=3, seed=20_000)
    views = ((images, masks) for images, masks, _ in islice(loader, batches))
    model = fit_tables(model, views, range(3, 101, 7), bands=5)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
