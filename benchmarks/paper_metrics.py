"""Tables 3 to 6 of the paper, figures 1 and 5: what σ-VAEs keep of held-out frames, beside the paper and PCA.

Run as ``python -m benchmarks.paper_metrics SRC… --hold-out RULE --models DIR --models DIR …`` with the source
and the rule that the models were trained with; on SDOML SRC is its AIA store and ``--hmi`` the other one.
With ``--large SRC``, the same source at 512², the default model is measured at that size, too.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import pca
from benchmarks.common import PAPER, RESULTS, command, keep, load
from sunzip import quicklook, weights
from sunzip.api import Alignment, open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.sigma_vae import SigmaVaeFamily
from sunzip.metrics import Accumulator
from sunzip.nn.sigma_vae import BOTTLENECKS, SIZE
from sunzip.sources.series import Series, block_mean
from sunzip.times import parse_date
from sunzip.train.data import Float
from sunzip.train.frames import Frames, cached, examples, held_out
from sunzip.train.measure import TOLERANCE, active_units, measure, pixels_of, posteriors

METRICS = ("r", "ppe50", "ppe10", "rmse")

#: What a σ-VAE must reach on held-out frames of the synthetic Sun: r of EUV channels, and of 1600 and 1700 Å.
LEAST_R = {name: 0.98 if name in ("1600A", "1700A") else 0.90 for name in NAMES[:9]}
#: Bytes of coded latents over bytes of float32 means, at most.
MOST_SHARE = 1 / 8

#: Shares of the bytes of a σ-VAE's float32 means at which the default model is held against it.
SHARES = (1.0, 0.1)
#: Side of large frames over that of the σ-VAEs' own, and how many of them are measured, spread over all.
LARGER, LARGE_FRAMES = 4, 16


def _short(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: m[key] for key in METRICS} for name, m in table.items()}


def codec_of(folder: str) -> Codec:
    """Open one of the paper's σ-VAEs."""
    codec = Codec(load(folder))
    if not isinstance(codec.family, SigmaVaeFamily):
        raise click.UsageError(f"{folder}: is no σ-VAE")
    if codec.family.bottleneck not in BOTTLENECKS:
        raise click.UsageError(f"{folder}: bottleneck {codec.family.bottleneck} is none of the paper's")
    return codec


def of_model(codec: Codec, frames: Frames, echo: Callable[[str], object]) -> dict[str, Any]:
    """Measure one σ-VAE."""
    model = codec.model
    assert isinstance(codec.family, SigmaVaeFamily)
    found = measure(codec, frames)
    means, _ = posteriors(codec.family.network, codec.family.stabiliser, frames)
    metrics = {kind: _short(tables["paper"]) for kind, tables in found.metrics.items()}
    share, (change, where) = found.bits_per_latent / 32, found.worst_change
    short = [n for n, least in LEAST_R.items() if (metrics["coded"][n]["r"] or 0) < least]
    # What training wrote into the configuration is no part of the model's format.
    notes = model.config.get("training")
    data = notes.get("data") if isinstance(notes, dict) else None
    row = {
        "model": model.name,
        "sha256": model.sha256,
        "trained_on": data if isinstance(data, dict) else None,
        "bottleneck": codec.family.bottleneck,
        "metrics": metrics,
        "bits_per_latent": found.bits_per_latent,
        "share_of_float32": share,
        "active_units": active_units(means),
        "worst_change": change,
        "worst_change_of": where,
        "least_r_missed_by": short,
        "holds": {
            "share": share <= MOST_SHARE,
            "change": change <= TOLERANCE,
            "r": not short,
        },
    }
    says = {True: "holds", False: "MISSES"}
    echo(
        f"{model.name}: {row['active_units']} of {row['bottleneck']} latents active, "
        f"{found.bits_per_latent:.2f} bit each, 1/{1 / share:.1f} of float32 "
        f"({says[share <= MOST_SHARE]} 1/8); coding costs {100 * change:+.2f} % of {where} "
        f"({says[change <= TOLERANCE]} 1 %); r too small in {' '.join(short) or 'no channel'}"
    )
    return row


