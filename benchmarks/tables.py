"""Turn benchmarks/results/*.json into the tables of the pages in `PAGES`: no number is typed.

Run as ``python -m benchmarks.tables``; ``--check`` changes nothing and fails if a table is out of date.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from benchmarks.common import RESULTS
from sunzip import weights
from sunzip.errors import ModelNotFoundError
from sunzip.metrics import over_images

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "models/wavelet-12/README.md",
    ROOT / "models/hyperprior-12/README.md",
    ROOT / "docs/explanation/codec.md",
    ROOT / "docs/explanation/paper.md",
    ROOT / "docs/explanation/rate-distortion.md",
    ROOT / "docs/explanation/bounded-errors.md",
    ROOT / "docs/explanation/metrics.md",
    ROOT / "docs/explanation/synthetic-sun.md",
    ROOT / "docs/explanation/forecast.md",
    ROOT / "docs/explanation/onboard.md",
    ROOT / "docs/how-to/cluster.md",
    ROOT / "docs/how-to/decompress.md",
    ROOT / "docs/how-to/remote-stores.md",
    ROOT / "docs/how-to/train.md",
)
_SEEN = {True: "yes", False: "**no**", None: "some"}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _mean(metrics: dict[str, Any], key: str) -> str:
    mean = over_images(metrics, key)
    return "–" if mean is None else f"{mean:.3f}"


def _source(result: dict[str, Any], library: str = "torch") -> str:
    m = result["machine"]
    return f"`{result['command']}`, {m['cores']} cores of {m['cpu']}, {library} {m[library]}."


def _named(model: str, sha256: str) -> str:
    """Name a model; tell by its digest one that was shipped under that name and is no more."""
    try:
        now = weights.load(model).sha256
    except ModelNotFoundError:
        now = sha256
    return f"`{model}`" if now == sha256 else f"`{model}` as it was before ({sha256[:8]}…)"


def main_job(result: dict[str, Any]) -> str:
    """One row an input: sizes, the paper's metrics, speed."""
    rows = []
    for row in result["rows"]:
        c, paper = row["compress"], row["metrics"]["paper"]
        frames, megabytes = c["frames"], c["raw_bytes"] / 1e6
        back = min(d["seconds"] for d in row["decompress"].values())
        rows.append(
            [
                row["name"],
                _SEEN[row["seen_in_training"]],
                f"{frames}",
                f"{c['images']}",
                f"{c['coded_bytes'] / frames:,.0f}",
                f"{row['bits_per_sample']:.4f}",
                f"{c['raw_bytes'] / c['coded_bytes']:.0f}",
                f"{c['raw_bytes'] / c['archive_bytes']:.0f}",
                _mean(paper, "r"),
                _mean(paper, "ppe10"),
                _mean(paper, "ppe50"),
                f"{megabytes / c['seconds']:.0f}",
                f"{megabytes / back:.0f}",
            ]
        )
    head = ["input", "seen in training", "frames", "images", "B/frame", "bit/sample", "ratio, coded",
            "ratio, file", "r", "ppe10", "ppe50", "in MB/s", "out MB/s"]  # fmt: skip
    return (
        f"{_table(head, rows)}\n\nModel {result['model']['name']} "
        f"({result['model']['bytes'] / 1e6:.1f} MB, not counted), quality {result['quality']}. Ratios are to "
        "float32; a file has some 15 kB of structure, which weighs on few frames. r, ppe10 and ppe50 are the "
        "paper's, averaged over images; exact zeros off the disk of HMI count as misses in ppe. Input speed "
        "includes reading and measuring the errors; output speed is that of the layout written fastest. "
        f"{_source(result, 'numpy')}"
    )


def channels(result: dict[str, Any]) -> str:
    """The paper's metrics channel by channel."""
    rows = [
        [
            row["name"],
            _SEEN[row["seen_in_training"]],
            name,
            *(f"{m[k]:.3f}" if m[k] is not None else "–" for k in ("r", "ppe50", "ppe10")),
            f"{m['rmse']:.3g} {m['unit']}",
            f"{m['rmse_sigma']:.3g}" if m["rmse_sigma"] is not None else "–",
        ]
        for row in result["rows"]
        if row["seen_in_training"] is not None
        for name, m in row["metrics"]["paper"].items()
        if m["images"]
    ]
    head = ["input", "seen in training", "channel", "r", "ppe50", "ppe10", "RMSE", "RMSE in noise σ"]
    return f"{_table(head, rows)}\n\n{_source(result)}"


def latents(result: dict[str, Any]) -> str:
    """Float32 latents beside coded ones."""
    rows = [
        [
            row["name"],
            _SEEN[row["seen_in_training"]],
            f"{row['quality']}",
            f"{row['bits_per_sample']:.4f}",
            f"{row['float32_bytes'] / row['frames']:,.0f}",
            f"{row['coded_bytes'] / row['frames']:,.0f}",
            f"1/{1 / row['coded_share']:.0f}",
            f"{100 * (row['worst_ratio'] - 1):+.1f} %",
        ]
        for row in result["rows"]
    ]
    head = ["input", "seen in training", "quality", "bit/sample", "float32 B/frame", "coded B/frame", "share",
            "RMSE, worst channel"]  # fmt: skip
    return f"{_table(head, rows)}\n\n{_source(result)}"


def linear_cost(result: dict[str, Any]) -> str:
    """Time, memory and bytes by number of frames."""
    rows = [
        [
            f"{r['frames']:,}",
            f"{r['seconds']:.0f} s",
            f"{r['frames'] / r['seconds']:.1f}",
            f"{1000 * r['cpu_seconds'] / r['frames']:.0f} ms",
            f"{r['peak_kib'] / 1024:,.0f} MiB",
            f"{r['archive_bytes'] / 1e3:,.0f} kB",
            f"{r['archive_bytes'] / r['frames']:,.0f}",
        ]
        for r in result["rows"]
    ]
    head = ["frames", "time", "frames/s", "processor time/frame", "peak memory", "archive", "B/frame"]
    g = result["growth"]
    cores = sum(r["cpu_seconds"] for r in result["rows"]) / sum(r["seconds"] for r in result["rows"])
    # A job that has less than a core to itself shares the machine, and its times are not sunzip's own.
    busy = f"The machine was busy with other work: the job had {cores:.1f} of a core. " if cores < 1 else ""
    return (
        f"{_table(head, rows)}\n\n{g['frames']:.0f} times the frames take {g['cpu_seconds']:.1f} times the "
        f"processor time, {g['archive_bytes']:.1f} times the bytes and {g['peak_kib']:.2f} times the memory. "
        f"Coded by {result['rows'][0]['model']}. {busy}{_source(result, 'numpy')}"
    )


_PAPER_SIZES = (
    ("data_mib", "data"),
    ("latents_mib", "latents"),
    ("weights_mib", "weights"),
    ("total_mib", "total"),
    ("percent", "share"),
)


