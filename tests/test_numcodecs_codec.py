"""The numcodecs codec: arrays to blocks and back, Zarr format 2, references into archives, and refusals."""

from __future__ import annotations

import array
import json
import pickle
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs.registry import codec_registry
from zarr.storage import MemoryStore

from sunzip.codec import Codec
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError
from sunzip.frame import Block
from sunzip.numcodecs import Sunzip
from sunzip.weights import Model, load
from sunzip.zarr import SunzipCodec

Frames = Callable[..., np.ndarray]
THREE = ("171A", "304A", "Bz")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make numcodecs know the codec, which an installed package does by its entry point."""
    monkeypatch.setitem(codec_registry, "sunzip", Sunzip)


@pytest.fixture
def codec(tiny_model: Model) -> Sunzip:
    return Sunzip(tiny_model.sha256, THREE)


def expected(model: Model, x: np.ndarray, channels: tuple[str, ...] = THREE) -> np.ndarray:
    direct = Codec(model)
    return direct.decode(direct.encode(x, channels), channels, x.shape[2:])


def test_arrays_come_back_as_from_the_codec(codec: Sunzip, tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(3, 3, 32, 48)
    x[1, 1] = np.nan
    x[2, 0, 5, 5] = np.nan
    block = codec.encode(x)
    assert isinstance(block, bytes)
    got = codec.decode(block)
    assert (got.dtype, got.shape) == (np.float32, x.shape)
    np.testing.assert_array_equal(got, expected(tiny_model, x))


def test_blocks_are_those_of_the_zarr_codec(codec: Sunzip, tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    store = MemoryStore()
    zarr.create_array(
        store,
        shape=x.shape,
        chunks=x.shape,
        dtype="float32",
        serializer=SunzipCodec(tiny_model.sha256, THREE),
        compressors=None,
    )[:] = x
    assert store._store_dict["c/0/0/0/0"].to_bytes() == codec.encode(x)


def test_scale_and_quality_reach_the_codec(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(1, 3, 32, 32)
    sums = Sunzip(tiny_model.sha256, THREE, scale="sum", quality=20)
    block = sums.encode(x)
    assert Block.unpack(block).quality == 20
    direct = Codec(tiny_model, 20)
    assert block == direct.encode(x, THREE, Scale.SUM)[0]
    np.testing.assert_array_equal(sums.decode(block), direct.decode([block], THREE, (32, 32), Scale.SUM))


def test_one_channel_needs_no_axis(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(3, 1, 32, 32)
    codec = Sunzip(tiny_model.sha256, ["171A"])
    assert codec.encode(x[:, 0]) == codec.encode(x)
    assert codec.encode(x[0, 0]) == codec.encode(x[:1])
    assert codec.decode(codec.encode(x[:, 0])).shape == (3, 1, 32, 32)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: array.array("b", b), "numpy"])
def test_blocks_may_be_any_buffer(codec: Sunzip, frames_of: Frames, kind: object) -> None:
    block = codec.encode(frames_of(1, 3, 32, 32))
    buffer = np.frombuffer(block, "u1") if kind == "numpy" else kind(block)  # type: ignore[operator]
    np.testing.assert_array_equal(codec.decode(buffer), codec.decode(block))


@pytest.mark.parametrize(
    "make",
    [
        lambda shape: np.empty(shape, np.float32),
        lambda shape: np.empty(4 * np.prod(shape), np.uint8),
        lambda shape: bytearray(4 * int(np.prod(shape))),
    ],
)
def test_out_is_filled(codec: Sunzip, frames_of: Frames, make: Callable) -> None:
    x = frames_of(2, 3, 32, 32)
    block = codec.encode(x)
    out = make(x.shape)
    assert codec.decode(block, out=out) is out
    assert np.array_equal(np.frombuffer(out, np.float32), codec.decode(block).ravel())


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 3, 32, 31), np.float32),
        np.empty((2, 3, 32, 32), np.float64),
        np.empty((2, 3, 32, 32), np.float32, order="F"),
        np.empty((2, 3, 32, 64), np.float32)[..., ::2],
        bytearray(7),
    ],
)
def test_an_out_that_does_not_fit_is_refused(codec: Sunzip, frames_of: Frames, out: object) -> None:
    block = codec.encode(frames_of(2, 3, 32, 32))
    with pytest.raises(InputError, match=r"^codec sunzip: out must be C-contiguous and of 24576 bytes"):
        codec.decode(block, out=out)


# --- what cannot be coded --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((2, 3, 32, 32), np.float32, order="F"), "C-contiguous.*order='C'"),
        (np.zeros((2, 3, 32, 64), np.float32)[..., ::2], "C-contiguous"),
        (np.zeros((2, 3, 32, 32), np.float64), "codes float32, not float64"),
        (np.zeros((2, 3, 32, 32), ">f4"), "codes float32, not >f4"),
        (np.zeros((2, 3, 32, 32), np.int32), "codes float32, not int32"),
        (np.zeros((2, 2, 32, 32), np.float32), r"must be \(time, 3, y, x\)"),
        (np.zeros((2, 32, 32), np.float32), r"must be \(time, 3, y, x\)"),
        (np.zeros(6144, np.float32), r"must be \(time, 3, y, x\)"),
        (np.zeros((0, 3, 32, 32), np.float32), "1 to 4096 frames, not 0"),
        (np.zeros((4097, 3, 1, 1), np.float32), "1 to 4096 frames, not 4097"),
        (np.zeros((1, 3, 1, 16385), np.float32), "16384"),
        (np.full((1, 3, 32, 32), np.inf, np.float32), "infinite"),
        (np.ma.masked_less(np.zeros((1, 3, 32, 32), np.float32), 1), "masks of arrays are not coded"),
        (np.zeros((1, 3, 8, 8), np.float32), "smaller"),
        (b"pixels", "codes float32"),
    ],
)
def test_what_cannot_be_coded_is_refused(codec: Sunzip, x: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        codec.encode(x)


def test_decoded_pixels_are_not_coded_again_by_accident(codec: Sunzip, frames_of: Frames) -> None:
    decoded = codec.decode(codec.encode(frames_of(2, 3, 32, 32)))
    with pytest.raises(InputError, match="lose a second time"):
        codec.encode(decoded.copy()[:1])
    assert codec.encode(np.array(decoded))


def test_blocks_that_would_fill_the_memory_are_refused(codec: Sunzip) -> None:
    bomb = Block(
        bytes.fromhex(codec.model)[:4], (16384, 16384), 50, (0,) * 4096, (b"",) * 4096, (b"",) * 4096
    )
    with pytest.raises(InputError, match="2 GiB"):
        codec.decode(bomb.pack())


def test_damaged_and_foreign_blocks_are_damage(codec: Sunzip, other_model: Model, frames_of: Frames) -> None:
    x = frames_of(1, 3, 32, 32)
    block = codec.encode(x)
    for broken in (b"", block[:-1], block + b"\0", block[:20] + bytes([block[20] ^ 1]) + block[21:]):
        with pytest.raises(DamagedError):
            codec.decode(broken)
    with pytest.raises(DamagedError, match="was coded with model"):
        codec.decode(Codec(other_model).encode(x, THREE)[0])


def test_an_absent_model_is_said_to_be_absent(frames_of: Frames) -> None:
    with pytest.raises(ModelNotFoundError, match="000000000000"):
        Sunzip("0" * 64, THREE).encode(frames_of(1, 3, 32, 32))


# --- configuration ---------------------------------------------------------------------------------------


def test_configuration_goes_there_and_back(tiny_model: Model) -> None:
    for codec in (
        Sunzip(),
        Sunzip(tiny_model.sha256, THREE),
        Sunzip(channels=["Bz"], scale="sum", quality=0),
    ):
        config = json.loads(json.dumps(codec.get_config()))
        assert config["id"] == "sunzip"
        assert len(config["model"]) == 64
        again = numcodecs.get_codec(config)
        assert again == codec
        assert hash(again) == hash(codec)
        assert pickle.loads(pickle.dumps(codec)) == codec
        assert len(pickle.dumps(codec)) < 1000
    assert Sunzip().model == load().sha256
    assert Sunzip() != SunzipCodec()


GOOD = {"id": "sunzip", "version": 1, "model": "0" * 64, "channels": ["171A", "Bz"]}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, UnsupportedError),
        ({"level": 3}, UnsupportedError),
        ({"version": None}, InputError),
        ({"model": None}, InputError),
        ({"model": "hyperprior-12"}, InputError),
        ({"model": "../models"}, InputError),
        ({"channels": ["Bz", "171A"]}, InputError),
        ({"scale": "Mean"}, InputError),
        ({"quality": 101}, InputError),
    ],
)
def test_strange_configurations_are_refused(change: dict, error: type[SunzipError]) -> None:
    assert numcodecs.get_codec(GOOD).channels == ("171A", "Bz")
    with pytest.raises(error, match=r"^codec sunzip: "):
        numcodecs.get_codec({k: v for k, v in {**GOOD, **change}.items() if v is not None})


def test_the_entry_point_names_the_codec() -> None:
    found = [e for e in entry_points(group="numcodecs.codecs") if e.name == "sunzip"]
    if not found:
        pytest.skip("the package is not installed here, so it has no entry points")
    assert found[0].load() is Sunzip


# --- Zarr format 2 ---------------------------------------------------------------------------------------


def create(codec: Sunzip, shape: tuple[int, ...], store: MemoryStore, **options: object) -> zarr.Array:
    settings = {"dtype": "float32", "fill_value": np.nan, "zarr_format": 2, "compressors": codec} | options
    return zarr.create_array(store, shape=shape, **settings)


def test_format_2_arrays(codec: Sunzip, tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(7, 3, 32, 32)
    x[1, 1] = np.nan
    store = MemoryStore()
    create(codec, x.shape, store, chunks=(3, 3, 32, 32))[:] = x
    assert json.loads(store._store_dict[".zarray"].to_bytes())["compressor"] == codec.get_config()
    array = zarr.open_array(store, mode="r")
    y = expected(tiny_model, x)
    np.testing.assert_array_equal(array[:], y)
    np.testing.assert_array_equal(array[4, 1, 3:9], y[4, 1, 3:9])
    assert type(array[:]) is np.ndarray


def test_format_2_arrays_as_sdoml_has_them(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(7, 1, 32, 32)
    codec = Sunzip(tiny_model.sha256, ["171A"])
    array = create(codec, (7, 32, 32), MemoryStore(), chunks=(3, 32, 32))
    array[:] = x[:, 0]
    np.testing.assert_array_equal(array[:], expected(tiny_model, x, ("171A",))[:, 0])


def test_format_2_refuses_parts_of_chunks_that_hold_something(
    codec: Sunzip, tiny_model: Model, frames_of: Frames
) -> None:
    x = frames_of(5, 3, 32, 32)
    array = create(codec, (4, 3, 32, 32), MemoryStore(), chunks=(2, 3, 32, 32))
    array[:3] = x[:3]  # the second chunk is new
    for write in (
        lambda: array.__setitem__(3, x[3]),
        lambda: array.__setitem__((0, 0), x[0, 0]),
    ):
        with pytest.raises(InputError, match="write whole chunks"):
            write()
    np.testing.assert_array_equal(array[:3], expected(tiny_model, x[:3]))
    assert np.isnan(array[3]).all()
    array[2:] = x[2:4]
    array.append(x[4:])
    np.testing.assert_array_equal(array[:], expected(tiny_model, x))


def test_format_2_refuses_fortran_order(codec: Sunzip, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    array = create(codec, x.shape, MemoryStore(), chunks=x.shape, order="F")
    with pytest.raises(InputError, match="order='C'"):
        array[:] = x


# --- references ------------------------------------------------------------------------------------------


def test_references_to_blocks_of_an_archive_decode(tiny_model: Model, tmp_path: Path) -> None:
    """As kerchunk has it: metadata of format 2, and byte ranges of a file that knows nothing of them."""
    fsspec = pytest.importorskip("fsspec")
    from sunzip import api
    from sunzip.sources.series import join
    from sunzip.sources.synthetic import Synthetic

    path = tmp_path / "sun.lat"
    api.compress(join([Synthetic(frames=5, size=32, channels=THREE)]), path, model=tiny_model, block=2)
    with api.open(path, model=tiny_model) as sun:
        pixels, archive = sun.read(0, 5), sun.archive
        extents = [archive.extent(n) for n in range(archive.blocks)]
        whole = path.read_bytes()
        assert [whole[start : start + size] for start, size in extents] == archive.read_blocks(range(3))
        for beyond in (-1, 3):
            with pytest.raises(IndexError, match=f"block {beyond} of 3"):
                archive.extent(beyond)
    metadata = {
        "zarr_format": 2,
        "shape": [5, 3, 32, 32],
        "chunks": [2, 3, 32, 32],
        "dtype": "<f4",
        "compressor": Sunzip(tiny_model.sha256, THREE).get_config(),
        "fill_value": "NaN",
        "order": "C",
        "filters": None,
    }
    references: dict[str, object] = {".zarray": json.dumps(metadata)}
    for n, (start, size) in enumerate(extents):
        references[f"{n}.0.0.0"] = [str(path), start, size]
    fs = fsspec.filesystem("reference", fo=references, asynchronous=True)
    array = zarr.open_array(zarr.storage.FsspecStore(fs, read_only=True, path=""), mode="r")
    np.testing.assert_array_equal(array[:], pixels)
    np.testing.assert_array_equal(array[3, 1], pixels[3, 1])
