"""Latents as tables: the latents to the bit, in each format, in bounded steps, and without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sunzip
from sunzip import api, features
from sunzip.errors import InputError, ModelNotFoundError, OutputError
from sunzip.features import MAX_COLUMNS, export_features, pooled
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.sun import _Latents
from sunzip.weights import Model

ROOT = Path(__file__).parents[1]
FRAMES, SIZE, WIDTH = 12, 48, 8 * 3 * 3
START = np.datetime64("2014-01-01", "ms")
FORMATS = ("h5", "zarr", "csv", "parquet")


class Patchy(Synthetic):
    """Frame 3 has no image, and frame 5 lacks Bz."""

    def read(self, channel: str, row: int) -> np.ndarray:
        rng = np.random.default_rng([row, len(channel), ord(channel[1])])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
        pixels = (100 + 80 * waves + rng.normal(0, 5, (SIZE, SIZE))).astype(np.float32)
        if row == 3 or (row, channel) == (5, "Bz"):
            pixels[:] = np.nan
        return pixels


@pytest.fixture(scope="module")
def lat(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames with latents of 8×3×3 numbers, and the model."""
    path = tmp_path_factory.mktemp("features") / "sun.lat"
    source = Patchy(frames=FRAMES, size=SIZE, start=START, channels=("171A", "Bz"))
    api.compress(join([source]), path, model=tiny_model, embed_model=True)
    return path


@pytest.fixture(scope="module")
def latents(lat: Path) -> np.ndarray:
    with sunzip.open(lat) as sun:
        return sun.latents[:]


