"""The group `study`: what a quality would cost, and what a model would do for a mission."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sunzip.cli import target
from sunzip.cli.jobs import (
    found_on_the_way,
)
from sunzip.cli.options import (
    Finite,
    align_options,
    anon_option,
    force_option,
    hmi_option,
    json_option,
    model_option,
    quality_option,
    quiet_option,
    read_options,
    side_option,
)
from sunzip.cli.output import coder, result, steps_bar
from sunzip.cli.program import need_command, refuse_idle
from sunzip.display import NONE, count, duration, fields, number, size, span, table
from sunzip.errors import BoundNotMetError

if TYPE_CHECKING:
    from sunzip.studies.rate import RateReport

_PRESETS = ("cubesat", "l5-monitor", "sdo", "solar-orbiter")


@click.group(
    short_help="Study what frames would cost, and a mission gain.",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.pass_context
def study(ctx: click.Context) -> None:
    """Study what a quality would cost, and what a model would do for a mission."""
    need_command(ctx)


def _qualities(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    named = [text.strip() for text in value.split(",")]
    if not all(re.fullmatch("[0-9]{1,3}", text) and int(text) <= 100 for text in named):
        raise click.BadParameter(f"{value[:40]!r} is no list of numbers from 0 to 100, as 10,35,60 is")
    return [int(text) for text in named]


@study.command(short_help="What frames would cost at which error.")
@click.argument("src", nargs=-1, required=True)
@read_options
@align_options
@model_option
@click.option(
    "--qualities",
    metavar="N,N,…",
    callback=_qualities,
    help="Which ones, from 0 (smallest) to 100; default eight of these, the model's own among them.",
)
@json_option
@quiet_option
def rate(
    src: tuple[str, ...],
    reading: dict[str, Any],
    align: dict[str, Any],
    model: str | None,
    qualities: list[int] | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what frames would cost at which error, before you choose a quality.

    SRC is what `sunzip compress` takes. A sample of it, the one that `compress --dry-run` codes, is coded and
    decoded at several qualities, and what all frames would take is estimated from it. Errors are means over
    the images of the sample, as the paper counts them; --json has them by channel.
    """
    from sunzip import weights
    from sunzip.api import Alignment
    from sunzip.studies.rate import rate as run

    with steps_bar(quiet, f"opening {src[0]} and coding some frames") as progress:
        report = run(
            src,
            **reading,
            align=Alignment(**align),
            model=model or weights.DEFAULT,
            qualities=qualities,
            progress=progress,
        )
    result(as_json, report.as_dict(), _rated(report))


_OTHERS = " if no other is asked for"


def _speed(value: float) -> str:
    """Return MB/s in few characters: of small frames there may be less than one."""
    return f"{value:.2g}" if value < 9.5 else f"{value:,.0f}"


def _rated(r: RateReport) -> Iterator[str]:
    yield (
        f"{r.source}: {count(r.frames, 'frame')}, {count(r.images, 'image')} of {r.shape[0]}×{r.shape[1]}: "
        f"{' '.join(r.channels)}"
    )
    yield from fields(
        [
            ("times", f"{span(r.first, r.last)} UTC"),
            ("model", coder(r.model, r.default_quality) + _OTHERS * (r.default_quality is not None)),
            ("blocks", f"of {count(r.block, 'frame')}"),
            ("pixels", f"{size(r.raw_bytes)} as float32"),
            ("measured on", f"{count(r.sample_frames, 'frame')}, {count(r.sample_images, 'image')}"),
            ("time", duration(r.seconds)),
        ]
    )
    yield ""
    yield from table(
        ["quality", "archive", "bytes", "bits", "ratio", "error", "r", "ppe10", "ppe50", "in", "out"],
        [
            [
                NONE if row.quality is None else str(row.quality),
                size(row.archive_bytes),
                number(row.bytes_per_frame),
                number(row.bits_per_sample),
                number(row.ratio),
                number(row.rmse_sigma),
                *(number(None) if m is None else f"{m:.3f}" for m in (row.r, row.ppe10, row.ppe50)),
                _speed(row.in_mb_s),
                _speed(row.out_mb_s),
            ]
            for row in r.rows
        ],
    )
    yield ""
    blank = ", ".join(
        str(row.constant) if row.quality is None else f"{row.constant} at {row.quality}"
        for row in r.rows
        if row.constant
    )
    yield from fields(
        [
            ("archive", "of all frames, estimated; bytes a frame, bits a pixel and ratio to"),
            ("", "float32 are those of this file, without the model"),
            ("error", "RMSE in units of a pixel's noise, mean over images as are r and ppe"),
            *([("r", f"without images that decode to one number: {blank}")] if blank else []),
            ("in, out", "MB of float32 a second on this machine: to read, code and measure"),
            ("", "errors; to decode"),
        ]
    )
    yield from found_on_the_way(r.alignment)