def paper_sizes(result: dict[str, Any]) -> str:
    """Table 1: the paper's columns as printed and as computed, and ours."""

    def sizes(row: dict[str, float]) -> list[str]:
        return [f"{row[key]:,.1f}" for key, _ in _PAPER_SIZES[:-1]] + [f"{row['percent']:.2f} %"]

    rows = []
    for row in result["rows"]:
        rows.append([f"{row['bottleneck']:,}", "as printed", *sizes(row["paper"])])
        rows.append(["", "computed", *sizes(row["computed"])])
    head = ["bottleneck", "MiB", *(what for _, what in _PAPER_SIZES)]
    return (
        f"{_table(head, rows)}\n\n{result['frames']:,} frames of 12 × 128² float32; latents are float32 "
        f"means, weights the file that PyTorch saves. {_source(result)}"
    )


def paper_archives(result: dict[str, Any]) -> str:
    """Beside Table 1: the same frames as archives."""
    rows = []
    models = [(f"σ-VAE {row['bottleneck']:,}", row["measured"]) for row in result["rows"]]
    for what, ours in (*models, ("default", result["default"])):
        if ours is None:
            rows.append([what, *["–"] * 7])
            continue
        rows.append(
            [
                f"{what} ({_named(ours['model'], ours['sha256'])})",
                f"{ours['coded_bytes_per_frame']:,.0f}",
                f"1/{1 / ours['share_of_float32']:.1f}" if ours["share_of_float32"] else "–",
                f"{ours['latents_mib']:,.1f}",
                f"{ours['archive_mib']:,.1f}",
                f"{ours['weights_mib']:,.1f}",
                f"{ours['total_mib']:,.1f}",
                f"{ours['percent']:.3f} %",
            ]
        )
    head = ["model", "coded B/frame", "of float32 latents", "coded latents MiB", "archive MiB", "weights MiB",
            "total MiB", "share"]  # fmt: skip
    frames = result["default"]["frames"]
    return (
        f"{_table(head, rows)}\n\nExtrapolated to {result['frames']:,} frames from archives of {frames} "
        f"frames of the synthetic Sun; archives hold times, keywords and error statistics besides. "
        f"{_source(result)}"
    )


_AIA_SUM = 4


def _cell(metrics: dict[str, Any] | None, name: str, key: str) -> str:
    value = None if metrics is None else metrics[name][key]
    if value is None:
        return "–"
    # The paper's RMSE is in sums of 2×2 pixels, ours in means.
    return f"{value * (_AIA_SUM if name.endswith('A') else 1):.2f}" if key == "rmse" else f"{value:.2f}"


def paper_metrics(result: dict[str, Any]) -> str:
    """Tables 3 to 6: by bottleneck the paper, ours coded, ours as float32, PCA."""
    ours = {row["bottleneck"]: row["metrics"] for row in result["rows"]}
    components = {row["bottleneck"]: row for row in result["pca"]["rows"]}
    keys = (("r", "r"), ("ppe50", "ppe50"), ("ppe10", "ppe10"), ("rmse", "RMSE"))
    parts = []
    for bottleneck, paper in result["paper"].items():
        mine, linear = ours.get(int(bottleneck), {}), components.get(int(bottleneck), {})
        columns = (mine.get("coded"), mine.get("float32"), linear.get("metrics"))
        rows = []
        for name in paper:
            row = [name]
            for key, _ in keys:
                row += [f"{paper[name][key]:.2f}", *(_cell(m, name, key) for m in columns)]
            rows.append(row)
        head = ["channel"]
        for _, what in keys:
            head += [f"{what}: paper", "coded", "float32", "PCA"]
        parts.append(f"Bottleneck {int(bottleneck):,}:\n\n{_table(head, rows)}")
    d = result["data"]
    tables = "\n\n".join(parts)
    return (
        f"{tables}\n\nOurs and PCA: {d['name']}, {d['frames']} frames from {d['first'][:10]} to "
        f"{d['last'][:10]} that training {'did not see' if d['held_out'] else 'saw'}; the paper: SDOML, "
        "all of which its training saw. RMSE of AIA in sums of 2×2 pixels, as the paper has it. "
        f"{_source(result)}"
    )


