"""The command `features`: latents by time, for programs that know nothing of sunzip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sunzip.cli import target
from sunzip.cli.options import (
    anon_option,
    force_option,
    json_option,
    model_option,
    quiet_option,
    start_option,
    stop_option,
)
from sunzip.cli.output import frames_bar, result
from sunzip.display import count, duration, fields, number, span

if TYPE_CHECKING:
    from sunzip.features import FeaturesReport


@click.command(short_help="Write latents as features, for models of other things.")
@click.argument("archive", metavar="IN.lat")
@click.argument("out")
@click.option(
    "--pool",
    metavar="N",
    type=click.IntRange(1),
    help="Average latent maps over N×N fields; 1 is their mean.",
)
@click.option("--pca", metavar="K", type=click.IntRange(1), help="Write K principal components instead.")
@click.option("--fit-until", metavar="TIME", help="Fit the components only on frames before this time.")
@start_option
@stop_option
@model_option
@anon_option
@force_option
@json_option
@quiet_option
def features(
    archive: str,
    out: str,
    pool: int | None,
    pca: int | None,
    fit_until: str | None,
    start: str | None,
    stop: str | None,
    model: str | None,
    anon: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an archive's latents as features by time, a row per frame. No image is decoded.

    OUT is *.h5, *.zarr, *.csv or *.parquet. A frame without any image, and one that is stored as
    pixels, is a row of NaN. Without --pca the numbers are the same to the bit on every machine.

    To predict what comes, fit the components on the past alone: --pca 64 --fit-until 2017-01-01.
    """
    target.check(out, [archive], force=force, ours=target.is_features, what="result of sunzip features")
    from sunzip.features import export_features

    with frames_bar(quiet, f"opening {archive}") as progress:
        report = export_features(
            archive,
            out,
            pool=pool,
            pca=pca,
            fit_until=fit_until,
            start=start,
            stop=stop,
            model=model,
            anon=anon,
            force=force,
            progress=progress,
        )
    result(as_json, report.as_dict(), _written(report))


def _written(r: FeaturesReport) -> Iterator[str]:
    yield f"{r.path} holds {count(r.features, 'feature')} of {count(r.frames, 'frame')}"
    what = f"{r.model}, {'×'.join(map(str, r.latent_shape))}" + (" pooled" if r.pool else "")
    rows = [("times", f"{span(r.first, r.last)} UTC"), ("latents", what)]
    if r.empty:
        rows.append(("missing", f"{count(r.empty, 'frame')} without latents: rows of NaN"))
    if r.fitted is not None and r.explained_variance is not None:
        share = f"{100 * r.explained_variance:.1f} % of the variance"
        rows.append(("components", f"{share} of the {count(r.fitted, 'frame')} that they were fitted on"))
    rows.append(("time", f"{duration(r.seconds)}, {number(r.frames / r.seconds)} frames/s"))
    yield from fields(rows)
