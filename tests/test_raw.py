"""Frames stored as pixels: no frame costs more than its compressed pixels, and those come back to the bit."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs.zstd import Zstd

from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import Scale
from sunzip.errors import DamagedError
from sunzip.frame import Block, is_raw, pack_raw, unpack_raw
from sunzip.packed import pack, unpack
from sunzip.weights import Model

THREE = ("171A", "304A", "Bz")
Frames = Callable[..., np.ndarray]

finite = hnp.arrays(
    np.float32,
    st.tuples(st.just(1), st.just(3), st.just(16), st.integers(16, 20)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.just(np.nan),
    fill=st.sampled_from([0.0, -0.0, 1.5, np.nan]),
)


@pytest.fixture(scope="module", params=["tiny", "wavelet"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.getfixturevalue(f"{request.param}_model"), 100)


@pytest.fixture(scope="module")
def film(wavelet_model: Model) -> Codec:
    return Codec(wavelet_model, 100)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Every float32 there is, as likely as any other, but for infinities and NaN."""
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)
    x = bits.view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(1))


def compressed(x: np.ndarray) -> int:
    """Bytes of those channels of a frame (C, Y, X) that it has, as zstd's default has them."""
    return len(Zstd(level=3).encode(np.ascontiguousarray(x[~np.isnan(x).all((1, 2))])))


def same(a: np.ndarray, b: np.ndarray) -> None:
    """Hold arrays to be the same to the bit, but for what kind of NaN they have."""
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert np.nan_to_num(a).tobytes() == np.nan_to_num(b).tobytes()


@settings(max_examples=12, deadline=None)
@given(finite)
def test_no_frame_costs_more_than_its_pixels(codec: Codec, x: np.ndarray) -> None:
    [data] = codec.encode(x, THREE)
    block = Block.unpack(data)
    # 23 bytes of a block, 1 that says that there are pixels.
    assert len(data) <= 24 + compressed(x[0])
    y = codec.decode([data], THREE, x.shape[2:])
    if is_raw(block.payloads[0]):
        same(y, x)
        assert np.isnan(codec.latents([data], x.shape[2:])).all()
    else:
        np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(16, 16), (17, 40), (64, 48)]))
def test_pure_noise_comes_back_to_the_bit(film: Codec, seed: int, shape: tuple[int, int]) -> None:
    x = noise(2, 3, *shape, seed=seed)
    x[1, 1] = np.nan
    x[1, 2, 3:5] = np.nan
    blocks = film.encode(x, THREE, frames_per_block=2)
    assert all(map(is_raw, Block.unpack(blocks[0]).payloads))
    same(film.decode(blocks, THREE, shape), x)
    same(film.decode(blocks, ["Bz"], shape, frames=[1])[:, 0], x[1:, 2])
    everything = film.decode(blocks, NAMES, shape)
    assert np.flatnonzero(~np.isnan(everything).all((0, 2, 3))).tolist() == [2, 5, 11]
    same(film.decode_tensor(blocks, THREE, shape).numpy(), x)


def test_sums_and_stabilised_pixels_are_those_of_the_means(film: Codec) -> None:
    x = np.random.default_rng(1).normal(0, 1e30, (1, 3, 16, 16)).astype(np.float32)
    x[0, 0, 2, 3] = np.nan
    aia = np.array([4, 4, 1], np.float32)[:, None, None]
    blocks = film.encode(x * aia, THREE, Scale.SUM)
    assert blocks == film.encode(x, THREE)
    assert is_raw(Block.unpack(blocks[0]).payloads[0])
    same(film.decode(blocks, THREE, (16, 16), Scale.SUM), x * aia)
    same(film.decode(blocks, THREE, (16, 16)), x)
    shown = film.decode_tensor(blocks, THREE, (16, 16), Scale.SUM, normalised=True).numpy()
    np.testing.assert_allclose(shown, film.family.stabiliser.subset([2, 5, 11]).forward(x), rtol=1e-6)


def test_what_a_sum_cannot_hold_is_the_largest_number(film: Codec) -> None:
    x = np.full((1, 3, 16, 16), 3e38, np.float32)
    y = film.decode(film.encode(x, THREE), THREE, (16, 16), Scale.SUM)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("chained", [True, False])
def test_a_frame_after_a_raw_one_begins_afresh(
    film: Codec, frames_of: Frames, chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(film.family), "likeness", lambda *given: 0.0 if chained else 1.0)
    x = frames_of(1, 3, 32, 32).repeat(5, 0)
    x[2] = noise(3, 32, 32)
    alone = Block.unpack(film.encode(x[:1], THREE)[0]).payloads[0]
    block = Block.unpack(film.encode(x, THREE, frames_per_block=5)[0])
    assert [is_raw(p) for p in block.payloads] == [False, False, True, False, False]
    if chained:
        assert block.payloads[3] == block.payloads[0] == alone
        assert block.payloads[4] == block.payloads[1] != alone
    data = [block.pack()]
    y = film.decode(data, THREE, (32, 32))
    same(y[2], x[2])
    if chained:
        same(y[3], y[0])
    for frames in ([4], [2], [3, 0]):
        same(film.decode(data, THREE, (32, 32), frames=frames), y[frames])
    found = film.latents(data, (32, 32))
    assert np.isnan(found).all((1, 2, 3)).tolist() == [False, False, True, False, False]
    same(film.latents(data, (32, 32), frames=[4]), found[4:])


