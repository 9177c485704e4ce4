"""The command `bench`: how fast a machine is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sunzip.cli.options import json_option, model_option, quality_option, quiet_option, side_option
from sunzip.cli.output import coder, result, steps_bar
from sunzip.display import NONE, count, duration, fields, number, size, table
from sunzip.errors import UnsupportedError

if TYPE_CHECKING:
    from sunzip.studies.bench import BenchReport


@click.command(short_help="Tell how fast this machine codes and decodes.")
@model_option
@quality_option
@side_option("Pixels a side, a multiple of 16.")
@json_option
@quiet_option
def bench(model: str | None, quality: int | None, side: int, as_json: bool, quiet: bool) -> None:
    """Tell how fast this machine codes and decodes, on one core, two, four and so on.

    A film of the synthetic Sun, 12 channels every 12 minutes, goes from memory into an archive and back, in
    a process for each number of cores that has its networks and helpers ready when the clock starts. It
    takes a minute on two cores, of larger frames some, and room for 1.5 GB at most among temporary files.
    Fewer cores: OMP_NUM_THREADS=N.

    It also decodes a block that was coded elsewhere: if that does not give the very pixels that it gives
    there, the exit code is 3.
    """
    from sunzip import weights
    from sunzip.studies.bench import bench as run

    with steps_bar(quiet, "loading the model") as progress:
        report = run(model=model or weights.DEFAULT, quality=quality, size=side, progress=progress)
    result(as_json, report.as_dict(), _benched(report))
    if report.exact is False:
        raise UnsupportedError(
            "a block does not decode to the pixels that it has elsewhere; the memory of this machine or its "
            "libraries cannot be trusted: run the tests, or use another"
        )


_BUSY = "time it again when they are done"

_PIXELS = {
    True: "exact: a block from elsewhere decodes to the very same here",
    False: "wrong: a block from elsewhere does not decode to the same here",
    None: "not checked, as no block of this model is known",
}


def _benched(r: BenchReport) -> Iterator[str]:
    busy = r.load is not None and r.load >= 1
    yield f"{r.processor}, {count(r.rows[-1].cores, 'core')}: {r.platform}"
    yield from fields(
        [
            ("model", coder(r.model, r.quality)),
            (
                "frames",
                f"of a synthetic Sun, {len(r.channels)} channels of {r.shape[0]}×{r.shape[1]}, in blocks of "
                f"{r.block}",
            ),
            ("pixels", _PIXELS[r.exact]),
            ("time", duration(r.seconds)),
            *([("busy", f"{number(r.load)} other programs at work before: {_BUSY}")] if busy else []),
        ]
    )
    yield ""
    yield from table(
        ["cores", "in MB/s", "frames/s", "1 TB", "out MB/s", "frames/s", "1 TB", "memory"],
        [
            [
                str(row.cores),
                number(row.in_mb_s),
                number(row.in_frames_s),
                f"{number(row.in_hours)} h",
                number(row.out_mb_s),
                number(row.out_frames_s),
                f"{number(row.out_hours)} h",
                NONE if row.peak_bytes is None else size(row.peak_bytes),
            ]
            for row in r.rows
        ],
    )
    yield ""
    yield "  MB and TB of float32; in: coded, errors measured, archive written; out: decoded"
