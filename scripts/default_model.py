"""Make the default model from the synthetic Sun and the real frames before the dates below, together.

Run as ``python -m scripts.default_model --real REAL --out runs/first --minutes 60``; REAL is the folder with
the real data. What a decoder knows before a frame is the frame before as the codec leaves it, which takes a
codec: a second run with ``--coder runs/first`` begins with that one's network and learns from what it leaves.
Killed, a run goes on with ``--resume``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from benchmarks.real_inputs import main as wrap_real
from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.codec.wavelet import WaveletFamily as WaveletCodec
from sunzip.normalize import Stabiliser
from sunzip.rotation import foretold
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import render
from sunzip.train.card import versions
from sunzip.train.films import COARSE, LENGTH, whole
from sunzip.train.loop import Place, Recipe, fit
from sunzip.train.pyramids import Pyramids, WaveletFamily, pyramid
from sunzip.train.run import TRAINING, finish_wavelet
from sunzip.train.wavelet import Film, coded, network_of
from sunzip.weights import load, write

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

#: Sides of synthetic frames, and their shares.
_SIDES, _OF_SIDES = (512, 256, 128, 64), (0.58, 0.15, 0.22, 0.05)

#: Minutes between a synthetic frame and the one before it.
_APART = (12, 60, 60, 240, 1440)

#: Tables are fitted on every so many films, twice.
_FITTED = 4


#: Times of a film, side of its frames, minutes between them, seed, what codes it and how finely.
_Job = tuple[list[np.datetime64], int, int, int, Path | None, int]


class Frame(NamedTuple):
    """A stabilised frame of a film, and what is known before it.

    Attributes
    ----------
    images, channels
        (C, S, S), and which they are.
    before
        What other frames foretell of it, as they were or as a codec leaves them; None if there are none.
    step
        (C,) with which it is coded then; None if those others were not coded.
    """

    images: Float
    channels: list[int]
    before: Float | None
    step: Float | None


@lru_cache(maxsize=1)
def _codec(folder: Path) -> WaveletCodec:
    return WaveletCodec(load(folder))


def film(
    images: Sequence[Float], channels: list[int], minutes: int, coder: Path | None, q: int
) -> list[Frame]:
    """Make frames of pictures (C, S, S); each knows others, as a codec leaves them if there is one.

    Films of odd qualities go on from frame to frame, as one does to which frames are added one by one.
    """
    times = [n * minutes for n in range(len(images))]
    if coder is None:
        known = [None, *(foretold([(x, minutes)]) for x in images[:-1])]
        return [Frame(x, channels, y, None) for x, y in zip(images, known, strict=True)]
    whole_images = [whole(x, channels) for x in images]
    found: dict[int, Frame] = {}
    for shown in coded(_codec(coder), (whole_images, channels), q, chained=q % 2 == 1):
        before = shown.foretold(times)
        left = None if before is None else before[channels]
        found[shown.place] = Frame(images[shown.place], channels, left, shown.step[channels])
    return [found[place] for place in sorted(found)]


def real_films(
    series: Series, apart: tuple[int, ...], count: int, coder: Path | None, seed: int
) -> list[list[Frame]]:
    """Read a series of one channel; make films of frames that are some places apart, or each frame one."""
    rng = np.random.default_rng(seed)
    channels = [NAMES.index(series.channels[0])]
    stabiliser = Stabiliser.for_channels(series.channels)
    images = [np.nan_to_num(stabiliser.forward(series.read(t, t + 1).data)[0]) for t in range(len(series))]
    if not apart:
        return [film([image], channels, 0, None, 0) for image in images]
    films = []
    for _ in range(count):
        step = int(rng.choice(apart))
        length = min(LENGTH, (len(images) - 1) // step + 1)
        begin = int(rng.integers(len(images) - step * (length - 1)))
        picks = range(begin, begin + step * length, step)
        minutes = int((series.time[picks[1]] - series.time[begin]) / np.timedelta64(1, "m"))
        films.append(film([images[i] for i in picks], channels, minutes, coder, int(rng.integers(COARSE))))
    return films


def _synthetic(job: _Job) -> list[Frame]:
    times, side, apart, seed, coder, quality = job
    torch.set_num_threads(1)
    stabiliser = Stabiliser.for_channels(NAMES)
    images = [stabiliser.forward(render(t, size=side, seed=seed)) for t in times]
    return film(images, list(range(len(NAMES))), apart, coder, quality)


def synthetic_films(count: int, coder: Path | None, seed: int) -> list[list[Frame]]:
    """Render films that begin at random dates over one and a half cycles, of five Suns."""
    rng = np.random.default_rng(seed)
    jobs: list[_Job] = []
    while len(jobs) < count:
        begin = np.datetime64("2010-06-01T00:00") + np.timedelta64(int(rng.integers(14 * 365 * 1440)), "m")
        apart = int(rng.choice(_APART))
        times = [begin + np.timedelta64(n * apart, "m") for n in range(LENGTH)]
        if not any(int(str(t)[5:7]) in _HELD_OUT_MONTHS for t in times):
            side = int(rng.choice(_SIDES, p=_OF_SIDES))
            jobs.append((times, side, apart, 1 + len(jobs) % 5, coder, int(rng.integers(COARSE))))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_synthetic, jobs))


def training_films(
    real: Path, run: Path, count: int, coder: Path | None, seed: int
) -> dict[str, list[list[Frame]]]:
    """Read the real frames that may be shown, and render `count` films of synthetic ones."""
    wrap_real(real, run / "inputs")
    v2 = str(real / "sdomlv2_real.zarr")
    cut = {
        "193A": (join([open_source(v2)], stop=HELD_OUT["193A 2017"]), (1,), 12),
        "171A": (
            join([open_source(str(run / "inputs/aia171_hourly.h5"))], stop=HELD_OUT["171A hourly"]),
            (1, 1, 2, 4),
            48,
        ),
        "Bz": (
            join([open_source(str(run / "inputs/hmi_los.h5"))], stop=HELD_OUT["HMI line of sight"]),
            (),
            0,
        ),
    }
    found = {
        name: real_films(series, apart, films, coder, seed) for name, (series, apart, films) in cut.items()
    }
    return {**found, "synthetic": synthetic_films(count, coder, seed)}


def _film(frames: list[Frame]) -> Film:
    channels = frames[0].channels
    return [whole(f.images, channels) for f in frames], channels


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=60.0)
@click.option("--synthetic", "count", default=60, help="Films.")
@click.option(
    "--coder", type=click.Path(path_type=Path, exists=True), help="Begins it, and codes what is known before."
)
@click.option("--rate", default=2e-3, help="Peak learning rate.")
@click.option("--seed", default=0)
@click.option("--resume", is_flag=True)
def main(
    real: Path,
    out: Path,
    minutes: float,
    count: int,
    coder: Path | None,
    rate: float,
    seed: int,
    resume: bool,
) -> None:
    """Train, and write the model's folder; its card is written by hand."""
    run = out / TRAINING
    run.mkdir(parents=True, exist_ok=resume)
    films = training_films(real, run, count, coder, seed)
    rng = np.random.default_rng(seed)
    banks = [
        (
            SHARES[name],
            [
                pyramid(
                    f.images,
                    f.channels,
                    f.before,
                    f.step,
                    int(rng.integers(8)),
                    int(rng.integers(1 << 31)),
                )
                for one in group
                for f in one
            ],
        )
        for name, group in films.items()
    ]
    fitted = [one for group in films.values() for one in group[::_FITTED]]
    order = rng.permutation(len(fitted))
    stabiliser = Stabiliser.for_channels(NAMES)
    notes: dict[str, Any] = {
        "examples": {name: sum(map(len, group)) for name, group in films.items()},
        "coder": None if coder is None else load(coder).sha256,
        "held_out": HELD_OUT,
    }
    del films
    torch.manual_seed(seed)
    family = WaveletFamily(Pyramids(banks, 3, seed), stabiliser)
    if coder is not None:
        family.network = network_of(load(coder))
    recipe = Recipe(steps=None, minutes=minutes, batch=3, rate=rate, decay=0.998, seed=seed)
    notes = {"recipe": asdict(recipe), **notes}
    with Place.found("cpu") as place:
        # In bfloat16 layers are never wrong here, only slower on processors that do not have it.
        outcome = fit(family, recipe, place, run, settings=notes, half=True, resume=resume, save_minutes=5.0)
    notes |= {"steps": outcome.steps, "seconds": round(outcome.seconds), "versions": versions()}
    network = outcome.network
    assert isinstance(network, type(family.network))
    shown = [partial(_film, fitted[i]) for i in order]
    model = finish_wavelet(network, stabiliser, shown, out.name, notes, lambda _: None)
    write(model, out)
    click.echo(f"{out}: {model.nbytes} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    main()
