"""Measure rates and errors of sunzip and its peers on the same frames, in one process.

Run as ``python -m benchmarks.rate_distortion --real ../shared/data/real``. Results are written after each
codec, and what they have of the same frames is not measured again: a run that broke off is continued. With
``--only`` some codecs are measured again, and the rest is left as it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import common
from benchmarks.rate_distortion import draw, klt, ours, speed
from benchmarks.rate_distortion.cases import Case, alike, cases
from benchmarks.rate_distortion.compare import compare
from benchmarks.rate_distortion.measure import Curve, Judge, curve, sweep
from benchmarks.rate_distortion.peers import Peer, library, peers
from sunzip import weights
from sunzip.codec import Codec
from sunzip.errors import InputError

COMMAND = "python -m benchmarks.rate_distortion --real ../shared/data/real"

#: Peers that are also measured behind a transform across channels.
MIXED = ("jpeg2000", "sperr", "av1-still")
SUNZIP = "sunzip"
IMAGE = Path(__file__).parents[2] / "docs/images/rate-distortion.png"
KEYS = (SUNZIP, *(peer.key for peer in peers()), *(f"klt-{key}" for key in MIXED))


def of_peer(peer: Peer, case: Case, judges: list[Judge], points: int | None) -> dict[str, Curve]:
    """Return a peer's curve for each channel of a case."""
    out: dict[str, Curve] = {}
    for name, judge in zip(case.channels, judges, strict=True):
        images = judge.images if peer.physical else judge.stable

        def measured(level: Any, judge: Judge = judge, images: Any = images) -> dict[str, float]:
            pieces = peer.encode(images, level)
            decoded = peer.decode(pieces, images.shape)
            bits = 8 * sum(map(len, pieces)) / images.size
            return {"bits": bits, **judge(decoded if peer.physical else judge.physical(decoded))}

        levels = list(peer.levels(images))
        some = levels[:: -(-len(levels) // points)] if points else levels
        out[name] = curve([row for _, row in sweep(some, measured, peer.between)])
    return out


class Run:
    """Results on their way to the file.

    Parameters
    ----------
    found
        The frames.
    name
        Of the file; what it has of the same frames is kept.
    """

    def __init__(self, found: list[Case], name: str) -> None:
        self.cases, self.name = found, name
        self.judges = {
            case.key: [Judge(n, case.data[:, c].copy()) for c, n in enumerate(case.channels)]
            for case in found
        }
        described = {case.key: case.as_dict() for case in found}
        names = {peer.key: peer.name for peer in peers()}
        self.result: dict[str, Any] = {"command": COMMAND, "cases": described, "names": names}
        file = common.RESULTS / f"{name}.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        before = old.get("cases", {})
        same = [key for key, case in described.items() if key in before and alike(case, before[key])]
        for kind in ("peers", "mixtures"):
            self.result[kind] = {key: old[kind][key] for key in same if key in old.get(kind, {})}
        self.result["models"] = {
            model: {key: rows[key] for key in same if key in rows}
            for model, rows in old.get("models", {}).items()
        }
        self.result["about"] = old.get("about", {})
        self.result["default"] = weights.DEFAULT
        self.result["speed"] = old.get("speed", {})
        self.result["comparison"] = old.get("comparison", {})

    def keep(self) -> Path:
        """Write what there is."""
        return common.keep(self.name, self.result)

    def peer(self, peer: Peer, points: int | None, again: bool) -> None:
        """Measure one peer on all cases that are for it."""
        for case in self.cases:
            into = self.result["peers"].setdefault(case.key, {})
            if (case.series == peer.film or peer.physical) and (again or peer.key not in into):
                library(peer.needs)
                into[peer.key] = of_peer(peer, case, self.judges[case.key], points)

    def mixture(self, peer: Peer, again: bool) -> None:
        """Measure one peer behind a transform across channels."""
        codec = Codec(weights.load())
        for case in self.cases:
            if case.series or len(case.channels) == 1:
                continue
            into = self.result["mixtures"].setdefault(case.key, {})
            none = np.ones(len(case.channels))
            departing = klt.departures(case.channels, (case.data.shape[2], case.data.shape[3]), codec)
            for kind, (finer, equal) in {
                "noise": (none, False),
                "equal": (none, True),
                "noise, departing": (departing, False),
                "equal, departing": (departing, True),
            }.items():
                key = f"{peer.key}:{kind}"
                if again or key not in into:
                    library(peer.needs)
                    into[key] = klt.measure(peer, self.judges[case.key], case.channels, finer, equal=equal)

    def model(self, name: str, points: int | None, again: bool) -> None:
        """Measure one of our models."""
        codec = Codec(weights.load(name))
        model = codec.model
        known = self.result["about"].get(model.name, {}).get("sha256") == model.sha256 and not again
        rows: dict[str, Any] = self.result["models"].get(model.name, {}) if known else {}
        qualities = ours.QUALITIES[:: -(-len(ours.QUALITIES) // points)] if points else ours.QUALITIES
        self.result["models"][model.name] = rows
        self.result["about"][model.name] = {
            "sha256": model.sha256,
            "bytes": model.nbytes,
            "family": model.family,
        }
        for case in self.cases:
            if case.key in rows:
                continue
            try:
                codec.family.check_size(*case.data.shape[2:])
            except InputError as error:
                click.echo(f"{model.name} is left out of {case.title}: {error}")
                continue
            rows[case.key] = ours.measure(codec, case, self.judges[case.key], qualities)
            self.keep()


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--model", "models", multiple=True, help="Model to measure, by name or folder; repeat for more."
)
@click.option(
    "--only", multiple=True, type=click.Choice(KEYS), help="Measure this codec again, and no other."
)
@click.option("--quick", is_flag=True, help="A few frames and settings, into a file of their own.")
@click.option("--speed", "timed", is_flag=True, help="Measure speed and memory instead; on an idle machine.")
def main(real: Path, models: tuple[str, ...], only: tuple[str, ...], quick: bool, timed: bool) -> None:
    """Measure, compare and draw."""
    points = 5 if quick else None
    wanted, names, again = only or KEYS, models or (weights.DEFAULT,), bool(only)
    known = {peer.key: peer for peer in peers()}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            cases(real, Path(folder), quick=quick), "rate_distortion_quick" if quick else "rate_distortion"
        )
        if timed:
            timed_case = next(case for case in run.cases if case.key == "real-2024")
            speed.measure_all(run.result, timed_case, wanted, names)
            click.echo(run.keep())
            return
        for key in wanted:
            if key == SUNZIP:
                for name in names:
                    run.model(name, points, again)
            elif key.startswith("klt-"):
                run.mixture(known[key.removeprefix("klt-")], again)
            else:
                run.peer(known[key], points, again)
            run.keep()
            click.echo(f"{key}: measured")
    run.result["comparison"] = compare(run.result)
    click.echo(run.keep())
    if not quick:
        draw.draw(run.result, IMAGE)


if __name__ == "__main__":
    main()
