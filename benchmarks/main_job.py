"""Do the main job on every input: compress, verify, evaluate, decompress to each layout; keep what it gave.

Run as ``python -m benchmarks.main_job --real ../shared/data/real``.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click

import sunzip
from benchmarks.common import Input, inputs, keep
from sunzip import weights
from sunzip.codec import Codec
from sunzip.sinks import LAYOUTS


def run(case: Input, work: Path) -> dict[str, Any]:
    """Run one input through everything."""
    out = work / "case.lat"
    report = sunzip.compress(case.url, out, align=case.align, force=True)
    begin = time.monotonic()
    verified = sunzip.verify(out)
    verify_seconds = time.monotonic() - begin
    measured = sunzip.evaluate(case.url, out)
    decompressed = {}
    for layout in LAYOUTS:
        target = work / f"back.{layout}"
        done = sunzip.decompress(out, target, layout=layout)
        size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) or target.stat().st_size
        decompressed[layout] = {"seconds": done.seconds, "bytes": size, "images": done.images}
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    return {
        "name": case.name,
        "seen_in_training": case.seen,
        "compress": {
            k: v for k, v in report.as_dict().items() if k not in ("path", "alignment", "model_sha256")
        },
        "alignment": report.alignment,
        "parts": sunzip.info(out)["parts"],
        "verified": verified.ok,
        "verify_seconds": verify_seconds,
        "bits_per_sample": 32 * report.coded_bytes / report.raw_bytes,
        "ratio": measured.ratio,
        "metrics": measured.metrics,
        "decompress": decompressed,
    }


@click.command()
@click.option("--real", type=click.Path(path_type=Path, exists=True), required=True)
def main(real: Path) -> None:
    """Measure all inputs."""
    model = weights.load()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = inputs(real, work / "inputs", model.name)
        # The network is loaded before anything is timed.
        sunzip.compress("synthetic:frames=1,size=64", work / "warm.lat", model=model)
        rows = []
        for case in cases:
            rows.append(run(case, work))
            click.echo(
                f"{case.name}: {rows[-1]['bits_per_sample']:.4f} bit/sample, ratio {rows[-1]['ratio']:.0f}"
            )
    content = {
        "command": "python -m benchmarks.main_job --real ../shared/data/real",
        "model": {"name": model.name, "sha256": model.sha256, "bytes": model.nbytes},
        "quality": Codec(model).quality,
        "rows": rows,
    }
    click.echo(keep("main_job", content))


if __name__ == "__main__":
    main()
