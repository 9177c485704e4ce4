"""What the synthetic Sun promises: one Sun for all channels, sizes and times, that looks like SDOML."""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip.channels import NAMES
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sinks import open_sink
from sunzip.sources import _sun, open_source
from sunzip.sources._sun import corona, field
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic, cubes, render

BZ, A171, A193, A1700 = (NAMES.index(n) for n in ("Bz", "171A", "193A", "1700A"))

#: Mean and standard deviation of 16,893 aligned SDOML v2 frames of 2010-14.
TARGET = {
    "94A": (0.53, 1.11), "131A": (3.23, 4.84), "171A": (109.5, 124.6), "193A": (117.3, 155.9),
    "211A": (34.2, 59.3), "304A": (28.6, 33.3), "335A": (2.02, 5.00), "1600A": (35.8, 37.2),
    "1700A": (445.0, 470.0), "Bx": (0.09, 41.4), "By": (-0.01, 40.2), "Bz": (-0.06, 14.1),
}  # fmt: skip


def disk(n: int) -> np.ndarray:
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    return np.hypot(x, y) < 976 / 4.8 * n / 512


@pytest.fixture(scope="module")
def year() -> np.ndarray:
    """Frames of 2010-14 at 128²."""
    start = np.datetime64("2010-06-01T00:00")
    return np.stack(
        [render(start + np.timedelta64(int(i * 1670 / 24), "D"), size=128, seed=i) for i in range(24)]
    )


def test_same_arguments_same_bytes_and_other_seed_other_sun():
    a = render("2014-02-01T03:00:00", size=128, seed=3)
    render("2016-02-01T03:00:00", size=128, seed=3)
    np.testing.assert_array_equal(a, render("2014-02-01T03:00:00", size=128, seed=3))
    other = render("2014-02-01T03:00:00", size=128, seed=4)
    assert np.corrcoef(a[BZ].ravel(), other[BZ].ravel())[0, 1] < 0.3


@pytest.mark.parametrize("size", [16, 128])
def test_same_bytes_on_any_number_of_threads(size):
    """Libraries share products of matrices among threads that are free, and sum in another order then."""
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    found = []
    for threads in (1, 2):
        with limits(threads):
            found.append(join([Synthetic(frames=1, size=size)]).read(0, 1).data)
    np.testing.assert_array_equal(*found)


def test_random_access_gives_what_sequential_access_gives():
    forward = Synthetic(frames=4, size=64, cadence="6h")
    backward = Synthetic(frames=4, size=64, cadence="6h")
    frames = [forward.frame(i) for i in range(4)]
    for i in (3, 0, 2, 1):
        np.testing.assert_array_equal(backward.frame(i), frames[i])
    later = Synthetic(frames=1, size=64, start="2012-03-01T12:00:00")
    np.testing.assert_array_equal(later.frame(0), frames[2])


def test_read_is_a_channel_of_the_frame_and_the_callers_own():
    source = Synthetic(frames=2, size=64, channels=["Bz", "171"])
    assert source.channels == ("171A", "Bz")
    frame = source.frame(1)
    image = source.read("171A", 1)
    np.testing.assert_array_equal(image, frame[A171])
    image[:] = 0
    np.testing.assert_array_equal(source.read("171A", 1), frame[A171])
    with pytest.raises(InputError, match="no channel 193A"):
        source.read("193A", 0)


@settings(max_examples=12, deadline=None)
@given(
    st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2080, 1, 1)),
    st.integers(-(2**70), 2**70),
    st.sampled_from([16, 48, 128]),
)
def test_any_date_and_seed_give_finite_float32_and_nothing_off_the_disk(when, seed, size):
    a = render(when, size=size, seed=seed)
    assert a.shape == (12, size, size)
    assert a.dtype == np.float32
    assert np.isfinite(a).all()
    assert not a[9:, ~disk(size)].any()
    assert a[BZ][disk(size)].std() > 0
    assert (a[:9].mean((1, 2)) > 0).all()


@pytest.mark.parametrize("size", [272, 336, 1008])
def test_sizes_that_no_power_of_two_divides(size):
    a = render("2014-02-01T03:00:00", size=size)
    assert np.isfinite(a).all()
    assert not a[9:, ~disk(size)].any()


