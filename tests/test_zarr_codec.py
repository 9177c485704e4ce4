"""The Zarr codec: cubes of any store through zarr itself, parts of chunks, and what must be refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zarr.core import codec_pipeline
from zarr.storage import MemoryStore

from sunzip.bounds import bounds_of, told
from sunzip.channels import NAMES
from sunzip.codec import Codec, codec_for
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError
from sunzip.frame import Block
from sunzip.numcodecs import Sunzip
from sunzip.weights import Model, load
from sunzip.zarr import SunzipCodec

Frames = Callable[..., np.ndarray]
THREE = ("171A", "304A", "Bz")

pytestmark = pytest.mark.usefixtures("zarr_codec")


@pytest.fixture
def codec(tiny_model: Model) -> SunzipCodec:
    return SunzipCodec(tiny_model.sha256, THREE)


@pytest.fixture(params=["BatchedCodecPipeline", "FusedCodecPipeline"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each way that this zarr has to call codecs."""
    if not hasattr(codec_pipeline, request.param):
        pytest.skip(f"zarr {zarr.__version__} has no {request.param}")
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield request.param


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
    codec: SunzipCodec,
    tiny_model: Model,
    frames_of: Frames,
    chunks: tuple,
    shards: tuple | None,
    pipeline: str,
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
    assert type(array[:]) is np.ndarray


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
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, pipeline: str
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


@pytest.mark.parametrize("shards", [None, (4, 3, 32, 32)])
@pytest.mark.parametrize("frames", [slice(0, 4), slice(1, 2)], ids=["all", "one"])
def test_masked_arrays_are_refused(
    codec: SunzipCodec, frames_of: Frames, frames: slice, shards: tuple[int, ...] | None, pipeline: str
) -> None:
    """What lies beneath a mask would come back as if it had been measured."""
    if pipeline == "FusedCodecPipeline" and shards and frames == slice(1, 2):
        pytest.skip(
            "inside sharding this pipeline of zarr puts parts into new inner chunks, without their mask"
        )
    x = np.ma.masked_less(frames_of(4, 3, 32, 32), 100)
    array = create(codec, x.shape, chunks=(2, 3, 32, 32), shards=shards)
    with pytest.raises(InputError, match="masks of arrays are not coded"):
        array[frames] = x[frames]


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
        ({"version": True}, UnsupportedError),
        ({"level": 3}, UnsupportedError),
        ({"version": None}, InputError),
        ({"model": None}, InputError),
        ({"channels": None}, InputError),
        ({"model": "0" * 63}, InputError),
        ({"model": "../" * 21 + "a"}, InputError),
        ({"model": "A" * 64}, InputError),
        ({"model": 64}, InputError),
        ({"model": "hyperprior-12"}, InputError),
        ({"model": "0" * 64 + "\n"}, InputError),
        ({"channels": "171A"}, InputError),
        ({"channels": []}, InputError),
        ({"channels": ["Bz", "171A"]}, InputError),
        ({"channels": ["171A", "171A"]}, InputError),
        ({"channels": ["171a", "193A", "Bz"]}, InputError),
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


def test_channels_may_be_spelt_as_everywhere_and_are_kept_by_their_names() -> None:
    codec = SunzipCodec("0" * 64, ["0171", "hmi bz"])
    assert codec == SunzipCodec("0" * 64, ["171A", "Bz"])
    assert SunzipCodec.from_dict(codec.to_dict()) == codec
    assert SunzipCodec("0" * 64, "bz").channels == ("Bz",)
    for wrong in (["bz", "0171"], ["171A", "0171"]):
        with pytest.raises(InputError, match="once each in the order 171A"):
            SunzipCodec("0" * 64, wrong)


def test_a_quality_of_null_is_refused() -> None:
    with pytest.raises(InputError, match="quality"):
        SunzipCodec.from_dict({"name": "sunzip", "configuration": {**GOOD, "quality": None}})


