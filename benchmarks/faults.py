"""Ten thousand faults of each kind, for each way of sending, on frames of the default model.

Run as ``python -m benchmarks.faults``; it takes some minutes.
"""

from __future__ import annotations

import sys

import click

from benchmarks.common import command, keep
from sunzip.studies.faults import faults


@click.command(help=__doc__)
@click.option("--faults", "count", default=10_000, show_default=True, help="Of each kind, each way.")
@click.option("--weights", default=10_000, show_default=True, help="Bits flipped in the weights.")
@click.option("--size", default=512, show_default=True, help="Of the frames.")
def main(count: int, weights: int, size: int) -> None:
    """Run the sweep and keep what it finds."""
    found = faults(count=count, weight_count=weights, size=size, progress=_tell)
    print(keep("faults", {"command": command("faults"), **found}))
    for row in found["schemes"]:
        whole = {k: f"{100 * v['whole'] / v['frames']:.2f} %" for k, v in row["kinds"].items()}
        print(f"{row['title']}: {100 * row['overhead']:+.1f} % bytes, whole {whole}")
    print(f"payloads {found['payloads']}, weights {found['weights']}, silently wrong {found['silent']}")
    sys.exit(found["silent"] > 0)


def _tell(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
