"""The command `train`: models from frames."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from sunzip.cli.options import Finite, align_options, json_option, quiet_option, read_options
from sunzip.cli.output import result, shows_progress
from sunzip.cli.program import Interrupted
from sunzip.display import count, duration, fields, number, size, span, table

if TYPE_CHECKING:
    from tqdm import tqdm

    from sunzip.train.loop import Advance
    from sunzip.train.run import Stage, TrainReport

_BAR = "{percentage:3.0f}% |{bar}| {desc}"


@click.command(short_help="Train a model on images of the Sun.")
@click.argument("src", nargs=-1, required=True)
@click.option(
    "--model", required=True, metavar="NAME", help="sigma-vae-256, -512, -1024, -2048, hyperprior or wavelet."
)
@click.option("--out", required=True, metavar="DIR", help="Folder of the model; its name is the model's.")
@read_options
@align_options
@click.option(
    "--hold-out",
    metavar="RULE",
    multiple=True,
    help="Frames never learned from: 2014-03..2014-06 or months=1,3; repeatable; default the last tenth.",
)
@click.option("--fit-all", is_flag=True, help="Learn from all frames and measure on them, as the paper does.")
@click.option(
    "--sigma",
    type=click.Choice(["scalar", "optimal", "per-channel"]),
    help="σ of the σ-VAE's loss; default scalar, the paper's.",
)
@click.option("--beta", type=Finite(0, min_open=True), help="The β-VAE's loss instead (Eq. 1).")
@click.option(
    "--init",
    type=click.Choice(["random", "pca"]),
    help="Where the σ-VAE begins: at random weights (default) or at the frames' principal components.",
)
@click.option(
    "--from",
    "begin_with",
    metavar="MODEL",
    help="Wavelet model that a wavelet model begins with, as in wavelet-12; it also codes what lies before.",
)
@click.option("--steps", type=click.IntRange(0), help="End after so many steps; 0 to keep the beginning.")
@click.option("--epochs", type=Finite(0, min_open=True), help="End after so many passes.")
@click.option(
    "--time-limit",
    metavar="MINUTES",
    type=Finite(0, min_open=True),
    help="End after so many minutes of training.",
)
@click.option("--batch", type=click.IntRange(2), help="Samples of a step of each process; default 32, 4, 3.")
@click.option("--rate", type=Finite(0, min_open=True), help="Peak learning rate; default 1e-3, 3e-5 or 8e-4.")
@click.option(
    "--augment/--no-augment", default=True, show_default=True, help="Vary frames as the Sun itself varies."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of convolutions; auto is bf16 where a short trial finds that faster.",
)
@click.option("--device", default="auto", show_default=True, help="cpu or cuda.")
@click.option("--cache", metavar="DIR", help="Keep decoded frames there, for other trainings.")
@click.option(
    "--checkpoint",
    metavar="MINUTES",
    type=Finite(0),
    default=10.0,
    show_default=True,
    help="Time between checkpoints.",
)
@click.option("--force", is_flag=True, help="Begin anew where an earlier training was.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@json_option
@quiet_option
def train(
    src: tuple[str, ...],
    model: str,
    out: str,
    reading: dict[str, Any],
    align: dict[str, Any],
    hold_out: tuple[str, ...],
    fit_all: bool,
    sigma: Literal["scalar", "optimal", "per-channel"] | None,
    beta: float | None,
    init: Literal["random", "pca"] | None,
    begin_with: str | None,
    steps: int | None,
    epochs: float | None,
    time_limit: float | None,
    batch: int | None,
    rate: float | None,
    augment: bool,
    seed: int,
    precision: Literal["auto", "fp32", "bf16"],
    device: str,
    cache: str | None,
    checkpoint: float,
    force: bool,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a model on images of the Sun, and write a folder that --model takes elsewhere.

    SRC is what `sunzip compress` takes. Frames are read once, and kept as half-precision numbers. Training
    ends at the first of --steps, --epochs and --time-limit, one of which is needed; then quantisation steps
    and entropy tables are fitted and the model is measured on the frames held out.

    Checkpoints, log and pictures are in DIR/training; after Ctrl-C or a crash, the same command with --resume
    goes on. Several GPUs: torchrun --nproc-per-node N -m sunzip train …
    """
    from sunzip.api import Alignment
    from sunzip.train.run import train as run

    first = os.environ.get("RANK", "0") == "0"
    try:
        with _bar(quiet or not first) as progress:
            report = run(
                src,
                out,
                model=model,
                sigma=sigma,
                beta=beta,
                **reading,
                align=Alignment(**align),
                hold_out=hold_out,
                fit_all=fit_all,
                init=init,
                begin_with=begin_with,
                steps=steps,
                epochs=epochs,
                minutes=time_limit,
                batch=batch,
                rate=rate,
                augment=augment,
                seed=seed,
                precision=precision,
                device=device,
                cache=cache,
                save_minutes=checkpoint,
                resume=resume,
                force=force,
                command=shlex.join(["sunzip", *sys.argv[1:]]),
                progress=progress,
            )
    except KeyboardInterrupt as error:
        if not os.path.isdir(out):
            raise
        hint = f"what is done is in {out}, and the same command with --resume continues it"
        raise Interrupted(hint, error) from None
    if report:
        result(as_json, report.as_dict(), _trained(report))


