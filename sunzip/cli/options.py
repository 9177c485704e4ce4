"""Options that commands share, each written once, and those that go together as one argument."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import click


class Finite(click.FloatRange):
    """A number of a range; NaN is in none, though no comparison says so, and infinity is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return found


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
force_option = click.option("--force", is_flag=True, help="Replace what an earlier run wrote there.")
hmi_option = click.option("--hmi", metavar="URL", help="Second store of SDOML v2, with Bx By Bz.")
anon_option = click.option("--anon", is_flag=True, help="Read from S3 without credentials.")
degradation_option = click.option(
    "--degradation", metavar="DIR", help="Tables of AIA's degradation, for FITS files that lack DEG_COR."
)
model_option = click.option("--model", metavar="NAME|DIR", help="Model to use; see `sunzip models list`.")


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(filter(None, map(str.strip, value.split(","))))


channels_option = click.option(
    "--channels", metavar="NAMES", callback=_names, help="Channels, as in 171A,193A,Bz; default all."
)
start_option = click.option("--start", metavar="TIME", help="First time (UTC), as in 2014-01-31T06:00.")
stop_option = click.option("--stop", metavar="TIME", help="Time to stop before.")
quality_option = click.option(
    "--quality", type=click.IntRange(0, 100), help="0 (smallest) to 100; default the model's."
)


def side_option(text: str) -> Callable[..., Any]:
    """Return the option of how large the frames are that a command makes; `text` is its help."""
    return click.option(
        "--size", "side", metavar="N", type=click.IntRange(16), default=512, show_default=True, help=text
    )


resume_option = click.option("--resume", is_flag=True, help="Continue a run that was broken off.")
workers_option = click.option(
    "--workers", metavar="N", type=click.IntRange(1), help="Code in N processes of this machine."
)
dask_option = click.option(
    "--dask", metavar="ADDRESS", help="Code on Dask workers: tcp://HOST:8786 or a scheduler file."
)

#: Those by which images are brought onto one time axis: the arguments of `sunzip.Alignment`.
_ALIGNMENT = {
    "cadence": click.option(
        "--cadence",
        metavar="STEP",
        default="12min",
        show_default=True,
        help="Time grid, or `native`: times as they are, no image lost.",
    ),
    "tolerance": click.option(
        "--tolerance",
        metavar="SPAN",
        help="Farthest from the grid; default half a step. With `native` from a frame's first image: 6min.",
    ),
    "start": start_option,
    "stop": stop_option,
    "every": click.option("--every", metavar="STEP", help="Keep only frames this far apart, as in 1h."),
    "channels": channels_option,
    "size": click.option("--size", metavar="N", type=click.IntRange(1), help="Average down to N×N pixels."),
    "missing": click.option(
        "--missing",
        type=click.Choice(["mask", "drop"]),
        default="mask",
        show_default=True,
        help="Keep or drop frames that lack a channel or its pixels.",
    ),
}

#: Those by which sources are read, as functions take them that do.
_READING = {"hmi": hmi_option, "anon": anon_option, "degradation": degradation_option}


def align_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of an alignment as one argument, `align`: those of `sunzip.Alignment`."""
    return _together(command, "align", _ALIGNMENT)


def read_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of how sources are read as one argument, `reading`."""
    return _together(command, "reading", _READING)


def _together(
    command: Callable[..., None], name: str, options: dict[str, Callable[..., Any]]
) -> Callable[..., None]:
    @functools.wraps(command)
    def run(**values: Any) -> None:
        taken = {key: values.pop(key) for key in options}
        command(**values, **{name: taken})

    for option in reversed(options.values()):
        run = option(run)
    return run