@pytest.fixture(scope="module")
def sigma(sigma_model: Model, frames_of: Callable[..., np.ndarray], tmp_path_factory) -> Path:
    """Two frames of the paper's model."""
    path = tmp_path_factory.mktemp("features") / "paper.lat"
    source = Synthetic(frames=2, size=128, start=START, channels=("171A",))
    images = frames_of(2, 1, 128, 128)
    source.read = lambda channel, row: images[row, 0]  # type: ignore[method-assign]
    api.compress(join([source]), path, model=sigma_model, embed_model=True)
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read times and features as users of each format do."""
    match path.suffix:
        case ".h5":
            with h5py.File(path) as file:
                return file["time"][:].astype("datetime64[ms]"), file["features"][:]
        case ".zarr":
            found = xr.open_zarr(path)
            return found.time.values, found.features.values
        case ".csv":
            table = pd.read_csv(path, dtype={f"f{i}": np.float32 for i in range(MAX_COLUMNS)})
            table["time"] = pd.to_datetime(table["time"])
        case ".parquet":
            table = pd.read_parquet(path)
    assert list(table.columns) == ["time", *(f"f{i}" for i in range(table.shape[1] - 1))]
    assert str(table["time"].dt.tz) == "UTC"
    return table["time"].dt.tz_localize(None).to_numpy(), table.iloc[:, 1:].to_numpy()


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_are_the_latents_to_the_bit(
    lat: Path, latents: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"a.{suffix}"
    report = export_features(lat, out)
    times, found = read(out)
    np.testing.assert_array_equal(times, START + np.arange(FRAMES) * np.timedelta64(12, "m"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, latents.reshape(FRAMES, WIDTH))
    assert np.isnan(found[3]).all()
    assert not np.isnan(np.delete(found, 3, 0)).any()
    assert (report.frames, report.empty, report.features) == (FRAMES, 1, WIDTH)
    assert report.format == {"h5": "hdf5"}.get(suffix, suffix)
    assert (report.first, report.last) == ("2014-01-01T00:00:00.000Z", "2014-01-01T02:12:00.000Z")
    assert json.loads(json.dumps(report.as_dict()))["latent_shape"] == [8, 3, 3]
    assert os.listdir(tmp_path) == [out.name]


def test_numbers_of_a_table_are_whole_however_numpy_prints(
    lat: Path, latents: np.ndarray, tmp_path: Path
) -> None:
    with np.printoptions(legacy="1.13"):
        export_features(lat, tmp_path / "a.csv")
    np.testing.assert_array_equal(read(tmp_path / "a.csv")[1], latents.reshape(FRAMES, WIDTH))


def test_hdf5_and_zarr_hold_what_explains_them(lat: Path, tiny_model: Model, tmp_path: Path) -> None:
    for name in ("a.h5", "a.zarr"):
        export_features(lat, tmp_path / name, pool=2, pca=3, fit_until="2014-01-01T01:30")
    with h5py.File(tmp_path / "a.h5") as file:
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        projection = {"pca_mean", "pca_components", "pca_explained_variance_ratio"}
        assert set(file) == set(group) == {"features", "time", "valid", "channel"} | projection
        for name in file:
            labels = tuple(dim.label for dim in file[name].dims)
            assert labels == group[name].metadata.dimension_names
            mine = file[name].asstr()[:] if name == "channel" else file[name][:]
            np.testing.assert_array_equal(mine, group[name][:])
        assert file["channel"].asstr()[:].tolist() == ["171A", "Bz"]
        assert file["valid"][[3, 4, 5]].tolist() == [[False, False], [True, True], [True, False]]
        assert file["time"].attrs["units"] == "milliseconds since 1970-01-01"
        for attributes in (dict(file.attrs), dict(group.attrs)):
            assert list(attributes.pop("latent_shape")) == [8, 2, 2]
            assert attributes == {
                "sunzip_layout": "features-1",
                "archive": str(lat),
                "model": "tiny",
                "model_sha256": tiny_model.sha256,
                "quality": 50,
                "pool": 2,
                "pca": 3,
                "fit_until": "2014-01-01T01:30",
                "fitted": 7,
            }


def test_xarray_opens_zarr_without_a_warning(lat: Path, tmp_path: Path, recwarn) -> None:
    export_features(lat, tmp_path / "a.zarr")
    found = xr.open_zarr(tmp_path / "a.zarr")
    assert found.features.dims == ("time", "feature")
    assert found.valid.dims == ("time", "channel")
    assert found.channel.values.tolist() == ["171A", "Bz"]
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning | RuntimeWarning)] == []


def test_where_they_come_from_lets_nobody_in(lat: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/me:word@host/a.lat", lat.read_bytes())
    try:
        export_features("memory://me:word@host/a.lat", tmp_path / "f.h5")
    finally:
        memory.rm("/me:word@host", recursive=True)
    with h5py.File(tmp_path / "f.h5") as file:
        assert file.attrs["archive"] == "memory://host/a.lat"


def test_parquet_says_where_it_comes_from(lat: Path, tiny_model: Model, tmp_path: Path) -> None:
    export_features(lat, tmp_path / "a.parquet", pool=1)
    about = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"sunzip"])
    assert (about["model_sha256"], about["pool"], about["latent_shape"]) == (tiny_model.sha256, 1, [8, 1, 1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_steps_and_chunks_do_not_show(
    lat: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_features(lat, tmp_path / f"whole.{suffix}")
    monkeypatch.setattr(features, "_STRETCH", 5 * WIDTH)
    monkeypatch.setattr(features, "_CHUNK", 3 * WIDTH)
    seen: list[api.Progress] = []
    export_features(lat, tmp_path / f"steps.{suffix}", progress=seen.append)
    for a, b in zip(read(tmp_path / f"whole.{suffix}"), read(tmp_path / f"steps.{suffix}"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [(p.done, p.total) for p in seen] == [(0, 12), (5, 12), (10, 12), (12, 12)]
    assert seen[-1].raw_bytes == 4 * FRAMES * WIDTH


def test_start_and_stop(lat: Path, latents: np.ndarray, tmp_path: Path) -> None:
    report = export_features(lat, tmp_path / "a.h5", start="2014-01-01T00:30", stop="2014-01-01T01:00")
    times, found = read(tmp_path / "a.h5")
    assert report.frames == 2
    np.testing.assert_array_equal(found, latents[3:5].reshape(2, -1))
    assert times[0] == np.datetime64("2014-01-01T00:36")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["valid"][:].tolist() == [[False, False], [True, True]]


def test_the_paper_s_latents_are_a_vector(sigma: Path, tmp_path: Path) -> None:
    report = export_features(sigma, tmp_path / "a.csv")
    with sunzip.open(sigma) as sun:
        np.testing.assert_array_equal(read(tmp_path / "a.csv")[1], sun.latents[:])
    assert report.latent_shape == (8,)
    with pytest.raises(InputError, match="are no maps: leave out pool"):
        export_features(sigma, tmp_path / "b.csv", pool=2)
    assert not (tmp_path / "b.csv").exists()


def test_torch_is_never_loaded(lat: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sunzip.cli import program\n"
        "try: program.main(sys.argv[1:])\n"
        "finally: assert not any(m.split('.')[0] == 'torch' for m in sys.modules)"
    )
    words = ["features", lat, tmp_path / "a.zarr", "--pool", "2", "--pca", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["features"] == 2


# --- pooling ----------------------------------------------------------------------------------------------

maps = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(maps, st.data())
def test_pooling_is_torch_s_adaptive_average(values: np.ndarray, data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")

    fields = data.draw(st.integers(1, min(values.shape[2:])))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values).double(), fields)
    np.testing.assert_allclose(pooled(values, fields), expected.numpy(), rtol=1e-6, atol=1e-2)


@given(maps)
def test_pooling_over_the_full_grid_changes_nothing(values: np.ndarray) -> None:
    side = min(values.shape[2:])
    np.testing.assert_array_equal(pooled(values[..., :side, :side], side), values[..., :side, :side])


@given(maps)
def test_pooling_to_one_field_is_the_exactly_rounded_mean_of_what_is_equal(values: np.ndarray) -> None:
    same = np.broadcast_to(values[:, :, :1, :1], values.shape)
    np.testing.assert_array_equal(pooled(same, 1), same[:, :, :1, :1])


def test_pooling_does_not_depend_on_memory_order_or_on_the_other_frames(latents: np.ndarray) -> None:
    once = pooled(latents, 2)
    np.testing.assert_array_equal(pooled(np.asfortranarray(latents), 2), once)
    np.testing.assert_array_equal(
        np.concatenate([pooled(latents[i : i + 1], 2) for i in range(FRAMES)]), once
    )
    assert np.isnan(once[3]).all()


def test_pooling_reaches_the_file(lat: Path, latents: np.ndarray, tmp_path: Path) -> None:
    export_features(lat, tmp_path / "a.h5", pool=2)
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[1], pooled(latents, 2).reshape(FRAMES, -1))
    export_features(lat, tmp_path / "b.h5", pool=3)
    np.testing.assert_array_equal(read(tmp_path / "b.h5")[1], latents.reshape(FRAMES, -1))
    with pytest.raises(InputError, match="3×3 cannot be pooled to 4×4"):
        export_features(lat, tmp_path / "c.h5", pool=4)


# --- principal components -----------------------------------------------------------------------------------


def components(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name.removeprefix("pca_"): file[name][:] for name in file if name.startswith("pca_")}


def test_all_components_reconstruct_the_latents(lat: Path, latents: np.ndarray, tmp_path: Path) -> None:
    report = export_features(lat, tmp_path / "a.h5", pca=FRAMES - 2)
    found, by = read(tmp_path / "a.h5")[1], components(tmp_path / "a.h5")
    there = np.delete(np.arange(FRAMES), 3)
    original = latents.reshape(FRAMES, -1)
    scale = original[there].std()
    back = found[there] @ by["components"] + by["mean"]
    np.testing.assert_allclose(back, original[there], atol=1e-3 * scale)
    np.testing.assert_allclose(by["components"] @ by["components"].T, np.eye(FRAMES - 2), atol=1e-4)
    np.testing.assert_allclose(by["mean"], original[there].mean(0), atol=1e-4 * scale)
    assert np.isnan(found[3]).all()
    assert report.fitted == FRAMES - 1
    assert report.explained_variance == pytest.approx(1, abs=1e-4)


def test_components_are_those_of_a_whole_fit(lat: Path, latents: np.ndarray, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    report = export_features(lat, tmp_path / "a.h5", pool=1, pca=3)
    rows = np.delete(pooled(latents, 1).reshape(FRAMES, -1), 3, 0).astype(np.float64)
    whole = PCA(3).fit(rows)
    by = components(tmp_path / "a.h5")
    np.testing.assert_allclose(np.abs(by["components"] @ whole.components_.T), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(by["explained_variance_ratio"], whole.explained_variance_ratio_, rtol=1e-4)
    assert report.explained_variance == pytest.approx(whole.explained_variance_ratio_.sum(), rel=1e-4)


def test_components_fitted_in_steps_are_nearly_those_of_one(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_features(lat, tmp_path / "one.h5", pool=1, pca=2)
    monkeypatch.setattr(features, "_FIT_FRAMES", 4)
    monkeypatch.setattr(features, "_STRETCH", 3 * WIDTH)
    seen: list[api.Progress] = []
    report = export_features(lat, tmp_path / "steps.h5", pool=1, pca=2, progress=seen.append)
    a, b = (components(tmp_path / name) for name in ("one.h5", "steps.h5"))
    np.testing.assert_allclose(b["mean"], a["mean"], rtol=1e-4, atol=1e-4)
    alike = np.linalg.svd(a["components"] @ b["components"].T)[1]
    assert (alike > 0.9).all()
    assert report.fitted == FRAMES - 1
    assert (seen[-1].done, seen[-1].total) == (2 * FRAMES, 2 * FRAMES)


@pytest.mark.parametrize(("kept", "times"), [(1 << 26, 1), (5 * 8, 2)])
def test_what_components_were_fitted_on_is_decoded_once(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, times: int
) -> None:
    export_features(lat, tmp_path / "a.h5", pool=1, pca=2)
    monkeypatch.setattr(features, "_KEPT", kept)
    monkeypatch.setattr(features, "_STRETCH", 3 * WIDTH)
    decoded: list[slice] = []
    take = _Latents.__getitem__

    def noted(self: _Latents, when: slice) -> np.ndarray:
        decoded.append(when)
        return take(self, when)

    monkeypatch.setattr(_Latents, "__getitem__", noted)
    seen: list[api.Progress] = []
    export_features(lat, tmp_path / "b.h5", pool=1, pca=2, progress=seen.append)
    assert (len(decoded) == len(set(map(str, decoded)))) == (times == 1)
    assert seen[-1].done == seen[-1].total == 2 * FRAMES
    np.testing.assert_array_equal(read(tmp_path / "b.h5")[1], read(tmp_path / "a.h5")[1])


def test_components_are_the_same_each_time(lat: Path, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        export_features(lat, tmp_path / name, pca=4)
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[1], read(tmp_path / "b.h5")[1])


def test_nothing_of_later_frames_leaks_into_the_components(
    lat: Path, latents: np.ndarray, tmp_path: Path
) -> None:
    until = "2014-01-01T01:24"
    report = export_features(lat, tmp_path / "all.h5", pca=3, fit_until=until)
    export_features(lat, tmp_path / "past.h5", pca=3, stop=until)
    mine, past = components(tmp_path / "all.h5"), components(tmp_path / "past.h5")
    for name in mine:
        np.testing.assert_array_equal(mine[name], past[name])
    assert report.fitted == 6
    found = read(tmp_path / "all.h5")[1]
    np.testing.assert_allclose(found[:7], read(tmp_path / "past.h5")[1], rtol=1e-5, atol=1e-3)
    later = (latents[7:].reshape(5, -1) - mine["mean"]) @ mine["components"].T
    np.testing.assert_allclose(found[7:], later, rtol=1e-4, atol=1e-3)


def test_frames_without_variance(tiny_model: Model, tmp_path: Path) -> None:
    source = Synthetic(frames=2, size=32, start=START, channels=("171A",))
    source.read = lambda channel, row: np.full((32, 32), 100, np.float32)  # type: ignore[method-assign]
    api.compress(join([source]), tmp_path / "a.lat", model=tiny_model)
    report = export_features(tmp_path / "a.lat", tmp_path / "a.h5", pca=1)
    assert report.explained_variance == 0
    assert (np.abs(read(tmp_path / "a.h5")[1]) < 1e-3).all()


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_until": "2014-01-02"}, "fit_until .* add pca"),
        ({"pca": 73}, "73 principal components; there can be 1 to 72"),
        ({"pca": 0}, r"pca \(--pca\) must be a whole number from 1 up, not 0"),
        ({"pca": 11}, "11 principal components need more frames .* there are 11"),
        ({"pca": 1, "stop": "2014-01-01T00:12"}, "1 principal components need more frames .* there are 1"),
        ({"pca": 2, "fit_until": "2014-01-01"}, "no frame before 2014-01-01 to fit"),
        ({"pca": 2, "fit_until": "soon"}, "fit_until 'soon' is not a date"),
        ({"pool": 0}, r"pool \(--pool\) must be a whole number from 1 up, not 0"),
        ({"start": "2015-01-01"}, "no frame from 2015-01-01 to its end"),
        ({"start": 3, "stop": 0}, "no frame from 3 to 0"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(lat: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_features(lat, tmp_path / "a.h5", **options)
    assert os.listdir(tmp_path) == []


def test_too_many_columns_are_refused_in_tables_alone(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAX_COLUMNS", WIDTH - 1)
    for suffix in ("csv", "parquet"):
        with pytest.raises(InputError, match=r"72 columns are more than the 71 .*--pool.*--pca"):
            export_features(lat, tmp_path / f"a.{suffix}")
        export_features(lat, tmp_path / f"b.{suffix}", pool=1)
    export_features(lat, tmp_path / "a.h5")


def test_unknown_formats_are_refused(lat: Path, tmp_path: Path) -> None:
    for name in ("a", "a.txt", "csv"):
        with pytest.raises(InputError, match=r"are written to \*.h5, \*.zarr, \*.csv or \*.parquet"):
            export_features(lat, tmp_path / name)


def test_a_model_that_is_not_at_hand(tiny_model: Model, tmp_path: Path, nothing_registered: None) -> None:
    source = Patchy(frames=1, size=SIZE, channels=("171A",))
    api.compress(join([source]), tmp_path / "a.lat", model=tiny_model)
    with pytest.raises(ModelNotFoundError):
        export_features(tmp_path / "a.lat", tmp_path / "a.h5")
    export_features(tmp_path / "a.lat", tmp_path / "a.h5", model=tiny_model)


@pytest.mark.parametrize(("library", "out"), [("sklearn.decomposition", "a.h5"), ("pyarrow", "a.parquet")])
def test_libraries_that_are_absent_are_named(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, out: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r"pip install '\.\[features\]'"):
        export_features(lat, tmp_path / out, pca=2 if "sklearn" in library else None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_is_replaced_unless_forced_and_whole(lat: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a.{suffix}"
    export_features(lat, out, pool=1)
    before = read(out)[1]
    seen: list[api.Progress] = []
    with pytest.raises(OutputError, match="exists"):
        export_features(lat, out, pool=2, pca=2, progress=seen.append)
    with pytest.raises(OutputError, match="does not exist"):
        export_features(lat, tmp_path / "nix" / f"a.{suffix}", pca=2, force=True, progress=seen.append)
    assert seen == []  # told before any frame is read

    def stop(p: api.Progress) -> None:
        if p.done:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        export_features(lat, out, pool=2, force=True, progress=stop)
    np.testing.assert_array_equal(read(out)[1], before)
    assert os.listdir(tmp_path) == [out.name]
    export_features(lat, out, pool=2, force=True)
    assert read(out)[1].shape == (FRAMES, 32)
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
@pytest.mark.parametrize("suffix", FORMATS)
def test_names_that_are_no_text(lat: Path, tmp_path: Path, suffix: str) -> None:
    odd = tmp_path / "sun\udcff.lat"
    odd.symlink_to(lat)
    out = tmp_path / f"a\udcff.{suffix}"
    export_features(odd, out, pool=1)
    export_features(lat, tmp_path / f"b.{suffix}", pool=1)
    # Not every reader takes such a name.
    out.rename(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}")[1], read(tmp_path / f"b.{suffix}")[1])
    if suffix == "parquet":
        about = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"sunzip"])
        assert about["archive"] == f"{tmp_path}/sun\N{REPLACEMENT CHARACTER}.lat"


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_reports_what_it_wrote(sunzip: Any, lat: Path, tmp_path: Path) -> None:
    found = json.loads(sunzip("features", lat, tmp_path / "a.csv", "--pool", 1, "--pca", 2, "--json").stdout)
    assert (found["features"], found["fitted"], found["empty"]) == (2, 11, 1)
    text = sunzip(
        "features", lat, tmp_path / "b.zarr", "--pool", 2, "--pca", 3, "--fit-until", "2014-01-01T01:24"
    ).stdout
    lines = text.splitlines()
    assert lines[0] == f"{tmp_path / 'b.zarr'} holds 3 features of 12 frames"
    assert "8×2×2 pooled" in text
    assert "1 frame without latents: rows of NaN" in text
    assert "of the 6 frames that they were fitted on" in text


def test_the_command_exits_as_documented(sunzip: Any, lat: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    sunzip("features", lat, out)
    assert "use --force" in sunzip("features", lat, out, code=1).stderr
    sunzip("features", lat, out, "--force", "--pool", 1)
    assert read(out)[1].shape == (FRAMES, 8)
    sunzip("features", lat, tmp_path / "b.h5", "--pool", 0, code=2)
    sunzip("features", lat, tmp_path / "b.h5", "--fit-until", "2014-01-01", code=1)
    assert "is the source itself" in sunzip("features", lat, lat, "--force", code=1).stderr
    broken = tmp_path / "broken.lat"
    broken.write_bytes(lat.read_bytes()[:-9])
    sunzip("features", broken, tmp_path / "b.h5", code=3)
    (tmp_path / "c.csv").write_text("mine")
    assert (
        "is no result of sunzip features"
        in sunzip("features", lat, tmp_path / "c.csv", "--force", code=1).stderr
    )
    for name in ("c.zarr", "d.parquet", "e.csv"):
        sunzip("features", lat, tmp_path / name)
        sunzip("features", lat, tmp_path / name, "--force")
    assert (tmp_path / "c.csv").read_text() == "mine"
