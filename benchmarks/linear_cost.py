"""Whether cost grows as the number of frames does: time, memory and bytes of 1×, 4× and 16× the frames.

Run as ``python -m benchmarks.linear_cost``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.common import keep

#: More than a shard, which is held in memory, even in the smallest.
FRAMES = (125, 500, 2000)

# Peak and processor time are asked of the kernel by the process itself, at its end. Libraries and the
# network are loaded by one frame before the clock starts.
_RUN = """
import json, resource, sys, time
import sunzip
sunzip.compress("synthetic:frames=1,size=128", sys.argv[2], force=True)
begin, busy = time.monotonic(), time.process_time()
report = sunzip.compress(sys.argv[1], sys.argv[2], force=True)
print(json.dumps({"frames": report.frames, "seconds": time.monotonic() - begin,
                  "cpu_seconds": time.process_time() - busy,
                  "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                  "archive_bytes": report.archive_bytes}))
"""


def run(frames: int, folder: Path) -> dict[str, Any]:
    """Compress that many synthetic 12-channel frames of 128² in a process of its own."""
    source = f"synthetic:frames={frames},size=128,seed=777002,start=2012-01-01"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, source, str(folder / f"{frames}.lat")],
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
        for frames in FRAMES:
            rows.append(run(frames, Path(folder)))
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
