"""Judges a target before hours of work go into it, and keeps --force from destroying anything but results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from sunzip.errors import OutputError

#: What the layouts of `sunzip decompress` consist of, if they are folders of files.
_LEAVES = (".fits", ".npz")
_ZARR = (".zgroup", ".zattrs", ".zarray")

#: How reports of studies begin, and their JSON: no other page, or JSON, is to be replaced.
_PAGE = b'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
_JSON = b'{\n "sunzip": "'


def check(
    out: str,
    sources: Sequence[str],
    *,
    force: bool,
    ours: Callable[[str], bool],
    what: str,
    remote: bool = False,
) -> None:
    """Refuse a target that cannot be, before anything is read.

    Parameters
    ----------
    out
        The target.
    sources
        What will be read, which the target must not be.
    force
        Whether an existing target may be replaced.
    ours
        Tells whether what exists is of the kind that will be written; `force` replaces nothing else.
    what
        What will be written, for the message.
    remote
        Whether it can be written to an fsspec URL.

    Raises
    ------
    OutputError
        If the target cannot be written, or would cost what was not meant.
    """
    if "://" in out:
        if not remote:
            raise OutputError(f"{out}: only archives are written to URLs; write here, then copy it there")
        _check_url(out, sources, force)
        return
    if out in ("", "-"):
        raise OutputError(f"{out or 'an empty name'}: results cannot be written to a pipe; name a file")
    here = os.path.realpath(out)
    for source in sources:
        there = os.path.realpath(source)
        if here == there:
            raise OutputError(f"{out}: is the source itself; name another target")
        if os.path.exists(source) and there.startswith(here + os.sep) and os.path.lexists(out):
            raise OutputError(f"{out}: is a folder that holds the source {source}; name another target")
    parent = os.path.dirname(here)
    if not os.path.isdir(parent):
        if os.path.lexists(parent):
            raise OutputError(f"{out}: {parent} is no folder; name a target in one")
        raise OutputError(f"{out}: the folder {parent} does not exist; create it first")
    if os.path.lexists(out):
        if not force:
            raise OutputError(f"{out}: exists; remove it, choose another name or use --force")
        if not ours(out):
            raise OutputError(
                f"{out}: is no {what}, so --force does not replace it; remove it or choose another name"
            )
        # It brings numpy along, which commands that answer at once do without.
        from sunzip.sinks.base import replaceable

        replaceable(out)


def _check_url(out: str, sources: Sequence[str], force: bool) -> None:
    """Refuse a URL that cannot be that of a new archive."""
    from sunzip.archive import exists

    if out in sources:
        raise OutputError(f"{out}: is the source itself; name another target")
    if not exists(out):
        return
    if not force:
        raise OutputError(f"{out}: exists; remove it, choose another name or use --force")
    # By its name alone: reading it may not be allowed where writing is.
    if not out.lower().endswith(".lat"):
        raise OutputError(f"{out}: --force replaces only what is named *.lat there; choose another name")


def is_archive(path: str) -> bool:
    """Whether a file is an archive, damaged ones included, or a link to nothing."""
    if not os.path.exists(path):
        return True
    if not os.path.isfile(path):
        return False
    return path.lower().endswith(".lat") or os.path.getsize(path) == 0 or _ends_as_archive(path)


def is_picture(path: str) -> bool:
    """Whether a file is a PNG."""
    return _begins(path, b"\x89PNG\r\n\x1a\n")


def check_report(out: str, sources: Sequence[str], force: bool) -> None:
    """Refuse a page, or the JSON that will be beside it, that cannot be written.

    Raises
    ------
    OutputError
        As `check`; also if it is not named as a page is.
    """
    name, dot, ending = out.rpartition(".")
    if not dot or ending.lower() not in ("html", "htm"):
        raise OutputError(f"{out}: a page is written; name it *.html")
    check(out, sources, force=force, ours=lambda p: _begins(p, _PAGE), what="report")
    check(f"{name}.json", sources, force=force, ours=lambda p: _begins(p, _JSON), what="JSON of a report")


def is_encoder(path: str) -> bool:
    """Whether a folder holds an exported encoder."""
    return os.path.isdir(path) and "encoder.json" in os.listdir(path)


def is_cubes(path: str) -> bool:
    """Whether a file or folder is of a layout that `sunzip decompress` writes, and of nothing besides."""
    if not os.path.isdir(path):
        return _begins(path, b"\x89HDF\r\n\x1a\n")
    names = os.listdir(path)
    if any(name in names for name in _ZARR):
        return True
    return all(name.endswith(_LEAVES) for _, _, files in os.walk(path, onerror=_raise) for name in files)


def is_features(path: str) -> bool:
    """Whether a file or folder is of a format that `sunzip features` writes."""
    if os.path.isdir(path):
        return {"zarr.json", "features"} <= set(os.listdir(path))
    return any(_begins(path, magic) for magic in (b"\x89HDF\r\n\x1a\n", b"PAR1", b"time,f0"))


def is_flux(path: str) -> bool:
    """Whether a file is a daily flux that `sunzip synth` wrote; LISIRD's have other columns."""
    return _begins(path, b"time (yyyy MM dd),absolute_f30 (solar flux unit (SFU)),adjusted_f30")


def is_store(path: str) -> bool:
    """Whether a folder is a Zarr store, or empty."""
    return os.path.isdir(path) and (not (names := os.listdir(path)) or any(n in names for n in _ZARR))


def _raise(error: OSError) -> None:
    raise error


def _begins(path: str, magic: bytes) -> bool:
    """Whether a plain file begins with some bytes, or is empty, or is a link to nothing."""
    if not os.path.exists(path):
        return True
    if not os.path.isfile(path):
        return False
    if os.path.getsize(path) == 0:
        return True
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _ends_as_archive(path: str) -> bool:
    from sunzip.archive._zip import COMMENT

    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64 - len(COMMENT)))
        return file.read(len(COMMENT)) == COMMENT.encode()
