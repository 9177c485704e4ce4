"""Single files: written whole or not at all, read within limits, called by names that are safe to show."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from sunzip.errors import InputError, OutputError

#: The extended attribute of what is written aside.
_MARK = "user.sunzip.aside"

#: So many names are looked at for what killed runs have left.
_LOOKED_AT = 10

#: Bytes that are asked for at a time.
_PART = 1 << 20

#: Seconds before each try to remove what is aside: zarr's threads may still be putting something there.
_PAUSES = (0.0, 0.1, 0.5)


def printable(text: str) -> str:
    r"""Return text without what would steer a terminal or is no character: names come from strangers.

    Examples
    --------
    >>> printable("sun\n\udcff.lat") == "sun\ufffd\ufffd.lat"
    True
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class Aside:
    """An empty file or folder beside a path, to write there what is to have that name once it is whole.

    It is called ``<path>.partial``, with a number appended if that is in use: nobody's file is overwritten,
    and two runs never share one. What a killed run has left there is removed first, if this can be told: it
    bears a mark of this machine since it was started, and a lock on it that nobody holds any more. Without
    extended attributes or locks it stays.

    Parameters
    ----------
    path
        What it is beside.
    folder
        Whether it is a folder.

    Attributes
    ----------
    path
        Where it is.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, folder: bool = False) -> None:
        whole = Path(path)
        for number in range(_LOOKED_AT):
            _remove_left(_numbered(whole, number))
        number = 0
        while True:
            self.path = _numbered(whole, number)
            try:
                if folder:
                    self.path.mkdir()
                else:
                    self.path.touch(exist_ok=False)
            except FileExistsError:
                number += 1
                continue
            break
        self._fd = -1
        self._held: weakref.finalize[..., Aside] | None = None
        self._hold()

    def _hold(self) -> None:
        """Lock it, and then mark it, so that whoever finds the mark can find the lock."""
        mark = _mark()
        if not mark:
            return
        import fcntl

        with contextlib.suppress(OSError):
            self._fd = os.open(self.path, os.O_RDONLY)
            self._held = weakref.finalize(self, os.close, self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.setxattr(self._fd, _MARK, mark)

    def remove(self) -> None:
        """Remove it and let go of it. What cannot be removed keeps its mark, by which the next run does."""
        for pause in _PAUSES:
            time.sleep(pause)
            if self.path.is_dir():
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
            if not os.path.lexists(self.path):
                break
        if self._held is not None:
            self._held()

    def release(self) -> None:
        """Let go of it before it is renamed: what it is now nobody takes for something left."""
        if self._held is not None and self._held.alive:
            with contextlib.suppress(OSError):
                os.removexattr(self._fd, _MARK)
            self._held()


def locked(folder: str | os.PathLike[str]) -> int | None:
    """Lock a folder that runs go on with, so that no two write it at a time.

    Returns
    -------
    A descriptor that holds the lock until it is closed; None where there are no locks.

    Raises
    ------
    OutputError
        If another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another run may have finished, and removed it, since it was opened.
        ours = os.path.isdir(folder) and os.path.samestat(os.fstat(fd), os.stat(folder))
    except BlockingIOError:
        ours = False
    except OSError:  # a file system that knows no locks
        os.close(fd)
        return None
    if not ours:
        os.close(fd)
        raise OutputError(
            f"{os.fspath(folder)}: another run writes it; wait for that, or name another target"
        )
    return fd


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.partial{f'.{number}' if number else ''}")


def _mark() -> bytes:
    """Return what this machine marks by until it is started again; nothing where there are no marks.

    Locks of another machine may not be seen from here, even on a disk that both share.
    """
    if sys.platform != "linux":
        return b""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""


def _remove_left(name: Path) -> None:
    """Remove what is of this name if a run of this machine has left it that is no more."""
    if not os.path.lexists(name) or not (mark := _mark()):
        return
    import fcntl

    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its run may have finished, and renamed it, since it was opened.
            ours = os.getxattr(fd, _MARK) == mark and os.path.samestat(os.fstat(fd), os.lstat(name))
            if ours and name.is_dir():
                shutil.rmtree(name)
            elif ours:
                name.unlink()
        finally:
            os.close(fd)


def keep_mode(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Let what is to take something's place be read and written by the same people.

    Parameters
    ----------
    old
        What may be there already; a link, or what is of another kind than the new one, has no say.
    new
        What is written aside.
    """
    with contextlib.suppress(OSError):
        before = os.lstat(old).st_mode
        if stat.S_IFMT(before) == stat.S_IFMT(os.lstat(new).st_mode):
            os.chmod(new, stat.S_IMODE(before))


def put(files: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Write files aside and rename them once all are there, so that what cannot be finished replaces nothing.

    Parameters
    ----------
    files
        Contents by path; what is there is replaced.

    Raises
    ------
    OutputError
        If one cannot be written; then none has changed, unless renaming failed, and nothing is left aside.
    """
    asides: dict[str, Aside] = {}
    path = ""
    try:
        for given, data in files.items():
            path = os.fspath(given)
            asides[path] = Aside(path)
            with open(asides[path].path, "wb") as file:
                file.write(data)
        for path, aside in asides.items():
            aside.release()
            keep_mode(path, aside.path)
            os.replace(aside.path, path)
    except BaseException as error:
        for aside in asides.values():
            aside.remove()
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


def read_within(path: str | os.PathLike[str], most: int, usual: str) -> bytes:
    """Read a local file from its beginning to its end, if it has no more bytes than its like ever have.

    Parameters
    ----------
    path
        The file, which may be a pipe.
    most
        Bytes that it may have.
    usual
        What such files have, for the message about one that has more.

    Raises
    ------
    InputError
        If it has more, or cannot be read.
    """
    name = os.fspath(path)
    data = bytearray()
    try:
        with open(path, "rb") as file:
            # Asked for its size, a pipe or a device says 0; and to ask for all at once would allocate that.
            while len(data) <= most and (part := file.read(min(_PART, most + 1 - len(data)))):
                data += part
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise InputError(f"{name}: has more than {most:,} bytes; {usual}")
    return bytes(data)


def write_through(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, and bring it to the disk.

    Raises
    ------
    OSError
        If that fails.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring to the disk what a folder says is in it: a rename survives losing power only then.

    Raises
    ------
    OSError
        If that fails, where there is such a thing.
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except (
        PermissionError
    ):  # who may write there need not be allowed to list it; on Windows nobody can open one
        return
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems have no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