def test_of_a_long_value_the_beginning_is_told() -> None:
    with pytest.raises(InputError, match=r"scale is .{40}, it must be"):
        SunzipCodec.from_dict({"name": "sunzip", "configuration": {**GOOD, "scale": "mean" * 99_999}})


@pytest.mark.parametrize("configuration", [None, [], "x", {}])
def test_a_configuration_is_needed(configuration: object) -> None:
    with pytest.raises(InputError, match="needs version, model and channels"):
        SunzipCodec.from_dict({"name": "sunzip", "configuration": configuration})  # type: ignore[dict-item]


def test_the_entry_point_names_the_codec() -> None:
    found = [e for e in entry_points(group="zarr.codecs") if e.name == "sunzip"]
    if not found:
        pytest.skip("the package is not installed here, so it has no entry points")
    assert found[0].load() is SunzipCodec


# --- models by name --------------------------------------------------------------------------------------


def test_the_default_is_the_shipped_model_and_all_channels() -> None:
    codec = SunzipCodec()
    assert codec.channels == NAMES
    assert codec.model == load().sha256
    assert codec == SunzipCodec(model="wavelet-12") == SunzipCodec.from_dict(codec.to_dict())


def test_a_model_in_a_folder_is_kept_by_its_hash(
    other_model: Model, frames_of: Frames, tmp_path: Path, nothing_registered: None
) -> None:
    for name, data in other_model.files.items():
        (tmp_path / name).write_bytes(data)
    codec = SunzipCodec(model=str(tmp_path), channels=list(THREE))
    assert codec.to_dict()["configuration"]["model"] == other_model.sha256  # type: ignore[call-overload,index]
    x = frames_of(1, 3, 32, 32)
    array = create(codec, x.shape, chunks=(1, 3, 32, 32))
    array[:] = x
    np.testing.assert_array_equal(array[:], expected(other_model, x))


@pytest.mark.parametrize("kind", [SunzipCodec, Sunzip])
def test_types_say_what_may_be_given_and_what_is_kept(kind: type) -> None:
    # With the types of the fields alone, mypy and pyright refuse the lists of all examples.
    given = get_type_hints(kind.__init__)  # type: ignore[misc]
    assert (given["model"], given["channels"]) == (str | Path, str | Iterable[str])
    assert get_type_hints(kind)["channels"] == tuple[str, ...]
    codec = kind(channels=(name for name in THREE))
    assert codec.channels == THREE
    assert dataclasses.replace(codec, quality=20).quality == 20


def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        SunzipCodec(model="no-such-model")


# --- chunks of fewer axes --------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, (6, 32, 48)])
def test_one_channel_needs_no_axis(
    tiny_model: Model, frames_of: Frames, shards: tuple | None, pipeline: str
) -> None:
    x = frames_of(7, 1, 32, 48)
    x[2, 0, 5, 5] = np.nan
    codec = SunzipCodec(tiny_model.sha256, ["171A"])
    four = create(codec, x.shape, chunks=(3, 1, 32, 48))
    four[:] = x
    three = create(codec, x[:, 0].shape, chunks=(3, 32, 48), shards=shards)
    three[:] = x[:, 0]
    np.testing.assert_array_equal(three[:], four[:, 0])
    np.testing.assert_array_equal(three[4, ::5], four[4, 0, ::5])
    np.testing.assert_array_equal(three.oindex[[1, 6], :, [3, 2]], four[:, 0][[1, 6]][:, :, [3, 2]])
    two = create(codec, (32, 48), chunks=(32, 48))
    two[:] = x[0, 0]
    np.testing.assert_array_equal(two[:], four[0, 0])
    np.testing.assert_array_equal(two[3:5, 7], four[0, 0, 3:5, 7])


# --- reading part of a chunk -----------------------------------------------------------------------------


