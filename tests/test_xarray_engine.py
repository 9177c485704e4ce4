"""The xarray engine: what numpy gives, nothing decoded that was not asked for, at home in Dask and files."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sunzip
from sunzip import api
from sunzip.codec.hyperprior import HyperpriorFamily
from sunzip.errors import DamagedError, InputError, ModelNotFoundError
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.sun import Sun
from sunzip.weights import Model

xr = pytest.importorskip("xarray")
from xarray.backends.file_manager import FILE_CACHE  # noqa: E402 (part of xarray)

from sunzip.xarray import SunzipBackend  # noqa: E402 (needs xarray)

ROOT = Path(__file__).parents[1]
CHANNELS = ("171A", "304A", "Bz")
FRAMES, SIZE = 7, 32
TABLES = ("t_obs", "valid", "exptime", "deg_cor", "quality", "err_rmse", "err_max", "err_ppe10", "err_r")


class Patchy(Synthetic):
    """Made-up images with the times and keywords of the synthetic Sun, which would take long to render.

    Frame 3 lacks 304 Å; 171 Å has a dead pixel in frame 5.
    """

    def read(self, channel: str, row: int) -> np.ndarray:
        rng = np.random.default_rng([row, ord(channel[1])])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
        pixels = (100 + 80 * waves + rng.normal(0, 5, (SIZE, SIZE))).astype(np.float32)
        if (row, channel) == (3, "304A"):
            pixels[:] = np.nan
        if (row, channel) == (5, "171A"):
            pixels[4, 9] = np.nan
        return pixels


def make(path: Path, model: Model, start: str = "2014-01-01", **options: object) -> Path:
    api.compress(
        join([Patchy(frames=FRAMES, size=SIZE, start=start, channels=CHANNELS)]),
        path,
        model=model,
        embed_model=True,
        **options,
    )
    return path


@pytest.fixture(scope="module")
def lat(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of two frames, so that frames are picked out of blocks too."""
    return make(tmp_path_factory.mktemp("xarray") / "sun.lat", tiny_model, block=2)


@pytest.fixture(scope="module")
def whole(lat: Path) -> np.ndarray:
    with sunzip.open(lat) as sun:
        return sun[:]


