"""Missing images are foretold on request, marked, and never in the place of one that is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip import api
from sunzip.api._fill import FILLED, Filler, _Together
from sunzip.channels import NAMES
from sunzip.cube import Cube, Scale
from sunzip.errors import InputError
from sunzip.pyramid import grid_of
from sunzip.sinks.sdoml_v2 import SdomlV2Sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.sun import Sun

SIDE, FRAMES = 64, 10
BX, BZ, AIA_193 = (NAMES.index(name) for name in ("Bx", "Bz", "193A"))


@pytest.fixture(scope="module")
def whole() -> Cube:
    """A day and a half of a Sun that lacks nothing."""
    return join([Synthetic(frames=FRAMES, size=SIDE, start="2014-01-01", cadence="4h", seed=5)]).read(
        0, FRAMES
    )


@pytest.fixture(scope="module")
def lacks() -> npt.NDArray[np.bool_]:
    """(T, C): 193 Å twice, frame 4 altogether, the field in the first frames."""
    out = np.zeros((FRAMES, len(NAMES)), bool)
    out[[3, 7], AIA_193] = True
    out[4] = True
    out[:2, 9:] = True
    return out


@pytest.fixture(scope="module")
def lat(whole: Cube, lacks: npt.NDArray[np.bool_], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filling")
    data = np.where(lacks[:, :, None, None], np.float32(np.nan), whole.data)
    with SdomlV2Sink(folder / "a.zarr", channels=NAMES, shape=(SIDE, SIDE)) as sink:
        sink.write(Cube(data, NAMES, whole.time, whole.t_obs, ~lacks, whole.headers, whole.scale))
    api.compress([str(folder / "a.zarr")], folder / "a.lat", align=api.Alignment(cadence="4h"))
    return folder / "a.lat"


@pytest.fixture
def sun(lat: Path) -> Iterator[Sun]:
    with Sun(lat) as sun:
        yield sun


def test_what_is_foretold_is_near_and_marked(
    sun: Sun, lat: Path, whole: Cube, lacks: npt.NDArray[np.bool_], tmp_path: Path
) -> None:
    report = api.decompress(lat, tmp_path / "a.h5", fill_missing=True)
    plain = sun.cube(0, len(sun))
    # The archive has no place for a frame without any image.
    kept = np.flatnonzero(~lacks.all(1))
    assert (plain.time == whole.time[kept]).all()
    with h5py.File(tmp_path / "a.h5") as file:
        data, valid, keywords = file["cube"][:], file["valid"][:], file["keywords"].asstr()[:]
    np.testing.assert_array_equal(data[plain.valid], plain.data[plain.valid])
    filled = valid & ~plain.valid
    assert (report.filled, report.images) == (filled.sum(), valid.sum())
    assert np.argwhere(filled).tolist() == [[3, AIA_193], [6, AIA_193]]
    for row in (3, 6):
        truth = whole.data[kept[row], AIA_193].ravel()
        found, before = data[row, AIA_193].ravel(), data[row - 1, AIA_193].ravel()
        r = np.corrcoef([truth, found, before])[0]
        assert r[1] > max(0.9, r[2])
        words = json.loads(keywords[row, AIA_193])
        assert list(words) == [FILLED]
        assert 0.5 <= words[FILLED] <= 1
    assert not any(FILLED in json.loads(word) for word in keywords[plain.valid])


def test_a_field_that_no_earlier_frame_shows_stays_missing(sun: Sun) -> None:
    cube, filled = Filler(sun, NAMES).fill(sun.cube(0, 2))
    assert not filled.any()
    assert np.isnan(cube.data[:2, BX : BZ + 1]).all()


def test_it_matters_neither_how_frames_are_cut_nor_what_else_is_wanted(sun: Sun) -> None:
    at_once, _ = Filler(sun, NAMES).fill(sun.cube(0, len(sun)))
    filler = Filler(sun, ["193A"])
    pieces = [filler.fill(sun.cube(i, min(i + 2, len(sun))))[0] for i in range(0, len(sun), 2)]
    found = np.concatenate([piece.data[:, AIA_193] for piece in pieces])
    np.testing.assert_array_equal(found, at_once.data[:, AIA_193])


def test_channels_alone_are_filled_from_all(lat: Path, tmp_path: Path) -> None:
    report = api.decompress(lat, tmp_path / "a.zarr", channels=["193A"], fill_missing=True)
    assert (report.channels, report.images, report.filled) == (("193A",), 9, 2)
    import zarr

    array = zarr.open_group(tmp_path / "a.zarr", mode="r")["2014/193A"]
    marked = array.attrs[FILLED]
    assert [row for row, share in enumerate(marked) if share is not None] == [3, 6]
    assert array.attrs["T_OBS"][3].startswith("2014-01-01T12:00")


def test_fits_files_say_so(lat: Path, tmp_path: Path) -> None:
    from astropy.io import fits

    api.decompress(lat, tmp_path / "maps", layout="fits", channels=["193A"], fill_missing=True)
    files = sorted((tmp_path / "maps").glob("*.fits"))
    marked = [FILLED in fits.getheader(file) for file in files]
    assert marked == [n in (3, 6) for n in range(9)]


def test_a_layout_without_keywords_is_refused(lat: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place to say that an image is foretold"):
        api.decompress(lat, tmp_path / "old", layout="sdoml-v1", fill_missing=True)
    assert not list(tmp_path.iterdir())


def test_sums_come_back_as_sums(sun: Sun) -> None:
    means, _ = Filler(sun, NAMES).fill(sun.cube(0, len(sun)))
    sums, _ = Filler(sun, NAMES).fill(sun.cube(0, len(sun)).to_scale(Scale.SUM))
    assert sums.scale is Scale.SUM
    np.testing.assert_array_equal(sums.data, means.to_scale(Scale.SUM).data)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(1e-12, 1e12))
def test_no_frames_lead_to_wild_weights(seed: int, frames: int, size: float) -> None:
    """Whatever channels frames have, however alike, silent or loud they are: what is foretold is bounded."""
    rng = np.random.default_rng(seed)
    grid = grid_of(16, 16)
    base = rng.normal(size=(frames, 1, 16, 16)) * rng.integers(0, 2, (frames, 1, 1, 1))
    pyramids = (base * size + rng.integers(0, 2, (1, 4, 1, 1)) * rng.normal(size=(frames, 4, 16, 16))).astype(
        np.float32
    )
    shown = rng.random((frames, 4)) < 0.7
    together = _Together.of(list(pyramids), shown, grid)
    has = np.array([0, 2, 3])
    for n in range(-1, grid.depth):
        weights, share = together.regression(n, has, 1)
        assert np.isfinite(weights).all()
        assert 0 <= share <= 1
        spread = np.sqrt(np.diagonal(together.covariance[n + 1]))
        # A channel as loud as usual adds no more than so many times what the other usually is.
        limit = 2 * len(has) / together.ridge[1]
        assert (np.abs(weights) * spread[has] <= limit * np.maximum(spread[1], 0.01)).all()
