"""Checks that others wrote, held against our codecs: those of numcodecs, and zarr's strategies and buffers.

Of `numcodecs.tests.common`, which wheels of numcodecs up to 0.16 hold, these cannot apply, and this is tested
instead:

- ``check_encode_decode`` codes flat bytes too, of which this codec cannot know the shape. Its other steps,
  any buffer to decode and any buffer as ``out``, are in test_numcodecs_codec.py.
- ``check_err_decode_object_buffer`` first codes integers, which are refused; here the block is of pixels.
- ``check_max_buffer_size`` codes bytes and sets a limit on the codec, which has none but numcodecs' own of
  2 GiB; that is in test_numcodecs_codec.py.

Those that want back exactly what went in are given what this codec gives back exactly: arrays without any
measurement, and golden blocks with the pixels that `sunzip.open` decodes from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.registry import codec_registry
from zarr.registry import register_buffer, register_ndbuffer
from zarr.storage import MemoryStore
from zarr.testing import buffer, strategies

import sunzip
from sunzip.channels import NAMES
from sunzip.numcodecs import Sunzip
from sunzip.weights import Model
from sunzip.zarr import SunzipCodec

Frames = Callable[..., np.ndarray]
TWO = ("171A", "Bz")
GOLDEN = Path(__file__).parent / "golden" / "archive-v1.lat"

pytestmark = pytest.mark.usefixtures("zarr_codec")


# --- numcodecs.tests.common ------------------------------------------------------------------------------


@pytest.fixture
def common() -> ModuleType:
    return pytest.importorskip("numcodecs.tests.common", reason="this numcodecs comes without its tests")


@pytest.fixture
def codec(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> Sunzip:
    monkeypatch.setitem(codec_registry, "sunzip", Sunzip)
    return Sunzip(tiny_model.sha256, TWO)


def nothing(frames: int) -> np.ndarray:
    return np.full((frames, 2, 32, 32), np.nan, np.float32)


def test_config(codec: Sunzip, common: ModuleType) -> None:
    for other in (codec, Sunzip(), Sunzip(codec.model, NAMES[:5], scale="sum", quality=7)):
        common.check_config(other)


def test_repr(codec: Sunzip, common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "Sunzip", Sunzip, raising=False)
    both = (
        f"Sunzip(model='{codec.model}', channels=('171A', 'Bz'), scale='mean', quality=None, max_error=None)"
    )
    common.check_repr(both)
    one = f"Sunzip(model='{codec.model}', channels=('94A',), scale='sum', quality=50, max_error='94A=2sigma')"
    common.check_repr(one)


def test_encode_decode_array(codec: Sunzip, common: ModuleType) -> None:
    common.check_encode_decode_array(nothing(3), codec)


def test_err_encode_object_buffer(codec: Sunzip, common: ModuleType) -> None:
    common.check_err_encode_object_buffer(codec)


def test_err_decode_object_buffer(codec: Sunzip) -> None:
    with pytest.raises(TypeError):
        codec.decode(codec.encode(nothing(1)), out=np.empty((1, 2, 32, 32), object))


def test_backwards_compatibility(
    codec: Sunzip,
    common: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_registered: None,
) -> None:
    """The fixtures are the golden archive's: a configuration, blocks, and their pixels."""
    monkeypatch.chdir(tmp_path)
    with sunzip.open(GOLDEN) as sun:
        golden = Sunzip(sun.archive.model["sha256"], sun.channels)
        pixels = sun[:]
        blocks = [sun.archive.block(n) for n in range(sun.archive.blocks)]
    arrays = [pixels[:2], np.concatenate([pixels[2:], np.full_like(pixels[:1], np.nan)])]
    folder = tmp_path / "fixture" / "sunzip" / "codec.00"
    folder.mkdir(parents=True)
    for number, (pixel, block) in enumerate(zip(arrays, blocks, strict=True)):
        np.save(folder.parent / f"array.{number:02d}.npy", pixel)
        (folder / f"encoded.{number:02d}.dat").write_bytes(block)
    config = {"id": "sunzip", "version": 1, "model": golden.model, "channels": ["171A", "304A", "Bz"]}
    (folder / "config.json").write_text(json.dumps({**config, "scale": "mean"}), "utf-8")
    common.check_backwards_compatibility("sunzip", arrays, [golden], precision=[1])
    # What the check writes and reads itself must be the same to the byte.
    nothing = [np.full((frames, 3, 32, 32), np.nan, np.float32) for frames in (1, 3)]
    common.check_backwards_compatibility("sunzip", nothing, [golden], prefix="nothing")


