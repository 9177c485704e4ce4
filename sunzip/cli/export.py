"""The command `models export`: the half of a model that flies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sunzip.cli import target
from sunzip.cli.options import anon_option, force_option, hmi_option, json_option, quiet_option
from sunzip.cli.output import result, shows_progress
from sunzip.cli.program import refuse_idle
from sunzip.display import duration, fields, number, size, table

if TYPE_CHECKING:
    from sunzip.studies.onnx import ExportReport


@click.command(short_help="Write a model's encoder for ONNX Runtime.")
@click.argument("model", metavar="NAME|DIR")
@click.argument("out", metavar="OUT")
@click.option("--encoder", is_flag=True, help="The encoder alone, with the entropy coder's tables.")
@click.option("--onnx", is_flag=True, help="As ONNX.")
@click.option("--int8", is_flag=True, help="Also with 8-bit integers, calibrated; its losses are measured.")
@click.option(
    "--size",
    "side",
    metavar="N",
    type=click.IntRange(16),
    help="For images of N×N; default 512, or 128 for a σ-VAE; measured at that by models that take any.",
)
@click.option("--quality", type=click.IntRange(0, 100), help="At which losses are measured.")
@click.option("--calibrate", metavar="SRC", help="Frames to calibrate with; default the synthetic Sun.")
@hmi_option
@anon_option
@force_option
@json_option
@quiet_option
def export(
    model: str,
    out: str,
    encoder: bool,
    onnx: bool,
    int8: bool,
    side: int | None,
    quality: int | None,
    calibrate: str | None,
    hmi: str | None,
    anon: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the encoder of a model into the folder OUT, as ONNX, with the entropy coder's tables beside it.

    It is checked against sunzip itself before it is written, runs under ONNX Runtime, and codes frames to
    blocks that the whole model decodes on the ground: `sunzip.studies.onnx.OnnxEncoder`.

    Both --encoder and --onnx must be given, as nothing else can be exported.
    """
    if not (encoder and onnx):
        raise click.UsageError("say --encoder --onnx: nothing else can be exported")
    if calibrate is None:
        refuse_idle("without --calibrate", "--hmi", "--anon")
    read = [p for p in (model if os.path.isdir(model) else None, calibrate, hmi) if p]
    target.check(out, read, force=force, ours=target.is_encoder, what="exported encoder")
    from sunzip.studies.onnx import export as run

    show = shows_progress(quiet)
    report = run(
        model,
        out,
        size=side,
        int8=int8,
        quality=quality,
        source=calibrate,
        hmi=hmi,
        anon=anon,
        force=force,
        progress=(lambda what: click.echo(what, err=True)) if show else None,
    )
    result(as_json, report.as_dict(), _exported(report))


def _files(r: ExportReport) -> dict[str, int]:
    """Return names and bytes, those of a network in many parts as one."""
    out: dict[str, int] = {}
    for name, count in r.files.items():
        shown = "context.*.onnx" if name.startswith("context.") else name
        out[shown] = out.get(shown, 0) + count
    return out


def _exported(r: ExportReport) -> Iterator[str]:
    from sunzip.studies.onnx import TOLERANCE

    shape, other = ("any size", "NumPy") if r.family == "wavelet" else (f"{r.size}×{r.size}", "PyTorch")
    yield f"{r.path} holds the encoder of {r.model} for images of {shape}"
    yield from fields(
        [
            *((name, size(n)) for name, n in _files(r).items()),
            (f"off {other}", f"at most {number(r.agreement)} of the largest output"),
            ("same bytes", f"{number(100 * r.same_bytes)} % of frames, as coded by sunzip"),
            ("frames", r.frames),
        ]
    )
    rows = [("float32", r.float32), *([("int8", r.int8)] if r.int8 else [])]
    yield ""
    yield from table(
        ["", "B/frame", "error", "1 core", "2 cores"],
        [
            [
                name,
                number(row["bytes"]),
                number(row["rmse"]),
                duration(row["seconds_1"]),
                duration(row["seconds_2"]),
            ]
            for name, row in rows
        ],
    )
    if r.int8:
        change = [100 * (r.int8[k] / r.float32[k] - 1) for k in ("bytes", "rmse")]
        yield (
            f"  int8: {change[0]:+.2f} % bytes, {change[1]:+.2f} % error; float32 stays "
            f"{' '.join(r.kept_float)}"
        )
        if max(change) > 100 * TOLERANCE:
            allowed = f"{100 * TOLERANCE:.0f} %"
            yield f"  that is more than the {allowed} it may cost: fly the float32 network instead"
