"""What lies in a tree of files, told by names alone, so that no layout is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sunzip.channels import NAMES
from sunzip.errors import InputError
from sunzip.sources.storage import Storage

_FITS = (".fits", ".fits.gz", ".fts", ".fts.gz", ".fit", ".fit.gz", ".fz", ".fz.gz")
_HDF5 = (".h5", ".hdf5", ".nc", ".nc4")
_V1 = re.compile(r"(AIA|HMI)\d{8}_\d{4}_\w{2,4}\.npz")


def layout_of(name: str) -> str | None:
    """Name the layout of a file by its name; None if it is of none that is read here."""
    lower = name.lower()
    if lower.endswith(_FITS):
        return "fits"
    if lower.endswith(_HDF5):
        return "hdf5"
    return "sdoml-v1" if _V1.fullmatch(name) else None


class Layouts:
    """The layouts met on a walk through a tree, which may be one only.

    Every walk that is made anyway tells what it meets: listing a large remote tree once more, just for this,
    would take minutes.

    Parameters
    ----------
    storage
        The tree.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._first: dict[str, str] = {}

    @property
    def only(self) -> str | None:
        """The layout met so far; None if none was."""
        return next(iter(self._first), None)

    def look(self, folder: str, files: Iterable[str]) -> None:
        """Take note of the files of one folder.

        Parameters
        ----------
        folder
            Below the root of the tree; ``""`` is the root itself.
        files
            Names of files in it. What is of no known layout has no say.

        Raises
        ------
        InputError
            If there are several layouts by now.
        """
        above, _, last = folder.rpartition("/")
        for name in files:
            if name == ".zarray" and last in NAMES:
                self.met("sdoml-v2", above)
            elif layout := layout_of(name):
                self.met(layout, folder)

    def met(self, layout: str, folder: str) -> None:
        """Take note of one layout in a folder; raises as `look` does."""
        self._first.setdefault(layout, folder)
        if len(self._first) == 1:
            return
        (one, here), (other, there) = sorted(self._first.items())
        if here == there:
            raise InputError(
                f"{self._storage.name(here)}: holds files of several layouts ({one}, {other}); "
                "put them in folders of their own"
            )
        raise InputError(
            f"{self._storage.url}: holds several layouts, {one} in {self._storage.name(here)} and {other} in "
            f"{self._storage.name(there)}; name a folder that holds one of them"
        )
