"""The commands that work through all frames: compress, decompress, evaluate and synth."""

from __future__ import annotations

import os
import re
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sunzip.channels import any_of_aia
from sunzip.cli import accounts, target
from sunzip.cli.options import (
    Finite,
    align_options,
    anon_option,
    channels_option,
    dask_option,
    force_option,
    json_option,
    model_option,
    quiet_option,
    read_options,
    resume_option,
    start_option,
    stop_option,
    workers_option,
)
from sunzip.cli.output import coder, frames_bar, result
from sunzip.cli.program import Interrupted
from sunzip.display import count, duration, fields, number, size, span, table
from sunzip.errors import BoundNotMetError, InputError, OutputError, without_secrets

if TYPE_CHECKING:
    from sunzip.api import Block, CompressReport, EvaluateReport


_LAYOUTS = ("sdoml-v2", "sdoml-v1", "hdf5", "fits")


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(|k|M|G|T)B?", re.IGNORECASE)


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    wanted = float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " ") if found else 0.0
    # No file has more bytes than an int64 counts.
    if not 1 <= wanted < 2**63:
        raise click.BadParameter(f"{value[:40]!r} is no size; write it as 500MB, 1.5GB or a number of bytes")
    return round(wanted)


def _block(_: click.Context, __: click.Parameter, value: str) -> Block:
    if value == "auto":
        return "auto"
    if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= 120:
        raise click.BadParameter(f"{value!r} is neither auto nor a number from 1 to 120")
    return int(value)


