"""What commands print: results to stdout as text or JSON, progress to stderr, all of it safe to show."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sunzip.display import number, size
from sunzip.errors import OutputError, without_secrets
from sunzip.files import printable

if TYPE_CHECKING:
    from tqdm import tqdm

    from sunzip.api import OnProgress, OnStep, Progress

_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} frames, {remaining} left, {rate_fmt}{postfix}"


def result(as_json: bool, data: Any, lines: Iterable[str]) -> None:
    """Print a command's result: one JSON object, or lines of text.

    Raises
    ------
    OutputError
        If stdout cannot be written, for another reason than that nobody reads it any more.
    """
    text = json.dumps(data, indent=1, allow_nan=False) if as_json else "\n".join(map(_shown, lines))
    if sys.stdout is None:  # which click passes over in silence
        raise OutputError("the result cannot be printed: stdout is closed; redirect it (> FILE)")
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


def coder(model: str, quality: int | None) -> str:
    """Return what coded, in words.

    Examples
    --------
    >>> coder("wavelet-12", 35), coder("sigma-vae-256", None)
    ('wavelet-12, quality 35', 'sigma-vae-256')
    """
    return model if quality is None else f"{model}, quality {quality}"


def natural(value: object) -> int | None:
    """Return a number of things that strangers tell, if it can be one."""
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def shows_progress(quiet: bool) -> bool:
    """Whether there is anyone to see a moving line."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


class _Line:
    """The line on stderr that moves: a text, or how much of what is done."""

    def __init__(self, opening: str) -> None:
        self._opening = one_line(opening)
        self.bar = self._bar()

    def _bar(self, **settings: Any) -> tqdm[Any]:
        from tqdm import tqdm

        return tqdm(leave=False, **(settings or {"bar_format": "{desc}", "desc": self._opening}))

    def show(self, **settings: Any) -> None:
        """Show another bar, or if nothing is said of one the text."""
        self.bar.close()
        self.bar = self._bar(**settings)

    def step(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done."""
        what = one_line(what)
        if (self.bar.desc, self.bar.total) != (what, total):
            self.show(total=total, desc=what, dynamic_ncols=True)
        self.bar.update(done - self.bar.n)

    def look(self, what: str, done: int, total: int) -> None:
        """As `step`, of a part of what the text says, which is there again once that is done."""
        if done < total:
            self.step(what, done, total)
        elif self.bar.total is not None:
            self.show()


@contextmanager
def _line(opening: str) -> Iterator[_Line]:
    """Show a line that also tells how far sources are looked through."""
    from sunzip.sources.base import watching

    line = _Line(opening)
    try:
        with watching(line.look):
            yield line
    finally:
        line.bar.close()


@contextmanager
def frames_bar(quiet: bool, opening: str, closing: str | None = None) -> Iterator[OnProgress | None]:
    """Show how a job advances, on stderr; yields what the job is to call, or None if nobody looks.

    Parameters
    ----------
    quiet
        Show nothing.
    opening
        What to say until the first call.
    closing
        What to say once all frames are done, if something is left to be done with them.
    """
    if not shows_progress(quiet):
        yield None
        return
    began = 0.0

    def update(p: Progress) -> None:
        nonlocal began
        if closing is not None and p.done == p.total:
            line.show(bar_format="{desc}", desc=one_line(closing))
            return
        if not began:
            began = time.monotonic()
            line.show(total=p.total, initial=p.done, unit=" frames", dynamic_ncols=True, bar_format=_BAR)
            return
        speed = p.raw_bytes / max(time.monotonic() - began, 1e-9)
        ratio = f", ratio {number(p.raw_bytes / p.coded_bytes)}" if p.coded_bytes else ""
        line.bar.set_postfix_str(f"{size(speed)}/s{ratio}", refresh=False)
        line.bar.update(p.done - line.bar.n)

    with _line(opening) as line:
        yield update


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
    with _line(opening) as line:
        yield line.step
