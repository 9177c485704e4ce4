"""Alignment in time: who gets into which frame, and what is read."""

from __future__ import annotations

import json
import pickle
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import REAL, aia_times, image, write_v1, write_v2

from sunzip.channels import NAMES
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sources import open_source, sdoml_v2
from sunzip.sources.base import Source, watching
from sunzip.sources.series import block_mean, join, resized_header

ORIGIN = np.datetime64("2014-01-01T00:00:00", "ms")


class Memory(Source):
    """Images at given times (ms after 2014-01-01, None for no time), of given or telling content."""

    layout = "memory"

    def __init__(
        self, times, *, scale=Scale.MEAN, size=4, images=None, header=None, url="memory", stored=None
    ):
        self.url, self.scale, self.shape, self.counts = url, scale, (size, size), Counter()
        self.channels = tuple(n for n in NAMES if n in times)
        self.all_times = {
            c: np.array(
                [np.datetime64("NaT", "ms") if t is None else ORIGIN + np.timedelta64(t, "ms") for t in ts],
                "datetime64[ms]",
            )
            for c, ts in times.items()
        }
        self.images, self.keywords, self.stored = images or {}, header or {}, stored

    def times(self, channel):
        return self.all_times[channel]

    def read(self, channel, row):
        found = self.images.get((channel, row))
        return image(row + 1, self.shape[0]) if found is None else np.array(found, np.float32)

    def header(self, channel, row):
        return {"ROW": row, **self.keywords}

    def stored_bytes(self):
        return self.stored


def minutes(*values):
    return [None if v is None else round(v * 60_000) for v in values]


def offsets(times):
    """Times as minutes after 2014-01-01."""
    return ((times - ORIGIN) / np.timedelta64(1, "m")).tolist()


def test_what_is_kept_of_a_source_lets_nobody_in():
    assert join([Memory({"171A": minutes(0)}, url="https://me:word@host/a.zarr")]).urls == (
        "https://host/a.zarr",
    )


# --- the grid -------------------------------------------------------------------------------------------


def test_a_channel_that_falls_out_for_want_of_times_is_named():
    """A store that had lost the .zattrs of 171 Å gave archives without it, and a count of images."""
    series = join([Memory({"171A": minutes(None, None), "193A": minutes(None, 0), "Bz": minutes(0)})])
    assert series.channels == ("193A", "Bz")
    assert series.report.odd == {"channel without any usable time (171A)": 1}


def test_nearest_in_each_slot_and_every_image_accounted_for():
    source = Memory(
        {
            "171A": minutes(0.1, 5.9, 12, 11, 37, None, -5.9),
            "Bz": minutes(24.2, 0),
        }
    )
    series = join([source])
    assert series.channels == ("171A", "Bz")
    assert offsets(series.time) == [0, 12, 24, 36]
    cube = series.read(0, 4)
    assert [h[0].get("ROW") for h in cube.headers] == [0, 2, None, 4]
    assert [h[1].get("ROW") for h in cube.headers] == [1, None, 0, None]
    assert cube.valid.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    np.testing.assert_array_equal(np.isnat(cube.t_obs), ~cube.valid)
    np.testing.assert_array_equal(np.isnan(cube.data).all(axis=(2, 3)), ~cube.valid)
    np.testing.assert_array_equal(cube.data[3, 0], image(5, 4))
    report = series.report
    assert report.as_dict() == {
        "frames": 4, "frames_dropped": 0, "images_found": {"171A": 7, "Bz": 2}, "images_used": 5,
        "images_dropped": 0, "duplicates": 3, "out_of_tolerance": 0, "unusable_times": 1, "not_selected": 0,
        "odd": {},
    }  # fmt: skip
    json.dumps(report.as_dict())


def test_more_sources_than_an_int16_counts():
    sources = [
        *[Memory({"171A": [0]})] * 40_000,
        Memory({"193A": [0]}, images={("193A", 0): np.full((4, 4), 7)}),
    ]
    series = join(sources)
    assert (len(series), series.channels) == (1, ("171A", "193A"))
    assert series.report.duplicates == 39_999
    assert series.read(0, 1).data[0, 1].tolist() == np.full((4, 4), 7).tolist()


def test_tolerance():
    source = Memory({"171A": minutes(1, 13.001, 24)})
    series = join([source], tolerance="1min")
    assert offsets(series.time) == [0, 24]
    assert series.report.out_of_tolerance == 1