def test_native_frame_is_zero_off_the_disk_in_hmi_only():
    a = render("2014-02-01T03:00:00")
    off = ~disk(512)
    assert not a[9:, off].any()
    assert (a[:9, off].mean(1) > 0).all()


def test_active_regions_shine_where_the_field_is_strong(year):
    inner = disk(128) & (np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 45)
    for frame in year[8:20:3]:
        strong = inner & (np.abs(frame[BZ]) > np.percentile(np.abs(frame[BZ][inner]), 99))
        for name in ("94A", "131A", "171A", "193A", "211A", "304A", "335A", "1600A"):
            image = frame[NAMES.index(name)]
            assert image[strong].mean() > 1.2 * np.median(image[inner]), name


def test_euv_channels_agree_with_each_other(year):
    r = np.mean([np.corrcoef(np.sqrt(np.maximum(f[:9], 0)).reshape(9, -1)) for f in year], axis=0)
    assert r[A193, NAMES.index("211A")] > 0.9
    assert r[A171, NAMES.index("131A")] > 0.9
    assert r[A171, A193] > 0.6
    assert r[7, 8] > 0.95


def shift_of(a: np.ndarray, b: np.ndarray) -> float:
    """Best shift in degrees of longitude from a to b, each a (latitude, longitude) map."""
    lags = np.arange(-10, 41)
    scores = [
        np.corrcoef(a[:, 80:-80].ravel(), b[:, 80 + k : b.shape[1] - 80 + k].ravel())[0, 1] for k in lags
    ]
    return float(lags[int(np.argmax(scores))]) * 0.5


def test_the_sun_turns_by_its_synodic_rotation():
    lat, lon = np.deg2rad(np.arange(-30, 30.1, 1.0)), np.deg2rad(np.arange(-75, 75.1, 0.5))
    maps = []
    for day in ("2014-06-07", "2014-06-08"):  # B0 is nearly 0
        bz = render(f"{day}T00:00:00", size=256, seed=1)[BZ]
        radius, centre = 976 / 4.8 / 2, 127.5
        y = np.rint(centre + radius * np.sin(lat)[:, None] + 0 * lon).astype(int)
        x = np.rint(centre + radius * np.cos(lat)[:, None] * np.sin(lon)).astype(int)
        maps.append(np.clip(bz[y, x], -300, 300))
    assert 12.0 <= shift_of(*maps) <= 14.5


def test_frames_an_hour_apart_are_more_alike_than_a_day_apart():
    a, hour, day = (
        np.sqrt(np.maximum(render(t, size=128)[:9], 0)).reshape(9, -1)
        for t in ("2013-05-01T00:00:00", "2013-05-01T01:00:00", "2013-05-02T00:00:00")
    )
    for i, name in enumerate(NAMES[:9]):
        near, far = np.corrcoef(a[i], hour[i])[0, 1], np.corrcoef(a[i], day[i])[0, 1]
        assert near > far, name
        assert near > 0.9, name


def test_the_cycle_shows_in_every_coronal_channel():
    high = np.mean([render(f"2014-0{m}-01T00:00:00", size=64, seed=m) for m in range(1, 6)], axis=0)
    low = np.mean([render(f"2008-0{m}-01T00:00:00", size=64, seed=m) for m in range(1, 6)], axis=0)
    for name in ("94A", "193A", "211A", "335A"):
        i = NAMES.index(name)
        assert high[i].mean() > 1.4 * low[i].mean(), name
    assert high[BZ].std() > 1.5 * low[BZ].std()


def test_hale_and_joy():
    """Leaders of the north are negative in cycle 24, of the south positive, and closer to the equator."""
    windows = [field.make_window(s, round((12.0 * 365.25) / 27)) for s in range(6)]
    lead = np.concatenate([w.lead for w in windows])
    lat = np.concatenate([w.lat for w in windows])
    tilt = np.concatenate([w.tilt for w in windows])
    new = np.abs(lat) > np.deg2rad(5)
    assert np.mean(lead[new] == -np.sign(lat[new])) > 0.95
    assert np.corrcoef(tilt, lat)[0, 1] < -0.3


def test_the_poles_turn_at_maximum():
    def at(year: float) -> float:
        return field.polar_field((year - 2000) * 365.25)

    # As observed: north positive at the minimum of 1996, negative in 2008, positive in 2019.
    assert at(1996.5) > 0.8
    assert at(2008.5) < -0.8
    assert at(2019.5) > 0.8
    assert abs(at(2013.4)) < 0.3


