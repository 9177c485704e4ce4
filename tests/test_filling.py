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
from sunzip.api._fill import _RIDGES, FILLED, Filler, _telling, _Together
from sunzip.channels import NAMES
from sunzip.cube import Cube, Scale
from sunzip.errors import InputError
from sunzip.pyramid import grid_of
from sunzip.sinks.base import Sink
from sunzip.sinks.sdoml_v1 import SdomlV1Sink
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


def test_pixels_that_all_images_lack_are_foretold_by_those_around(whole: Cube, tmp_path: Path) -> None:
    data, rows = whole.data.copy(), slice(SIDE // 2, SIDE // 2 + 3)
    data[:, :, rows] = np.nan
    data[6, AIA_193] = np.nan
    valid = ~np.isnan(data).all((2, 3))
    with SdomlV2Sink(tmp_path / "a.zarr", channels=NAMES, shape=(SIDE, SIDE)) as sink:
        sink.write(Cube(data, NAMES, whole.time, whole.t_obs, valid, whole.headers, whole.scale))
    api.compress([str(tmp_path / "a.zarr")], tmp_path / "a.lat", align=api.Alignment(cadence="4h"))
    api.decompress(tmp_path / "a.lat", tmp_path / "a.h5", fill_missing=True)
    with h5py.File(tmp_path / "a.h5") as file:
        found = file["cube"][6, AIA_193, rows]
    truth = whole.data[6, AIA_193, rows]
    assert 0.7 < found.sum() / truth.sum() < 1.4  # with zeros in their place it was next to nothing
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.7


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


def test_a_part_is_filled_as_in_the_whole(lat: Path, tmp_path: Path) -> None:
    """Also where the earlier images of a channel are before the part."""
    api.decompress(lat, tmp_path / "whole.h5", fill_missing=True)
    with h5py.File(tmp_path / "whole.h5") as file:
        data, words = file["cube"][:, AIA_193], file["keywords"].asstr()[:, AIA_193]
    for begin, start in ((3, "2014-01-01T12:00"), (6, "2014-01-02T04:00")):
        path = tmp_path / f"{begin}.h5"
        api.decompress(lat, path, start=start, channels=["193A"], fill_missing=True)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["cube"][:, 0], data[begin:])
            assert file["keywords"].asstr()[:, 0].tolist() == words[begin:].tolist()
            assert FILLED in words[begin]


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
    time = np.datetime64("2014-01-01", "ms") + np.arange(frames) * np.timedelta64(1, "D")
    together = _Together(time, pyramids, shown, grid)
    rule, mean = together.rule_of(1)
    assert np.isfinite(mean).all()
    has = np.array([0, 2, 3])
    for n in range(-1, grid.depth):
        for ridge in _RIDGES:
            weights = rule.weights(n, has, ridge)
            assert np.isfinite(weights).all()
            # A channel as loud as usual adds no more than so many times what the other is.
            limit = np.sqrt(len(has) / ridge) / 2
            assert (np.abs(weights) <= limit * rule.scale[n + 1, has] * 1.001).all()


@pytest.fixture(scope="module")
def months() -> Cube:
    """A Sun that has changed altogether from frame to frame."""
    return join([Synthetic(frames=10, size=SIDE, start="2013-01-01", cadence="30D", seed=5)]).read(0, 10)


def gappy(whole: Cube, lacks: npt.NDArray[np.bool_], folder: Path, store: type[Sink] = SdomlV2Sink) -> Path:
    """Return an archive of what frames do not lack."""
    folder.mkdir()
    data = np.where(lacks[:, :, None, None], np.float32(np.nan), whole.data)
    cube = Cube(data, NAMES, whole.time, whole.t_obs, ~lacks, whole.headers, whole.scale)
    with store(folder / "a.zarr", channels=NAMES, shape=cube.data.shape[2:]) as sink:
        sink.write(cube.to_scale(sink.scale))
    api.compress([str(folder / "a.zarr")], folder / "a.lat")
    return folder / "a.lat"


