"""The group `study`: what a model would do for a mission."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sunzip.cli import target
from sunzip.cli.jobs import anon_option, force_option, hmi_option, json_option, model_option, quiet_option
from sunzip.cli.output import count, duration, fields, number, result, shows_progress, size, table
from sunzip.cli.program import need_command
from sunzip.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

_PRESETS = ("cubesat", "l5-monitor", "sdo", "solar-orbiter")


@click.group(invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...")
@click.pass_context
def study(ctx: click.Context) -> None:
    """Study what a model would do for a mission."""
    need_command(ctx)


@study.command(short_help="Bytes, recorder, downlink and computing of a mission.")
@click.argument("mission", required=False, metavar="[MISSION.yaml]")
@click.option("--preset", type=click.Choice(_PRESETS), help="A mission that comes with sunzip.")
@click.option("--out", metavar="OUT.html", required=True, help="The report; OUT.json is written beside it.")
@click.option("--source", "sources", metavar="SRC", multiple=True, help="Frames of a period; repeatable.")
@hmi_option
@anon_option
@model_option
@click.option("--quality", type=click.IntRange(0, 100), help="0 (smallest) to 100; default the model's.")
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
        raise click.UsageError("name a mission file or a --preset")
    if not out.lower().endswith((".html", ".htm")):
        raise OutputError(f"{out}: a page is written; name it *.html")
    beside = os.path.splitext(out)[0] + ".json"
    read = [p for p in (mission, *sources, hmi) if p]
    target.check(out, read, force=force, ours=target.is_report, what="report")
    target.check(beside, read, force=force, ours=target.is_json, what="JSON")
    from sunzip.studies import onboard as studies

    plan = studies.read(mission) if mission is not None else studies.preset(str(preset))
    with _bar(quiet) as progress:
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
    studies.write(found, out)
    result(as_json, found, _studied(out, found))


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], object] | None]:
    """Show how a study goes on, on stderr; yields None if nobody looks."""
    if not shows_progress(quiet):
        yield None
        return
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(total=0, leave=False, dynamic_ncols=True, bar_format="{desc}: {n_fmt}/{total_fmt}")

    def update(what: str, done: int, total: int) -> None:
        bar.set_description_str(what, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    try:
        yield update
    finally:
        bar.close()


def _studied(out: str, found: dict[str, Any]) -> Iterator[str]:
    mission, model = found["mission"], found["model"]
    yield f"{out} holds the study of {mission['name']} with {model['name']} at quality {model['quality']}"
    yield from table(
        ["way", "B/frame", "99.9 %", "worst", "a day", "of downlink", "lost", "latency 95 %"],
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
            ("error", f"{errors}, in units of a pixel's noise"),
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
