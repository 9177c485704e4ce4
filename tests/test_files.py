"""A file that has its name is whole: what breaks off, replaces nothing and leaves nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sunzip.errors import InputError, OutputError
from sunzip.files import Aside, put, read_within


def test_files_are_written_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old, and longer")
    put({tmp_path / "a": b"new", str(tmp_path / "b"): b""})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new", "b": b""}


def test_what_is_written_aside_spares_what_is_there(tmp_path: Path) -> None:
    for name in ("a.partial", "a.partial.1"):
        (tmp_path / name).write_bytes(b"someone's")
    put({tmp_path / "a": b"new"})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert {p.read_bytes() for p in tmp_path.glob("a.*")} == {b"someone's"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_what_is_replaced_keeps_its_mode_but_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "b").symlink_to("a")
    put({tmp_path / "a": b"new", tmp_path / "b": b"new", tmp_path / "c": b"new"})
    modes = [stat.S_IMODE((tmp_path / name).lstat().st_mode) for name in "abc"]
    assert modes[0] == 0o600
    assert modes[1] == modes[2]


@pytest.mark.parametrize("broken", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_what_breaks_off_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: BaseException
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    class Full:
        """The second of two files that are written finds no room."""

        def __init__(self, file: object) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> None:
            self._file.write(data[:1])  # type: ignore[attr-defined]
            if data == b"second":
                raise broken

    monkeypatch.setattr("builtins.open", lambda *args, real=open: Full(real(*args)))
    expected = pytest.raises(OutputError, match="b: cannot be written: No space left")
    with expected if broken.args else pytest.raises(KeyboardInterrupt):
        put({tmp_path / "a": b"first", tmp_path / "b": b"second"})
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


@pytest.fixture
def marks(tmp_path: Path) -> None:
    """Only on some file systems can what a killed run left be told from what others put there."""
    try:
        os.setxattr(tmp_path, "user.sunzip.test", b"")
    except (AttributeError, OSError):
        pytest.skip("needs extended attributes")
    os.removexattr(tmp_path, "user.sunzip.test")


KILLED = """
import os, signal, sys
from sunzip.files import Aside
aside = Aside(sys.argv[1], folder=sys.argv[2] == "folder")
(aside.path / "half" if aside.path.is_dir() else aside.path).write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, kind: str) -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a"), kind], check=False)
        assert done.returncode == -signal.SIGKILL
        assert os.listdir(tmp_path) == ["a.partial"]
    aside = Aside(tmp_path / "a", folder=kind == "folder")
    assert aside.path == tmp_path / "a.partial"
    assert not (os.listdir(aside.path) if kind == "folder" else aside.path.read_bytes())


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("folder", [False, True])
def test_what_could_not_be_removed_is_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: None, folder: bool
) -> None:
    def busy(*_: object, **__: object) -> None:
        if not folder:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "unlink", busy)
    monkeypatch.setattr(shutil, "rmtree", busy)
    left = Aside(tmp_path / "a", folder=folder)
    left.remove()
    monkeypatch.undo()
    assert left.path.exists()
    again = Aside(tmp_path / "a", folder=folder)
    assert again.path == left.path
    again.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_put_there_while_it_is_removed_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = Aside(tmp_path / "a", folder=True)
    removes = [lambda *_, **__: None, shutil.rmtree]
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **more: removes.pop(0)(*args, **more))
    aside.remove()
    assert not list(tmp_path.iterdir())


def test_what_others_hold_or_made_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    held = Aside(path)
    # One of another machine, or of this one before it was started anew.
    (tmp_path / "a.partial.1").write_text("precious")
    os.setxattr(tmp_path / "a.partial.1", "user.sunzip.aside", b"another")
    # One that somebody else put there under the name of a run that is done.
    done = Aside(path)
    done.release()
    done.path.write_text("precious")
    kept = tmp_path / "kept"
    left = Aside(tmp_path / "b")
    os.link(left.path, kept)
    del left
    (tmp_path / "a.partial.3").symlink_to(kept)
    put({path: b"new"})
    assert sorted(os.listdir(tmp_path)) == [
        "a", "a.partial", "a.partial.1", "a.partial.2", "a.partial.3", "b.partial", "kept",
    ]  # fmt: skip
    assert not os.listxattr(path)
    del held
    put({path: b"newer"})
    assert not (tmp_path / "a.partial").exists()


def test_no_more_is_read_than_a_file_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sunzip.files._PART", 7)
    for size in (0, 6, 7, 100):
        (tmp_path / "f").write_bytes(bytes(range(size)))
        assert read_within(tmp_path / "f", 100, "") == bytes(range(size))
    (tmp_path / "f").write_bytes(bytes(101))
    with pytest.raises(InputError, match=r"f: has more than 100 bytes; a page has 50$"):
        read_within(tmp_path / "f", 100, "a page has 50")
    for name, why in (("none", "No such file"), ("", "Is a directory")):
        with pytest.raises(InputError, match=f"cannot be read: {why}"):
            read_within(tmp_path / name, 100, "")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no file without an end")
def test_what_has_no_size_is_not_read_without_end() -> None:
    with pytest.raises(InputError, match="has more than 3,000,000 bytes"):
        read_within("/dev/zero", 3_000_000, "")