def _beside(columns: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Put the four metrics of some codecs side by side, channel by channel."""
    first, *others = (label for label, _ in columns)
    head = ["channel"]
    for what in ("r", "ppe50", "ppe10", "RMSE"):
        head += [f"{what}: {first}", *others]
    return _table(
        head,
        (
            [name, *(_cell(m, name, key) for key in ("r", "ppe50", "ppe10", "rmse") for _, m in columns)]
            for name in columns[0][1]
        ),
    )


def _better(rows: Iterable[dict[str, Any]]) -> str:
    """Say in how many metrics the default model is better, and in which not if these are few."""
    said = []
    for row in rows:
        metrics, lost = 4 * len(row["metrics"]), row["not_better"]
        said.append(
            f"at {row['bytes']:,.0f} B (quality {row['quality']}) the default is better in "
            f"{metrics - len(lost)} of {metrics}"
            + (f", not in {', '.join(lost)}" if 0 < len(lost) < 12 else "")
        )
    return "; ".join(said)


def paper_default(result: dict[str, Any]) -> str:
    """The default model at the bytes of the paper's smallest latents, and at a tenth of them."""
    theirs, model = result["rows"][0], result["default"]["model"]
    least = theirs["bottleneck"]
    ours = [row for row in result["default"]["rows"] if row["bottleneck"] == least]
    table = _beside(
        [
            (f"σ-VAE, {4 * least:,} B", theirs["metrics"]["float32"]),
            *((f"`{model}`, {row['bytes']:,.0f} B", row["metrics"]) for row in ours),
        ]
    )
    return (
        f"{table}\n\nBytes a frame of {result['data']['name']}, {result['data']['frames']} "
        "held-out frames, each coded by itself, headers included; the σ-VAE's are its float32 means. "
        f"Unrounded, {_better(ours)}. {_source(result)}"
    )


def paper_large(result: dict[str, Any]) -> str:
    """The default model at 512²: at the paper's bits per sample and at a tenth of them."""
    large = result["large"]
    if large is None:
        return "Not measured."
    theirs, side = large["against"], large["side"]
    factor = side // theirs["side"]
    parts, counts = [], []
    for judged_at in (side, theirs["side"]):
        ours = [row for row in large["rows"] if row["judged_at"] == judged_at]
        table = _beside(
            [
                (f"σ-VAE, {4 * theirs['bottleneck']:,} B", theirs["metrics"]),
                *((f"`{large['model']}`, {row['bytes']:,.0f} B", row["metrics"]) for row in ours),
            ]
        )
        how = "As they are" if judged_at == side else f"Made small to {judged_at}²"
        parts.append(f"{how}:\n\n{table}")
        counts.append(f"{how}, unrounded, {_better(ours)}.")
    tables, data = "\n\n".join(parts), result["data"]
    return (
        f"{tables}\n\nBytes a frame; {large['frames']} of the {data['frames']} held-out instants of "
        f"{data['name']}, at {side}², each coded by itself, headers included. The σ-VAE "
        f"(`{theirs['model']}`) is in both tables judged at {theirs['side']}²: on the same frames, made "
        f"small by means of {factor}×{factor} pixels before it sees them; its bytes are its float32 means. "
        f"{' '.join(counts)} "
        "RMSE of AIA in sums of 2×2 pixels, as the paper has it: frames are made small by means, so that the "
        f"unit is the same at both sizes. {_source(result)}"
    )


def _bold_or_none(names: list[str]) -> str:
    return f"**{' '.join(names)}**" if names else "none"


def paper_latents(result: dict[str, Any]) -> str:
    """What coding costs and saves, and what latents are in use, by bottleneck."""
    components = {row["bottleneck"]: row["components"] for row in result["pca"]["rows"]}
    rows = [
        [
            f"{row['bottleneck']:,}",
            f"`{row['model']}`",
            f"{row['active_units']:,}",
            f"{row['bits_per_latent']:.2f}",
            f"1/{1 / row['share_of_float32']:.1f}",
            "yes" if row["holds"]["share"] else "**no**",
            f"{100 * row['worst_change']:+.2f} % ({row['worst_change_of']})",
            "yes" if row["holds"]["change"] else "**no**",
            "all" if row["holds"]["r"] else f"**not {' '.join(row['least_r_missed_by'])}**",
            _bold_or_none(row["collapsed"]) if "collapsed" in row else "–",
            f"{components[row['bottleneck']]:,}" if row["bottleneck"] in components else "–",
        ]
        for row in result["rows"]
    ]
    head = ["bottleneck", "model", "active latents", "bit/latent", "of float32", "≤ 1/8",
            "worst change by coding", "≤ 1 %", "r ≥ 0.90, 0.98", "collapsed", "PCA components"]  # fmt: skip
    return (
        f"{_table(head, rows)}\n\nBits and shares are those of the latents alone: a block's header, which "
        "bytes of archives count, comes on top. "
        f"PCA was fitted to {result['pca']['frames']:,} training frames, which "
        "bounds its components. A channel has collapsed if the mean frame correlates with it as well, or "
        f"errs as little. {_source(result)}"
    )


def filling(result: dict[str, Any]) -> str:
    """How near foretold images come to those that were left out."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    keys = ("coded", "foretold", "before")
    rows = [
        [name, *(shown(row["channels"][name][key]) for row in result["rows"] for key in keys)]
        for name in result["rows"][0]["channels"]
    ]
    head = ["channel"]
    for row in result["rows"]:
        head += [f"{row['cadence']}: coded", "foretold", "last one"]
    filled = ", ".join(f"{row['filled']} of {row['images']}" for row in result["rows"])

    def mean(key: str) -> str:
        means = [
            [found[key] for found in row["channels"].values() if found[key] is not None]
            for row in result["rows"]
        ]
        return ", ".join(shown(sum(values) / len(values) if values else None) for values in means)

    return (
        f"{_table(head, rows)}\n\nr with the images of a synthetic Sun at {result['side']}², "
        f"{result['frames']} frames at each cadence, each of which lacks a quarter of its channels: of "
        f"images that were coded, of those that were foretold ({filled}), and of the last one of the "
        f"channel in the place of these. Of the variance of foretold images {mean('expected')} was expected "
        f"to be right, by `SZ_FILL`, and {mean('right')} was: the mean over channels. "
        f"`{result['model']['name']}` at its default quality. "
        f"{_source(result)}"
    )


def gaps(result: dict[str, Any]) -> str:
    """What missing pixels cost."""
    whole = {row["name"]: row for row in result["rows"] if row["lost"] == "none"}
    rows = [
        [
            row["name"],
            row["lost"],
            f"{row['bytes']:,}",
            f"{row['map_bytes']:,}" if row["map_bytes"] else "–",
            f"{row['zeros_bytes']:,}",
            f"{row['rmse'] / whole[row['name']]['rmse']:.3f}",
            f"{row['light_off']:.2%}".replace("%", " %"),
        ]
        for row in result["rows"]
    ]
    head = ["frame", "missing", "bytes", "of which the map", "with zeros instead", "error", "light off by"]
    return (
        f"{_table(head, rows)}\n\n*Error* and *light* are those of images of AIA where pixels are there: the "
        "RMS error in units of noise over that of the whole frame, and how far the sum of pixels is off, the "
        "mean over channels. All channels lack the same pixels. *With zeros instead*: bytes of the frame "
        "with 0 in their place, which does not tell where it stands for nothing. "
        f"`{result['model']['name']}` at quality {result['quality']}, a frame alone. {_source(result)}"
    )


def _coded(row: dict[str, Any]) -> str:
    """Say how a row of sums was coded."""
    if row["wish"]:
        return str(row["wish"]).replace("sigma", " σ").replace("=", " to ").replace("G", " G")
    return f"quality {row['quality']}" + (", each frame alone" if row["block"] else "")


def sums_of_light(result: dict[str, Any]) -> str:
    """How far the light of the disk and of regions is off."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if "disk" in row:
            found.setdefault((row["name"], _coded(row)), []).append(row)

    def mean(rows: list[dict[str, Any]], key: str, sign: str = "") -> str:
        known = [row[key] for row in rows if row[key] is not None]
        return f"{sum(known) / len(known):{sign}.2f} %" if known else "–"

    rows = [
        [
            name,
            str(max(row["frames"] for row in group)),
            coded,
            f"{group[0]['bits_per_sample']:.3f}",
            mean(group, "disk", "+"),
            mean(group, "disk_changes"),
            mean(group, "sun_changes"),
            mean(group, "region"),
            mean(group, "brightest", "+"),
        ]
        for (name, coded), group in found.items()
    ]
    head = ["input", "frames", "coded", "bit/sample", "disk, mean", "disk, from frame to frame",
            "the Sun, from frame to frame", "regions", "brightest region, mean"]  # fmt: skip
    return (
        f"{_table(head, rows)}\n\nDecoded light over the original's, less 1: of the whole disk, the mean "
        "over frames and the RMS of how it changes from one frame to the next, beside the RMS by which "
        "the original changes; of squares of a sixteenth of the image's side that lie on the disk, the RMS, "
        "and the mean of each frame's brightest. Means over channels of AIA where there are several. "
        f"`{result['model']['name']}`. {_source(result)}"
    )


def sums_of_field(result: dict[str, Any]) -> str:
    """How much of the unsigned flux is left, and of the net one."""
    rows = [
        [
            row["name"],
            row["channel"],
            str(row["frames"]),
            _coded(row),
            f"{100 * row['unsigned']:.0f} %",
            "–" if row["strong"] is None else f"{100 * row['strong']:.0f} %",
            f"{row['net']:+.2f} G",
            f"{row['net_decoded']:+.2f} G",
        ]
        for row in result["rows"]
        if "unsigned" in row
    ]
    head = ["input", "channel", "frames", "coded", "unsigned flux left", "where it was above 100 G",
            "mean field", "decoded"]  # fmt: skip
    return f"{_table(head, rows)}\n\nOn the disk. `{result['model']['name']}`. {_source(result)}"


def random_access(result: dict[str, Any]) -> str:
    """What one frame of many costs in an archive and in Blosc stores, from disk and through S3."""

    def span(found: dict[str, Any]) -> str:
        return f"{1e3 * found['warm_seconds']:.0f} ({1e3 * found['warm_seconds_p95']:.0f})"

    rows = [
        [
            row["name"],
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['objects']:,}",
            f"{1e3 * row['disk']['cold_seconds']:.0f}",
            span(row["disk"]),
            f"{1e3 * row['disk']['decode_seconds']:.1f}",
            f"{row['s3']['cold_requests']:.0f}",
            f"{row['s3']['warm_requests']:.1f}",
            f"{row['s3']['warm_bytes'] / 1e3:,.0f}",
            f"{1e3 * row['s3']['cold_seconds']:.0f}",
            span(row["s3"]),
            f"{1e3 * row['s3']['decode_seconds']:.1f}",
            f"{1e3 * row['s3']['warm_server_seconds']:.0f}",
        ]
        for row in result["rows"]
    ]
    head = ["store", "MB", "files", "disk: opened and a frame, ms", "disk: a frame, ms (p95)",
            "of which decoding, ms", "S3: requests, opened and a frame", "S3: requests, a frame",
            "S3: kB, a frame", "S3: opened and a frame, ms", "S3: a frame, ms (p95)",
            "of which decoding, ms", "of which in the server, ms"]  # fmt: skip
    c, y, x = result["shape"]
    return (
        f"{_table(head, rows)}\n\nOne frame of {c} channels at {y}×{x}, drawn at random out of "
        f"{result['frames']:,}; {result['read_from_disk']} from disk, whose cache is warm, and "
        f"{result['read_from_s3']} through moto's S3 server on the same machine; a network adds its latency "
        f"to each request. {result['distinct']} frames of a synthetic Sun are distinct; they are coded once "
        "and repeated. To S3 went the whole archive, and of the Blosc stores what is read. The archive's "
        f"pixels are those of model {result['model']['name']} at quality {result['quality']}, the others' "
        "are exact. "
        f"{_source(result, 'numpy')}"
    )


