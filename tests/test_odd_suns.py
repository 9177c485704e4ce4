"""Suns and frames that no model learned from: all are coded, their errors told, their bytes bounded."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numcodecs.zstd import Zstd

import sunzip
from sunzip import weights
from sunzip.api import open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.sources.synthetic import render

SIDE = 128

#: Header, masks and lengths of a block with one frame.
HEADER = 64


def saturated() -> np.ndarray:
    """Return a flare that no detector could hold, with the streak that it leaves along its columns."""
    frame = render("2014-02-25T00:49", size=SIDE).copy()
    y, x = np.mgrid[:SIDE, :SIDE]
    flare = np.exp(-((y - 70) ** 2 + (x - 20) ** 2) / 8) * 16383 / 2
    flare += 16383 * (np.abs(x - 20) < 2)
    frame[:7] = np.minimum(frame[:7] + flare.astype(np.float32), 16383 / 2)
    return frame


def eclipsed() -> np.ndarray:
    """Return a Sun half behind the Earth, as in the eclipse seasons of spring and autumn."""
    frame = render("2012-03-10", size=SIDE).copy()
    frame[:, :, SIDE // 2 :] = 0
    return frame


def three() -> np.ndarray:
    frame = render("2011-06-07", size=SIDE).copy()
    frame[[n for n, name in enumerate(NAMES) if name not in ("94A", "1700A", "Bz")]] = np.nan
    return frame


def noise() -> np.ndarray:
    frame = np.random.default_rng(0).uniform(0, 5000, (len(NAMES), SIDE, SIDE)).astype(np.float32)
    frame[9:] -= 2500
    return frame


FRAMES = {
    "quiet": lambda: render("2019-12-01", size=SIDE),
    "active": lambda: render("2014-10-23", size=SIDE),
    "saturated": saturated,
    "eclipsed": eclipsed,
    "three channels": three,
    "noise": noise,
}


@pytest.mark.parametrize("which", FRAMES)
def test_all_are_coded_and_their_errors_told(which: str, tmp_path: Path) -> None:
    frame = FRAMES[which]()
    there = ~np.isnan(frame).all((1, 2))
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["cube"] = frame[None]
        file["channel"] = list(NAMES)
        file["time"] = np.array(["2014-01-01"], "M8[ms]").astype("i8")
    report = sunzip.compress(tmp_path / "odd.h5", tmp_path / "odd.lat")
    assert report.frames == 1
    sunzip.verify(tmp_path / "odd.lat")
    found = sunzip.evaluate(tmp_path / "odd.h5", tmp_path / "odd.lat")
    told = {name: m for name, m in found.metrics["paper"].items() if m["images"]}
    assert set(told) == {name for name, is_there in zip(NAMES, there, strict=True) if is_there}
    assert all(np.isfinite(m["rmse"]) for m in told.values())
    with sunzip.open(tmp_path / "odd.lat") as sun:
        decoded = np.asarray(sun[0])
    np.testing.assert_array_equal(np.isnan(decoded).all((1, 2)), ~there)
    assert np.isfinite(decoded[there]).all()


@pytest.mark.parametrize("which", FRAMES)
@pytest.mark.parametrize("quality", [0, 35, 100])
def test_none_costs_more_than_its_compressed_pixels(which: str, quality: int) -> None:
    frame = FRAMES[which]()
    there = np.ascontiguousarray(frame[~np.isnan(frame).all((1, 2))])
    (block,) = Codec(weights.load(), quality).encode(frame[None], NAMES)
    assert len(block) <= len(Zstd(level=3).encode(there)) + HEADER
    decoded = Codec(weights.load(), quality).decode([block], NAMES, (SIDE, SIDE))
    assert decoded.shape == (1, *frame.shape)


@pytest.mark.parametrize("which", ["quiet", "active", "saturated", "eclipsed"])
def test_suns_come_back_as_suns(which: str) -> None:
    frame = FRAMES[which]()
    codec = Codec(weights.load())
    decoded = codec.decode(codec.encode(frame[None], NAMES), NAMES, (SIDE, SIDE))[0]
    for n, name in enumerate(NAMES[:9]):
        assert np.corrcoef(frame[n].ravel(), decoded[n].ravel())[0, 1] > 0.8, name


@pytest.mark.parametrize("fault", ["off", "struck"])
def test_one_spoiled_frame_of_a_film_costs_little(fault: str) -> None:
    channels = ["171A", "193A", "211A"]
    url = f"synthetic:frames=16,size={SIDE},seed=9,start=2014-01-01,cadence=1h"
    film = open_series(url).read(0, 16).data[:, 2:5]
    spoiled = film.copy()
    one = spoiled[8]
    if fault == "off":
        one[:] = np.roll(one, 3, -1)
    else:
        one[np.random.default_rng(0).random(one.shape) < 0.003] += 2000
    codec = Codec(weights.load())
    (plain,), (with_it,) = (codec.encode(of, channels, frames_per_block=16) for of in (film, spoiled))
    assert len(with_it) < 1.25 * len(plain)