def test_ties_go_to_the_earlier_then_to_the_first_source():
    early = Memory({"171A": minutes(1, -1, -1)})
    late = Memory({"171A": minutes(-1)}, url="late")
    cube = join([early, late]).read(0, 1)
    assert offsets(cube.t_obs[0]) == [-1]
    assert cube.headers[0][0]["ROW"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": "2014-01-01T00:12"}, [12, 24, 36, 48]),
        ({"stop": "2014-01-01T00:24"}, [0, 12]),
        ({"start": "2014-01-01T00:12", "stop": np.datetime64("2014-01-01T00:36")}, [12, 24]),
        ({"every": "24min"}, [0, 24, 48]),
        ({"every": "24min", "start": "2014-01-01T00:12"}, [12, 36]),
        ({"every": "24min", "start": "2014-01-01T00:01"}, [12, 36]),
        ({"every": "1D"}, [0]),
        ({"cadence": "1h"}, [0, 60]),
        ({"cadence": "24min", "tolerance": "1s"}, [0, 24, 48]),
        ({"cadence": None}, [0, 12, 24, 36, 48]),
        ({"cadence": "native", "tolerance": "12min"}, [0, 12, 24, 36, 48]),
        ({"cadence": None, "every": "30min"}, [0, 36]),
        ({"cadence": None, "every": "30min", "start": "2014-01-01T00:06"}, [12, 36]),
    ],
)
def test_selection(options, expected):
    source = Memory({"171A": minutes(48, 0, 24, 12, 36)})
    series = join([source], **options)
    assert offsets(series.time) == expected
    report = series.report
    assert sum(report.images_found.values()) == (
        report.images_used + report.images_dropped + report.duplicates + report.out_of_tolerance
        + report.unusable_times + report.not_selected
    )  # fmt: skip


@pytest.mark.parametrize("step", [360_000, 36_000, 12_000, 1])
@pytest.mark.parametrize("tolerance", [None, "1h"])
def test_native_keeps_every_image_of_any_rate(step, tolerance):
    source = Memory({"171A": [i * step for i in range(10)]})
    series = join([source], cadence="native", tolerance=tolerance)
    assert series.time.tolist() == [(ORIGIN + np.timedelta64(i * step, "ms")).item() for i in range(10)]
    assert series.report.duplicates == 0


def frames(sources, **options):
    """What each frame without a grid holds: channel and time in seconds."""
    series = join(sources, cadence="native", **options)
    seconds = (series.t_obs - ORIGIN) / np.timedelta64(1, "s")
    return [
        {c: s for c, s in zip(series.channels, row, strict=True) if not np.isnan(s)}
        for row in seconds.tolist()
    ]


def test_native_frames_of_channels_with_different_rates():
    source = Memory(
        {"171A": minutes(0, 6, 12, 18), "193A": minutes(0.1, 6.1, 12.1, 18.1), "Bz": minutes(-0.5, 11.5)}
    )
    assert frames([source]) == [
        {"171A": 0, "193A": 6, "Bz": -30},
        {"171A": 360, "193A": 366},
        {"171A": 720, "193A": 726, "Bz": 690},
        {"171A": 1080, "193A": 1086},
    ]  # fmt: skip


@pytest.mark.parametrize("lacks", [0, 1, 2])
@pytest.mark.parametrize("step", [12, 24, 360, 720])
def test_an_image_that_lacks_shifts_no_other_into_another_moment(lacks, step):
    # All one after the other, in an order that is not that of the channels.
    seconds = {"171A": 1.5, "193A": 0, "Bz": 3}
    whole = [{c: k * step + s for c, s in seconds.items()} for k in range(6)]
    del whole[2][list(seconds)[lacks]]
    source = Memory({c: [round(f[c] * 1000) for f in whole if c in f] for c in seconds})
    assert frames([source]) == whole


def test_evenly_spaced_images_with_jitter_make_whole_frames():
    rng = np.random.default_rng(0)
    times = 3000 * np.arange(4 * 50) + rng.integers(-500, 501, 4 * 50)
    source = Memory({c: times[i::4].tolist() for i, c in enumerate(("171A", "193A", "211A", "304A"))})
    series = join([source], cadence="native", missing="drop")
    assert (len(series), series.report.frames_dropped) == (50, 0)


def test_native_frames_end_at_the_longest_pause_within_tolerance():
    source = Memory(
        {"171A": minutes(0, 30), "193A": minutes(5, 35), "211A": minutes(5.5), "304A": minutes(6.5)}
    )
    assert frames([source]) == [
        {"171A": 0}, {"193A": 300, "211A": 330, "304A": 390}, {"171A": 1800, "193A": 2100},
    ]  # fmt: skip
    assert len(frames([source], tolerance="7min")) == 2
    assert len(frames([source], tolerance="10s")) == 6


