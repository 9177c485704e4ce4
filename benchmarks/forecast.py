"""Forecast the flux of a synthetic Sun from the latents of its archive, over the paper's days.

Run as ``python -m benchmarks.forecast --real ../shared/data/real --work FOLDER``; the archive stays in FOLDER
for the next run. The σ-VAE of the tables is made as docs/how-to/reproduce-the-paper.md says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import keep, load
from sunzip import weights
from sunzip.api import Alignment, compress
from sunzip.sources.synthetic import radio_flux
from sunzip.studies.figures import forecast_figure
from sunzip.studies.flux import read_flux, write_flux
from sunzip.studies.forecast import ForecastReport, forecast
from sunzip.studies.forecasters import GRID
from sunzip.weights import Model

PLOT = Path(__file__).parents[1] / "docs/images/forecast.png"

#: The observed F10.7, in a folder of real data.
OBSERVED = "flux/cls_f107_19511101_20211202.csv"

#: Pixels a side, as in the paper.
SIZE = 128

#: Which Sun: none that a model has been trained on.
SEED = 777001

#: A week before the paper's first day, so that each of its days has all horizons, to its last.
FIRST, LAST = np.datetime64("2010-05-24"), np.datetime64("2018-12-31")


def inputs(work: Path, model: Model) -> tuple[Path, Path]:
    """Return the archive and the flux, made if they are not there."""
    # By its digest: a folder of training keeps its name when it is trained anew.
    archive, flux = work / f"sun-{model.name}-{model.sha256[:8]}.lat", work / "flux.csv"
    days = np.arange(FIRST, LAST + np.timedelta64(1, "D"))
    if not flux.exists():
        write_flux(flux, days, SEED)
    if not archive.exists():
        url = f"synthetic:frames={len(days)},size={SIZE},cadence=1d,start={FIRST},seed={SEED}"
        compress(url, archive, model=model, align=Alignment(cadence="1d"), block=1, resume=True)
    return archive, flux


def statistics(flux: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return what a daily flux is like, in solar flux units."""
    changes = {f"change_{h}": float(np.sqrt(np.mean((flux[h:] - flux[:-h]) ** 2))) for h in (1, 3, 7)}
    extremes = {"least": float(flux.min()), "most": float(flux.max())}
    return {"mean": float(flux.mean()), "deviation": float(flux.std()), **extremes, **changes}


def fluxes(real: Path) -> dict[str, dict[str, float]]:
    """Return the statistics of the observed F10.7, and of synthetic ones."""
    days = np.arange(FIRST, LAST + np.timedelta64(1, "D"))
    observed = read_flux(real / OBSERVED, "f107").at(days)
    found = {"F10.7, observed": statistics(observed)}
    for seed in (SEED, 0):
        made = radio_flux(days, seed=seed)
        found[f"F10.7, synthetic, seed {seed}"] = statistics(made["f107"][1])
        found[f"F30, synthetic, seed {seed}"] = statistics(made["f30"][1])
    return dict(sorted(found.items()))


def summary(report: ForecastReport) -> dict[str, Any]:
    """Return by method the days ahead on which its errors are less than persistence's, interval and all."""
    return {
        part: {name: [s.horizon for s in scores if s.ratio_high < 1] for name, scores in methods.items()}
        for part, methods in (("split", report.methods), ("folds", report.folds or {}))
    }


@click.command()
@click.option(
    "--real",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help=f"Folder with {OBSERVED}, LISIRD's cls_radio_flux_f107.",
)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--model", default=weights.DEFAULT, show_default=True, help="Its name, or the folder of one.")
@click.option("--trees", default=",".join(map(str, GRID)), help="Numbers of trees to choose from.")
@click.option("--pca", type=int, help="Principal components of the latents.")
def main(real: Path, work: Path, model: str, trees: str, pca: int | None) -> None:
    """Make what is needed, forecast, keep the numbers and the plot."""
    coder = load(model)
    weights.register(coder)  # which may be of a folder
    # First, as what comes behind takes hours.
    beside = fluxes(real)
    work.mkdir(parents=True, exist_ok=True)
    archive, flux = inputs(work, coder)
    grid = tuple(map(int, trees.split(",")))
    report = forecast(archive, flux, decode=True, folds=True, grid=grid, pca=pca, step=_tell)
    forecast_figure(report, PLOT)
    words = f" --model {model}" * (model != weights.DEFAULT)
    words += f" --trees {trees}" * (grid != GRID) + f" --pca {pca}" * (pca is not None)
    content = {
        "command": f"python -m benchmarks.forecast --real ../shared/data/real --work FOLDER{words}",
        "size": SIZE,
        "fluxes": beside,
        "bytes": archive.stat().st_size,
        "trees": sorted(grid),
        "less_than_persistence_for_sure_on_days": summary(report),
        "report": report.as_dict() | {"archive": archive.name, "flux": flux.name},
    }
    click.echo(keep("forecast", content))


def _tell(what: str, done: int, total: int) -> None:
    if done in (0, total) or done % 5000 == 0:
        click.echo(f"{what}: {done:,} of {total:,}")


if __name__ == "__main__":
    main()
