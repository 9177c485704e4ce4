"""Judges a target before hours of work go into it, and keeps --force from destroying anything but results."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from sunzip.channels import NAMES
from sunzip.errors import OutputError

#: How reports of studies begin, and their JSON: no other page, or JSON, is to be replaced.
_PAGE = (
    b'<!doctype html><html lang="en"><head><meta charset="utf-8">'
    b'<meta name="generator" content="sunzip"><title>'
)
_JSON = b'{\n "sunzip": "'

_PNG = b"\x89PNG\r\n\x1a\n"

#: So many bytes show what is at the beginning of every archive.
_ENOUGH = 64

#: The files of each layout that is a folder, by their paths in it.
_FITS = re.compile(r"(aia|hmi)_\w+_\d{8}T\d{6}(_\d+)?\.fits", re.ASCII)
_NPZ = re.compile(r"(\d{4})/(\d\d)/(\d\d)/(AIA|HMI)\1\2\3_\d{4}_\w+\.npz", re.ASCII)
_CHANNEL = "|".join(NAMES)
_STORE = re.compile(
    rf"\.zgroup|\.zattrs|\d{{4}}/(\.zgroup|\.zattrs|({_CHANNEL})/(\.zarray|\.zattrs|\d+\.0\.0))", re.ASCII
)
_ARRAYS = "features|channel|time|valid|pca_mean|pca_components|pca_explained_variance_ratio"
_FEATURES = re.compile(rf"zarr\.json|({_ARRAYS})/(zarr\.json|c(/\d+)+)", re.ASCII)

#: The datasets of the HDF5 files.
_CUBE = frozenset({"cube", "channel", "time", "t_obs", "valid", "keywords"})

#: The most that is read of a file to tell what it is: more than what sunzip writes at its beginning.
_HEAD = 1 << 20


def check(
    out: str,
    sources: Sequence[str],
    *,
    force: bool,
    ours: Callable[[str], bool],
    what: str,
    remote: bool = False,
    resume: bool = False,
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
    resume
        Whether it may be what a run has written that was broken off when it was complete.

    Raises
    ------
    OutputError
        If the target cannot be written, or would cost what was not meant.
    """
    if "://" in out and not remote:
        raise OutputError(f"{out}: only archives are written to URLs; write here, then copy it there")
    out = out.removeprefix("file://")
    if "://" in out:
        _check_url(out, sources, force, resume)
        return
    if out in ("", "-"):
        raise OutputError(f"{out or 'an empty name'}: results cannot be written to a pipe; name a file")
    here = os.path.realpath(out)
    for source in (name.removeprefix("file://") for name in sources):
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
        if not (force or (resume and ours(out))):
            raise OutputError(f"{out}: exists; remove it, choose another name or use --force")
        # By a link to nothing nothing is lost.
        if os.path.exists(out) and not ours(out):
            more = ", or holds other things besides" if os.path.isdir(out) else ""
            raise OutputError(
                f"{out}: is no {what}{more}, so --force does not replace it; remove it or choose another name"
            )
        # It brings numpy along, which commands that answer at once do without.
        from sunzip.sinks.base import replaceable

        replaceable(out)


def _check_url(out: str, sources: Sequence[str], force: bool, resume: bool) -> None:
    """Refuse a URL that cannot be that of a new archive."""
    from sunzip.archive import begins_as_archive, exists

    if out in sources:
        raise OutputError(f"{out}: is the source itself; name another target")
    if not exists(out):
        return
    if not force:
        if resume and begins_as_archive(_head_of_url(out) or b""):
            return
        raise OutputError(f"{out}: exists; remove it, choose another name or use --force")
    # By its name, too: reading it may not be allowed where writing is.
    if not out.lower().endswith(".lat"):
        raise OutputError(f"{out}: --force replaces only what is named *.lat there; choose another name")
    if (head := _head_of_url(out)) and not begins_as_archive(head):
        raise OutputError(
            f"{out}: is no archive of sunzip, so --force does not replace it; choose another name"
        )


def _head_of_url(url: str) -> bytes | None:
    """Return the first bytes of what is at a URL; None if it cannot be read."""
    from sunzip.sources.storage import Connection

    fs, path = Connection(url).open()
    try:
        return bytes(fs.cat_file(path, start=0, end=_ENOUGH))
    except Exception:  # each protocol's client raises its own kinds
        return None


def is_archive(path: str) -> bool:
    """Whether a file is an archive, damaged at its beginning or at its end perhaps.

    Or an empty file, as `mktemp` leaves it, by which nothing is lost.
    """
    from sunzip import archive

    return os.path.isfile(path) and (not os.path.getsize(path) or archive.is_archive(path))


