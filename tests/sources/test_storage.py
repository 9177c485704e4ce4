"""Stores behind HTTP that give nothing: each is told as what it is, not as absence."""

from __future__ import annotations

import builtins
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import sunzip
from sunzip.errors import InputError
from sunzip.sources.storage import Storage, reason

aiohttp = pytest.importorskip("aiohttp")

JOBS: dict[str, Callable[[str, Path], object]] = {
    "info": lambda url, _: sunzip.info(f"{url}/sun.lat"),
    "decompress": lambda url, folder: sunzip.decompress(f"{url}/sun.lat", folder / "sun.h5"),
    "compress a file": lambda url, folder: sunzip.compress(f"{url}/cube.h5", folder / "sun.lat"),
    "compress a store": lambda url, folder: sunzip.compress(f"{url}/sun.zarr", folder / "sun.lat"),
}


class Refusing(BaseHTTPRequestHandler):
    """Answers with the status that its path begins with; with 1 none, with 0 after the test is over."""

    over: threading.Event

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        if status == 1:
            self.wfile.write(b"PK\n" * 100)
            return
        if not status:
            self.over.wait(60)
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Refusing.over = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        Refusing.over.set()
        http.shutdown()
        thread.join()


def told(job: str, url: str, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        JOBS[job](url, folder)
    assert list(folder.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(url)
    return message.partition(": ")[2]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "nothing is there; check the path"),
        (410, "nothing is there; check the path"),
        (401, "access is denied (HTTP 401 Unauthorized); check the URL, and whether it can be read without"),
        (403, "access is denied (HTTP 403 Forbidden); check the URL, and whether it can be read without"),
        (418, "the server refuses (HTTP 418 I'm a Teapot); check the URL"),
        (429, "the server cannot do it now (HTTP 429 Too Many Requests); try again later"),
        (500, "the server cannot do it now (HTTP 500 Internal Server Error); try again later"),
        (1, "the server refuses (HTTP 400 Bad status line); check the URL"),
    ],
)
def test_what_a_server_refuses_is_told_with_its_answer(
    server: str, tmp_path: Path, job: str, status: int, words: str
) -> None:
    assert told(job, f"{server}/{status}", tmp_path).startswith(words)


@pytest.mark.parametrize("job", JOBS)
def test_a_server_out_of_reach_is_no_absence(
    tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        message = told(job, f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path)
    assert message.startswith("the server cannot be reached (Cannot connect to host 127.0.0.1:")
    assert message.endswith("; check the address and the network")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = told(job, "http://sun.invalid", tmp_path)
    assert message.startswith("the server cannot be reached (Cannot connect to host sun.invalid:80")
    assert "Name or service not known" in message


@pytest.mark.parametrize("job", JOBS)
def test_a_server_that_does_not_answer_is_no_absence(
    server: str, tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "http", {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.2)}})
    words = "the server does not answer in time; check the network, or try again later"
    message = told(job, f"{server}/0", tmp_path)
    assert message.removeprefix("cannot be opened: ") == words


def test_what_is_no_url_is_called_so(tmp_path: Path) -> None:
    assert told("info", "http://", tmp_path).startswith("is no URL that can be asked")


def test_what_is_denied_here_speaks_of_owner_and_mode_and_not_of_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.0.0").write_bytes(b"")
    storage = Storage(str(tmp_path / "in"))

    def denied(path: str, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    # As modes would have it for anybody but root.
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", denied)
        with pytest.raises(InputError) as caught:
            storage.read("0.0.0", limit=1)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/in/0.0.0: cannot be read: permission is denied; look at the owner")
    assert "--anon" not in message
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        with pytest.raises(InputError, match="cannot be listed: permission is denied; look at the owner"):
            storage.list()
    assert reason(PermissionError("Forbidden")).startswith("access is denied (Forbidden); check the cred")
