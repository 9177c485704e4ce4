"""The layouts that sunzip writes, behind one function, so that callers name a layout and not a class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sunzip.cube import Scale
from sunzip.errors import OutputError
from sunzip.sinks.base import Sink

LAYOUTS = ("sdoml-v2", "sdoml-v1", "hdf5", "fits")

__all__ = ["LAYOUTS", "Sink", "open_sink"]


def open_sink(
    path: str | os.PathLike[str],
    layout: str,
    *,
    channels: Sequence[str],
    shape: tuple[int, int],
    scale: Scale = Scale.MEAN,
    about: Mapping[str, Any] | None = None,
) -> Sink:
    """Begin a target in the named layout.

    Parameters
    ----------
    path
        Local path that does not exist yet.
    layout
        One of `LAYOUTS`.
    channels
        The channels that every cube will have.
    shape
        (Y, X) of every image.
    scale
        What AIA pixels mean in an ``hdf5`` target. ``sdoml-v2`` and ``fits`` always hold means and
        ``sdoml-v1`` sums; cubes of the other scale are converted, exactly, as the factor is 4.
    about
        What is to be said of all images, JSON by short names, as `sunzip.archive.Archive.origin` has it: of
        the root in ``hdf5`` and ``sdoml-v2``, cards in ``fits``; ``sdoml-v1`` has no place for it.

    Raises
    ------
    OutputError
        If the layout is unknown, the target exists, its folder does not, or it cannot be written.

    Examples
    --------
    >>> with open_sink("out.h5", "hdf5", channels=["171A"], shape=(512, 512)) as sink:  # doctest: +SKIP
    ...     sink.write(cube)
    """
    if layout == "sdoml-v2":
        from sunzip.sinks.sdoml_v2 import SdomlV2Sink

        return SdomlV2Sink(path, channels=channels, shape=shape, about=about)
    if layout == "sdoml-v1":
        from sunzip.sinks.sdoml_v1 import SdomlV1Sink

        return SdomlV1Sink(path, channels=channels, shape=shape)
    if layout == "hdf5":
        from sunzip.sinks.hdf5 import Hdf5Sink

        return Hdf5Sink(path, channels=channels, shape=shape, scale=scale, about=about)
    if layout == "fits":
        from sunzip.sinks.fits import FitsSink

        return FitsSink(path, channels=channels, shape=shape, about=about)
    raise OutputError(f"{path}: unknown layout {layout!r}; the layouts are {', '.join(LAYOUTS)}")
