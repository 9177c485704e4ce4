"""Models that a user added: a folder for each, called by its sha256, where the system keeps users' data."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sunzip.errors import InputError, OutputError
from sunzip.files import Aside, sync_folder, write_through

#: The environment variable that names another folder.
VARIABLE = "SUNZIP_MODELS"

#: Beside a model's files: what it is called on this machine, which need not be what its configuration says.
_NAME = "name.txt"

#: Bytes of that file, at most.
_LONGEST = 1 << 10


@dataclass(frozen=True, slots=True)
class Entry:
    """An added model, whole or damaged.

    Attributes
    ----------
    path
        Its folder.
    """

    path: Path

    @property
    def sha256(self) -> str:
        """What its files should hash to."""
        return self.path.name

    @property
    def name(self) -> str | None:
        """What it was last called; None if that was taken from it, or nobody can read it."""
        path = self.path / _NAME
        try:
            # Opening a pipe may wait for ever.
            if not path.is_file() or path.stat().st_size > _LONGEST:
                return None
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        return text if text and text.isprintable() else None

    def _named(self) -> int:
        """When it was called so."""
        try:
            return (self.path / _NAME).stat().st_mtime_ns
        except OSError:
            return 0


def folder() -> Path | None:
    """Return the folder of added models, which need not exist; None where there can be none.

    That is ``SUNZIP_MODELS`` if it is set, and else what the platform's custom is.
    """
    if named := os.environ.get(VARIABLE):
        if "://" in named:
            return None
        return Path(os.path.abspath(os.path.expanduser(named)))
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    elif sys.platform == "darwin":
        root = os.path.join(home, "Library", "Application Support")
    else:
        root = os.environ.get("XDG_DATA_HOME", "")
        # By its specification a relative one is not to be followed.
        if not os.path.isabs(root):
            root = os.path.join(home, ".local", "share")
    # A user without a home, as in some containers, has "~".
    return Path(root, "sunzip", "models") if os.path.isabs(root) else None


def entries() -> list[Entry]:
    """Return all added models, damaged ones too; none if there is no such folder or nobody may read it."""
    root = folder()
    if root is None:
        return []
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    return [Entry(root / name) for name in names if re.fullmatch("[0-9a-f]{64}", name)]


def names() -> dict[str, Entry]:
    """Return what each name means: of several models, as two runs at once may leave them, the last."""
    found = sorted(entries(), key=lambda entry: (entry._named(), entry.sha256))
    return {name: entry for entry in found if (name := entry.name)}


def place(sha256: str) -> Entry:
    """Return where a model is kept, or is to be.

    Raises
    ------
    OutputError
        If there is no folder for it.
    """
    root = folder()
    if root is None:
        said = f"{VARIABLE} names a URL" if os.environ.get(VARIABLE) else "this user has no home folder"
        raise OutputError(f"models are kept on this machine, and {said}; name a folder by {VARIABLE}")
    return Entry(root / sha256)


def put(entry: Entry, files: Mapping[str, bytes]) -> None:
    """Keep a model's files: aside, and on the disk, before they are there under its name.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    path = entry.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Aside(path, folder=True)
        try:
            for name, data in files.items():
                write_through(aside.path / name, data)
            sync_folder(aside.path)
            if not path.is_dir() and _renamed(aside, path):
                sync_folder(path.parent)
                return
            # Damaged there; or another run was faster, whose files are the same.
            for name in files:
                os.replace(aside.path / name, path / name)
            sync_folder(path)
        except BaseException:
            aside.remove()
            raise
        aside.remove()
    except OSError as error:
        raise _unwritable(path, error) from None


def _renamed(aside: Aside, path: Path) -> bool:
    """Whether a folder could be given its name, which another run may have taken meanwhile."""
    try:
        os.rename(aside.path, path)
    except OSError:
        if not path.is_dir():
            raise
        return False
    aside.release()
    return True


def call(entry: Entry, name: str | None) -> None:
    """Give a model a name, or take it from it.

    Raises
    ------
    OutputError
        If that cannot be written.
    """
    path = entry.path / _NAME
    try:
        if name is None:
            path.unlink(missing_ok=True)
        else:
            aside = Aside(path)
            try:
                write_through(aside.path, name.encode())
                aside.release()
                os.replace(aside.path, path)
            except BaseException:
                aside.remove()
                raise
        sync_folder(entry.path)
    except OSError as error:
        raise _unwritable(entry.path, error) from None


def remove(entry: Entry, files: Iterable[str]) -> None:
    """Remove a model.

    Parameters
    ----------
    entry
        Which.
    files
        The names of a model's files; if there is anything else in its folder, nothing is removed.

    Raises
    ------
    InputError
        If there is anything else.
    OutputError
        If it cannot be removed.
    """
    try:
        if entry.path.is_symlink():
            entry.path.unlink()
            return
        ours = {*files, _NAME}
        for name in sorted(os.listdir(entry.path)):
            if name.partition(".partial")[0] not in ours:
                raise InputError(f"{entry.path}: {name} in it is not of sunzip; remove the folder by hand")
        shutil.rmtree(entry.path)
        with suppress(OSError):
            sync_folder(entry.path.parent)
    except OSError as error:
        raise OutputError(f"{entry.path}: cannot be removed: {error.strerror or error}") from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}; {VARIABLE} can name another folder for models"
    )