class Runs:
    """Counts the runs of the networks."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synthesis: list[int] = []
        self.analysis: list[int] = []
        family = codec_for(model.sha256).family
        for name, seen in (("synthesise", self.synthesis), ("analyse", self.analysis)):
            monkeypatch.setattr(family, name, self._counting(getattr(family, name), seen))

    def _counting(self, run: Callable, seen: list[int]) -> Callable:
        def counted(*args: object) -> object:
            seen.append(len(args[0]))  # type: ignore[arg-type]
            return run(*args)

        return counted


@pytest.fixture
def runs(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tiny_model, monkeypatch)


@pytest.mark.parametrize("shards", [None, (8, 3, 32, 32)])
def test_one_frame_costs_one_run(
    codec: SunzipCodec, frames_of: Frames, runs: Runs, shards: tuple | None, pipeline: str
) -> None:
    if pipeline == "FusedCodecPipeline" and shards:
        pytest.skip("inside sharding this pipeline of zarr decodes whole inner chunks")
    x = frames_of(8, 3, 32, 32)
    array = create(codec, x.shape, chunks=(4, 3, 32, 32), shards=shards)
    array[:] = x
    for select, frames in (
        (lambda: array[5], 1),
        (lambda: array[5, 1, 3:7], 1),
        (lambda: array[3:5, ::2], 2),
        (lambda: array[::3], 3),
        (lambda: array.oindex[[0, 7, 7], [0, 2]], 2),
        (lambda: array.oindex[np.arange(8) == 2], 1),
        (lambda: array.vindex[[1, 1, 6], [0, 2, 0], [3, 4, 5], [1, 2, 3]], 2),
        (lambda: array.get_mask_selection(np.arange(8)[:, None, None, None] * np.ones(x.shape) == 6), 1),
        (lambda: array.blocks[0], 8 if shards else 4),
    ):
        runs.synthesis.clear()
        select()
        assert len(runs.synthesis) == frames


def test_channels_not_asked_for_are_not_made(
    codec: SunzipCodec, frames_of: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = frames_of(2, 3, 32, 32)
    array = create(codec, x.shape, chunks=(2, 3, 32, 32))
    array[:] = x
    y = array[:]
    asked: list[list[str]] = []
    decode = Codec.decode

    def spy(self: Codec, blocks: list, channels: list, *args: object, **options: object) -> np.ndarray:
        asked.append(list(channels))
        return decode(self, blocks, channels, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Codec, "decode", spy)
    np.testing.assert_array_equal(array[:, 1], y[:, 1])
    np.testing.assert_array_equal(array.oindex[:, [2, 0]], y[:, [2, 0]])
    assert asked == [["304A"], ["171A", "Bz"]]


# --- writing part of a chunk -----------------------------------------------------------------------------


def blocks_of(store: MemoryStore) -> dict[str, Block]:
    return {k: Block.unpack(v.to_bytes()) for k, v in store._store_dict.items() if k.startswith("c/")}


def test_frames_not_written_keep_their_bytes(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, runs: Runs, pipeline: str
) -> None:
    x, new = frames_of(8, 3, 32, 32), frames_of(8, 3, 32, 32, seed=1)
    store = MemoryStore()
    array = create(codec, x.shape, store, chunks=(4, 3, 32, 32))
    array[:] = x
    before = blocks_of(store)
    runs.synthesis.clear()
    runs.analysis.clear()
    array[3:6] = new[3:6]
    after = blocks_of(store)
    assert (len(runs.synthesis), len(runs.analysis)) == (0, 3)
    for key, written in (("c/0/0/0/0", {3}), ("c/1/0/0/0", {0, 1})):
        for t, (old, now) in enumerate(zip(before[key].entries, after[key].entries, strict=True)):
            assert (old != now) == (t in written)
    y, fresh = expected(tiny_model, x), expected(tiny_model, new)
    np.testing.assert_array_equal(array[:], np.concatenate([y[:3], fresh[3:6], y[6:]]))


#: Each writes whole frames, as users may.
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("slice"), st.tuples(st.integers(0, 6), st.integers(1, 7))),
        st.tuples(st.just("list"), st.lists(st.integers(0, 6), min_size=1, unique=True)),
        st.tuples(st.just("mask"), st.sets(st.integers(0, 6), min_size=1)),
        st.tuples(st.sampled_from(["frame", "fill"]), st.integers(0, 6)),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("shards", [None, (4, 16, 16)])
@pytest.mark.parametrize("fill_value", [np.nan, 0])
def test_whole_frames_written_in_any_way_are_coded_once(
    tiny_model: Model, frames_of: Frames, shards: tuple | None, fill_value: float
) -> None:
    codec, direct = SunzipCodec(tiny_model.sha256, ["171A"]), Codec(tiny_model)
    x = frames_of(7, 1, 16, 16)
    x[3, 0, 3] = np.nan
    empty = np.full((1, 1, 16, 16), fill_value, np.float32)
    blocks = direct.encode(np.concatenate([x, empty]), ["171A"])
    x, coded = x[:, 0], direct.decode(blocks, ["171A"], (16, 16))[:, 0]

    @settings(max_examples=20, deadline=None)
    @given(WRITES)
    def check(writes: list[tuple]) -> None:
        array = create(codec, x.shape, chunks=(2, 16, 16), shards=shards, fill_value=fill_value)
        held = [7] * 7  # which of the coded frames each is
        for how, where in writes:
            frames = (
                range(7)[slice(*where)]
                if how == "slice"
                else [where]
                if how in ("frame", "fill")
                else [*where]
            )
            if how == "slice":
                array[slice(*where)] = x[slice(*where)]
            elif how == "fill":
                array[where] = fill_value
            elif how == "frame" or shards:  # zarr 3.1 cannot write arrays of indices into shards
                for t in frames:
                    array[t] = x[t]
            elif how == "list":
                array.oindex[where] = x[where]
            else:
                chosen = np.isin(np.arange(7), frames)
                array.oindex[chosen] = x[chosen]
            for t in frames:
                held[t] = 7 if how == "fill" else t
        for t, got in enumerate(array[:]):
            # Zeros are exact where a chunk holds nothing else, and an image of zeros beside other frames.
            zeros = held[t] == 7 and (got == fill_value).all()
            assert zeros or np.array_equal(got, coded[held[t]], equal_nan=True)

    check()


@pytest.mark.parametrize("shards", [None, (4, 3, 32, 32)])
@pytest.mark.parametrize("frames", [1, 2])
def test_part_of_a_frame_that_holds_something_is_refused(
    codec: SunzipCodec, frames_of: Frames, shards: tuple | None, frames: int, pipeline: str
) -> None:
    x = frames_of(4, 3, 32, 32)
    store = MemoryStore()
    array = create(codec, x.shape, store, chunks=(frames, 3, 32, 32), shards=shards)
    array[:] = x
    before = dict(store._store_dict)
    for write in (
        lambda: array.__setitem__((2, 1), x[2, 1]),
        lambda: array.__setitem__((slice(0, 2), slice(None), slice(0, 8)), 5.0),
        lambda: array.set_orthogonal_selection(([0, 3], slice(None), slice(None), [1]), 5.0),
        lambda: array.set_coordinate_selection(([0, 3], [0, 1], [2, 3], [4, 5]), np.ones(2, np.float32)),
    ):
        with pytest.raises(InputError, match=r"^codec sunzip: .* a second time: write "):
            write()
    assert store._store_dict == before


def test_frames_in_parts_of_a_shard_are_written_or_refused(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, pipeline: str
) -> None:
    """A pipeline that does not let the codec write parts of inner chunks must not lose a second time."""
    x = frames_of(4, 3, 32, 32)
    array = create(codec, x.shape, chunks=(2, 3, 32, 32), shards=(4, 3, 32, 32))
    array[:] = x
    if pipeline == "FusedCodecPipeline":
        with pytest.raises(InputError, match="lose a second time"):
            array[1] = x[0]
        np.testing.assert_array_equal(array[:], expected(tiny_model, x))
    else:
        array[1] = x[0]
        np.testing.assert_array_equal(array[:], expected(tiny_model, x[[0, 0, 2, 3]]))


def test_a_forgotten_compressor_costs_no_second_generation(codec: SunzipCodec, frames_of: Frames) -> None:
    """Zarr adds zstd where none is refused, and then merges chunks by itself."""
    x = frames_of(4, 3, 32, 32)
    array = zarr.create_array(
        MemoryStore(), shape=x.shape, chunks=(2, 3, 32, 32), dtype="float32", serializer=codec
    )
    array[:] = x
    y = array[:]
    with pytest.raises(InputError, match="without other filters and compressors"):
        array[0] = x[1]
    np.testing.assert_array_equal(array[:], y)


def test_part_of_an_empty_frame_may_be_written(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, pipeline: str
) -> None:
    x = frames_of(3, 3, 32, 32)
    array = create(codec, x.shape, chunks=(3, 3, 32, 32))
    array[0, 1] = x[0, 1]  # into a chunk that does not exist
    array[1, :, :16] = x[1, :, :16]  # into a frame of the chunk that is empty
    want = np.full_like(x, np.nan)
    want[0, 1], want[1, :, :16] = x[0, 1], x[1, :, :16]
    np.testing.assert_array_equal(array[:], expected(tiny_model, want))


def test_frames_of_an_absent_chunk_are_the_fill_value(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, runs: Runs, pipeline: str
) -> None:
    x = frames_of(4, 3, 32, 32)
    array = create(codec, x.shape, chunks=(4, 3, 32, 32), fill_value=0)
    array[1] = x[1]
    assert len(runs.analysis) == 2  # the frame, and one of zeros for all others
    x[[0, 2, 3]] = 0
    np.testing.assert_array_equal(array[:], expected(tiny_model, x))


def test_frames_of_two_qualities_do_not_share_a_block(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(4, 3, 32, 32)
    store = MemoryStore()
    create(SunzipCodec(tiny_model.sha256, THREE, quality=30), x.shape, store, chunks=(2, 3, 32, 32))[:3] = x[
        :3
    ]
    meta = json.loads(store._store_dict["zarr.json"].to_bytes())
    meta["codecs"][0]["configuration"]["quality"] = 70
    store._store_dict["zarr.json"] = type(store._store_dict["zarr.json"]).from_bytes(
        json.dumps(meta).encode()
    )
    array = zarr.open_array(store)
    y = array[:]
    with pytest.raises(InputError, match=r"coded at quality 30, the codec has 70.*quality=30"):
        array[0] = x[0]
    np.testing.assert_array_equal(array[:], y)
    array[:2] = x[:2]  # nothing of the old block stays
    array[2:] = x[2:]
    assert [b.quality for b in blocks_of(store).values()] == [70, 70]


def test_a_damaged_chunk_is_not_written_over_in_part(codec: SunzipCodec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    store = MemoryStore()
    array = create(codec, x.shape, store, chunks=(2, 3, 32, 32))
    array[:] = x
    raw = store._store_dict["c/0/0/0/0"]
    store._store_dict["c/0/0/0/0"] = raw[: len(raw) - 1]
    with pytest.raises(DamagedError):
        array[0] = x[0]
    array[:] = x
    assert np.isfinite(array[:]).all()


@pytest.mark.parametrize("shards", [None, (4, 3, 32, 32)])
@pytest.mark.parametrize("keep", [False, True])
def test_empty_chunks_are_stored_if_asked_for(
    codec: SunzipCodec, frames_of: Frames, shards: tuple | None, keep: bool, pipeline: str
) -> None:
    x = frames_of(2, 3, 32, 32)
    store = MemoryStore()
    array = create(
        codec,
        (4, 3, 32, 32),
        store,
        chunks=(2, 3, 32, 32),
        shards=shards,
        config={"write_empty_chunks": keep},
    )
    array[:] = np.nan
    stored = [k for k in store._store_dict if k.startswith("c/")]
    assert len(stored) == (keep and (1 if shards else 2))
    array[:2] = x
    array[:2] = np.nan  # what was there is emptied again
    assert len([k for k in store._store_dict if k.startswith("c/")]) == (keep and (1 if shards else 2))
    assert np.isnan(array[:]).all()


@pytest.mark.parametrize("fill_value", [0, -1.5])
def test_a_chunk_of_the_fill_value_comes_back_exactly(
    codec: SunzipCodec, frames_of: Frames, fill_value: float, pipeline: str
) -> None:
    array = create(codec, (4, 3, 32, 32), chunks=(2, 3, 32, 32), fill_value=fill_value)
    array[:2] = frames_of(2, 3, 32, 32)
    array[:2] = fill_value
    assert (array[:] == fill_value).all()


@pytest.mark.parametrize("shards", [None, (4, 3, 32, 32)])
def test_arrays_grow_and_shrink(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, shards: tuple | None
) -> None:
    x = frames_of(7, 3, 32, 32)
    array = create(codec, (0, 3, 32, 32), chunks=(2, 3, 32, 32), shards=shards)
    for a, b in ((0, 1), (1, 2), (2, 5), (5, 7)):
        array.append(x[a:b])
    y = expected(tiny_model, x)
    np.testing.assert_array_equal(array[:], y)
    array.resize((3, 3, 32, 32))
    np.testing.assert_array_equal(array[:], y[:3])
    array.resize((9, 3, 32, 32))
    np.testing.assert_array_equal(array[:3], y[:3])
    assert np.isnan(array[8]).all()


# --- many at once ----------------------------------------------------------------------------------------


def test_threads_share_a_codec(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, pipeline: str
) -> None:
    x = frames_of(12, 3, 32, 32)
    array = create(codec, x.shape, chunks=(2, 3, 32, 32))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda t: array.__setitem__(slice(t, t + 2), x[t : t + 2]), range(0, 12, 2)))
        read = list(pool.map(lambda t: array[t], range(12)))
    np.testing.assert_array_equal(np.stack(read), expected(tiny_model, x))


def test_chunks_of_one_call_are_decoded_side_by_side(
    codec: SunzipCodec, tiny_model: Model, frames_of: Frames, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    """With two cores, two chunks are in the network at the same time, each on one core."""
    import threading

    torch = pytest.importorskip("torch")

    from sunzip.codec import lanes

    monkeypatch.setattr(lanes, "_pool", None)
    usual = torch.get_num_threads()
    x = frames_of(4, 3, 32, 32)
    array = create(codec, x.shape, chunks=(1, 3, 32, 32))
    family = codec_for(tiny_model.sha256).family
    synthesise, meet = family.synthesise, threading.Barrier(2, timeout=20)
    threads: list[int] = []

    def together(*args: object) -> object:
        meet.wait()  # breaks unless another thread comes
        found = synthesise(*args)  # type: ignore[arg-type]
        threads.append(torch.get_num_threads())
        return found

    torch.set_num_threads(2)
    try:
        array[:] = x
        monkeypatch.setattr(family, "synthesise", together)
        array[:]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)
    assert threads == [1] * 4


def test_copies_are_the_codec(codec: SunzipCodec) -> None:
    assert copy.deepcopy(codec) == copy.copy(codec) == codec
    assert repr(codec) == repr(copy.deepcopy(codec))


# --- schema ----------------------------------------------------------------------------------------------

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/reference/zarr-codec.schema.json").read_text("utf-8"))
ONE_IMAGE = {"name": "sunzip", "configuration": {**GOOD, "scale": "sum", "quality": 100}}


def test_the_schema_takes_what_the_codec_writes(tiny_model: Model) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for codec in (SunzipCodec(), SunzipCodec(tiny_model.sha256, THREE, scale="sum", quality=0)):
        jsonschema.validate(codec.to_dict(), SCHEMA)
        array = create(codec, (2, len(codec.channels), 32, 32), chunks=(1, len(codec.channels), 32, 32))
        jsonschema.validate(array.metadata.to_dict()["codecs"][0], SCHEMA)


@given(st.floats(1e-12, 1e9), st.sampled_from(["%", "sigma", "DN/s", "G"]), st.booleans())
@example(1e-12, "%", True)
@example(1e9, "G", True)
@example(9.999999999999999e-05, "DN/s", False)
@example(0.0001, "sigma", False)
def test_the_schema_takes_every_bound_that_the_codec_writes(size: float, unit: str, few: bool) -> None:
    pattern = SCHEMA["properties"]["configuration"]["properties"]["max_error"]["pattern"]
    text = f"{size:.3g}{unit}" if few else f"{size!r}{unit}"
    assert re.search(pattern, told(bounds_of(text)))


#: What JSON Schema cannot tell: an order of items, a number without fraction from an integer, what is among
#: other items, and which is the shortest text of a number.
BEYOND_SCHEMA = (
    {"channels": ["Bz", "171A"]},
    {"quality": 50.0},
    {"max_error": "Bz=20G,171A=5%"},
    {"max_error": "193A=5%"},
    {"max_error": "171A=5%,171A=6%"},
    {"max_error": "171A=0.10000000000000000001%"},
)


@pytest.mark.parametrize(
    "configuration",
    [
        None,
        {},
        {**GOOD, "version": 2},
        {**GOOD, "version": "1"},
        {**GOOD, "version": True},
        {**GOOD, "level": 3},
        {k: v for k, v in GOOD.items() if k != "model"},
        {k: v for k, v in GOOD.items() if k != "channels"},
        {k: v for k, v in GOOD.items() if k != "version"},
        {**GOOD, "model": "0" * 63},
        {**GOOD, "model": "A" * 64},
        {**GOOD, "model": "0" * 64 + "0"},
        {**GOOD, "model": "hyperprior-12"},
        {**GOOD, "model": 64},
        {**GOOD, "channels": "171A"},
        {**GOOD, "channels": []},
        {**GOOD, "channels": ["171A", "171A"]},
        {**GOOD, "channels": ["172A"]},
        {**GOOD, "channels": [171]},
        {**GOOD, "scale": "Mean"},
        {**GOOD, "scale": ["mean"]},
        {**GOOD, "scale": None},
        {**GOOD, "quality": 101},
        {**GOOD, "quality": -1},
        {**GOOD, "quality": 50.5},
        {**GOOD, "quality": True},
        {**GOOD, "quality": None},
        *(
            {**GOOD, "max_error": wish}
            for wish in (
                None,
                5,
                "",
                "5%",
                "172A=5%",
                "171a=5%",
                "Bz=10DN/s",
                "171A=20G",
                "171A=5",
                "171A=2Sigma",
            )
        ),
        *(
            {**GOOD, "max_error": f"171A={number}%"}
            for number in (
                "0",
                "-5",
                "5.0",
                "05",
                ".5",
                "1..2",
                "1e-3",
                "0.00001",
                "1e-13",
                "1e9",
                "1000000001",
            )
        ),
        *(
            {**GOOD, "max_error": wish}
            for wish in ("171A=5%,", ",171A=5%", "171A=5%,,Bz=20G", "171A=5%Bz=20G")
        ),
    ],
)
def test_the_schema_refuses_what_the_codec_refuses(configuration: dict | None) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    metadata = {"name": "sunzip", "configuration": configuration}
    with pytest.raises(SunzipError):
        SunzipCodec.from_dict(metadata)  # type: ignore[arg-type]
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(metadata)


def test_what_the_schema_cannot_tell_is_refused_by_the_codec() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert SunzipCodec.from_dict(ONE_IMAGE)  # type: ignore[arg-type]
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(ONE_IMAGE)
    for change in BEYOND_SCHEMA:
        metadata = {"name": "sunzip", "configuration": {**GOOD, **change}}
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid(metadata)
        with pytest.raises(InputError):
            SunzipCodec.from_dict(metadata)  # type: ignore[arg-type]
