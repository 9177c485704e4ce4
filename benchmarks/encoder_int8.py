"""The encoder alone as int8: what it changes in bytes and error, and what it gains in time.

Run as ``python -m benchmarks.encoder_int8``; models other than the default are named as arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.common import command, keep
from sunzip.studies.onnx import export
from sunzip.weights import load


@click.command(help=__doc__)
@click.argument("models", nargs=-1)
def main(models: tuple[str, ...]) -> None:
    """Export each model, and keep what was measured while doing so."""
    import onnxruntime

    rows = []
    with TemporaryDirectory() as scratch:
        for name in models or ("hyperprior-12",):
            model = load(name)
            print(model.name, file=sys.stderr, flush=True)
            report = export(model, Path(scratch) / model.name, int8=True).as_dict()
            assert report["int8"] is not None
            row = {key: value for key, value in report.items() if key != "path"}
            row["loss"] = {k: report["int8"][k] / report["float32"][k] - 1 for k in ("bytes", "rmse")}
            row["faster"] = {k: report["float32"][k] / report["int8"][k] for k in ("seconds_1", "seconds_2")}
            rows.append(row)
            print(row["model"], row["loss"], row["faster"], row["kept_float"])
    content = {
        "command": command("encoder_int8"),
        "onnxruntime": onnxruntime.__version__,
        "rows": rows,
    }
    print(keep("encoder_int8", content))


if __name__ == "__main__":
    main()
