"""Trellis-coded quantisation: a latent's grid is moved by half a step or not, as the symbols before it say.

Marcellin & Fischer (1990), Trellis coded quantization of memoryless and Gauss-Markov sources. An encoder that
looks for the best path through all latents comes closer to them than one that rounds each by itself: at the
same number of bits, errors are 1.2 dB smaller, of the 1.53 dB that are possible at all. The trellis is
Ungerboeck's (1982) for one dimension with 64 states.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sunzip.codec.family import SYMBOL_LIMIT, Float, symbols

_STATES = 64

#: Of a state: the next one after a symbol that is even, and after one that is odd. Check polynomials 103 and
#: 24 (octal) as a shift register; the lowest bit of a state says whether the grid is moved.
_NEXT = tuple(
    tuple(s >> 1 ^ (0o103 >> 1) * (s & 1) ^ (0o24 >> 1) * odd for odd in (0, 1)) for s in range(_STATES)
)

#: The two states before each, rising, and the place in its four of the latent's candidate on that way:
#: 2 · (symbol is odd) + (grid is moved).
_BEFORE = np.array(
    [[s for s in range(_STATES) for odd in (0, 1) if _NEXT[s][odd] == to] for to in range(_STATES)]
)
_ON_WAY = np.array(
    [[2 * _NEXT[s].index(to) + (s & 1) for s in _BEFORE[to]] for to in range(_STATES)],
)

#: Frames that are searched at a time.
_AT_ONCE = 64


def quantise(values: Float, on: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Find the symbols whose latents are nearest, by the sum of their squared distances.

    Parameters
    ----------
    values
        (N, B) latents of frames in units of their steps.
    on
        (B,) which are on the trellis. The others are rounded.

    Returns
    -------
    (N, B) int32.
    """
    out = symbols(values)
    for begin in range(0, len(out) if on.any() else 0, _AT_ONCE):
        rows = slice(begin, begin + _AT_ONCE)
        # Within what a symbol can say, and with nothing that is no number.
        whole = np.nan_to_num(values[rows, on].astype(np.float64), nan=0.0)
        out[rows, on] = _path(2 * np.clip(whole, 2 - SYMBOL_LIMIT, SYMBOL_LIMIT - 2))
    return out


def dequantise(found: npt.NDArray[np.int32], on: npt.NDArray[np.bool_]) -> Float:
    """Return the latents (N, B), in units of their steps, that symbols (N, B) stand for: exact below 2²³."""
    moved = np.zeros(found.shape, np.float32)
    odd = (found[:, on] & 1).tolist()
    for row, parities in zip(moved, odd, strict=True):
        states, state = [], 0
        for parity in parities:
            states.append(state & 1)
            state = _NEXT[state][parity]
        row[on] = states
    return np.asarray(found.astype(np.float32) + np.float32(0.5) * moved)


def _path(halves: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the symbols (N, B) of the best paths (Viterbi's algorithm) for latents in half steps."""
    count, length = halves.shape
    # A latent has four candidates, one of each residue of half steps modulo 4.
    residue = np.arange(4)
    candidates = np.rint((halves[..., None] - residue) / 4) * 4 + residue
    costs = np.square(halves[..., None] - candidates)
    total = np.full((count, _STATES), np.inf)
    total[:, 0] = 0
    second = np.empty((length, count, _STATES), bool)
    for t in range(length):
        ways = total[:, _BEFORE] + costs[:, t, _ON_WAY]
        np.less(ways[..., 1], ways[..., 0], out=second[t])
        total = ways.min(-1)
    state = total.argmin(1)
    out = np.empty((count, length), np.int64)
    rows = np.arange(count)
    for t in reversed(range(length)):
        way = second[t, rows, state].astype(np.intp)
        out[:, t] = candidates[rows, t, _ON_WAY[state, way]].astype(np.int64) >> 1
        state = _BEFORE[state, way]
    return out
