"""The commands that look at things: info, verify, repair and show; none but show decodes anything."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from sunzip.channels import any_of_aia
from sunzip.cli import target
from sunzip.cli.accounts import Accounts
from sunzip.cli.options import (
    anon_option,
    channels_option,
    force_option,
    json_option,
    model_option,
    quiet_option,
    read_options,
)
from sunzip.cli.output import bytes_bar, frames_bar, natural, result
from sunzip.cli.program import refuse_idle
from sunzip.display import NONE, count, fields, moment, size, table
from sunzip.errors import MEND, DamagedError, InputError, OutputError, SunzipError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sunzip.archive import RepairReport, VerifyReport
    from sunzip.cube import Cube


@click.command(short_help="Tell what an archive holds and costs.")
@click.argument("archive", metavar="IN.lat")
@anon_option
@json_option
def info(archive: str, anon: bool, as_json: bool) -> None:
    """Tell what an archive holds and what it costs, without decoding anything."""
    from sunzip.archive import summary

    found = summary(archive, anon=anon)
    costs = _accounts(found)
    result(as_json, found | {"costs": costs.as_dict()}, _info(found, costs))


#: How much the same decoded pixels are from machine to machine, by what an archive says; old ones do not.
_SAMENESS: dict[bool | None, str] = {
    True: "the same bits on every machine",
    False: "from the same symbols on every machine, but for rounding",
}


def _accounts(found: Mapping[str, Any]) -> Accounts:
    """Return the costs; what the archive says of its source and model counts only where it can be true."""
    y, x = found["shape"]
    model = natural(found["model"].get("bytes")) or 0
    latents = natural(found["coding"].get("latents_per_frame"))
    return Accounts(
        frames=found["frames"],
        samples=sum(found["images"].values()) * y * x,
        stored=natural(found["source"].get("stored_bytes")),
        archive=found["bytes"] - found["parts"]["model"],
        model=model,
        coded=found["parts"]["blocks"],
        latents=None if latents is None else 4 * latents * found["frames"],
    )


def _info(a: Mapping[str, Any], costs: Accounts) -> Iterator[str]:
    from sunzip.bounds import bounds_in, in_short

    y, x = a["shape"]
    model = a["model"]
    quality, exact = (a["coding"].get(key) for key in ("quality", "exact"))
    bounds = bounds_in(a["codec"], a["channels"])
    pixels = f", AIA pixels are 2×2 {a['scale']}s" if any_of_aia(a["channels"]) else ""
    urls, layouts = a["source"].get("urls"), a["source"].get("layouts")
    yield f"{a['path']}"
    yield from fields(
        [
            ("format", f"{a['format']}, blocks of {count(a['frames_per_block'], 'frame')}"),
            (
                "model",
                f"{model['name']} {model['sha256'][:12]}, {size(costs.model)}, "
                f"{'embedded' if model['embedded'] else 'not embedded'}",
            ),
            ("quality", NONE if quality is None else str(quality)),
            *([("max error", in_short(bounds))] if bounds else []),
            ("pixels", _SAMENESS.get(exact if type(exact) is bool else None, NONE)),
            ("source", f"{_joined(urls)} ({_joined(layouts)})"),
            ("times", " to ".join(moment(t) for t in a["time"]) + " UTC"),
            ("frames", f"{count(a['frames'])} of {y}×{x}{pixels}"),
            ("images", f"{count(sum(a['images'].values()))}: {_images(a)}"),
        ]
    )
    yield ""
    yield from costs.lines()
    yield ""
    yield "  parts"
    yield from table(["", "bytes", ""], _parts(a), indent="    ")


def _parts(a: Mapping[str, Any]) -> list[list[str]]:
    whole = a["bytes"]
    return [[name, count(n), f"{100 * n / whole:.1f} %"] for name, n in (*a["parts"].items(), ("all", whole))]


def _joined(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) and values else "unknown"


def _images(a: Mapping[str, Any]) -> str:
    numbers = [a["images"][name] for name in a["channels"]]
    if len(set(numbers)) == 1:
        return f"{count(numbers[0])} each of {' '.join(a['channels'])}"
    return ", ".join(f"{name} {count(n)}" for name, n in zip(a["channels"], numbers, strict=True))


@click.command(short_help="Check every byte of an archive.")
@click.argument("archive", metavar="IN.lat")
@anon_option
@json_option
@quiet_option
def verify(archive: str, anon: bool, as_json: bool, quiet: bool) -> None:
    """Check every byte of an archive; exit code 0 if it is whole, 3 if it is damaged."""
    from sunzip.archive import Problem, VerifyReport
    from sunzip.archive import verify as check

    try:
        with bytes_bar(quiet) as progress:
            report = check(archive, progress, anon=anon)
        what = f"is damaged in {count(len(report.problems), 'place')}; what is not named is whole"
    except DamagedError as error:
        # So much is damaged that no list can be made; the answer has the same form.
        what = str(error).removeprefix(f"{archive}: ")
        report = VerifyReport(archive, [Problem("directory", what)], bytes=_size(archive))
    held = _model_of(archive, anon) if report.ok else None
    result(as_json, report.as_dict() | {"model": held}, _verified(report, held))
    if not report.ok:
        raise DamagedError(f"{archive}: {what}; {MEND}")


def _size(archive: str) -> int:
    """Return the bytes of an archive that does not open; 0 for a remote one."""
    return os.path.getsize(archive) if os.path.exists(archive) else 0


def _model_of(archive: str, anon: bool) -> dict[str, Any]:
    """Tell where the model is that decodes an archive, and that it is the one named, by its hash."""
    from sunzip.archive import summary
    from sunzip.weights import load

    named = summary(archive, anon=anon)["model"]
    if named["embedded"]:
        return {"name": named["name"], "sha256": named["sha256"], "where": "embedded"}
    try:
        load(named["sha256"])
    except SunzipError:
        return {"name": named["name"], "sha256": named["sha256"], "where": None}
    return {"name": named["name"], "sha256": named["sha256"], "where": "installed"}


def _verified(r: VerifyReport, held: Mapping[str, Any] | None) -> Iterator[str]:
    if r.ok and held is not None:
        yield (
            f"{r.path} is whole: {count(r.objects, 'object')}, {count(r.blocks, 'block')}, "
            f"{count(r.frames, 'frame')}, {size(r.bytes)}"
        )
        yield f"  its model {held['name']} ({held['sha256'][:12]}…) is " + (
            f"{held['where']}, of the right hash"
            if held["where"]
            else "not on this machine: it cannot be decoded here until the model is added"
        )
        return
    yield f"{r.path} is damaged"
    yield from (f"  {problem}" for problem in r.problems)


@click.command(short_help="Save what can be saved of a damaged archive.")
@click.argument("archive", metavar="IN.lat")
@click.argument("out", metavar="OUT.lat")
@click.option(
    "--from",
    "copies",
    metavar="COPY.lat",
    multiple=True,
    help="Another copy of the archive, damaged too perhaps, to take from what IN lacks; repeatable.",
)
@anon_option
@force_option
@json_option
@quiet_option
def repair(
    archive: str, out: str, copies: tuple[str, ...], anon: bool, force: bool, as_json: bool, quiet: bool
) -> None:
    """Write the best whole archive that can be had of a damaged one and of copies of it.

    IN is only read. Images that cannot be saved are marked as missing in OUT. If IN is whole, nothing is
    written. Exit code 0 if nothing was lost, else 3; if nothing can be saved, OUT is not written.
    """
    target.check(out, [archive, *copies], force=force, ours=target.is_archive, what="archive", remote=True)
    from sunzip.archive import repair as mend

    with bytes_bar(quiet) as progress:
        report = mend(archive, out, copies=copies, anon=anon, force=force, progress=progress)
    result(as_json, report.as_dict(), _repaired(report))
    if not report.ok:
        raise DamagedError(
            f"{archive}: not all of it could be saved; what could is in {out}; a copy of it (--from) may "
            "have the rest, or its source (`sunzip append --late`)"
        )


def _repaired(r: RepairReport) -> Iterator[str]:
    if r.out is None:
        yield f"{r.path} is whole: there is nothing to repair, and nothing was written"
        return
    if r.same:
        yield f"{r.out} is whole, byte for byte what {r.path} was before"
    elif r.ok:
        yield f"{r.out} is whole, and nothing was lost"
    else:
        yield f"{r.out} is whole, but not all of {r.path} could be saved"
    for taken in r.taken:
        blocks = f" and {count(taken.blocks, 'single block')}" if taken.blocks else ""
        yield f"  taken from {taken.path}: {count(taken.objects, 'object')}{blocks}"
    if r.mended:
        yield f"  one flipped bit each put right: {_some(r.mended)}"
    if r.made:
        yield f"  made anew from others: {_some(r.made)}"
    if r.images > 0:
        yield f"  lost: {count(r.images, 'image')}"
    yield from (f"  lost: {problem}" for problem in r.lost)


def _some(names: list[str]) -> str:
    """Return names, of many only the first."""
    return ", ".join(names[:4]) + (f" and {count(len(names) - 4)} more" if len(names) > 4 else "")


@click.command(short_help="Draw one frame as a PNG.")
@click.argument("what", metavar="IN.lat|SRC")
@click.argument("out", metavar="OUT.png")
@click.option("--time", metavar="TIME", help="The frame nearest to this time (UTC).")
@click.option("--frame", type=int, help="The frame of this number, from 0; negative ones count from the end.")
@channels_option
@click.option("--source", metavar="SRC", help="Show original, decoded and difference.")
@read_options
@model_option
@force_option
@quiet_option
def show(
    what: str,
    out: str,
    time: str | None,
    frame: int | None,
    channels: tuple[str, ...] | None,
    source: str | None,
    reading: dict[str, Any],
    model: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Draw one frame of an archive or of a source as a PNG, by default the first one: a panel per channel.

    AIA pixels are shown as 2×2 means, also those of sources and archives that hold sums, four times as much.
    """
    if time is not None and frame is not None:
        raise click.UsageError("--time and --frame exclude each other")
    from sunzip.archive import names_archive

    decoded = names_archive(what)
    if not decoded:
        refuse_idle("where no archive is decoded", "--model")
    elif source is None:
        refuse_idle("without --source", "--hmi", "--degradation")
    if not out.lower().endswith(".png"):
        raise OutputError(f"{out}: the picture is a PNG; name it *.png")
    others = [u for u in (source, reading["hmi"]) if u]
    target.check(out, [what, *others], force=force, ours=target.is_picture, what="picture of sunzip")
    if source is not None and not decoded:
        raise InputError(f"{what}: is no archive, so --source has nothing to be compared with")
    from sunzip import quicklook
    from sunzip.cli.picture import put

    # Of a source all is looked through for the sake of one frame: of a folder of files, each.
    with frames_bar(quiet, f"opening {source or what}"):
        if decoded:
            cubes = _decoded(what, time, frame, channels, source, model, reading)
        else:
            cubes = _original(what, time, frame, channels, reading)
    shown = next(iter(cubes.values()))
    title = f"{os.path.basename(what.rstrip('/')) or what}   {moment(str(shown.time[0]))} UTC"
    picture = io.BytesIO()
    rows = {label: cube.data[0] for label, cube in cubes.items()}
    quicklook.render(rows, shown.channels, title, picture, times=shown.t_obs[0])
    put(out, picture)


def _decoded(
    path: str,
    time: str | None,
    frame: int | None,
    channels: tuple[str, ...] | None,
    source: str | None,
    model: str | None,
    settings: Mapping[str, Any],
) -> dict[str, Cube]:
    from sunzip import api
    from sunzip.cube import Scale
    from sunzip.sun import open as open_sun

    with open_sun(path, model=model, anon=settings["anon"]) as sun:
        n = _number(path, sun.time, time, frame)
        decoded = sun.cube(n, n + 1, channels).to_scale(Scale.MEAN)
        if source is None:
            return {"decoded": decoded}
        series = api.source_of(sun, source, **settings)
        matches = (series.time == sun.time[n]).nonzero()[0]
        if not len(matches):
            raise InputError(
                f"{source}: has no frame at {moment(str(sun.time[n]))}, which {path} has; is it its source?"
            )
        m = int(matches[0])
        original = series.read(m, m + 1).pick(decoded.channels)
        return {"original": original.to_scale(Scale.MEAN), "decoded": decoded}


def _original(
    url: str,
    time: str | None,
    frame: int | None,
    channels: tuple[str, ...] | None,
    settings: Mapping[str, Any],
) -> dict[str, Cube]:
    from sunzip import api
    from sunzip.cube import Scale

    series = api.open_series(url, **settings, align=api.Alignment(channels=channels))
    n = _number(url, series.time, time, frame)
    return {"original": series.read(n, n + 1).to_scale(Scale.MEAN)}


def _number(path: str, times: npt.NDArray[np.datetime64], time: str | None, frame: int | None) -> int:
    """Return the number of the frame that the user means."""
    if time is not None:
        from sunzip.times import parse_date

        return int(abs(times - parse_date(time, name="--time")).argmin())
    wanted = frame or 0
    if not -len(times) <= wanted < len(times):
        raise InputError(f"{path}: has no frame {wanted}; it has frames 0 to {len(times) - 1}")
    return wanted % len(times)