def scaling_stages(result: dict[str, Any]) -> str:
    """What one frame costs, stage by stage."""
    stages = result["stages"]["cpu_seconds"]
    total = sum(stages.values())
    rows = [[name, f"{1e3 * s:.0f}", f"{100 * s / total:.0f} %"] for name, s in stages.items()]
    rows.append(["**one frame**", f"**{1e3 * total:.0f}**", f"{1 / total:.2f} frames/s"])
    return (
        f"{_table(['stage', 'ms of one core', 'share'], rows)}\n\n12 channels of 512², default model. A "
        f"shard of 120 frames is then written in {result['stages']['write_seconds_per_shard']:.2f} s and "
        f"packed in {result['stages']['pack_seconds_per_shard']:.2f} s, beside or after coding; Dask does "
        f"{result['scheduler']['tasks_s']:,.0f} empty tasks a second. {_source(result, 'numpy')}"
    )


def scaling_measured(result: dict[str, Any]) -> str:
    """Runs with one and with several processes beside the model."""
    rows = [
        [
            f"one process, {r['lanes']} lane{'s' * (r['lanes'] > 1)}",
            f"{r['frames_s']:.2f}",
            f"{1e3 * r['cpu_seconds_per_frame']:.0f}",
            f"{r['alone_frames_s']:.2f}",
            "–",
            f"{r['load']:.0f}",
        ]
        for r in result["one_process"]
    ] + [
        [
            f"`--workers {r['workers']}`",
            f"{r['frames_s']:.2f}",
            f"{1e3 * r['cpu_seconds_per_frame']:.0f}",
            f"{r['alone_frames_s']:.2f}",
            f"{r['predicted_frames_s']:.2f}",
            f"{r['load']:.0f}",
        ]
        for r in result["processes"]
    ]
    head = ["run", "frames/s", "ms of processor a frame", "frames/s by that time", "frames/s, the model",
            "load of the machine"]  # fmt: skip
    cores, load = result["machine"]["cores"], max(r["load"] for r in result["processes"])
    if load > 2 * cores:
        return (
            "Runs with several processes are not shown: when they were measured, "
            f"{load:.0f} processes wanted {cores} cores. The stages above are processor time, which that "
            "changes little, but the model below is not held against runs with several workers yet. "
            f"{_source(result, 'numpy')}"
        )
    return (
        f"{_table(head, rows)}\n\nThe runs take more time a frame than the model says: for several workers "
        f"to have something to do their {result['frames']} frames are in shards of 3, in each of which "
        "frames begin anew and whole chunks of the source are read, and the model's are in shards of 120. "
        f"{_source(result, 'numpy')}"
    )


def scaling_model(result: dict[str, Any]) -> str:
    """The whole SDOML v2 on 1 to 256 cores."""
    rows = [
        [
            f"{m['workers']}",
            f"{m['frames_s']:,.1f}",
            f"{m['hours'] / 24:,.1f}" if m["hours"] >= 24 else f"{m['hours'] / 24:.2f}",
            f"{m['core_hours']:,.0f}",
            f"{m['dollars']:,.2f}",
            f"{m['read_bytes_s'] / 1e6:,.0f}",
            f"{100 * m['efficiency']:.0f} %",
            m["bottleneck"],
            m["next"],
        ]
        for m in result["model"]
    ]
    head = ["cores", "frames/s", "days", "core-hours", "dollars", "MB/s from S3", "of the time coding",
            "bottleneck", "then"]  # fmt: skip
    a, stages = result["assumptions"], result["stages"]
    return (
        f"{_table(head, rows)}\n\nAssumed: {a['frames']:,} frames, for which "
        f"{a['source_bytes'] / 1e12:.1f} TB are read; {a['read_bytes_s'] / 1e6:.0f} MB/s from S3 for every "
        f"worker, beside its coding; {a['open_seconds']:.0f} s to read the metadata; "
        f"${a['dollars_core_hour']} a core-hour; every core as fast as the measured one. Measured: all "
        f"stages above. At {stages['archive_bytes_per_frame']:,.0f} B a frame the archive has "
        f"{stages['archive_bytes_per_frame'] * a['frames'] / 1e9:.1f} GB. {_source(result, 'numpy')}"
    )


