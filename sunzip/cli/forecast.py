"""The command `forecast`: the radio flux of days to come, from latents."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from sunzip.cli import target
from sunzip.cli.options import anon_option, force_option, json_option, model_option, quiet_option
from sunzip.cli.output import result, steps_bar
from sunzip.cli.program import refuse_idle
from sunzip.display import count, duration, fields, number, table
from sunzip.errors import OutputError

if TYPE_CHECKING:
    from sunzip.studies.forecast import ForecastReport, Score


def _months(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    return _numbers(value, "months are numbers from 1 to 12, as in 1,7")


def _trees(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else _numbers(value, "numbers of trees are whole, as in 250,500")


def _numbers(value: str, how: str) -> tuple[int, ...]:
    words = [word.strip() for word in value.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 1_000_000 for word in words):
        raise click.BadParameter(how)
    return tuple(map(int, words))


@click.command(short_help="Forecast a radio flux from latents.")
@click.argument("archive", metavar="IN.lat")
@click.option("--flux", metavar="FLUX.csv", required=True, help="Daily flux in LISIRD's layout.")
@click.option(
    "--column",
    default="f30",
    show_default=True,
    help="Its column by bare name, as absolute_f107; f30 is short for adjusted_f30.",
)
@click.option("--days", type=click.IntRange(1, 30), default=7, show_default=True, help="Days ahead, at most.")
@click.option(
    "--pool", metavar="N", type=click.IntRange(1), help="Average latent maps over N×N fields first."
)
@click.option(
    "--pca", metavar="K", type=click.IntRange(0), help="Then take K principal components; 0 is none."
)
@click.option("--decode", is_flag=True, help="Decode images, too, for rivals that look at their pixels.")
@click.option("--resnet", metavar="FILE", help="Weights of a ResNet-18 (safetensors), for the paper's rival.")
@click.option(
    "--test", metavar="MONTHS", default="1", show_default=True, callback=_months, help="Months to test."
)
@click.option(
    "--validation",
    metavar="MONTHS",
    default="3",
    show_default=True,
    callback=_months,
    help="Months by which the number of trees is chosen.",
)
@click.option(
    "--trees", metavar="N,N,…", callback=_trees, help="Numbers to choose from; default the paper's."
)
@click.option("--folds", is_flag=True, help="Test each month in turn, too.")
@click.option(
    "--embargo",
    metavar="DAYS",
    type=click.IntRange(0),
    default=14,
    show_default=True,
    help="Days around a fold's month that it learns nothing from.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the trees.")
@click.option("--plot", metavar="OUT.png", help="Draw the errors by horizon.")
@model_option
@anon_option
@force_option
@json_option
@quiet_option
def forecast(
    archive: str,
    flux: str,
    column: str,
    days: int,
    pool: int | None,
    pca: int | None,
    decode: bool,
    resnet: str | None,
    test: tuple[int, ...],
    validation: tuple[int, ...],
    trees: tuple[int, ...] | None,
    folds: bool,
    embargo: int,
    seed: int,
    plot: str | None,
    model: str | None,
    anon: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Forecast the Sun's radio flux from the latents of an archive, and measure how well.

    Extremely randomised trees learn the flux of days to come from each day's first frame. No image is decoded
    for it. Days are split by the month of the forecast: some to learn from, some to choose the number of
    trees by, some to test. Every method is tested on the same days, persistence first: the flux stays as it
    is. With shuffled latents nothing must be gained.
    """
    if not folds:
        refuse_idle("without --folds", "--embargo")
    if plot is None:
        refuse_idle("without --plot", "--force")
    else:
        if not plot.lower().endswith(".png"):
            raise OutputError(f"{plot}: a picture is written; name it *.png")
        sources = [path for path in (archive, flux, resnet) if path]
        target.check(plot, sources, force=force, ours=target.is_picture, what="picture of sunzip")
    from sunzip.cli.picture import put
    from sunzip.studies.figures import forecast_figure, need_matplotlib
    from sunzip.studies.forecast import forecast as run
    from sunzip.studies.forecasters import GRID

    if plot is not None:
        need_matplotlib()
    with steps_bar(quiet, f"opening {archive}") as step:
        report = run(
            archive,
            flux,
            column=column,
            horizons=range(1, days + 1),
            pool=pool,
            pca=pca,
            decode=decode,
            resnet=resnet,
            test=test,
            validation=validation,
            grid=trees or GRID,
            folds=folds,
            embargo=embargo,
            seed=seed,
            model=model,
            anon=anon,
            step=step,
        )
    if plot is not None:
        picture = io.BytesIO()
        forecast_figure(report, picture)
        put(plot, picture)
    result(as_json, report.as_dict(), _forecast(report))


def _forecast(r: ForecastReport) -> Iterator[str]:
    made = "the SYNTHETIC flux" if r.synthetic else "the flux"
    first, last = r.rows[min(r.rows, key=int)], r.rows[max(r.rows, key=int)]
    yield f"{r.archive} forecasts {made} {r.column} of {r.flux}"
    shape = "×".join(map(str, r.latent_shape))
    how = f", means of {r.pool}×{r.pool} fields" if r.pool else ""
    how += f", {r.pca} principal components that hold {100 * r.kept:.0f} %" if r.pca else ""
    rows = [
        ("days", f"{count(r.days, 'day')} from {r.first} to {r.last}"),
        ("learnt from", f"{_range(first['train'], last['train'])} days"),
        (
            "chosen by",
            f"{_range(first['validation'], last['validation'])} days of {_named(r.validation_months)}",
        ),
        ("tested on", f"{_range(first['test'], last['test'])} days of {_named(r.test_months)}"),
        ("latents", f"{shape} of {r.model}{how}"),
        ("they tell", _told(r)),
        ("time", duration(r.seconds)),
    ]
    yield from fields(rows)
    yield ""
    yield "  RMSE in solar flux units by days ahead"
    yield from _scores(r.methods, lambda s: number(s.rmse))
    yield ""
    level = f"{100 * r.interval['level']:.0f} %"
    yield f"  over that of persistence, with {level} intervals; * is less for sure"
    yield from _scores(r.methods, _ratio)
    if r.folds is not None:
        yield ""
        yield f"  the same, every month tested in turn, {count(r.embargo or 0, 'day')} around it left out"
        yield from _scores(r.folds, _ratio)


def _scores(methods: dict[str, list[Score]], show: Callable[[Score], str]) -> list[str]:
    some = next(iter(methods.values()))
    head = ["", *(str(s.horizon) for s in some)]
    return table(head, [[name, *map(show, scores)] for name, scores in methods.items()], indent="    ")


def _ratio(s: Score) -> str:
    if s.ratio_low == s.ratio_high == 1:
        return "1"
    mark = "*" if s.ratio_high < 1 else " "
    return f"{s.ratio:.2f} [{s.ratio_low:.2f} {s.ratio_high:.2f}]{mark}"


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


def _named(months: tuple[int, ...]) -> str:
    return ", ".join(_MONTHS[m - 1] for m in months)


def _range(a: int, b: int) -> str:
    return count(a) if a == b else f"{count(min(a, b))}-{count(max(a, b))}"


def _told(r: ForecastReport) -> str:
    if r.lag is None or r.lag_share is None:
        return "too few days to learn from to say"
    if r.lag_share < 0.1:
        return "next to nothing of the flux of any day: are the times of both files right?"
    when = "the same day" if r.lag == 0 else f"day {r.lag:+d}"
    return f"{100 * r.lag_share:.0f} % of the variance of the flux, that of {when} best"