def test_statistics_are_those_of_sdoml(year):
    for i, (name, (mean, std)) in enumerate(TARGET.items()):
        values = year[:, i].astype(np.float64)
        if i < 9:
            assert mean / 1.5 < values.mean() < mean * 1.5, name
            assert std / 1.6 < values.std() < std * 1.6, name
        else:
            assert abs(values.mean()) < 2, name


def test_field_statistics_at_native_size():
    frames = np.stack([render(f"201{y}-05-01T00:00:00", seed=y) for y in range(1, 5)])
    for name in ("Bx", "By", "Bz"):
        i = NAMES.index(name)
        assert TARGET[name][1] / 1.5 < frames[:, i].std() < TARGET[name][1] * 1.5, name


def test_sizes_show_the_same_sun():
    small = render("2013-11-01T00:00:00", size=128, seed=2)
    large = render("2013-11-01T00:00:00", size=512, seed=2)
    binned = large.reshape(12, 128, 4, 128, 4).mean((2, 4))
    for i, name in enumerate(NAMES[:9]):
        assert (
            np.corrcoef(np.sqrt(np.maximum(small[i], 0)).ravel(), np.sqrt(np.maximum(binned[i], 0)).ravel())[
                0, 1
            ]
            > 0.97
        ), name
        assert abs(small[i].mean() / binned[i].mean() - 1) < 0.08, name
    assert np.corrcoef(small[BZ].ravel(), binned[BZ].ravel())[0, 1] > 0.9


def test_threads_see_the_same_frames():
    serial = Synthetic(frames=3, size=64, cadence="1d")
    expected = [serial.frame(i) for i in range(3)]
    shared = Synthetic(frames=3, size=64, cadence="1d")
    jobs = [(name, row) for row in (2, 0, 1) for name in NAMES] * 2
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda job: shared.read(*job), jobs))
    for (name, row), image in zip(jobs, images, strict=True):
        np.testing.assert_array_equal(image, expected[row][NAMES.index(name)])


def test_twelve_reads_of_a_row_cost_one_rendering(monkeypatch):
    calls = []
    made = _sun.Sun.__call__
    monkeypatch.setattr(_sun.Sun, "__call__", lambda self, t, n: calls.append(t) or made(self, t, n))
    source = Synthetic(frames=2, size=16)
    for name in NAMES:
        source.read(name, 1)
    assert len(calls) == 1


def test_headers_carry_the_keywords_of_sdoml_v2():
    source = Synthetic(frames=3, size=128, start="2017-01-03T23:00:00")
    assert (source.layout, source.scale, source.shape) == ("synthetic", Scale.MEAN, (128, 128))
    assert source.stored_bytes() is None
    aia, hmi = source.header("193A", 1), source.header("Bz", 1)
    keys = set(
        "T_OBS WAVELNTH WAVEUNIT QUALITY CDELT1 CDELT2 CRPIX1 CRPIX2 CRVAL1 CRVAL2 CTYPE1 CTYPE2"  # noqa: SIM905
        " CUNIT1 CUNIT2 CROTA2 RSUN_OBS R_SUN NAXIS1 NAXIS2 TELESCOP PIXLUNIT".split()
    )
    assert set(hmi) == keys
    assert set(aia) == keys | {"EXPTIME", "DEG_COR"}
    assert re.fullmatch(r"2017-01-03T23:12:\d\d\.\d\dZ", str(aia["T_OBS"]))
    assert hmi["T_OBS"] == "2017.01.03_23:12:04_TAI"
    # The real store's row of this time: RSUN_OBS 976.08″, CDELT = RSUN_OBS / R_SUN.
    assert aia["RSUN_OBS"] == pytest.approx(976.08, abs=0.5)
    assert aia["CDELT1"] == pytest.approx(aia["RSUN_OBS"] / aia["R_SUN"])
    assert aia["CRPIX1"] == 64.5


