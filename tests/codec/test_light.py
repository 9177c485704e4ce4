"""The light of decoded images is that of the originals, and levels are no more than what is said of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip import weights
from sunzip.api import Alignment, open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec, wavelet
from sunzip.codec.family import Float, Known
from sunzip.codec.light import levels, raise_by, sums
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import disk_radius
from sunzip.errors import DamagedError
from sunzip.frame import Block
from sunzip.normalize import Stabiliser
from sunzip.pyramid import grid_of, to_picture, to_pyramid

UNITS = Stabiliser.for_channels(NAMES)


@pytest.fixture(scope="module")
def sun() -> Float:
    """Four frames (T, 12, Y, X) of the synthetic Sun, hours apart."""
    url = "synthetic:frames=4,size=128,seed=5,start=2013-05-01,cadence=1h"
    return open_series(url, align=Alignment(cadence="1h")).read(0, 4).data


def near_sun(side: int) -> np.ndarray:
    """Return the pixels (Y, X) within 1.1 radii of the disk."""
    offset = np.arange(side) - (side - 1) / 2
    return np.hypot(offset[:, None], offset) <= 1.1 * disk_radius(side)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("quality", [20, 50])
def test_light_is_that_of_the_original(
    sun: Float, quality: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(weights.load(), quality)
    inside = near_sun(128)
    light = sun[..., inside].mean(-1, dtype=np.float64)

    def off() -> Float:
        blocks = codec.encode(sun, NAMES, frames_per_block=block)
        decoded = codec.decode(blocks, NAMES, (128, 128))
        return decoded[..., inside].mean(-1, dtype=np.float64) - light

    def share(of: Float) -> float:
        return float(np.sqrt(np.square(of[:, :9] / light[:, :9]).mean()))

    levelled = off()
    monkeypatch.setattr(wavelet, "levels", lambda light, *others: np.zeros(len(light), np.int32))
    plain = off()
    assert share(levelled) < min(0.002, 0.2 * share(plain))
    np.testing.assert_array_equal(levelled[:, 9:], plain[:, 9:])


def test_light_is_that_of_the_pixels_that_are_there(sun: Float) -> None:
    codec = Codec(weights.load(), 30)
    half = sun[:1].copy()
    half[..., 70:, :] = half[:, ::2, 30:42, 50:90] = np.nan  # so that no limb is found
    decoded = codec.decode(codec.encode(half, NAMES), NAMES, (128, 128))
    images, originals = (np.nansum(of[0, :9], (1, 2), dtype=np.float64) for of in (decoded, half))
    np.testing.assert_allclose(images, originals, rtol=2e-3)


@pytest.mark.parametrize("shape", [(128, 128), (300, 300), (96, 160), (100, 83)])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_sums_are_those_of_pixels(shape: tuple[int, int], whole: bool, gaps: bool) -> None:
    rng = np.random.default_rng(3)
    smooth = to_picture(
        np.pad(rng.normal(0, 400, (12, 8, 8)), ((0, 0), (0, 24), (0, 24))).astype(np.float32),
        grid_of(32, 32),
        grid_of(32, 32).depth,
    )
    height, width = shape
    image = 90 + np.resize(smooth, (12, height, width)) / 20 + rng.normal(0, 3, (12, height, width))
    image[9:] -= 90  # a field of both signs
    image = image.astype(np.float32)
    grid = grid_of(*shape)
    y, x = ((np.arange(side) - (side - 1) / 2) for side in shape)
    inside = np.hypot(y[:, None], x) <= (1.1 * disk_radius(min(shape)) if whole else np.inf)
    missing = np.zeros(image.shape, bool)
    if gaps:
        missing[:, height // 2 + 3 :] = missing[1::2, 20:30, 40:70] = True
    light, slope, bend = sums(
        to_pyramid(image, grid), range(12), grid, shape, UNITS, whole=whole, missing=missing if gaps else None
    )
    pixels = (UNITS.inverse(image) * ~missing)[:, inside].astype(np.float64)
    size = np.abs(pixels).sum(1)
    assert (np.abs(light - pixels.sum(1)) / size).max() < (5e-3 if max(shape) <= 128 else 2e-2)
    more = (UNITS.inverse(image + np.float32(0.5)) * ~missing)[:, inside].sum(1, dtype=np.float64)
    np.testing.assert_allclose(slope * 0.5 + bend / 8, more - pixels.sum(1), rtol=0.1)


def test_sums_of_large_images_take_little_memory() -> None:
    side = 1024
    pyramid = np.zeros((12, side, side), np.float32)
    tracemalloc.start()
    try:
        sums(pyramid, [3], grid_of(side, side), (side, side), UNITS, whole=True)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * pyramid[3].nbytes  # the weights of the pixels alone took more than that


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.floats(2.0**-10, 2.0**20), st.sampled_from([(16, 16), (50, 83)]))
def test_a_level_is_added_to_the_whole_image(level: int, step: float, shape: tuple[int, int]) -> None:
    grid = grid_of(*shape)
    pyramid = np.zeros((12, grid.height, grid.width), np.float32)
    raise_by(np.array([level], np.int32), np.array([step], np.float32), pyramid, [4], grid)
    added = to_picture(pyramid, grid, grid.depth)
    np.testing.assert_allclose(added[4], np.float64(level) * np.float32(step) / 1024, rtol=1e-4, atol=1e-30)
    assert not added[[c for c in range(12) if c != 4]].any()


def test_a_level_makes_light_right_where_it_grows_with_the_square() -> None:
    image = np.full((1, 16), 3.0)
    decoded = np.array([[16 * 1.0], [2 * 16 * 1.0], [2 * 16.0]])  # of 1s
    (level,) = levels(np.square(image).sum(1), decoded, np.ones(1, np.float32))
    assert level == 2 * 1024


def test_no_level_is_found_for_what_has_no_light() -> None:
    light = np.array([1.0, np.nan, np.inf, 1e300, 5.0, -9.0])
    slope, bend = np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 1.0], [0, 0, 0, 0, 0, 1]])
    found = levels(light, np.stack([np.zeros(6), slope, bend]), np.ones(6, np.float32))
    assert found.tolist() == [1024, 0, 0, 2**20, 0, 0]


def test_frames_of_fields_alone_have_no_levels(sun: Float) -> None:
    codec = Codec(weights.load(), 50)
    for begin, levelled in ((11, False), (8, True)):
        (block,) = codec.encode(sun[:1, begin:], NAMES[begin:])
        assert bool(Block.unpack(block).payloads[0][0] & 2) == levelled


@pytest.mark.parametrize("level", [0, -127, 128, 2**20, -(2**31)])
def test_levels_of_any_size_are_decoded(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family = WaveletFamily(weights.load())
    images = np.zeros((1, 12, 32, 32), np.float32)
    images[0, 3] = 20 + np.random.default_rng(0).normal(size=(32, 32))
    (latents,) = family.analyse(images, (np.arange(12) == 3)[None].astype(np.float32), 50)
    known = Known((3,), (32, 32))
    monkeypatch.setattr(wavelet, "levels", lambda light, *others: np.full(len(light), level, np.int32))
    written = family.encode(latents, 50, known)
    np.testing.assert_array_equal(family.decode(written.payload, 50, known), written.decoded)
    small = family.latents(written.payload, 50, known)[3].mean()
    assert small == pytest.approx(20 + level * family.step[50, 3] / 1024, rel=0.05, abs=2)
    with pytest.raises(DamagedError):
        family.decode(bytes([written.payload[0] & ~2]) + written.payload[1:], 50, known)
