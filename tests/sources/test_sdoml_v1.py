"""SDOML v1 trees in every folder layout, broken files, and telling one layout from another."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from stores import REAL, image, write_v1

from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sinks import open_sink
from sunzip.sources import open_source
from sunzip.sources.sdoml_v1 import SdomlV1
from sunzip.sources.series import join
from sunzip.sources.storage import Storage
from sunzip.sources.synthetic import Synthetic
from sunzip.times import parse_t_obs

LAYOUTS = {
    "flat": "{file}",
    "days": "{y}/{m}/{d}/{file}",
    "channels": "{y}/AIA/{id}/{m}/{d}/{file}",
    "misleading": "1999/AIA/0094/12/31/{file}",
    "tars": "AIA_{y}{m}_{id}/{file}",
}


def tree(root, layout, **options):
    """Six files: 171 at three times, 94 at two, Bz at one."""
    values = {}
    for instrument, name, stamps in (
        ("AIA", "0171", ("20131125_0824", "20131125_0812", "20140101_0000")),
        ("AIA", "0094", ("20131125_0812", "20131125_0824")),
        ("HMI", "bz", ("20131125_0824",)),
    ):
        for stamp in stamps:
            file = f"{instrument}{stamp}_{name}.npz"
            path = layout.format(y=stamp[:4], m=stamp[4:6], d=stamp[6:8], id=name, file=file)
            values[name, stamp] = len(values) + 1.0
            write_v1(root / path, len(values), **options)
    return values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_folder_layout(tmp_path, layout):
    values = tree(tmp_path / "v1", LAYOUTS[layout])
    source = open_source(str(tmp_path / "v1"))
    assert source.layout == "sdoml-v1"
    assert source.scale is Scale.SUM
    assert source.channels == ("94A", "171A", "Bz")
    assert source.times("171A").astype("datetime64[m]").astype(str).tolist() == [
        "2013-11-25T08:12", "2013-11-25T08:24", "2014-01-01T00:00",
    ]  # fmt: skip
    for channel, name in (("94A", "0094"), ("171A", "0171"), ("Bz", "bz")):
        for row, time in enumerate(source.times(channel)):
            stamp = f"{time.astype('datetime64[m]')}".replace("-", "").replace(":", "").replace("T", "_")
            np.testing.assert_array_equal(source.read(channel, row), image(values[name, stamp]))
    assert not source.counts
    assert source.stored_bytes() == sum(p.stat().st_size for p in tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(("dtype", "compressed"), [("f4", False), (">f4", True), ("f2", True), ("f8", True)])
def test_dtypes(tmp_path, dtype, compressed):
    write_v1(tmp_path / "AIA20131125_0824_0171.npz", 100, dtype=dtype, compressed=compressed)
    got = SdomlV1(str(tmp_path)).read("171A", 0)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, image(100).astype(dtype).astype("f4"))


def test_fortran_order(tmp_path):
    np.savez(tmp_path / "AIA20131125_0824_0171.npz", x=np.asfortranarray(image(3)))
    np.testing.assert_array_equal(SdomlV1(str(tmp_path)).read("171A", 0), image(3))


@pytest.mark.parametrize("layout", ["sdoml-v1", "sdoml-v2", "fits"])
def test_links_to_folders_are_followed_and_may_go_in_circles(tmp_path, layout):
    channels = ("171A", "Bz")
    series = join([Synthetic(frames=2, size=16, start="2013-12-31T23:48")])
    cube = series.read(0, 2).pick(channels)
    with open_sink(tmp_path / "disk", layout, channels=channels, shape=(16, 16)) as sink:
        sink.write(cube)
    (tmp_path / "store").mkdir()
    for entry in [tmp_path / "disk"] if layout == "fits" else (tmp_path / "disk").iterdir():
        (tmp_path / "store" / entry.name).symlink_to(entry)
    for name in ("round", "about"):
        (tmp_path / "disk" / name).symlink_to(tmp_path / "store")
        (tmp_path / "store" / name).symlink_to(tmp_path / "disk")
    source = open_source(str(tmp_path / "store"))
    assert source.channels == channels
    assert [len(source.times(name)) for name in channels] == [2, 2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only where there are named pipes")
def test_pipes_are_never_waited_for(tmp_path):
    for name in ("AIA20131125_0824_0171.npz", "a.h5", "a.fits"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="is a pipe or a device"):
            open_source(str(tmp_path / name))
    with pytest.raises(InputError, match="the folder is empty"):
        open_source(str(tmp_path))


def test_single_file(tmp_path):
    write_v1(tmp_path / "deep/HMI20131125_0824_by.npz", 3)
    source = open_source(str(tmp_path / "deep/HMI20131125_0824_by.npz"))
    assert source.channels == ("By",)
    np.testing.assert_array_equal(source.read("By", 0), image(3))
    assert source.stored_bytes() == (tmp_path / "deep/HMI20131125_0824_by.npz").stat().st_size


@pytest.mark.parametrize("name", ["a::b", "file:a", "a b\n", "-a"])
def test_a_folder_of_any_name(tmp_path, monkeypatch, name):
    tree(tmp_path / name, LAYOUTS["days"])
    monkeypatch.chdir(tmp_path)
    assert open_source(name).channels == SdomlV1(str(tmp_path / name)).channels == ("94A", "171A", "Bz")


def test_memory_url_and_pickle(tmp_path):
    import fsspec

    values = tree(tmp_path / "v1", LAYOUTS["days"])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "v1"), "/v1", recursive=True)
    try:
        source = pickle.loads(pickle.dumps(open_source("memory://v1")))
        assert source.channels == ("94A", "171A", "Bz")
        np.testing.assert_array_equal(source.read("Bz", 0), image(values["bz", "20131125_0824"]))
        assert source.stored_bytes() == SdomlV1(str(tmp_path)).stored_bytes()
    finally:
        memory.rm("/v1", recursive=True)


def test_header_says_the_same_time_in_the_instruments_notation(tmp_path):
    tree(tmp_path, LAYOUTS["flat"])
    source = SdomlV1(str(tmp_path))
    assert source.header("171A", 1) == {"T_OBS": "2013-11-25T08:24:00.000Z", "WAVELNTH": 171}
    assert source.header("Bz", 0) == {"T_OBS": "2013.11.25_08:24:35_TAI", "WAVELNTH": 6173}
    for channel in source.channels:
        for row, time in enumerate(source.times(channel)):
            assert parse_t_obs([source.header(channel, row)["T_OBS"]])[0] == time


def test_oddities_are_counted(tmp_path):
    tree(tmp_path, LAYOUTS["days"])
    write_v1(tmp_path / "copy/AIA20131125_0824_0171.npz", 99)
    write_v1(tmp_path / "AIA20131399_0824_0171.npz", 1)
    write_v1(tmp_path / "AIA20131125_0824_0172.npz", 1)
    write_v1(tmp_path / "AIA20131125_0824_bz.npz", 1)
    write_v1(tmp_path / "HMI20131125_0824_0171.npz", 1)
    write_v1(tmp_path / "notes.npz", 1)
    (tmp_path / "README.txt").write_text("hello")
    source = SdomlV1(str(tmp_path))
    assert source.counts == {
        "npz file of another name": 4,
        "duplicate file name": 1,
        "no date in file name": 1,
    }
    assert len(source.times("171A")) == 3
    np.testing.assert_array_equal(source.read("171A", 1), image(1))  # 2013/ comes before copy/


def test_image_of_another_size(tmp_path):
    write_v1(tmp_path / "AIA20131125_0812_0171.npz", 1)
    write_v1(tmp_path / "AIA20131125_0824_0171.npz", 1, size=4)
    source = SdomlV1(str(tmp_path))
    with pytest.raises(InputError, match=r"0824_0171\.npz: image of 4×4 among images of 8×8"):
        source.read("171A", 1)


def npz(npy, name="x.npy", **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, npy, **options)
    return buffer.getvalue()


def npy(shape, descr="<f4", payload=b"", version=b"\x01\x00"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + payload


def pickled():
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([[print]], object))
    return buffer.getvalue()


GOOD = npz(npy((8, 8), payload=bytes(256)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no readable npz"),
        (b"text, not zip", "no readable npz"),
        (GOOD[:-1], "no readable npz"),
        (GOOD[: len(GOOD) // 2], "no readable npz"),
        (npz(b"\x94" + npy((8, 8), payload=bytes(256))[1:]), "no readable npz"),
        (npz(b""), "no readable npz"),
        (npz(npy((8, 8), payload=bytes(255))), "does not have the 256 bytes"),
        (npz(npy((8, 8), payload=bytes(257))), "does not have the 256 bytes"),
        (npz(npy((8, 8), payload=bytes(256)), name="y.npy"), "holds no array 'x'.*but: y"),
        (npz(npy((10**6, 10**6))), r"shape \(1000000, 1000000\), which no image has"),
        (npz(npy((4097, 4096))), "which no image has"),
        (npz(npy((-8, -8), payload=bytes(256))), "which no image has"),
        (npz(npy((0, 8))), "which no image has"),
        (npz(npy((64,), payload=bytes(256))), "which no image has"),
        (npz(npy((8, 8), "<i4", bytes(256))), "dtype int32; SDOML v1 images are float32 or float16"),
        (npz(npy((8, 8), "|O", bytes(256))), "dtype object"),
        (pickled(), "dtype object"),
        (npz(npy((8, 8), payload=bytes(256), version=b"\x09\x00")), "npy format"),
        (npz(npy("__import__('os')", payload=bytes(256))), "no readable npz"),
        (npz(npy("(" * 3000 + ")" * 3000)), "no readable npz"),
    ],
)
def test_hostile_file_names_itself_in_one_line(tmp_path, content, told):
    path = tmp_path / "AIA20131125_0824_0171.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        open_source(str(tmp_path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_the_first_file_may_be_damaged(tmp_path):
    (tmp_path / "AIA20131125_0824_0094.npz").write_bytes(b"PK")
    write_v1(tmp_path / "AIA20131125_0824_0171.npz", 1, size=16)
    assert open_source(str(tmp_path)).shape == (16, 16)


def test_flipped_pixel_bit_is_seen(tmp_path):
    path = tmp_path / "AIA20131125_0824_0171.npz"
    write_v1(path, 1, compressed=False)
    raw = bytearray(path.read_bytes())
    raw[raw.index(image(1).tobytes()) + 100] ^= 4
    path.write_bytes(raw)
    with pytest.raises(InputError, match="CRC"):
        open_source(str(path))


def test_bomb_is_not_unpacked(tmp_path):
    import tracemalloc

    path = tmp_path / "AIA20131125_0824_0171.npz"
    path.write_bytes(npz(npy((8, 8), payload=bytes(1 << 26))))
    tracemalloc.start()
    with pytest.raises(InputError, match="does not have the 256 bytes"):
        open_source(str(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packed_otherwise_is_not_unpacked(tmp_path, method):
    # Of these zipfile unpacks as much as it has read.
    path = tmp_path / "AIA20131125_0824_0171.npz"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", npy((8, 8), payload=bytes(8 * 8 * 4)))
    with pytest.raises(InputError, match="packed in another way than NumPy packs"):
        open_source(str(path))


def test_header_that_claims_much_is_not_unpacked(tmp_path):
    import tracemalloc

    path = tmp_path / "AIA20131125_0824_0171.npz"
    claims = b"\x93NUMPY\x02\x00" + (1 << 28).to_bytes(4, "little")
    path.write_bytes(npz(claims + bytes(1 << 28)))
    tracemalloc.start()
    with pytest.raises(InputError, match="has 268435468 bytes, which no image has"):
        open_source(str(path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_file_that_vanishes(tmp_path):
    tree(tmp_path, LAYOUTS["flat"])
    source = SdomlV1(str(tmp_path))
    (tmp_path / "AIA20140101_0000_0171.npz").unlink()
    with pytest.raises(InputError, match=r"0000_0171\.npz: is gone"):
        source.read("171A", 2)


# --- telling one layout from another --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", "missing: nothing is there; check the path"),
        ("x.lat", "sunzip archive.*use `sunzip decompress`"),
        ("x.lat.partial/", "x.lat.partial/: is an unfinished archive; continue .* with --resume"),
        ("foo://x", "foo://x: cannot be opened"),
        ("memory://nothing-here", "nothing is there"),
        ("synthetic:frames=x", "frames must be a whole number of up to 9 digits, not 'x'"),
        ("synthetic:frames=1234567890", "frames must be a whole number of up to 9 digits, not '1234567890'"),
        ("synthetic:frame=2", "'frame=2' is not understood; known are frames="),
        ("synthetic:frames", "'frames' is not understood"),
        ("synthetic:seed=1,seed=2", "'seed=2' is not understood"),
    ],
)
def test_what_is_not_there(tmp_path, name, told):
    with pytest.raises(InputError, match=told):
        open_source(name if ":" in name else f"{tmp_path}/{name}")


def test_synthetic():
    source = open_source("synthetic:frames=3,size=64,seed=5,start=2014-01-01,cadence=1h")
    assert source.layout == "synthetic"
    assert source.shape == (64, 64)
    assert len(source.times("171A")) == 3
    assert abs(source.times("171A")[2] - np.datetime64("2014-01-01T02:00")) < np.timedelta64(1, "m")


def test_folders_of_nothing_known(tmp_path):
    with pytest.raises(InputError, match="the folder is empty"):
        open_source(str(tmp_path))
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/image.png").write_bytes(b"x")
    (tmp_path / "other.npz").write_bytes(b"x")
    with pytest.raises(InputError, match="nothing in it is recognised; looked for a Zarr format 2 store"):
        open_source(str(tmp_path))
    with pytest.raises(InputError, match=r"no kind of file that is known here; looked for"):
        open_source(str(tmp_path / "a/b/image.png"))


def test_folder_of_several_layouts(tmp_path):
    write_v1(tmp_path / "AIA20131125_0824_0171.npz", 1)
    (tmp_path / "x.fits").write_bytes(b"")
    with pytest.raises(InputError, match=r"several layouts \(fits, sdoml-v1\)"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("fits", "fits/x.fits"), ("sdoml-v1", "v1/2013/11/25/AIA20131125_0824_0171.npz")),
        (("fits", "deep/below/x.fits"), ("sdoml-v1", "v1/AIA20131125_0824_0171.npz")),
        (("fits", "a/x.fits"), ("hdf5", "a/b/x.h5")),
        (("hdf5", "z/b/x.h5"), ("sdoml-v1", "AIA20131125_0824_0171.npz")),
        (("fits", "z/x.fits"), ("sdoml-v2", "a.zarr/.zgroup")),
        (("sdoml-v1", "z/b/c/AIA20131125_0824_0171.npz"), ("sdoml-v2", "a.zarr/171A/.zarray")),
        (("sdoml-v1", "a/AIA20131125_0824_0171.npz"), ("sdoml-v2", "z.zarr/2014/171A/.zarray")),
        (("fits", "x.fits"), ("sdoml-v2", "z.zarr/2014/171A/.zarray")),
    ],
)
def test_folders_of_several_layouts(tmp_path, one, other):
    for _, path in (one, other):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(InputError, match="; name a folder that holds one of them") as caught:
        open_source(str(tmp_path))
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}: holds several layouts, ")
    for layout, path in (one, other):
        # Of a store the group that holds the channels is named, where that is what was met.
        folder = (tmp_path / path).parent
        folder = folder.parent if folder.name == "171A" else folder
        assert f"{layout} in {str(folder).removesuffix('/.')}" in told
    assert "\n" not in told


def test_other_files_are_no_reason_to_refuse(tmp_path):
    tree(tmp_path / "v1", LAYOUTS["flat"])
    others = ("README.md", "v1/list.txt", "v1/other.npz", "tables/degrad_171.csv", "old.lat", "a/zarr.json")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "z.zarr/field").mkdir(parents=True)
    for name in ("z.zarr/.zgroup", "z.zarr/field/.zarray"):
        (tmp_path / name).write_bytes(b"{}")
    assert open_source(str(tmp_path)).layout == "sdoml-v1"


def test_few_folders_are_listed_to_tell_a_layout(tmp_path, monkeypatch):
    for day in range(50):
        (tmp_path / f"2013/01/{day:02}").mkdir(parents=True)
        write_v1(tmp_path / f"2013/01/{day:02}/AIA20131125_0824_0171.npz", 1)
    listed = []
    list_one = Storage.list
    monkeypatch.setattr(Storage, "list", lambda self, path="": listed.append(path) or list_one(self, path))
    source = open_source(str(tmp_path))
    assert source.counts == {"duplicate file name": 49}
    # Once each to read them, and the first of each level to tell the layout.
    assert len(listed) == (1 + 2 + 50) + 4


def test_folder_of_hdf5(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(InputError, match="holds HDF5 or netCDF files; name one of them, or a folder of"):
        open_source(str(tmp_path))


def test_zarr_of_format_3(tmp_path):
    import zarr

    zarr.create_group(tmp_path / "v3.zarr", zarr_format=3)
    with pytest.raises(InputError, match="is a Zarr format 3 store; SDOML v2 is format 2"):
        open_source(str(tmp_path / "v3.zarr"))


def test_second_store_only_for_v2(tmp_path):
    tree(tmp_path, LAYOUTS["flat"])
    with pytest.raises(InputError, match="as one more source instead"):
        open_source(str(tmp_path), hmi=str(tmp_path))


def test_opening_imports_no_torch_and_no_zarr(tmp_path):
    import subprocess
    import sys

    tree(tmp_path, LAYOUTS["flat"])
    code = (
        "import sys; from sunzip.sources import open_source; open_source(sys.argv[1]);"
        "bad = {'torch', 'zarr', 'h5py', 'matplotlib', 'sunpy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the real data are not here")
def test_real_file():
    source = open_source(str(REAL / "sdoml_v1"))
    assert source.channels == ("Bz",)
    assert source.shape == (512, 512)
    assert source.times("Bz").astype(str).tolist() == ["2013-01-31T00:00:00.000"]
    got = source.read("Bz", 0)
    assert (got[0] == 0).all()
    assert 500 < np.abs(got).max() < 5000
