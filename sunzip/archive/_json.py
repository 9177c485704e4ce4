"""JSON as the archive writes it, compact and always the same bytes, and as it is read: bounded."""

from __future__ import annotations

import json
from typing import Any

from sunzip.errors import DamagedError

_MAX_BYTES = 1 << 28


def dump(tree: Any, *, sort_keys: bool = True) -> bytes:
    """Write a tree as ASCII without spaces.

    Raises
    ------
    ValueError
        If a number is not finite, as JSON has no word for it.
    """
    return json.dumps(tree, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False).encode()


def load(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    DamagedError
        If it is not a JSON object or is too large; the message starts with `where`.
    """
    if len(data) > _MAX_BYTES:
        raise DamagedError(f"{where}: {len(data)} bytes are too many")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise DamagedError(f"{where}: not JSON ({e})") from e
    if not isinstance(tree, dict):
        raise DamagedError(f"{where}: not a JSON object")
    return tree
