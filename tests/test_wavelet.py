"""The lifting transform: against its filters, there and back, and the same bits in both libraries."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip.wavelet import analyse, synthesise

Array = TypeVar("Array", np.ndarray, torch.Tensor)

#: The filters of JPEG 2000 part 1 from their middles outwards: a constant has gain 1, the fastest change 2.
LOW = (0.602949018236358, 0.266864118442872, -0.078223266528988, -0.016864118442875, 0.026748757410810)
HIGH = (1.115087052456994, -0.591271763114247, -0.057543526228500, 0.091271763114250)

even = st.integers(1, 20).map(lambda n: 2 * n)


def halved(x: Array) -> tuple[Array, Array]:
    """Return low (..., h, w) and the three bands as one array, (..., 3, h, w)."""
    low, bands = analyse(x)
    return low, np.stack(bands, -3) if isinstance(x, np.ndarray) else torch.stack(bands, -3)


def joined(low: Array, bands: Array) -> Array:
    return synthesise(low, [bands[..., n, :, :] for n in range(3)])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def filtered(x: np.ndarray, taps: tuple[float, ...], first: int, gain: float) -> np.ndarray:
    """Convolve the last axis with a symmetric filter, mirrored at the edges; keep every other sample."""
    n, reach = x.shape[-1], len(taps) - 1
    places = np.abs(np.arange(-reach, n + reach))
    for _ in range(reach):  # of two samples a filter sees the mirror image of the mirror image
        places = np.abs(np.where(places > n - 1, 2 * (n - 1) - places, places))
    padded = x.astype(np.float64)[..., places]
    out = np.zeros(x.shape)
    for k in range(-reach, reach + 1):
        out += taps[abs(k)] * padded[..., reach + k : reach + k + n]
    return gain * out[..., first::2]


@pytest.mark.parametrize("shape", [(2, 2), (2, 8), (6, 4), (16, 34)])
def test_it_is_the_filter_bank_of_jpeg_2000(shape: tuple[int, int]) -> None:
    x = noise(*shape)
    low, bands = halved(x)
    root = np.sqrt(2)
    expected = {}
    for up, down in ((LOW, root), (HIGH, 1 / root)):
        rows = filtered(x.T, up, int(up is HIGH), down).T
        for along, gain in ((LOW, root), (HIGH, 1 / root)):
            expected[up is HIGH, along is HIGH] = filtered(rows, along, int(along is HIGH), gain)
    np.testing.assert_allclose(low, expected[False, False], atol=1e-3)
    for band, key in zip(bands, [(False, True), (True, False), (True, True)], strict=True):
        np.testing.assert_allclose(band, expected[key], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(even, even, st.integers(0, 1000))
def test_synthesis_inverts_analysis(height: int, width: int, seed: int) -> None:
    x = noise(height, width, seed=seed)
    low, bands = halved(x)
    assert low.shape == (height // 2, width // 2)
    assert bands.shape == (3, height // 2, width // 2)
    assert low.dtype == bands.dtype == np.float32
    back = joined(low, bands)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(even, even, st.integers(0, 1000))
def test_numpy_and_torch_agree_to_the_bit(height: int, width: int, seed: int) -> None:
    x = noise(2, height, width, seed=seed)
    low, bands = halved(x)
    there_low, there_bands = halved(torch.from_numpy(x))
    assert there_low.numpy().tobytes() == low.tobytes()
    assert there_bands.numpy().tobytes() == bands.tobytes()
    back = joined(low, bands)
    there = joined(torch.from_numpy(low), torch.from_numpy(bands))
    assert there.numpy().tobytes() == back.tobytes()


def test_neither_the_batch_nor_the_layout_of_memory_matters() -> None:
    x = noise(2, 3, 16, 24)
    low, bands = halved(x)
    back = joined(low, bands)
    for t in range(2):
        for c in range(3):
            one, three = halved(x[t, c])
            assert (one == low[t, c]).all()
            assert (three == bands[t, c]).all()
            assert (joined(one, three) == back[t, c]).all()
    wide = np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2]
    for strided in (np.asfortranarray(x), wide, np.flip(np.flip(x, -1).copy(), -1)):
        assert not strided.flags.c_contiguous
        there, others = halved(strided)
        assert (there == low).all()
        assert (others == bands).all()
        assert (joined(np.asfortranarray(there), np.asfortranarray(others)) == back).all()
    last = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    assert (halved(last)[0].numpy() == low).all()
    assert (halved(last.mT.contiguous().mT)[1].numpy() == bands).all()


def test_inputs_are_left_alone() -> None:
    x = noise(8, 12)
    kept = x.copy()
    low, bands = halved(x)
    before = low.copy(), bands.copy()
    joined(low, bands)
    assert (x == kept).all()
    assert (low == before[0]).all()
    assert (bands == before[1]).all()
    tensor = torch.from_numpy(x)
    joined(*halved(tensor))
    assert (tensor.numpy() == kept).all()


def test_a_constant_has_no_details_and_energy_is_nearly_kept() -> None:
    low, bands = halved(np.full((16, 16), 3, np.float32))
    np.testing.assert_allclose(low, 6, rtol=1e-5)
    np.testing.assert_allclose(bands, 0, atol=1e-5)
    x = noise(256, 256)
    low, bands = halved(x)
    assert (low**2).sum() + (bands**2).sum() == pytest.approx((x**2).sum(), rel=0.06)


def test_every_machine_gets_these_bits() -> None:
    x = (np.arange(48 * 80, dtype=np.int64) ** 2 % 1009).reshape(48, 80).astype(np.float32) / np.float32(7)
    low, bands = halved(x)
    digest = hashlib.sha256(low.tobytes() + bands.tobytes() + joined(low, bands * 3).tobytes())
    assert digest.hexdigest()[:16] == "c2293944b175351e"
