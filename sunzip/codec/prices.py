"""What coefficients cost, about, before they are coded: for the encoder, who chooses by it."""

from __future__ import annotations

import numpy as np

from sunzip.codec.family import Float

#: Bits are worth this much squared error, in steps; at high rates it falls by 2 ln 2 / 12 = 0.116 a bit.
WORTH = 0.13

#: Coefficients beyond so many steps, which no Sun has, are coded as the last.
LARGEST = np.float32(2**30)

#: Bits of a coefficient that is not 0, about: where it is and which sign it has. Each doubling takes two.
_FOUND = 7.0


def worth_of(size: Float) -> Float:
    """Return about what squared error the bits of coefficients of a size are worth, both in steps."""
    bits = np.float32(_FOUND) + 2 * np.log2(1 + size)
    return np.asarray(np.float32(WORTH) * bits)


def price(values: Float) -> float:
    """Return about what values in steps cost: the squared error of those left out, the bits of the others."""
    size = np.minimum(np.abs(values), LARGEST)
    squares = size * size
    # Smaller ones are never worth their bits.
    large = squares > np.float32(WORTH * _FOUND)
    squares[large] = np.minimum(squares[large], worth_of(size[large]))
    return float(squares.sum(dtype=np.float64))
