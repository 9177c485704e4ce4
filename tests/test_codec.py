"""The codec: what is decoded is what was coded, whatever it was coded or read together with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from sunzip.channels import NAMES
from sunzip.codec import Codec, codec_for
from sunzip.codec.family import Known, Latents, symbols
from sunzip.codec.images import there_of
from sunzip.codec.lanes import side_by_side
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError
from sunzip.frame import Block, is_raw
from sunzip.gaps import pack_gaps
from sunzip.weights import TENSORS, Model, pack, write

Frames = Callable[..., np.ndarray]
THREE = ("171A", "304A", "Bz")


@pytest.fixture(scope="module")
def codec(tiny_model: Model) -> Codec:
    return Codec(tiny_model)


@pytest.fixture(scope="module")
def sigma(sigma_model: Model) -> Codec:
    return Codec(sigma_model)


def change(block: bytes, **fields: object) -> bytes:
    """Pack a block again with other fields, its checksum right."""
    b = Block.unpack(block)
    names = ("model", "shape", "quality", "masks", "payloads", "gaps")
    return Block(**{n: fields.get(n, getattr(b, n)) for n in names}).pack()


# --- the round trip --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (32, 48), (33, 50), (128, 128), (17, 200)])
def test_any_size_comes_back_as_it_went_in(codec: Codec, frames_of: Frames, shape: tuple[int, int]) -> None:
    x = frames_of(2, 3, *shape)
    blocks = codec.encode(x, THREE)
    y = codec.decode(blocks, THREE, shape)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert np.isfinite(y).all()


def test_latents_are_the_encoders_own_dequantised(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(3, 12, 64, 96)
    family = codec.family
    blocks = codec.encode(x, NAMES)
    decoded = codec.latents(blocks, (64, 96))
    assert decoded.shape == (3, 8, 4, 6)
    there = there_of(x[0], range(12))
    images = side_by_side(lambda frame: codec._analyse(frame, there, range(12), Scale.MEAN), x)
    for found, latents in zip(decoded, images, strict=True):
        # The same by another road: quantise about the means that the exact network predicts.
        mean, index = family._predict(symbols(latents.side), 4, 6, codec.quality)
        whole = np.rint(latents.main - mean)
        assert np.abs(whole).max() > 3  # there is something to code
        assert np.unique(index).size > 3
        np.testing.assert_array_equal(found, (whole + mean) * family._inverse[codec.quality])
        # Rounding moves a latent by half a step at most.
        free = family.unquantised(latents, codec.quality)
        assert (np.abs(found - free) <= 0.5001 * family._inverse[codec.quality]).all()


def test_what_was_coded_may_come_decoded(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(5, 3, 32, 48)
    x[1, 0], x[3] = np.nan, np.nan
    x[2, 1, 4, 5] = np.nan
    blocks, decoded = codec.encode_measured(x, THREE, frames_per_block=2, measure=lambda _, decoded: decoded)
    assert blocks == codec.encode(x, THREE, frames_per_block=2)
    np.testing.assert_array_equal(decoded, codec.decode(blocks, THREE, (32, 48))[:5])


def test_decoding_pixels_uses_these_latents(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(1, 12, 32, 32)
    blocks = codec.encode(x, NAMES)
    images = codec.family.synthesise(codec.latents(blocks, (32, 32)), np.ones((1, 12), np.float32), 32, 32)
    np.testing.assert_array_equal(
        codec.decode(blocks, NAMES, (32, 32)), codec.family.stabiliser.inverse(images)
    )


def test_unquantised_is_close_to_decoded_at_the_finest_quality(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    x[0, 1] = np.nan
    x[1, 2, 3, 4] = np.nan
    fine, coarse = Codec(tiny_model, 100), Codec(tiny_model, 0)
    free = fine.unquantised(x, THREE)
    np.testing.assert_array_equal(np.isnan(free), np.isnan(x))
    errors = [
        np.nanmean((c.decode(c.encode(x, THREE), THREE, (32, 32)) - c.unquantised(x, THREE)) ** 2)
        for c in (fine, coarse)
    ]
    assert errors[0] < 0.1 * errors[1]


# --- what a frame is coded together with does not matter -------------------------------------------------


def test_a_frame_has_the_same_bytes_and_pixels_alone(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(7, 12, 48, 40)
    together = codec.encode(x, NAMES)
    assert len(set(together)) == 7
    assert together == [codec.encode(x[t : t + 1], NAMES)[0] for t in range(7)]
    pixels = codec.decode(together, NAMES, (48, 40))
    for t in (0, 3, 6):
        np.testing.assert_array_equal(codec.decode(together[t : t + 1], NAMES, (48, 40))[0], pixels[t])


def test_blocks_of_many_frames_hold_the_same_frames(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(7, 3, 32, 32)
    single = codec.encode(x, THREE)
    blocks = codec.encode(x, THREE, frames_per_block=3)
    assert len(blocks) == 3
    unpacked = [Block.unpack(b) for b in blocks]
    assert [len(b.masks) for b in unpacked] == [3, 3, 3]
    assert unpacked[2].masks[1:] == (0, 0)  # filled up with nothing
    payloads = [p for b in unpacked for p in b.payloads]
    assert payloads[:7] == [Block.unpack(b).payloads[0] for b in single]
    y = codec.decode(blocks, THREE, (32, 32))
    assert y.shape[0] == 9
    assert np.isnan(y[7:]).all()
    np.testing.assert_array_equal(y[:7], codec.decode(single, THREE, (32, 32)))
    latents = codec.latents(blocks, (32, 32))
    assert np.isnan(latents[7:]).all()
    np.testing.assert_array_equal(latents[:7], codec.latents(single, (32, 32)))


@pytest.mark.parametrize("frames", [[0], [4, 5], [1, 3, 6], [], range(2, 7, 2)])
def test_some_frames_are_those_of_all(codec: Codec, frames_of: Frames, frames: list[int]) -> None:
    x = frames_of(7, 3, 32, 32)
    x[3] = np.nan
    blocks = codec.encode(x, THREE, frames_per_block=4)
    everything = codec.decode(blocks, THREE, (32, 32))
    some = codec.decode(blocks, THREE, (32, 32), frames=frames)
    np.testing.assert_array_equal(some, everything[list(frames)])
    latents = codec.latents(blocks, (32, 32))
    np.testing.assert_array_equal(codec.latents(blocks, (32, 32), frames=frames), latents[list(frames)])


def test_threads_may_share_a_codec(tiny_model: Model, frames_of: Frames) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = frames_of(8, 3, 32, 32)
    expected = Codec(tiny_model).encode(x, THREE)
    shared = Codec(tiny_model)
    with ThreadPoolExecutor(4) as pool:
        coded = list(pool.map(lambda t: shared.encode(x[t : t + 1], THREE)[0], range(8)))
        pixels = list(pool.map(lambda b: shared.decode([b], THREE, (32, 32))[0], coded))
    assert coded == expected
    np.testing.assert_array_equal(np.stack(pixels), shared.decode(expected, THREE, (32, 32)))


def test_random_numbers_of_the_caller_are_left_alone(tiny_model: Model, frames_of: Frames) -> None:
    torch = pytest.importorskip("torch")

    state = torch.random.get_rng_state()
    codec = Codec(tiny_model)
    codec.decode(codec.encode(frames_of(1, 3, 32, 32), THREE), THREE, (32, 32))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_type_that_pytorch_takes_by_default_does_not_matter(
    codec: Codec, tiny_model: Model, frames_of: Frames, dtype: str
) -> None:
    torch = pytest.importorskip("torch")

    x = frames_of(1, 3, 32, 32)
    blocks = codec.encode(x, THREE)
    expected = codec.decode(blocks, THREE, (32, 32))
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        again = Codec(tiny_model)
        assert again.encode(x, THREE) == blocks
        np.testing.assert_array_equal(again.decode(blocks, THREE, (32, 32)), expected)
        assert again.decode_tensor(blocks, THREE, (32, 32)).dtype is torch.float32
    finally:
        torch.set_default_dtype(before)


# --- missing pixels and images ---------------------------------------------------------------------------


def test_missing_pixels_come_back_where_they_were(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(3, 3, 33, 40)
    rng = np.random.default_rng(0)
    x[0, 1][rng.random((33, 40)) < 0.3] = np.nan
    x[1, 0] = np.nan
    x[1, 2, 5:9, :] = np.nan
    x[2, :, 0, 0] = np.nan
    for per_block in (1, 2):
        y = codec.decode(codec.encode(x, THREE, frames_per_block=per_block), THREE, (33, 40))
        np.testing.assert_array_equal(np.isnan(y[:3]), np.isnan(x))


def test_missing_channels_are_absent_and_asked_for_are_nan(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    x[1, 1] = np.nan
    blocks = codec.encode(x, THREE)
    assert [Block.unpack(b).masks[0] for b in blocks] == [0b100000100100, 0b100000000100]
    y = codec.decode(blocks, NAMES, (32, 32))
    there = ~np.isnan(y).all((2, 3))
    assert np.flatnonzero(there[0]).tolist() == [2, 5, 11]
    assert np.flatnonzero(there[1]).tolist() == [2, 11]
    np.testing.assert_array_equal(y[:, [2, 5, 11]], codec.decode(blocks, THREE, (32, 32)))
    np.testing.assert_array_equal(y[:, [11]], codec.decode(blocks, ["Bz"], (32, 32)))


def test_what_is_missing_does_not_change_what_is_there(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(1, 2, 32, 32)
    alone = codec.encode(x, ("171A", "304A"))
    beside = np.full((1, 12, 32, 32), np.nan, np.float32)
    beside[:, [2, 5]] = x
    assert codec.encode(beside, NAMES) == alone


def test_empty_frames_cost_nothing_and_come_back_empty(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(3, 3, 32, 32)
    x[1] = np.nan
    blocks = codec.encode(x, THREE)
    assert len(blocks[1]) == 23
    assert np.isnan(codec.decode(blocks, THREE, (32, 32))[1]).all()
    assert np.isnan(codec.latents(blocks, (32, 32))[1]).all()
    nothing = np.full((2, 3, 32, 32), np.nan, np.float32)
    assert np.isnan(codec.decode(codec.encode(nothing, THREE), THREE, (32, 32))).all()
    assert codec.encode(x[:0], THREE) == []
    assert codec.decode([], THREE, (32, 32)).shape == (0, 3, 32, 32)


# --- scale and values ------------------------------------------------------------------------------------


def test_sums_and_means_are_coded_alike(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    x[0, 0, 3] = np.nan
    aia = np.array([4, 4, 1], np.float32)[:, None, None]
    as_means = codec.encode(x, THREE)
    assert codec.encode(x * aia, THREE, Scale.SUM) == as_means
    means = codec.decode(as_means, THREE, (32, 32))
    np.testing.assert_array_equal(codec.decode(as_means, THREE, (32, 32), Scale.SUM), means * aia)
    # As text, too, which an archive's own scale is.
    assert codec.encode(x * aia, THREE, "sum") == as_means  # type: ignore[arg-type]
    assert codec.encode(x, THREE, "mean") == as_means  # type: ignore[arg-type]


EXTREMES = [0.0, 1e-30, -1e6, 1e12, 3.4e38, -3.4e38]


@pytest.mark.parametrize(("value", "raw"), list(zip(EXTREMES, [False] * 2 + [True] * 4, strict=True)))
def test_extreme_but_finite_frames_decode_to_finite_pixels(codec: Codec, value: float, raw: bool) -> None:
    x = np.full((1, 3, 32, 32), value, np.float32)
    for scale in Scale:
        blocks = codec.encode(x, THREE, scale)
        assert np.isfinite(codec.decode(blocks, THREE, (32, 32), scale)).all()
        assert is_raw(Block.unpack(blocks[0]).payloads[0]) == raw
        assert (np.isnan if raw else np.isfinite)(codec.latents(blocks, (32, 32))).all()


@pytest.mark.parametrize("value", EXTREMES)
def test_extreme_but_finite_frames_are_coded_where_pixels_are_too_long(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr("sunzip.codec.pack_raw", lambda *_: None)
    x = np.full((1, 3, 32, 32), value, np.float32)
    for scale in Scale:
        blocks = codec.encode(x, THREE, scale)
        assert not is_raw(Block.unpack(blocks[0]).payloads[0])
        assert np.isfinite(codec.decode(blocks, THREE, (32, 32), scale)).all()
        assert np.isfinite(codec.latents(blocks, (32, 32))).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 1e3, 1e9]))
def test_noise_decodes_to_finite_pixels(codec: Codec, seed: int, size: float) -> None:
    x = np.random.default_rng(seed).standard_cauchy((1, 3, 16, 16)) * size
    x = np.clip(x, -3e38, 3e38).astype(np.float32)
    assert np.isfinite(codec.decode(codec.encode(x, THREE), THREE, (16, 16))).all()


def test_latents_of_a_network_gone_wild_are_coded(codec: Codec) -> None:
    main = np.zeros((8, 2, 2), np.float32)
    main.flat[:4] = np.nan, np.inf, -np.inf, 1e30
    side = np.full((4, 1, 1), np.inf, np.float32)
    known = Known(tuple(range(12)), (32, 32))
    payload, _ = codec.family.encode(Latents(main, side), 50, known)
    assert np.isfinite(codec.family.decode(payload, 50, known)).all()


def test_no_pixel_is_nan_but_a_missing_one(
    codec: Codec, frames_of: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = frames_of(1, 3, 32, 32)
    x[0, 0, 0, 0] = np.nan
    blocks = codec.encode(x, THREE)
    wild = np.zeros((1, 12, 32, 32), np.float32)
    wild[0, 5, 0, :3] = np.nan, np.inf, -np.inf
    monkeypatch.setattr(codec.family, "synthesise", lambda *_: wild.copy())
    y = codec.decode(blocks, THREE, (32, 32))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    assert y[0, 1, 0, :3].tolist() == [0, np.finfo(np.float32).max, np.finfo(np.float32).min]


# --- what cannot be coded --------------------------------------------------------------------------------


def test_masks_of_arrays_are_refused_and_not_dropped(codec: Codec, frames_of: Frames) -> None:
    with pytest.raises(InputError, match=r"data.filled\(nan\)"):
        codec.encode(np.ma.masked_greater(frames_of(1, 3, 32, 32), 100), THREE)


def test_infinite_pixels_are_refused(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    x[1, 2, 0, 0] = -np.inf
    with pytest.raises(InputError, match="infinite"):
        codec.encode(x, THREE)


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (np.zeros((1, 3, 32, 32)), THREE, "float32"),
        (np.zeros((1, 2, 32, 32), np.float32), THREE, "time, 3"),
        (np.zeros((3, 32, 32), np.float32), THREE, "time, 3"),
        (np.zeros((1, 3, 15, 32), np.float32), THREE, "smaller"),
        (np.zeros((1, 3, 16, 20000), np.float32), THREE, "16384"),
        (np.zeros((1, 2, 32, 32), np.float32), ("304A", "171A"), "order"),
        (np.zeros((1, 2, 32, 32), np.float32), ("171A", "171A"), "order"),
        (np.zeros((1, 1, 32, 32), np.float32), ("172A",), "unknown channel"),
        (np.zeros((1, 0, 32, 32), np.float32), (), "no channel"),
    ],
)
def test_input_of_a_wrong_kind_is_refused(
    codec: Codec, data: np.ndarray, channels: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        codec.encode(data, channels)


@pytest.mark.parametrize("per_block", [0, -1, 4097])
def test_blocks_of_impossible_lengths_are_refused(codec: Codec, frames_of: Frames, per_block: int) -> None:
    with pytest.raises(InputError, match="1 to 4096"):
        codec.encode(frames_of(1, 3, 16, 16), THREE, frames_per_block=per_block)


@pytest.mark.parametrize("quality", [-1, 101])
def test_quality_is_0_to_100(tiny_model: Model, quality: int) -> None:
    with pytest.raises(InputError, match="from 0 to 100"):
        Codec(tiny_model, quality)
    with pytest.raises(InputError, match="from 0 to 100"):
        Codec(tiny_model).at(quality)


def test_quality_goes_with_the_block(tiny_model: Model, frames_of: Frames) -> None:
    x = frames_of(1, 3, 64, 64)
    fine, coarse = Codec(tiny_model, 90), Codec(tiny_model, 10)
    blocks = fine.encode(x, THREE)
    assert len(blocks[0]) > len(coarse.encode(x, THREE)[0])
    np.testing.assert_array_equal(
        coarse.decode(blocks, THREE, (64, 64)), fine.decode(blocks, THREE, (64, 64))
    )
    assert Codec(tiny_model).quality == 50


# --- damage ----------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_damage(codec: Codec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 32, 32)
    x[0, 1, 2, 3] = np.nan
    block = codec.encode(x, THREE, frames_per_block=2)[0]
    for i in range(len(block)):
        broken = bytearray(block)
        broken[i] ^= 0x41
        with pytest.raises((DamagedError, UnsupportedError)):
            codec.latents([bytes(broken)], (32, 32))
    for size in range(len(block)):
        with pytest.raises(DamagedError):
            codec.decode([block[:size]], THREE, (32, 32))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_payloads_of_strangers_decode_or_are_damage(
    codec: Codec, frames_of: Frames, data: st.DataObject
) -> None:
    """The checksum is no defence against malice: here it is right and the payload is not."""
    payload = Block.unpack(codec.encode(frames_of(1, 3, 32, 32), THREE)[0]).payloads[0]
    other = data.draw(
        st.binary(max_size=40)
        | st.integers(0, len(payload) - 1).map(lambda i: payload[:i] + b"\x01" + payload[i + 1 :])
        | st.integers(0, len(payload)).map(lambda i: payload[:i])
    )
    block = Block(codec._id, (32, 32), 50, (0b100,), (other,), (b"",)).pack()
    try:
        assert np.isfinite(codec.latents([block], (32, 32))).all()
    except DamagedError:
        assert other != payload


def test_blocks_that_are_not_the_archives_are_damage(
    codec: Codec, other_model: Model, frames_of: Frames
) -> None:
    block = codec.encode(frames_of(2, 3, 32, 32), THREE, frames_per_block=2)[0]
    with pytest.raises(DamagedError, match="was coded with model"):
        Codec(other_model).decode([block], THREE, (32, 32))
    with pytest.raises(DamagedError, match="the archive says"):
        codec.decode([block], THREE, (32, 48))
    with pytest.raises(DamagedError, match="holds 2 frames, the archive says 3"):
        codec.decode([block], THREE, (32, 32), frames_per_block=3)
    with pytest.raises(DamagedError, match="holds 2 frames"):
        codec.latents([block], (32, 32), frames_per_block=1)
    with pytest.raises(DamagedError, match="quality 101"):
        codec.decode([change(block, quality=101)], THREE, (32, 32))
    with pytest.raises(DamagedError):  # other means and tables belong to it
        codec.decode([change(block, quality=10)], THREE, (32, 32))


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (
            "wavelet_model",
            "bands_tables.frequencies",
            "bands_tables (entropy tables: no array 'frequencies')",
        ),
        ("wavelet_model", "disk_tables.length", "disk_tables (entropy tables: no array 'length')"),
        (
            "wavelet_model",
            "context.bias.0",
            "context (context network: bias.0 is missing or of a wrong shape)",
        ),
        ("tiny_model", "main_tables.lowest", "main_tables (entropy tables: no array 'lowest')"),
        ("tiny_model", "hyper_synthesis.0.bias", "hyper_synthesis (integer network: '0.bias' is missing)"),
        ("sigma_model", "tables.frequencies", "tables (entropy tables: no array 'frequencies')"),
    ],
)
def test_a_part_that_is_damaged_is_told_with_its_model_and_file(
    name: str, array: str, says: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    arrays = load(model.files[TENSORS])
    del arrays[array]
    with pytest.raises(DamagedError) as caught:
        Codec(pack(model.config, arrays))
    wanted = f"model {model.name}: model.safetensors holds no usable {says}; fetch the model again"
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("name", "shape"), [("wavelet_model", (2, 2)), ("tiny_model", (15, 99)), ("sigma_model", (64, 64))]
)
def test_images_of_sizes_that_no_encoder_codes_are_damage(
    name: str, shape: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    codec = Codec(request.getfixturevalue(name))
    block = Block(codec._id, shape, 0, (0b100,), (bytes(8) + b"\x01",), (b"",)).pack()
    for decode in (codec.decode, codec.decode_tensor):
        with pytest.raises(DamagedError, match="no encoder codes"):
            decode([block], THREE, shape)
    with pytest.raises(DamagedError, match="no encoder codes"):
        codec.latents([block], shape)


def test_gap_maps_of_strangers_are_damage(codec: Codec, frames_of: Frames) -> None:
    block = codec.encode(frames_of(1, 3, 32, 32), THREE)[0]
    for gap in (b"nonsense", pack_gaps(np.ones((4, 32, 32), bool)), pack_gaps(np.ones((3, 9, 9), bool))):
        with pytest.raises(DamagedError, match="gap map"):
            codec.decode([change(block, gaps=(gap,))], THREE, (32, 32))


# --- models ----------------------------------------------------------------------------------------------


def edited(model: Model, config: dict | None = None, **arrays: np.ndarray | None) -> Model:
    """The same model with other values in its files; arrays by name with dots as double underscores."""
    import json

    from safetensors.numpy import load, save

    tensors = dict(load(model.files["model.safetensors"]))
    for name, value in arrays.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    files = {
        "config.json": json.dumps({**model.config, **(config or {})}).encode(),
        "model.safetensors": save(tensors),
    }
    return Model.from_files(files, "edited")


@pytest.mark.parametrize(
    "config",
    [
        {"network": None},
        {"network": {}},
        {"network": {"channels": 12, "wide": 16, "deep": 16, "latents": 8, "hyper": 4, "hyper_wide": 10**9}},
        {"network": {"channels": 12, "wide": 16, "deep": 16, "latents": 8, "hyper": 4, "hyper_wide": 25}},
        {"network": {"channels": 3, "wide": 16, "deep": 16, "latents": 8, "hyper": 4, "hyper_wide": 24}},
        {"network": {"channels": 12, "wide": 16, "deep": 16, "latents": 9, "hyper": 4, "hyper_wide": 24}},
        {"network": {"channels": 12, "wide": 16, "deep": 16, "latents": 8, "hyper": 5, "hyper_wide": 24}},
        {"network": {"channels": 12, "wide": 1.5, "deep": 16, "latents": 8, "hyper": 4, "hyper_wide": 24}},
        {"default_quality": 101},
        {"default_quality": "high"},
        {"default_quality": None},
        {"stabiliser": {}},
        {"stabiliser": {"a": [1] * 12, "b": [1] * 12, "spread": [1] * 11}},
        {"stabiliser": {"a": [1] * 12, "b": [1] * 12, "spread": [0] * 12}},
        {"stabiliser": {"a": [1] * 12, "b": [1] * 12, "spread": [10**400] * 12}},
        {"stabiliser": {"a": [1] * 12, "b": [1] * 12, "spread": [1e-300] * 12}},
        {"stabiliser": {"a": [1] * 12, "b": [1] * 12, "spread": [float("nan")] * 12}},
        {"stabiliser": {"a": "a" * 12, "b": [1] * 12, "spread": [1] * 12}},
        {"stabiliser": [1, 2, 3]},
    ],
)
def test_configurations_that_cannot_be_are_damage(tiny_model: Model, config: dict) -> None:
    with pytest.raises(DamagedError, match=r"^model tiny: "):
        Codec(edited(tiny_model, config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("side_tables__length", None),
        ("side_tables__frequencies", np.ones(3, np.uint32)),
        ("main_tables__lowest", np.zeros(64, np.int64)),
        ("hyper_synthesis__0.weight", None),
        ("hyper_synthesis__2.weight", np.ones((18, 32, 1, 1), np.int32)),
        ("quality__gain", None),
        ("quality__gain", np.ones((101, 8))),
        ("quality__inverse", np.full((101, 8), np.nan, np.float32)),
        ("quality__inverse", np.ones((100, 8), np.float32)),
        ("quality__index_offset", np.full((101, 8), 2**31 - 1, np.int32)),
    ],
)
def test_entropy_parts_that_do_not_fit_are_damage(tiny_model: Model, name: str, value: np.ndarray) -> None:
    with pytest.raises(DamagedError):
        Codec(edited(tiny_model, None, **{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network__mask_out.weight", None),
        ("network__mask_out.weight", np.ones((16, 13), np.float16)),
        ("network__mask_out.more", np.ones(3, np.float16)),
    ],
)
def test_networks_that_do_not_fit_are_damage(
    tiny_model: Model, frames_of: Frames, name: str, value: np.ndarray
) -> None:
    broken = Codec(edited(tiny_model, None, **{name: value}))
    with pytest.raises(DamagedError, match=r"^model tiny: .*mask_out"):
        broken.encode(frames_of(1, 3, 16, 16), THREE)


def test_a_model_that_claims_to_be_huge_takes_no_memory(tiny_model: Model, frames_of: Frames) -> None:
    claim = dict(tiny_model.config["network"]) | {"wide": 1024, "deep": 1024}
    with pytest.raises(DamagedError, match=r"size mismatch|copying a param"):
        Codec(edited(tiny_model, {"network": claim})).encode(frames_of(1, 3, 16, 16), THREE)


def test_unknown_families_are_for_newer_programs(tiny_model: Model) -> None:
    with pytest.raises(UnsupportedError, match=r"family 'fractal'.*update"):
        Codec(edited(tiny_model, {"family": "fractal"}))


def test_one_network_serves_all_qualities(tiny_model: Model) -> None:
    first, second = codec_for(tiny_model.sha256), codec_for(tiny_model.sha256, 10)
    assert (first.quality, second.quality) == (50, 10)
    assert first.family is second.family
    with pytest.raises(ModelNotFoundError):
        codec_for("0" * 64)


# --- the σ-VAE -------------------------------------------------------------------------------------------


def test_sigma_vae_round_trip(sigma: Codec, frames_of: Frames) -> None:
    x = frames_of(2, 3, 128, 128)
    x[0, 0, 0, 0] = np.nan
    x[1, 1] = np.nan
    blocks = sigma.encode(x, THREE)
    y = sigma.decode(blocks, THREE, (128, 128))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    latents = sigma.latents(blocks, (128, 128))
    assert latents.shape == (2, 8)
    assert sigma.family.on_trellis.all()
    halves = 2 * latents / sigma.family.steps
    np.testing.assert_allclose(halves, np.rint(halves), atol=1e-3)
    assert (np.rint(halves) % 2).any()
    assert len(np.unique(latents)) > 4
    assert sigma.encode(x[1:], THREE) == blocks[1:]
    with pytest.raises(InputError, match=r"128×128.*--size 128"):
        sigma.encode(x[:, :, :64, :64], THREE)


def test_sigma_vae_that_does_not_fit_is_damage(sigma_model: Model) -> None:
    config = dict(sigma_model.config)
    for change in ({"bottleneck": 9}, {"bottleneck": 2**40}, {"bottleneck": True}, {"bottleneck": None}):
        model = Model("x", config | change, sigma_model.sha256, sigma_model.files)
        with pytest.raises(DamagedError, match=r"^model x: "):
            Codec(model)
    arrays = load(sigma_model.files[TENSORS])
    for on in (np.ones(9, np.uint8), np.ones((), np.uint8), np.full(8, 2, np.uint8), np.ones(8, bool)):
        with pytest.raises(DamagedError, match=r"^model s: "):
            Codec(pack(config | {"name": "s"}, arrays | {"steps.trellis": on}))


def test_sigma_vae_from_before_the_trellis_rounds(sigma_model: Model, frames_of: Frames) -> None:
    arrays = load(sigma_model.files[TENSORS])
    del arrays["steps.trellis"]
    codec = Codec(pack(sigma_model.config, arrays))
    latents = codec.latents(codec.encode(frames_of(1, 3, 128, 128), THREE), (128, 128))
    np.testing.assert_array_equal(np.rint(latents / codec.family.steps) * codec.family.steps, latents)


# --- without torch ---------------------------------------------------------------------------------------


def test_latents_need_no_torch(codec: Codec, tiny_model: Model, frames_of: Frames, tmp_path: Path) -> None:
    x = frames_of(2, 3, 32, 32)
    blocks = codec.encode(x, THREE, frames_per_block=2)
    write(tiny_model, tmp_path / "model")
    (tmp_path / "block").write_bytes(blocks[0])
    code = """
