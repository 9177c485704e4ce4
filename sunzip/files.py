"""Single files: written whole or not at all, and called by names that are safe to show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from sunzip.errors import OutputError


def printable(text: str) -> str:
    r"""Return text without what would steer a terminal or is no character: names come from strangers.

    Examples
    --------
    >>> printable("sun\n\udcff.lat") == "sun\ufffd\ufffd.lat"
    True
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def aside(path: str | os.PathLike[str], *, folder: bool = False) -> Path:
    """Make an empty file or folder beside a path, to write there what is to have that name once it is whole.

    It is called ``<path>.partial``, with a number appended if that is in use: nobody's file is overwritten,
    and two runs never share one.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    path = Path(path)
    number = 0
    while True:
        name = path.with_name(f"{path.name}.partial{f'.{number}' if number else ''}")
        try:
            if folder:
                name.mkdir()
            else:
                name.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return name


def put(files: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Write files aside and rename them once all are there, so that what cannot be finished replaces nothing.

    Parameters
    ----------
    files
        Contents by path; what is there is replaced.

    Raises
    ------
    OutputError
        If one cannot be written; then none has changed, unless renaming failed, and nothing is left aside.
    """
    asides: dict[str, Path] = {}
    path = ""
    try:
        for given, data in files.items():
            path = os.fspath(given)
            asides[path] = aside(path)
            with open(asides[path], "wb") as file:
                file.write(data)
        for path, name in asides.items():
            os.replace(name, path)
    except BaseException as error:
        for name in asides.values():
            with contextlib.suppress(OSError):
                name.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise
