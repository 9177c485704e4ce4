"""Whether cost grows as the number of frames does: time, memory and bytes of 1×, 4× and 16×.

Run as ``python -m benchmarks.linear_cost``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import keep
from sunzip.sinks import open_sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic

#: More than a shard, which is held in memory, even in the smallest.
FRAMES = (125, 500, 2000)

# Peak and processor time are asked of the kernel by the process itself, at its end. Libraries and the
# network are loaded by one frame before the clock starts; processes of lanes count.
_RUN = """
import json, sys, time
import sunzip
from benchmarks.common import cpu_seconds, peak_kib
sunzip.compress("synthetic:frames=1,size=128", sys.argv[2], force=True)
begin, busy = time.monotonic(), cpu_seconds()
report = sunzip.compress(sys.argv[1], sys.argv[2], align=sunzip.Alignment(stop=sys.argv[3]), force=True)
print(json.dumps({"frames": report.frames, "seconds": time.monotonic() - begin,
                  "cpu_seconds": cpu_seconds() - busy, "peak_kib": peak_kib(), "model": report.model,
                  "archive_bytes": report.archive_bytes}))
"""


def write(store: Path) -> None:
    """Write the largest source as SDOML v2: a day of the synthetic Sun, over and over.

    Rendering takes longer than compressing; no block is as long as a day, so that repetition saves nothing.
    """
    day = join([Synthetic(frames=FRAMES[0], size=128, seed=777002, start="2012-01-01")])
    cube = day.read(0, len(day))
    step = (cube.time[1] - cube.time[0]) * len(day)
    # Without a time of its own an image gets that of its cube.
    headers = [[{k: v for k, v in h.items() if k != "T_OBS"} for h in row] for row in cube.headers]
    with open_sink(store, "sdoml-v2", channels=day.channels, shape=day.shape) as sink:
        for n in range(FRAMES[-1] // len(day)):
            later = replace(cube, time=cube.time + n * step, t_obs=cube.t_obs + n * step, headers=headers)
            sink.write(later)


def run(store: Path, frames: int, folder: Path) -> dict[str, Any]:
    """Compress the first frames of the store in a process of its own."""
    stop = np.datetime64("2012-01-01", "m") + frames * np.timedelta64(12, "m")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(store), str(folder / "out.lat"), str(stop)],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout))


@click.command()
def main() -> None:
    """Measure all three."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "sdoml.zarr"
        write(store)
        for frames in FRAMES:
            rows.append(run(store, frames, Path(folder)))
            click.echo(json.dumps(rows[-1]))
    growth = {
        key: rows[-1][key] / rows[0][key]
        for key in ("frames", "seconds", "cpu_seconds", "peak_kib", "archive_bytes")
    }
    click.echo(
        keep("linear_cost", {"command": "python -m benchmarks.linear_cost", "rows": rows, "growth": growth})
    )


if __name__ == "__main__":
    main()
