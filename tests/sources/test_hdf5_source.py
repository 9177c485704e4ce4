"""HDF5 cubes, whole and minimal, are read; files that are none, or that ask for too much, are one line."""

import gc
import json
import pickle
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sources import hdf5, open_source
from sunzip.sources.hdf5 import Hdf5
from sunzip.sources.series import join

T, C, N = 5, 2, 16
MS = np.datetime64("2017-08-07T00:00", "ms").astype(np.int64) + np.arange(T) * 3_600_000


def cube(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def save(path, attrs=None, **datasets):
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs or {})
        for name, value in datasets.items():
            file[name] = value
    return str(path)


@pytest.mark.parametrize("where", ["root", "dataset"])
@pytest.mark.parametrize(
    "time",
    [
        MS,
        [f"2017-08-07T0{i}:00:00Z" for i in range(T)],
        [f"2017-08-07 0{i}:00:00".encode() for i in range(T)],
    ],
)
def test_a_minimal_file(tmp_path, where, time):
    data = cube(T, N, N)
    file = save(tmp_path / "a.h5", {"channel": "171A"} if where == "root" else {}, cube=data, time=time)
    if where == "dataset":
        with h5py.File(file, "r+") as f:
            f["cube"].attrs["channel"] = "aia 0171"
    source = Hdf5(file)
    assert source.channels == ("171A",)
    assert source.shape == (N, N)
    assert source.scale is Scale.MEAN
    np.testing.assert_array_equal(source.times("171A"), MS.astype("M8[ms]"))
    assert source.read("171A", 3).tobytes() == data[3].tobytes()
    assert source.header("171A", 3) == {}
    assert source.stored_bytes() == data.nbytes


@pytest.mark.parametrize("changes", [{"time": MS + 1000}, {"channel": ["193A", "171A"]}, {"valid": False}])
def test_a_file_that_another_has_replaced_is_not_read_as_the_first(tmp_path, changes):
    """A process that was started later read images of other times and channels in their place."""
    images = {"cube": cube(T, C, N, N), "channel": ["171A", "193A"], "time": MS}
    source = Hdf5(save(tmp_path / "a.h5", **images))
    other = images | changes
    if "valid" in other:
        other["valid"] = np.arange(T * C).reshape(T, C) > 0
    Path(save(tmp_path / "b.h5", **other)).replace(tmp_path / "a.h5")
    later = pickle.loads(pickle.dumps(source))
    for _ in "asked again":
        with pytest.raises(InputError, match=r"a\.h5: holds other images than as the source was opened"):
            later.read("171A", 0)
    assert source.read("171A", 0).tobytes() == images["cube"][0, 0].tobytes(), "which is open still"


def test_a_file_that_has_grown_is_read_on(tmp_path):
    data = cube(T, N, N)
    source = Hdf5(save(tmp_path / "a.h5", {"channel": "171A"}, cube=data[:3], time=MS[:3]))
    Path(save(tmp_path / "b.h5", {"channel": "171A"}, cube=data, time=MS)).replace(tmp_path / "a.h5")
    assert pickle.loads(pickle.dumps(source)).read("171A", 2).tobytes() == data[2].tobytes()


