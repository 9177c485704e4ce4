"""FITS keywords of a shard as text: columns instead of headers, so that they do not outweigh the images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sunzip.archive._json import count_values, dump, load
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
_DAYS = range((datetime.min - _EPOCH).days, (datetime.max - _EPOCH).days + 1)

#: The most values in the keywords of a shard; its images may be 65536 times 12.
_MAX_VALUES = 1 << 24

#: Python writes no integer of more digits.
_MOST = 10**4300

#: Types of values that JSON holds as they are, whatever they are.
_AS_THEY_ARE = frozenset({str, float, bool, type(None)})

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
        If a keyword has a value that is neither text, number, truth value nor None, or all are too many.
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
    text = dump(out, sort_keys=False)
    if (found := count_values(text)) > _MAX_VALUES:
        raise InputError(f"{found} keywords in {len(headers)} frames are too many")
    return text


@dataclass(slots=True)
class _Column:
    """The values of one keyword: the same for all images, or one for each, or a time that each image has."""

    key: str
    rows: _Rows | None
    values: Any
    write: Callable[[int, int], str] | None = None

    def value(self, i: int, t: int) -> Value:
        """Return the value of image `i` of those that have the keyword, taken at `t`."""
        value: Any = self.values[i] if isinstance(self.values, list) else self.values
        return value if self.write is None else self.write(t, value)


class _Rows:
    """Which of some images have something, and the place of each among these."""

    def __init__(self, bits: str) -> None:
        digits = np.frombuffer(bits.encode(), np.uint8) - ord("0")
        if (digits > 1).any():
            raise ValueError("rows")
        self.flags = digits.view(bool)

    def place(self, i: int) -> int:
        """Return the place of an image; -1 if it has nothing."""
        return int(np.count_nonzero(self.flags[:i])) if self.flags[i] else -1


class _Channel:
    """The keywords of one channel as columns.

    Parameters
    ----------
    entry
        As the JSON has it.
    t_obs
        (n,) int64.
    """

    def __init__(self, entry: Any, t_obs: npt.NDArray[np.int64]) -> None:
        self._rows = _rows(entry, len(t_obs), {})
        times = t_obs if self._rows is None else t_obs[self._rows.flags]
        self._images = len(times)
        known: dict[str, _Rows] = {}
        self._all: dict[str, Value] = {}
        self._columns: list[_Column] = []
        for key, column in entry["keys"].items():
            rows = None
            if isinstance(column, dict) and "rows" in column:
                rows = _rows(column, len(times), known)
                column = column["values"]
            at = times if rows is None else times[rows.flags]
            made = _decode_column(key, rows, column, at)
            self._all[key] = None
            if rows is None and made.write is None and not isinstance(made.values, list):
                self._all[key] = made.values
            else:
                self._columns.append(made)

    def header(self, i: int, t: int) -> dict[str, Value]:
        """Return the keywords of image `i`, taken at `t`."""
        if self._rows is not None and (i := self._rows.place(i)) < 0:
            return {}
        header = dict(self._all)
        for column in self._columns:
            place = i if column.rows is None else column.rows.place(i)
            if place < 0:
                del header[column.key]
            else:
                header[column.key] = column.value(place, t)
        return header

    @property
    def values(self) -> int:
        """How many values there are at most."""
        return self._images * len(self._all)


class Headers(Sequence[list[dict[str, Value]]]):
    """The headers of a shard, [n][C]; each is made when it is asked for, as few columns may tell of many.

    Parameters
    ----------
    channels
        By number, those that have keywords.
    t_obs
        (n, C) int64.
    """

    def __init__(self, channels: Mapping[int, _Channel], t_obs: npt.NDArray[np.int64]) -> None:
        self._channels = channels
        self._t_obs = t_obs

    def __len__(self) -> int:
        return len(self._t_obs)

    @property
    def values(self) -> int:
        """How many values there are at most, in all headers."""
        return sum(channel.values for channel in self._channels.values())

    @overload
    def __getitem__(self, i: int) -> list[dict[str, Value]]: ...

    @overload
    def __getitem__(self, i: slice) -> list[list[dict[str, Value]]]: ...

    def __getitem__(self, i: int | slice) -> Any:
        """Return the headers of one frame, or of several."""
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        times = self._t_obs[i].tolist()
        return [self._channels[c].header(i, t) if c in self._channels else {} for c, t in enumerate(times)]


def decode(text: bytes, channels: Sequence[str], t_obs: npt.NDArray[np.int64], where: str) -> Headers:
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
    tree = load(text, where, _MAX_VALUES)
    try:
        found = {
            c: _Channel(tree[name], t_obs[:, c])
            for c, name in enumerate(channels)
            if tree.get(name) is not None
        }
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, IndexError) as e:
        raise DamagedError(f"{where}: the keywords are not of the form that sunzip writes ({e})") from e
    return Headers(found, t_obs)


def without_times(text: bytes, where: str) -> bytes:
    """Leave out the columns of times, which tell nothing where times of observation are lost.

    Raises
    ------
    DamagedError
        If the text is not what `encode` writes; the message starts with `where`.
    """
    tree = load(text, where, _MAX_VALUES)
    try:
        for entry in tree.values():
            for key, column in list(entry["keys"].items()):
                inner = column.get("values") if isinstance(column, dict) and "rows" in column else column
                if isinstance(inner, dict) and "time" in inner:
                    del entry["keys"][key]
    except (KeyError, TypeError, AttributeError) as e:
        raise DamagedError(f"{where}: the keywords are not of the form that sunzip writes ({e})") from e
    return dump(tree, sort_keys=False)


def _plain(channel: str, key: str, value: object) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"{channel}: keyword {key} holds a {type(value).__name__}, which cannot be stored")


def _bits(flags: Sequence[bool]) -> str:
    return "".join("01"[f] for f in flags)


def _rows(entry: Mapping[str, Any], n: int, known: dict[str, _Rows]) -> _Rows | None:
    """Return which of `n` images an entry tells of, the same for the same text; None for all of them."""
    bits = entry.get("rows")
    if bits is None:
        return None
    if not isinstance(bits, str) or len(bits) != n:
        raise ValueError("rows")
    if bits not in known:
        known[bits] = _Rows(bits)
    return known[bits]


def _encode_column(values: Sequence[Value], times: Sequence[int]) -> Any:
    first = values[0]
    if all(type(v) is type(first) and repr(v) == repr(first) for v in values):
        return _encode_scalar(first)
    if (coded := _encode_times(values, times)) is not None:
        return coded
    if (coded := _encode_numbers(values)) is not None:
        return coded
    return [_encode_scalar(v) for v in values]


def _decode_column(key: str, rows: _Rows | None, column: Any, times: npt.NDArray[np.int64]) -> _Column:
    if isinstance(column, dict) and "time" in column:
        return _decode_times(key, rows, column, times)
    return _Column(key, rows, _decode_values(column, len(times)))


def _decode_values(column: Any, n: int) -> list[Value] | Value:
    """Return `n` values, or the one that they all are."""
    if isinstance(column, list):
        if len(column) != n:
            raise ValueError("length of a column")
        # Archives hold far more values than columns: these are looked at as a whole where they can be.
        if _AS_THEY_ARE.issuperset(map(type, column)) or _are_i64(column):
            return column
        return [_decode_scalar(v) for v in column]
    if isinstance(column, dict) and "order" in column:
        return _decode_numbers(column, n)
    return _decode_scalar(column)


def _encode_scalar(value: Value) -> Any:
    # JSON has no word for these; as objects they cannot be mistaken for a keyword's text.
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": repr(value)}
    return value


def _decode_scalar(value: Any) -> Value:
    if isinstance(value, dict):
        return _NOT_FINITE[value["float"]]
    if isinstance(value, int) and not -_MOST < value < _MOST:
        raise ValueError("an integer of too many digits")
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
    if len(digits) != n or column["order"] not in range(_MAX_ORDER + 1) or not _are_i64(digits):
        raise ValueError("differences")
    for _ in range(column["order"]):
        digits = list(accumulate(digits))
    if not _are_i64(digits):
        raise ValueError("sums")
    if "decimals" not in column:
        return list(digits)
    decimals = column["decimals"]
    if decimals not in range(_MAX_DECIMALS + 1):
        raise ValueError("decimals")
    return [float(f"{d}e-{decimals}") for d in digits]


def _are_i64(values: Sequence[Any]) -> bool:
    if not {int}.issuperset(map(type, values)):
        return False
    return not values or (min(values) in _I64 and max(values) in _I64)


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


def _decode_times(
    key: str, rows: _Rows | None, column: Mapping[str, Any], times: npt.NDArray[np.int64]
) -> _Column:
    style = column["time"]
    if [type(s) for s in style] != [str, str, int, str] or style[2] not in range(10):
        raise ValueError("time")
    found = _decode_values(column["values"], len(times))
    differences = found if isinstance(found, list) else [found]
    if not _are_i64(differences):
        raise ValueError("time")
    if len(times):
        # Of differences that are all the same, the first and the last time tell of those between.
        at = times.tolist() if isinstance(found, list) else [int(times.min()), int(times.max())]
        spread = differences if isinstance(found, list) else differences * 2
        unit = 10 ** max(style[2] - 3, 0)
        day = 86400 * 1000 * unit
        if not all((t * unit + d) // day in _DAYS for t, d in zip(at, spread, strict=True)):
            raise ValueError("a time beyond the calendar")
    return _Column(key, rows, found, _time_writer(style))


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