@study.command(short_help="Bytes, recorder, downlink and computing of a mission.")
@click.argument("mission", required=False, metavar="[MISSION.yaml]")
@click.option("--preset", type=click.Choice(_PRESETS), help="A mission that comes with sunzip.")
@click.option("--out", metavar="OUT.html", required=True, help="The report; OUT.json is written beside it.")
@click.option("--source", "sources", metavar="SRC", multiple=True, help="Frames of a period; repeatable.")
@hmi_option
@anon_option
@model_option
@quality_option
@click.option(
    "--frames", type=click.IntRange(2), default=24, show_default=True, help="Most frames of a period."
)
@click.option("--size", metavar="N", type=click.IntRange(16), help="Measure at N×N pixels; default 512.")
@force_option
@json_option
@quiet_option
def onboard(
    mission: str | None,
    preset: str | None,
    out: str,
    sources: tuple[str, ...],
    hmi: str | None,
    anon: bool,
    model: str | None,
    quality: int | None,
    frames: int,
    size: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Work out what a model would save a mission, and whether the mission could run it.

    MISSION.yaml says what is imaged, how often, and how it gets home. Frames are those of --source, what
    `sunzip compress` takes, or of the synthetic Sun, quiet and active. They are coded as the mission does it
    today and with the model; the recorder is simulated over weeks of passes, and computing is counted and
    scaled to processors that fly.

    The report is one HTML file that fetches nothing, and lists every assumption.
    """
    if (mission is None) == (preset is None):
        raise click.UsageError("name either a mission file or a --preset")
    if not sources:
        refuse_idle("without --source", "--hmi", "--anon")
    target.check_report(out, [p for p in (mission, *sources, hmi) if p], force)
    from sunzip.studies import onboard as studies
    from sunzip.studies.onboard.report import page

    plan = studies.read(mission) if mission is not None else studies.preset(str(preset))
    with steps_bar(quiet, "opening the frames") as progress:
        found = studies.study(
            plan,
            model=model,
            quality=quality,
            sources=sources,
            frames=frames,
            size=size,
            hmi=hmi,
            anon=anon,
            progress=progress,
        )
    studies.write(page(found), found, out)
    result(as_json, found, _studied(out, found))


@study.command(short_help="Packets lost, bits flipped, weights struck.")
@click.option("--out", metavar="OUT.html", required=True, help="The report; OUT.json is written beside it.")
@click.option("--source", metavar="SRC", help="Where frames come from; default the synthetic Sun.")
@hmi_option
@anon_option
@model_option
@quality_option
@side_option("Of the frames.")
@click.option(
    "--faults",
    "wanted",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Of each kind, each way of sending.",
)
@click.option(
    "--weights", type=click.IntRange(0), default=200, show_default=True, help="Bits flipped in the weights."
)
@click.option(
    "--loss",
    type=Finite(1e-4, 0.5, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of packets lost.",
)
@click.option("--burst", type=Finite(1, 1000), default=8.0, show_default=True, help="Mean length of a burst.")
@click.option(
    "--packet",
    type=click.IntRange(64, 65536),
    default=1776,
    show_default=True,
    help="Most bytes of a packet.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draws.")
@force_option
@json_option
@quiet_option
def faults(
    out: str,
    source: str | None,
    hmi: str | None,
    anon: bool,
    model: str | None,
    quality: int | None,
    side: int,
    wanted: int,
    weights: int,
    loss: float,
    burst: float,
    packet: int,
    seed: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Send coded frames as CCSDS space packets through faults, and count what of them is left.

    Packets are lost one by one and in bursts; bits flip in packets on their way, in the recorder before
    packets are made, in payloads before any checksum is made, and in the weights of the encoder. Ways to
    trade bytes for resilience are measured beside each other. Nothing may be decoded silently wrong: the
    exit code is 5 if anything is.
    """
    if source is None:
        refuse_idle("without --source", "--hmi", "--anon")
    target.check_report(out, [p for p in (source, hmi) if p], force)
    from sunzip.studies.faults import faults as run
    from sunzip.studies.faults_report import page
    from sunzip.studies.onboard import write

    with steps_bar(quiet, "opening the frames") as progress:
        found = run(
            model=model,
            quality=quality,
            source=source,
            hmi=hmi,
            anon=anon,
            size=side,
            count=wanted,
            weight_count=weights,
            loss=loss,
            burst=burst,
            packet=packet,
            seed=seed,
            progress=progress,
        )
    write(page(found), found, out)
    result(as_json, found, _faulted(out, found))
    if found["silent"]:
        raise BoundNotMetError(
            f"{out}: {found['silent']} frames were decoded although they are not what was sent"
        )


def _faulted(out: str, found: dict[str, Any]) -> Iterator[str]:
    from sunzip.studies.faults_report import KINDS

    yield f"{out} holds what faults do to frames of {found['model']['name']}"
    for kind, (title, _) in KINDS.items():
        yield f"  {title}"
        yield from table(
            ["way", "bytes", "faults", "frames", "whole", "in part", "lost", "silently wrong"],
            [
                [
                    row["title"],
                    f"{100 * row['overhead']:+.1f} %",
                    count(row["kinds"][kind]["faults"]),
                    count(row["kinds"][kind]["frames"]),
                    *(
                        f"{number(100 * n / row['kinds'][kind]['frames'])} %"
                        for n in (
                            row["kinds"][kind]["whole"],
                            row["kinds"][kind]["damaged"] + row["kinds"][kind]["based"],
                            row["kinds"][kind]["lost"],
                        )
                    ),
                    count(row["kinds"][kind]["silent"]),
                ]
                for row in found["schemes"]
            ],
            indent="    ",
        )
    p, w = found["payloads"], found["weights"]
    yield from fields(
        [
            (
                "payloads",
                f"{count(p['faults'], 'fault')} before any checksum: {p['refused']} refused, {p['same']} "
                f"changed nothing, {p['passed']} passed",
            ),
            (
                "weights",
                f"{count(w['faults'], 'bit')}: {w['same']} changed nothing, {w['harmless']} the error by 1 % "
                f"at most, {w['worse']} more, {w['useless']} twofold; {w['refused']} refused; found by a "
                f"digest {w['noticed']}",
            ),
            ("time", duration(found["seconds"])),
        ]
    )


def _studied(out: str, found: dict[str, Any]) -> Iterator[str]:
    mission, model = found["mission"], found["model"]
    yield f"{out} holds the study of {mission['name']} with {coder(model['name'], model['quality'])}"
    yield from table(
        ["way", "B/frame", "99.9 %", "worst seen", "a day", "of downlink", "lost", "latency 95 %"],
        [
            [
                way["title"],
                size(way["frame"]["mean"]),
                size(way["frame"]["p999"]),
                size(way["frame"]["worst"]),
                size(way["recorder"]["bytes_per_day"]),
                f"{number(100 * way['recorder']['bytes_per_day'] / way['recorder']['capacity_per_day'])} %",
                f"{number(100 * way['recorder']['lost'])} %",
                "never"
                if way["recorder"]["latency"] is None
                else duration(way["recorder"]["latency"]["p95"]),
            ]
            for way in found["ways"].values()
        ],
    )
    yield ""
    errors = ", ".join(f"{name} {number(e['read'])}" for name, e in found["measured"]["errors"].items())
    compute = found["compute"]
    yield from fields(
        [
            ("error", f"{errors}, in units of a pixel's noise, of the first frame"),
            ("network", f"{number(compute['frame']['macs'] / 1e9)} GMAC a frame"),
            *(
                (
                    p["processor"].split(",")[0],
                    f"{duration(p['seconds'])}, {number(p['joules'])} J a frame; "
                    + ("keeps" if p["keeps_cadence"] else "does not keep")
                    + f" the cadence of {duration(mission['cadence'])}",
                )
                for p in compute["processors"]
            ),
            ("measured on", count(sum(p["frames"] for p in found["measured"]["periods"]), "frame")),
            ("time", duration(found["seconds"])),
        ]
    )
