"""JSON as the archive writes it, compact and always the same bytes, and as it is read: bounded."""

from __future__ import annotations

import json
import math
from typing import Any

from sunzip.errors import DamagedError

#: The most bytes of an object that describes others: the manifest, and the `zarr.json` of any node.
MAX_BYTES = 1 << 24

#: The most values in it: each takes many times the memory that its bytes took.
MAX_VALUES = 1 << 20


def dump(tree: Any, *, sort_keys: bool = True) -> bytes:
    """Write a tree as ASCII without spaces.

    Raises
    ------
    ValueError
        If a number is not finite, as JSON has no word for it.
    """
    return json.dumps(tree, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False).encode()


def load(data: bytes, where: str, most: int = MAX_VALUES) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    data
        Its bytes.
    where
        What messages start with.
    most
        How many values it may hold.

    Raises
    ------
    DamagedError
        If it is not a JSON object, is too large, or holds a number that is not finite.
    """
    if (found := count_values(data)) > most:
        raise DamagedError(f"{where}: {found} values are too many")
    try:
        tree = json.loads(data, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as e:
        raise DamagedError(f"{where}: not JSON ({e})") from e
    if not isinstance(tree, dict):
        raise DamagedError(f"{where}: not a JSON object")
    return tree


def count_values(data: bytes) -> int:
    """Return how many values and names JSON holds at most: strings may hold commas, too."""
    return sum(map(data.count, (b",", b":", b"[", b"{")))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is not finite")
    return number
