"""Chunks of frames that build on each other: what may be written in parts, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from sunzip.codec.chunks import ChunkCodec
from sunzip.codec.family import Float
from sunzip.codec.order import order
from sunzip.codec.wavelet import WaveletFamily
from sunzip.errors import InputError
from sunzip.frame import Block, Entry
from sunzip.weights import Model
from sunzip.zarr import SunzipCodec

SHAPE = (4, 2, 16, 24)
EVERYTHING = slice(None)

#: How alike frames are taken to be if there are three of them or more.
ALIKE = 1.0

#: Root mean square by which pixels may differ from those coded; frames differ by 20 from one to the next.
NEAR = 8


@pytest.fixture(autouse=True, scope="module")
def believing() -> Iterator[None]:
    """Have encoders build on other frames if they may: the networks here are random, and do not tell.

    Three and more frames are taken to be alike.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaveletFamily, "_alike", staticmethod(lambda *pyramids: ALIKE))
        patch.setattr(WaveletFamily, "likeness", lambda *frames: ALIKE)
        yield


@pytest.fixture(scope="module")
def codec(wavelet_model: Model) -> ChunkCodec:
    return ChunkCodec(wavelet_model.sha256, ("171A", "304A"), quality=90)


@pytest.fixture(scope="module")
def pixels() -> Float:
    """Four frames that change little but are told apart by how bright they are."""
    rng = np.random.default_rng(0)
    first = 300 + 200 * np.sin(np.mgrid[:16, :24].sum(0) / 5)
    brighter = 20 * np.arange(4)[:, None, None, None]
    found: Float = (first + brighter + rng.normal(0, 2, SHAPE)).astype(np.float32)
    return found


def put(
    codec: ChunkCodec, stored: bytes | None, frames: slice, data: Float, fill: float = np.nan
) -> bytes | None:
    write = codec.plan((frames, EVERYTHING, EVERYTHING, EVERYTHING), data, SHAPE, fill)
    return codec.merge(write, stored, SHAPE, fill, keep_empty=False)


def links(codec: ChunkCodec, chunk: bytes | None) -> list[tuple[int, int]]:
    """Return of each frame that is not empty how many before and after it those are that it builds on."""
    assert chunk is not None
    family = codec._codec().family
    return [family.links(payload) for payload in Block.unpack(chunk).payloads if payload]


def at_once(count: int, follows: bool = False) -> list[tuple[int, int]]:
    """Return how frames that are written at once build on each other."""
    like = ALIKE if count > 2 else 0
    return [(step.back, step.ahead) for step in sorted(order(count, follows, like))]


def entries(chunk: bytes | None) -> tuple[Entry, ...]:
    assert chunk is not None
    return Block.unpack(chunk).entries


def assert_near(codec: ChunkCodec, chunk: bytes | None, data: Float) -> None:
    """Hold a chunk to what was written: each frame is nearer to its own pixels than to those of others."""
    assert chunk is not None
    found = codec.decode_chunk(chunk, SHAPE)
    assert (np.isnan(found) == np.isnan(data)).all()
    shown = ~np.isnan(data).all((1, 2, 3))
    assert np.sqrt(np.square(found - data)[shown].mean((2, 3))).max() < NEAR


@pytest.fixture(scope="module")
def chain(codec: ChunkCodec, pixels: Float) -> bytes:
    """A chunk whose frames were written one after another."""
    chunk = None
    for t in range(4):
        chunk = put(codec, chunk, slice(t, t + 1), pixels[t : t + 1])
    assert chunk is not None
    return chunk


def test_frames_written_at_once_build_on_those_around_them(codec: ChunkCodec, pixels: Float) -> None:
    whole = codec.encode_chunk(pixels)
    assert links(codec, whole) == at_once(4)
    assert any(ahead for _, ahead in links(codec, whole))
    assert put(codec, None, slice(0, 4), pixels) == whole
    assert_near(codec, whole, pixels)


def test_frames_written_one_after_another_build_on_the_one_before(codec: ChunkCodec, pixels: Float) -> None:
    chunk: bytes | None = None
    for t in range(4):
        before = chunk
        chunk = put(codec, before, slice(t, t + 1), pixels[t : t + 1])
        if before is not None:
            assert entries(chunk)[:t] == entries(before)[:t]
        assert links(codec, chunk) == [(0, 0), (1, 0), (1, 0), (1, 0)][: t + 1]
        assert_near(codec, chunk, np.where(np.arange(4)[:, None, None, None] <= t, pixels, np.nan))


@pytest.mark.parametrize("first", [1, 2, 3])
def test_frames_written_in_two_parts_build_on_the_last_of_the_first(
    codec: ChunkCodec, pixels: Float, first: int
) -> None:
    begun = put(codec, None, slice(0, first), pixels[:first])
    chunk = put(codec, begun, slice(first, 4), pixels[first:])
    assert entries(chunk)[:first] == entries(begun)[:first]
    assert links(codec, chunk) == at_once(first) + at_once(4 - first, follows=True)
    assert_near(codec, chunk, pixels)