@pytest.fixture
def ds(lat: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(lat) as dataset:
        yield dataset


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the frames in each run of a network that makes images."""
    counted: list[int] = []
    real = HyperpriorFamily.synthesise_tensor

    def counting(self: HyperpriorFamily, latents: np.ndarray, *rest: object) -> np.ndarray:
        counted.append(len(latents))
        return real(self, latents, *rest)

    monkeypatch.setattr(HyperpriorFamily, "synthesise_tensor", counting)
    return counted


def test_the_engine_is_found_and_described() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["xarray.backends"] == {"sunzip": "sunzip.xarray:SunzipBackend"}
    engine = xr.backends.list_engines()["sunzip"]
    assert type(engine).__name__ == "SunzipBackend"
    assert engine.description
    assert engine.url.startswith("https://")
    assert set(engine.open_dataset_parameters) == {
        *("filename_or_obj", "drop_variables", "model", "channels", "latents", "anon"),
        *("mask_and_scale", "decode_times", "decode_timedelta", "use_cftime"),
        *("concat_characters", "decode_coords"),
    }
    assert not getattr(engine, "supports_groups", False), "which older releases of xarray do not ask"


def test_a_dataset_has_cf_times_units_and_coordinates(ds: xr.Dataset, lat: Path) -> None:
    assert dict(ds.sizes) == {"time": FRAMES, "channel": 3, "y": SIZE, "x": SIZE}
    assert list(ds.data_vars) == ["cube"]
    assert set(ds.coords) == {"time", "channel", "wavelength", "unit", "y", "x", *TABLES}
    assert ds.cube.dtype == np.float32
    assert ds.time.dtype.kind == "M"
    assert ds.time.values[1] == np.datetime64("2014-01-01T00:12")
    assert ds.channel.values.tolist() == list(CHANNELS)
    assert ds.unit.values.tolist() == ["DN/s", "DN/s", "G"]
    assert ds.wavelength.values.tolist() == [171, 304, 6173]
    assert ds.x.attrs["units"] == ds.y.attrs["units"] == "arcsec"
    assert ds.y.values[0] == -ds.y.values[-1] == -4.8 * 256 + 4.8 * 8
    assert ds.attrs["Conventions"] == "CF-1.11"
    with sunzip.open(lat) as sun:
        assert ds.attrs["model_sha256"] == sun.archive.model["sha256"]
        assert (ds.attrs["model"], ds.attrs["scale"], ds.attrs["quality"]) == ("tiny", "mean", 50)
    assert {"title", "source", "history"} <= set(ds.attrs)
    for name, variable in ds.variables.items():
        assert "long_name" in variable.attrs or "standard_name" in variable.attrs, name
    assert ds.encoding["source"] == str(lat)
    text = f"{ds!r}{ds._repr_html_()}"
    assert "171A" in text


def test_what_zarr_sees_and_the_engine_agree(ds: xr.Dataset, lat: Path, zarr_codec: str) -> None:
    with sunzip.open(lat) as sun:
        sun.codec  # makes the embedded model known to zarr's codec
        # For pandas before 3, times of another unit are other times.
        times = xr.coders.CFDatetimeCoder(time_unit="ms")
        plain = xr.open_zarr(sun.archive.store(), consolidated=False, decode_times=times)
        assert set(plain.coords) == set(ds.coords)
        assert set(plain.data_vars) == {*ds.data_vars, "bytes", "keywords"}
        plain["quality"] = plain.quality.where(plain.quality != np.iinfo(np.int64).min)
        for name in ds.variables:
            xr.testing.assert_equal(ds[name].variable, plain[name].variable)
            kept = {k: v for k, v in plain[name].attrs.items() if k != "long_name"}
            assert {k: v for k, v in ds[name].attrs.items() if k != "long_name"} == kept


def test_nothing_is_decoded_before_it_is_asked_for(lat: Path) -> None:
    code = (
        f"import sys, numpy, xarray\nfrom sunzip.xarray import SunzipBackend\n"
        f"assert SunzipBackend().guess_can_open({str(lat)!r})\n"
        f"assert not {{'torch', 'zarr', 'dask', 'astropy'}} & set(sys.modules), 'guessing'\n"
        f"ds = xarray.open_dataset({str(lat)!r}, engine=SunzipBackend, latents=True)\n"
        f"ds.cube[1:3].isel(channel=0), repr(ds), ds.t_obs.values, ds.latents[0].values\n"
        f"assert 'torch' not in sys.modules, 'opening'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        ({"time": 4}, 1),
        ({"time": 4, "channel": 0, "y": 3}, 1),
        ({"time": [4, 4, 1]}, 2),
        ({"time": slice(None, None, 3)}, 3),
        ({"time": 3, "channel": 1}, 0),
        ({"time": 0, "channel": slice(0, 0)}, 0),
        ({"time": slice(0, 0)}, 0),
    ],
)
def test_only_frames_asked_for_go_through_the_network(
    ds: xr.Dataset, runs: list[int], whole: np.ndarray, pick: dict, expected: int
) -> None:
    found = ds.cube.isel(pick).values
    assert sum(runs) == expected
    np.testing.assert_array_equal(found, xr.DataArray(whole, dims=ds.cube.dims).isel(pick).values)


def test_light_curves_are_cut_out_piece_by_piece(
    ds: xr.Dataset, runs: list[int], whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sunzip.xarray._PIXELS", 2 * SIZE * SIZE)
    pieces = []
    real = sunzip.Sun.take

    def taking(self: sunzip.Sun, frames: list[int], channels: list[str]) -> np.ndarray:
        pieces.append((frames, channels))
        return real(self, frames, channels)

    monkeypatch.setattr(sunzip.Sun, "take", taking)
    np.testing.assert_array_equal(ds.cube[:, 1, 16, 16].values, whole[:, 1, 16, 16])
    assert pieces == [([t for t in (b, b + 1) if t < FRAMES], ["304A"]) for b in range(0, FRAMES, 2)]
    assert sum(runs) == FRAMES - 1  # of frame 3 there is no image of this channel


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple:
    """Outer indexers: integers, slices and lists of integers, negative ones too."""
    found = []
    for n in shape:
        one = st.integers(-n, n - 1)
        found.append(draw(one | st.slices(n) | st.lists(one, max_size=4).map(lambda v: np.array(v, int))))
    return tuple(found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys((FRAMES, 3, SIZE, SIZE)))
def test_indexing_is_that_of_numpy(ds: xr.Dataset, whole: np.ndarray, key: tuple) -> None:
    opened = xr.open_dataset(ds.encoding["source"])
    expected = xr.DataArray(whole, dims=opened.cube.dims)[key]
    np.testing.assert_array_equal(opened.cube[key].values, expected.values)
    table = xr.DataArray(ds.err_rmse.values, dims=ds.err_rmse.dims)[key[:2]]
    np.testing.assert_array_equal(opened.err_rmse[key[:2]].values, table.values)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=keys((FRAMES,)), second=st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_lazy_indexing_twice_is_indexing_twice(
    ds: xr.Dataset, whole: np.ndarray, first: tuple, second: list[int]
) -> None:
    expected = xr.DataArray(whole, dims=ds.cube.dims)[first].isel(channel=second, y=-1)
    cube = xr.open_dataset(ds.encoding["source"]).cube
    np.testing.assert_array_equal(cube[first].isel(channel=second, y=-1).values, expected.values)


def test_vectorised_indexing_works_too(ds: xr.Dataset, whole: np.ndarray) -> None:
    at = xr.DataArray([0, 5, 2], dims="point")
    found = ds.cube.isel(time=at, y=at, x=at).values
    np.testing.assert_array_equal(found, whole[at, :, at, at])


def test_selection_by_time_and_channel(ds: xr.Dataset, whole: np.ndarray) -> None:
    one = ds.sel(channel="304A").sel(time="2014-01-01T00:13", method="nearest")
    np.testing.assert_array_equal(one.cube.values, whole[1, 1])
    assert one.unit.item() == "DN/s"
    part = ds.sel(time=slice("2014-01-01T00:12", "2014-01-01T00:36"), channel=["Bz", "171A"])
    np.testing.assert_array_equal(part.cube.values, whole[1:4, [2, 0]])


def test_missing_images_are_nan_and_not_valid(ds: xr.Dataset) -> None:
    assert not ds.valid.values[3, 1]
    assert np.isnat(ds.t_obs.values[3, 1])
    assert np.isnan(ds.cube.values[3, 1]).all()
    assert np.isnan(ds.cube.values[5, 0, 4, 9])
    assert ds.valid.values.sum() == FRAMES * 3 - 1


def test_tables_are_those_of_the_archive(ds: xr.Dataset, lat: Path) -> None:
    with sunzip.open(lat) as sun:
        archive = sun.archive
        for name in ("t_obs", "valid", "exptime", "deg_cor"):
            np.testing.assert_array_equal(ds[name].values, getattr(archive, name))
        for name, values in archive.stats.items():
            np.testing.assert_array_equal(ds[name].values, values)
        unknown = archive.quality == np.iinfo(np.int64).min
        np.testing.assert_array_equal(np.isnan(ds.quality.values), unknown)
        np.testing.assert_array_equal(ds.quality.values[~unknown], archive.quality[~unknown])


def test_channels_are_chosen(lat: Path, whole: np.ndarray, runs: list[int]) -> None:
    with xr.open_dataset(lat, channels=["Bz", "aia 171"]) as some:
        assert some.channel.values.tolist() == ["171A", "Bz"]
        np.testing.assert_array_equal(some.cube[1:3].values, whole[1:3, [0, 2]])
        np.testing.assert_array_equal(some.err_max.values[:, 1], xr.open_dataset(lat).err_max.values[:, 2])
        assert sum(runs) == 2
    with xr.open_dataset(lat, channels="304A") as one:
        assert one.cube.shape == (FRAMES, 1, SIZE, SIZE)
    with pytest.raises(InputError, match=r"sun\.lat: has no 94A; it holds 171A 304A Bz"):
        xr.open_dataset(lat, channels="94A")


def test_latents_run_no_network(lat: Path, runs: list[int]) -> None:
    with xr.open_dataset(lat, latents=True) as ds, sunzip.open(lat) as sun:
        assert ds.latents.dims == ("time", "latent", "latent_y", "latent_x")
        expected = sun.latents[:]
        np.testing.assert_array_equal(ds.latents.values, expected)
        fresh = xr.open_dataset(lat, latents=True).latents
        np.testing.assert_array_equal(fresh[[5, 2], ::3, 0].values, expected[[5, 2]][:, ::3, 0])
    assert runs == []


def test_variables_are_dropped(lat: Path) -> None:
    with xr.open_dataset(lat, drop_variables=["cube", "err_r", "nonsense"]) as ds:
        assert not {"cube", "err_r"} & set(ds.variables)
    with xr.open_dataset(lat, drop_variables="quality") as ds:
        assert "quality" not in ds


# What is ours


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_guessing_takes_our_files_and_leaves_others(lat: Path, tmp_path: Path) -> None:
    guess = SunzipBackend().guess_can_open
    data = lat.read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a", "b")
        other.comment = b"sunzip sha256:" + b"x" * 64
    assert guess(lat)
    assert guess(str(lat))
    assert guess(write(tmp_path / "sun.zip", data))
    assert guess("s3://bucket/folder/sun.lat")
    assert guess(tmp_path / "absent.lat")
    assert guess(write(tmp_path / "short.lat", data[:1000]))
    assert guess(write(tmp_path / "empty.lat", b""))
    assert not guess(tmp_path / "other.zip")
    assert not guess(write(tmp_path / "table.lat", b"50.1 7.3\n" * 30))
    assert not guess(write(tmp_path / "short.zip", data[:1000]))
    assert not guess(write(tmp_path / "empty", b""))
    assert not guess(tmp_path / "absent.nc")
    (tmp_path / "folder.lat").mkdir()
    assert not guess(tmp_path / "folder.lat")


def test_a_home_is_found(lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "sun.bin", lat.read_bytes())
    with xr.open_dataset("~/sun.bin") as ds, xr.open_dataset(lat) as same:
        assert ds.equals(same)


@pytest.mark.parametrize(
    "thing",
    [b"out.lat", io.BytesIO(b"PK\3\4"), None, 3, "", "\0.lat", object(), "s3://b/out.zarr", "http://"],
)
def test_guessing_never_raises(thing: object) -> None:
    assert SunzipBackend().guess_can_open(thing) is False


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30) | st.binary(max_size=30))
def test_guessing_never_raises_for_any_name(name: str | bytes) -> None:
    assert SunzipBackend().guess_can_open(name) in (True, False)


def test_a_fifo_does_not_block_guessing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.lat")
    assert not SunzipBackend().guess_can_open(tmp_path / "pipe.lat")


@pytest.mark.parametrize(("cut", "error"), [(-1, DamagedError), (0, DamagedError), (None, InputError)])
def test_errors_are_sunzips_own(lat: Path, tmp_path: Path, cut: int | None, error: type) -> None:
    path = tmp_path / "bad.lat"
    if cut is not None:
        path.write_bytes(lat.read_bytes()[:cut])
    with pytest.raises(error, match=r"bad\.lat") as caught:
        xr.open_dataset(path)
    assert "\n" not in str(caught.value)


def test_damage_inside_is_an_error_not_nan(lat: Path, tmp_path: Path) -> None:
    data = bytearray(lat.read_bytes())
    with sunzip.open(lat) as sun:
        data[data.find(sun.archive.block(1)) + 30] ^= 1
    path = write(tmp_path / "sun.lat", bytes(data))
    with xr.open_dataset(path) as ds:
        assert np.isfinite(ds.cube[0, 0].values).all()
        with pytest.raises(DamagedError, match="frame 2"):
            ds.cube[2].values


@pytest.mark.parametrize("opened", ["file", "bytes"])
def test_streams_are_refused(lat: Path, opened: str) -> None:
    thing = io.BytesIO(lat.read_bytes()) if opened == "file" else lat.read_bytes()
    with pytest.raises(InputError, match="opens paths and URLs"):
        xr.open_dataset(thing, engine="sunzip")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"decode_times": False}, "decode_times=True"),
        ({"mask_and_scale": False}, "mask_and_scale=True"),
        ({"decode_timedelta": True}, "decode_timedelta=False"),
        ({"use_cftime": True}, "use_cftime=False"),
        ({"decode_cf": False}, "mask_and_scale=True"),
    ],
)
def test_archives_are_opened_decoded_alone(lat: Path, option: dict[str, bool], named: str) -> None:
    with pytest.raises(InputError, match=f"opens archives decoded.* takes {named} alone") as caught:
        xr.open_dataset(lat, **option)
    assert "\n" not in str(caught.value)


def test_options_that_ask_for_what_is_done_anyhow_are_taken(ds: xr.Dataset, lat: Path) -> None:
    wishes = {"decode_times": True, "mask_and_scale": True, "decode_timedelta": False, "decode_coords": "all"}
    with xr.open_dataset(lat, **wishes) as same:
        xr.testing.assert_identical(same, ds)


@pytest.mark.usefixtures("nothing_registered")
def test_a_model_that_is_not_here_is_named_when_needed(other_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    source = join([Patchy(frames=1, size=SIZE, start="2014-01-01", channels=CHANNELS)])
    api.compress(source, path, model=other_model)
    for name, data in other_model.files.items():
        (tmp_path / name).write_bytes(data)
    from sunzip import codec, weights

    weights._REGISTERED.clear()
    codec._codec.cache_clear()
    with xr.open_dataset(path) as ds:
        assert ds.err_r.notnull().all()
        with pytest.raises(ModelNotFoundError, match="other"):
            ds.cube.values
    with xr.open_dataset(path, model=tmp_path) as ds:
        assert np.isfinite(ds.cube.values).all()


# Threads, processes, Dask


def test_threads_share_a_dataset(ds: xr.Dataset, whole: np.ndarray) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: ds.cube[t % FRAMES].values, range(3 * FRAMES)))
    for t, image in enumerate(found):
        np.testing.assert_array_equal(image, whole[t % FRAMES])


def test_more_datasets_than_files_may_be_open(lat: Path, whole: np.ndarray) -> None:
    with xr.set_options(file_cache_maxsize=2):
        many = [xr.open_dataset(lat) for _ in range(5)]
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda d: d.cube[1].values, many))
    for image in images:
        np.testing.assert_array_equal(image, whole[1])
    for d in many:
        d.close()


def test_a_file_that_xarray_closes_is_read_to_the_end(
    lat: Path, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Sun.take

    def once_closed(self: Sun, *args: Any) -> Any:
        # As releases do that do not look who reads, in another thread, beyond `file_cache_maxsize`.
        for file in FILE_CACHE.values():
            file.close()
        return take(self, *args)

    monkeypatch.setattr(Sun, "take", once_closed)
    with xr.open_dataset(lat) as ds:
        np.testing.assert_array_equal(ds.cube[1].values, whole[1])


def test_closed_files_are_closed(lat: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(3):
        xr.open_dataset(lat).close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_pickled_dataset_does_not_read_another_archive(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.lat", tiny_model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with xr.open_dataset("a.lat", engine="sunzip") as ds:
        expected, pickled = ds.cube[0].values, pickle.dumps(ds)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pickle.loads(pickled) as again:
        np.testing.assert_array_equal(again.cube[0].values, expected)
    make(tmp_path / "a.lat", tiny_model, start="2015-01-01", force=True)
    with (
        pickle.loads(pickled) as again,
        pytest.raises(DamagedError, match="was replaced since it was opened"),
    ):
        _ = again.cube[0].values


def test_pickled_datasets_read_on(ds: xr.Dataset, whole: np.ndarray) -> None:
    data = pickle.dumps(ds)
    assert len(data) < 50_000  # the file is named, not carried
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.cube[4].values, whole[4])


def _image(ds: xr.Dataset) -> np.ndarray:
    return ds.cube[4, 1].values


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_on(ds: xr.Dataset, whole: np.ndarray, method: str) -> None:
    ds.t_obs.load()  # the file is open before the fork
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        np.testing.assert_array_equal(pool.submit(_image, ds).result(60), whole[4, 1])
    np.testing.assert_array_equal(_image(ds), whole[4, 1])


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_dask_decodes_block_by_block(lat: Path, whole: np.ndarray, scheduler: str) -> None:
    dask = pytest.importorskip("dask")
    with xr.open_dataset(lat, chunks={}) as ds:
        assert ds.cube.chunks == ((2, 2, 2, 1), (3,), (SIZE,), (SIZE,))
        assert ds.chunks["time"] == (2, 2, 2, 1)  # the same for all variables
        options = {"num_workers": 2} if scheduler == "processes" else {}
        with dask.config.set(scheduler=scheduler, **options):
            found = ds.cube.mean("time").compute()
    np.testing.assert_allclose(found.values, np.nanmean(whole, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", ["auto", {}])
def test_chunks_of_any_kind_are_loaded_pickled_and_written(
    lat: Path, whole: np.ndarray, tmp_path: Path, chunks: object
) -> None:
    pytest.importorskip("dask")
    with xr.open_dataset(lat, engine="sunzip", chunks=chunks) as ds:
        assert ds.cube.chunks is not None
        again = pickle.loads(pickle.dumps(ds)).load()
        np.testing.assert_array_equal(again.cube.values, whole)
        assert again.unit.values.tolist() == ["DN/s", "DN/s", "G"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", xr.SerializationWarning)
            ds.to_netcdf(tmp_path / "out.nc")
            # Texts of fixed size would be of no type that Zarr format 3 specifies.
            warnings.filterwarnings("error", ".*does not have a Zarr V3 specification")
            ds.chunk({"time": FRAMES}).to_zarr(tmp_path / "out.zarr", zarr_format=3, consolidated=False)
        exact = xr.coders.CFDatetimeCoder(time_unit="ms")
        for back in (
            xr.open_dataset(tmp_path / "out.nc", decode_times=exact),
            xr.open_zarr(tmp_path / "out.zarr", decode_times=exact, consolidated=False),
        ):
            with back:
                xr.testing.assert_identical(back.load(), again)


def test_archives_are_joined_in_time(lat: Path, tiny_model: Model, tmp_path: Path, whole: np.ndarray) -> None:
    pytest.importorskip("dask")
    later = make(tmp_path / "later.lat", tiny_model, "2014-01-01T01:24")
    with xr.open_mfdataset([lat, later], combine="by_coords", compat="override", coords="minimal") as ds:
        assert ds.sizes["time"] == 2 * FRAMES
        assert ds.t_obs.dims == ("time", "channel")
        np.testing.assert_array_equal(ds.cube[:FRAMES].values, whole)
        assert np.isfinite(ds.cube[FRAMES + 1].values).all()


# Into files


@pytest.mark.parametrize("engine", ["scipy", "netcdf4", "h5netcdf", None])
def test_netcdf_holds_the_same(ds: xr.Dataset, tmp_path: Path, engine: str | None) -> None:
    if engine and engine not in xr.backends.list_engines():
        pytest.skip(f"{engine} is not installed")
    ds.to_netcdf(tmp_path / "out.nc", engine=engine)
    exact = xr.coders.CFDatetimeCoder(time_unit="ms")
    with xr.open_dataset(tmp_path / "out.nc", decode_times=exact) as back:
        assert back.cube.dtype == np.float32
        xr.testing.assert_identical(back.load(), ds.load())


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_holds_the_same(lat: Path, tmp_path: Path, zarr_format: int) -> None:
    with xr.open_dataset(lat, chunks={}) as ds:
        ds.to_zarr(tmp_path / "out.zarr", zarr_format=zarr_format)
        exact = xr.coders.CFDatetimeCoder(time_unit="ms")
        with xr.open_zarr(tmp_path / "out.zarr", decode_times=exact) as back:
            xr.testing.assert_identical(back.load(), ds.load())
        with xr.open_zarr(tmp_path / "out.zarr") as back:
            np.testing.assert_array_equal(back.time.values, ds.time.values)
            late = back.t_obs.values - ds.t_obs.values
            assert (np.abs(late[ds.valid.values]) < np.timedelta64(1, "us")).all()


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_single_channel_of_dask_keeps_its_unit(
    lat: Path, tmp_path: Path, zarr_format: int, name: str
) -> None:
    pytest.importorskip("dask")
    with xr.open_dataset(lat, chunks={}) as ds:
        one = ds.sel(channel=name)
        one.to_netcdf(tmp_path / "out.nc")
        one.to_zarr(tmp_path / "out.zarr", zarr_format=zarr_format)
        for back in (xr.open_dataset(tmp_path / "out.nc"), xr.open_zarr(tmp_path / "out.zarr")):
            with back:
                assert back.unit.values == one.unit.values == ("G" if name == "Bz" else "DN/s")


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [None, {}])
def test_a_zarr_store_grows_in_time(lat: Path, tmp_path: Path, zarr_format: int, chunks: object) -> None:
    if chunks is not None:
        pytest.importorskip("dask")
    out = tmp_path / "out.zarr"
    with xr.open_dataset(lat, chunks=chunks) as ds:
        ds.isel(time=slice(0, 4)).to_zarr(out, zarr_format=zarr_format)
        ds.isel(time=slice(4, None)).to_zarr(out, append_dim="time")
        with xr.open_zarr(out, decode_times=xr.coders.CFDatetimeCoder(time_unit="ms")) as back:
            xr.testing.assert_identical(back.load(), ds.load())


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_the_codec_codes_again_in_zarr(
    ds: xr.Dataset, tmp_path: Path, tiny_model: Model, zarr_codec: str
) -> None:
    from sunzip.zarr import SunzipCodec

    codec = SunzipCodec(tiny_model.sha256, CHANNELS)
    chunks = (1, *ds.cube.shape[1:])
    encoding = {"cube": {"serializer": codec, "compressors": None, "chunks": chunks}}
    ds.to_zarr(tmp_path / "out.zarr", zarr_format=3, encoding=encoding)
    with xr.open_zarr(tmp_path / "out.zarr") as back:
        assert back.cube.encoding["serializer"] == codec
        assert not back.cube.encoding["compressors"]
        expected = codec._codec().decode(
            codec._codec().encode(ds.cube.values, CHANNELS), CHANNELS, (SIZE, SIZE)
        )
        np.testing.assert_array_equal(back.cube.values, expected)
        xr.testing.assert_equal(back.err_r.variable, ds.err_r.variable)
    size = sum(p.stat().st_size for p in (tmp_path / "out.zarr" / "cube").rglob("*") if p.is_file())
    assert size < ds.cube.nbytes / 4


def test_an_image_plots_itself(ds: xr.Dataset) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = ds.cube.sel(channel="171A").isel(time=0).plot()
    assert "arcsec" in drawn.axes.get_xlabel()
    assert "171A" in drawn.axes.get_title()
    pyplot.close("all")
