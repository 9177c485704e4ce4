"""What coefficients cost, about, before they are coded: for the encoder, who chooses by it."""

from __future__ import annotations

import numpy as np

from sunzip.channels import CHANNELS
from sunzip.codec.family import Float

#: A bit of a channel is worth this much squared error, in steps; at high rates that falls by 2 ln 2 / 12 or
#: 0.116 a bit. The field is mostly noise, which is told best by coarse steps of which few are left out.
WORTH = np.array([0.085 if c.instrument == "HMI" else 0.115 for c in CHANNELS], np.float32)

#: Coefficients beyond so many steps, which no Sun has, are coded as the last.
LARGEST = np.float32(2**30)

#: Bits of a coefficient that is not 0, about: where it is and which sign it has. Each doubling takes two.
_FOUND = 7.0


def worth_of(size: Float, channel: int) -> Float:
    """Return about what squared error the bits of a channel's coefficients are worth, both in steps."""
    bits = np.float32(_FOUND) + 2 * np.log2(1 + size)
    return np.asarray(WORTH[channel] * bits)


def price(values: Float, channel: int) -> float:
    """Return about what values of a channel, in steps, cost: errors of those left out, bits of the others."""
    size = np.minimum(np.abs(values), LARGEST)
    squares = size * size
    # Smaller ones are never worth their bits.
    large = squares > WORTH[channel] * np.float32(_FOUND)
    squares[large] = np.minimum(squares[large], worth_of(size[large], channel))
    return float(squares.sum(dtype=np.float64))