def test_the_last_frames_may_be_written_anew(codec: ChunkCodec, pixels: Float, chain: bytes) -> None:
    changed = np.concatenate([pixels[:2], pixels[2:] + 40])
    chunk = put(codec, chain, slice(2, 4), changed[2:])
    assert entries(chunk)[:2] == entries(chain)[:2]
    assert links(codec, chunk) == [(0, 0), (1, 0), *at_once(2, follows=True)]
    assert_near(codec, chunk, changed)
    assert put(codec, chunk, slice(0, 4), pixels) == codec.encode_chunk(pixels)
    erased = put(codec, chain, slice(3, 4), np.full((1, *SHAPE[1:]), np.nan, np.float32))
    assert erased is not None
    assert entries(erased)[:3] == entries(chain)[:3]
    assert np.isnan(codec.decode_chunk(erased, SHAPE)[3]).all()


@pytest.mark.parametrize(
    ("gap", "frames", "kept", "built_on"),
    [
        (None, slice(3, 4), 1, 3),
        (None, slice(2, 4), 1, 3),
        (1, slice(3, 4), 2, 3),  # frames are counted without the empty one, and told with it
        (2, slice(3, 4), 1, 3),
        (3, slice(2, 4), 1, 2),
        (3, slice(2, 3), 1, 2),
    ],
)
def test_a_frame_on_which_one_before_it_builds_is_not_written_anew(
    codec: ChunkCodec, pixels: Float, gap: int | None, frames: slice, kept: int, built_on: int
) -> None:
    data = pixels.copy()
    if gap is not None:
        data[gap] = np.nan
    chunk = codec.encode_chunk(data)
    message = (
        f"frame {kept} of this chunk, which is not written, builds on frame {built_on}: write the whole chunk"
    )
    for written in (pixels[frames], np.full_like(pixels[frames], np.nan)):
        with pytest.raises(InputError, match=message):
            put(codec, chunk, frames, written)
    # With that frame it may be.
    last = put(codec, chunk, slice(1, 4), pixels[1:])
    assert entries(last)[:1] == entries(chunk)[:1]
    assert links(codec, last) == [(0, 0), *at_once(3, follows=True)]
    assert_near(codec, last, pixels)


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
    assert entries(filled)[:1] == entries(chunk)[:1]
    assert_near(codec, filled, pixels)
    assert put(codec, chunk, slice(0, 4), pixels) == codec.encode_chunk(pixels)


def test_other_fill_values_are_coded_in_their_place(codec: ChunkCodec, pixels: Float) -> None:
    chunk = put(codec, None, slice(1, 2), pixels[1:2], fill=5)
    whole = np.full(SHAPE, 5, np.float32)
    whole[1] = pixels[1]
    assert chunk == codec.encode_chunk(whole)


def test_what_a_number_left_beyond_the_end_is_refused_with_a_way_out(
    wavelet_model: Model, pixels: Float, zarr_codec: str
) -> None:
    for fill in (0, np.nan):
        array = zarr.create_array(
            {},
            shape=(3, *SHAPE[1:]),
            chunks=SHAPE,
            dtype="float32",
            fill_value=fill,
            serializer=SunzipCodec(model=wavelet_model.sha256, channels=("171A", "304A"), quality=90),
            compressors=None,
        )
        array[:] = pixels[:3]
        if np.isnan(fill):
            array[:] = pixels[:3]
        else:
            with pytest.raises(InputError, match=r"is not written, builds on .*; fill_value=nan leaves"):
                array[:] = pixels[:3]


def test_zarr_appends_and_refuses_alike(
    wavelet_model: Model, pixels: Float, tmp_path: Path, zarr_codec: str
) -> None:
    array = zarr.create_array(
        tmp_path / "cube.zarr",
        shape=(2, *SHAPE[1:]),
        chunks=SHAPE,
        dtype="float32",
        fill_value=np.nan,
        serializer=SunzipCodec(model=wavelet_model.sha256, channels=("171A", "304A"), quality=90),
        compressors=None,
    )
    array[:] = pixels[:2]
    array.append(pixels[2:])
    expected = ChunkCodec(wavelet_model.sha256, ("171A", "304A"), quality=90)
    whole = put(expected, put(expected, None, slice(0, 2), pixels[:2]), slice(2, 4), pixels[2:])
    assert whole is not None
    assert (tmp_path / "cube.zarr" / "c" / "0" / "0" / "0" / "0").read_bytes() == whole
    assert np.array_equal(array[3], expected.decode_chunk(whole, SHAPE)[3])
    with pytest.raises(
        InputError, match="frame 3 of this chunk, which is not written, builds on those before"
    ):
        array[0] = pixels[0]
    array[3] = pixels[2]  # on which no other builds
    changed = put(expected, whole, slice(3, 4), pixels[2:3])
    assert (tmp_path / "cube.zarr" / "c" / "0" / "0" / "0" / "0").read_bytes() == changed != whole
    array[:] = pixels
    at_once = expected.encode_chunk(pixels)
    assert (tmp_path / "cube.zarr" / "c" / "0" / "0" / "0" / "0").read_bytes() == at_once
    with pytest.raises(InputError, match="frame 1 of this chunk, which is not written, builds on frame 3"):
        array[3] = pixels[3]
