"""How compression scales: the cost of a frame by stage, 1 to 4 processes here, and a model up to 256 workers.

Run as ``python -m benchmarks.scaling``. The model has no fitted parameter: it joins what is measured here
with the assumptions of `Assumptions`, and is held against the runs with several processes. Other work on the
machine lengthens these; processor time tells what they would take alone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import keep

#: Frames of one run; shards of a few, so that several workers have something to do.
FRAMES, SHARD = 48, 3

#: Frames of one chunk of the source, which is decompressed at once.
CHUNK = 15

#: Shards of 120 frames that are packed to learn what packing costs.
PACKED = 24


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What cannot be measured here, of the whole SDOML v2 and of the machines.

    Attributes
    ----------
    frames
        Of 2010-2018 at 12 minutes, all channels present.
    source_bytes
        Of both stores on S3; all of it is read.
    read_bytes_s
        What one worker reads from S3 beside coding: 100 MB/s.
    open_seconds
        Reading the metadata of 12 channels and 9 years before the first frame.
    dollars_core_hour
        Price of one core for one hour.
    """

    frames: int = 317_566
    source_bytes: float = 7.9e12
    read_bytes_s: float = 100e6
    open_seconds: float = 300
    dollars_core_hour: float = 0.04


def make_store(path: Path) -> None:
    """Write an SDOML v2 store of 12 channels of 512²: rendering is not measured."""
    from sunzip.channels import NAMES
    from sunzip.cube import Cube, Scale
    from sunzip.sinks import open_sink
    from sunzip.sources.synthetic import Synthetic

    sun = Synthetic(frames=FRAMES, size=512, seed=777003)
    observed = np.stack([sun.times(name) for name in NAMES], axis=1)
    with open_sink(path, "sdoml-v2", channels=NAMES, shape=sun.shape) as sink:
        for row in range(FRAMES):
            one = slice(row, row + 1)
            headers = [[sun.header(name, row) for name in NAMES]]
            valid = np.ones((1, len(NAMES)), bool)
            sink.write(
                Cube(sun.frame(row)[None], NAMES, sun.time[one], observed[one], valid, headers, Scale.MEAN)
            )


