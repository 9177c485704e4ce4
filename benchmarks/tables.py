"""Turn benchmarks/results/*.json into the tables of the README and of the model's card: no number is typed.

Run as ``python -m benchmarks.tables``; ``--check`` changes nothing and fails if a table is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.common import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "models/hyperprior-12/README.md")
_SEEN = {True: "yes", False: "**no**", None: "some"}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _mean(metrics: dict[str, Any], key: str) -> str:
    known = [(m[key], m["images"]) for m in metrics.values() if m[key] is not None]
    return f"{sum(v * n for v, n in known) / sum(n for _, n in known):.3f}" if known else "–"


def _source(result: dict[str, Any]) -> str:
    m = result["machine"]
    return f"`{result['command']}`, {m['cores']} cores of {m['cpu']}, torch {m['torch']}."


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
        "includes reading, decoding again and measuring the errors. "
        f"{_source(result)}"
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


def memory(result: dict[str, Any]) -> str:
    """Peak memory by number of frames."""
    rows = [
        [f"{r['frames']:,}", f"{r['peak_kib'] / 1024:,.0f} MiB", f"{r['seconds']:.0f} s"]
        for r in result["rows"]
    ]
    return (
        f"{_table(['frames', 'peak memory', 'time'], rows)}\n\n"
        f"{result['growth']:.2f} times the memory for ten times the frames. {_source(result)}"
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "main-job": ("main_job", main_job),
    "channels": ("main_job", channels),
    "latents": ("latents", latents),
    "memory": ("memory", memory),
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