def test_no_file_is_left_open(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"], file["channel"], file["time"] = np.ones((1, 1, 4, 4)), ["171A"], [0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Hdf5(str(tmp_path / "a.h5"))
        gc.collect()
    assert [str(w.message) for w in told if issubclass(w.category, ResourceWarning)] == []


def test_channels_in_any_order_and_images_that_are_missing(tmp_path):
    data = cube(T, C, N, N)
    valid = np.ones((T, C), bool)
    valid[2, 0] = False
    t_obs = np.stack([MS + 5, MS + 7], 1)
    t_obs[1, 1] = np.iinfo(np.int64).min
    words = np.array([[json.dumps({"N": 10 * t + c}) for c in range(C)] for t in range(T)], object)
    file = save(
        tmp_path / "a.h5",
        {"scale": "sum"},
        cube=data,
        time=MS,
        channel=["Bz", "94"],
        valid=valid,
        t_obs=t_obs,
        keywords=words,
    )
    source = Hdf5(file)
    assert source.channels == ("94A", "Bz")
    assert source.scale is Scale.SUM
    assert (source.times("Bz").astype(np.int64) - MS[[0, 1, 3, 4]]).tolist() == [5, 5, 5, 5]
    assert (source.times("94A").astype(np.int64) - MS).tolist() == [7, 0, 7, 7, 7]
    assert source.read("Bz", 2).tobytes() == data[3, 0].tobytes()
    assert source.header("Bz", 2) == {"N": 30}
    assert source.header("94A", 1) == {"N": 11}
    again = pickle.loads(pickle.dumps(source))
    assert again.read("Bz", 2).tobytes() == data[3, 0].tobytes()


@pytest.mark.parametrize("cadence", ["12min", None])
def test_numbers_that_are_no_date_are_no_times(tmp_path, cadence):
    lost = [2**63 - 1, 2**63 - 2, -(2**63) + 1]
    time = np.array([*MS[:2], *lost])
    source = Hdf5(save(tmp_path / "a.h5", {"channel": "171A"}, cube=cube(T, N, N), time=time))
    series = join([source], cadence=cadence)
    np.testing.assert_array_equal(series.time, MS[:2].astype("M8[ms]"))
    assert series.report.unusable_times == 3


def test_the_first_and_the_last_date_are_times(tmp_path):
    ends = np.array(["0001-01-01", "9999-12-31T23:59:59.999"], "M8[ms]")
    file = save(tmp_path / "a.h5", {"channel": "171A"}, cube=cube(2, N, N), time=ends.astype(np.int64))
    np.testing.assert_array_equal(Hdf5(file).times("171A"), ends)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "i2", "u1"])
def test_any_numbers_become_float32(tmp_path, dtype):
    data = (cube(T, N, N) * 50 + 100).clip(0, 255).astype(dtype)
    image = Hdf5(save(tmp_path / "a.h5", {"channel": "171A"}, cube=data, time=MS)).read("171A", 0)
    assert image.dtype == np.dtype("f4")
    np.testing.assert_array_equal(image, data[0].astype("f4"))


def one_line(url, part):
    with pytest.raises(InputError) as found:
        Hdf5(str(url))
    message = str(found.value)
    assert message.startswith(f"{url}:")
    assert "\n" not in message
    assert part in message


GOOD = {"cube": cube(T, C, N, N), "time": MS, "channel": ["171A", "Bz"]}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"cube": None}, "has no dataset 'cube'"),
        ({"time": None}, "has no dataset 'time'"),
        ({"channel": None}, "does not say which channels"),
        ({"cube": cube(T, N)}, "shape"),
        ({"cube": cube(0, C, N, N), "time": MS[:0]}, "empty"),
        ({"cube": cube(T, C, 0, N)}, "empty"),
        ({"cube": cube(T, C, N, N).astype(complex)}, "complex"),
        ({"cube": np.full((T, C, N, N), b"text")}, "numbers"),
        ({"time": MS[:-1]}, "time must have shape (5,), not (4,)"),
        ({"time": MS.astype(float)}, "int64"),
        ({"channel": ["171A"]}, "must name 2 channels"),
        ({"channel": ["171A", "0171"]}, "twice"),
        ({"channel": ["171A", "Halpha"]}, "unknown channel 'Halpha'"),
        ({"channel": [[1, 2]]}, "must name 2"),
        ({"cube": np.zeros((T, 13, 1, 1)), "channel": [""] * 13}, "13 channels; known are 12"),
        ({"valid": np.ones((T, 3), bool)}, "valid must be bool"),
        ({"t_obs": np.zeros((T,), np.int64)}, "t_obs must have shape"),
        ({"keywords": np.zeros((T, C))}, "keywords must be strings"),
    ],
)
def test_a_wrong_layout_is_one_line(tmp_path, changes, part):
    datasets = {k: v for k, v in (GOOD | changes).items() if v is not None}
    one_line(save(tmp_path / "a.h5", **datasets), part)