def run(source: str, workers: int) -> dict[str, Any]:
    """Compress in one process (0) or with workers: frames/s once all are at work, and processor time."""
    import psutil

    from sunzip import api

    api._compress.FRAMES_PER_SHARD = SHARD
    seen: list[tuple[float, float, int]] = []
    me = psutil.Process()

    def note(p: api.Progress) -> None:
        times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
        seen.append((time.monotonic(), sum(t.user + t.system for t in times), p.done))

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        api.compress(
            source,
            Path(folder) / "a.lat",
            workers=workers or None,
            progress=note,
        )
    # What workers, and processes of lanes, spend on starting and on loading the network is over by the half.
    first, last = next(s for s in seen if s[2] >= FRAMES // 2), seen[-1]
    frames = last[2] - first[2]
    return {
        "workers": workers,
        "frames_s": frames / (last[0] - first[0]),
        "cpu_seconds_per_frame": (last[1] - first[1]) / frames,
        "seconds": time.monotonic() - began,
        "load": os.getloadavg()[0],
    }


def stages(source: str) -> dict[str, Any]:
    """Processor seconds of each step for one frame, on one lane."""
    from sunzip import api, weights
    from sunzip.api._shards import encode, write
    from sunzip.archive import ArchiveWriter
    from sunzip.codec import Codec

    series = api.open_series(source)
    codec = Codec(weights.load())
    spent: dict[str, float] = {}
    family: Any = codec.family
    within = 0.0  # of the step under way, what steps inside of it have taken

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            nonlocal within
            begin, around, within = time.thread_time(), within, 0.0
            try:
                return work(*args)
            finally:
                took = time.thread_time() - begin
                spent[name] = spent.get(name, 0) + took - within
                within = around + took

        return wrapper

    named = {
        "analyse": "analysis transform",
        "likeness": "how alike frames are",
        "steadied": "leaning on the frames around",
        "encode": "network, symbols and entropy coding",
        "decode": "decoding",
        "reference": "synthesis transform",
        "show": "synthesis transform",
    }
    encode(codec, series.read(0, 1), 1)  # the network is loaded
    series = api.open_series(source)  # and no chunk of the source is at hand
    for method, name in named.items():
        setattr(family, method, timed(name, getattr(family, method)))

    @contextmanager
    def whole(name: str) -> Any:
        begin = time.process_time()
        yield
        spent[name] = spent.get(name, 0) + time.process_time() - begin

    # As one block: frames build on each other, as they do by default.
    with whole("reading and decompressing the source"):
        cube = series.read(0, CHUNK)
    with whole("all"):
        part = encode(codec, cube, CHUNK)[1]
    # Where the encoder knows what is decoded nothing has to be.
    steps = sum(spent.get(name, 0) for name in set(named.values()))
    spent["normalising, masks and error statistics"] = spent.pop("all") - steps
    out = {name: seconds / CHUNK for name, seconds in spent.items()}

    spec = api._compress._specification(
        series, codec, frames=series.fingerprint(), block=CHUNK, align=None, degradation=None
    )
    step = np.timedelta64(12, "m")
    spec = replace(spec, time=series.time[0] + np.arange(120 * PACKED) * step, frames_per_shard=120)
    shard = [part] * (120 // CHUNK)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.lat"
        writer = ArchiveWriter.create(path, spec)
        begin = time.monotonic()
        for s in range(PACKED):
            write(writer, s, shard)
        wrote = time.monotonic()
        size = writer.finish()
        packed = time.monotonic()
    return {
        "cpu_seconds": out,
        "coded_bytes_per_frame": sum(map(len, part.blocks)) / CHUNK,
        "archive_bytes_per_frame": size / (120 * PACKED),
        "write_seconds_per_shard": (wrote - begin) / PACKED,
        "pack_seconds_per_shard": (packed - wrote) / PACKED,
        "pack_bytes_s": size / (packed - wrote),
    }


def scheduler() -> dict[str, float]:
    """How many tasks that do nothing Dask does in a second, through two processes."""
    import distributed

    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=60) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.gather(client.map(abs, range(50)))
        begin = time.monotonic()
        client.gather(client.map(abs, range(1000, 2000)))
        return {"tasks_s": 1000 / (time.monotonic() - begin)}


def predict(workers: int, cores: int, measured: dict[str, Any], a: Assumptions) -> dict[str, Any]:
    """Return time and bottleneck of the whole SDOML v2 with so many one-core workers."""
    cpu = sum(measured["stages"]["cpu_seconds"].values())
    write = measured["stages"]["write_seconds_per_shard"]
    code = min(1, cores / workers) / cpu
    read = a.read_bytes_s / (a.source_bytes / a.frames)
    rate = min(code, read)
    shards = math.ceil(a.frames / 120)
    rounds = math.ceil(shards / workers)
    parts = {
        "coding" if code <= read else "reading from S3": shards / workers * 120 / rate,
        "waiting for the last shards": (rounds - shards / workers) * 120 / rate,
        "writing shards": rounds * write,
        "the scheduler": shards / measured["scheduler"]["tasks_s"],
        "opening the source": a.open_seconds,
        "packing": shards * measured["stages"]["pack_seconds_per_shard"],
    }
    seconds = sum(parts.values())
    return {
        "workers": workers,
        "frames_s": a.frames / seconds,
        "hours": seconds / 3600,
        "core_hours": workers * seconds / 3600,
        "dollars": workers * seconds / 3600 * a.dollars_core_hour,
        "read_bytes_s": a.source_bytes / seconds,
        "efficiency": parts.get("coding", 0) / seconds,
        "parts": parts,
        "bottleneck": max(parts, key=lambda k: parts[k]),
        "next": max((k for k in parts if k not in ("coding", "reading from S3")), key=lambda k: parts[k]),
    }


@click.command()
@click.option("--one", hidden=True)
@click.option("--store", hidden=True)
def main(one: str | None, store: str | None) -> None:
    """Measure, predict and keep."""
    if one is not None and store is not None:
        jobs = {"stages": lambda: stages(store), "scheduler": scheduler}
        click.echo(json.dumps(jobs[one]() if one in jobs else run(store, int(one))))
        return

    def apart(what: str, store: str, lanes: int) -> dict[str, Any]:
        # Each in a process of its own: its processor time is its own, and its number of lanes.
        words = [sys.executable, "-m", "benchmarks.scaling", "--one", what, "--store", store]
        environment = {**os.environ, "OMP_NUM_THREADS": str(lanes)}
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        click.echo(f"{what}: {done.stdout.strip()}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sun.zarr"
        make_store(path)
        measured: dict[str, Any] = {
            "stages": apart("stages", str(path), 1),
            "scheduler": apart("scheduler", str(path), 1),
            "one_process": [{"lanes": n, **apart("0", str(path), n)} for n in sorted({1, cores})],
            "processes": [apart(str(n), str(path), 1) for n in (1, 2)],
        }
    a = Assumptions()
    cpu = sum(measured["stages"]["cpu_seconds"].values())
    for row in measured["processes"]:
        busy = min(row["workers"], cores)
        row["alone_frames_s"] = busy / row["cpu_seconds_per_frame"]
        row["predicted_frames_s"] = busy / cpu
    for row in measured["one_process"]:
        row["alone_frames_s"] = min(row["lanes"], cores) / row["cpu_seconds_per_frame"]
    content = {
        "command": "python -m benchmarks.scaling",
        "frames": FRAMES,
        **measured,
        "assumptions": asdict(a),
        "model": [predict(n, n, measured, a) for n in (1, 2, 4, 16, 64, 256)],
    }
    click.echo(keep("scaling", content))


if __name__ == "__main__":
    main()