def all_in(frames: list[int], count: int) -> npt.NDArray[np.bool_]:
    """(T, C) what is lacking where only some frames have more than 193 Å."""
    out = np.ones((count, len(NAMES)), bool)
    out[:, AIA_193] = False
    out[frames] = False
    return out


@pytest.mark.parametrize("frames", [[9], [0, 9]])
def test_few_frames_foretell_nothing(months: Cube, frames: list[int], tmp_path: Path) -> None:
    with Sun(gappy(months, all_in(frames, 10), tmp_path / "few")) as sun:
        _, filled = Filler(sun, NAMES).fill(sun.cube(0, len(sun)))
    assert not filled.any()


def test_frames_of_one_hour_tell_nothing_of_other_months(months: Cube, tmp_path: Path) -> None:
    hour = join([Synthetic(frames=5, size=SIDE, start="2014-06-01", cadence="12min", seed=5)]).read(0, 5)
    both = Cube(
        *(np.concatenate([months.data, hour.data]), NAMES),
        *(np.concatenate([getattr(c, name) for c in (months, hour)]) for name in ("time", "t_obs", "valid")),
        [*months.headers, *hour.headers],
        hour.scale,
    )
    lacks = all_in([10, 11, 13, 14], 15)
    with Sun(gappy(both, lacks, tmp_path / "mixed")) as sun:
        _, filled = Filler(sun, NAMES).fill(sun.cube(0, len(sun)))
    assert sorted(set(np.nonzero(filled)[0])) == [12]


@pytest.mark.parametrize("frames", [[0, 5, 9], [7, 8, 9], [0, 2, 4, 6, 9]])
def test_what_is_expected_is_what_comes(months: Cube, frames: list[int], tmp_path: Path) -> None:
    lacks = all_in(frames, 10)
    with Sun(gappy(months, lacks, tmp_path / "some")) as sun:
        cube, filled = Filler(sun, NAMES).fill(sun.cube(0, len(sun)))
    assert not filled[frames].any()
    expected, right, bright = [], [], []
    for t, c in np.argwhere(filled):
        truth, found = (x.data[t, c].astype(np.float64) for x in (months, cube))
        expected.append(cube.headers[t][c][FILLED])
        right.append(1 - np.square(found - truth).mean() / truth.var())
        bright.append(found.mean() / truth.mean())
    assert len(right) > 30
    assert min(expected) >= 0.5
    assert np.mean(expected) == pytest.approx(np.mean(right), abs=0.07)
    assert np.mean(bright) == pytest.approx(1, abs=0.1)


def test_archives_of_sums_are_filled_as_those_of_means(
    whole: Cube, lacks: npt.NDArray[np.bool_], tmp_path: Path
) -> None:
    found = []
    for store, scale in ((SdomlV2Sink, Scale.MEAN), (SdomlV1Sink, Scale.SUM)):
        with Sun(gappy(whole, lacks, tmp_path / scale, store)) as sun:
            assert sun.scale is scale
            found.append(Filler(sun, NAMES).fill(sun.cube(0, len(sun)))[0].to_scale(Scale.MEAN))
    assert np.argwhere(found[0].valid != ~lacks[~lacks.all(1)]).size
    np.testing.assert_allclose(found[0].data, found[1].data, rtol=1e-3, atol=1e-3)


def test_frames_that_tell_most_are_learned_from() -> None:
    valid = np.zeros((100, 4), bool)
    valid[:, 0] = True
    valid[10:50, 1] = True
    valid[20, 2] = True
    valid[60:90, 3] = True
    chosen = _telling(valid, 8)
    assert 20 in chosen
    assert (valid[chosen].sum(0) >= [3, 3, 1, 3]).all()
    assert len(chosen) <= 8 + 3
    assert len(set(chosen)) == len(chosen)
    # As long as there are some that have more, those that have least are not.
    assert valid[chosen, 1:].any(1).all()
