"""Writes the pictures of commands, each saying who made it, by which --force knows what it may replace."""

from __future__ import annotations

import io

from sunzip import files


def put(out: str, drawn: io.BytesIO) -> None:
    """Write a PNG that was drawn.

    Parameters
    ----------
    out
        Where to; what is there is replaced.
    drawn
        The file as the library that draws made it.

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
    drawn.seek(0)
    with Image.open(drawn) as image:
        image.save(signed, format="png", pnginfo=note, dpi=image.info.get("dpi"))
    files.put({out: signed.getvalue()})
