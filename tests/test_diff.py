"""Hold what `diff` tells to what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import sunzip
from sunzip import api, sun, weights
from sunzip.archive import Archive
from sunzip.cube import Cube, Scale
from sunzip.errors import DamagedError, InputError
from sunzip.sinks import open_sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model

CHANNELS = ("171A", "193A", "Bz")
FRAMES, SIZE = 6, 32
Change = Callable[[Cube], object]


def cube_of(frames: int = FRAMES, channels: tuple[str, ...] = CHANNELS) -> Cube:
    return join([Synthetic(frames=frames, size=SIZE, start="2014-01-01", channels=channels)]).read(0, frames)


def write(path: Path, cube: Cube, layout: str = "hdf5") -> Path:
    shape = (cube.data.shape[2], cube.data.shape[3])
    with open_sink(path, layout, channels=cube.channels, shape=shape, scale=cube.scale) as sink:
        sink.write(cube)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store") / "a.h5", cube_of())


@pytest.fixture(scope="module")
def lat(store: Path, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an image missing, whose frame is not."""
    cube = cube_of()
    lack(cube, 2, 1)
    path = tmp_path_factory.mktemp("lat") / "a.lat"
    api.compress(write(path.with_suffix(".h5"), cube), path, model=tiny_model, block=2)
    return path


def lack(cube: Cube, t: int, c: int) -> None:
    cube.valid[t, c], cube.data[t, c], cube.t_obs[t, c] = False, np.nan, np.datetime64("NaT", "ms")
    cube.headers[t][c] = {}


def without(cube: Cube, t: int) -> None:
    for c in range(len(cube.channels)):
        lack(cube, t, c)


def later(cube: Cube) -> None:
    cube.t_obs[1, 0] += np.timedelta64(1500, "ms")
    cube.headers[1][0] = {k: v for k, v in cube.headers[1][0].items() if k not in ("T_OBS", "DATE-OBS")}


def changed(tmp_path: Path, change: Change) -> Path:
    cube = cube_of()
    change(cube)
    return write(tmp_path / "b.h5", cube)


def test_images_that_are_damaged_in_both_were_not_seen(tmp_path: Path) -> None:
    tree = write(tmp_path / "a", cube_of(), "sdoml-v1")
    next(tree.rglob("*0024_0193.npz")).write_bytes(b"PK")
    found = sunzip.diff(tree, tree)
    assert found.unseen == (1, 1)
    assert not found.same


@pytest.mark.parametrize("layout", ["sdoml-v2", "hdf5", "fits"])
def test_what_is_decompressed_holds_the_same(lat: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / ("a.h5" if layout == "hdf5" else "a")
    api.decompress(lat, out, layout=layout)
    report = sunzip.diff(lat, out)
    assert report.same
    assert report.differs == ()
    assert (report.frames, report.images) == (FRAMES, 17)
    assert [row.identical for row in report.channels.values()] == [6, 5, 6]
    assert all(row.pixels == row.images * SIZE**2 for row in report.channels.values())
    assert sunzip.diff(out, lat).same


def test_other_scales_are_told_and_pixels_compared_as_means(lat: Path, tmp_path: Path) -> None:
    api.decompress(lat, tmp_path / "v1", layout="sdoml-v1")
    report = sunzip.diff(lat, tmp_path / "v1")
    # Files of SDOML v1 have no keywords, and the minute in their name.
    assert report.differs == ("scale", "times", "keywords")
    assert (report.a.scale, report.b.scale) == ("mean", "sum")
    assert 0 < report.seconds_apart < 60
    assert all(row.identical == row.images for row in report.channels.values())


def test_the_magnetic_field_has_no_scale(tmp_path: Path) -> None:
    cube = cube_of(channels=("Bz",))
    a = write(tmp_path / "a.h5", cube)
    cube.scale = Scale.SUM
    assert sunzip.diff(a, write(tmp_path / "b.h5", cube)).same


def test_pixels_are_compared_to_the_bit(store: Path, tmp_path: Path) -> None:
    old = cube_of()

    def change(cube: Cube) -> None:
        cube.data[0, 0, 3, 4] += 8
        cube.data[4, 0, 3, 4] = np.nextafter(cube.data[4, 0, 3, 4], np.float32(np.inf))
        cube.data[1, 2, 0, 0] = np.nan

    b = changed(tmp_path, change)
    report = sunzip.diff(store, b)
    assert report.differs == ("pixels",)
    aia, same, hmi = report.channels.values()
    assert (aia.images, aia.identical, aia.differing, aia.nan_in_one) == (6, 4, 2, 0)
    assert aia.max_error == pytest.approx(8)
    assert aia.rmse == pytest.approx(8 / SIZE / FRAMES, rel=1e-3)
    from sunzip.normalize import Stabiliser

    one = old.data[0, 0, 3, 4] + np.array([0, 8], np.float32)
    sigma = float(np.diff(Stabiliser.for_channels(["171A"]).forward(one.reshape(1, 1, 2)).ravel())[0])
    assert aia.max_sigma == pytest.approx(sigma, rel=1e-5)
    assert aia.rmse_sigma == pytest.approx(sigma / SIZE / FRAMES, rel=1e-3)
    assert (same.identical, same.differing, same.max_error) == (6, 0, 0)
    assert (hmi.identical, hmi.differing, hmi.nan_in_one, hmi.max_error) == (5, 1, 1, 0)
    # NaN is NaN.
    assert sunzip.diff(b, shutil.copy(b, tmp_path / "c.h5")).same


@pytest.mark.parametrize(
    ("change", "differs", "told"),
    [
        (lambda cube: lack(cube, 3, 2), ("images",), {"images_only": ({"Bz": 1}, {})}),
        (lambda cube: without(cube, 3), ("frames",), {"frames": 5, "frames_only": ("00:36", None)}),
        (
            lambda cube: cube.headers[5][1].__setitem__("EXPTIME", 7.0),
            ("keywords",),
            {"keywords": 1, "keyword_names": {"EXPTIME": 1}},
        ),
        (later, ("times", "keywords"), {"times": 1, "seconds_apart": 1.5}),
    ],
)
def test_what_only_one_has_and_what_it_says_is_told(
    store: Path, tmp_path: Path, change: Change, differs: tuple[str, ...], told: dict[str, Any]
) -> None:
    # A grid, as the times themselves are what differs.
    report = sunzip.diff(store, changed(tmp_path, change), cadence="12min")
    assert report.differs == differs
    for name, value in told.items():
        found: Any = getattr(report, name)
        if name == "frames_only":
            found = tuple(lone.last and lone.last[11:16] for lone in found)
            assert report.frames_only[0].frames == 1
        assert found == value


def test_frames_go_together_by_an_image_where_their_times_do_not(store: Path, tmp_path: Path) -> None:
    # Without a grid a frame has the time of its first image, which is not in the other.
    report = sunzip.diff(store, changed(tmp_path, lambda cube: [lack(cube, t, 2) for t in (0, 4)]))
    assert report.differs == ("images",)
    assert (report.frames, report.images_only) == (FRAMES, ({"Bz": 2}, {}))


def test_channels_and_sizes(store: Path, lat: Path, tiny_model: Model, tmp_path: Path) -> None:
    fewer = write(tmp_path / "b.h5", cube_of(8, ("193A",)))
    report = sunzip.diff(store, fewer)
    assert report.differs == ("channels", "frames")
    assert report.channels_only == (("171A", "Bz"), ())
    assert [lone.frames for lone in report.frames_only] == [0, 2]
    assert report.images == 6
    small = tmp_path / "small.lat"
    api.compress(store, small, model=tiny_model, align=api.Alignment(size=16))
    report = sunzip.diff(small, store)
    assert report.differs == ("image size",)
    assert (report.frames, report.images, report.channels) == (FRAMES, 0, {})


def test_images_that_no_frame_takes_in_are_not_passed_over(store: Path) -> None:
    assert sunzip.diff(store, store).same
    report = sunzip.diff(store, store, cadence="24min")
    assert report.differs == ()
    assert report.unseen == (7, 7)
    assert report.images == 18 - 7
    assert not report.same


def test_files_that_are_passed_over_are_not_seen(tmp_path: Path) -> None:
    write(tmp_path / "a", cube_of(), "fits")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "other", join([Synthetic(frames=1, size=64, channels=("171A",))]).read(0, 1), "fits")
    (other,) = (tmp_path / "other").glob("*.fits")
    shutil.copy(other, tmp_path / "b" / "large.fits")
    report = sunzip.diff(tmp_path / "a", tmp_path / "b")
    assert (report.same, report.differs, report.unseen) == (False, (), (0, 1))
    # What is damaged alike in both is not known to be the same.
    (tmp_path / "b" / "large.fits").unlink()
    for name in "ab":
        file = sorted((tmp_path / name).glob("*.fits"))[4]
        file.write_bytes(file.read_bytes()[:4000])
    report = sunzip.diff(tmp_path / "a", tmp_path / "b")
    assert (report.same, report.differs, report.unseen) == (False, (), (1, 1))


def test_npz_files_that_are_passed_over_are_not_seen(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, cube_of().to_scale(Scale.SUM), "sdoml-v1")
    assert sunzip.diff(tmp_path / "a", tmp_path / "b").same
    file = next((tmp_path / "b").rglob("AIA*.npz"))
    for path in (file.with_name("AIA20140101_0000_4500.npz"), tmp_path / "b" / "z" / file.name):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(file, path)
    report = sunzip.diff(tmp_path / "a", tmp_path / "b")
    assert (report.same, report.differs, report.unseen) == (False, (), (0, 2))


def test_images_without_a_measurement_are_none(store: Path, tmp_path: Path) -> None:
    def blank(cube: Cube) -> None:
        cube.data[2] = np.nan

    def gone(cube: Cube) -> None:
        without(cube, 2)

    a = changed(tmp_path, blank).rename(tmp_path / "a.h5")
    b = changed(tmp_path, gone)
    assert sunzip.diff(a, b).same


def test_a_channel_without_a_measurement_is_none(tmp_path: Path) -> None:
    cube = cube_of()
    cube.data[:, 1] = np.nan
    a = write(tmp_path / "a.h5", cube)
    b = write(tmp_path / "b.h5", cube.pick(("171A", "Bz")))
    assert sunzip.diff(a, b).same
    cube.data[5, 1, 0, 0] = 1
    assert sunzip.diff(write(tmp_path / "c.h5", cube), b).channels_only == (("193A",), ())
    assert sunzip.diff(b, a).same


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    decoded = []
    cube = api.Sun.cube

    def counted(self: api.Sun, start: int, stop: int, *rest: Any) -> Cube:
        decoded.append((start, stop))
        return cube(self, start, stop, *rest)

    monkeypatch.setattr(api.Sun, "cube", counted)
    return decoded


def test_copies_need_neither_decoding_nor_the_model(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy(lat, tmp_path / "b.lat")
    decoded = count_decoding(monkeypatch)
    monkeypatch.setattr(weights, "_REGISTERED", {})
    report = sunzip.diff(lat, copy)
    assert report.same
    assert (report.frames, report.images, decoded) == (FRAMES, 17, [])


def test_only_shards_that_differ_are_decoded_and_once(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", 4)
    monkeypatch.setattr(api._shards, "_STRETCH_PIXELS", 2 * len(CHANNELS) * SIZE**2)
    monkeypatch.setattr(api._shards, "count", lambda: 1)
    for frames in (6, 10):
        series = join([Synthetic(frames=frames, size=SIZE, start="2014-01-01", channels=CHANNELS)])
        api.compress(series, tmp_path / f"{frames}.lat", model=tiny_model, block=2)
    decoded = count_decoding(monkeypatch)
    report = sunzip.diff(tmp_path / "6.lat", tmp_path / "10.lat")
    assert report.differs == ("frames",)
    assert report.images == 18
    assert decoded == [(4, 6), (4, 6)]  # once in each


def test_one_model_may_be_named_for_two(
    store: Path,
    lat: Path,
    tiny_model: Model,
    wavelet_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "b.lat"
    api.compress(store, other, model=wavelet_model, embed_model=True)
    monkeypatch.setattr(weights, "_REGISTERED", {})
    report = sunzip.diff(lat, other, model=tiny_model)
    assert report.differs == ("images", "pixels")
    assert (report.a.model, report.b.model) == (tiny_model.name, wavelet_model.name)
    with pytest.raises(InputError, match="not with the model given"):
        sunzip.diff(lat, store, model=wavelet_model)


def test_equal_damage_is_damage(lat: Path, tmp_path: Path) -> None:
    with sunzip.open(lat) as open_sun:
        start, _ = open_sun.archive.extent(1)
    data = bytearray(lat.read_bytes())
    data[start + 20] ^= 1
    for name in ("b.lat", "c.lat"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedError, match=r"b\.lat: is damaged in cube.* block 1.*, repair it"):
        sunzip.diff(tmp_path / "b.lat", tmp_path / "c.lat")


def test_the_command(sunzip: Callable[..., Result], store: Path, lat: Path, tmp_path: Path) -> None:
    copy = shutil.copy(lat, tmp_path / "b.lat")
    done = sunzip("diff", lat, copy)
    assert done.stdout.splitlines()[-1] == "same"
    assert json.loads(sunzip("diff", lat, copy, "--json").stdout)["same"] is True

    wrong = changed(tmp_path, lambda cube: cube.data.__imul__(2))
    found = sunzip("diff", store, wrong, code=5)
    assert found.stdout.splitlines()[-1] == "differ in pixels"
    assert f"{store} and {wrong}: differ in pixels" in found.stderr
    told = json.loads(sunzip("diff", store, wrong, "--json", "-q", code=5).stdout)
    assert (told["same"], told["differs"]) == (False, ["pixels"])
    assert told["channels"]["171A"]["differing"] > 0

    (tmp_path / "fewer").mkdir()
    fewer = changed(tmp_path / "fewer", lambda cube: [without(cube, t) for t in range(1, FRAMES)])
    text = sunzip("diff", store, fewer, code=5).stdout
    assert "frames only in A  5: 2014-01-01 00:1" in text
    text = sunzip("diff", store, store, "--cadence", "24min", code=5).stdout
    assert "not seen in B  7 images" in text
    assert text.splitlines()[-1].startswith("no difference was found, but")


def test_options_that_do_nothing_are_refused(sunzip: Callable[..., Result], store: Path, lat: Path) -> None:
    assert "--hmi-a does nothing where A is" in sunzip("diff", lat, store, "--hmi-a", store, code=2).stderr
    assert "--cadence does nothing" in sunzip("diff", lat, lat, "--cadence", "1h", code=2).stderr
    assert "--model does nothing" in sunzip("diff", store, store, "--model", "x", code=2).stderr


@pytest.mark.parametrize("name", ["hmi_a", "hmi_b", "degradation", "cadence"])
def test_what_does_nothing_for_archives_and_series_is_refused(name: str, lat: Path) -> None:
    for b in (lat, join([Synthetic(frames=2, size=32)])):
        with pytest.raises(InputError, match=f"^{name} does nothing for archives"):
            sunzip.diff(lat, b, **{name: "1h"})


def test_tables_of_degradation_belong_to_the_source_of_an_archive_alone(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.decompress(lat, tmp_path / "a.h5")
    opened = sun.open_archive

    def made_with_tables(*args: Any, **settings: Any) -> Archive:
        archive = opened(*args, **settings)
        archive.coding = {**archive.coding, "degradation": "tables"}
        return archive

    monkeypatch.setattr(sun, "open_archive", made_with_tables)
    assert sunzip.diff(lat, tmp_path / "a.h5").same