@pytest.mark.parametrize("fill", [1e9, -1e20, np.finfo(np.float32).max])
def test_a_pixel_that_is_no_measurement_spoils_no_other(codec: Codec, frames_of: Frames, fill: float) -> None:
    x = frames_of(2, 3, 32, 32)
    x[0, 1, 9, 9] = fill
    blocks, decoded = codec.encode_measured(x, THREE, frames_per_block=2, measure=lambda _, decoded: decoded)
    (block,) = [Block.unpack(b) for b in blocks]
    assert [is_raw(p) for p in block.payloads] == [True, False]
    same(codec.decode(blocks, THREE, (32, 32)), decoded)
    same(decoded[0], x[0])


def test_real_frames_are_no_pixels(film: Codec, frames_of: Frames) -> None:
    block = Block.unpack(film.encode(frames_of(1, 3, 32, 32), THREE)[0])
    assert not is_raw(block.payloads[0])


# --- bytes of strangers ----------------------------------------------------------------------------------


def raw_block(film: Codec, payload: bytes, shape: tuple[int, int] = (16, 16)) -> bytes:
    return Block(film._id, shape, 50, (0b111,), (payload,), (b"",)).pack()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\0", "states a content of None"),
        (b"nonsense\0", "states a content of None"),
        (pack(bytes(3 * 1024 - 1), 3, checksum=False) + b"\0", "3071 bytes instead of 3072"),
        (pack(bytes(1 << 26), 3, checksum=False) + b"\0", "67108864 bytes instead of 3072"),
        (pack(bytes(3 * 1024), 3, checksum=False)[:-3] + b"\0", "cannot be decompressed"),
        (pack(np.full(768, np.inf, "<f4").tobytes(), 3, checksum=False) + b"\0", "infinite"),
    ],
)
def test_raw_frames_that_are_none_are_damage(film: Codec, payload: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=says):
            film.decode([raw_block(film, payload)], THREE, (16, 16))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_altered_raw_frames_give_pixels_or_a_clear_error(film: Codec, at: int, value: int) -> None:
    payload = bytearray(pack_raw(noise(3, 16, 16), 1 << 20) or b"")
    payload[at % (len(payload) - 1)] = value
    try:
        y = film.decode([raw_block(film, bytes(payload))], THREE, (16, 16))
    except DamagedError:
        return
    assert not np.isinf(y).any()


def test_the_bit_in_the_header_is_held_to_the_payloads() -> None:
    import struct
    import zlib

    for payload, wrong in ((b"ab", 0x20), (b"a\0", 0x00)):
        data = bytearray(Block(b"abcd", (16, 16), 3, (1,), (payload,), (b"",)).pack())
        assert data[16] == 0x20 - wrong
        data[16] = wrong
        data[6:10] = struct.pack("<I", zlib.crc32(data[:6] + data[10:]))
        with pytest.raises(DamagedError, match="raw frames"):
            Block.unpack(bytes(data))


def test_a_raw_frame_has_no_gap_map() -> None:
    block = Block(b"abcd", (16, 16), 3, (1, 1), (b"a\0", b"a"), (b"", b"map")).pack()
    assert Block.unpack(block).gaps == (b"", b"map")
    with pytest.raises(DamagedError, match="a raw frame has a gap map"):
        Block.unpack(Block(b"abcd", (16, 16), 3, (1, 1), (b"a", b"a\0"), (b"", b"map")).pack())


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.floats(-9, 9, width=32)
    )
)
def test_pixels_come_back(x: np.ndarray) -> None:
    payload = pack_raw(x, 1 << 20)
    assert payload is not None
    assert is_raw(payload)
    assert unpack_raw(payload, *x.shape).tobytes() == x.tobytes()
    assert pack_raw(x, len(payload) - 1) is None
    assert pack_raw(x, len(payload)) == payload


def test_a_small_part_tells_that_pixels_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    import sunzip.frame

    seen: list[int] = []

    def counted(data: memoryview, level: int, *, checksum: bool) -> bytes:
        seen.append(data.nbytes)
        return pack(data, level, checksum=checksum)

    monkeypatch.setattr(sunzip.frame, "pack", counted)
    x = noise(12, 256, 256)
    assert pack_raw(x, 1000) is None
    assert seen == [1 << 17]
    assert pack_raw(x, x.nbytes * 2) is not None
    assert pack_raw(np.zeros_like(x), 200_000) is not None


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_packed_bytes_come_back(data: bytes, checksum: bool) -> None:
    packed = pack(data, 3, checksum=checksum)
    assert unpack(packed) == unpack(packed, len(data)) == data
    with pytest.raises(DamagedError, match="states"):
        unpack(packed, len(data) + 1)
    with pytest.raises(DamagedError, match="states"):
        unpack(packed, most=len(data) - 1)
    for end in range(len(packed)):
        with pytest.raises(DamagedError):
            unpack(packed[:end])
