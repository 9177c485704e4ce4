"""Writes the pictures of commands, each saying who made it, by which --force knows what it may replace."""

from __future__ import annotations

import io
import os

from sunzip.api import replacing
from sunzip.sinks.base import Target


def put(out: str, drawn: io.BytesIO, force: bool) -> None:
    """Write a PNG that was drawn.

    Parameters
    ----------
    out
        Where to.
    drawn
        The file as the library that draws made it.
    force
        Whether it may replace what is there.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    # What draws brings it along.
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("Software", "sunzip")
    signed = io.BytesIO()
    with Image.open(drawn) as image:
        image.save(signed, format="png", pnginfo=note, dpi=image.info.get("dpi"))
    with replacing(out, force) as path, _Picture(path, signed.getvalue()):
        pass


class _Picture(Target):
    """One PNG."""

    _is_file = True

    def __init__(self, path: str | os.PathLike[str], data: bytes) -> None:
        self._data = data
        super().__init__(path)

    def _begin(self) -> None:
        self._partial.write_bytes(self._data)

    def _finish(self) -> None:
        pass
