"""What commands print: results to stdout as text or JSON, progress to stderr, all of it safe to show."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sunzip.errors import OutputError, without_secrets
from sunzip.files import printable

if TYPE_CHECKING:
    from tqdm import tqdm

    from sunzip.api import OnProgress, OnStep, Progress

#: Stands where there is no value.
NONE = "–"

_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} frames, {remaining} left, {rate_fmt}{postfix}"


def result(as_json: bool, data: Any, lines: Iterable[str]) -> None:
    """Print a command's result: one JSON object, or lines of text.

    Raises
    ------
    OutputError
        If stdout cannot be written, for another reason than that nobody reads it any more.
    """
    text = json.dumps(data, indent=1, allow_nan=False) if as_json else "\n".join(map(_shown, lines))
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try once more at its end, and complain in several lines.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"the result cannot be printed: {error.strerror or error}") from None


def one_line(text: str) -> str:
    """Return text on one line, safe to print."""
    return _shown(" ".join(text.split()))


def _shown(text: str) -> str:
    # What is shown is copied into logs and reports of defects.
    return printable(without_secrets(text))


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


def coder(model: str, quality: int | None) -> str:
    """Return what coded, in words.

    Examples
    --------
    >>> coder("wavelet-12", 35), coder("sigma-vae-256", None)
    ('wavelet-12, quality 35', 'sigma-vae-256')
    """
    return model if quality is None else f"{model}, quality {quality}"


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


def natural(value: object) -> int | None:
    """Return a number of things that strangers tell, if it can be one."""
    return value if type(value) is int and 0 <= value < 1 << 62 else None


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


def fields(rows: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return names and values as lines with the values below each other."""
    shown = list(rows)
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in shown]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Return a table as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        indent
        + "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def shows_progress(quiet: bool) -> bool:
    """Whether there is anyone to see a moving line."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def frames_bar(quiet: bool, opening: str) -> Iterator[OnProgress | None]:
    """Show how a job advances, on stderr; yields what the job is to call, or None if nobody looks.

    Parameters
    ----------
    quiet
        Show nothing.
    opening
        What to say until the first call.
    """
    if not shows_progress(quiet):
        yield None
        return
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(bar_format="{desc}", desc=one_line(opening), leave=False)
    began = 0.0

    def update(p: Progress) -> None:
        nonlocal bar, began
        if not began:
            began = time.monotonic()
            bar.close()
            bar = tqdm(
                total=p.total,
                initial=p.done,
                unit=" frames",
                leave=False,
                dynamic_ncols=True,
                bar_format=_BAR,
            )
            return
        speed = p.raw_bytes / max(time.monotonic() - began, 1e-9)
        ratio = f", ratio {number(p.raw_bytes / p.coded_bytes)}" if p.coded_bytes else ""
        bar.set_postfix_str(f"{size(speed)}/s{ratio}", refresh=False)
        bar.update(p.done - bar.n)

    try:
        yield update
    finally:
        bar.close()


@contextmanager
def bytes_bar(quiet: bool) -> Iterator[Callable[[int, int], object] | None]:
    """As `frames_bar`, for a job that tells the bytes done and the bytes in all."""
    if not shows_progress(quiet):
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


@contextmanager
def steps_bar(quiet: bool, opening: str) -> Iterator[OnStep | None]:
    """As `frames_bar`, for a job of several parts that tells what is done, and how much of how much."""
    if not shows_progress(quiet):
        yield None
        return
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(bar_format="{desc}", desc=one_line(opening), leave=False)

    def update(what: str, done: int, total: int) -> None:
        nonlocal bar
        if bar.desc != f"{what}: " or bar.total != total:
            bar.close()
            bar = tqdm(total=total, desc=what, leave=False, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        bar.close()