def synthetic_sun(result: dict[str, Any]) -> str:
    """Means and standard deviations of the synthetic Sun beside those of SDOML."""
    statistics = result["statistics"]
    rows = [
        [
            name,
            *(f"{v:.3g}" for v in (c["table"][0], c["mean"])),
            f"{c['mean_ratio']:.2f}" if c["mean_ratio"] is not None else "–",
            *(f"{v:.3g}" for v in (c["table"][1], c["std"])),
            f"{c['std_ratio']:.2f}",
        ]
        for name, c in statistics["channels"].items()
    ]
    head = ["channel", "mean, SDOML v2", "synthetic", "ratio", "std, SDOML v2", "synthetic", "ratio"]
    return (
        f"{_table(head, rows)}\n\n{statistics['frames']} frames of 512² from 2010-06 to 2014-12, four of "
        f"each Sun; SDOML: 16,893 aligned frames of these years. {_source(result, 'numpy')}"
    )


def synthetic_sun_shapes(result: dict[str, Any]) -> str:
    """Slopes of power spectra, and middle and tails of histograms, real beside synthetic."""
    percent = result["percent"]
    rows = []
    for date in ("2024-10-04", "2017-01", "2013-01-31"):
        for name, c in result[date].items():
            real, made = c["real"], c["synthetic"]
            found = [
                f"{who['percentiles'][percent.index(q)]:.3g}" for q in (10, 50, 99) for who in (real, made)
            ]
            spread = f"{min(made['slopes']):.2f} … {max(made['slopes']):.2f}"
            rows.append([f"{name} {date}", f"{real['slope']:.2f}", f"{made['slope']:.2f}", spread, *found])
    head = ["", "slope, real", "synthetic", "of single frames", "10 %, real", "synthetic", "median, real",
            "synthetic", "99 %, real", "synthetic"]  # fmt: skip
    return f"{_table(head, rows)}\n\n{_source(result, 'numpy')}"