@pytest.mark.parametrize(
    ("of", "attribute", "value", "part"),
    [
        ("time", "units", "months since 2017-08-07", "time counts 'months since 2017-08-07', which is not"),
        ("time", "calendar", "360_day", "time is of the calendar '360_day'"),
        ("time", "scale_factor", 0.5, "time is packed"),
        ("cube", "scale_factor", "half", "attribute scale_factor of cube is no number"),
        ("cube", "add_offset", np.nan, "attribute add_offset of cube is no number"),
        ("cube", "_Unsigned", "true", "cube has unsigned numbers as signed ones"),
        ("cube", "units", "mG", "cube is in 'mG', and 171A is read in DN/s"),
        ("cube", "units", "DN/s", "cube is in 'DN/s', and Bz is read in G"),
    ],
)
def test_netcdf_that_would_be_read_as_something_else_is_one_line(tmp_path, of, attribute, value, part):
    file = save(tmp_path / "a.h5", **GOOD)
    with h5py.File(file, "r+") as f:
        f[of].attrs[attribute] = value
    one_line(file, part)


@pytest.mark.parametrize("told", ["label", "scale"])
@pytest.mark.parametrize("order", ["channel time y x", "time channel x y", "time channel y x"])
def test_axes_in_another_order_are_one_line(tmp_path, told, order):
    """As xarray names them, by scales that are datasets, and h5py, by labels."""
    file = save(tmp_path / "a.h5", **(GOOD | {"cube": cube(2, 2, N, N), "time": MS[:2]}))
    with h5py.File(file, "r+") as f:
        for dim, name in zip(f["cube"].dims, order.split(), strict=True):
            if told == "label":
                dim.label = name
            else:
                scale = f[name] if name in f else f.create_dataset(name, data=np.arange(N))
                scale.make_scale(name)
                dim.attach_scale(scale)
    if order == "time channel y x":
        assert Hdf5(file).shape == (N, N)
    else:
        one_line(file, f"axes in the order {order.replace(' ', ', ')}; transpose it to time, channel, y, x")


@pytest.mark.parametrize(("name", "way"), [("y", "south to north"), ("x", "east to west")])
def test_images_upside_down_or_mirrored_are_one_line(tmp_path, name, way):
    along = np.linspace(-1200.0, 1200.0, N)
    assert Hdf5(save(tmp_path / "a.h5", **GOOD, **{name: along})).shape == (N, N)
    one_line(
        save(tmp_path / "b.h5", **GOOD, **{name: along[::-1]}),
        f"{name} falls, where images are read from {way}",
    )


def test_texts_that_no_series_has_are_not_read(tmp_path):
    """A sparse file of a few kB may have millions of them."""
    n = 2**23 + 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", (n, 1, N, N), "f4", chunks=(1, 1, N, N))
        file.create_dataset("time", (n,), "S20", chunks=(1 << 16,))
        file["channel"] = ["171A"]
    one_line(str(tmp_path / "a.h5"), f"time has {n} texts; write int64 ms since 1970")


def test_netcdf_without_packing(tmp_path):
    data = cube(T, C, N, N)
    data[0, 1, :2] = -9999
    data[0, 1, 2] = np.nan
    file = save(tmp_path / "a.h5", **(GOOD | {"cube": data}))
    with h5py.File(file, "r+") as f:
        f["time"].attrs["units"] = "milliseconds since 1970-01-01 00:00:00"
        f["cube"].attrs["_FillValue"] = np.array([-9999], np.float32)
        f["cube"].attrs["missing_value"] = np.float32(np.nan)
    source = Hdf5(file)
    np.testing.assert_array_equal(source.times("Bz"), MS.astype("M8[ms]"))
    np.testing.assert_array_equal(source.read("Bz", 0), np.where(data[0, 1] == -9999, np.nan, data[0, 1]))