def _trained(r: TrainReport) -> Iterator[str]:
    from sunzip.train.measure import beside

    m = r.measured
    yield f"{r.path} holds {r.model}, {size(r.model_bytes)}, sha256 {r.sha256[:12]}…"
    rows = [
        ("learned from", count(r.train_frames, "frame")),
        ("training", f"{count(r.steps, 'step')}, {duration(r.seconds)}, {r.notes['precision']}"),
        ("measured on", f"{count(m['frames'], 'frame')}, {span(m['first'], m['last'])} UTC"),
    ]
    coded = f"{number(m['bits_per_sample'])} bit/sample"
    if m["latents_coded"]:
        rows += [
            ("coded", f"{number(m['bits_per_latent'])} bit/latent, {coded}"),
            ("worst change", f"{number(100 * m['worst_change'][0])} %, {m['worst_change'][1]}"),
        ]
    else:
        rows.append(("coded", coded))
    if r.began is not None:
        rows.append(("it began with", beside(m, r.began)))
    if "active_units" in r.notes:
        rows.append(("active latents", count(r.notes["active_units"])))
    yield from fields(rows)
    yield ""
    yield from table(
        ["channel", "r", "ppe50", "ppe10", "RMSE", "unit", *(["r uncoded"] if m["latents_coded"] else [])],
        [
            [
                name,
                *(number(row[k]) for k in ("r", "ppe50", "ppe10", "rmse")),
                row["unit"],
                *([number(m["metrics"]["float32"]["paper"][name]["r"])] if m["latents_coded"] else []),
            ]
            for name, row in m["metrics"]["coded"]["paper"].items()
        ],
        indent="    ",
    )


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[Stage | Advance], object] | None]:
    """Show how training goes on, on stderr; yields None if nobody looks."""
    if not shows_progress(quiet):
        yield None
        return
    from tqdm import tqdm

    from sunzip.train.run import Stage

    bar: tqdm[Any] = tqdm(total=1000, leave=False, dynamic_ncols=True, bar_format=_BAR)

    def update(now: Stage | Advance) -> None:
        if isinstance(now, Stage):
            share, text = now.done / max(now.total, 1), f"{now.what}: {now.done:,} of {now.total:,}"
        else:
            of = f"/{now.steps:,}" if now.steps else ""
            left = now.elapsed * (1 / now.progress - 1) if now.progress else 0.0
            parts = [f"step {now.step:,}{of}", *([f"{duration(left)} left"] if left else [])]
            parts.append(f"{number(now.frames_per_second)} frames/s")
            parts += [f"{name} {number(value)}" for name, value in now.values.items() if name != "gradient"]
            if now.worst:
                parts.append(f"lowest r {now.worst[1]:.3f} ({now.worst[0]})")
            share, text = now.progress, ", ".join(parts)
        bar.set_description_str(text, refresh=False)
        bar.n = round(1000 * min(share, 1))
        bar.refresh()

    try:
        yield update
    finally:
        bar.close()
