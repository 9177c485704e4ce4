"""What callers give, made sure of before work begins: whole numbers of any kind, and numbers above 0."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from sunzip.errors import InputError


def whole(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number as an int, whatever kind of integer it is.

    Floats are none, 50.0 included, nor are truth values: who gives them most likely means something else.

    Parameters
    ----------
    value
        What the caller gave.
    name
        What the caller calls it, for the message.
    low, high
        What it may be, both included.

    Raises
    ------
    InputError
        If it is no whole number in these bounds.

    Examples
    --------
    >>> import numpy as np
    >>> whole(np.uint8(50), "quality", 0, 100)
    50
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"from {low} up" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {bounds}, not {_shown(value)}")
    return number


def positive(value: Any, name: str) -> float:
    """Return a real number above 0 as a float.

    Parameters
    ----------
    value, name
        As for `whole`.

    Raises
    ------
    InputError
        If it is none, not finite or too large.
    """
    number = math.nan
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be a number above 0, not {_shown(value)}")
    return number


def _shown(value: object) -> str:
    """Return a value as one short line of a message."""
    return " ".join(repr(value).split())[:60]