def earlier(data: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run measured on the same frames.

    Raises
    ------
    click.UsageError
        If it measured others.
    """
    before: dict[str, Any] = json.loads((RESULTS / "paper_metrics.json").read_text())
    if before["data"] != data:
        raise click.UsageError(f"--add: what is there was measured on other frames: {before['data']}")
    return before


def of_components(learned: Frames, most: int, judged: Frames) -> dict[str, Any]:
    """Measure principal components of training frames, as many as bottlenecks have numbers, and none."""
    most = min(most, len(learned))
    found = pca.fit(learned.spread_out(most), max(BOTTLENECKS))
    counts = [*(min(b, len(found.axes)) for b in BOTTLENECKS), 0]
    totals = [Accumulator(NAMES) for _ in counts]
    for t in range(len(judged)):
        x, present = pixels_of(judged, slice(t, t + 1))
        for total, decoded in zip(totals, found.coded(x[0], counts), strict=True):
            total.add(x, decoded[None], present)
    metrics = [_short(total.as_dict()["paper"]) for total in totals]
    return {
        "frames": most,
        "rows": [
            {"bottleneck": b, "components": k, "metrics": m}
            for b, k, m in zip(BOTTLENECKS, counts, metrics, strict=False)
        ],
        "mean_frame": metrics[-1],
    }


def collapsed(metrics: dict[str, dict[str, Any]], mean_frame: dict[str, dict[str, Any]]) -> list[str]:
    """Return the channels of which a model shows no more than their mean over time, by r or by error."""
    return [
        name
        for name, still in mean_frame.items()
        if (metrics[name]["r"] or 0) <= (still["r"] or 0) or metrics[name]["rmse"] >= still["rmse"]
    ]


def not_better(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> list[str]:
    """Return which of the metrics of which channels are not better than theirs, as "r of 94A"."""
    found = []
    for name, metrics in theirs.items():
        for key, value in metrics.items():
            mine, other = (-np.inf if v is None else v for v in (ours[name][key], value))
            if not (mine < other if key == "rmse" else mine > other):
                found.append(f"{key} of {name}")
    return found


def coder(codec: Codec, frames: Frames) -> Callable[[int], list[bytes]]:
    """Return what codes frames, each by itself, at a quality, and each quality only once."""
    x, _ = pixels_of(frames, slice(0, len(frames)))

    @functools.cache
    def blocks(quality: int) -> list[bytes]:
        return codec.at(quality).encode(x, NAMES)

    return blocks


def highest(blocks: Callable[[int], list[bytes]], most: float) -> int:
    """Return the highest quality at which the blocks take no more bytes, headers and all; 0 if none does."""
    low, high = 0, 101
    while high - low > 1:
        middle = (low + high) // 2
        if sum(map(len, blocks(middle))) <= most:
            low = middle
        else:
            high = middle
    return low


def judge(frames: Frames, decoded: Float) -> dict[str, dict[str, Any]]:
    """Return the paper's metrics of frames as they were decoded."""
    total = Accumulator(NAMES)
    for t in range(len(frames)):
        x, present = pixels_of(frames, slice(t, t + 1))
        total.add(x, decoded[t : t + 1], present)
    return _short(total.as_dict()["paper"])


def of_default(frames: Frames, rows: list[dict[str, Any]], echo: Callable[[str], object]) -> dict[str, Any]:
    """Measure the default model at the bytes of the σ-VAEs' float32 means, and at a tenth of them."""
    codec, found = Codec(weights.load()), []
    blocks = coder(codec, frames)
    for row in rows:
        for share in SHARES:
            quality = highest(blocks, share * 4 * row["bottleneck"] * len(frames))
            coded = blocks(quality)
            size = sum(map(len, coded)) / len(frames)
            metrics = judge(frames, codec.decode(coded, NAMES, frames.side))
            losses = not_better(metrics, row["metrics"]["float32"])
            found.append(
                {
                    "bottleneck": row["bottleneck"],
                    "share": share,
                    "quality": quality,
                    "bytes": size,
                    "metrics": metrics,
                    "not_better": losses,
                }
            )
            echo(
                f"{codec.model.name}, {size:,.0f} B a frame (quality {quality}), against "
                f"{row['model']} at {4 * row['bottleneck']:,} B: better but for "
                f"{', '.join(losses) or 'nothing'}"
            )
    return {"model": codec.model.name, "sha256": codec.model.sha256, "rows": found}


def taken(series: Series, time: npt.NDArray[np.datetime64]) -> Frames:
    """Read the frames of some times.

    Raises
    ------
    click.UsageError
        If the series lacks one.
    """
    if len(lacking := np.setdiff1d(time, series.time)):
        raise click.UsageError(f"--large: {series.urls[0]} has no frame of {lacking[0]}")
    rows = np.searchsorted(series.time, time).tolist()
    found = [next(examples(series.read(row, row + 1))) for row in rows]
    return Frames(np.stack([e.pixels for e in found]), np.stack([e.present for e in found]), time)


def smaller(images: Float, factor: int) -> Float:
    """Reduce (T, C, Y, X) images as a series of smaller ones does."""
    return np.stack([[block_mean(image, factor) for image in frame] for frame in images])


def rival(codec: Codec, small: Frames) -> dict[str, Any]:
    """Measure a σ-VAE on large frames made small."""
    assert isinstance(codec.family, SigmaVaeFamily)
    decoded = codec.unquantised(pixels_of(small, slice(0, len(small)))[0], NAMES)
    return {
        "model": codec.model.name,
        "bottleneck": codec.family.bottleneck,
        "side": small.side[0],
        "metrics": judge(small, decoded),
    }


def of_large(
    against: dict[str, Any], small: Frames, large: Frames, echo: Callable[[str], object]
) -> dict[str, Any]:
    """Measure the default model on large frames at a σ-VAE's bits per sample, and at a tenth of them.

    The σ-VAE knows small frames only: it is given the same ones made small. Neither way to compare is fair:
    large frames have `LARGER` times the noise in a pixel, and detail that small ones lack; made small, they
    have had `LARGER`² times the bytes. So what is decoded is judged both as it is and made small.
    """
    ours, bottleneck, theirs = Codec(weights.load()), against["bottleneck"], against["metrics"]
    blocks, rows = coder(ours, large), []
    for share in SHARES:
        quality = highest(blocks, share * LARGER**2 * 4 * bottleneck * len(large))
        coded = blocks(quality)
        decoded = ours.decode(coded, NAMES, large.side)
        size = sum(map(len, coded)) / len(large)
        for frames, shown in ((large, decoded), (small, smaller(decoded, LARGER))):
            metrics, side = judge(frames, shown), frames.side[0]
            losses = not_better(metrics, theirs)
            rows.append(
                {
                    "share": share,
                    "quality": quality,
                    "bytes": size,
                    "judged_at": side,
                    "metrics": metrics,
                    "not_better": losses,
                }
            )
            echo(
                f"{ours.model.name}, {size:,.0f} B a frame of {large.side[0]}² (quality {quality}), judged "
                f"at {side}², against {against['model']} at {4 * bottleneck:,} B a frame of "
                f"{against['side']}²: better but for {', '.join(losses) or 'nothing'}"
            )
    return {
        "model": ours.model.name,
        "sha256": ours.model.sha256,
        "frames": len(large),
        "side": large.side[0],
        "against": against,
        "rows": rows,
    }


def draw(codecs: list[Codec], frames: Frames, times: tuple[str, ...], out: Path) -> None:
    """Draw original, decoded and difference of the frames nearest to some times, as figures 1 and 5."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [int(np.abs(frames.time - parse_date(t, name="--at")).argmin()) for t in times] or [0]
    for codec in codecs:
        for row in rows:
            x, _ = pixels_of(frames, slice(row, row + 1))
            decoded = codec.decode(codec.encode(x, NAMES), NAMES, frames.side)
            when = str(frames.time[row])[:16]
            quicklook.render(
                {"original": x[0], "decoded": decoded[0]},
                NAMES,
                f"{codec.model.name}   {when.replace('T', ' ')} UTC",
                out / f"{codec.model.name}-{when.replace(':', '')}.png",
            )


@click.command()
@click.argument("src", nargs=-1, required=True)
@click.option("--hmi", metavar="URL", help="Second store of SDOML v2, with Bx By Bz.")
@click.option("--anon", is_flag=True, help="Ask S3 without credentials.")
@click.option("--cadence", default="12min", show_default=True, help="Time grid, as `sunzip train` had it.")
@click.option("--every", metavar="STEP", help="Frames this far apart, as `sunzip train` had it.")
@click.option("--hold-out", "rules", multiple=True, metavar="RULE", help="As `sunzip train` had it.")
@click.option("--fit-all", is_flag=True, help="Measure on all frames, for models that learned from all.")
@click.option("--models", multiple=True, metavar="DIR", help="Folder of a trained σ-VAE; repeat.")
@click.option("--name", help="Of the data, in tables; by default the source.")
@click.option("--frames", "most", default=500, show_default=True, help="Held-out frames measured, at most.")
@click.option(
    "--pca-frames",
    default=4096,
    show_default=True,
    help="Training frames that PCA takes, 0.75 MiB of memory each; 0 leaves it out.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder for frames; that of `sunzip train` does."
)
@click.option(
    "--large",
    multiple=True,
    metavar="SRC",
    help=f"The source with {LARGER * SIZE}² pixels or more: measure the default model at {LARGER * SIZE}², "
    "too, against the first of the σ-VAEs, or with --add against that of before; repeat as SRC.",
)
@click.option("--add", is_flag=True, help="Keep what was measured on these frames and is not measured now.")
@click.option("--figures", type=click.Path(path_type=Path), help="Draw pictures into this folder.")
@click.option("--at", multiple=True, metavar="TIME", help="Held-out frames drawn; by default the first.")
def main(
    src: tuple[str, ...],
    hmi: str | None,
    anon: bool,
    cadence: str,
    every: str | None,
    rules: tuple[str, ...],
    fit_all: bool,
    models: tuple[str, ...],
    name: str | None,
    most: int,
    pca_frames: int,
    cache: Path | None,
    large: tuple[str, ...],
    add: bool,
    figures: Path | None,
    at: tuple[str, ...],
) -> None:
    """Measure all models on held-out frames."""
    run = command("paper_metrics")
    codecs = [codec_of(folder) for folder in models]
    if large and not (codecs or add):
        raise click.UsageError("--large: name a σ-VAE to compare with by --models")
    align = Alignment(cadence=cadence, every=every, size=SIZE)
    series = open_series(src, hmi=hmi, anon=anon, align=align)
    with tempfile.TemporaryDirectory() as folder:
        frames = cached(series, cache or Path(folder))
        held = np.zeros(len(frames), bool) if fit_all else held_out(frames.time, rules)
        learned = frames.take(~held)
        judged = (frames if fit_all else frames.take(held)).spread_out(most)
        data = {
            "name": name or " ".join(src),
            "held_out": not fit_all,
            "first": str(judged.time[0]),
            "last": str(judged.time[-1]),
            "frames": len(judged),
            "training_frames": len(learned),
        }
        old = earlier(data) if add else {"rows": [], "pca": {"frames": 0, "rows": []}, "large": None}
        if large and not codecs and old["large"] is None:
            raise click.UsageError("--large: no σ-VAE was measured on large frames yet; name one by --models")
        if large:
            times = judged.spread_out(LARGE_FRAMES).time
            little, much = (
                taken(open_series(large, hmi=hmi, anon=anon, align=replace(align, size=side)), times)
                for side in (SIZE, LARGER * SIZE)
            )
        new = {row["bottleneck"]: row for row in (of_model(codec, judged, click.echo) for codec in codecs)}
        kept = {row["bottleneck"]: row for row in old["rows"]}
        rows = [row for _, row in sorted((kept | new).items())]
        content: dict[str, Any] = {
            "command": " && ".join(dict.fromkeys([*old["command"].split(" && "), run])) if add else run,
            "data": data,
            "paper": json.loads(PAPER.read_text())["metrics"],
            "rows": rows,
            "default": of_default(judged, rows, click.echo),
            "large": old["large"],
            "pca": of_components(learned, pca_frames, judged) if pca_frames else old["pca"],
        }
        if large:
            against = rival(codecs[0], little) if codecs else old["large"]["against"]
            content["large"] = of_large(against, little, much, click.echo)
        for row in rows if content["pca"]["rows"] else []:
            row["collapsed"] = collapsed(row["metrics"]["coded"], content["pca"]["mean_frame"])
            click.echo(f"{row['model']}: collapsed: {' '.join(row['collapsed']) or 'none'}")
        if figures:
            draw(codecs, judged, at, figures)
    click.echo(keep("paper_metrics", content))


if __name__ == "__main__":
    main()
