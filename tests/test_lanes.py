"""Lanes: frames side by side with bytes that no number of threads changes, and a process left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sunzip.codec import lanes
from sunzip.codec.lanes import side_by_side

ROOT = Path(__file__).parents[1]

# The default model: the sums of smaller ones are too short for libraries to split them among threads.
CODE = """
import hashlib, sys
import numpy as np
import torch
torch.set_num_threads(int(sys.argv[1]))
from sunzip import weights
from sunzip.codec import Codec
from sunzip.codec.lanes import count
codec = Codec(weights.load())
rng = np.random.default_rng(0)
up, right = np.mgrid[:512, :512] / 512 * 6
waves = [np.sin(up * (1 + c / 5)) * np.cos(right + c) for c in range(12)]
data = (100 + 80 * np.stack(waves) + rng.normal(0, 5, (12, 512, 512))).astype(np.float32)[None]
names = ("94A 131A 171A 193A 211A 304A 335A 1600A 1700A Bx By Bz").split()
digest = hashlib.sha256()
for channels, side in ((slice(None), 512), (slice(2, 3), 81)):
    part, which = np.ascontiguousarray(data[:, channels, :side, :side]), names[channels]
    blocks = codec.encode(part, which)
    digest.update(b"".join(blocks))
    digest.update(codec.decode(blocks, which, part.shape[2:]).tobytes())
print(count(), torch.get_num_threads(), digest.hexdigest())
"""


def test_bytes_and_pixels_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    for threads in (1, 3):
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(threads)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        lanes_used, of_the_caller, digest = done.stdout.split()
        assert lanes_used == of_the_caller == str(threads)
        found.append(digest)
    assert found[0] == found[1]


def test_results_come_in_order_and_several_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    all_here = threading.Barrier(3, timeout=20)

    def work(n: int) -> int:
        all_here.wait()
        time.sleep(0.03 * (3 - n % 3))
        return n * n

    assert list(side_by_side(work, range(6))) == [0, 1, 4, 9, 16, 25]


def test_a_lane_works_alone_and_leaves_pytorch_as_it_was() -> None:
    import torch

    def threads() -> int:
        return torch.get_num_threads()

    def fresh() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(threads()))
        thread.start()
        thread.join()
        return found[0]

    before = threads(), fresh()
    assert list(side_by_side(lambda _: threads(), range(5))) == [1] * 5
    # Within a lane no other one is waited for: with one lane that would be for ever.
    assert list(side_by_side(lambda n: list(side_by_side(lambda m: m + n, range(2))), [1])) == [[1, 2]]
    assert (threads(), fresh()) == before


def test_what_failed_or_was_left_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        time.sleep(0.01)
        if n == 3:
            raise KeyError(n)
        return n

    with pytest.raises(KeyError):
        list(side_by_side(work, range(1000)))
    some = side_by_side(lambda n: work(n + 10), range(1000))
    assert next(some) == 10
    some.close()
    time.sleep(0.1)
    assert len(begun) < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    assert list(side_by_side(np.sqrt, [4.0])) == [2.0]
    child = os.fork()
    if not child:
        os._exit(0 if list(side_by_side(np.sqrt, [9.0])) == [3.0] else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for lanes that it has not")