def test_header_times_are_the_index_times():
    source = Synthetic(frames=5, size=16, cadence="7min")
    for name in NAMES[:9]:
        stated = [np.datetime64(str(source.header(name, i)["T_OBS"]).rstrip("Z"), "ms") for i in range(5)]
        np.testing.assert_array_equal(source.times(name), stated)
    stamp = str(source.header("Bx", 4)["T_OBS"]).removesuffix("_TAI").replace(".", "-").replace("_", "T")
    # TAI − UTC was 34 s in March 2012.
    assert source.times("Bx")[4] == np.datetime64(stamp, "ms") - np.timedelta64(34, "s")
    assert len({source.times(n)[0] for n in NAMES}) > 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 100}, "multiple of 16"),
        ({"size": 1 << 20}, "multiple of 16"),
        ({"frames": 0}, "has 1 to 1,000,000 frames, not 0"),
        ({"frames": 999_999_999}, "has 1 to 1,000,000 frames, not 999,999,999"),
        (
            {"frames": 2, "start": "9999-12-30T23:59"},
            "frames=2, one each 720 s from 9999-12-30T23:59.* leave the",
        ),
        ({"frames": 1_000_000, "cadence": "999999999d"}, "ask for fewer, a shorter cadence or another start"),
        ({"start": "0000-06-01"}, "leave the years 1 to 9999"),
        ({"start": "292278000-01-01"}, "leave the years 1 to 9999"),
        ({"cadence": "often"}, "cadence 'often'"),
        ({"cadence": "-5min"}, "cadence"),
        ({"cadence": "nand"}, "cadence"),
        ({"start": "yesterday"}, "not a time"),
        ({"channels": ["4500A"]}, "unknown channel"),
        ({"channels": []}, "no channel"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        Synthetic(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", ["0001-01-02", "9999-12-31"])
def test_the_first_and_the_last_day_are_read_back(tmp_path, start):
    sun = Synthetic(frames=1, size=16, start=start)
    with open_sink(tmp_path / "s.zarr", "sdoml-v2", channels=NAMES, shape=sun.shape) as sink:
        for cube in cubes(sun):
            sink.write(cube)
    source = open_source(str(tmp_path / "s.zarr"))
    assert not source.counts
    assert [source.times(n).tolist() for n in NAMES] == [sun.times(n).tolist() for n in NAMES]


@pytest.mark.parametrize("row", [-1, 2])
def test_rows_outside_are_refused(row):
    source = Synthetic(frames=2, size=16)
    with pytest.raises(InputError, match="no row"):
        source.frame(row)
    with pytest.raises(InputError, match="no row"):
        source.header("171A", row)


def test_wild_rows_are_read_back_as_what_they_show(tmp_path):
    sun = Synthetic(frames=40, size=16, start="2011-12-31T21:00:00", seed=5)
    stores = {tmp_path / "aia.zarr": NAMES[:9], tmp_path / "hmi.zarr": NAMES[9:]}
    for path, names in stores.items():
        with open_sink(path, "sdoml-v2", channels=names, shape=sun.shape) as sink:
            for cube in cubes(sun, wild=True):
                sink.write(cube.pick(sink.channels))
    aia, hmi = map(str, stores)
    source = open_source(aia, hmi=hmi)
    assert source.channels == NAMES
    rows = {name: len(source.times(name)) for name in NAMES}
    assert len(set(rows.values())) > 1
    for name in NAMES:
        assert (np.diff(source.times(name)) < np.timedelta64(0, "ms")).any(), name
    assert source.counts["keyword value None"] > 0

    series = join([source])
    whole = series.read(0, len(series))
    report = series.report
    assert report.duplicates > 0
    assert report.odd["image without a measurement"] > 0
    assert 0.85 < whole.valid.mean() < 1
    for t, when in enumerate(whole.time):
        row = int(np.abs(sun.time - when).argmin())
        expected = sun.frame(row)
        for c, name in enumerate(NAMES):
            if whole.valid[t, c]:
                np.testing.assert_array_equal(whole.data[t, c], expected[c])
                told = {k: v for k, v in whole.headers[t][c].items() if v is not None}
                assert told.items() <= dict(sun.header(name, row)).items()


def test_tame_cubes_are_the_frames_in_order():
    sun = Synthetic(frames=3, size=16)
    for row, cube in enumerate(cubes(sun)):
        np.testing.assert_array_equal(cube.data[0], sun.frame(row))
        assert cube.time[0] == sun.time[row]
        assert cube.valid.all()


def test_geometry_is_that_of_sunpy():
    sunpy = pytest.importorskip("sunpy.coordinates.sun")
    for when in ("2010-05-01", "2012-09-08", "2014-03-06", "2019-12-21", "2024-06-05"):
        days = (np.datetime64(when) - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
        assert np.rad2deg(field.tilt_b0(days)) == pytest.approx(sunpy.B0(when).deg, abs=0.03)
        # SDO's keywords take the Sun's radius for 696,000 km, sunpy for 695,700 km.
        seen = sunpy.angular_radius(when).to_value("arcsec") * 696 / 695.7
        assert field.solar_radius_arcsec(days) == pytest.approx(seen, abs=0.1)


def test_flux_is_balanced_and_field_lines_are_open_at_the_poles_of_a_minimum():
    sun = _sun.Sun(3)
    day = sun.day(round(8.9 * 365.25))
    lat = (np.arange(48) + 0.5) / 48 * np.pi - np.pi / 2
    assert abs((day.net * np.cos(lat)[:, None]).mean()) < 0.05
    assert day.closed[[0, -1]].max() < 0.1
    assert day.closed[20:28].mean() > 0.7
    assert np.sign(day.net[0]).mean() == -np.sign(day.net[-1]).mean() != 0


def test_a_dipole_is_open_where_theory_has_it():
    """A dipole's last closed line meets the source surface at the equator: see Altschuler & Newkirk 1969."""
    a = np.zeros((23, 23), complex)
    a[1, 0] = 10.0
    closed, length = field._trace(field._potential_field(a))
    lat = (np.arange(48) + 0.5) * 180 / 48 - 90
    # The flux through the open cap, ∝ (2 + R⁻³) sin²θ, is that through half the source surface, ∝ 3 / R.
    colatitude = np.rad2deg(np.arcsin(np.sqrt(3 / 2.5 / (2 + 1 / 2.5**3))))
    edge = lat[np.flatnonzero(closed.mean(1) > 0.5)].max()
    assert edge == pytest.approx(90 - colatitude, abs=5)
    assert length[24].mean() < length[36].mean()


def test_the_largest_flares_reach_the_recorded_maxima():
    peaks = np.concatenate([field.make_window(s, 185).flare_peak for s in range(200)])
    assert peaks.min() >= 1
    # A power law of index 2: ten times rarer for ten times brighter.
    assert 0.05 < (peaks > 10).sum() / (peaks > 1).sum() < 0.2
    assert peaks.max() > 50
    recorded = np.array([12657, 6171, 40492, 39819, 5831, 16093, 6720, 5671, 29253])
    np.testing.assert_allclose(corona._FLARE * 150, recorded, rtol=0.02)


def test_hot_plasma_shows_in_hot_channels():
    """Where AIA's responses peak: 171 Å at 0.9 MK, 193 Å at 1.3, 211 Å at 1.8, 335 Å at 2.5, 94 Å at 7 MK."""
    peak = {name: corona._LOG_T[corona._MATRIX[NAMES.index(name)].argmax()] for name in NAMES[:7]}
    assert peak["171A"] == pytest.approx(5.95)
    assert peak["193A"] == pytest.approx(6.1)
    assert peak["211A"] == pytest.approx(6.25)
    assert peak["335A"] == pytest.approx(6.4)
    assert peak["94A"] == pytest.approx(6.85)
    hot = corona._MATRIX[1, corona._LOG_T > 6.5]
    assert hot.argmax() == len(hot) - 1


def test_stronger_field_and_longer_loops_make_a_hotter_corona():
    strength = np.array([8, 80, 8, 8], np.float32)
    half = np.array([0.1, 0.1, 0.3, 0.1], np.float32)
    closed = np.array([1, 1, 1, 0], np.float32)
    measure, pressure = corona.atmosphere(strength, half, closed)
    mean = (measure * corona._LOG_T[:, None]).sum(0) / measure.sum(0)
    assert mean[1] > mean[0] + 0.2
    assert mean[2] > mean[0] + 0.05
    assert mean[3] < mean[0]
    assert measure[:, 3].sum() < measure[:, 0].sum() < measure[:, 1].sum()
    # RTV: p ∝ F^(6/7) at equal length.
    assert pressure[1] / pressure[0] == pytest.approx(10 ** (6 / 7), rel=1e-3)
    assert (pressure > 0).all()
