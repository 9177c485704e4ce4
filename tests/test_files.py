"""A file that has its name is whole: what breaks off, replaces nothing and leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sunzip.errors import OutputError
from sunzip.files import put


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
