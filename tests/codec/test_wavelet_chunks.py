"""Chunks of frames that build on each other: what may be written in parts, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from sunzip.codec.chunks import ChunkCodec
from sunzip.codec.family import Float
from sunzip.codec.wavelet import WaveletFamily
from sunzip.errors import InputError
from sunzip.frame import Block
from sunzip.weights import Model
from sunzip.zarr import SunzipCodec

SHAPE = (4, 2, 16, 24)
EVERYTHING = slice(None)


@pytest.fixture(autouse=True, scope="module")
def believing() -> Iterator[None]:
    """Have encoders build on the frame before if they may: the networks here are random, and do not tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaveletFamily, "_best", staticmethod(lambda costs: int(np.argmin(costs[:2]))))
        yield


@pytest.fixture(scope="module")
def codec(wavelet_model: Model) -> ChunkCodec:
    return ChunkCodec(wavelet_model.sha256, ("171A", "304A"), quality=30)


@pytest.fixture(scope="module")
def pixels() -> Float:
    """Four frames that change little."""
    rng = np.random.default_rng(0)
    first = 300 + 200 * np.sin(np.mgrid[:16, :24].sum(0) / 5)
    found: Float = (first + rng.normal(0, 2, SHAPE)).astype(np.float32)
    return found


def put(
    codec: ChunkCodec, stored: bytes | None, frames: slice, data: Float, fill: float = np.nan
) -> bytes | None:
    write = codec.plan((frames, EVERYTHING, EVERYTHING, EVERYTHING), data, SHAPE, fill)
    return codec.merge(write, stored, SHAPE, fill, keep_empty=False)


def timed(chunk: bytes | None) -> list[bool]:
    """Tell of each frame whether it builds on another."""
    assert chunk is not None
    return [bool(payload and payload[0] & 2) for payload in Block.unpack(chunk).payloads]


def test_frames_written_one_after_another_are_those_written_at_once(codec: ChunkCodec, pixels: Float) -> None:
    whole = codec.encode_chunk(pixels)
    assert timed(whole) == [False, True, True, True]
    chunk = None
    for t in range(4):
        chunk = put(codec, chunk, slice(t, t + 1), pixels[t : t + 1])
    assert chunk == whole
    assert put(codec, put(codec, None, slice(0, 2), pixels[:2]), slice(2, 4), pixels[2:]) == whole


def test_the_last_frames_may_be_written_anew(codec: ChunkCodec, pixels: Float) -> None:
    changed = np.concatenate([pixels[:2], pixels[2:] + 40])
    chunk = put(codec, codec.encode_chunk(pixels), slice(2, 4), changed[2:])
    assert chunk == codec.encode_chunk(changed)
    assert put(codec, chunk, slice(0, 4), pixels) == codec.encode_chunk(pixels)
    erased = put(codec, chunk, slice(3, 4), np.full((1, *SHAPE[1:]), np.nan, np.float32))
    assert erased is not None
    assert Block.unpack(erased).entries[:3] == Block.unpack(chunk).entries[:3]
    assert np.isnan(codec.decode_chunk(erased, SHAPE)[3]).all()


@pytest.mark.parametrize("frames", [slice(0, 1), slice(1, 3), slice(0, 3, 2)])
def test_a_frame_on_which_another_builds_is_not_written_anew(
    codec: ChunkCodec, pixels: Float, frames: slice
) -> None:
    chunk = codec.encode_chunk(pixels)
    for data in (pixels[frames], np.full_like(pixels[frames], np.nan)):
        with pytest.raises(InputError, match="frame 3 of this chunk, which is not written, builds on"):
            put(codec, chunk, frames, data)


def test_a_frame_is_not_put_between_others_but_nothing_may_be(codec: ChunkCodec, pixels: Float) -> None:
    gap = pixels.copy()
    gap[1] = np.nan
    chunk = codec.encode_chunk(gap)
    with pytest.raises(InputError, match="up to its last frame"):
        put(codec, chunk, slice(1, 2), pixels[1:2])
    # Nothing where nothing was changes nothing.
    assert put(codec, chunk, slice(1, 2), gap[1:2]) == chunk
    filled = put(codec, chunk, slice(1, 4), pixels[1:])
    assert filled == codec.encode_chunk(pixels)


def test_other_fill_values_are_coded_in_their_place(codec: ChunkCodec, pixels: Float) -> None:
    chunk = put(codec, None, slice(1, 2), pixels[1:2], fill=5)
    whole = np.full(SHAPE, 5, np.float32)
    whole[1] = pixels[1]
    assert chunk == codec.encode_chunk(whole)


def test_zarr_appends_and_refuses_alike(
    wavelet_model: Model, pixels: Float, tmp_path: Path, zarr_codec: str
) -> None:
    array = zarr.create_array(
        tmp_path / "cube.zarr",
        shape=(2, *SHAPE[1:]),
        chunks=SHAPE,
        dtype="float32",
        fill_value=np.nan,
        serializer=SunzipCodec(model=wavelet_model.sha256, channels=("171A", "304A"), quality=30),
        compressors=None,
    )
    array[:] = pixels[:2]
    array.append(pixels[2:])
    expected = ChunkCodec(wavelet_model.sha256, ("171A", "304A"), quality=30)
    whole = expected.encode_chunk(pixels)
    assert (tmp_path / "cube.zarr" / "c" / "0" / "0" / "0" / "0").read_bytes() == whole
    assert np.array_equal(array[3], expected.decode_chunk(whole, SHAPE)[3])
    with pytest.raises(InputError, match="builds on"):
        array[0] = pixels[0]