def netcdf(path, *, channel, time, units, packing=None):
    """A file as netCDF's own library writes it: each axis a scale, those without coordinates by a name."""
    data = cube(T, len(channel), N, N) + 100
    with h5py.File(path, "w") as file:
        names = dict(zip(("time", "channel", "y", "x"), data.shape, strict=True))
        for name, value in (("time", time), ("channel", channel)):
            file[name] = value
            file[name].make_scale(name)
        file["time"].attrs.update({"units": np.bytes_(units), "calendar": np.bytes_("standard")})
        for name in "yx":
            file[name] = np.zeros(names[name], ">f4")
            file[name].make_scale(f"This is a netCDF dimension but not a netCDF variable.{names[name]:10d}")
        factor, offset = packing or (1, 0)
        stored = data if packing is None else np.rint((data - offset) / factor).astype(np.int16)
        fill = np.float32(9.96921e36) if packing is None else np.int16(-32767)
        made = file.create_dataset("cube", data.shape, stored.dtype, chunks=(1, 1, N, N), fillvalue=fill)
        made[:-1] = stored[:-1]  # of the last frame nothing is written
        if packing is not None:
            made.attrs.update({"scale_factor": factor, "add_offset": offset, "missing_value": np.int16(7)})
        made.attrs["units"] = np.bytes_("DN/s")
        for dim, name in zip(made.dims, names, strict=True):
            dim.attach_scale(file[name])
    return str(path), data


@pytest.mark.parametrize("name", ["a.nc", "a.NC4"])
@pytest.mark.parametrize(
    ("time", "units"),
    [
        (np.arange(T) / 5, "hours since 2017-08-07"),
        (np.arange(T, dtype=np.int32) * 12, "minutes since 2017-8-7 0:0:0"),
        (57972 + np.arange(T) / 120, "days since 1858-11-17 00:00:00 UTC"),
    ],
)
def test_netcdf_is_a_source(tmp_path, name, time, units):
    path, data = netcdf(tmp_path / name, channel=["171A", "193A"], time=time, units=units)
    source = open_source(path)
    assert source.layout == "hdf5"
    assert source.channels == ("171A", "193A")
    np.testing.assert_array_equal(
        source.times("193A"), np.datetime64("2017-08-07", "ms") + np.arange(T) * np.timedelta64(12, "m")
    )
    np.testing.assert_array_equal(source.read("193A", 1), data[1, 1])
    assert np.isnan(source.read("171A", T - 1)).all()


def test_packed_numbers_are_unpacked(tmp_path):
    path, data = netcdf(
        tmp_path / "a.nc",
        channel=["171A"],
        time=MS,
        units="milliseconds since 1970-01-01",
        packing=(0.01, 90.0),
    )
    with h5py.File(path, "r+") as file:
        file["cube"][0, 0, 0, 0] = 7
    image = Hdf5(path).read("171A", 0)
    assert np.isnan(image[0, 0])
    np.testing.assert_allclose(image.ravel()[1:], data[0, 0].ravel()[1:], atol=0.0051)
    assert np.isnan(Hdf5(path).read("171A", T - 1)).all()


@pytest.mark.parametrize("fill", [-1, None])
def test_times_that_are_the_fill_value_are_none(tmp_path, fill):
    time = np.arange(T) if fill else np.array([0, 1, 2, 3, np.nan])
    file = save(tmp_path / "a.h5", {"channel": "171A"}, cube=cube(T, N, N), time=time)
    with h5py.File(file, "r+") as f:
        f["time"].attrs["units"] = "days since 2017-08-07"
        if fill:
            f["time"].attrs["_FillValue"] = 4
    assert np.isnat(Hdf5(file).times("171A")).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("kind", ["alone", "letters", "letters of one"])
def test_channels_as_netcdf_has_them(tmp_path, kind):
    """Of one slice of an xarray.Dataset, and in its classic model, which has no texts."""
    letters = np.array([list("171A"), [*list("94A"), ""]], "S1")
    many = kind == "letters"
    file = save(
        tmp_path / "a.nc",
        cube=cube(T, *([C] if many else []), N, N),
        time=MS,
        channel={"alone": "171A", "letters": letters, "letters of one": letters[0]}[kind],
    )
    assert Hdf5(file).channels == (("94A", "171A") if many else ("171A",))


