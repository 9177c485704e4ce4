"""Trellis-coded quantisation: the best path, found; and the same latents for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sunzip.codec import trellis
from sunzip.codec.family import SYMBOL_LIMIT


def uniform(frames: int, latents: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-50, 50, (frames, latents)).astype(np.float32)


def error(values: np.ndarray, on: np.ndarray) -> float:
    return float(np.square(values - trellis.dequantise(trellis.quantise(values, on), on)).mean())


def test_errors_are_smaller_than_those_of_rounding() -> None:
    x = uniform(150, 256)
    rounded, coded = (error(x, np.full(256, on)) for on in (False, True))
    assert rounded == pytest.approx(1 / 12, rel=0.02)
    assert 1.15 < 10 * np.log10(rounded / coded) < 1.53


def test_no_path_is_better() -> None:
    x = np.random.default_rng(2).uniform(-1, 1, (3, 5)).astype(np.float32)
    on = np.ones(5, bool)
    every = np.array(list(itertools.product(range(-3, 4), repeat=5)), np.int32)
    for row, found in zip(x, trellis.dequantise(trellis.quantise(x, on), on), strict=True):
        best = np.square(row - trellis.dequantise(every, on)).sum(1).min()
        assert np.square(row - found).sum() == pytest.approx(best, abs=1e-6)


def test_what_symbols_stand_for_never_changes() -> None:
    on = np.ones(40, bool)
    on[[3, 20]] = False
    symbols = np.arange(40, dtype=np.int32) ** 2 % 23 - 11
    moved = "0010110011111101011100000100001101001001"
    expected = symbols + np.array([int(m) for m in moved]) / 2
    np.testing.assert_array_equal(trellis.dequantise(symbols[None], on)[0], expected)


@given(
    arrays(np.float32, (2, 9), elements=st.floats(-1e4, 1e4, width=32)),
    arrays(np.bool_, 9),
)
def test_each_frame_is_quantised_by_itself_and_latents_beside_the_trellis_are_rounded(
    x: np.ndarray, on: np.ndarray
) -> None:
    found = trellis.quantise(x, on)
    np.testing.assert_array_equal(found[1:], trellis.quantise(x[1:], on))
    back = trellis.dequantise(found, on)
    np.testing.assert_array_equal(back[:, ~on], np.rint(x[:, ~on]))
    assert (np.abs(back - x) <= 1.5).all()
    # The steps of a latent's grid are whole, wherever it lies.
    np.testing.assert_array_equal(np.floor(back), found)


def test_more_frames_than_are_searched_at_a_time() -> None:
    x = uniform(130, 6)
    on = np.array([True, True, False, True, True, True])
    together = trellis.quantise(x, on)
    np.testing.assert_array_equal(together, np.concatenate([trellis.quantise(row[None], on) for row in x]))


def test_a_network_gone_wild_gives_symbols() -> None:
    x = np.array([[np.inf, -np.inf, np.nan, 3e38, -3e38, 0.2, 0.2]], np.float32)
    for on in (np.ones(7, bool), np.zeros(7, bool)):
        found = trellis.quantise(x, on)
        assert found.dtype == np.int32
        assert (np.abs(found[0].astype(np.int64)) <= SYMBOL_LIMIT).all()
        assert np.isfinite(trellis.dequantise(found, on)).all()
        assert abs(found[0, 5]) <= 2