import sys
from pathlib import Path
import numpy as np
from sunzip import weights
from sunzip.codec import Codec
folder = Path(sys.argv[1])
codec = Codec(weights.load(folder / "model"))
np.save(folder / "latents.npy", codec.latents([(folder / "block").read_bytes()], (32, 32)))
print([m for m in sys.modules if m.split(".")[0] == "torch"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    np.testing.assert_array_equal(np.load(tmp_path / "latents.npy"), codec.latents(blocks, (32, 32)))


def test_without_pytorch_one_line_says_so(
    tiny_model: Model, frames_of: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = frames_of(1, 3, 32, 32)
    blocks = Codec(tiny_model).encode(data, THREE)
    monkeypatch.setitem(sys.modules, "torch", None)
    told = r"family hyperprior need torch, which is not installed; .*\.\[torch\]"
    with pytest.raises(InputError, match=told):
        Codec(tiny_model).encode(data, THREE)
    with pytest.raises(InputError, match=told):
        Codec(tiny_model).decode(blocks, THREE, (32, 32))
    with pytest.raises(InputError, match=r"tensors need torch, .*\.\[torch\]"):
        Codec(tiny_model).decode_tensor(blocks, THREE, (32, 32))


def test_errors_are_sunzips_own(codec: Codec) -> None:
    for block in (b"", b"S", b"\0" * 40, bytes(range(60))):
        with pytest.raises(SunzipError):
            codec.decode([block], THREE, (32, 32))
