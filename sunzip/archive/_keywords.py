"""FITS keywords of a shard as text: columns instead of headers, so that they do not outweigh the images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.archive._json import dump, load
from sunzip.cube import Header
from sunzip.errors import DamagedError, InputError

Value = str | int | float | bool | None
_T = TypeVar("_T")

_TIME = re.compile(
    r"(\d{4})([-./])(\d\d)\2(\d\d)([T _])(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|_TAI|_UTC|)", re.A
)
_EPOCH = datetime(1970, 1, 1)
_MAX_ORDER = 3
_MAX_DECIMALS = 20
_I64 = range(-(1 << 63), 1 << 63)
_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def encode(
    channels: Sequence[str], headers: Sequence[Sequence[Header]], t_obs: npt.NDArray[np.int64]
) -> bytes:
    """Write the headers of a shard as JSON columns.

    Parameters
    ----------
    channels
        The C names.
    headers
        [n][C] keywords; an empty mapping where there is no image.
    t_obs
        (n, C) int64, ms since 1970, with the least int64 for missing: columns of times are stored as
        their difference to it.

    Raises
    ------
    InputError
        If a keyword has a value that is neither text, number, truth value nor None.
    """
    out: dict[str, Any] = {}
    for c, name in enumerate(channels):
        rows = [{k: _plain(name, k, v) for k, v in row[c].items()} for row in headers]
        present = [bool(h) for h in rows]
        filled = [h for h in rows if h]
        if not filled:
            continue
        times = [int(t) for t, p in zip(t_obs[:, c], present, strict=True) if p]
        keys: dict[str, Any] = {}
        for key in dict.fromkeys(k for h in filled for k in h):
            has = [key in h for h in filled]
            values = [h[key] for h in filled if key in h]
            coded = _encode_column(values, [t for t, p in zip(times, has, strict=True) if p])
            keys[key] = coded if all(has) else {"rows": _bits(has), "values": coded}
        out[name] = {"keys": keys} if all(present) else {"rows": _bits(present), "keys": keys}
    return dump(out, sort_keys=False)


def decode(
    text: bytes, channels: Sequence[str], t_obs: npt.NDArray[np.int64], where: str
) -> list[list[dict[str, Value]]]:
    """Read what `encode` wrote, given the same channels and times.

    Returns
    -------
    headers
        [n][C], equal to what was encoded in every value and type.

    Raises
    ------
    DamagedError
        If the text is not what `encode` writes; the message starts with `where`.
    """
    n = len(t_obs)
    out: list[list[dict[str, Value]]] = [[{} for _ in channels] for _ in range(n)]
    tree = load(text, where)
    try:
        for c, name in enumerate(channels):
            entry = tree.get(name)
            if entry is None:
                continue
            present = _rows(entry, n)
            times = [int(t_obs[i, c]) for i in present]
            for key, column in entry["keys"].items():
                subset: Sequence[int] = range(len(present))
                if isinstance(column, dict) and "rows" in column:
                    subset = _rows(column, len(present))
                    column = column["values"]
                values = _decode_column(column, [times[i] for i in subset])
                for i, value in zip(subset, values, strict=True):
                    out[present[i]][c][key] = value
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, IndexError) as e:
        raise DamagedError(f"{where}: the keywords are not of the form that sunzip writes ({e})") from e
    return out


def _plain(channel: str, key: str, value: object) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"{channel}: keyword {key} holds a {type(value).__name__}, which cannot be stored")


def _bits(flags: Sequence[bool]) -> str:
    return "".join("01"[f] for f in flags)


def _rows(entry: Mapping[str, Any], n: int) -> Sequence[int]:
    bits = entry.get("rows")
    if bits is None:
        return range(n)
    if len(bits) != n or not set(bits) <= {"0", "1"}:
        raise ValueError("rows")
    return [i for i, b in enumerate(bits) if b == "1"]


def _encode_column(values: Sequence[Value], times: Sequence[int]) -> Any:
    first = values[0]
    if all(type(v) is type(first) and repr(v) == repr(first) for v in values):
        return _encode_scalar(first)
    if (coded := _encode_times(values, times)) is not None:
        return coded
    if (coded := _encode_numbers(values)) is not None:
        return coded
    return [_encode_scalar(v) for v in values]


def _decode_column(column: Any, times: Sequence[int]) -> Sequence[Value]:
    n = len(times)
    if isinstance(column, list):
        if len(column) != n:
            raise ValueError("length of a column")
        return [_decode_scalar(v) for v in column]
    if isinstance(column, dict):
        if "time" in column:
            return _decode_times(column, times)
        if "order" in column:
            return _decode_numbers(column, n)
    return [_decode_scalar(column)] * n


def _encode_scalar(value: Value) -> Any:
    # JSON has no word for these; as objects they cannot be mistaken for a keyword's text.
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": repr(value)}
    return value


def _decode_scalar(value: Any) -> Value:
    if isinstance(value, dict):
        return _NOT_FINITE[value["float"]]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("a value")


def _differences(values: Sequence[int], order: int) -> list[int]:
    out = list(values)
    for _ in range(order):
        out = [b - a for a, b in zip([0, *out], out, strict=False)]
    return out


def _encode_numbers(values: Sequence[Value]) -> Any:
    """Numbers as differences of their decimal digits, if that is shorter: ephemerides are smooth."""
    whole = all(type(v) is int for v in values)
    if not whole and not all(type(v) is float for v in values):
        return None
    texts = [repr(v) for v in values]
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", t) for t in texts) or "-0.0" in texts:
        return None
    fractions = [t.partition(".")[2].rstrip("0") for t in texts]
    decimals = max(map(len, fractions))
    digits = [
        int(t.partition(".")[0] + f.ljust(decimals, "0")) for t, f in zip(texts, fractions, strict=True)
    ]
    if decimals > _MAX_DECIMALS:
        return None
    candidates = [_differences(digits, order) for order in range(_MAX_ORDER + 1)]
    lengths = [sum(len(str(d)) for d in c) for c in candidates]
    order = lengths.index(min(lengths))
    # Where differences do not help the plain numbers are easier to read, for people and for zstd.
    if order == 0 or not all(d in _I64 for d in candidates[order]) or not all(d in _I64 for d in digits):
        return None
    return {"order": order, "values": candidates[order]} | ({} if whole else {"decimals": decimals})


def _decode_numbers(column: Mapping[str, Any], n: int) -> list[Value]:
    digits = column["values"]
    if (
        len(digits) != n
        or not all(type(d) is int for d in digits)
        or column["order"] not in range(_MAX_ORDER + 1)
    ):
        raise ValueError("differences")
    for _ in range(column["order"]):
        digits = list(accumulate(digits))
    if "decimals" not in column:
        return list(digits)
    decimals = column["decimals"]
    if decimals not in range(_MAX_DECIMALS + 1):
        raise ValueError("decimals")
    return [float(f"{d}e-{decimals}") for d in digits]


def _encode_times(values: Sequence[Value], times: Sequence[int]) -> Any:
    """Times as their difference to t_obs: nothing where the text is just t_obs, 34-37 s for TAI."""
    match = _TIME.fullmatch(values[0]) if isinstance(values[0], str) else None
    if match is None or min(times) == _I64.start:
        return None
    decimals = len(match[9] or "")
    style = [match[2], match[5], decimals, match[10]]
    to_text = _time_writer(style)
    unit = 10 ** max(decimals - 3, 0)
    differences = []
    for value, t in zip(values, times, strict=True):
        m = _TIME.fullmatch(value) if isinstance(value, str) else None
        if m is None:
            return None
        year, month, day, hour, minute, second = (int(m[i]) for i in (1, 3, 4, 6, 7, 8))
        fraction = (m[9] or "").ljust(max(decimals, 3), "0")
        try:
            midnight = datetime(year, month, day)
        except ValueError:
            return None
        seconds = (midnight - _EPOCH).days * 86400 + hour * 3600 + minute * 60 + second
        d = seconds * 1000 * unit + int(fraction) - t * unit
        if d not in _I64 or to_text(t, d) != value:
            return None
        differences.append(d)
    return {"time": style, "values": _encode_column(differences, times)}


def _decode_times(column: Mapping[str, Any], times: Sequence[int]) -> list[Value]:
    style = column["time"]
    if [type(s) for s in style] != [str, str, int, str] or style[2] not in range(10):
        raise ValueError("time")
    to_text = _time_writer(style)
    differences = _decode_column(column["values"], times)
    if not all(type(d) is int for d in differences):
        raise ValueError("time")
    return [to_text(t, d) for t, d in zip(times, differences, strict=True)]  # type: ignore[arg-type]


def _time_writer(style: Sequence[Any]) -> Callable[[int, int], str]:
    """Return the function that writes t_obs (ms since 1970) plus a difference in this style."""
    date, between, decimals, suffix = style
    places = max(decimals, 3)
    unit = 10 ** (places - 3)

    def write(t: int, difference: int) -> str:
        seconds, fraction = divmod(t * unit + difference, 10**places)
        days, seconds = divmod(seconds, 86400)
        day = _EPOCH + timedelta(days=days)
        digits = f"{fraction:0{places}d}"[:decimals]
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        point = "." if decimals else ""
        return (
            f"{day.year:04d}{date}{day.month:02d}{date}{day.day:02d}{between}{clock}{point}{digits}{suffix}"
        )

    return write
