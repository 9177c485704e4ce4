"""What every sink does alike: write aside, rename at the end, never overwrite, one clear error line."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from sunzip.channels import canonical
from sunzip.cube import Cube, Scale
from sunzip.errors import OutputError, SunzipError
from sunzip.files import Aside

#: The attribute of HDF5 files and Zarr groups that says that sunzip wrote them, and how they are laid out.
MARK = "sunzip_layout"


class Target(ABC):
    """A file or folder being written, which has its final name only after `close`.

    Until then everything is at ``<path>.partial`` (with a number appended if that is in use, see
    `sunzip.files.Aside`), so that a run that breaks leaves nothing that looks finished. Used as a context
    manager, an exception aborts.

    Parameters
    ----------
    path
        Target that does not exist yet, in a folder that does.

    Raises
    ------
    OutputError
        If the target exists, its folder does not, or nothing can be written there.
    """

    #: Whether the target is one file; the others are folders.
    _is_file: ClassVar[bool] = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open = False
        refuse(self.path)
        with self._one_line():
            self._aside = Aside(self.path, folder=not self._is_file)
        self._partial = self._aside.path
        self._open = True
        try:
            with self._one_line():
                self._begin()
        except BaseException as error:
            self._give_up(error)
            raise

    def close(self) -> None:
        """Finish, and give the target its name; does nothing the second time.

        Raises
        ------
        OutputError
            If the last bytes cannot be written, or the target has come into being meanwhile; then
            nothing of this run is left.
        """
        if not self._open:
            return
        try:
            with self._one_line():
                self._finish()
                _refuse_existing(self.path)
                self._aside.release()
                os.rename(self._partial, self.path)
        except BaseException as error:
            self._give_up(error)
            raise
        self._open = False

    def abort(self) -> None:
        """Drop all that was written; does nothing after `close`. Never raises an `OSError`."""
        if not self._open:
            return
        self._open = False
        self._discard()
        self._aside.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Drop all that was written, and have the error tell what is left nevertheless."""
        if not self._open:
            return
        self.abort()
        if os.path.lexists(self._partial):
            left = f"{self._partial} could not be removed"
            if isinstance(error, SunzipError):
                raise type(error)(f"{error}; {left}") from error
            error.add_note(left)

    @abstractmethod
    def _begin(self) -> None:
        """Prepare `_partial`, which exists and is empty."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is still held, and let go of every handle."""

    def _discard(self) -> None:  # noqa: B027 (most targets hold nothing between two calls)
        """Let go of every handle, without an error, before `_partial` is removed."""

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn what a full disk or a missing permission raises into an `OutputError` of one line."""
        try:
            yield
        except OSError as error:
            reason = " ".join((error.strerror or str(error)).split())
            raise OutputError(f"{self.path}: cannot be written: {reason}") from error


def refuse(path: Path) -> None:
    """Refuse a target that exists or whose folder does not: also for those who ask before long work.

    Raises
    ------
    OutputError
        If so.
    """
    _refuse_existing(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists already; remove it or choose another name")


def replaceable(path: str) -> str:
    """Return where a target that exists really is, so that it can be renamed, by names that do not need it.

    A link stays the link, which is what is replaced.

    Raises
    ------
    OutputError
        If it is the folder in which the program runs, or one around it.
    """
    bare = path.rstrip("/") or path
    folder, name = os.path.split(bare)
    if name in ("", os.curdir, os.pardir):
        where = os.path.realpath(bare)
    else:
        where = os.path.join(os.path.realpath(folder), name)
    if not os.path.islink(where) and Path(where) in (here := Path.cwd(), *here.parents):
        raise OutputError(f"{path}: is the folder you are in, or holds it; go elsewhere to replace it")
    return where


class Sink(Target):
    """A target of one of the layouts of cubes, which go in in time order.

    Parameters
    ----------
    path
        As `Target`.
    channels
        The channels that every cube will have; any spelling, put into canonical order.
    shape
        (Y, X) of every image.
    scale
        What AIA pixels mean, in the layouts that can say so; the others convert to their own.
    about
        What is to be said of all images, in the layouts that have a place for it.

    Raises
    ------
    OutputError
        As `Target`.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channels: Sequence[str],
        shape: tuple[int, int],
        scale: Scale,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.channels = canonical(channels)
        self.shape = shape
        self.scale = scale
        self._about = about or {}
        self._given_up = False
        super().__init__(path)

    def write(self, cube: Cube) -> None:
        """Append the frames of a cube, later than all before.

        Raises
        ------
        OutputError
            If the bytes cannot be written.
        ValueError
            If the cube has other channels or another image size than the sink was opened for.
        """
        if not self._open:
            raise ValueError(f"{self.path}: write after close or abort")
        if cube.channels != self.channels or cube.data.shape[2:] != self.shape:
            raise ValueError(
                f"{self.path}: opened for {self.channels} {self.shape}, "
                f"given {cube.channels} {cube.data.shape[2:]}"
            )
        with self._one_line():
            self._write(cube.to_scale(self.scale))

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Have what another thread writes end soon if an exception ends the block: it will be dropped."""
        try:
            yield
        except BaseException:
            self._given_up = True
            raise

    @abstractmethod
    def _write(self, cube: Cube) -> None:
        """Append a cube that is in the sink's scale already, frame by frame as `_frames` has them."""

    def _frames(self, cube: Cube) -> Iterator[int]:
        """Yield the numbers of a cube's frames, as long as anybody wants them."""
        for t in range(len(cube)):
            if self._given_up:
                return
            yield t


def taken_at(cube: Cube, t: int, c: int) -> np.datetime64:
    """When an image was taken, ms UTC; where that is not known, the nominal time of its frame."""
    taken = cube.t_obs[t, c]
    return np.datetime64(cube.time[t] if np.isnat(taken) else taken, "ms")
