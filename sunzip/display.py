"""How numbers, tables and objects are shown: by commands, at a prompt and in a notebook."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from math import isfinite
from numbers import Integral, Real
from typing import Any

from sunzip.errors import SunzipError, without_secrets
from sunzip.files import printable

#: Of longer lists the beginning is shown, also in cells of tables.
_MOST, _MOST_IN_CELLS = 24, 3

#: Stands where there is no value.
NONE = "–"


def count(n: int, noun: str = "") -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> count(1, "frame"), count(12345, "image")
    ('1 frame', '12,345 images')
    """
    return f"{n:,}" + (f" {noun}" + "s" * (n != 1) if noun else "")


def size(n: float) -> str:
    """Return a number of bytes in decimal units.

    Examples
    --------
    >>> size(999), size(12345), size(7.2e12)
    ('999 B', '12.3 kB', '7.20 TB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            break
        n /= 1000
    return f"{n:.0f} B" if unit == "B" else f"{number(n)} {unit}"


def number(value: float | None) -> str:
    """Return a number with three digits, or a dash for none.

    Examples
    --------
    >>> number(0.012345), number(5.0), number(1234.5), number(None)
    ('0.0123', '5.00', '1,234', '–')
    """
    if value is None:
        return NONE
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Return a span of time.

    Examples
    --------
    >>> duration(0.25), duration(75), duration(8000)
    ('0.250 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 59.5:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def moment(iso: str) -> str:
    """Return an ISO 8601 time without what is zero in it.

    Examples
    --------
    >>> moment("2014-01-01T00:12:00.000Z")
    '2014-01-01 00:12'
    """
    return iso.removesuffix("Z").removesuffix(".000").removesuffix(":00").replace("T", " ")


def span(first: object, last: object) -> str:
    """Return two times as `moment` writes them.

    Examples
    --------
    >>> span("2014-01-01T00:00:00.000Z", "2014-01-01T12:00:00.000Z")
    '2014-01-01 00:00 to 2014-01-01 12:00'
    """
    return f"{moment(str(first))} to {moment(str(last))}"


def fields(rows: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return names and values as lines with the values below each other."""
    shown = list(rows)
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in shown]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Return a table as lines: the first column to the left, the others to the right.

    One that is wider than the terminal goes on below itself, the first column repeated, since lines that the
    terminal breaks are no table any more. Where text goes elsewhere a row is a line.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    room = shutil.get_terminal_size().columns - len(indent) if sys.stdout and sys.stdout.isatty() else None
    parts = [[0]]
    for i in range(1, len(head)):
        part = parts[-1]
        if room is not None and len(part) > 1 and sum(widths[j] + 2 for j in part) + widths[i] > room:
            parts.append([0])
        parts[-1].append(i)
    lines = []
    for n, part in enumerate(parts):
        lines += [""] * (n > 0)
        for row in (head, *rows):
            cells = (row[i].rjust(widths[i]) if i else row[0].ljust(widths[0]) for i in part)
            lines.append(indent + "  ".join(cells).rstrip())
    return lines


class Shown:
    """What a notebook shows as a table."""

    __slots__ = ()

    def _told(self) -> Mapping[str, Any]:
        """Return what there is to tell, by name.

        Values are plain, or mappings of these; mappings of mappings and lists of these are shown as tables.
        """
        raise NotImplementedError

    def _repr_html_(self) -> str | None:
        try:
            told = self._told()
        except SunzipError:
            return None  # of a file that is closed or damaged the text alone is shown
        return f"<b>{escape(_title(self))}</b>{_html(told)}"


class Report(Shown):
    """What came of a job: a dataclass that prints itself, and gives plain values."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def _told(self) -> Mapping[str, Any]:
        """See `Shown._told`."""
        return self.as_dict()

    def __str__(self) -> str:
        return "\n".join([_title(self), *_lines(self._told(), "  ")])


def _title(of: object) -> str:
    return type(of).__name__.lstrip("_")


def _name(key: object) -> str:
    return _safe(str(key).replace("_", " "))


def _safe(text: str) -> str:
    return printable(without_secrets(text))


def _rows(value: Any) -> list[dict[str, Any]]:
    """Return the rows of a table, the first column named by the empty text where rows have names; or none."""
    if isinstance(value, Mapping):
        # Whose rows hold tables is none itself: these stand below each other.
        flat = {k: v for k, v in value.items() if isinstance(v, Mapping) and not _holds_tables(v)}
        rows = [{"": key, **row} for key, row in flat.items()]
    elif isinstance(value, list | tuple):
        rows = [dict(row) for row in value if isinstance(row, Mapping)]
    else:
        return []
    return rows if len(rows) == len(value) and any(rows) else []


def _holds_tables(row: Mapping[str, Any]) -> bool:
    return any(isinstance(cell, Mapping) for cell in row.values())


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [_name(name) for name in names], [
        [_text(row.get(name), _MOST_IN_CELLS) for name in names] for row in rows
    ]


def _text(value: Any, most: int = _MOST) -> str:
    """Return a plain value as text, of a list or a mapping at most so many."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return number(float(value)) if isfinite(value) else str(value)
    if isinstance(value, Mapping):
        between, items = ", ", list(value.items())[:most]
        parts = [f"{_name(k)}: {'…' if isinstance(v, Mapping) else _text(v)}" for k, v in items]
    elif isinstance(value, list | tuple):
        between, parts = " ", [_text(one) for one in value[:most]]
    else:
        return _safe(str(value))
    more = [f"… ({len(value):,})"] if len(value) > most else []
    return between.join([*parts, *more]) or NONE


def _lines(told: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yield lines of text: plain values first below each other, then each table and mapping by itself."""
    plain = {k: v for k, v in told.items() if not (_rows(v) or (isinstance(v, Mapping) and v))}
    yield from fields([(_name(key), _text(value)) for key, value in plain.items()], indent)
    for key, value in told.items():
        if key in plain:
            continue
        yield f"{indent}{_name(key)}"
        if rows := _rows(value):
            yield from table(*_cells(rows), indent + "  ")
        else:
            yield from _lines(value, indent + "  ")


def _html(told: Mapping[str, Any]) -> str:
    """Return a table of names and values, in which others may be."""
    parts = []
    for key, value in told.items():
        if rows := _rows(value):
            head, cells = _cells(rows)
            inner = "".join(f"<th>{escape(name)}</th>" for name in head)
            inner = f"<tr>{inner}</tr>" + "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
            )
            shown = f"<table>{inner}</table>"
        elif isinstance(value, Mapping) and value:
            shown = _html(value)
        else:
            shown = escape(_text(value))
        parts.append(
            f'<tr><th style="text-align:left;vertical-align:top">{escape(_name(key))}</th>'
            f'<td style="text-align:left">{shown}</td></tr>'
        )
    return f"<table>{''.join(parts)}</table>"