def test_native_leaves_out_only_images_of_the_very_same_time():
    first = Memory({"171A": minutes(7, 0), "193A": minutes(0)})
    second = Memory({"171A": [420_001, 0], "193A": [1]}, url="second")
    series = join([first, second], cadence="native")
    assert frames([first, second]) == [
        {"171A": 0, "193A": 0}, {"193A": 0.001}, {"171A": 420}, {"171A": 420.001},
    ]  # fmt: skip
    assert series.report.duplicates == 1
    assert series._source[0].tolist() == [0, 0]


def test_native_clusters_images_of_one_moment():
    source = Memory({"171A": [100, 86_400_000], "193A": [12_345, 86_399_000], "Bz": [359_000]})
    series = join([source], cadence="native")
    assert series.time.tolist() == [(ORIGIN + np.timedelta64(ms, "ms")).item() for ms in (100, 86_399_000)]
    assert series.read(0, 2).valid.tolist() == [[True, True, True], [True, True, False]]


def test_drop_and_channels():
    source = Memory({"171A": minutes(0, 12, 24), "193A": minutes(12, 24, 24.1), "Bz": minutes(24)})
    series = join([source], missing="drop")
    assert offsets(series.time) == [24]
    assert (series.report.frames_dropped, series.report.images_dropped, series.report.images_used) == (
        2,
        3,
        3,
    )
    series = join([source], missing="drop", channels=["193", "AIA171"])
    assert series.channels == ("171A", "193A")
    assert offsets(series.time) == [12, 24]
    assert series.report.images_found == {"171A": 3, "193A": 3}
    assert join([source], channels=["Bz"]).time.size == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": ["94A", "Bz"]}, "memory: holds no 94A Bz; it holds 171A 193A"),
        ({"channels": []}, "no channel named"),
        ({"missing": "skip"}, "missing must be 'mask' or 'drop'"),
        ({"cadence": "often"}, "cadence 'often' is not a duration"),
        ({"tolerance": "0s"}, "tolerance '0s' must be longer than zero"),
        ({"every": "18min"}, "every 18min is not a multiple of the cadence 12min"),
        ({"start": "yesterday"}, "start 'yesterday' is not a date"),
        ({"start": "2014-02", "stop": "2014-02"}, "is not before stop"),
        ({"start": "2015"}, "chosen times; it holds images from 2014-01-01T00:00:00 to 2014-01-01T00:12"),
        ({"tolerance": "1s", "cadence": "1h", "start": "2014-01-01T00:30"}, "no image in the chosen times"),
        ({"missing": "drop"}, "no frame has all of 171A 193A .*images from 2014"),
        ({"size": 3}, "images of 4×4 cannot be averaged to 3×3; .* size .--size. must divide"),
        ({"size": 8}, "cannot be averaged to 8×8"),
        ({"size": 0}, "size must be at least 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(options, told):
    source = Memory({"171A": minutes(0), "193A": minutes(12)})
    with pytest.raises(InputError, match=told) as caught:
        join([source], **options)
    assert "\n" not in str(caught.value)


def test_no_source_and_no_times():
    with pytest.raises(InputError, match="no source"):
        join([])
    with pytest.raises(InputError, match="no image of 171A has a usable time"):
        join([Memory({"171A": [None, None]})])


def test_who_has_no_times_is_told_where_they_are_read_from(tmp_path):
    """As an xarray Dataset has them, of one variable a channel, in an array of their own."""
    write_v2(tmp_path / "s", {"171A": (np.ones((2, 8, 8)), {})})
    with pytest.raises(InputError, match=r"times are read from T_OBS of \.zattrs"):
        join([open_source(str(tmp_path / "s"))])


# --- properties -----------------------------------------------------------------------------------------

TIMES = st.lists(st.none() | st.integers(-3_600_000, 7_200_000), max_size=12)
SOURCES = st.lists(
    st.dictionaries(st.sampled_from(["171A", "193A", "Bz"]), TIMES, min_size=1), min_size=1, max_size=3
).filter(lambda ds: any(t is not None for d in ds for ts in d.values() for t in ts))
OPTIONS = st.fixed_dictionaries(
    {
        "cadence": st.sampled_from(["12min", "1min", "1h", None]),
        "tolerance": st.sampled_from([None, "90s", "6min"]),
        "missing": st.sampled_from(["mask", "drop"]),
        "start": st.sampled_from([None, "2013-12-31T23:30"]),
        "stop": st.sampled_from([None, "2014-01-01T01:05"]),
        "every": st.sampled_from([None, "1h"]),
    }
)


def report_of(sources, tolerance):
    report = join(sources, cadence=None, tolerance=tolerance).report
    return report.duplicates, report.out_of_tolerance


@settings(max_examples=150, deadline=None)
@given(SOURCES, OPTIONS)
def test_every_frame_holds_what_belongs_to_it(described, options):
    sources = [Memory(d) for d in described]
    try:
        series = join(sources, **options)
    except InputError:
        return
    cadence = {"12min": 720_000, "1min": 60_000, "1h": 3_600_000, None: None}[options["cadence"]]
    reach = {"90s": 90_000, "6min": 360_000, None: 360_000 if cadence is None else cadence // 2}[
        options["tolerance"]
    ]
    ms = series.time.astype(np.int64)
    assert (np.diff(ms) > 0).all()
    held = ~np.isnat(series.t_obs)
    assert held.any(axis=1).all()
    if options["missing"] == "drop":
        assert held.all()
    if cadence is not None:
        assert (ms % cadence == 0).all()
    else:
        # Nothing is lost but what is there twice.
        there = {(c, t) for d in described for c, ts in d.items() for t in ts if t is not None}
        many = sum(len([t for t in ts if t is not None]) for d in described for ts in d.values())
        assert report_of(sources, options["tolerance"]) == (many - len(there), 0)
    off = np.abs((series.t_obs - series.time[:, None]).astype(np.int64))[held]
    assert (off <= reach).all()
    used = [(int(s), c, int(r)) for row in zip(series._source, series._row, strict=True)
            for c, (s, r) in enumerate(zip(*row, strict=True)) if s >= 0]  # fmt: skip
    assert len(used) == len(set(used)) == series.report.images_used == held.sum()
    for t, c in zip(*np.nonzero(held), strict=True):
        source = sources[series._source[t, c]]
        assert source.times(series.channels[c])[series._row[t, c]] == series.t_obs[t, c]
    report = series.report
    assert sum(report.images_found.values()) == (
        report.images_used + report.images_dropped + report.duplicates + report.out_of_tolerance
        + report.unusable_times + report.not_selected
    )  # fmt: skip
    if cadence is not None and options["missing"] == "mask" and options["every"] is None:
        # By brute force: for every slot and channel the least distance of any image is that of the one used.
        for j, name in enumerate(series.channels):
            all_ms = np.concatenate(
                [s.times(name)[~np.isnat(s.times(name))] for s in sources if name in s.channels]
            ).astype(np.int64)
            for t, nominal in enumerate(ms.tolist()):
                near = np.abs(all_ms - nominal)
                near = near[(near <= reach) & (2 * near <= cadence)]
                if held[t, j]:
                    assert abs(int(series.t_obs[t, j].astype(np.int64)) - nominal) == near.min()


@settings(max_examples=80, deadline=None)
@given(SOURCES, OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_store_changes_nothing(described, options, random):
    mixed = [{c: random.sample(ts, len(ts)) for c, ts in d.items()} for d in described]

    def dated(d):
        return Memory(
            d, images={(c, r): image((t or 0) % 89, 4) for c, ts in d.items() for r, t in enumerate(ts)}
        )

    def plan(ds):
        try:
            series = join([dated(d) for d in ds], **options)
        except InputError as error:
            return str(error)
        return series.fingerprint(), series.report.as_dict()

    assert plan(described) == plan(mixed)


# --- what is read ---------------------------------------------------------------------------------------


def test_images_without_measurement_are_missing_and_counted_once():
    nan, zero = np.full((4, 4), np.nan), np.zeros((4, 4))
    some, negative = image(1, 4), np.full((4, 4), -1.0)
    some[0, 0], some[1, 1] = np.nan, np.inf
    dead = np.where(np.eye(4) > 0, np.nan, 0)
    source = Memory(
        {"171A": minutes(0, 12, 24, 36, 48, 60), "Bz": minutes(0, 12)},
        images={("171A", 0): nan, ("171A", 1): zero, ("171A", 2): some, ("171A", 3): np.full((4, 4), -np.inf),
                ("171A", 4): dead, ("171A", 5): negative, ("Bz", 0): zero, ("Bz", 1): nan},
    )  # fmt: skip
    series = join([source])
    for _ in range(2):
        cube = series.read(0, 6)
    assert cube.valid.T.tolist() == [[False, False, True, False, False, True], [True] + [False] * 5]
    assert np.isnan(cube.data[2, 0]).sum() == 2
    assert not np.isinf(cube.data).any()
    np.testing.assert_array_equal(cube.data[0, 1], zero)
    assert cube.headers[0][0] == {}
    np.testing.assert_array_equal(np.isnat(cube.t_obs), ~cube.valid)
    assert series.report.odd == {"image without a measurement": 5, "image with infinite pixels": 2}
    assert np.isnan(source.images["171A", 2][0, 0])
    assert np.isinf(source.images["171A", 2][1, 1])


@pytest.mark.parametrize("fill", [1e9, -1e20, 9.96921e36, np.finfo(np.float32).max])
def test_what_programs_write_for_missing_pixels_is_missing_and_counted(fill: float):
    some = image(1, 4)
    some[1, 2] = fill
    source = Memory(
        {"171A": minutes(0, 12), "Bz": minutes(0)},
        images={("171A", 0): some, ("171A", 1): np.full((4, 4), fill), ("Bz", 0): np.full((4, 4), 9e8)},
    )
    series = join([source])
    cube = series.read(0, 2)
    assert cube.valid.tolist() == [[True, True], [False, False]]
    assert np.argwhere(np.isnan(cube.data[0])).tolist() == [[0, 1, 2]]
    assert series.report.odd == {"image without a measurement": 1, "image with pixels of 1e+09 or more": 2}


def test_whole_leaves_out_frames_in_which_an_image_holds_no_measurement():
    nan, zero = np.full((4, 4), np.nan), np.zeros((4, 4))
    infinite = np.where(np.eye(4) > 0, np.inf, 1)
    # Rows are shuffled, differently in each channel.
    source = Memory(
        {"171A": minutes(48, 0, 12, 24, 36, 60), "Bz": minutes(0, 48, 36, 24, 12)},
        images={("171A", 1): infinite, ("171A", 2): zero, ("171A", 0): infinite, ("Bz", 1): nan,
                ("Bz", 0): zero, ("Bz", 4): nan},
    )  # fmt: skip
    series = join([source], missing="drop")
    assert (series.missing, offsets(series.time)) == ("drop", [0, 12, 24, 36, 48])
    told = []
    with watching(lambda *step: told.append(step)):
        whole = series.whole()
    assert told == [("reading all images", n, 10) for n in told and sorted({done for _, done, _ in told})]
    assert told[-1][1] == 10
    assert (whole.missing, offsets(whole.time)) == ("drop", [0, 24, 36])
    assert whole.fingerprint() != series.fingerprint()
    for _ in range(2):
        cube = whole.read(0, 3)
        assert cube.valid.all()
        assert [[h["ROW"] for h in frame] for frame in cube.headers] == [[1, 0], [3, 3], [4, 2]]
        assert whole.report.as_dict() == {
            "frames": 3, "frames_dropped": 3, "images_found": {"171A": 6, "Bz": 5}, "images_used": 6,
            "images_dropped": 5, "duplicates": 0, "out_of_tolerance": 0, "unusable_times": 0,
            "not_selected": 0, "odd": {"image without a measurement": 3, "image with infinite pixels": 2},
        }  # fmt: skip
    assert offsets(whole.whole().time) == [0, 24, 36]
    some = join([source], missing="drop").whole(np.array([False, True, False, False, False]))
    assert offsets(some.time) == [0, 24, 36, 48]
    with pytest.raises(InputError, match="no frame has measurements in all of 171A Bz; keep incomplete ones"):
        join([source], missing="drop", start="2014-01-01T00:48").whole()


def test_whole_reads_each_chunk_once_however_rows_are_shuffled(tmp_path, monkeypatch):
    order = np.random.default_rng(0).permutation(60)
    data = np.stack([image(i + 1) for i in range(60)])
    write_v2(
        tmp_path / "s",
        {f"2014/{name}": (data, {"T_OBS": aia_times(12.0 * order)}) for name in ("171A", "193A")},
    )
    decoded = []
    decode = sdoml_v2._decode
    monkeypatch.setattr(
        sdoml_v2, "_decode", lambda a, path, raw: decoded.append(path) or decode(a, path, raw)
    )
    assert len(join([open_source(str(tmp_path / "s"))], missing="drop").whole()) == 60
    assert len(decoded) == len(set(decoded)) == 2 * 60 // 15


@pytest.mark.parametrize("at_once", [1, 4])
def test_as_many_images_are_read_side_by_side_as_a_source_allows(at_once):
    busy, most, lock = Counter(), Counter(), threading.Lock()

    class Slow(Memory):
        def read(self, channel, row):
            with lock:
                busy.update(all=1)
                most.update(all=max(0, busy["all"] - most["all"]))
            time.sleep(0.02)
            with lock:
                busy.subtract(all=1)
            return super().read(channel, row)

    source = Slow({"171A": minutes(0, 12, 24, 36), "Bz": minutes(0, 12, 24, 36)})
    source.at_once = at_once
    cube = join([source]).read(0, 4)
    assert [[h["ROW"] for h in frame] for frame in cube.headers] == [[t, t] for t in range(4)]
    assert most["all"] == at_once


def test_the_first_image_in_order_that_cannot_be_read_is_told():
    class Broken(Memory):
        at_once = 4

        def read(self, channel, row):
            if row in (2, 3):
                time.sleep(0.05 * (4 - row))
                raise InputError(f"row {row} cannot be read")
            return super().read(channel, row)

    with pytest.raises(InputError, match="row 2 cannot"):
        join([Broken({"171A": minutes(*range(0, 120, 12))})]).read(0, 10)


def test_scale_is_that_of_the_first_source():
    mean = Memory({"171A": minutes(0), "Bz": minutes(0)})
    total = Memory({"171A": minutes(12), "Bz": minutes(12)}, scale=Scale.SUM)
    for first, second, factor in ((mean, total, 0.25), (total, mean, 4)):
        series = join([first, second])
        assert series.scale is first.scale
        cube = series.read(0, 2)
        assert cube.scale is first.scale
        other = 1 if first is mean else 0
        np.testing.assert_array_equal(cube.data[other, 0], image(1, 4) * factor)
        np.testing.assert_array_equal(cube.data[1 - other, 0], image(1, 4))
        np.testing.assert_array_equal(cube.data[other, 1], image(1, 4))


def test_size_averages_and_sums_stay_sums():
    big = image(3, 8)
    big[:2, :2] = np.nan
    big[2, 0] = np.nan
    keys = {
        "CDELT1": 4.8,
        "CRPIX1": 256.5,
        "NAXIS1": 512,
        "NAXIS2": 512.0,
        "R_SUN": 200.0,
        "QUALITY": 0,
        "X": "1",
    }
    sources = [
        Memory({"171A": minutes(0)}, size=8, images={("171A", 0): big}, header=keys, scale=Scale.SUM),
        Memory({"193A": minutes(0)}, size=4, scale=Scale.SUM),
    ]
    with pytest.raises(
        InputError, match=r"image sizes differ .*8×8.*4×4.*; bring them to a common one with size"
    ):
        join(sources)
    assert join(sources, channels=["171A"]).shape == (8, 8)
    series = join(sources, size=4)
    assert series.shape == (4, 4)
    cube = series.read(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the block that holds nothing
        expected = np.nanmean(big.reshape(4, 2, 4, 2), axis=(1, 3))
    assert np.isnan(cube.data[0, 0, 0, 0])
    np.testing.assert_allclose(cube.data[0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(cube.data[0, 1], image(1, 4))
    assert cube.headers[0][0] == {
        "ROW": 0, "CDELT1": 9.6, "CRPIX1": 128.5, "NAXIS1": 256, "NAXIS2": 256.0, "R_SUN": 100.0,
        "QUALITY": 0, "X": "1",
    }  # fmt: skip
    assert cube.headers[0][1] == {"ROW": 0}


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_block_mean_by_hand(factor, y, x, seed):
    rng = np.random.default_rng(seed)
    full = rng.normal(size=(y * factor, x * factor)).astype(np.float32)
    full[rng.random(full.shape) < 0.3] = np.nan
    got = block_mean(full, factor)
    assert got.dtype == np.float32
    for j in range(y):
        for i in range(x):
            block = full[j * factor : (j + 1) * factor, i * factor : (i + 1) * factor]
            known = block[np.isfinite(block)]
            expected = known.mean() if known.size else np.nan
            np.testing.assert_allclose(got[j, i], expected, rtol=1e-5, atol=1e-6)


def test_reduced_header_keeps_the_place_on_the_sky():
    header = {"CRPIX1": 256.5, "CDELT1": 4.8, "CRVAL1": 0.0, "NAXIS1": 512}
    small = resized_header(header, 4)
    # The left edge of the image, at pixel 0.5, stays where it was.
    edges = [(0.5 - h["CRPIX1"]) * h["CDELT1"] for h in (header, small)]
    assert edges[0] == edges[1]
    assert header["NAXIS1"] == 512
    assert resized_header({"CDELT1": None, "NAXIS1": True, "R_SUN": "x"}, 2) == {
        "CDELT1": None, "NAXIS1": True, "R_SUN": "x",
    }  # fmt: skip


def test_numbers_beyond_all_floats_are_of_no_pixel():
    header = {"CRPIX1": 10**400, "R_SUN": -(10**400), "CDELT1": 10**400}
    assert resized_header(header, 2) == header | {"CDELT1": 2 * 10**400}


def test_wrong_size_of_one_image():
    source = Memory({"171A": minutes(0)}, images={("171A", 0): np.zeros((2, 2))}, url="odd.h5")
    with pytest.raises(InputError, match=r"odd\.h5: image 0 of 171A is 2×2, the others are 4×4"):
        join([source]).read(0, 1)


def test_frames_that_do_not_exist():
    series = join([Memory({"171A": minutes(0)})])
    assert series.read(0, 0).data.shape == (0, 1, 4, 4)
    for a, b in ((-1, 1), (0, 2), (1, 0)):
        with pytest.raises(IndexError):
            series.read(a, b)


def test_stored_bytes_are_the_used_share():
    one = Memory({"171A": minutes(0, 12, 24, 36)}, stored=1000)
    two = Memory({"Bz": minutes(0, 500)}, stored=10, url="two")
    unknown = Memory({"Bx": minutes(0)}, url="three")
    assert join([one]).stored_bytes == 1000
    assert join([one, two], stop="2014-01-01T00:24").stored_bytes == 500 + 5
    assert join([one, unknown]).stored_bytes is None
    assert join([one, unknown], channels=["171A"]).stored_bytes == 1000


def test_fingerprint_tells_plans_apart():
    source = Memory({"171A": minutes(0, 12), "Bz": minutes(0, 12)}, size=8)
    plans = [
        join([source]), join([source], stop="2014-01-01T00:12"), join([source], channels=["Bz"]),
        join([source], size=4), join([Memory({"171A": minutes(0, 12.1), "Bz": minutes(0, 12)}, size=8)]),
        join([Memory({"171A": minutes(0, 12), "Bz": minutes(0, 12)}, size=8, scale=Scale.SUM)]),
        join([Memory({"171A": minutes(0, 12), "Bz": minutes(0, 12)}, size=8,
                     images={("Bz", 0): image(9, 8)})]),
    ]  # fmt: skip
    assert len({p.fingerprint() for p in plans}) == len(plans)
    assert plans[0].fingerprint() == join([source]).fingerprint()


def test_threads_and_pickle():
    source = Memory({"171A": minutes(*range(0, 600, 12)), "Bz": minutes(*range(0, 600, 24))})
    series = pickle.loads(pickle.dumps(join([source])))
    whole = series.read(0, len(series))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda t: series.read(t, t + 1), range(len(series))))
    np.testing.assert_array_equal(np.concatenate([p.data for p in parts]), whole.data)
    assert "50 frames 2014-01-01" in repr(series)


def test_years_of_all_channels_within_seconds():
    n = 100_000
    base = np.arange(n, dtype=np.int64) * 720_000

    class Large(Memory):
        def times(self, channel):
            rng = np.random.default_rng(NAMES.index(channel))
            return (ORIGIN + (base + rng.integers(0, 20_000, n)))[rng.permutation(n)]

    begin = time.process_time()
    series = join([Large({c: [0] for c in NAMES})])
    assert time.process_time() - begin < 10
    assert len(series) == n
    assert series.report.images_used == 12 * n


# --- with real layouts ----------------------------------------------------------------------------------


def test_v2_in_the_manners_of_the_wild(tmp_path):
    """N differs per channel, shuffled axes, short lists, None, duplicates, TAI, an absent chunk."""
    rng = np.random.default_rng(1)
    order = {c: rng.permutation(n) for c, n in (("171A", 20), ("193A", 18))}
    arrays = {}
    for channel, axis in order.items():
        data = np.stack([image(i + 1) for i in axis])
        arrays[f"2014/{channel}"] = (
            data,
            {"T_OBS": aia_times(12.0 * axis + 0.1), "EXPTIME": (axis * 1.0).tolist()},
        )
    data, keys = arrays["2014/193A"]
    data[list(order["193A"]).index(3)] = np.nan
    keys["T_OBS"][list(order["193A"]).index(5)] = None
    data, keys = arrays["2014/171A"]
    keys["T_OBS"][list(order["171A"]).index(19)] = aia_times([12.0 * 18 + 0.2])[
        0
    ]  # a second image of frame 18
    bz = [f"2014.01.01_{m // 60:02d}:{m % 60:02d}:60_TAI" for m in range(0, 240, 12)]
    arrays["2014/Bz"] = (np.stack([image(-i - 1) for i in range(20)]), {"T_OBS": bz[:19]})
    write_v2(tmp_path / "s", arrays)
    (tmp_path / "s/2014/Bz/0.0.0").unlink()
    series = join([open_source(str(tmp_path / "s"))])
    assert offsets(series.time) == [12.0 * i for i in range(19)]
    cube = series.read(0, 19)
    assert np.flatnonzero(~cube.valid[:, 0]).tolist() == []
    assert np.flatnonzero(~cube.valid[:, 1]).tolist() == [3, 5, 18]
    assert np.flatnonzero(cube.valid[:, 2]).tolist() == [15, 16, 17, 18]
    for t in range(19):
        np.testing.assert_array_equal(cube.data[t, 0], image(t + 1))
        assert cube.headers[t][0]["EXPTIME"] == t
    assert series.report.odd == {
        "keyword list too short": 1, "keyword value None": 1, "T_OBS missing": 2, "chunk absent": 1,
        "image without a measurement": 1 + 15,
    }  # fmt: skip
    assert series.report.unusable_times == 2
    assert series.report.duplicates == 1


def test_v1_and_v2_joined(tmp_path):
    write_v2(tmp_path / "v2", {"2013/171A": (image(1)[None], {"T_OBS": ["2013-11-25T08:24:11.34Z"]})})
    write_v1(tmp_path / "v1/AIA20131125_0824_0193.npz", 40)
    write_v1(tmp_path / "v1/AIA20131125_0836_0171.npz", 40)
    write_v1(tmp_path / "v1/HMI20131125_0824_bz.npz", -7)
    series = join([open_source(str(tmp_path / n)) for n in ("v2", "v1")])
    assert series.layouts == ("sdoml-v2", "sdoml-v1")
    assert series.scale is Scale.MEAN
    cube = series.read(0, 2)
    assert cube.valid.tolist() == [[True, True, True], [True, False, False]]
    np.testing.assert_array_equal(cube.data[0, 0], image(1))
    np.testing.assert_array_equal(cube.data[0, 1], image(40) / 4)
    np.testing.assert_array_equal(cube.data[0, 2], image(-7))


def test_a_damaged_file_is_left_out_and_told(tmp_path):
    """As FITS files are that are found so while indexing: one of a million ended a run of days."""
    for minute in ("24", "36", "48"):
        write_v1(tmp_path / f"AIA20131125_08{minute}_0193.npz", 40)
    (tmp_path / "AIA20131125_0836_0193.npz").write_bytes(b"PK")
    series = join([open_source(str(tmp_path))])
    assert not series.holds(1, 0)
    cube = series.read(0, 3)
    assert cube.valid.ravel().tolist() == [True, False, True]
    assert np.isnan(cube.data[1]).all()
    told = {"image that is damaged (the first: 193A of 2013-11-25 08:36:00)": 1}
    assert series.report.odd == told
    other = join([open_source(str(tmp_path))])
    other.note(series.notes(0, 3))
    assert other.report.odd == told
    assert other.unreadable == 1
    whole = join([open_source(str(tmp_path))], missing="drop").whole()
    assert len(whole) == 2
    assert whole.report.odd == told


def test_a_damaged_file_that_is_the_source_is_told_by_name(tmp_path):
    write_v1(path := tmp_path / "AIA20131125_0824_0193.npz", 40)
    series = join([open_source(str(path))])
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"0824_0193\.npz: is no readable npz"):
        series.read(0, 1)


def test_a_file_that_is_gone_or_want_of_memory_is_no_damage(tmp_path, monkeypatch):
    for minute in ("24", "36"):
        write_v1(tmp_path / f"AIA20131125_08{minute}_0193.npz", 40)
    series = join([open_source(str(tmp_path))])

    def short(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("sunzip.sources.sdoml_v1._read_npz", short)
        with pytest.raises(MemoryError):
            series.read(1, 2)
    (tmp_path / "AIA20131125_0836_0193.npz").unlink()
    with pytest.raises(InputError, match="is gone since the folder was listed"):
        series.read(0, 2)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the real data are not here")
def test_real_store_becomes_30_frames():
    series = join([open_source(str(REAL / "sdomlv2_real.zarr"))])
    assert len(series) == 30
    assert series.time[:29].astype("datetime64[m]").astype(str).tolist() == [
        f"2017-01-{d:02d}T23:00" for d in range(3, 32)
    ]
    assert str(series.time[29]) == "2024-10-04T16:12:00.000"
    assert series.report.images_used == 29 + 8
    assert series.report.duplicates == 0
    cube = series.read(28, 30)
    assert cube.valid.sum(axis=1).tolist() == [1, 8]
    assert series.report.odd == {}
    assert cube.headers[1][1]["WAVELNTH"] == 171
    only = join([open_source(str(REAL / "sdomlv2_real.zarr"))], missing="drop", size=128)
    assert (len(only), only.shape) == (1, (128, 128))
    np.testing.assert_allclose(np.nanmean(only.read(0, 1).data), cube.data[1].mean(), rtol=1e-5)
