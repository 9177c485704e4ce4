"""What a run leaves that was broken off when its archive was complete: that, and some of its folder."""

from __future__ import annotations

import contextlib
from typing import Any

from sunzip.archive import _layout as layout
from sunzip.archive._json import MAX_BYTES, load
from sunzip.archive._layout import ArchiveSpec
from sunzip.archive._place import partial_of, place_of
from sunzip.archive._read import Archive, open_archive
from sunzip.archive._verify import verify
from sunzip.archive._write import os_errors
from sunzip.errors import DamagedError, InputError, OutputError, UnsupportedError


def size_if_complete(path: str, spec: ArchiveSpec, *, embedded: bool) -> int | None:
    """Return the bytes of the archive at a path if it is whole and just what a run would write there.

    A run that is killed while it removes its folder leaves such a one, as does one that is not told by an
    object store that all went well. What it has left of the folder is removed, once all bytes were read: it
    might be what was begun anew because the archive is damaged.

    Parameters
    ----------
    path
        Where the archive would be.
    spec
        What it would hold.
    embedded
        Whether it would hold its model.

    Raises
    ------
    OutputError
        As `remove_left`.
    """
    place = place_of(path)
    with os_errors(path):
        place.check()
        if not place.exists():
            return None
    try:
        archive = open_archive(path)
    except (InputError, DamagedError, UnsupportedError):
        return None
    with archive:
        # The fingerprint tells of frames, model and settings alike.
        if archive.fingerprint != spec.fingerprint or (archive.embedded_model() is not None) != embedded:
            return None
        if verify(path).problems:
            return None
        remove_left(path, archive)
        return archive.size


def remove_left(path: str, archive: Archive, *, whatever: bool = False) -> None:
    """Remove the folder, or what is left of it, of the run that wrote an archive, which is whole.

    Parameters
    ----------
    path
        Where the archive is.
    archive
        It.
    whatever
        Whether to remove that of another run, too, which was to write another archive there.

    Raises
    ------
    OutputError
        If the folder is of another run, not of sunzip, or cannot be removed.
    """
    place, partial = place_of(path), partial_of(path)
    with os_errors(path):
        if not place.begin():
            names = place.names()
            place.hold()
            if not names <= {*layout.ARRAYS, "zarr.json"}:
                raise OutputError(f"{partial}: is in the way and not of sunzip; remove it")
            root = (place.get("zarr.json", MAX_BYTES) or b"") if "zarr.json" in names else None
            found = archive.fingerprint if root is None else _fingerprint(root, f"{partial}/zarr.json")
            if found is None:
                raise OutputError(f"{partial}: is in the way and not one that can be continued; remove it")
            if found != archive.fingerprint and not whatever:
                raise OutputError(
                    f"{partial}: an unfinished archive of other content than {path}, which is complete; "
                    "go on with the input and the options that it was begun with (--late?), or remove it"
                )
        place.clear()


def _fingerprint(root: bytes, where: str) -> Any:
    """Return the fingerprint in the metadata of a root, or None of what is no such thing."""
    with contextlib.suppress(DamagedError, KeyError, TypeError):
        attributes: Any = load(root, where)
        return attributes["attributes"]["sunzip"]["fingerprint"]
    return None
