"""What a sink writes, the source of that layout reads back: pixels to the bit, times, keywords, scale."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sunzip.cube import Cube, Scale
from sunzip.errors import OutputError
from sunzip.sinks import LAYOUTS, open_sink

N = 16
CHANNELS = ("94A", "171A", "Bz")


def make_cube(headers=None, *, frames=4, start="2011-12-31T23:24", seed=0, scale=Scale.MEAN, n=N):
    """Frames over the turn of a year, with missing images, NaN pixels, -0.0 and the smallest float32."""
    rng = np.random.default_rng(seed)
    time = np.datetime64(start, "ms") + np.arange(frames) * np.timedelta64(12, "m")
    t_obs = (time[:, None] + rng.integers(0, 59_999, (frames, 3)).astype("m8[ms]")).astype("M8[ms]")
    data = rng.normal(0, 100, (frames, 3, n, n)).astype(np.float32)
    data[:, :, 3, 2:7] = np.nan
    data[:, :, 5] = -0.0
    data[:, :, 6, 0] = np.float32(1e-45) * 4
    valid = np.ones((frames, 3), bool)
    valid[0, 0] = valid[2, 1] = valid[2, 2] = False
    data[~valid] = np.nan
    t_obs[~valid] = np.datetime64("NaT", "ms")
    heads = [[{} for _ in CHANNELS] for _ in range(frames)]
    for i, header in enumerate(headers or []):
        heads[i % frames][i % 3] = header if valid[i % frames, i % 3] else {}
    return Cube(data, CHANNELS, time, t_obs, valid, heads, scale)


def write(path, layout, *cubes, scale=Scale.MEAN):
    with open_sink(
        path, layout, channels=cubes[0].channels, shape=cubes[0].data.shape[2:], scale=scale
    ) as sink:
        for cube in cubes:
            sink.write(cube)


def read(path, layout):
    if layout == "sdoml-v2":
        from sunzip.sources.sdoml_v2 import SdomlV2 as Source
    elif layout == "sdoml-v1":
        from sunzip.sources.sdoml_v1 import SdomlV1 as Source
    elif layout == "hdf5":
        from sunzip.sources.hdf5 import Hdf5 as Source
    else:
        from sunzip.sources.fits import Fits as Source
    return Source(str(path))


def typed(header):
    """A header that compares True and 1, or 1 and 1.0, as different."""
    return {k: (type(v), v) for k, v in header.items()}


KEYS = st.one_of(
    st.from_regex(r"[A-Z][A-Z0-9_-]{0,7}", fullmatch=True),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    st.sampled_from(
        ["COMMENT", "HISTORY", "SIMPLE", "BSCALE", "SZ_HDR", "EXPTIME", "CDELT1", "ZIMAGE", "END"]
    ),
).filter(lambda k: k != "T_OBS")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.text("'& /\\\"=a", max_size=200),
)
HEADERS = st.lists(st.dictionaries(KEYS, VALUES, max_size=8), max_size=6)


@pytest.mark.parametrize("layout", ["sdoml-v2", "hdf5", "fits"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers=HEADERS)
@example(headers=[])
@example(headers=[{}, {"COMMENT": "two\nlines", "LONG": "it's " * 60 + "&", "X": -math.inf, "BIG": 10**30}])
def test_what_is_written_comes_back(layout, headers):
    cube = make_cube(headers)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        write(Path(folder) / "out", layout, cube)
        source = read(Path(folder) / "out", layout)
        assert source.channels == CHANNELS
        assert source.shape == (N, N)
        assert source.scale is Scale.MEAN
        for c, name in enumerate(CHANNELS):
            rows = np.flatnonzero(cube.valid[:, c])
            np.testing.assert_array_equal(source.times(name), cube.t_obs[rows, c])
            for row, t in enumerate(rows):
                assert source.read(name, row).tobytes() == cube.data[t, c].tobytes()
                found, given = dict(source.header(name, row)), dict(cube.headers[t][c])
                if layout == "sdoml-v2":  # a list cannot tell None from absent, and rows need a time
                    found.pop("T_OBS")
                    given = {k: v for k, v in given.items() if v is not None}
                assert typed(found) == typed(given)


def test_v1_keeps_pixels_and_minutes(tmp_path):
    cube = make_cube()
    write(tmp_path / "out", "sdoml-v1", cube)
    source = read(tmp_path / "out", "sdoml-v1")
    assert source.scale is Scale.SUM
    sums = cube.to_scale(Scale.SUM)
    for c, name in enumerate(CHANNELS):
        rows = np.flatnonzero(cube.valid[:, c])
        order = np.argsort(source.times(name))
        np.testing.assert_array_equal(np.sort(source.times(name)), cube.time[rows])
        for row, t in zip(order, rows, strict=True):
            assert source.read(name, row).tobytes() == sums.data[t, c].tobytes()
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.npz"))
    assert names[0] == "2011/12/31/AIA20111231_2324_0171.npz"
    assert names[-1] == "2012/01/01/HMI20120101_0000_bz.npz"


def test_v1_refuses_two_frames_of_one_minute(tmp_path):
    cube = make_cube()
    cube.time[:] = np.datetime64("2011-01-01T00:00", "ms") + np.arange(4) * np.timedelta64(10, "s")
    with pytest.raises(OutputError, match="minute 2011-01-01T00:00"):
        write(tmp_path / "out", "sdoml-v1", cube)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", list(Scale))
def test_scale_converts_exactly(tmp_path, layout, scale):
    means = make_cube()
    write(tmp_path / "out", layout, means.to_scale(scale), scale=Scale.SUM)
    source = read(tmp_path / "out", layout)
    assert source.scale is (Scale.SUM if layout in ("sdoml-v1", "hdf5") else Scale.MEAN)
    wanted = means.to_scale(source.scale)
    for name, c in (("171A", 1), ("Bz", 2)):
        times = source.times(name).astype("M8[m]")
        t = list(cube_minutes(means, c)).index(times[0])
        np.testing.assert_array_equal(source.read(name, 0), wanted.data[t, c])


def cube_minutes(cube, c):
    return np.where(cube.valid[:, c], cube.time, np.datetime64("NaT", "ms")).astype("M8[m]")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_cubes_make_one_target(tmp_path, layout):
    """40 frames in cubes of 7 cross chunks of 15 and a year; one cube of all gives the same."""
    whole = make_cube(frames=40, start="2011-12-31T20:00")
    parts = [
        Cube(
            whole.data[s].copy(),
            CHANNELS,
            whole.time[s],
            whole.t_obs[s],
            whole.valid[s],
            whole.headers[s],
            whole.scale,
        )
        for s in (slice(i, i + 7) for i in range(0, 40, 7))
    ]
    write(tmp_path / "whole", layout, whole)
    write(tmp_path / "parts", layout, *parts)
    one, many = read(tmp_path / "whole", layout), read(tmp_path / "parts", layout)
    for c, name in enumerate(CHANNELS):
        np.testing.assert_array_equal(one.times(name), many.times(name))
        assert len(one.times(name)) == whole.valid[:, c].sum()
        for row in range(len(one.times(name))):
            assert one.read(name, row).tobytes() == many.read(name, row).tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]


def test_v2_store_is_as_in_the_wild(tmp_path):
    header = {"T_OBS": "2012-01-01T00:00:08.07Z", "EXPTIME": 2.0, "QUALITY": 0}
    cube = make_cube()
    cube.headers[3][1] = header
    cube.headers[1][1] = {"WAVELNTH": 171}
    write(tmp_path / "out", "sdoml-v2", cube)
    assert sorted(os.listdir(tmp_path / "out")) == [".zattrs", ".zgroup", "2011", "2012"]
    meta = json.loads((tmp_path / "out/2011/171A/.zarray").read_text())
    assert meta == {
        "zarr_format": 2,
        "shape": [2, N, N],
        "chunks": [15, N, N],
        "dtype": "<f4",
        "fill_value": 0.0,
        "order": "C",
        "filters": None,
        "dimension_separator": ".",
        "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0},
    }
    attributes = json.loads((tmp_path / "out/2011/171A/.zattrs").read_text())
    assert attributes["WAVELNTH"] == [None, 171]
    assert json.loads((tmp_path / "out/2012/171A/.zattrs").read_text()) == {k: [v] for k, v in header.items()}
    # Of the three frames of 2011, the first lacks 94 Å and the last 171 Å and Bz.
    lengths = {n: json.loads((tmp_path / f"out/2011/{n}/.zarray").read_text())["shape"][0] for n in CHANNELS}
    assert lengths == {"94A": 2, "171A": 2, "Bz": 2}


@pytest.mark.parametrize(("n", "depth"), [(1024, 15), (2048, 4)])
def test_v2_chunks_of_large_images_are_no_gigabytes(tmp_path, n, depth):
    time = np.array(["2011-01-01"], "M8[ms]")
    image = np.zeros((1, 1, n, n), np.float32)
    cube = Cube(image, ("94A",), time, time[:, None], np.ones((1, 1), bool), [[{}]], Scale.MEAN)
    write(tmp_path / "out", "sdoml-v2", cube)
    assert json.loads((tmp_path / "out/2011/94A/.zarray").read_text())["chunks"] == [depth, n, n]
    assert read(tmp_path / "out", "sdoml-v2").read("94A", 0).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("utc", "instrument", "text"),
    [
        ("2010-05-01T00:11:30.000", "HMI", "2010.05.01_00:12:04_TAI"),
        ("2017-01-01T00:00:00.250", "HMI", "2017.01.01_00:00:37.250_TAI"),
        ("2016-12-31T23:59:59.000", "HMI", "2017.01.01_00:00:35_TAI"),
        ("2010-08-27T15:00:08.070", "AIA", "2010-08-27T15:00:08.070Z"),
    ],
)
def test_t_obs_in_the_convention_of_the_instrument(utc, instrument, text):
    from sunzip.times import t_obs_keyword

    assert t_obs_keyword(np.datetime64(utc, "ms"), instrument) == text


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"T_OBS": None},
        {"T_OBS": ""},
        {"T_OBS": "nan"},
        {"T_OBS": "not a time"},
        {"T_OBS": "2011-12-31T23:36:00+00:00"},
        {"T_OBS": "2011-12-31T23:36:99"},
        {"T_OBS": "2011-12-31T23:36:00", "TIMESYS": "TAI"},
    ],
)
def test_v2_writes_a_time_in_utc_where_the_header_has_none(tmp_path, header):
    cube = make_cube()
    cube.headers[1][2] = header
    write(tmp_path / "out", "sdoml-v2", cube)
    assert cube.t_obs[1, 2] in read(tmp_path / "out", "sdoml-v2").times("Bz")


@pytest.mark.parametrize("layout", ["sdoml-v2", "hdf5", "fits"])
def test_an_image_without_t_obs_has_its_frames_time(tmp_path, layout):
    cube = make_cube()
    cube.t_obs[:] = np.datetime64("NaT", "ms")
    write(tmp_path / "out", layout, cube)
    np.testing.assert_array_equal(read(tmp_path / "out", layout).times("171A"), cube.time[cube.valid[:, 1]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_target_is_left_alone(tmp_path, layout, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("precious")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=f"{target}: exists already"):
        open_sink(target, layout, channels=CHANNELS, shape=(N, N))
    assert os.listdir(tmp_path) == ["out"]
    assert kind != "file" or target.read_text() == "precious"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path, layout):
    sink = _sink(tmp_path, layout)
    sink.write(make_cube())
    sink.path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        sink.close()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "precious"


def _sink(tmp_path, layout):
    return open_sink(tmp_path / "out", layout, channels=CHANNELS, shape=(N, N))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exception_leaves_nothing(tmp_path, layout):
    def interrupted():
        with _sink(tmp_path, layout) as sink:
            sink.write(make_cube())
            assert os.listdir(tmp_path) == ["out.partial"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("layout", ["fits", "sdoml-v1", "sdoml-v2"])
def test_who_is_interrupted_waits_for_no_further_frame(tmp_path, layout):
    """A thread may have a thousand files to write just then."""
    sink = _sink(tmp_path, layout)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt), sink.fed():
        raise KeyboardInterrupt
    sink.write(make_cube())
    assert sorted(tmp_path.rglob("*")) == before
    sink.abort()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_to_one_target_do_not_share_what_is_partial(tmp_path, layout):
    first, second = _sink(tmp_path, layout), _sink(tmp_path, layout)
    assert sorted(os.listdir(tmp_path)) == ["out.partial", "out.partial.1"]
    first.write(make_cube())
    first.close()
    first.close()
    with pytest.raises(OutputError, match="exists already"):
        second.close()
    second.abort()
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="after close"):
        first.write(make_cube())


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_sinks import CHANNELS, N, make_cube, open_sink
sink = open_sink({out!r}, {layout!r}, channels=CHANNELS, shape=(N, N))
sink.write(make_cube())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, layout):
    try:
        os.setxattr(tmp_path, "user.sunzip.test", b"")
    except (AttributeError, OSError):
        pytest.skip("needs extended attributes")
    script = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "out"), layout=layout)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["out.partial"]
    with _sink(tmp_path, layout) as sink:
        assert os.listdir(tmp_path) == ["out.partial"]
        sink.write(make_cube())
    assert os.listdir(tmp_path) == ["out"]
    assert not os.listxattr(tmp_path / "out")
    assert read(tmp_path / "out", layout).channels == CHANNELS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder_is_named(tmp_path, layout):
    with pytest.raises(OutputError, match=f"the folder {tmp_path / 'no'} does not exist"):
        open_sink(tmp_path / "no" / "out", layout, channels=CHANNELS, shape=(N, N))


def test_a_missing_permission_is_one_line(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match=f"^{tmp_path / 'out'}: cannot be written: Permission denied$"):
        open_sink(tmp_path / "out", "hdf5", channels=CHANNELS, shape=(N, N))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch, layout):
    def keep(*_args, **_kwargs):
        pass

    sink = open_sink(tmp_path / "out", layout, channels=CHANNELS, shape=(N, N))
    monkeypatch.setattr(shutil, "rmtree", keep)
    monkeypatch.setattr(Path, "unlink", keep)
    (tmp_path / "out").touch()
    sink.write(make_cube())
    with pytest.raises(OutputError, match=r"exists already.*out\.partial could not be removed"):
        sink.close()


def test_an_unknown_layout_names_the_known_ones(tmp_path):
    with pytest.raises(OutputError, match="sdoml-v2, sdoml-v1, hdf5, fits"):
        open_sink(tmp_path / "out", "tiff", channels=CHANNELS, shape=(N, N))


def test_oblong_images_are_no_fits_files(tmp_path):
    with pytest.raises(OutputError, match=r"96×64 pixels .* write hdf5 or sdoml-v2 \(--layout\)$"):
        open_sink(tmp_path / "out", "fits", channels=["171A"], shape=(64, 96))
    assert not list(tmp_path.iterdir())


def test_cubes_of_another_kind_are_refused(tmp_path):
    sink = open_sink(tmp_path / "out", "hdf5", channels=["171A"], shape=(N, N))
    with pytest.raises(ValueError, match="opened for"):
        sink.write(make_cube())
    sink.abort()


FULL_DISK = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from sunzip.errors import OutputError
from test_sinks import CHANNELS, make_cube, open_sink
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    with open_sink({out!r}, {layout!r}, channels=CHANNELS, shape=(96, 96)) as sink:
        for i in range(8):
            cube = make_cube(frames=4, seed=i, n=96)
            cube.time += np.timedelta64(i, "h")
            sink.write(cube)
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("layout", ["hdf5", "sdoml-v2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, layout):
    """In a process of its own, as HDF5 is known to end one whose disk is full."""
    script = FULL_DISK.format(tests=str(Path(__file__).parent), out=str(tmp_path / "out"), layout=layout)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out'}: cannot be written: File too large\n"
    assert not os.listdir(tmp_path)


def test_sinks_hold_no_more_with_more_frames(tmp_path):
    """What is held of an image is its keywords: far less than its pixels."""
    import tracemalloc

    cube = make_cube(frames=8, n=64)

    def peak(name, layout, times):
        tracemalloc.start()
        with open_sink(tmp_path / name, layout, channels=CHANNELS, shape=(64, 64)) as sink:
            for i in range(times):
                cube.time += np.timedelta64(3, "h") * (i > 0)
                sink.write(cube)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    for layout in ("sdoml-v2", "hdf5"):  # the others hold nothing between two images
        peak(f"warm {layout}", layout, 1)
        growth = peak(f"many {layout}", layout, 12) - peak(f"few {layout}", layout, 3)
        assert growth < cube.data.nbytes, "nine further cubes may not cost as much as one"


def test_fits_opens_as_a_sunpy_map(tmp_path):
    sunpy_map = pytest.importorskip("sunpy.map", reason="sunpy is optional")
    from astropy import units as u
    from sunpy.map.sources import AIAMap, HMIMap

    cube = make_cube([{}, {"EXPTIME": 1.9996, "RSUN_OBS": 959.65, "DSUN_OBS": 1.496e11, "HISTORY": "a\nb"}])
    write(tmp_path / "out", "fits", cube)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aia = sunpy_map.Map(next((tmp_path / "out").glob("aia_0171_20111231T2336*.fits")))
        hmi = sunpy_map.Map(next((tmp_path / "out").glob("hmi_bz_20111231T2324*.fits")))
        assert isinstance(aia, AIAMap)
        assert isinstance(hmi, HMIMap)
        assert (aia.unit, hmi.unit) == (u.Unit("DN/s"), u.G)
        assert (aia.wavelength, hmi.wavelength) == (171 * u.AA, 6173 * u.AA)
        assert aia.exposure_time == 1 * u.s
        assert aia.meta["sz_expt"] == 1.9996
        assert np.datetime64(aia.date.isot) == cube.t_obs[1, 1]
        assert np.datetime64(aia.reference_date.isot) == cube.t_obs[1, 1]
        assert aia.coordinate_system == ("HPLN-TAN", "HPLT-TAN")
        assert aia.rsun_obs == 959.65 * u.arcsec
        assert aia.observer_coordinate.radius.to_value("m") == 1.496e11
        # The disk's edge is where the pixels have it: 203.33 of 256 pixels from the middle.
        edge = aia.world_to_pixel(_helioprojective(aia, 959.65))
        assert edge.x.value == pytest.approx((N - 1) / 2 + 203.333 * N / 512, abs=1e-3)
        assert edge.y.value == pytest.approx((N - 1) / 2, abs=1e-3)
        np.testing.assert_array_equal(aia.data, cube.data[1, 1])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"DATE-OBS": "2011-12-31T23:35:59.123456"}, "2011-12-31T23:35:59.123456"),
        ({"DATE-OBS": "2011-12-31T23:35:59.5Z"}, "2011-12-31T23:35:59.500"),
        ({"DATE_OBS": "2011.12.31_23:36:33_TAI"}, "2011-12-31T23:35:59.000"),
        ({"DATE-OBS": "2011-12-31T23:35:60"}, "2011-12-31T23:36:00.000"),
        ({"DATE-OBS": "2011-12-31T23:36:33", "TIMESYS": "TAI"}, "2011-12-31T23:35:59.000"),
        ({"DATE-OBS": "2011-12-31T23:35:59.500", "TIMESYS": "UTC"}, "2011-12-31T23:35:59.500"),
        ({"DATE-OBS": "yesterday"}, None),
        ({"DATE-OBS": 10**400}, None),
        ({}, None),
    ],
)
def test_fits_keeps_when_the_exposure_began(tmp_path, given, found):
    from astropy.io import fits

    cube = make_cube()
    cube.headers[1][1] = given
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "out", "fits", cube)
    file = next((tmp_path / "out").glob("aia_0171_20111231T2336*.fits"))
    header = fits.getheader(file)
    assert header["T_OBS"] == str(cube.t_obs[1, 1])
    assert header["DATE-OBS"] == (found or header["T_OBS"])
    sunpy_map = pytest.importorskip("sunpy.map", reason="sunpy is optional")
    assert sunpy_map.Map(file).date.isot == header["DATE-OBS"][:23]
    assert sunpy_map.Map(file).reference_date.isot == header["T_OBS"]


def test_fits_tells_nothing_of_the_original_s_pixels(tmp_path):
    from astropy.io import fits

    cube = make_cube()
    # DATAMIN and DATAMAX are FITS's own: viewers stretch by them. Of counts before they were averaged and
    # divided by the exposure, and of 4096² pixels.
    told = {"DATAMIN": -8, "DATAMAX": 13595, "DATAMEAN": 209.47, "DATAMEDN": 111, "DATARMS": 336.4}
    told |= {"DATASKEW": 4.9, "DATAKURT": 43.4, "DATAP99": 1530.0, "DATACENT": 210.0, "TOTVALS": 16777216}
    told |= {"DATAVALS": 16777216, "MISSVALS": 0, "SATVALS": 0, "PERCENTD": 100.0, "PIXLUNIT": "DN"}
    cube.headers[1][1] = told | {"QUALITY": 0}
    write(tmp_path / "out", "fits", cube)
    header = fits.getheader(next((tmp_path / "out").glob("aia_0171_20111231T2336*.fits")))
    assert not told.keys() & set(header)
    assert header["QUALITY"] == 0
    source = read(tmp_path / "out", "fits")
    row = int(np.flatnonzero(source.times("171A") == cube.t_obs[1, 1])[0])
    assert source.header("171A", row) == cube.headers[1][1]


def test_fits_leaves_out_numbers_that_it_cannot_hold(tmp_path):
    from astropy.io import fits

    numbers = ("RSUN_OBS", "DSUN_OBS", "EXPTIME", "SZ_FILL", "QUALITY")
    cube = make_cube()
    cube.headers[1][1] = dict.fromkeys(numbers, 10**400) | {"MANY": -(10**69), "FITS": 10**68}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "out", "fits", cube)
    header = fits.getheader(next((tmp_path / "out").glob("aia_0171_20111231T2336*.fits")))
    assert header["SZ_ASSUM"].split()[:2] == ["RSUN_OBS", "DSUN_OBS"]
    assert not {"SZ_EXPT", "SZ_FILL", "QUALITY", "MANY"} & set(header)
    assert header["FITS"] == 10**68
    source = read(tmp_path / "out", "fits")
    row = int(np.flatnonzero(source.times("171A") == cube.t_obs[1, 1])[0])
    assert source.header("171A", row) == cube.headers[1][1]


def _helioprojective(of, x):
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    return SkyCoord(x * u.arcsec, 0 * u.arcsec, frame=of.coordinate_frame)


def test_the_default_observer_is_the_earth(tmp_path):
    coordinates = pytest.importorskip("sunpy.coordinates", reason="sunpy is optional")
    from sunzip.sinks.fits import _observer

    for date in ("2010-05-01", "2014-01-04", "2017-07-20", "2024-10-04"):
        mine, assumed = _observer(np.datetime64(date, "ms"), {})
        assert set(assumed) == set(mine)
        earth = coordinates.get_earth(date)
        assert mine["HGLT_OBS"] == pytest.approx(earth.lat.deg, abs=0.01)
        assert mine["DSUN_OBS"] == pytest.approx(earth.radius.to_value("m"), rel=1e-4)


def test_any_fits_reader_finds_the_image_first(tmp_path):
    from astropy.io import fits

    cube = make_cube()
    write(tmp_path / "out", "fits", cube)
    file = next((tmp_path / "out").glob("hmi_bz_20111231T2336*.fits"))
    data, header = fits.getdata(file, header=True)
    assert data.astype(np.float32).tobytes() == cube.data[1, 2].tobytes()
    assert header["BUNIT"] == "Gauss"
    assert header["SZ_CHAN"] == "Bz"
    assert fits.open(file, checksum=True).info(output=False)[0][3] == "PrimaryHDU"


def test_two_images_of_one_second_get_two_files(tmp_path):
    cube = make_cube()
    cube.t_obs[:, 1] = np.datetime64("2011-12-31T23:24:01.5", "ms")
    write(tmp_path / "out", "fits", cube)
    assert len(list((tmp_path / "out").glob("aia_0171_20111231T232401*.fits"))) == 3