# --- zarr.testing ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels(frames_of: Frames) -> np.ndarray:
    x = frames_of(7, 2, 16, 16)
    x[1, 1] = np.nan
    x[4] = np.nan
    x[2, 0, 3:5, 7] = np.nan
    return x


@pytest.fixture(
    scope="module",
    params=[((1, 2, 16, 16), None), ((3, 2, 16, 16), None), ((1, 2, 16, 16), 4), ((2, 2, 16, 16), 4)],
    ids=["frames", "blocks", "sharded-frames", "sharded-blocks"],
)
def array(
    request: pytest.FixtureRequest, tiny_model: Model, pixels: np.ndarray, zarr_codec: str
) -> zarr.Array:
    chunks, frames = request.param
    array = zarr.create_array(
        MemoryStore(),
        shape=pixels.shape,
        chunks=chunks,
        shards=None if frames is None else (frames, *chunks[1:]),
        dtype="float32",
        fill_value=np.nan,
        serializer=SunzipCodec(tiny_model.sha256, TWO),
        compressors=None,
    )
    array[:] = pixels
    return array


@pytest.fixture(scope="module")
def decoded(tiny_model: Model, pixels: np.ndarray) -> np.ndarray:
    codec = Sunzip(tiny_model.sha256, TWO)
    return np.array(codec.decode(codec.encode(pixels)))


def test_basic_indexing_commutes_with_decoding(array: zarr.Array, decoded: np.ndarray) -> None:
    @settings(max_examples=40, deadline=None)
    @given(strategies.basic_indices(shape=decoded.shape))
    def check(indices: object) -> None:
        np.testing.assert_array_equal(array[indices], decoded[indices])

    check()


def test_orthogonal_indexing_commutes_with_decoding(array: zarr.Array, decoded: np.ndarray) -> None:
    @settings(max_examples=40, deadline=None)
    @given(strategies.orthogonal_indices(shape=decoded.shape))
    def check(indices: tuple) -> None:
        ours, numpys = indices
        np.testing.assert_array_equal(array.oindex[ours], decoded[numpys])

    check()


def test_coordinates_commute_with_decoding(array: zarr.Array, decoded: np.ndarray) -> None:
    points = st.tuples(*(st.integers(-n, n - 1) for n in decoded.shape))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(points, min_size=1, max_size=9))
    def check(chosen: list[tuple[int, ...]]) -> None:
        at = tuple(np.array(chosen).T)
        np.testing.assert_array_equal(array.vindex[at], decoded[at])

    check()


@pytest.mark.parametrize("shards", [None, (4, 2, 16, 16)])
def test_buffers_are_those_of_the_caller(
    tiny_model: Model, pixels: np.ndarray, decoded: np.ndarray, shards: tuple | None
) -> None:
    """The store asserts that it sees no other buffers than zarr was told to use."""
    register_buffer(buffer.TestBuffer, "zarr.testing.buffer.TestBuffer")
    register_ndbuffer(buffer.NDBufferUsingTestNDArrayLike, "zarr.testing.buffer.NDBufferUsingTestNDArrayLike")
    with zarr.config.set(
        {
            "buffer": "zarr.testing.buffer.TestBuffer",
            "ndbuffer": "zarr.testing.buffer.NDBufferUsingTestNDArrayLike",
        }
    ):
        array = zarr.create_array(
            buffer.StoreExpectingTestBuffer(),
            shape=pixels.shape,
            chunks=(2, 2, 16, 16),
            shards=shards,
            dtype="float32",
            fill_value=np.nan,
            serializer=SunzipCodec(tiny_model.sha256, TWO),
            compressors=None,
        )
        array[:6] = pixels[:6]
        array[6] = pixels[6]
        got = array[:]
    assert isinstance(got, buffer.TestNDArrayLike)
    np.testing.assert_array_equal(got, decoded)