def is_picture(path: str) -> bool:
    """Whether a file is a PNG that says that sunzip made it."""
    told = _head(path, _HEAD).partition(b"IDAT")[0]
    return told.startswith(_PNG) and b"tEXtSoftware\0sunzip" in told


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
    """Whether a folder holds an exported encoder and nothing else."""
    if not os.path.isdir(path):
        return False
    files = _json(os.path.join(path, "encoder.json")).get("files")
    return isinstance(files, dict) and {*os.listdir(path)} == {"encoder.json", *files}


def is_cubes(path: str) -> bool:
    """Whether `sunzip decompress` wrote a file or a folder and all in it."""
    if os.path.isdir(path):
        return is_store(path) or _all(path, _FITS, _is_map) or _all(path, _NPZ, _is_npz)
    return _is_hdf5(path, "cube-1", _CUBE)


def is_features(path: str) -> bool:
    """Whether `sunzip features` wrote a file or a folder and all in it."""
    from sunzip.sinks.base import MARK

    layout = "features-1"
    if os.path.isdir(path):
        about = _json(os.path.join(path, "zarr.json")).get("attributes")
        return isinstance(about, dict) and about.get(MARK) == layout and _all(path, _FEATURES)
    return (
        _is_hdf5(path, layout, frozenset(_ARRAYS.split("|")))
        or _is_parquet(path, f'{{"{MARK}": "{layout}"'.encode())
        or _is_table(path)
    )


def is_flux(path: str) -> bool:
    """Whether a file is a daily flux that `sunzip synth` wrote; LISIRD's have other columns."""
    titles = _head(path, _HEAD).partition(b"\n")[0]
    begin = b"time (yyyy MM dd),absolute_f30 (solar flux unit (SFU)),adjusted_f30"
    return titles.startswith(begin) and titles.endswith(b",synthetic")


def is_store(path: str) -> bool:
    """Whether sunzip wrote a Zarr store and all in it."""
    from sunzip.sinks.base import MARK

    return _json(os.path.join(path, ".zattrs")).get(MARK) == "sdoml-v2" and _all(path, _STORE)


def _all(path: str, names: re.Pattern[str], ours: Callable[[str], bool] = lambda _: True) -> bool:
    """Whether a folder holds files, and only such as have these names and are ours."""
    some = False
    for folder, folders, files in os.walk(path, onerror=_raise):
        # Links to folders count as files: they are not followed.
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            file = os.path.join(folder, name)
            if not names.fullmatch(os.path.relpath(file, path).replace(os.sep, "/")) or not ours(file):
                return False
            some = True
    return some


def _is_map(path: str) -> bool:
    """Whether a FITS file is one of ours, of which the first block has a card that nobody else writes."""
    block = _head(path, 2880)
    return any(block.startswith(b"SZ_CHAN = ", start) for start in range(0, len(block), 80))


def _is_npz(path: str) -> bool:
    """Whether an npz file is one of ours."""
    from sunzip.sinks.sdoml_v1 import COMMENT

    try:
        with zipfile.ZipFile(path) as file:
            return file.comment == COMMENT and file.namelist() == ["x.npy"]
    # What zipfile raises at hostile bytes is of many kinds.
    except Exception:
        return False


def _is_hdf5(path: str, layout: str, names: frozenset[str]) -> bool:
    """Whether a file is HDF5, says that sunzip wrote it so, and has no other datasets."""
    if _head(path, 8) != b"\x89HDF\r\n\x1a\n":
        return False
    import h5py

    from sunzip.sinks.base import MARK

    try:
        with h5py.File(path) as file:
            return bool(file.attrs.get(MARK) == layout) and names.issuperset(file)
    # What is no string cannot be compared, and broken files are told of in many ways.
    except Exception:
        return False


def _is_parquet(path: str, about: bytes) -> bool:
    """Whether a file is Parquet, and what it says of itself at its end begins so."""
    if _head(path, 4) != b"PAR1":
        return False
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return about in file.read(length)


def _is_table(path: str) -> bool:
    """Whether a file is CSV with exactly the columns of features, and a time in the first row."""
    titles, _, rows = _head(path, _HEAD).partition(b"\n")
    columns = ["time", *(f"f{i}" for i in range(titles.count(b",")))]
    time = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,"
    return len(columns) > 1 and titles == ",".join(columns).encode() and bool(re.match(time, rows))


def _raise(error: OSError) -> None:
    raise error


def _json(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none."""
    try:
        found = json.loads(_head(path, _HEAD))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _begins(path: str, magic: bytes) -> bool:
    """Whether a plain file begins with some bytes."""
    return _head(path, len(magic)) == magic


def _head(path: str, size: int) -> bytes:
    """Return the first bytes of a plain file; none of what is no such file."""
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read(size)
