"""How fast a machine is: what is timed, in processes of their own, and the block whose pixels are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sunzip import weights
from sunzip.api._compress import _frames_per_block
from sunzip.codec import Codec
from sunzip.errors import InputError
from sunzip.studies import bench as module
from sunzip.studies.bench import _numbers, bench
from sunzip.studies.timing import fastest
from sunzip.weights import Model


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_cores_double_up_to_all(most: int, numbers: list[int]) -> None:
    assert _numbers(most) == numbers


def test_a_machine_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch need not be installed.
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError")
    monkeypatch.syspath_prepend(tmp_path)
    told: list[str] = []
    report = bench(size=16, cores=[1], quality=10, progress=lambda what, *_: told.append(what))
    (row,) = report.rows
    assert (report.model, report.quality, report.block, report.shape) == (weights.DEFAULT, 10, 24, (16, 16))
    assert (row.cores, row.frames) == (1, 24)
    megabytes = 12 * 16 * 16 * 4 / 1e6
    assert row.in_mb_s == pytest.approx(megabytes * row.in_frames_s)
    assert row.out_hours == pytest.approx(1e12 / (row.out_mb_s * 1e6) / 3600)
    assert min(row.in_frames_s, row.out_frames_s) > 0
    assert row.peak_bytes is None or row.peak_bytes > 1 << 26
    assert list(dict.fromkeys(told)) == ["making frames", "timing 1 core"]
    json.dumps(report.as_dict(), allow_nan=False)


def test_the_default_model_decodes_the_known_block_to_the_known_pixels(wavelet_model: Model) -> None:
    # A new default model needs a new block: three frames of the synthetic Sun of 32×32 from 2014-02-01 on.
    codec = Codec(weights.load())
    assert module.KNOWN[0] == codec.model.sha256
    assert module._exact(codec) is True
    assert module._exact(Codec(wavelet_model)) is None


def test_other_pixels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, block, _ = module.KNOWN
    monkeypatch.setattr(module, "KNOWN", (model, block, "0" * 64))
    assert module._exact(Codec(weights.load())) is False


def test_what_cannot_be_timed_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        bench(size=40)
    with pytest.raises(InputError, match="a number of cores"):
        bench(size=16, cores=[0])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        with pytest.raises(InputError, match=r"^models of the family hyperprior need torch, [^;]*; [^;]*$"):
            bench(model="hyperprior-12", size=16, cores=[1])
    monkeypatch.setattr(module, "_START", "raise SystemExit('no memory')")
    with pytest.raises(InputError, match=r"timed 1 core ended early \(no memory\)"):
        bench(size=16, cores=[1])


def test_the_fastest_round_counts_and_a_first_one_does_not() -> None:
    rounds: list[int] = []
    assert 0 <= fastest(lambda: rounds.append(1), 0, 3) < 1
    assert len(rounds) == 4
    assert 0 <= fastest(lambda: rounds.append(1), 0, 1, warm=True) < 1
    assert len(rounds) == 5


@pytest.mark.parametrize(("size", "frames"), [(512, 24), (1024, 24), (2048, 6), (4096, 1)])
def test_larger_frames_are_fewer_as_their_blocks_are_shorter(size: int, frames: int) -> None:
    codec = Codec(weights.load())
    times = np.datetime64("2014-01-01T00:00", "ms") + np.arange(24) * np.timedelta64(12, "m")
    assert module._rendered(size) == frames == _frames_per_block("auto", codec, times, 12 * size * size)
