"""What every source gives: per channel, images at times, which `series` then joins into aligned frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import numpy as np
import numpy.typing as npt

from sunzip.cube import Header, Scale

#: Pixels (Y, X) float32 of an image, and what gives its keywords.
Imaged = tuple[npt.NDArray[np.float32], Callable[[], Header]]

_PROGRESS: ContextVar[Callable[[str, int, int], object] | None] = ContextVar("progress", default=None)


@contextmanager
def watching(progress: Callable[[str, int, int], object]) -> Iterator[None]:
    """Have `progress` told how far sources are looked through that are opened within this.

    Parameters
    ----------
    progress
        Called with what is being done, how many files or images are done, and of how many.

    Examples
    --------
    >>> from sunzip.sources import open_source
    >>> with watching(print):
    ...     source = open_source("synthetic:frames=3,size=32")  # which has no files to look through
    """
    token = _PROGRESS.set(progress)
    try:
        yield
    finally:
        _PROGRESS.reset(token)


def tell_progress(what: str, done: int, total: int) -> None:
    """Tell whoever wants to know, by `watching`, how far looking through a source has come."""
    if (progress := _PROGRESS.get()) is not None:
        progress(what, done, total)


def other_order(told: Sequence[str], order: Sequence[str]) -> bool:
    """Tell whether axes, by the names that a file has for them, are in another order than they are read in.

    Names that are not among those of `order` tell nothing.
    """
    return any(name in order and name != wanted for name, wanted in zip(told, order, strict=True))


class Source(ABC):
    """One store of images; reads nothing but indexes and keywords until `read` is called.

    Attributes
    ----------
    url
        Where it is, as the user wrote it.
    layout
        ``"sdoml-v2"``, ``"sdoml-v1"``, ``"fits"``, ``"hdf5"`` or ``"synthetic"``.
    scale
        Whether AIA pixels are 2×2 means or sums.
    dated
        Where its times come from, for who finds none.
    channels
        The names it holds, in canonical order.
    shape
        (Y, X) of every image it gives.
    counts
        What was found odd and handled while indexing, by a short name that the report prints:
        ``"keyword list too short"``, ``"T_OBS missing"`` …
    skipped
        How many files, and further images in them, indexing passed over as of no use; `counts` says why.
    absent
        Parts of the store that reading found not to be there; the report prints how many. A set, so that what
        several processes found in one store can be joined.
    at_once
        How many parts may be read side by side, so that nobody waits for a far store's answers one by one.
    """

    url: str
    layout: str
    scale: Scale
    dated: str = "its own"
    channels: tuple[str, ...]
    shape: tuple[int, int]
    counts: Counter[str]
    skipped: int = 0
    absent: Set[tuple[str, int, int]] = frozenset()
    at_once: int = 1

    def skip(self, why: str, number: int = 1) -> None:
        """Count files or images that are passed over."""
        self.counts[why] += number
        self.skipped += number

    @abstractmethod
    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC, in the store's own order; NaT where a row has no usable time."""

    @abstractmethod
    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image: (Y, X) float32, NaN where there is no measurement; thread-safe.

        Raises
        ------
        InputError
            If the bytes cannot be read; the message names the file. `UnreadableError` if that file is
            damaged, and but one of many.
        """

    def parts(self, channel: str, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return for each row the number of the part of the store that must be fetched for it."""
        return rows.astype(np.int64)

    def read_part(self, channel: str, rows: Sequence[int], again: bool) -> list[Imaged]:
        """Read images that lie in one part, as `image`, but not to be written to.

        Parameters
        ----------
        channel, rows
            Which.
        again
            Whether others of that part will be asked for soon.
        """
        return [self.image(channel, row) for row in rows]

    def prepare(self, channel: str, row: int) -> None:
        """Have at hand what is read once for many images, one of them given."""
        return

    @abstractmethod
    def header(self, channel: str, row: int) -> Header:
        """Return the keywords of one image, exactly as stored, absent ones left out."""

    def image(self, channel: str, row: int) -> Imaged:
        """Read one image, and what gives its keywords, which those without a measurement do not need."""
        return self.read(channel, row), partial(self.header, channel, row)

    @abstractmethod
    def stored_bytes(self) -> int | None:
        """Bytes that the images occupy in the store, or None if the store cannot say cheaply."""
