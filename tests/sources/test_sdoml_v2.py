"""SDOML v2 stores as they are found, and broken ones."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numcodecs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stores import REAL, aia_times, image, write_v2

from sunzip.channels import NAMES
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sources import open_source, sdoml_v2
from sunzip.sources.sdoml_v2 import SdomlV2, _pack
from sunzip.sources.series import join
from sunzip.sources.storage import AT_ONCE, Storage

#: S3's own client has but ten connections.
MANY = {"config_kwargs": {"max_pool_connections": AT_ONCE}}


def plain(n, first=0, **attributes):
    """n images with values first, first + 1 … and AIA times 12 minutes apart."""
    data = np.stack([image(first + i + 1) for i in range(n)])
    return data, {"T_OBS": aia_times(12.0 * i for i in range(n)), **attributes}


@pytest.fixture
def store(tmp_path):
    """Two years, arrays of different lengths, keywords odd in every known way."""
    root = tmp_path / "sdoml.zarr"
    data, keys = plain(
        20,
        EXPTIME=[2.0 + i / 10 for i in range(18)],  # too short
        QUALITY=[0] * 25,  # too long
        DEG_COR=[None if i % 3 == 0 else 0.5 for i in range(20)],
        WAVEUNIT=["angstrom"] * 20,
        BLANKS=[i % 2 == 0 for i in range(20)],
        LVL_NUM=1.5,
        ORIGIN="SDO/JSOC-SDP",
        _ARRAY_DIMENSIONS=["time", "y", "x"],
        NESTED={"a": 1},
    )
    keys["T_OBS"] = [*keys["T_OBS"][:10], None, "MISSING", *keys["T_OBS"][12:19]]
    write_v2(
        root,
        {
            "2014/171A": (data, keys),
            "2014/193A": plain(7),
            "2014/Bz": (image(5)[None], {"T_OBS": ["2014.01.01_00:00:60_TAI"]}),
            "2015/171A": (plain(3, first=100)[0], {}),
        },
    )
    return root


def test_channels_times_and_counts(store):
    source = SdomlV2(str(store))
    assert source.channels == ("171A", "193A", "Bz")
    assert (source.shape, source.scale, source.layout) == ((8, 8), Scale.MEAN, "sdoml-v2")
    times = source.times("171A")
    assert times.shape == (23,)
    assert times.dtype == np.dtype("datetime64[ms]")
    assert np.flatnonzero(np.isnat(times)).tolist() == [10, 11, 19, 20, 21, 22]
    assert source.times("Bz").astype(str).tolist() == ["2014-01-01T00:00:25.000"]
    assert source.counts == {
        "keyword list too short": 2,  # EXPTIME and T_OBS
        "keyword list too long": 1,
        "keyword value None": 8,  # 7 of DEG_COR, 1 of T_OBS
        "T_OBS missing": 1 + 1 + 3,
        "T_OBS unreadable": 1,
    }


def test_reads_every_row_of_every_year(store):
    source = SdomlV2(str(store))
    for row in np.random.default_rng(0).permutation(23).tolist():
        value = row + 1 if row < 20 else row - 20 + 101
        got = source.read("171A", row)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, image(value))
    with pytest.raises(IndexError):
        source.read("171A", 23)
    with pytest.raises(IndexError):
        source.header("171A", -1)


def test_an_image_read_is_the_readers_own(store):
    source = SdomlV2(str(store))
    source.read("171A", 0)[:] = 0
    np.testing.assert_array_equal(source.read("171A", 0), image(1))


def test_keyword_lists_are_looked_at_as_a_whole(tmp_path):
    """A year of a channel has ten million values; a call for each was half the time of opening."""
    root, n = tmp_path / "sdoml.zarr", 50
    data, keys = plain(n)
    lists = {f"K{i}": [float(i)] * n for i in range(200)}
    write_v2(root, {"2014/171A": (data, keys | lists)})
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.endswith("sdoml_v2.py")

    sys.setprofile(count)
    try:
        header = SdomlV2(str(root)).header("171A", 7)
    finally:
        sys.setprofile(None)
    assert header["K123"] == 123.0
    assert calls < len(lists) * n / 4


def test_header_is_exactly_as_stored(store):
    source = SdomlV2(str(store))
    header = source.header("171A", 1)
    assert header == {
        "T_OBS": "2014-01-01T00:12:00.000Z", "EXPTIME": 2.1, "QUALITY": 0, "DEG_COR": 0.5,
        "WAVEUNIT": "angstrom", "BLANKS": False, "LVL_NUM": 1.5, "ORIGIN": "SDO/JSOC-SDP",
    }  # fmt: skip
    assert {k: type(v) for k, v in header.items()} == {
        "T_OBS": str, "EXPTIME": float, "QUALITY": int, "DEG_COR": float, "WAVEUNIT": str,
        "BLANKS": bool, "LVL_NUM": float, "ORIGIN": str,
    }  # fmt: skip
    assert "DEG_COR" not in source.header("171A", 0)
    assert "EXPTIME" not in source.header("171A", 19)
    assert source.header("171A", 21) == {}


@given(
    st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5))
    | st.lists(st.floats())
    | st.lists(st.integers(-(2**63), 2**63))
)
@example([None, 0.0, -0.0])
def test_packed_keywords_come_out_as_they_went_in(column):
    packed = _pack(column)
    out = [v.item() if isinstance(v, np.generic) else v for v in packed]
    assert [(type(v), repr(v)) for v in out] == [(type(v), repr(v)) for v in column]


def test_one_year_group_or_bare_arrays(store):
    year = SdomlV2(str(store / "2014"))
    assert year.channels == ("171A", "193A", "Bz")
    assert len(year.times("171A")) == 20
    np.testing.assert_array_equal(year.read("171A", 19), image(20))


def test_second_store_for_hmi(store, tmp_path):
    write_v2(
        tmp_path / "hmi.zarr",
        {
            f"2014/{c}": (image(i)[None], {"T_OBS": ["2014.01.01_00:12:00_TAI"]})
            for i, c in enumerate(["Bx", "Bz"])
        },
    )
    source = open_source(str(store), hmi=str(tmp_path / "hmi.zarr"))
    assert source.channels == ("171A", "193A", "Bx", "Bz")
    assert len(source.times("Bz")) == 2
    np.testing.assert_array_equal(source.read("Bz", 0), image(5))
    np.testing.assert_array_equal(source.read("Bz", 1), image(1))


def test_memory_url_and_pickle(store):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/v2/sdoml.zarr", recursive=True)
    try:
        local, remote = SdomlV2(str(store)), open_source("memory://v2/sdoml.zarr")
        assert remote.counts == local.counts
        assert remote.stored_bytes() == local.stored_bytes()
        remote = pickle.loads(pickle.dumps(remote))
        np.testing.assert_array_equal(remote.times("171A"), local.times("171A"))
        np.testing.assert_array_equal(remote.read("171A", 17), local.read("171A", 17))
        assert remote.header("171A", 17) == local.header("171A", 17)
    finally:
        memory.rm("/v2", recursive=True)


def test_zipped_store_through_a_chained_url(store):
    zipped = shutil.make_archive(str(store), "zip", store)
    source = open_source(f"zip://::file://{zipped}")
    assert source.channels == ("171A", "193A", "Bz")
    np.testing.assert_array_equal(source.read("171A", 17), image(18))
    assert source.stored_bytes() == SdomlV2(str(store)).stored_bytes()


@pytest.mark.parametrize(
    ("url", "anon", "options"),
    [
        ("s3://bucket/x", True, {"anon": True, **MANY}),
        ("s3://bucket/x", False, MANY),
        ("zip::s3://bucket/x.zip", True, {"s3": {"anon": True, **MANY}}),
        ("gs://bucket/x", True, {"token": "anon"}),
    ],
)
def test_anonymous_access_is_asked_for_where_it_has_a_meaning(monkeypatch, url, anon, options):
    asked = []

    def refuse(url, **options):
        asked.append((url, options))
        raise PermissionError("Access Denied\nby the test")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(InputError, match=r"x(\.zip)?: cannot be opened: access is denied .Access Denied.; "):
        open_source(url, anon=anon)
    assert asked == [(url, options)]


def test_protocol_whose_package_is_not_installed(monkeypatch):
    def refuse(url, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(
        InputError, match="s3://b/x: this kind of store needs a further package: Install s3fs"
    ):
        open_source("s3://b/x")


def test_stored_bytes_are_those_of_the_chunks(store):
    chunks = [p for p in store.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert len(chunks) == 2 + 1 + 1 + 1
    assert SdomlV2(str(store)).stored_bytes() == sum(p.stat().st_size for p in chunks)


def test_chunks_of_a_far_store_are_counted_side_by_side(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    write_v2(tmp_path / "s", {f"{year}/171A": plain(6) for year in (2013, 2014, 2015)})
    source = SdomlV2(str(tmp_path / "s"))
    size = source.stored_bytes()
    together, real = threading.Barrier(3, timeout=20), LocalFileSystem.find
    monkeypatch.setattr(Storage, "at_once", AT_ONCE)
    monkeypatch.setattr(LocalFileSystem, "find", lambda *a, **k: (together.wait(), real(*a, **k))[1])
    assert source.stored_bytes() == size > 0


def test_absent_chunk_is_missing_and_counted_once(store):
    (store / "2014/171A/1.0.0").unlink()
    source = SdomlV2(str(store))
    for _ in range(2):
        assert np.isnan(source.read("171A", 16)).all()
        np.testing.assert_array_equal(source.read("171A", 0), image(1))
    assert len(source.absent) == 1


def test_what_is_gone_since_the_source_was_opened_is_not_taken_for_absent(store):
    """As when the disk is unmounted amid a long job: the rest would be archived as images without pixels."""
    source = SdomlV2(str(store))
    source.read("171A", 0)
    store.rename(store.with_name("moved"))
    with pytest.raises(InputError, match=r"2014/171A: is gone since the source was opened; look whether"):
        source.read("171A", 16)
    assert not source.absent


def test_a_part_of_an_image_that_is_gone_is_not_taken_for_left_out(tmp_path):
    write_v2(tmp_path / "s", {"Bz": plain(2)}, chunks=(1, 4, 4))
    source = SdomlV2(str(tmp_path / "s"))
    for name in (".zarray", "0.1.1"):
        (tmp_path / "s/Bz" / name).unlink()
    with pytest.raises(InputError, match="Bz: is gone"):
        source.read("Bz", 0)


@pytest.mark.parametrize("change", ["gone", "turned", "grown"])
def test_keywords_that_are_of_other_rows_by_now_are_refused(store, change):
    """A worker reads them anew; those that a store has got since are at the end."""
    source = pickle.loads(pickle.dumps(SdomlV2(str(store))))
    path = store / "2014/171A/.zattrs"
    told = json.loads(path.read_text())
    if change == "gone":
        path.unlink()
    elif change == "turned":
        path.write_text(json.dumps(told | {"T_OBS": told["T_OBS"][::-1]}))
    else:
        # The last row of the array had none.
        path.write_text(json.dumps(told | {"T_OBS": [*told["T_OBS"], *aia_times([300, 312])]}))
        assert source.header("171A", 1)["T_OBS"] == told["T_OBS"][1]
        return
    with pytest.raises(InputError, match=r"171A/\.zattrs: is gone, or tells of other images.*start again"):
        source.header("171A", 1)


@pytest.mark.parametrize("fill", [0.0, None, "NaN", -1])
def test_a_part_that_zarr_left_out_of_an_image_is_what_it_stands_for(tmp_path, fill):
    data, keys = plain(2)
    write_v2(tmp_path / "s", {"Bz": (data, keys)}, chunks=(1, 4, 4))
    (tmp_path / "s/Bz/0.0.1").unlink()
    meta = tmp_path / "s/Bz/.zarray"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "fill_value": fill}))
    data[0, :4, 4:] = 0 if fill == 0 else np.nan
    source = SdomlV2(str(tmp_path / "s"))
    np.testing.assert_array_equal([source.read("Bz", row) for row in (0, 1)], data)


@pytest.mark.parametrize(("dtype", "fill"), [("<f4", -9999.9), (">f4", -1), ("<f2", -200), ("<f8", 1e300)])
def test_pixels_of_a_fill_value_are_no_measurement(tmp_path, dtype, fill):
    """As xarray writes NaN where it is told a `_FillValue`."""
    data, keys = plain(2)
    data[0, 2], data[1, 3, 3] = 0, np.nan
    stored = np.where(np.isnan(data), fill, data.astype("f8"))
    write_v2(tmp_path / "s", {"171A": (stored, keys)}, dtype=dtype)
    meta = tmp_path / "s/171A/.zarray"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "fill_value": fill}))
    source = SdomlV2(str(tmp_path / "s"))
    np.testing.assert_array_equal(
        [source.read("171A", row) for row in (0, 1)], data.astype(dtype).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("chunks", [(15, 8, 8), (120, 8, 8), (1, 8, 8), (4, 3, 8), (4, 8, 5)])
def test_any_float_dtype_and_chunking(tmp_path, dtype, chunks):
    data, keys = plain(7)
    write_v2(tmp_path / "s", {"2014/171A": (data, keys)}, chunks=chunks, dtype=dtype)
    source = SdomlV2(str(tmp_path / "s"))
    for row in (6, 0, 3):
        np.testing.assert_array_equal(source.read("171A", row), data[row].astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    "codec",
    [
        numcodecs.Zstd(3),
        numcodecs.LZ4(),
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.Blosc("lz4", 1, numcodecs.Blosc.NOSHUFFLE),
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 2, 40])
def test_any_usual_compressor(tmp_path, codec, n):
    data, keys = plain(n)
    write_v2(tmp_path / "s", {"171A": (data, keys)}, compressor=codec, chunks=(n, 8, 8))
    source = SdomlV2(str(tmp_path / "s"))
    np.testing.assert_array_equal(source.read("171A", n - 1), data[-1])


@pytest.mark.parametrize("codec", [numcodecs.Zstd(3), numcodecs.LZ4(), numcodecs.Blosc()], ids=str)
def test_compressors_of_other_releases_of_numcodecs(tmp_path, codec):
    """Releases add parameters to their codecs, as `checksum` and `typesize`; they tell how to compress."""
    data, keys = plain(2)
    write_v2(tmp_path / "s", {"171A": (data, keys)}, compressor=codec)
    meta = tmp_path / "s/171A/.zarray"
    tree = json.loads(meta.read_text())
    tree["compressor"] |= {"effort": 3}
    meta.write_text(json.dumps(tree))
    np.testing.assert_array_equal(SdomlV2(str(tmp_path / "s")).read("171A", 1), data[1])


def test_fortran_order_slash_separator_and_no_compressor(tmp_path):
    data, keys = plain(5)
    write_v2(
        tmp_path / "s",
        {"171A": (data, keys)},
        order="F",
        chunk_key_encoding={"name": "v2", "separator": "/"},
        chunks=(2, 8, 4),
    )
    meta = tmp_path / "s/171A/.zarray"
    assert json.loads(meta.read_text())["order"] == "F"
    source = SdomlV2(str(tmp_path / "s"))
    np.testing.assert_array_equal(source.read("171A", 3), data[3])
    raw = {**json.loads(meta.read_text()), "compressor": None, "order": "C", "chunks": [5, 8, 8]}
    shutil.rmtree(tmp_path / "s/171A")
    (tmp_path / "s/171A/0/0").mkdir(parents=True)
    meta.write_text(json.dumps(raw))
    (tmp_path / "s/171A/0/0/0").write_bytes(data.tobytes())
    np.testing.assert_array_equal(SdomlV2(str(tmp_path / "s")).read("171A", 3), data[3])


def test_threads_get_the_right_images(store):
    source = SdomlV2(str(store))
    wanted = [(c, r) for r in range(7) for c in ("171A", "193A")] * 20
    with ThreadPoolExecutor(4) as pool:
        for (_, row), got in zip(wanted, pool.map(lambda w: source.read(*w), wanted), strict=True):
            np.testing.assert_array_equal(got, image(row + 1))


def test_chunk_is_decoded_once_for_neighbouring_rows(store, monkeypatch):
    source = SdomlV2(str(store))
    reads = []
    true_read = source._arrays["171A"][0].storage.read
    monkeypatch.setattr(
        "sunzip.sources.storage.Storage.read",
        lambda self, path, **k: (reads.append(path), true_read(path, **k))[1],
    )
    for row in range(20):
        source.read("171A", row)
    assert [r.rsplit("/", 1)[-1] for r in reads] == ["0.0.0", "1.0.0"]


class Far:
    """A store on a disk taken for a far one, whose chunks take a while; knows how they were asked for."""

    def __init__(self, monkeypatch, url, at_once):
        self.asked, self.now, self.most = [], 0, 0
        self.source, self.lock = SdomlV2(str(url)), threading.Lock()
        self.source.at_once = at_once
        for arrays in self.source._arrays.values():
            for array in arrays:
                array.storage.local = False
        self.true_read = Storage.read
        monkeypatch.setattr(Storage, "read", lambda storage, path, **k: self.read(storage, path, **k))

    def read(self, storage, path, **options):
        if not path.endswith(".0.0"):
            return self.true_read(storage, path, **options)
        with self.lock:
            self.asked.append(path)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(0.02)
            return self.true_read(storage, path, **options)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def scattered(tmp_path):
    """Two channels of 60 images, shuffled, four chunks each."""
    root, order = tmp_path / "scattered.zarr", np.random.default_rng(1).permutation(60)
    data, keys = plain(60)
    keys["T_OBS"] = [keys["T_OBS"][i] for i in order]
    write_v2(root, {"2014/171A": (data[order], keys), "2014/193A": (data[order] + 100, keys)})
    return root


def test_chunks_of_a_far_store_are_fetched_side_by_side_and_each_once(scattered, monkeypatch):
    far = Far(monkeypatch, scattered, 5)
    cube = join([far.source]).read(0, 60)
    np.testing.assert_array_equal(cube.data[:, 0], [image(i + 1) for i in range(60)])
    np.testing.assert_array_equal(cube.data[:, 1], np.stack([image(i + 1) for i in range(60)]) + 100)
    assert far.most == 5
    assert len(far.asked) == len(set(far.asked)) == 8


@pytest.mark.parametrize(("kept", "again"), [(1 << 20, False), (0, True)])
def test_chunks_that_are_needed_again_soon_are_kept_within_bounds(scattered, monkeypatch, kept, again):
    monkeypatch.setattr(sdoml_v2, "_KEPT", kept)
    far = Far(monkeypatch, scattered, 5)
    series = join([far.source])
    cubes = [series.read(n, n + 6) for n in range(0, 60, 6)]
    np.testing.assert_array_equal(np.concatenate([c.data[:, 0, 0, 0] for c in cubes]), np.arange(60) + 0.5)
    assert (len(far.asked) > 8) == again
    assert not far.source._kept  # what will not be needed again is let go


def test_chunks_of_a_far_store_in_order_are_let_go(tmp_path, monkeypatch):
    data, keys = plain(60)
    write_v2(tmp_path / "s", {"2014/171A": (data, keys)})
    source = Far(monkeypatch, tmp_path / "s", 5).source
    series = join([source])
    kept = []
    for n in range(0, 60, 3):  # several stretches of frames lie in one chunk
        series.read(n, n + 3)
        kept.append(len(source._kept))
    assert max(kept) == 1
    assert not kept[-1]


def test_keywords_of_a_year_are_read_once_where_frames_of_two_are_read_together(tmp_path, monkeypatch):
    data, keys = plain(120)
    arrays = {}
    for i, year in enumerate(("2013", "2014")):
        order = 60 * i + np.random.default_rng(i).permutation(60)
        arrays[f"{year}/171A"] = data[order], {"T_OBS": [keys["T_OBS"][j] for j in order]}
    write_v2(tmp_path / "s", arrays, chunks=(4, 8, 8))
    far = Far(monkeypatch, tmp_path / "s", 32)
    asked, real = [], SdomlV2._attributes

    def attributes(self, array):
        time.sleep(0.01)
        asked.append(array.path)
        return real(self, array)

    monkeypatch.setattr(SdomlV2, "_attributes", attributes)
    cube = join([far.source]).read(20, 100)
    assert [h[0]["T_OBS"] for h in cube.headers] == keys["T_OBS"][20:100]
    assert asked == ["2014/171A"]  # the source has those of the first year since it was opened


def test_metadata_of_a_far_store_are_fetched_side_by_side_and_each_once(tmp_path, monkeypatch):
    data, keys = plain(6)
    names = [n for n in NAMES if n.endswith("A")]
    write_v2(tmp_path / "s", {f"{year}/{n}": (data, keys) for year in ("2013", "2014") for n in names})
    asked, now, most, lock, real = Counter(), Counter(), Counter(), threading.Lock(), Storage.read

    def read(storage, path, **options):
        kind = path.rsplit("/", 1)[-1]
        with lock:
            asked[path] += 1
            now[kind] += 1
            most[kind] = max(most[kind], now[kind])
        time.sleep(0.05)
        try:
            return real(storage, path, **options)
        finally:
            with lock:
                now[kind] -= 1

    monkeypatch.setattr(Storage, "read", read)
    monkeypatch.setattr(Storage, "at_once", AT_ONCE)
    source = SdomlV2(str(tmp_path / "s"))
    series = join([source])
    assert len(asked) == 36 == sum(asked.values())
    assert most[".zarray"] > 10
    assert most[".zattrs"] == 4
    # The second year has the same times, so that images of the first are read.
    source.at_once = AT_ONCE
    assert [h[0]["T_OBS"] for h in series.read(0, 6).headers] == keys["T_OBS"]
    assert max(asked.values()) == 1


def test_keywords_of_channels_are_fetched_side_by_side(tmp_path, monkeypatch):
    data, keys = plain(6)
    write_v2(tmp_path / "s", {f"2014/{n}": (data, keys) for n in NAMES[:4]})
    source = pickle.loads(pickle.dumps(SdomlV2(str(tmp_path / "s"))))
    source.at_once, together, real = AT_ONCE, threading.Barrier(4, timeout=20), Storage.read

    def read(storage, path, **options):
        if path.endswith(".zattrs"):
            together.wait()
        return real(storage, path, **options)

    monkeypatch.setattr(Storage, "read", read)
    series = join([source])
    series.prepare(0)
    monkeypatch.setattr(SdomlV2, "_attributes", None)  # all are at hand
    assert all(h["T_OBS"] for h in series.read(0, 1).headers[0])


def test_chunks_in_a_tar_which_have_one_place_to_read_from_are_not_mixed(scattered, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(scattered, "s")
    source, alone = SdomlV2(f"tar://s::{tmp_path}/a.tar"), SdomlV2(str(scattered))
    wanted = [(c, r) for r in (0, 15, 30, 45) for c in ("171A", "193A")] * 2
    tar = source._arrays["171A"][0].storage.fs.tar
    file = tar.fileobj

    def seek(offset):
        file.seek(offset)
        time.sleep(0.002)  # for others to come in between

    monkeypatch.setattr(tar, "fileobj", SimpleNamespace(seek=seek, read=file.read, seekable=file.seekable))
    with ThreadPoolExecutor(8) as pool:
        for where, got in zip(wanted, pool.map(lambda w: source.read(*w), wanted), strict=True):
            np.testing.assert_array_equal(got, alone.read(*where))


def test_of_several_chunks_that_are_damaged_the_first_frame_s_is_named(scattered, monkeypatch):
    for number in range(4):
        chunk = scattered / f"2014/171A/{number}.0.0"
        chunk.write_bytes(chunk.read_bytes()[:9])
    far = Far(monkeypatch, scattered, 5)
    series = join([far.source])
    first = far.source.parts("171A", series._row[:1, 0])[0]
    with pytest.raises(InputError, match=rf"171A/{first}\.0\.0: chunk cannot be decoded"):
        series.read(0, 60)


def test_large_chunks_are_fetched_one_by_one(store, monkeypatch):
    url = str(store)
    monkeypatch.setattr(sdoml_v2, "_NEAR", AT_ONCE)
    assert SdomlV2(url).at_once == AT_ONCE
    monkeypatch.setattr(sdoml_v2, "_ON_THE_WAY", 3 * 15 * 8 * 8 * 4)
    assert SdomlV2(url).at_once == 3
    monkeypatch.setattr(sdoml_v2, "_ON_THE_WAY", 1)
    assert SdomlV2(url).at_once == 1


def test_threads_that_ask_for_one_chunk_share_it(store, monkeypatch):
    far = Far(monkeypatch, store, 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: far.source.read("171A", row), range(12)))
    assert len(far.asked) == 1


def test_threads_share_a_chunk_although_another_was_asked_for_since(store, monkeypatch):
    source, asked, go, real = SdomlV2(str(store)), [], threading.Event(), Storage.read

    def read(storage, path, **options):
        asked.append(path.rsplit("/", 1)[-1])
        assert asked[-1] != "0.0.0" or go.wait(20)
        return real(storage, path, **options)

    monkeypatch.setattr(Storage, "read", read)
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(source.read, "171A", row) for row in range(4)]
        while source._cached["171A"].asked < 4:
            time.sleep(0.001)
        np.testing.assert_array_equal(source.read("171A", 15), image(16))
        go.set()
        for row, image_read in enumerate(first):
            np.testing.assert_array_equal(image_read.result(), image(row + 1))
    assert asked == ["0.0.0", "1.0.0"]
    assert not source._cached["171A"].turns


def edit(store, **changes):
    meta = store / "2014/193A/.zarray"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fill_value": "much"}, "fill_value 'much' is no number"),
        ({"dtype": "<i2"}, "dtype '<i2'; SDOML v2 images are floating point"),
        ({"dtype": "<f1"}, "dtype '<f1'; SDOML v2 images are floating point"),
        ({"dtype": "|O"}, r"dtype '\|O'"),
        ({"dtype": [["a", "<f4"]]}, "dtype"),
        ({"shape": [7, 8]}, r"shape \(7, 8\)"),
        ({"shape": [7, 8, 10**9]}, "none that images have"),
        ({"shape": [10**12, 8, 8]}, "none that images have"),
        ({"shape": [-1, 8, 8]}, "no list of sizes"),
        ({"shape": None}, "no list of sizes"),
        ({"chunks": [0, 8, 8]}, "none that images have"),
        ({"chunks": [10**6, 8, 8000]}, "larger than 1 GiB"),
        ({"shape": [7, 512, 512], "chunks": [7, 1, 1]}, "cut an image into 262144 parts"),
        ({"shape": [10**5, 512, 512], "chunks": [10**5, 1, 512]}, "hold 100000 images; .*rechunk the store"),
        ({"compressor": {"id": "pickle"}}, "compressor 'pickle' is not read"),
        ({"compressor": "blosc"}, "compressor 'blosc' is not read"),
        ({"compressor": {"id": ["x"]}}, "is not read"),
        ({"filters": [{"id": "pickle"}]}, "filters"),
        ({"order": "Q"}, "order 'Q'"),
        (
            {"shape": [7, 16, 16], "chunks": [7, 16, 16]},
            "different sizes in one store: 8×8: 2014/171A.*2014/193A",
        ),
    ],
)
def test_metadata_that_cannot_be(store, changes, told):
    edit(store, **changes)
    with pytest.raises(InputError, match=told) as caught:
        SdomlV2(str(store))
    assert "\n" not in str(caught.value)
    assert str(store) in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"scale_factor": 0.1}, r"packed \(attribute scale_factor\)"),
        ({"add_offset": 5, "_ARRAY_DIMENSIONS": ["time", "y", "x"]}, r"packed \(attribute add_offset\)"),
        ({"_ARRAY_DIMENSIONS": ["time", "x", "y"]}, "in the order time, x, y; transpose it to time, y, x"),
        ({"_ARRAY_DIMENSIONS": ["y", "x", "time"]}, "in the order y, x, time; transpose it to time, y, x"),
    ],
)
def test_arrays_of_xarray_that_are_not_what_they_are_read_as(tmp_path, attributes, told):
    data, keys = plain(2)
    write_v2(tmp_path / "s", {"2014/171A": (data, keys | {"_ARRAY_DIMENSIONS": ["time", "y", "x"]})})
    SdomlV2(str(tmp_path / "s"))
    write_v2(tmp_path / "s", {"2014/193A": (data, keys | attributes)})
    with pytest.raises(InputError, match=told) as caught:
        SdomlV2(str(tmp_path / "s"))
    assert str(caught.value).startswith(f"{tmp_path / 's/2014/193A'}: ")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udc80", "[" * 100_000])
@pytest.mark.parametrize("file", [".zarray", ".zattrs"])
def test_json_that_is_none(store, file, content):
    (store / "2014/193A" / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"2014/193A/{file}: is not"):
        SdomlV2(str(store))


@pytest.mark.parametrize("keep", [0, 3, 15, 16, 30, -1])
def test_truncated_chunk_names_the_file(store, keep):
    chunk = store / "2014/193A/0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    why = "it is truncated, or does not state its size" if keep else "it is empty"
    with pytest.raises(
        InputError, match=rf"2014/193A/0\.0\.0: chunk cannot be decoded \({why}\); fetch the file again"
    ):
        SdomlV2(str(store)).read("193A", 0)


def test_want_of_memory_is_not_told_of_the_chunk(store, monkeypatch):
    def short(*_):
        raise MemoryError

    monkeypatch.setattr(numcodecs, "get_codec", short)
    with pytest.raises(MemoryError):
        SdomlV2(str(store)).read("193A", 0)


@pytest.mark.parametrize(
    "codec", [numcodecs.Zstd(3), numcodecs.LZ4(), numcodecs.Zlib(), numcodecs.Blosc()], ids=str
)
@pytest.mark.parametrize("length", [8 * 8 * 4 * 15 - 4, 8 * 8 * 4 * 15 + 4, 1 << 28])
def test_chunk_of_another_length_is_refused_before_it_is_unpacked(tmp_path, codec, length):
    write_v2(tmp_path / "s", {"171A": plain(15)}, compressor=codec)
    bomb = np.zeros(length, np.uint8)
    (tmp_path / "s/171A/0.0.0").write_bytes(codec.encode(bomb))
    with pytest.raises(InputError, match=r"171A/0\.0\.0: "):
        SdomlV2(str(tmp_path / "s")).read("171A", 0)


def test_zstd_frames_behind_the_first_are_not_unpacked(tmp_path):
    codec = numcodecs.Zstd(3)
    write_v2(tmp_path / "s", {"171A": plain(15)}, compressor=codec)
    chunk = tmp_path / "s/171A/0.0.0"
    chunk.write_bytes(chunk.read_bytes() + codec.encode(bytes(1 << 28)))
    with pytest.raises(InputError, match=r"171A/0\.0\.0: chunk cannot be decoded \(.*buffer (is )?too small"):
        SdomlV2(str(tmp_path / "s")).read("171A", 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("file", [".zattrs", "0.0.0"])
def test_a_pipe_in_a_store_is_not_waited_for(tmp_path, file):
    write_v2(tmp_path / "s", {"171A": plain(2)})
    (tmp_path / "s/171A" / file).unlink()
    os.mkfifo(tmp_path / "s/171A" / file)
    with pytest.raises(InputError, match=rf"171A/{re.escape(file)}: is a pipe or a device"):
        SdomlV2(str(tmp_path / "s")).read("171A", 0)


def test_store_without_channels(tmp_path):
    write_v2(tmp_path / "s", {"2014/temperature": plain(2)})
    with pytest.raises(InputError, match="no SDOML v2 array found"):
        open_source(str(tmp_path / "s"))


def test_array_instead_of_group(store):
    with pytest.raises(InputError, match="is one Zarr array; give the group"):
        open_source(str(store / "2014/171A"))


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the real data are not here")
def test_real_store():
    source = open_source(str(REAL / "sdomlv2_real.zarr"))
    assert source.channels == ("131A", "171A", "193A", "211A", "304A", "335A", "1600A", "1700A")
    assert source.shape == (512, 512)
    assert not source.counts
    assert {c: len(source.times(c)) for c in source.channels} == {
        c: 30 if c == "193A" else 1 for c in source.channels
    }
    times = np.sort(source.times("193A"))
    assert str(times[0]) == "2017-01-03T23:00:05.840"
    assert str(times[-1]) == "2024-10-04T16:17:53.843"
    got = source.read("193A", 29)
    assert np.isfinite(got).all()
    assert 300 < got.mean() < 330
    header = source.header("193A", 29)
    assert header["T_OBS"] == "2024-10-04T16:17:53.843Z"
    assert header["EXPTIME"] == 1.9996209999999999
    assert len(header) == 23
