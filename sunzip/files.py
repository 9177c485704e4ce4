"""Single files: written whole or not at all, and called by names that are safe to show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from sunzip.errors import OutputError


def printable(text: str) -> str:
    r"""Return text without what would steer a terminal or is no character: names come from strangers.

    Examples
    --------
    >>> printable("sun\n\udcff.lat") == "sun\ufffd\ufffd.lat"
    True
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


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
    asides = {os.fspath(path): f"{os.fspath(path)}.partial" for path in files}
    path = ""
    try:
        for path, data in zip(asides, files.values(), strict=True):
            with open(asides[path], "wb") as file:
                file.write(data)
        for path, aside in asides.items():
            os.replace(aside, path)
    except BaseException as error:
        for aside in asides.values():
            with contextlib.suppress(OSError):
                os.unlink(aside)
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise
