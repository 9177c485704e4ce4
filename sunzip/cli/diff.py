"""The command that holds two against each other: diff."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from sunzip.cli.options import anon_option, degradation_option, json_option, model_option, quiet_option
from sunzip.cli.output import frames_bar, result
from sunzip.cli.program import refuse_idle
from sunzip.display import NONE, count, fields, moment, number, size, table
from sunzip.errors import DifferentError

if TYPE_CHECKING:
    from sunzip.api import DiffReport
    from sunzip.api._reports import Lone, Side

#: How many keywords are named.
_NAMED = 5


@click.command(short_help="Tell whether two hold the same.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--hmi-a", metavar="URL", help="Second store of A, if that is SDOML v2, with Bx By Bz.")
@click.option("--hmi-b", metavar="URL", help="Second store of B.")
@anon_option
@degradation_option
@click.option(
    "--cadence",
    metavar="STEP",
    help="Time grid of sources, as in 12min, or `native`; default that of the archive, if one is, or native.",
)
@model_option
@json_option
@quiet_option
def diff(
    a: str,
    b: str,
    hmi_a: str | None,
    hmi_b: str | None,
    anon: bool,
    degradation: str | None,
    cadence: str | None,
    model: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell whether A and B hold the same; exit code 0 if they do, 5 if not.

    Each is an archive or what `sunzip compress` takes as a source, and is taken as that reads it. Compared
    are channels, frames, images, times, FITS keywords and all pixels, to the bit; NaN equals NaN. Archives
    are verified first. What an archive lost of its source is told by `sunzip evaluate`.
    """
    from sunzip import api
    from sunzip.archive import names_archive

    archives = [names_archive(path) for path in (a, b)]
    for is_one, option in zip(archives, ("--hmi-a", "--hmi-b"), strict=True):
        if is_one:
            refuse_idle(f"where {option[-1].upper()} is an archive", option)
    if all(archives):
        refuse_idle("between two archives", "--degradation", "--cadence")
    elif not any(archives):
        refuse_idle("where no archive is decoded", "--model")
    with frames_bar(quiet, f"opening {a} and {b}") as progress:
        report = api.diff(
            a,
            b,
            hmi_a=hmi_a,
            hmi_b=hmi_b,
            anon=anon,
            degradation=degradation,
            cadence=cadence,
            model=model,
            progress=progress,
        )
    result(as_json, report.as_dict(), _compared(report))
    if not report.same:
        raise DifferentError(f"{a} and {b}: {_answer(report)}")


def _compared(r: DiffReport) -> Iterator[str]:
    for letter, side in (("A", r.a), ("B", r.b)):
        yield f"{letter}  {side.path}: {_held(side)}"
        if side.archive:
            yield f"   {_coded(side)}"
    yield f"both have {count(r.frames, 'frame')}; {count(r.images, 'image')} compared"
    yield from fields(list(_apart(r)))
    if r.channels:
        yield ""
        yield from table(
            ["channel", "images", "identical", "px differ", "max", "RMSE", "unit", "max/noise", "RMSE/noise"],
            [
                [
                    name,
                    count(c.images),
                    count(c.identical),
                    f"{number(100 * c.differing / c.pixels)} %" if c.pixels else NONE,
                    number(c.max_error),
                    number(c.rmse),
                    c.unit,
                    number(c.max_sigma),
                    number(c.rmse_sigma),
                ]
                for name, c in r.channels.items()
            ],
        )
        yield ""
    yield _answer(r)


def _answer(r: DiffReport) -> str:
    if r.differs:
        return f"differ in {', '.join(r.differs)}"
    return "same" if r.same else "no difference was found, but some images were not seen"


def _held(side: Side) -> str:
    return f"{count(side.frames, 'frame')}, {count(side.images, 'image')} of {side.shape[0]}×{side.shape[1]}"


def _coded(side: Side) -> str:
    from sunzip.bounds import bounds_of, in_short

    bound = f", max error {in_short(bounds_of(side.max_error))}" if side.max_error else ""
    model = f"{side.model} {(side.model_sha256 or '')[:12]}{' (embedded)' if side.embedded else ''}"
    quality = NONE if side.quality is None else side.quality
    return f"format {side.format}, {model}, quality {quality}{bound}, {size(side.bytes or 0)}"


def _apart(r: DiffReport) -> Iterator[tuple[str, str]]:
    """Yield what differs besides pixels."""
    if r.a.shape != r.b.shape:
        yield "image size", "differs: pixels, times of images and keywords were not compared"
    if "scale" in r.differs:
        yield "AIA pixels", f"2×2 {r.a.scale}s in A, {r.b.scale}s in B; compared as means"
    for letter, names in zip("AB", r.channels_only, strict=True):
        if names:
            yield f"channels only in {letter}", " ".join(names)
    for letter, lone in zip("AB", r.frames_only, strict=True):
        if lone.frames:
            yield f"frames only in {letter}", _frames(lone)
    for letter, images in zip("AB", r.images_only, strict=True):
        if images:
            yield f"images only in {letter}", _numbers(images)
    for letter, unseen in zip("AB", r.unseen, strict=True):
        if unseen:
            yield (
                f"not seen in {letter}",
                f"{count(unseen, 'image')}: without a time, off the grid, doubles, or in files of no use",
            )
    if r.nominal_times:
        yield "nominal times", f"of {count(r.nominal_times, 'frame')} differ"
    if r.times:
        yield "times", f"of {count(r.times, 'image')} differ, by up to {number(r.seconds_apart)} s"
    if r.keywords:
        words = list(r.keyword_names)
        more = f" and {count(len(words) - _NAMED)} more" if len(words) > _NAMED else ""
        yield "keywords", f"of {count(r.keywords, 'image')} differ: {' '.join(words[:_NAMED])}{more}"
    if lost := sum(c.nan_in_one for c in r.channels.values()):
        yield "NaN in one only", f"{count(lost, 'pixel')}; not in max and RMSE"


def _frames(lone: Lone) -> str:
    times = [moment(t) for t in lone.times[:2]]
    if lone.last and lone.frames > 2:
        times.append(("… " if lone.frames > 3 else "") + moment(lone.last))
    return f"{count(lone.frames)}: {', '.join(times)}"


def _numbers(images: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count(n)}" for name, n in images.items())
