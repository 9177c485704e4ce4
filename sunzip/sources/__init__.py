"""Sources: the stores that images come from, and `open_source`, which tells one layout from another."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from sunzip.channels import NAMES
from sunzip.errors import InputError

if TYPE_CHECKING:
    from sunzip.sources.base import Source
    from sunzip.sources.storage import Storage

__all__ = ["layout_at", "open_source"]

_LOOKED_FOR = (
    "a Zarr format 2 store with SDOML channels, *.npz named as SDOML v1 does, *.fits, *.fits.gz, *.fts, "
    "or an .h5, .hdf5, .nc or .nc4 file"
)
#: How many folders are looked into before a tree counts as one of nothing known.
_MAX_FOLDERS = 10_000


def open_source(
    url: str, *, hmi: str | None = None, anon: bool = False, degradation: str | None = None
) -> Source:
    """Open a store of solar images, whatever its layout.

    Parameters
    ----------
    url
        A local path, an fsspec URL such as ``s3://…``, or ``synthetic:frames=64,size=512,seed=0,…``.
    hmi
        The second store of SDOML v2, with Bx, By and Bz.
    anon
        Ask S3 without credentials.
    degradation
        Folder with tables of AIA's degradation, for FITS files whose header has no DEG_COR; other layouts
        have no use for it.

    Raises
    ------
    InputError
        If nothing is there, nothing in it is recognised, it holds several layouts, or what is recognised
        cannot be used.
    """
    layout = layout_at(url, anon)
    if hmi is not None and layout != "sdoml-v2":
        raise InputError(
            f"{url}: is of layout {layout}, and hmi (--hmi) is for a first source of SDOML v2; "
            f"name {hmi} as one more source instead"
        )
    if layout == "synthetic":
        return _synthetic(url)
    if layout == "sdoml-v2":
        from sunzip.sources.sdoml_v2 import SdomlV2

        return SdomlV2(url, hmi=hmi, anon=anon)
    if layout == "sdoml-v1":
        from sunzip.sources.sdoml_v1 import SdomlV1

        return SdomlV1(url, anon=anon)
    if layout == "hdf5":
        from sunzip.sources.hdf5 import Hdf5

        return Hdf5(url, anon=anon)
    from sunzip.sources.fits import Fits

    return Fits(url, degradation=degradation, anon=anon)


def layout_at(url: str, anon: bool = False) -> str:
    """Name the layout of what lies at a path or URL.

    Raises
    ------
    InputError
        If nothing is there, nothing in it is recognised, or it holds several layouts.
    """
    from sunzip.sources.layouts import layout_of
    from sunzip.sources.storage import Storage

    if url.startswith("synthetic:"):
        return "synthetic"
    bare = url.rstrip("/").lower()
    if bare.endswith(".lat"):
        raise InputError(f"{url}: is a sunzip archive, no source of images; use `sunzip decompress`")
    if bare.endswith(".lat.partial"):
        raise InputError(f"{url}: is an unfinished archive; continue the run that began it with --resume")
    storage = Storage(url, anon)
    if not storage.isdir():
        # Of a chain of URLs the last one only says where the archive around the file is; a query signs a URL.
        path = storage.root.partition("?")[0] if storage.root.startswith("http") else storage.root
        layout = layout_of(path.rsplit("/", 1)[-1])
        if layout is None:
            raise InputError(f"{url}: is no kind of file that is known here; looked for {_LOOKED_FOR}")
        return layout
    names = storage.list()
    if not names:
        raise InputError(f"{url}: the folder is empty")
    if ".zgroup" in names or ".zarray" in names or _holds_channels(storage, "", names):
        return "sdoml-v2"
    if "zarr.json" in names:
        raise InputError(f"{url}: is a Zarr format 3 store; SDOML v2 is format 2 (an archive is named *.lat)")
    return _of_tree(storage, names)


def _holds_channels(storage: Storage, folder: str, names: dict[str, tuple[bool, int | None]]) -> bool:
    """Tell whether a folder without .zgroup, as a partial copy has none, holds arrays of channels."""
    return any(
        is_dir and name in NAMES and ".zarray" in storage.list(f"{folder}/{name}".lstrip("/"))
        for name, (is_dir, _) in names.items()
    )


def _of_tree(storage: Storage, names: dict[str, tuple[bool, int | None]]) -> str:
    """Name the layout of a folder by the first folder in it, from the top, that holds something known.

    SDOML v1 and FITS lie in trees, of which their sources look at every name; a Zarr store is one folder of
    many that may lie side by side, so that what lies beside one is looked for here.
    """
    from sunzip.sources.layouts import Layouts

    layouts = Layouts(storage)
    waiting = deque([""])
    for _ in range(_MAX_FOLDERS):
        if not waiting:
            break
        folder = waiting.popleft()
        if folder:
            names = storage.list(folder)
        if folder and (".zgroup" in names or _holds_channels(storage, folder, names)):
            layouts.met("sdoml-v2", folder)
            continue
        layouts.look(folder, (name for name, (is_dir, _) in names.items() if not is_dir))
        if layouts.only == "hdf5":
            raise InputError(
                f"{storage.name(folder)}: holds HDF5 or netCDF files; name one of them, or a folder "
                "of another layout"
            )
        if layouts.only in ("sdoml-v1", "fits"):
            return layouts.only
        waiting.extend(f"{folder}/{name}".lstrip("/") for name, (is_dir, _) in names.items() if is_dir)
    if layouts.only is None:
        raise InputError(f"{storage.url}: nothing in it is recognised; looked for {_LOOKED_FOR}")
    return layouts.only


def _synthetic(url: str) -> Source:
    """Open ``synthetic:frames=64,size=512,seed=0,start=2014-01-01,cadence=12min``; each part is optional."""
    from sunzip.sources.synthetic import Synthetic

    known = ("frames", "size", "seed", "start", "cadence")
    values: dict[str, Any] = {}
    for part in filter(None, url.removeprefix("synthetic:").split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or key in values:
            raise InputError(
                f"{url}: {part!r} is not understood; known are {', '.join(f'{k}=' for k in known)}"
            )
        values[key] = value
    for key in ("frames", "size", "seed"):
        if key in values:
            if not re.fullmatch(r"\d{1,9}", values[key], re.ASCII):
                raise InputError(
                    f"{url}: {key} must be a whole number of up to 9 digits, not {values[key]!r}"
                )
            values[key] = int(values[key])
    source = Synthetic(**values)
    # Reports and messages call a source as whoever asked for it does.
    source.url = url
    return source