@pytest.mark.parametrize(
    ("name", "part"), [("time", "has no numbers or texts for 'time'"), ("channel", "does not say which")]
)
def test_axes_without_coordinates_are_one_line(tmp_path, name, part):
    file = save(tmp_path / "a.nc", **(GOOD | {name: np.zeros(len(GOOD[name]), ">f4")}))
    with h5py.File(file, "r+") as f:
        f[name].make_scale("This is a netCDF dimension but not a netCDF variable.         5")
    one_line(file, part)


def test_classic_netcdf_is_one_line(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x02" + bytes(100))
    one_line(tmp_path / "a.nc", "is netCDF of a classic format, not HDF5; convert it: nccopy -k nc4")


def test_filters_that_are_not_here_are_one_line(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1, 1, N, N))
        plan.set_filter(32767, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((T, C, N, N))
        h5py.h5d.create(file.id, b"cube", h5py.h5t.NATIVE_FLOAT, space, plan)
        # Written as it is: HDF5 leaves out optional filters that it lacks.
        file["cube"][:], file["time"], file["channel"] = 1, MS, ["171A", "Bz"]
    one_line(tmp_path / "a.h5", "'cube' is packed by the filter (32767), which HDF5 lacks here; repack")


def test_a_wrong_scale_is_one_line(tmp_path):
    one_line(save(tmp_path / "a.h5", {"scale": "median"}, **GOOD), "must be mean or sum, not 'median'")


@pytest.mark.parametrize("part", ["unknown channel", "scale must be"])
def test_messages_quote_little_of_long_texts(tmp_path, part):
    long = "x" * 60_000
    told = {"scale": long} if part.startswith("scale") else {"channel": long}
    path = save(tmp_path / "a.h5", told, cube=cube(T, N, N), time=MS)
    with pytest.raises(InputError, match=part) as found:
        Hdf5(path)
    assert len(str(found.value)) < len(path) + 250


def test_files_that_are_no_hdf5(tmp_path):
    good = Path(save(tmp_path / "good.h5", **GOOD)).read_bytes()
    for name, data in (
        ("text", b"hello"),
        ("empty", b""),
        ("half", good[: len(good) // 2]),
        ("head", good[:100]),
    ):
        (tmp_path / f"{name}.h5").write_bytes(data)
        one_line(tmp_path / f"{name}.h5", "cannot be read as HDF5")
    one_line(tmp_path / "nothing.h5", "nothing is there")
    one_line(tmp_path, "is a folder")


@pytest.mark.parametrize("shape", [(1, 12, 2**20, 2**20), (2**40, 1, N, N), (T, C, 2**15, 8)])
def test_hostile_sizes_allocate_nothing(tmp_path, shape):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", shape, "<f4", chunks=(1, 1, 8, 8))
        file["time"] = MS
        file["channel"] = ["171A", "Bz"]
    one_line(tmp_path / "a.h5", "implausibly large")


def test_hostile_chunks_allocate_nothing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "cube", (2**16, 1, N, N), "<f4", chunks=(2**16, 1, N, 256)[:4] if N >= 256 else None
        )
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("cube", (2**22, 1, N, N), "<f4", chunks=(2**21, 1, N, N), compression="gzip")
        file.create_dataset("time", (2**22,), "<i8", chunks=(1024,))
        file["channel"] = ["171A"]
    one_line(tmp_path / "b.h5", "chunk")


@pytest.mark.parametrize(
    ("name", "count"), [("cube", 512 * 512), ("time", 2**17), ("t_obs", 2**17), ("valid", 2**17)]
)
def test_chunks_beyond_number_are_not_read(tmp_path, name, count):
    chunks = {"cube": (1, 1, 512, 512)} | {name: {"cube": (1, 1, 1, 1), "time": (1,)}.get(name, (1, 1))}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", (2**17, 1, 512, 512), "<f4", chunks=chunks["cube"])
        file.create_dataset("time", (2**17,), "<i8", chunks=chunks.get("time"))
        file.create_dataset("t_obs", (2**17, 1), "<i8", chunks=chunks.get("t_obs"))
        file.create_dataset("valid", (2**17, 1), "?", chunks=chunks.get("valid"))
        file["channel"] = ["171A"]
    one_line(tmp_path / "a.h5", f"of which {count} would be read at once")


def test_images_of_few_chunks_each_may_be_many(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", (2**17, 1, 8, 8), "<f4", chunks=(1, 1, 1, 1))
        file.create_dataset("keywords", (2**17, 1), h5py.string_dtype(), chunks=(1, 1))
        file["time"] = MS[0] + np.arange(2**17)
        file["channel"] = ["171A"]
    assert Hdf5(str(tmp_path / "a.h5")).header("171A", 2**17 - 1) == {}


@pytest.mark.parametrize("kind", ["chunks", "packed", "one chunk", "contiguous", "fill value", "bytes"])
def test_a_long_text_that_is_there_many_times_is_not_read(tmp_path, kind):
    path, n, long = tmp_path / "a.h5", 3000, "x" * 100_000
    how = {"chunks": (1,)} if kind == "chunks" else {"chunks": (n,)}
    if kind == "packed":
        how |= {"compression": "gzip", "shuffle": True}
    if kind in ("contiguous", "bytes"):
        how = {}
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", (n, N, N), "<f4", chunks=(1, N, N)).attrs["channel"] = "171A"
        if kind == "bytes":
            file.create_dataset("time", (n,), "S100000")
        elif kind == "fill value":
            file.create_dataset("time", (n,), h5py.string_dtype(), fillvalue=long, **how)
        else:
            time = file.create_dataset("time", (n,), h5py.string_dtype(), **how)
            time[0] = long
            begin, time = time.id.get_offset() if kind == "contiguous" else 0, time.id
            if kind == "chunks":
                text = time.read_direct_chunk((0,))[1]
                for i in range(1, n):
                    time.write_direct_chunk((i,), text)
            elif kind == "one chunk":
                time.write_direct_chunk((0,), time.read_direct_chunk((0,))[1][:16] * n)
            elif kind == "packed":
                skipped, data = time.read_direct_chunk((0,))
                time.write_direct_chunk((0,), zlib.compress(zlib.decompress(data)[:16] * n), skipped)
    if kind == "contiguous":
        data = bytearray(path.read_bytes())
        data[begin : begin + 16 * n] = data[begin : begin + 16] * n
        path.write_bytes(data)
    one_line(path, "texts of 300000000 bytes are longer than")


@pytest.mark.parametrize("how", [{"chunks": (2, 2)}, {"chunks": (2, 2), "compression": "gzip"}, {}])
def test_keywords_are_not_read_if_they_are_too_long(tmp_path, how):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube(3, 2, N, N)
        file["channel"] = ["171A", "193A"]
        file["time"] = MS[:3]
        keywords = file.create_dataset("keywords", (3, 2), h5py.string_dtype(), **how)
        keywords[:] = '{"A": 1}'
        keywords[2, 1] = "{}" + " " * 2**24
    source = Hdf5(str(tmp_path / "a.h5"))
    assert source.header("171A", 2) == source.header("193A", 1) == {"A": 1}
    with pytest.raises(InputError, match=r"keywords of image 2 of 193A .* 16777218 bytes are longer") as told:
        source.header("193A", 2)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual", "group"])
def test_a_file_may_not_open_others(tmp_path, kind):
    other = save(tmp_path / "other.h5", **GOOD)
    (tmp_path / "raw").write_bytes(cube(T, C, N, N).tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["time"] = MS
        file["channel"] = ["171A", "Bz"]
        if kind == "external link":
            file["cube"] = h5py.ExternalLink(other, "cube")
        elif kind == "external storage":
            raw = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("cube", (T, C, N, N), "<f4", external=raw)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((T, C, N, N), "<f4")
            layout[:] = h5py.VirtualSource(other, "cube", (T, C, N, N))
            file.create_virtual_dataset("cube", layout)
        else:
            file.create_group("cube")
    one_line(tmp_path / "a.h5", "inside the file itself")


@pytest.mark.parametrize("text", ["{", "[1]", '{"A": [1]}', "[" * 100_000, '"text"'])
def test_hostile_keywords_are_one_line(tmp_path, text):
    words = np.full((T, C), text, object)
    source = Hdf5(save(tmp_path / "a.h5", **GOOD, keywords=words))
    with pytest.raises(InputError, match="keywords of image 0 of Bz") as found:
        source.header("Bz", 0)
    assert "\n" not in str(found.value)


def test_a_damaged_chunk_is_told_when_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "cube", data=GOOD["cube"], chunks=(1, 1, N, N), compression="gzip", fletcher32=True
        )
        file["time"] = MS
        file["channel"] = ["171A", "Bz"]
        where = data.id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[where + 20 : where + 40] = bytes(20)
    path.write_bytes(raw)
    source = Hdf5(str(path))
    with pytest.raises(InputError, match=r"a\.h5: image 0 of 171A cannot be read"):
        source.read("171A", 0)
    assert source.read("171A", 1).tobytes() == GOOD["cube"][1, 0].tobytes()


@pytest.mark.parametrize("filters", [{}, {"fletcher32": True}, {"shuffle": True}])
@pytest.mark.parametrize("size", [10, 10**6])
def test_chunks_that_are_not_of_their_size_are_one_line(tmp_path, size, filters):
    """HDF5 gives the memory behind a short one, or ends the process, and unpacks a long one to its end."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "cube", (2, 64, 64), "<f4", chunks=(1, 64, 64), compression="gzip", **filters
        )
        data.attrs["channel"] = "171A"
        data[1] = 7
        data.id.write_direct_chunk(
            (0, 0, 0), zlib.compress(bytes(size)) + bytes(4 * ("fletcher32" in filters))
        )
        file["time"] = MS[:2]
    source = Hdf5(str(path))
    with pytest.raises(InputError, match=r"a\.h5: image 0 of 171A cannot .* hold the 16384 bytes") as found:
        source.read("171A", 0)
    assert "\n" not in str(found.value)
    assert (source.read("171A", 1) == 7).all()


@pytest.mark.parametrize("name", ["cube", "time", "keywords"])
def test_short_chunks_without_filters_are_one_line(tmp_path, name):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for dataset, shape, dtype, value in (
            ("cube", (T, N, N), "<f4", 1),
            ("time", (T,), "<i8", MS),
            ("keywords", (T, 1), h5py.string_dtype(), "{}"),
        ):
            made = file.create_dataset(dataset, shape, dtype, chunks=shape)
            if dataset == name:
                made.id.write_direct_chunk((0,) * len(shape), b"short")
            else:
                made[:] = value
        file["cube"].attrs["channel"] = "171A"
    one_line(path, f"{name}' has chunks that are not of their size")


def test_behind_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/sun.h5", Path(save(tmp_path / "a.h5", **GOOD)).read_bytes())
    try:
        assert Hdf5("memory://sun.h5").read("Bz", 4).tobytes() == GOOD["cube"][4, 1].tobytes()
    finally:
        memory.rm("/sun.h5")


def test_chunks_of_many_images_are_unpacked_once(tmp_path, monkeypatch):
    """A chunk of 24 images was unpacked 48 times: twice for each, as HDF5 keeps no chunk beyond 1 MB."""
    data = np.arange(24 * 128 * 128, dtype="<f4").reshape(24, 128, 128)
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        cube = file.create_dataset("cube", data=data, chunks=(12, 128, 128), compression="gzip")
        cube.attrs["channel"] = "171A"
        file["time"] = np.arange(24) * 720_000
    looked_at = []
    real = hdf5._chunk
    monkeypatch.setattr(hdf5, "_chunk", lambda d, begin: looked_at.append(begin) or real(d, begin))
    source = Hdf5(str(tmp_path / "cube.h5"))
    for row in range(24):
        np.testing.assert_array_equal(source.read("171A", row), data[row])
    assert looked_at == [(0, 0, 0), (12, 0, 0)]
    # What waits for forks would stay to the end of the process, for each file that ever was open.
    with monkeypatch.context() as patched:
        patched.setattr("os.register_at_fork", lambda **_: pytest.fail("never forgotten"))
        Hdf5(str(tmp_path / "cube.h5"))
    # That is open still, and keeps as much as 12 channels of such images want.
    assert source._open.id.get_access_plist().get_chunk_cache()[1] >= 12 * 16 * 512**2 * 4
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read("171A", 23), data[23])