@click.command(short_help="Compress images of the Sun into an archive.")
@click.argument("src", nargs=-1, required=True)
@click.argument("out")
@read_options
@align_options
@model_option
@click.option(
    "--quality",
    type=click.IntRange(0, 100),
    help="0 (smallest) to 100; default the model's, with --max-error that of fewest bytes.",
)
@click.option(
    "--target-ratio",
    metavar="X",
    type=Finite(0, min_open=True),
    help="Choose the quality: X times smaller than float32.",
)
@click.option(
    "--target-bytes", metavar="SIZE", callback=_bytes, help="Choose the quality for a size, as in 500MB."
)
@click.option(
    "--max-error",
    metavar="BOUND",
    help="Hold every pixel to an error: 5%, 2sigma, 10DN/s, 20G, or by channel: 2sigma,193A=5%,Bz=20G.",
)
@click.option(
    "--block",
    metavar="N|auto",
    default="auto",
    callback=_block,
    show_default=True,
    help="Frames coded together, up to 120; auto asks the model and the times.",
)
@click.option("--embed-model", is_flag=True, help="Store the model, so that the file decodes by itself.")
@force_option
@resume_option
@workers_option
@dask_option
@click.option("--dry-run", is_flag=True, help="Write nothing; estimate size and time from a sample.")
@json_option
@quiet_option
def compress(
    src: tuple[str, ...],
    out: str,
    reading: dict[str, Any],
    align: dict[str, Any],
    model: str | None,
    quality: int | None,
    target_ratio: float | None,
    target_bytes: int | None,
    max_error: str | None,
    block: Block,
    embed_model: bool,
    force: bool,
    resume: bool,
    workers: int | None,
    dask: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compress images of the Sun into an archive.

    SRC is an SDOML v2 Zarr store, a folder of SDOML v1 npz files, a folder of FITS files, an HDF5 or netCDF-4
    file, any fsspec URL of these (s3://…), or synthetic:frames=64,size=512,seed=0. Several are joined in
    time.

    OUT is the archive, customarily *.lat, on disk or at an fsspec URL. While it grows there is a folder
    OUT.partial; after Ctrl-C, an error or a crash, the same command with --resume continues it and ends with
    the same bytes, as do any number of --workers and any --dask cluster.
    """
    wishes = {"--quality": quality, "--target-ratio": target_ratio, "--target-bytes": target_bytes}
    named = [name for name, wish in wishes.items() if wish is not None]
    if max_error is not None and quality is None:
        named.append("--max-error")
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} exclude each other")
    if not dry_run:
        if out.endswith("/") and "://" not in out:
            raise OutputError(f"{out}: an archive is a file; name it without the slash at its end")
        target.check(
            out,
            [*src, *filter(None, [reading["hmi"]])],
            force=force,
            ours=target.is_archive,
            what="archive of sunzip",
            remote=True,
            resume=resume,
        )
    from sunzip import api, weights

    looking = ", reading all images for --missing drop" if align["missing"] == "drop" else ""
    if quality is None and (max_error or target_ratio or target_bytes):
        looking += ", coding some frames to choose the quality"
    elif dry_run:
        looking += ", coding some frames"
    with (
        _continuable(out, dry_run),
        frames_bar(quiet, f"opening {src[0]}{looking}", f"packing {out}") as progress,
    ):
        report = api.compress(
            src,
            out,
            **reading,
            align=api.Alignment(**align),
            model=model or weights.DEFAULT,
            quality=quality,
            target_ratio=target_ratio,
            target_bytes=target_bytes,
            max_error=max_error,
            block=block,
            embed_model=embed_model,
            force=force,
            resume=resume,
            dry_run=dry_run,
            workers=workers,
            client=dask,
            progress=progress,
        )
    _tell(report, embed_model, as_json)


@click.command(short_help="Add new frames to an archive.")
@click.argument("src", nargs=-1, required=True)
@click.argument("archive", metavar="IN.lat")
@read_options
@stop_option
@model_option
@click.option(
    "--late",
    is_flag=True,
    help="Code anew, too, all from the first shard on that lacks images that SRC has now.",
)
@click.option("--force", is_flag=True, help="Begin again, whatever a run that was broken off left.")
@resume_option
@workers_option
@dask_option
@json_option
@quiet_option
def append(
    src: tuple[str, ...],
    archive: str,
    reading: dict[str, Any],
    stop: str | None,
    late: bool,
    model: str | None,
    force: bool,
    resume: bool,
    workers: int | None,
    dask: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Add to an archive the frames of SRC that come after its last.

    SRC is what `sunzip compress` takes: the archive's own source, which has grown, or another. Channels,
    image size, time grid, model, quality, bounds of errors and frames of a block are those of the archive.
    Frames that it has are not coded again. It stays as it is until the new one, written beside it, is
    complete; if nothing is new, it is left alone.
    """
    from sunzip import api
    from sunzip.archive import summary

    with (
        _continuable(archive, False),
        frames_bar(quiet, f"opening {src[0]}", f"packing {archive}") as progress,
    ):
        report = api.append(
            src,
            archive,
            **reading,
            stop=stop,
            late=late,
            model=model,
            force=force,
            resume=resume,
            workers=workers,
            client=dask,
            progress=progress,
        )
    _tell(report, bool(summary(archive, anon=reading["anon"])["model"]["embedded"]), as_json)


@contextmanager
def _continuable(out: str, dry_run: bool) -> Iterator[None]:
    """Say of what breaks off how it is continued."""
    from sunzip.archive import partial_of, unfinished

    left = without_secrets(partial_of(out))
    try:
        yield
    except (KeyboardInterrupt, InputError, OutputError) as error:
        # Errors that speak of the unfinished archive say already what to do with it.
        told = without_secrets("; ".join([str(error), *getattr(error, "__notes__", [])]))
        if dry_run or left in told or not unfinished(out):
            raise
        hint = f"what is done is in {left}, and the same command with --resume continues it"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(hint, error) from None
        raise type(error)(f"{error}; {hint}") from error


def _tell(report: CompressReport, embedded: bool, as_json: bool) -> None:
    """Print what an archive holds, and what it costs with its model and without."""
    costs = accounts.Accounts(
        frames=report.frames,
        samples=report.raw_bytes // 4,
        stored=report.source_bytes,
        archive=report.archive_bytes - (report.model_bytes if embedded else 0),
        model=report.model_bytes,
        coded=report.coded_bytes,
        latents=report.latent_bytes,
    )
    result(as_json, report.as_dict() | {"costs": costs.as_dict()}, _compressed(report, costs))


def _compressed(r: CompressReport, costs: accounts.Accounts) -> Iterator[str]:
    from sunzip.bounds import bounds_of, in_short

    what = "would hold about" if r.dry_run else "holds"
    yield (
        f"{r.path} {what} {count(r.frames, 'frame')}, {count(r.images, 'image')} of "
        f"{r.shape[0]}×{r.shape[1]}: {' '.join(r.channels)}"
    )
    # A run that is continued may have only the file to finish.
    coded = r.frames_coded > 0 and r.seconds > 0
    speed = f", {number(r.frames_coded / r.seconds)} frames/s" if coded else ""
    held = [("max error", in_short(bounds_of(r.max_error)))] if r.max_error else []
    # Frames that have lost all images, or were two of one moment, are fewer where they are coded anew.
    new = max(r.frames - r.frames_before, 0)
    added = []
    if r.frames_before:
        added.append(
            ("added", count(new, "frame") if new or r.frames_anew else "nothing, as no frame is new")
        )
    if r.frames_anew:
        added.append(("coded anew", f"its last {count(r.frames_anew, 'frame')}"))
    yield from fields(
        [
            *added,
            ("times", f"{span(r.first, r.last)} UTC"),
            ("model", f"{coder(r.model, r.quality)}{_chosen(r)}"),
            *held,
            ("blocks", f"of {count(r.block, 'frame')}"),
            ("time it takes" if r.dry_run else "time", f"{duration(r.seconds)}{speed}"),
        ]
    )
    yield ""
    yield from costs.lines()
    yield ""
    about = "  errors to expect, mean over sampled images" if r.dry_run else "  errors, mean over images"
    # Four times those of the same images as means, which is what `evaluate` tells.
    sums = r.scale == "sum" and any_of_aia(r.channels)
    yield about + ("; AIA pixels are 2×2 sums" if sums else "")
    yield from table(
        ["channel", "RMSE", "unit", "max", "r", "within 10 %"],
        [
            [name, number(e["rmse"]), _unit(name), number(e["max"]), _fixed(e["r"]), _fixed(e["ppe10"])]
            for name, e in r.errors.items()
        ],
        indent="    ",
    )
    yield from _without_r({name: e["constant"] for name, e in r.errors.items()})
    # Images that an archive has need no word.
    yield from found_on_the_way(r.alignment | ({"not_selected": 0} if r.frames_before else {}))


def _without_r(constant: Mapping[str, float | None]) -> Iterator[str]:
    """Say which images have no part in the mean of r: the coarser the quality, the more."""
    blank = ", ".join(f"{count(int(n), 'image')} of {name}" for name, n in constant.items() if n)
    if blank:
        yield f"    r without those that are, or decode to, one number: {blank}"


def _chosen(r: CompressReport) -> str:
    """Say what the quality was chosen for, and how near the archive comes."""
    if r.target_bytes is None:
        return ""
    share = 100 * r.archive_bytes / max(r.target_bytes, 1)
    return f", chosen for {size(r.target_bytes)}: {size(r.archive_bytes)}, {number(share)} % of that"


def _unit(name: str) -> str:
    from sunzip.channels import channel

    return channel(name).unit


def _fixed(value: float | None) -> str:
    return number(None) if value is None else f"{value:.4f}"


def found_on_the_way(alignment: Mapping[str, Any]) -> Iterator[str]:
    """Yield what alignment did to images as lines of text, as far as it did anything."""
    odd = list(_odd(alignment))
    if odd:
        yield ""
        yield "  found on the way"
        yield from fields(odd, indent="    ")


def _odd(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, what in (
        ("frames_dropped", "frames left out, as they lack a channel or its pixels"),
        ("images_dropped", "images left out with those frames"),
        ("duplicates", "images that gave way to another of the same channel and frame"),
        ("out_of_tolerance", "images too far from any time of the grid"),
        ("unusable_times", "images without a usable time"),
        ("not_selected", "images outside --start, --stop and --every"),
    ):
        if found[key]:
            yield count(found[key]), what
    for what, n in sorted(found["odd"].items()):
        yield count(n), what


@click.command(short_help="Decode an archive into files that other programs read.")
@click.argument("archive", metavar="IN.lat")
@click.argument("out")
@click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    help="What to write; by default what OUT looks like (.zarr, .h5, .nc), else as the source was.",
)
@start_option
@stop_option
@channels_option
@click.option(
    "--fill-missing",
    is_flag=True,
    help="Write images that a frame lacks as others foretell them, marked SZ_FILL.",
)
@anon_option
@model_option
@force_option
@json_option
@quiet_option
def decompress(
    archive: str,
    out: str,
    layout: str | None,
    start: str | None,
    stop: str | None,
    channels: tuple[str, ...] | None,
    fill_missing: bool,
    anon: bool,
    model: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Decode an archive into files that other programs read.

    IN.lat is a path or an fsspec URL (s3://…). OUT is one HDF5 file, an SDOML v2 Zarr store, a tree of SDOML
    v1 npz files, or a folder of FITS files that sunpy opens as maps.
    It has its name only once it is complete.
    """
    target.check(out, [archive], force=force, ours=target.is_cubes, what="result of sunzip decompress")
    from sunzip import api

    with frames_bar(quiet, f"opening {archive}") as progress:
        report = api.decompress(
            archive,
            out,
            layout=layout,
            start=start,
            stop=stop,
            channels=channels,
            fill_missing=fill_missing,
            model=model,
            anon=anon,
            force=force,
            progress=progress,
        )
    of = f": {' '.join(report.channels)}" if report.images else ""
    lines = [
        f"{report.path} holds {count(report.frames, 'frame')}, {count(report.images, 'image')} of "
        f"{report.shape[0]}×{report.shape[1]}{of}",
        *fields(
            [
                ("layout", report.layout),
                *([("foretold", count(report.filled, "image"))] if fill_missing else []),
                ("pixels", f"{size(report.raw_bytes)} as float32"),
                ("time", f"{duration(report.seconds)}, {number(report.frames / report.seconds)} frames/s"),
            ]
        ),
    ]
    result(as_json, report.as_dict(), lines)


@click.command(short_help="Tell what was lost, per channel.")
@click.argument("src", nargs=-1, required=True)
@click.argument("archive", metavar="IN.lat")
@read_options
@model_option
@json_option
@quiet_option
def evaluate(
    src: tuple[str, ...],
    archive: str,
    reading: dict[str, Any],
    model: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what was lost: hold an archive against its source SRC, pixel by pixel.

    The first table counts every pixel, as the paper does; the second only those on the disk that are not
    zero.
    """
    from sunzip import api

    with frames_bar(quiet, f"opening {archive}") as progress:
        report = api.evaluate(src, archive, **reading, model=model, progress=progress)
    result(as_json, report.as_dict(), _evaluated(report))
    wrong = [f"{count(n, 'pixel')} of {name}" for name, n in report.outside.items() if n]
    if wrong:
        raise BoundNotMetError(
            f"{archive}: farther from SRC than it promises: {', '.join(wrong)}; is SRC, as it is now, what "
            "it was made of?"
        )


_MODES = {"paper": "all pixels, as the paper counts", "strict": "on the disk and not zero"}


def _evaluated(r: EvaluateReport) -> Iterator[str]:
    from sunzip.bounds import bounds_of, in_short

    yield f"{r.archive} against {r.source}: {count(r.images, 'image')} in {count(r.frames, 'frame')}"
    if r.absent:
        yield f"  {count(r.absent, 'image')} that only one of them has"
    yield f"  {number(r.bits_per_sample)} bits per sample, ratio to float32 {number(r.ratio)}, without model"
    if r.max_error:
        kept = "not kept" if any(r.outside.values()) else "kept by every pixel"
        yield f"  max error {in_short(bounds_of(r.max_error))}: {kept}"
    if r.scale == "sum" and any_of_aia(r.metrics["paper"]):
        # What compress and info tell of the archive, a bound in DN/s too, is four times as much.
        yield "  AIA pixels, which are 2×2 sums there, are compared as means"
    for mode, channels in r.metrics.items():
        yield ""
        yield f"  {_MODES[mode]}"
        yield from table(
            ["channel", "images", "r", "ppe10", "ppe50", "RMSE", "unit", "RMSE/noise", "max error"],
            [
                [
                    name,
                    count(m["images"]),
                    *map(_fixed, (m["r"], m["ppe10"], m["ppe50"])),
                    number(m["rmse"]),
                    m["unit"],
                    number(m["rmse_sigma"]),
                    number(m["max_error"]),
                ]
                for name, m in channels.items()
            ],
            indent="    ",
        )
        yield from _without_r({name: m["constant"] for name, m in channels.items()})


@contextmanager
def _all_told(targets: Sequence[str]) -> Iterator[None]:
    """Have an error say which of several new targets are complete although another one is not."""
    absent = [target for target in targets if not os.path.lexists(target)]
    try:
        yield
    except OutputError as error:
        if left := [target for target in absent if os.path.lexists(target)]:
            told = f"complete, and in the way of another run: {', '.join(left)}"
            raise OutputError(f"{error}; {told}") from error
        raise


@click.command(short_help="Write a made-up Sun, to try sunzip on.")
@click.argument("out", metavar="OUT.zarr")
@click.option("--frames", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--size", "side", type=int, default=512, show_default=True, help="Pixels a side, 16 or a multiple."
)
@click.option("--start", metavar="TIME", default="2012-03-01", show_default=True, help="First time (UTC).")
@click.option("--cadence", metavar="STEP", default="12min", show_default=True, help="Time between frames.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Which Sun.")
@click.option("--hmi", metavar="HMI.zarr", help="Write Bx By Bz to a second store, as SDOML has them.")
@click.option(
    "--wild", is_flag=True, help="As public stores are: rows shuffled, images missing, NaN or twice."
)
@click.option(
    "--flux", metavar="FLUX.csv", help="Write the daily radio flux of this Sun, too, for `forecast`."
)
@force_option
@json_option
@quiet_option
def synth(
    out: str,
    frames: int,
    side: int,
    start: str,
    cadence: str,
    seed: int,
    hmi: str | None,
    wild: bool,
    flux: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a made-up Sun as an SDOML v2 store: 12 coherent channels, to try sunzip on without data."""
    for store, other in ((out, []), (hmi, [out])):
        if store is None:
            continue
        if not store.rstrip("/").lower().endswith(".zarr"):
            raise OutputError(f"{store}: a Zarr store is written; name it *.zarr")
        target.check(store, other, force=force, ours=target.is_store, what="Zarr store of sunzip")
    if flux is not None:
        if not flux.lower().endswith(".csv"):
            raise OutputError(f"{flux}: a table is written; name it *.csv")
        target.check(flux, [], force=force, ours=target.is_flux, what="flux of sunzip synth")
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack

    from sunzip.api import Progress, Task, replacing
    from sunzip.channels import NAMES
    from sunzip.sinks import open_sink
    from sunzip.sources.synthetic import Synthetic, cubes
    from sunzip.studies.flux import write_flux
    from sunzip.times import format_utc

    begin = clock.monotonic()
    sun = Synthetic(frames=frames, size=side, start=start, cadence=cadence, seed=seed)
    stores = {out: NAMES} if hmi is None else {out: NAMES[:9], hmi: NAMES[9:]}
    images = 0
    with frames_bar(quiet, "preparing the Sun") as progress, ExitStack() as stack:
        if progress:
            progress(Progress(0, frames, 0, 0))
        targets = [*stores, *([flux] if flux is not None else [])]
        stack.enter_context(_all_told(targets))
        # All before the sinks, so that nothing old has given way when one of these cannot be finished.
        paths = {target: stack.enter_context(replacing(target, force)) for target in targets}
        # Written by another thread, as in decompress: of a write that Ctrl-C broke off, zarr's own threads
        # would do the rest in the folder that is being removed.
        sinks = [
            stack.enter_context(open_sink(paths[store], "sdoml-v2", channels=names, shape=sun.shape))
            for store, names in stores.items()
        ]
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="sunzip"))
        written: list[Task[None]] = []
        for done, cube in enumerate(cubes(sun, wild=wild), start=1):
            for task in written:
                task.result()
            written = [Task(pool, sink.write, cube.pick(sink.channels)) for sink in sinks]
            images += int(cube.valid.sum())
            if progress:
                progress(Progress(min(done, frames), frames, images * side * side * 4, 0))
        for task in written:
            task.result()
        if flux is not None:
            write_flux(paths[flux], sun.time, sun.seed)
    seconds = clock.monotonic() - begin
    first, last = format_utc(sun.time[[0, -1]])
    report = {
        "path": out,
        "layout": "sdoml-v2",
        "frames": frames,
        "images": images,
        "channels": NAMES,
        "shape": sun.shape,
        "first": first,
        "last": last,
        "seed": seed,
        "seconds": seconds,
        "raw_bytes": images * side * side * 4,
        "flux": flux,
    }
    lines = [
        f"{' and '.join(stores)} {'holds' if hmi is None else 'hold'} {count(frames, 'frame')} "
        f"of a synthetic Sun, {side}×{side}: {' '.join(NAMES)}",
        *fields(
            [
                ("times", f"{span(first, last)} UTC"),
                *([("flux", f"{flux}, daily, as made up as the Sun")] if flux else []),
                ("time", f"{duration(seconds)}, {number(frames / seconds)} frames/s"),
            ]
        ),
    ]
    result(as_json, report, lines)
