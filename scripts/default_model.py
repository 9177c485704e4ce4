"""Make the default model from the synthetic Sun and the real frames before the dates below, together.

Run as ``python -m scripts.default_model --real REAL --out models/NAME --minutes 60``; REAL is the folder
with the real data. Killed, it goes on with ``--resume``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.real_inputs import main as wrap_real
from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.normalize import Stabiliser
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import render
from sunzip.train.card import versions
from sunzip.train.export import write
from sunzip.train.loop import Place, Recipe, fit
from sunzip.train.pyramids import Pyramids, WaveletFamily, pyramid
from sunzip.train.run import TRAINING
from sunzip.train.wavelet import Pair, export_wavelet, fit_tables

#: Real frames from these dates on are never shown to the training; neither are the eight channels of 2024 and
#: the SDOML v1 Bz frame of 2013. Of the synthetic Sun Januaries, Marches and the seed 0 are left out.
HELD_OUT = {
    "193A 2017": "2017-01-16",
    "171A hourly": "2017-08-09T10:00:00",
    "HMI line of sight": "2026-03-01",
}
_HELD_OUT_MONTHS = (1, 3)

#: Which share of the training samples comes from which group of frames.
SHARES = {"193A": 0.2, "171A": 0.17, "Bz": 0.08, "synthetic": 0.55}

#: Minutes between a synthetic frame and the one before it.
_APART = (12, 60, 60, 240, 1440)

#: Quality that the default model has by default, and those at which tables are fitted, in turn.
DEFAULT_QUALITY = 35
_QUALITIES = (5, 95, 35, 65, 15, 80, 50, 25, 100, 45, 0, 70, 55, 90, 30)

#: Every so many frames' tables are fitted on, twice.
_FITTED = 3


class Frame:
    """A stabilised frame (C, S, S), its channels, and the one before, so many minutes earlier, or None."""

    def __init__(self, images: Float, channels: list[int], before: Float | None = None, minutes: int = 0):
        self.images, self.channels, self.before, self.minutes = images, channels, before, minutes

    def pair(self) -> Pair:
        """Return it as `fit_tables` wants it."""

        def whole(images: Float) -> Float:
            out = np.zeros((len(NAMES), *images.shape[1:]), np.float32)
            out[self.channels] = images
            return out

        before = None if self.before is None else whole(self.before)
        return whole(self.images), before, self.channels


def real_frames(series: Series, apart: tuple[int, ...], seed: int) -> Iterator[Frame]:
    """Read a series of one channel; every second frame with one of those a few places earlier."""
    rng = np.random.default_rng(seed)
    channel = NAMES.index(series.channels[0])
    stabiliser = Stabiliser.for_channels(series.channels)
    images = [np.nan_to_num(stabiliser.forward(series.read(t, t + 1).data)[0]) for t in range(len(series))]
    for t, image in enumerate(images):
        back = int(rng.choice(apart)) if apart else 0
        if back and t >= back and t % 2:
            minutes = int((series.time[t] - series.time[t - back]) / np.timedelta64(1, "m"))
            yield Frame(image, [channel], images[t - back], minutes)
        else:
            yield Frame(image, [channel])


def _synthetic(job: tuple[np.datetime64, int, int]) -> Frame:
    time, apart, seed = job
    stabiliser = Stabiliser.for_channels(NAMES)
    now, before = (
        stabiliser.forward(render(t, size=512, seed=seed)) for t in (time, time - np.timedelta64(apart, "m"))
    )
    return Frame(now, list(range(len(NAMES))), before, apart)


def synthetic_frames(count: int, seed: int) -> list[Frame]:
    """Render pairs of frames at random dates over one and a half cycles, of five Suns."""
    rng = np.random.default_rng(seed)
    jobs: list[tuple[np.datetime64, int, int]] = []
    while len(jobs) < count:
        time = np.datetime64("2010-06-01T00:00") + np.timedelta64(int(rng.integers(14 * 365 * 1440)), "m")
        if int(str(time)[5:7]) not in _HELD_OUT_MONTHS:
            jobs.append((time, int(rng.choice(_APART)), 1 + len(jobs) % 5))
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_synthetic, jobs))


def training_frames(real: Path, run: Path, count: int, seed: int) -> dict[str, list[Frame]]:
    """Read the real frames that may be shown, and render `count` pairs of synthetic ones."""
    wrap_real(real, run / "inputs")
    v2 = str(real / "sdomlv2_real.zarr")
    cut = {
        "193A": (join([open_source(v2)], stop=HELD_OUT["193A 2017"]), (1,)),
        "171A": (
            join([open_source(str(run / "inputs/aia171_hourly.h5"))], stop=HELD_OUT["171A hourly"]),
            (1, 1, 2, 4),
        ),
        "Bz": (join([open_source(str(run / "inputs/hmi_los.h5"))], stop=HELD_OUT["HMI line of sight"]), ()),
    }
    found = {name: list(real_frames(series, apart, seed)) for name, (series, apart) in cut.items()}
    return {**found, "synthetic": synthetic_frames(count, seed)}


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=60.0)
@click.option("--synthetic", "count", default=140)
@click.option("--seed", default=0)
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Weights to begin with.")
@click.option("--resume", is_flag=True)
def main(
    real: Path, out: Path, minutes: float, count: int, seed: int, start: Path | None, resume: bool
) -> None:
    """Train, and write the model's folder; its card is written by hand."""
    run = out / TRAINING
    run.mkdir(parents=True, exist_ok=resume)
    frames = training_frames(real, run, count, seed)
    rng = np.random.default_rng(seed)
    banks = [
        (
            SHARES[name],
            [pyramid(f.images, f.channels, f.before, f.minutes, int(rng.integers(8))) for f in group],
        )
        for name, group in frames.items()
    ]
    fitted = [f for group in frames.values() for f in group[::_FITTED]]
    order = rng.permutation(len(fitted))
    stabiliser = Stabiliser.for_channels(NAMES)
    notes = {"examples": {name: len(group) for name, group in frames.items()}, "held_out": HELD_OUT}
    del frames
    torch.manual_seed(seed)
    family = WaveletFamily(Pyramids(banks, 3, seed), stabiliser)
    if start is not None:
        family.network.load_state_dict(torch.load(start, weights_only=True))
    recipe = Recipe(steps=None, minutes=minutes, batch=3, rate=2e-3, decay=0.998, seed=seed)
    notes = {"recipe": asdict(recipe), **notes}
    with Place.found("cpu") as place:
        # In bfloat16 layers are never wrong here, only slower on processors that do not have it.
        outcome = fit(family, recipe, place, run, settings=notes, half=True, resume=resume, save_minutes=5.0)
    notes |= {"steps": outcome.steps, "seconds": round(outcome.seconds), "versions": versions()}
    network = outcome.network
    assert isinstance(network, type(family.network))
    model = export_wavelet(network, stabiliser, out.name, default_quality=DEFAULT_QUALITY, notes=notes)
    for turn in range(2):
        pairs = (fitted[i].pair() for i in np.roll(order, 7 * turn))
        model = fit_tables(model, pairs, _QUALITIES)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
