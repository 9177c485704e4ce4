"""How fast each codec is and how much memory it takes: in a process of its own, on one thread and on two.

Of the wavelet family's models it also tells where the time of one thread goes (`shares`).

Run through ``python -m benchmarks.rate_distortion --real … --speed``; a process measures one codec.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import numpy.typing as npt

from benchmarks import common
from benchmarks.rate_distortion.cases import Case
from benchmarks.rate_distortion.measure import Judge
from benchmarks.rate_distortion.peers import Peer, peers
from sunzip import weights
from sunzip.codec import Codec, lanes, processes
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.nn.exact import ExactContext
from sunzip.studies.encoder import CountingContext, through
from sunzip.studies.timing import fastest

Float = npt.NDArray[np.float32]

ROOT = Path(__file__).parents[2]

THREADS = (1, 2)
#: Every codec is timed at its first setting of at least so many bits per sample.
RATE = 0.05
#: Frames of the cube that is timed, and how long each direction is repeated; the fastest round counts.
_FRAMES, _SECONDS = 4, 2.0


def _fastest(work: Callable[[], Any]) -> float:
    return fastest(work, _SECONDS, 2)


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


def of_model(name: str, names: Sequence[str], frame: Float, threads: int) -> dict[str, Any]:
    """Time one of our models on frames with all these channels, in as many lanes as there are `threads`."""
    codec = Codec(weights.load(name))
    cube = np.repeat(frame[None], _FRAMES, axis=0)

    def rate(quality: int) -> float:
        return 8 * sum(map(len, codec.at(quality).encode(frame[None], names))) / frame.size

    at = codec.at(bisect_left(range(100), RATE, key=rate))
    blocks = at.encode(cube, names)

    def encode(codec: Codec) -> list[bytes]:
        return codec.encode(cube, names)

    def decode(codec: Codec) -> Float:
        return codec.decode(blocks, names, frame.shape[1:])

    if threads > 1:
        # As in jobs that last, lanes have processes of their own.
        with processes.ahead(1 << 62):
            processes.settle(lambda: encode(at))
    took, back = (_fastest(partial(work, at)) for work in (encode, decode))
    told: dict[str, Any] = _told(len(blocks[0]), frame, took, back)
    if codec.model.family == "wavelet" and threads == 1:
        # Afterwards, as it takes memory that is not the codec's.
        told["shares"] = {"encode": shares(encode, at), "decode": shares(decode, at)}
    return told


def shares(work: Callable[[Codec], Any], codec: Codec) -> dict[str, float]:
    """Tell where the time of a wavelet model goes, in the fastest round of coding on one thread.

    Returns
    -------
    ``network`` and ``entropy``, shares of the time; ``network_gmac_s`` and ``matrix_gmac_s``, how many 10⁹
    multiply-accumulates per second the network does in its share, and a matrix product of float32 beside it.
    """
    network = [(ExactContext, name) for name in ("enter", "beside", "settle")]
    entropy = [(Encoder, "push"), (Encoder, "finish"), (Decoder, "pop"), (Decoder, "finish")]
    rounds: list[dict[str, float]] = []

    def timed() -> None:
        spent = dict.fromkeys(("network", "entropy", "all"), 0.0)
        with (
            _around(network, lambda: _clock(spent, "network")),
            _around(entropy, lambda: _clock(spent, "entropy")),
            _clock(spent, "all"),
        ):
            work(codec)
        rounds.append(spent)

    context = CountingContext(codec.model.arrays("context"))
    # On this thread alone, on which the shares add up.
    with lanes.here():
        _fastest(timed)
        work(through(codec, context))
        product = _matrix_rate()
    spent = min(rounds, key=lambda spent: spent["all"])
    return {
        "network": round(spent["network"] / spent["all"], 4),
        "entropy": round(spent["entropy"] / spent["all"], 4),
        "network_gmac_s": round(context.macs / spent["network"] / 1e9, 2),
        "matrix_gmac_s": round(product / 1e9, 2),
    }


def _matrix_rate() -> float:
    """Return the rate of large products of float32 matrices of NumPy, in multiply-accumulates per second."""
    a, b = np.random.default_rng(0).normal(size=(2, 1024, 1024)).astype(np.float32)
    return 1024**3 / fastest(lambda: a @ b, _SECONDS, 2)


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    spent[what] += time.perf_counter() - begin


@contextmanager
def _around(
    methods: Sequence[tuple[type, str]], context: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Have each call of these methods run inside of a context of its own."""

    def within(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with context():
                return method(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for owner, name in methods:
            stack.enter_context(mock.patch.object(owner, name, within(getattr(owner, name))))
        yield


def _told(nbytes: int, frame: Float, took: float, back: float) -> dict[str, float]:
    megabytes = _FRAMES * frame.nbytes / 1e6
    return {
        "bits": round(8 * nbytes / frame.size, 4),
        "encode_mb_s": round(megabytes / took, 2),
        "decode_mb_s": round(megabytes / back, 2),
        "peak_mib": round(common.peak_kib() / 1024, 1),
    }


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
                    env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if job.startswith("sunzip:") else {}),
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
