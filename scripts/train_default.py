"""Train the default model, hyperprior-12, on the synthetic Sun and the real frames before the dates below.

Run as ``python scripts/train_default.py --real ../shared/data/real --out runs/default --minutes 65``; then
``python scripts/export_default.py`` turns the run into ``models/hyperprior-12``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.real_inputs import main as wrap_real
from sunzip.channels import NAMES
from sunzip.nn.hyperprior import Hyperprior
from sunzip.normalize import Stabiliser
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import render
from sunzip.train.data import Example, Loader, examples, spread
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


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=65.0)
@click.option("--synthetic", "count", default=240)
@click.option("--seed", default=0)
def main(real: Path, out: Path, minutes: float, count: int, seed: int) -> None:
    """Train and keep the averaged weights in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", handlers=[logging.FileHandler(out / "log.txt")]
    )
    wrap_real(real, out / "inputs")
    v2 = str(real / "sdomlv2_real.zarr")
    cut = {
        "2024": join([open_source(v2)], start="2024-01-01"),
        "193A": join([open_source(v2)], stop=HELD_OUT["193A 2017"]),
        "171A": join([open_source(str(out / "inputs/aia171_hourly.h5"))], stop=HELD_OUT["171A hourly"]),
        "Bz": join([open_source(str(out / "inputs/hmi_los.h5"))], stop=HELD_OUT["HMI line of sight"]),
    }
    banks = {name: bank(series) for name, series in cut.items()}
    banks["synthetic"] = synthetic_bank(count, seed)
    log.info("examples %s", {name: len(b) for name, b in banks.items()})
    shares = {"2024": 0.3, "193A": 0.1, "171A": 0.05, "Bz": 0.07, "synthetic": 0.48}

    units = Stabiliser.for_channels(NAMES)
    width = spread([banks["2024"], banks["193A"], banks["synthetic"]], units)
    width[[NAMES.index("Bx"), NAMES.index("By")]] *= TRANSVERSE
    stabiliser = Stabiliser(units.a, units.b, width)
    log.info("spread %s", dict(zip(NAMES, width.round(2).tolist(), strict=True)))

    held = {
        "193A": bank(join([open_source(v2)], start="2017-01-20", stop="2017-01-22"))[0],
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
                    bits, error = rate_distortion(
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
    groups = [(shares[k], banks[k]) for k in shares]
    model.begin_as(
        *principal_components(Loader(groups, stabiliser, batch=4, seed=seed + 1), model.shape["latents"], 120)
    )
    validate(model, -1)
    loader = Loader(groups, stabiliser, batch=3, seed=seed)
    recipe = Recipe(minutes=minutes, seed=seed)
    model = train(model, loader, recipe, validate=validate, save=save)
    save(model)
    validate(model, 0)
    log.info("done")


if __name__ == "__main__":
    main()
