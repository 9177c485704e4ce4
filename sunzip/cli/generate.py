"""The command `generate`: Suns that never were, as pictures or as a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sunzip.cli import target
from sunzip.cli.options import anon_option, force_option, hmi_option, json_option, model_option, quiet_option
from sunzip.cli.output import frames_bar, result
from sunzip.cli.program import refuse_idle
from sunzip.display import NONE, count, duration, fields, moment, number, table
from sunzip.errors import OutputError

if TYPE_CHECKING:
    from sunzip.studies.generate import Density, GenerateReport


@click.command(short_help="Draw Suns that never were from a model.")
@click.argument("out", metavar="OUT.png|OUT.zarr")
@model_option
@click.option(
    "--count", "frames", type=click.IntRange(1), default=1, show_default=True, help="Frames to make."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--from",
    "density",
    type=click.Choice(["prior", "posterior"]),
    help="Draw from N(0, I), as the paper, or from a density of --latents; default prior.",
)
@click.option("--latents", metavar="IN.lat", help="Archive of frames that the model was trained on.")
@click.option(
    "--between", metavar="TIME TIME", nargs=2, type=str, help="Interpolate between two dates of --latents."
)
@click.option("--compare", metavar="IN.lat|SRC", help="Measure realism against these held-out frames.")
@hmi_option
@anon_option
@force_option
@json_option
@quiet_option
def generate(
    out: str,
    model: str | None,
    frames: int,
    seed: int,
    density: Density | None,
    latents: str | None,
    between: tuple[str, str] | None,
    compare: str | None,
    hmi: str | None,
    anon: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw frames of a Sun that never was from a model's latent space, and decode them to DN/s and G.

    OUT is a picture with a panel per channel, or a store in the layout of SDOML v2. Its attributes and the
    keywords of every image say that nothing in it was observed; times only number the frames.

    The prior is that of a σ-VAE; `--from posterior` and `--between` work with every model, from the latents
    of an archive. The same seed gives the same frames.
    """
    if between is not None and density is not None:
        raise click.UsageError("--between and --from exclude each other")
    if (between is not None or density == "posterior") and latents is None:
        raise click.UsageError(f"{'--between' if between else '--from posterior'} needs --latents IN.lat")
    if between is not None and frames < 2:
        raise click.UsageError("--between needs --count 2 or more; both dates count")
    if model is None and latents is None:
        raise click.UsageError("name a σ-VAE with --model, or an archive with --latents")
    if between is not None:
        refuse_idle("with --between, which draws nothing", "--seed")
    if compare is None or compare.lower().endswith(".lat"):
        refuse_idle("without --compare SRC", "--hmi")
    if compare is None and latents is None:
        refuse_idle("without --latents or --compare", "--anon")
    picture = out.lower().endswith(".png")
    if not picture and not out.rstrip("/").lower().endswith(".zarr"):
        raise OutputError(f"{out}: a picture or a store is written; name it *.png or *.zarr")
    target.check(
        out,
        [p for p in (latents, compare, hmi) if p],
        force=force,
        ours=target.is_picture if picture else target.is_store,
        what="picture of sunzip" if picture else "Zarr store of sunzip",
    )
    from sunzip.studies.generate import generate as run

    with frames_bar(quiet, f"opening {latents or model}") as progress:
        report = run(
            out,
            model=model,
            count=frames,
            seed=seed,
            density=density or "prior",
            latents=latents,
            between=between,
            compare=compare,
            hmi=hmi,
            anon=anon,
            force=force,
            progress=progress,
        )
    result(as_json, report.as_dict(), _generated(report))


def _generated(r: GenerateReport) -> Iterator[str]:
    y, x = r.shape
    yield f"{r.path} holds {count(r.count, 'generated frame')} of {y}×{x}: {' '.join(r.channels)}"
    rows = [("model", f"{r.model} {r.model_sha256[:12]}")]
    if r.kind == "prior":
        rows.append(("drawn from", f"N(0, I), seed {r.seed}"))
    elif r.density is not None:
        d = r.density
        rows.append(
            (
                "drawn from",
                f"{count(d['components'], 'Gaussian')} in {count(d['dimensions'], 'dimension')}, which hold "
                f"{100 * d['kept']:.0f} % of the variance of {count(d['frames'], 'frame')}; seed {r.seed}",
            )
        )
    else:
        rows.append(("between", f"{moment(r.first)} and {moment(r.last)} UTC"))
    yield from fields([*rows, ("time", f"{duration(r.seconds)}, {number(r.count / r.seconds)} frames/s")])
    if r.realism is None:
        return
    real = r.realism
    yield ""
    yield (
        f"  held against {os.path.basename(real['held_out'].rstrip('/')) or real['held_out']}: "
        f"{count(real['frames'], 'frame')}, {count(real['held_out_frames'], 'held-out frame')}"
    )
    yield from table(
        ["channel", "pixel values", "among held out", "spectrum", "held out"],
        [
            [name, *(number(c[k]) for k in ("values", "values_held_out")),
             *map(_slope, (c["slope"], c["slope_held_out"]))]
            for name, c in real["channels"].items()
        ],
        indent="    ",
    )  # fmt: skip
    pairs = [("correlation of channels", "correlation")]
    if real["nearest"] is not None:
        pairs.append(("distance to the nearest latents", "nearest"))
    yield from table(
        ["", "generated", "held out"],
        [[what, number(real[key]), number(real[f"{key}_held_out"])] for what, key in pairs],
        indent="    ",
    )


def _slope(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