def synthetic_sun_hours(result: dict[str, Any]) -> str:
    """How much of 171 Å is new after some hours, and how fast frames are made."""
    hours, speed = result["hours"], result["speed"]
    rows = [
        [f"{h} h", f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{b / a:.2f}"]
        for h, a, b in zip(hours["hours"], hours["real"], hours["synthetic"], strict=True)
    ]
    return (
        f"{_table(['after', 'real', 'synthetic', 'ratio'], rows)}\n\n1 − r of 171 Å at 128², August 2017. "
        f"A frame of 12 × 512² costs {speed['cpu_seconds_per_frame']:.2f} s of CPU time, so that two cores "
        f"make {2 / speed['cpu_seconds_per_frame']:.1f} a second if nothing else runs on them "
        f"({speed['frames_per_second']:.1f} while this was measured). {_source(result, 'numpy')}"
    )


def _shown(result: dict[str, Any]) -> str:
    """Return the model whose comparison is shown where there is room for one: the default, if measured."""
    models: list[str] = list(result["comparison"])
    return result["default"] if result.get("default") in models else models[0]


def _times(mean: dict[str, Any], names: dict[str, str] | None = None) -> str:
    """Write a mean ratio of bytes; what it does not cover is said, never filled in."""
    if mean["ratio"] is None:
        return "–"
    who = f" {names[mean['who']]}" if names and mean["who"] else ""
    part = f" ({100 * mean['covered']:.0f} % of the range)" if mean["covered"] < 0.995 else ""
    return f"{mean['ratio']:.2f} ×{who}{part}"


def _span(case: dict[str, Any]) -> str:
    frames, channels, y, x = case["shape"]
    count = f"{channels} channel{'s' * (channels > 1)}"
    return f"{case['title']} ({frames} frame{'s' * (frames > 1)}, {count}, {y}×{x})"


def rate_distortion(result: dict[str, Any]) -> str:
    """All channels together: bytes of sunzip over bytes of the best peers at equal errors."""
    rows = []
    mixed = {key.split(":")[0] for found in result["mixtures"].values() for key in found}
    shown = ["best", "best without KLT", *(f"KLT + {key}" for key in sorted(mixed))]
    for model, found in result["comparison"].items():
        for group, peers in found["overall"].items():
            case = result["cases"].get(group)
            if (case and case["series"]) or "best" not in peers:  # no peer was measured on it
                continue
            name = _span(case) if case else "**all real frames**"
            for span in peers["best"]:
                if peers["best"][span]["ratio"] is None:
                    continue
                # A single channel has nothing to be mixed with.
                alone = case is not None and len(case["channels"]) == 1
                cells = [
                    "–" if key not in peers or (alone and key.startswith("KLT")) else _times(peers[key][span])
                    for key in shown
                ]
                rows.append([f"`{model}`", name, span, *cells])
    head = ["model", "frames", "sunzip's bit/sample", "best of all", "best codec of each channel"]
    head += [f"KLT + {result['names'][key.removeprefix('KLT + ')]}" for key in shown[2:]]
    return (
        f"{_table(head, rows)}\n\nBytes of sunzip over bytes of the others at the same error in every "
        "channel; less than 1 is fewer bytes. Ranges in which the model has no setting, or no peer the same "
        f"errors, are left out. {_source(result, 'numpy')}"
    )


def rate_distortion_peers(result: dict[str, Any]) -> str:
    """Each peer by itself, on all real frames."""
    model = _shown(result)
    overall = result["comparison"][model]["overall"]
    group = "real" if "real" in overall else next(iter(overall))
    rows = [
        [result["names"].get(peer, peer), *(_times(mean) for mean in spans.values())]
        for peer, spans in overall[group].items()
        if peer in result["names"] and any(mean["ratio"] for mean in spans.values())
    ]
    head = ["peer", *(f"{span} bit/sample" for span in next(iter(overall[group].values())))]
    return (
        f"{_table(head, rows)}\n\nModel `{model}`, all real frames that are not a series. A dash: the peer "
        f"has no setting with the errors that sunzip has at such a rate. {_source(result, 'numpy')}"
    )


def rate_distortion_channels(result: dict[str, Any]) -> str:
    """Each channel coded by itself, against the cheapest peer."""
    model = _shown(result)
    rows = [
        [result["cases"][case]["title"], name, *(_times(mean, result["names"]) for mean in spans.values())]
        for case, channels in result["comparison"][model]["channels"].items()
        for name, spans in channels.items()
        if any(mean["ratio"] for mean in spans.values())
    ]
    first = next(iter(next(iter(result["comparison"][model]["channels"].values())).values()))
    head = ["frames", "channel", *(f"{span} bit/sample" for span in first)]
    return (
        f"{_table(head, rows)}\n\nModel `{model}`, given one channel and none of the others. Beside the "
        f"ratio stands the peer that is cheapest over most of the range. {_source(result, 'numpy')}"
    )


def rate_distortion_series(result: dict[str, Any]) -> str:
    """Series as one block: against film codecs, and against the same frames one by one."""
    model = _shown(result)
    found = result["comparison"][model]
    rows = []
    for case, spans in found["blocks"].items():
        peers = found["overall"][case]
        for span, mean in spans.items():
            cells = [_times(peers[p][span]) if p in peers else "–" for p in ("best", "hevc-film", "av1-film")]
            if mean["ratio"] is not None:
                rows.append([_span(result["cases"][case]), span, _times(mean), *cells])
    head = ["series", "sunzip's bit/sample", "own frames one by one", "best film codec", "HEVC", "AV1"]
    return f"{_table(head, rows)}\n\nModel `{model}`. {_source(result, 'numpy')}"


_AT = (0.02, 0.1)
_QUALITY = (
    ("rmse_sigma", "RMSE in noise σ", ".2f"),
    ("r", "r", ".4f"),
    ("ppe10", "ppe10", ".3f"),
    ("ppe50", "ppe50", ".3f"),
    ("psnr_log", "PSNR of log, dB", ".1f"),
    ("ms_ssim_log", "MS-SSIM of log", ".4f"),
    ("max_error", "largest error, DN/s", ",.0f"),
)


def _at(curve: dict[str, Any], bits: Sequence[float], key: str, rate: float) -> float | None:
    """Return a metric at a rate, between its two neighbours; None outside of what was measured."""
    points = sorted((b, v) for b, v in zip(bits, curve[key], strict=True) if b and v is not None)
    for (b0, v0), (b1, v1) in pairwise(points):
        if b0 <= rate <= b1:
            part = math.log(rate / b0) / math.log(b1 / b0) if b1 > b0 else 0
            return float(v0 + part * (v1 - v0))
    return None


def rate_distortion_metrics(result: dict[str, Any]) -> str:
    """Every codec's metrics at two rates, means over the channels of the real frame that has most."""
    case = max(
        (c for c, v in result["cases"].items() if v["real"] and not v["series"]),
        key=lambda c: len(result["cases"][c]["channels"]),
    )
    codecs = []
    for model, cases in result["models"].items():
        if case in cases:
            frame = cases[case]["frame"]
            codecs.append(
                (f"sunzip, `{model}`", {n: (frame["bits"], c) for n, c in frame["channels"].items()})
            )
    for key, found in result["mixtures"].get(case, {}).items():
        base, kind = key.split(":")
        if kind == "noise":
            frame = found["frame"]
            named = {n: (frame["bits"], c) for n, c in frame["channels"].items()}
            codecs.append((f"KLT + {result['names'][base]}", named))
    for key, channels in result["peers"].get(case, {}).items():
        codecs.append((result["names"][key], {n: (c["bits"], c) for n, c in channels.items()}))
    rows = []
    for rate in _AT:
        for name, channels in codecs:
            cells = []
            for key, _, form in _QUALITY:
                values = [_at(curve, bits, key, rate) for bits, curve in channels.values()]
                known = [v for v in values if v is not None]
                cells.append(f"{sum(known) / len(known):{form}}" if len(known) == len(values) else "–")
            if set(cells) != {"–"}:
                rows.append([f"{rate}", name, *cells])
    head = ["bit/sample", "codec", *(what for _, what, _ in _QUALITY)]
    return (
        f"{_table(head, rows)}\n\n{_span(result['cases'][case])}, means over the channels; between two "
        "measured settings the metric is taken to be linear in the logarithm of the rate. Codecs of all "
        "channels at once have the rate on the mean, the others in every channel. Codecs that cannot go so "
        f"low are not there. {_source(result, 'numpy')}"
    )


#: What of its time a wavelet model may spend in entropy coding, and how fast its network must be, on one
#: thread, beside a matrix product.
_ENTROPY_MOST, _NETWORK_LEAST = 0.15, 0.5


def rate_distortion_speed(result: dict[str, Any]) -> str:
    """Speed in both directions on one thread and on two, and memory."""
    speed = result["speed"]
    timed = {**speed, "command": f"{result['command']} --speed"}
    if not speed:
        return "Not measured yet: `python -m benchmarks.rate_distortion --real ../shared/data/real --speed`."
    rows = [
        [
            result["names"].get(name, f"sunzip, `{name}`"),
            f"{threads['1']['bits']:.3f}",
            *(f"{threads[t][k]:.0f}" for k in ("encode_mb_s", "decode_mb_s") for t in ("1", "2")),
            *(f"{threads[t]['peak_mib']:.0f}" for t in ("1", "2")),
        ]
        for name, threads in speed["codecs"].items()
    ]
    head = ["codec", "bit/sample", "in MB/s, 1 thread", "2 threads", "out MB/s, 1 thread", "2 threads",
            "peak MiB, 1 thread", "2 threads"]  # fmt: skip
    return (
        f"{_table(head, rows)}\n\n{speed['case']}, each codec at its first setting of at least "
        f"{speed['rate']} bit/sample that its sweep has; MB of float32 in DN/s and G, the square root "
        "included. Peers code as many images at a time as they have threads; sunzip is timed on two once its "
        "lanes have processes of their own, after 15 s of work. Memory is the peak of a process that does "
        f"nothing else, with its libraries, and of those that it started. {_source(timed, 'numpy')}"
    )


def rate_distortion_shares(result: dict[str, Any]) -> str:
    """Where the time of a wavelet model goes, and how its network compares with a matrix product."""
    speed = result["speed"]
    command = f"{result['command']} --speed"
    rows = [
        [
            f"`{name}`, {direction}",
            f"{100 * found['network']:.1f} %",
            f"{100 * found['entropy']:.1f} %",
            "yes" if found["entropy"] <= _ENTROPY_MOST else "**no**",
            f"{100 * (1 - found['network'] - found['entropy']):.1f} %",
            f"{found['network_gmac_s']:.1f}",
            f"{found['matrix_gmac_s']:.1f}",
            f"{100 * found['network_gmac_s'] / found['matrix_gmac_s']:.1f} %",
            "yes" if found["network_gmac_s"] >= _NETWORK_LEAST * found["matrix_gmac_s"] else "**no**",
        ]
        for name, threads in speed.get("codecs", {}).items()
        for direction, found in threads["1"].get("shares", {}).items()
    ]
    if not rows:
        return f"Not measured yet: `{command} --only sunzip`."
    most, least = (f"{100 * share:.0f} %" for share in (_ENTROPY_MOST, _NETWORK_LEAST))
    head = ["", "network", "entropy coding", f"≤ {most}", "rest", "network, GMAC/s", "matrix product, GMAC/s",
            "ratio", f"≥ {least}"]  # fmt: skip
    return (
        f"{_table(head, rows)}\n\n{speed['case']}, the model's setting of the table above, on one thread; "
        "shares of the time. GMAC/s are 10⁹ multiply-accumulates per second: those that the network runs, "
        "over the time it takes, and those of a float32 product of two matrices of 1024×1024. The targets: "
        f"entropy coding in at most {most} of the time, and a network at least {least} as fast as the "
        f"product. {_source({**speed, 'command': command}, 'numpy')}"
    )


def training_speed(result: dict[str, Any]) -> str:
    """How fast the paper's network learns, beside matrix products."""
    rows = [
        [
            f"`{row['model']}`",
            row["precision"],
            f"{row['batch']}",
            f"{row['frames_per_second']:.1f}",
            f"{row['operations_per_second'] / 1e9:,.0f}",
            f"{row['matrix_product_per_second'] / 1e9:,.0f}",
            f"{100 * row['share']:.0f} %",
        ]
        for row in result["rows"]
    ]
    head = ["model", "precision", "batch", "frames/s", "10⁹ operations/s", "of a matrix product", "share"]
    told = f"{result['device']}, {result['threads']} threads. {_source(result, 'torch')}"
    return f"{_table(head, rows)}\n\n{told}"


def forecast(result: dict[str, Any]) -> str:
    """RMSE of each method by days ahead, on the paper's split."""
    r, grid = result["report"], ", ".join(map(str, result["trees"]))
    rows, shape = r["rows"]["1"], "×".join(map(str, r["latent_shape"]))
    return (
        f"{_by_horizon(r['methods'], lambda s: _of(s, 'rmse', 'low', 'high', 1))}\n\n**Synthetic Sun, "
        f"synthetic flux.** RMSE of {r['column']} in solar flux units with 95 % intervals, bold where surely "
        f"less than persistence's; {rows['train']:,} days to learn from, {rows['validation']} to choose by, "
        f"{rows['test']} to test; trees chosen from {grid}; latents {shape} of "
        f"`{r['model']}` ({r['model_sha256'][:8]}…) at {result['size']}², {_seen(r)}. "
        f"{_source(result, 'sklearn')}"
    )


def forecast_folds(result: dict[str, Any]) -> str:
    """RMSE over persistence's, every month tested in turn."""
    r = result["report"]
    days = r["folds"]["persistence"][0]["rows"]
    return (
        f"{_by_horizon(r['folds'], lambda s: _of(s, 'ratio', 'ratio_low', 'ratio_high', 2))}\n\n**Synthetic "
        "Sun, synthetic flux.** RMSE over that of persistence with 95 % intervals, bold where all of the "
        f"interval is less; {days:,} days, each tested once by {result['trees'][0]} trees that learnt "
        f"nothing from {r['embargo']} days before and after its month. {_source(result, 'sklearn')}"
    )


def forecast_flux(result: dict[str, Any]) -> str:
    """Statistics of the synthetic flux beside the observed one."""
    names = ("mean", "deviation", "least", "most", "change_1", "change_3", "change_7")
    rows = [[name, *(f"{flux[n]:.1f}" for n in names)] for name, flux in result["fluxes"].items()]
    head = [
        "sfu, at 1 au",
        "mean",
        "standard deviation",
        "least",
        "most",
        "change in 1 day",
        "3 days",
        "7 days",
    ]
    return f"{_table(head, rows)}\n\n2010-05-24 to 2018-12-31; changes are root mean squares."


def _by_horizon(methods: dict[str, Any], show: Callable[[dict[str, Any]], str]) -> str:
    head = ["days ahead", *(str(s["horizon"]) for s in next(iter(methods.values())))]
    return _table(head, [[name, *map(show, scores)] for name, scores in methods.items()])


def _of(score: dict[str, Any], value: str, low: str, high: str, digits: int) -> str:
    text = f"{score[value]:.{digits}f} ({score[low]:.{digits}f}-{score[high]:.{digits}f})"
    return f"**{text}**" if score["ratio_high"] < 1 else text


def _seen(report: dict[str, Any]) -> str:
    pooled = f"means of {report['pool']}×{report['pool']} fields, " if report["pool"] else ""
    if not report["pca"]:
        return f"{pooled}as they are"
    return f"{pooled}{report['pca']} principal components with {100 * report['kept']:.0f} % of the variance"


def faults(result: dict[str, Any]) -> str:
    """One row a way of sending: what it costs, and what of frames is left under each kind of fault."""
    kinds = {
        "loss": "lost one by one",
        "bursts": "lost in bursts",
        "flips_after": "flipped on the way",
        "flips_before": "flipped in the recorder",
    }
    rows = []
    for row in result["schemes"]:
        found = [row["kinds"][kind] for kind in kinds]
        cells = [
            f"{100 * k['whole'] / k['frames']:.2f} / {100 * k['lost'] / k['frames']:.2f} %" for k in found
        ]
        silent = sum(k["silent"] for k in found)
        rows.append([row["title"], f"{100 * row['overhead']:+.1f} %", *cells, str(silent)])
    least = min(k["faults"] for row in result["schemes"] for k in row["kinds"].values())
    c, p, w = result["channel"], result["payloads"], result["weights"]
    table = _table(["way", "bytes", *kinds.values(), "silently wrong"], rows)
    return (
        f"{table}\n\nFrames that come whole / not at all; the others come in part. At least {least:,} "
        f"faults in each cell; packets of up to {c['packet']} B, {100 * c['loss']:g} % lost, bursts of "
        f"{c['burst']:g}; bits flip in 5 % of the packets and in half of the units. Payloads struck before "
        f"any checksum: of {p['faults']:,}, {p['refused']:,} refused, {p['same']:,} unchanged, "
        f"{p['passed']:,} passed. Weights: of {w['faults']:,} bits flipped, {w['same']:,} changed nothing, "
        f"{w['harmless']:,} the error by at most 1 %, {w['worse']:,} more, {w['useless']:,} twofold, "
        f"{w['refused']:,} made blocks that are refused, {w['broken_off']:,} broke the encoder off; a digest "
        f"found {w['noticed']:,}. Coded by {_named(result['model']['name'], result['model']['sha256'])}. "
        f"{_source(result)}"
    )


def encoder_int8(result: dict[str, Any]) -> str:
    """One row a model: what 8-bit integers change and gain."""
    rows = []
    for row in result["rows"]:
        f, i = row["float32"], row["int8"]
        rows.append(
            [
                row["model"],
                f"{row['size']}²",
                f"{i['bytes']:,.0f}",
                *(f"{100 * row['loss'][k]:+.2f} %" for k in ("bytes", "rmse")),
                *(f"{1000 * f[k]:.0f} / {1000 * i[k]:.0f} ms" for k in ("seconds_1", "seconds_2")),
                *(f"{row['faster'][k]:.2f} ×" for k in ("seconds_1", "seconds_2")),
                f"{row['tries'][-1]['int8_layers']}",
                f"{row['agreement']:.1g}",
            ]
        )
    head = ["model", "images", "B/frame", "bytes", "error", "float32 / int8, 1 core", "2 cores"]
    head += ["faster, 1 core", "2 cores", "int8 layers", "float32 off PyTorch"]
    return f"{_table(head, rows)}\n\nONNX Runtime {result['onnxruntime']}. {_source(result)}"


def _bound(text: str) -> str:
    """Return a bound as people write it."""
    for unit, written in (("sigma", " σ"), ("DN/s", " DN/s"), ("G", " G"), ("%", " %")):
        if text.endswith(unit):
            return text.removesuffix(unit) + written
    return text


def bounded(result: dict[str, Any]) -> str:
    """Bits of each codec by frames and bound, the fewest bold."""
    rows = []
    for row in result["rows"]:
        case, ours, without = result["cases"][row["case"]], row["sunzip"], row["without"]
        codecs = [ours, *row["peers"].values()]
        least = min(codec["bits"] for codec in codecs)
        cells = [f"{c['bits']:.3f}" if c["bits"] > least else f"**{c['bits']:.3f}**" for c in codecs]
        rows.append(
            [
                _span({**case, "channels": row["of"]}),
                _bound(row["bound"]),
                *cells,
                f"{row['ratio']:.2f} ×",
                f"{ours['rmse_sigma']:.2f} / {row['peers'][row['best']]['rmse_sigma']:.2f}",
                f"{ours['quality']}",
                f"{100 * ours['residual']:.0f} %",
                f"{without['bits']:.3f} ({without['quality']})" if without else "–",
            ]
        )
    head = [
        "frames",
        "bound",
        "sunzip",
        *result["names"].values(),
        "sunzip / best",
        "RMSE in σ, sunzip / best",
    ]
    head += ["quality", "residual", "without residual (quality)"]
    told = [c for row in result["rows"] for c in (row["sunzip"], *row["peers"].values())]
    pixels = sum(
        math.prod(result["cases"][row["case"]]["shape"][i] for i in (0, 2, 3))
        * len(row["of"])
        * (1 + len(row["peers"]))
        for row in result["rows"]
    )
    return (
        f"{_table(head, rows)}\n\nBit per sample of all channels for which the bound holds; the best is the "
        f"peer with the fewest. Of {pixels:,} decoded pixels {sum(c['outside'] for c in told):,} are outside "
        "of their bound. *Residual* is its share of sunzip's bytes; *without* it is sunzip at the lowest "
        "quality at which its model alone has all pixels within the bound, where some quality has. Coded by "
        f"{_named(result['model']['name'], result['model']['sha256'])}. {_source(result, 'numpy')}"
    )


def bounded_channels(result: dict[str, Any]) -> str:
    """Each channel without the others: sunzip's bytes over those of its best peer."""
    key, _ = result["timed"]
    found = [row for row in result["rows"] if row["case"] == key]
    rows = []
    for name in result["cases"][key]["channels"]:
        cells = []
        for row in found:
            if name not in row["of"]:
                cells.append("–")
                continue
            theirs = {peer: told["channels"][name]["bits"] for peer, told in row["peers"].items()}
            best = min(theirs, key=theirs.__getitem__)
            ratio = row["sunzip"]["channels"][name]["bits"] / theirs[best]
            cells.append(f"{ratio:.2f} × ({result['names'][best]})")
        rows.append([name, *cells])
    return (
        f"{_table(['channel', *(_bound(row['bound']) for row in found)], rows)}\n\n"
        f"{result['cases'][key]['title']}: each channel coded without the others, at the quality that is "
        f"cheapest for all together, over the peer that is best for it. {_source(result, 'numpy')}"
    )


def bounded_speed(result: dict[str, Any]) -> str:
    """Speed of each codec in both directions."""
    key, bound = result["timed"]
    (row,) = [row for row in result["rows"] if (row["case"], row["bound"]) == (key, bound)]
    codecs = {"sunzip": row["sunzip"], **{result["names"][k]: told for k, told in row["peers"].items()}}
    rows = [
        [name, *(f"{told[f'{way}_mb_s']:,.3g}" for way in ("encode", "decode"))]
        for name, told in codecs.items()
    ]
    return (
        f"{_table(['codec', 'encode, MB/s', 'decode, MB/s'], rows)}\n\n"
        f"{result['cases'][key]['title']}, {_bound(bound)}: float32 in DN/s to bytes and back, on one "
        "thread, the fastest of a few rounds; for peers with the error known, for sunzip with the quality. "
        f"The machine had other work, too. {_source(result, 'numpy')}"
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "faults": ("faults", faults),
    "encoder-int8": ("encoder_int8", encoder_int8),
    "main-job": ("main_job", main_job),
    "channels": ("main_job", channels),
    "latents": ("latents", latents),
    "scaling-stages": ("scaling", scaling_stages),
    "scaling-measured": ("scaling", scaling_measured),
    "scaling-model": ("scaling", scaling_model),
    "random-access": ("random_access", random_access),
    "filling": ("filling", filling),
    "gaps": ("gaps", gaps),
    "sums-of-light": ("sums", sums_of_light),
    "sums-of-field": ("sums", sums_of_field),
    "linear-cost": ("linear_cost", linear_cost),
    "synthetic-sun": ("synthetic_sun", synthetic_sun),
    "synthetic-sun-shapes": ("synthetic_sun", synthetic_sun_shapes),
    "synthetic-sun-hours": ("synthetic_sun", synthetic_sun_hours),
    "rate-distortion": ("rate_distortion", rate_distortion),
    "rate-distortion-peers": ("rate_distortion", rate_distortion_peers),
    "rate-distortion-channels": ("rate_distortion", rate_distortion_channels),
    "rate-distortion-series": ("rate_distortion", rate_distortion_series),
    "rate-distortion-metrics": ("rate_distortion", rate_distortion_metrics),
    "rate-distortion-speed": ("rate_distortion", rate_distortion_speed),
    "rate-distortion-shares": ("rate_distortion", rate_distortion_shares),
    "bounded": ("bounded", bounded),
    "bounded-channels": ("bounded", bounded_channels),
    "bounded-speed": ("bounded", bounded_speed),
    "training-speed": ("training_speed", training_speed),
    "paper-sizes": ("paper_sizes", paper_sizes),
    "forecast": ("forecast", forecast),
    "forecast-folds": ("forecast", forecast_folds),
    "forecast-flux": ("forecast", forecast_flux),
    "paper-archives": ("paper_sizes", paper_archives),
    "paper-metrics": ("paper_metrics", paper_metrics),
    "paper-latents": ("paper_metrics", paper_latents),
    "paper-default": ("paper_metrics", paper_default),
    "paper-large": ("paper_metrics", paper_large),
}


def fill(text: str) -> str:
    """Return a page with every marked table made anew; a table without results stays as it is."""
    for name, (result, make) in TABLES.items():
        file = RESULTS / f"{result}.json"
        if not file.exists():
            continue
        table = make(json.loads(file.read_text()))
        marked = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.S)
        text = marked.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    return text


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a table is out of date.")
def main(check: bool) -> None:
    """Fill the tables of all pages."""
    old = [page for page in PAGES if page.exists() and fill(page.read_text()) != page.read_text()]
    if check and old:
        sys.exit(
            f"out of date: {', '.join(p.relative_to(ROOT).as_posix() for p in old)}; run benchmarks.tables"
        )
    for page in old:
        page.write_text(fill(page.read_text()))
        click.echo(f"{page.relative_to(ROOT)}: filled")


if __name__ == "__main__":
    main()
