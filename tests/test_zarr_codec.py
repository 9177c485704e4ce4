"""The Zarr codec: cubes of any store through zarr itself, and configurations that must be refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.metadata import entry_points

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError
from sunzip.zarr import SunzipCodec
from sunzip.weights import Model

Frames = Callable[..., np.ndarray]
THREE = ("171A", "304A", "Bz")

pytestmark = pytest.mark.usefixtures("zarr_codec")


@pytest.fixture
def codec(tiny_model: Model) -> SunzipCodec:
    return SunzipCodec(tiny_model.sha256, THREE)


def create(codec: SunzipCodec, shape: tuple[int, ...], store: MemoryStore | None = None, **options: object):
    settings = {"shards": None, "dtype": "float32", "fill_value": np.nan} | options
    return zarr.create_array(
        MemoryStore() if store is None else store,
        shape=shape,
        serializer=codec,
        compressors=None,
        **settings,
    )


def expected(model: Model, x: np.ndarray, scale: Scale = Scale.MEAN) -> np.ndarray:
    codec = Codec(model)
    return codec.decode(codec.encode(x, THREE, scale), THREE, x.shape[2:], scale)


@pytest.mark.parametrize(
    ("chunks", "shards"),
    [
        ((1, 3, 32, 32), None),
        ((4, 3, 32, 32), None),
        ((1, 3, 32, 32), (4, 3, 32, 32)),
        ((2, 3, 32, 32), (4, 3, 32, 32)),
    ],
)
def test_frames_come_back_as_from_the_codec(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, chunks: tuple, shards: tuple | None
) -> None:
    x = frames_of(7, 3, 32, 32)  # 7 frames leave a partial tail in chunks and shards
    x[1, 1] = np.nan
    x[2, 0, 5, 5] = np.nan
    store = MemoryStore()
    create(codec, x.shape, store, chunks=chunks, shards=shards)[:] = x
    array = zarr.open_array(store, mode="r")
    y = expected(tiny_model, x)
    np.testing.assert_array_equal(array[:], y)
    np.testing.assert_array_equal(array[3], y[3])
    np.testing.assert_array_equal(array[2:6, 1, ::2, 7], y[2:6, 1, ::2, 7])
    np.testing.assert_array_equal(array.oindex[[0, 6], [2]], y[[0, 6]][:, [2]])


def test_scale_and_quality_reach_the_codec(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    sums = create(SunzipCodec(tiny_model.sha256, THREE, scale="sum"), x.shape, chunks=(1, 3, 32, 32))
    sums[:] = x
    np.testing.assert_array_equal(sums[:], expected(tiny_model, x, Scale.SUM))
    sizes = []
    for quality in (5, 95):
        array = create(SunzipCodec(tiny_model.sha256, THREE, quality=quality), x.shape, chunks=(1, 3, 32, 32))
        array[:] = x
        sizes.append(array.nbytes_stored())
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("shards", [None, (4, 3, 32, 32)])
def test_chunks_of_nothing_are_not_stored(
    codec: SunzipCodec, frames_of: Frames, shards: tuple | None
) -> None:
    x = np.full((8, 3, 32, 32), np.nan, np.float32)
    x[5] = frames_of(1, 3, 32, 32)[0]
    store = MemoryStore()
    array = create(codec, x.shape, store, chunks=(1, 3, 32, 32), shards=shards)
    array[:] = x
    stored = [k for k in store._store_dict if k.startswith("c/")]
    assert stored == (["c/5/0/0/0"] if shards is None else ["c/1/0/0/0"])
    np.testing.assert_array_equal(np.isnan(array[:]), np.isnan(x))


def test_appending_frame_by_frame_codes_no_frame_twice(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames
) -> None:
    x = frames_of(6, 3, 32, 32)
    array = create(codec, (0, 3, 32, 32), chunks=(1, 3, 32, 32), shards=(4, 3, 32, 32))
    for t in range(6):
        array.append(x[t : t + 1])
    # A frame that went through the codec twice would differ.
    np.testing.assert_array_equal(array[:], expected(tiny_model, x))


def test_archives_are_read_alike_through_zarr(
    tiny_model: Model, tmp_path: object, nothing_registered: None
) -> None:
    from sunzip import api
    from sunzip.sources.series import join
    from sunzip.sources.synthetic import Synthetic

    series = join([Synthetic(frames=5, size=32, channels=THREE)])
    for block in (1, 2):
        path = f"{tmp_path}/{block}.lat"
        api.compress(series, path, model=tiny_model, block=block, embed_model=True)
        with api.open(path) as sun:
            pixels = sun.read(0, 5)  # which makes the embedded model known
            cube = zarr.open_group(sun.archive.store(), mode="r")["cube"]
            assert isinstance(cube, zarr.Array)
            np.testing.assert_array_equal(cube[:], pixels)
            np.testing.assert_array_equal(cube[3, 1], pixels[3, 1])


def test_codecs_of_both_pipelines_agree(codec: SunzipCodec, frames_of: Frames) -> None:
    """zarr 3.1 awaits the single methods, later ones call the synchronous ones."""
    import asyncio

    from zarr.core.array_spec import ArrayConfig, ArraySpec
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.dtype import Float32

    prototype = default_buffer_prototype()
    spec = ArraySpec((2, 3, 32, 32), Float32(), np.float32("nan"), ArrayConfig.from_dict({}), prototype)
    data = prototype.nd_buffer.from_numpy_array(frames_of(2, 3, 32, 32))
    sync = codec._encode_sync(data, spec)
    waited = asyncio.run(codec._encode_single(data, spec))
    assert sync is not None
    assert waited is not None
    assert sync.to_bytes() == waited.to_bytes()
    back = asyncio.run(codec._decode_single(sync, spec)).as_numpy_array()
    np.testing.assert_array_equal(codec._decode_sync(sync, spec).as_numpy_array(), back)


def test_frames_in_any_memory_order_are_the_same(codec: SunzipCodec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 48)
    arrays = [create(codec, x.shape, chunks=(2, 3, 32, 48)) for _ in range(3)]
    arrays[0][:] = x
    arrays[1][:] = np.asfortranarray(x)
    arrays[2][:] = x.astype(np.float64)
    np.testing.assert_array_equal(arrays[0][:], arrays[1][:])
    np.testing.assert_array_equal(arrays[0][:], arrays[2][:])


def test_a_foreign_block_is_damage(codec: SunzipCodec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    store = MemoryStore()
    array = create(codec, x.shape, store, chunks=(1, 3, 32, 32))
    array[:] = x
    two = create(codec, x.shape, other := MemoryStore(), chunks=(2, 3, 32, 32))
    two[:] = x
    store._store_dict["c/0/0/0/0"] = other._store_dict["c/0/0/0/0"]
    with pytest.raises(DamagedError, match="holds 2 frames"):
        array[0]
    raw = store._store_dict["c/1/0/0/0"]
    store._store_dict["c/1/0/0/0"] = raw[: len(raw) - 1]
    with pytest.raises(DamagedError):
        array[1]


def test_infinite_pixels_are_refused(codec: SunzipCodec) -> None:
    with pytest.raises(InputError, match="infinite"):
        create(codec, (1, 3, 32, 32), chunks=(1, 3, 32, 32))[:] = np.inf


def test_an_absent_model_is_said_to_be_absent(frames_of: Frames) -> None:
    store = MemoryStore()
    array = create(SunzipCodec("0" * 64, THREE), (1, 3, 32, 32), store, chunks=(1, 3, 32, 32))
    assert zarr.open_array(store, mode="r").shape == (1, 3, 32, 32)  # its metadata can be read all the same
    with pytest.raises(ModelNotFoundError, match="000000000000"):
        array[:] = frames_of(1, 3, 32, 32)


# --- what arrays cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 32, 32), {"chunks": (1, 3, 32, 32), "dtype": "float64"}),
        ((4, 3, 32, 32), {"chunks": (1, 3, 32, 32), "dtype": ">f4"}),
        ((4, 3, 32, 32), {"chunks": (1, 3, 32, 32), "dtype": "int32", "fill_value": 0}),
        ((4, 2, 32, 32), {"chunks": (1, 2, 32, 32)}),
        ((4, 32, 32), {"chunks": (1, 32, 32)}),
        ((4, 3, 32, 32), {"chunks": (1, 1, 32, 32)}),
        ((4, 3, 32, 32), {"chunks": (1, 3, 16, 32)}),
        ((9000, 3, 32, 32), {"chunks": (5000, 3, 32, 32)}),
        ((4, 3, 32, 32), {"chunks": (1, 1, 32, 32), "shards": (4, 3, 32, 32)}),
        ((4, 3, 32, 32), {"chunks": (1, 3, 32, 32), "shards": (4, 3, 32, 32), "dtype": "float64"}),
    ],
)
def test_arrays_that_cannot_be_coded_are_refused_when_made(
    codec: SunzipCodec, shape: tuple[int, ...], options: dict
) -> None:
    with pytest.raises(InputError, match=r"^codec sunzip: "):
        create(codec, shape, **options)


# --- configuration ---------------------------------------------------------------------------------------


def test_configuration_goes_there_and_back(tiny_model: Model) -> None:
    for codec in (
        SunzipCodec(tiny_model.sha256, THREE),
        SunzipCodec(tiny_model.sha256, NAMES, scale="sum", quality=0),
    ):
        stored = codec.to_dict()
        assert stored["name"] == "sunzip"
        assert SunzipCodec.from_dict(stored) == codec
        assert pickle.loads(pickle.dumps(codec)) == codec
        assert hash(codec) == hash(SunzipCodec.from_dict(stored))


def test_a_used_codec_is_pickled_without_its_network(codec: SunzipCodec, frames_of: Frames) -> None:
    array = create(codec, (1, 3, 32, 32), chunks=(1, 3, 32, 32))
    array[:] = frames_of(1, 3, 32, 32)
    assert len(pickle.dumps(codec)) < 1000
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again[:], array[:])


GOOD = {"version": 1, "model": "0" * 64, "channels": ["171A", "Bz"]}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, UnsupportedError),
        ({"version": "1"}, UnsupportedError),
        ({"level": 3}, UnsupportedError),
        ({"version": None}, InputError),
        ({"model": None}, InputError),
        ({"channels": None}, InputError),
        ({"model": "0" * 63}, InputError),
        ({"model": "../" * 21 + "a"}, InputError),
        ({"model": "A" * 64}, InputError),
        ({"model": 64}, InputError),
        ({"channels": "171A"}, InputError),
        ({"channels": []}, InputError),
        ({"channels": ["Bz", "171A"]}, InputError),
        ({"channels": ["171A", "171A"]}, InputError),
        ({"channels": ["172A"]}, InputError),
        ({"channels": [171]}, InputError),
        ({"scale": "Mean"}, InputError),
        ({"scale": ["mean"]}, InputError),
        ({"quality": 101}, InputError),
        ({"quality": 50.0}, InputError),
        ({"quality": True}, InputError),
    ],
)
def test_strange_configurations_are_refused(change: dict, error: type[SunzipError]) -> None:
    configuration = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    assert SunzipCodec.from_dict({"name": "sunzip", "configuration": GOOD}).channels == ("171A", "Bz")
    with pytest.raises(error, match=r"sunzip|channel"):
        SunzipCodec.from_dict({"name": "sunzip", "configuration": configuration})


@pytest.mark.parametrize("configuration", [None, [], "x", {}])
def test_a_configuration_is_needed(configuration: object) -> None:
    with pytest.raises(InputError, match="needs version, model and channels"):
        SunzipCodec.from_dict({"name": "sunzip", "configuration": configuration})  # type: ignore[dict-item]


def test_the_entry_point_names_the_codec() -> None:
    found = [e for e in entry_points(group="zarr.codecs") if e.name == "sunzip"]
    if not found:
        pytest.skip("the package is not installed here, so it has no entry points")
    assert found[0].load() is SunzipCodec
