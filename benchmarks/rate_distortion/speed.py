"""How fast each codec is and how much memory it takes: in a process of its own, on one thread and on two.

Run through ``python -m benchmarks.rate_distortion --real … --speed``; a process measures one codec.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import common
from benchmarks.rate_distortion.cases import Case
from benchmarks.rate_distortion.measure import Judge
from benchmarks.rate_distortion.peers import Peer, peers
from sunzip import weights

Float = npt.NDArray[np.float32]

ROOT = Path(__file__).parents[2]

THREADS = (1, 2)
#: Every codec is timed at its first setting of at least so many bits per sample.
RATE = 0.05
#: Frames of the cube that is timed, and how long each direction is repeated; the fastest round counts.
_FRAMES, _SECONDS = 4, 2.0


def _fastest(work: Callable[[], Any]) -> float:
    work()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 2:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def of_peer(peer: Peer, names: Sequence[str], frame: Float, threads: int) -> dict[str, float]:
    """Time a peer on the channels of a frame (C, Y, X), as many at a time as it may use threads.

    From DN/s and G to bytes and back, so that the square root and the integers are part of it, as they are
    of sunzip's.
    """
    judges = [Judge(name, frame[c : c + 1].copy()) for c, name in enumerate(names)]
    levels = []
    for judge in judges:
        images = judge.images if peer.physical else judge.stable
        for level in peer.levels(images):
            if 8 * sum(map(len, peer.encode(images, level))) / images.size >= RATE:
                break
        levels.append(level)

    def encode(c: int) -> list[bytes]:
        judge = judges[c]
        return peer.encode(judge.images if peer.physical else judge.stabilised(judge.images), levels[c])

    def decode(c: int) -> Float:
        decoded = peer.decode(coded[c], judges[c].images.shape)
        return decoded if peer.physical else judges[c].physical(decoded)

    everything = [c for _ in range(_FRAMES) for c in range(len(names))]
    with ThreadPoolExecutor(threads) as pool:
        coded = list(pool.map(encode, range(len(names))))
        took = _fastest(lambda: list(pool.map(encode, everything)))
        back = _fastest(lambda: list(pool.map(decode, everything)))
    return _told(sum(len(p) for pieces in coded for p in pieces), frame, took, back)


def of_model(name: str, names: Sequence[str], frame: Float, threads: int) -> dict[str, float]:
    """Time one of our models on frames with all these channels."""
    import torch

    from benchmarks.rate_distortion.ours import QUALITIES
    from sunzip.codec import Codec

    torch.set_num_threads(threads)
    codec = Codec(weights.load(name))
    cube = np.repeat(frame[None], _FRAMES, axis=0)
    for quality in QUALITIES:
        at = codec.at(quality)
        blocks = at.encode(cube, names)
        if 8 * sum(map(len, blocks)) / cube.size >= RATE:
            break
    took = _fastest(lambda: at.encode(cube, names))
    back = _fastest(lambda: at.decode(blocks, names, frame.shape[1:]))
    return _told(len(blocks[0]), frame, took, back)


def _told(nbytes: int, frame: Float, took: float, back: float) -> dict[str, float]:
    megabytes = _FRAMES * frame.nbytes / 1e6
    return {
        "bits": round(8 * nbytes / frame.size, 4),
        "encode_mb_s": round(megabytes / took, 2),
        "decode_mb_s": round(megabytes / back, 2),
        "peak_mib": round(_peak_kib() / 1024, 1),
    }


def _peak_kib() -> int:
    # What getrusage says starts with the memory of the process that started this one.
    (line,) = (v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith("VmHWM:"))
    return int(line.split()[1])


def measure_all(result: dict[str, Any], case: Case, wanted: Sequence[str], models: Sequence[str]) -> None:
    """Time all wanted codecs on the first frame of a case, and put it into the results under ``speed``."""
    rows = result["speed"]
    rows["machine"], rows["rate"], rows["case"] = common.machine(), RATE, case.title
    found = rows.setdefault("codecs", {})
    jobs = [(peer.key, peer.key) for peer in peers() if not peer.film and peer.key in wanted]
    if "sunzip" in wanted:
        jobs += [(weights.load(name).name, f"sunzip:{name}") for name in models]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frame.npz"
        np.savez(file, frame=case.data[0], names=np.array(case.channels))
        for label, job in jobs:
            found[label] = {}
            for threads in THREADS:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.rate_distortion.speed", str(file), job, str(threads)],
                    check=True,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                )
                found[label][str(threads)] = json.loads(done.stdout.splitlines()[-1])
            click.echo(f"{label}: {found[label]['1']}")


def main(file: str, job: str, threads: int) -> None:
    """Measure one codec, and print what was found."""
    with np.load(file) as held:
        frame, names = held["frame"], [str(n) for n in held["names"]]
    if job.startswith("sunzip:"):
        told = of_model(job.removeprefix("sunzip:"), names, frame, threads)
    else:
        told = of_peer({peer.key: peer for peer in peers()}[job], names, frame, threads)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
