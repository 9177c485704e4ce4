"""Whether memory grows with the number of frames: peak of `sunzip compress` for 200 and for 2,000 frames.

Run as ``python -m benchmarks.memory``.
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

FRAMES = (200, 2000)

# The peak is asked of the kernel by the process itself, at its end.
_RUN = """
import json, resource, sys, time
import sunzip
begin = time.monotonic()
report = sunzip.compress(sys.argv[1], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_kib": peak, "seconds": time.monotonic() - begin, "frames": report.frames,
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
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [run(frames, Path(folder)) for frames in FRAMES]
    growth = rows[1]["peak_kib"] / rows[0]["peak_kib"]
    click.echo(f"{rows}\n{growth:.3f} times the memory for {FRAMES[1] // FRAMES[0]} times the frames")
    click.echo(keep("memory", {"command": "python -m benchmarks.memory", "rows": rows, "growth": growth}))


if __name__ == "__main__":
    main()
