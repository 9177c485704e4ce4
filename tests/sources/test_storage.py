"""Stores behind HTTP that give nothing: each is told as what it is, not as absence."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
from http_server import serving

import sunzip
from sunzip.archive._place import open_bytes
from sunzip.errors import InputError
from sunzip.sources import patience
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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.01,) * len(patience._PAUSES))


@pytest.fixture
def server() -> Iterator[str]:
    Refusing.over = threading.Event()
    with serving(Refusing) as url:
        yield url
        Refusing.over.set()


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
        (1, "the answer is no HTTP ("),
    ],
)
def test_what_a_server_refuses_is_told_with_its_answer(
    server: str, tmp_path: Path, job: str, status: int, words: str
) -> None:
    assert told(job, f"{server}/{status}", tmp_path).startswith(words)


@pytest.mark.parametrize("job", JOBS)
def test_a_server_that_sends_on_without_end_is_called_so(tmp_path: Path, job: str) -> None:
    """It was said to refuse with HTTP 0, which no server does."""

    class Sending(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    with serving(Sending) as url:
        message = told(job, f"{url}/a", tmp_path)
    assert message.startswith("the server sends from one URL to the next without end; check the URL")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {"Location": "file:///etc/passwd"},
            "the server sends to what is no URL of HTTP (file:///etc/passwd)",
        ),
        ({"Location": "http://:0:/"}, "the server sends to what is no URL of HTTP (http://:0:/"),
        ({"Content-Encoding": "gzip"}, "the answer comes broken (400, message"),
    ],
)
def test_an_answer_that_cannot_be_followed_or_unpacked_is_not_called_out_of_reach(
    answer: dict[str, str], words: str
) -> None:
    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if "Location" in answer else 200)
            for name, value in answer.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"not gzip!")

    async def ask(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            await answer.read()

    with serving(Odd) as url, pytest.raises(aiohttp.ClientError) as caught:
        asyncio.run(ask(url))
    assert reason(caught.value).startswith(words)


@pytest.mark.parametrize("name", ["sun.fits", "cube.h5"])
def test_a_server_that_tells_no_length_is_not_said_to_have_damaged_files(tmp_path: Path, name: str) -> None:
    class Unsized(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"SIMPLE  =")

        do_HEAD = do_GET

    with serving(Unsized) as url, pytest.raises(InputError) as caught:
        sunzip.compress(f"{url}/{name}", tmp_path / "sun.lat")
    words = ": its size is unknown, so it cannot be read at random; fetch it first"
    assert str(caught.value).startswith(f"{url}/{name}: cannot be read")
    assert str(caught.value).endswith(words)


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


class Faltering(BaseHTTPRequestHandler):
    """Gives a file, or ranges of it, but fails first: so often as its path says, in the way that it says."""

    DATA = bytes(range(256)) * 40
    over: threading.Event
    lock = threading.Lock()
    asked: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        _, way, times, *file = self.path.split("/")
        if not file:  # their folder, which must be there
            self.do_HEAD()
            return
        with self.lock:
            self.asked[self.path] = self.asked.get(self.path, 0) + 1
            fails = self.asked[self.path] <= int(times)
        first, last = 0, len(self.DATA) - 1
        if given := self.headers["Range"]:
            first, last = (min(int(n), last) for n in given.removeprefix("bytes=").split("-"))
        if fails and way == "silent":
            self.over.wait(60)
            return
        if fails and way == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fails and way.isdecimal():
            self.send_response(int(way))
            self.send_header("Retry-After", "3600" if way == "429" else "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fails and given:
            first, last = first + (way == "shifted"), last - (way == "shortened")
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.DATA)}")
        self.end_headers()
        if fails and way == "slow":
            for part in range(first, last + 1, 1024):
                self.over.wait(0.1)
                self.wfile.write(self.DATA[part : min(part + 1024, last + 1)])
            return
        if self.command == "GET":
            half = (first + last) // 2
            self.wfile.write(self.DATA[first : half if fails and way == "broken" else last + 1])
            self.close_connection = fails

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.DATA)))
        self.end_headers()


@pytest.fixture
def faltering() -> Iterator[str]:
    Faltering.over, Faltering.asked = threading.Event(), {}
    with serving(Faltering) as url:
        yield url
        Faltering.over.set()


def as_archives_are_read(url: str) -> bytes:
    file = open_bytes(url, anon=False)
    return b"".join(file.read([(0, 9000), (9000, file.size - 9000)]))


def as_stores_are_read(url: str) -> bytes:
    folder, _, name = url.rpartition("/")
    return Storage(folder).read(name, limit=1 << 20) or b""


def as_files_are_read(url: str) -> bytes:
    storage = Storage(url)
    with storage.fs.open(storage.root, "rb", block_size=4096) as file:
        return file.read(100) + file.read()


READERS = [as_archives_are_read, as_stores_are_read, as_files_are_read]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("way", ["429", "500", "502", "503", "504", "reset", "broken", "silent"])
def test_what_fails_for_a_moment_is_asked_for_again(
    faltering: str, monkeypatch: pytest.MonkeyPatch, way: str, read: Callable[[str], bytes]
) -> None:
    from fsspec.config import conf

    monkeypatch.setattr(patience, "_LONGEST", 0.02)  # 429 wishes for an hour
    times = 3
    if way == "silent":
        times = 1
        monkeypatch.setitem(conf, "http", {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.3)}})
    assert read(f"{faltering}/{way}/{times}/file") == Faltering.DATA
    assert times < Faltering.asked[f"/{way}/{times}/file"] <= times + 4


@pytest.mark.parametrize("read", READERS)
def test_a_slow_line_is_waited_for(
    faltering: str, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], bytes]
) -> None:
    """Of 32 chunks of 8 MB that share one, none came within the five minutes that aiohttp gives each."""
    from fsspec.config import conf

    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"headers": {"X-Client": "of its own"}}})
    assert read(f"{faltering}/slow/9/file") == Faltering.DATA
    assert Faltering.asked["/slow/9/file"] <= 3  # each part once


@pytest.mark.parametrize("status", [404, 403, 410, 416, 501])
def test_what_is_final_is_asked_for_once(faltering: str, status: int) -> None:
    storage = Storage(f"{faltering}/{status}/1")
    Faltering.asked.clear()
    with contextlib.suppress(InputError):
        storage.read("file", limit=1 << 20)
    assert Faltering.asked == {f"/{status}/1/file": 1}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("way", ["shifted", "shortened"])
def test_other_parts_than_were_asked_for_are_refused(
    faltering: str, way: str, read: Callable[[str], bytes]
) -> None:
    """Pixels are not where they are looked for, and many files have no checksum that would tell."""
    with pytest.raises((InputError, OSError), match="gives other parts of files than it is asked for; fetch"):
        read(f"{faltering}/{way}/999/file")


@pytest.mark.parametrize("read", READERS[:2])
def test_after_the_last_try_the_cause_is_told(faltering: str, read: Callable[[str], bytes]) -> None:
    with pytest.raises(
        InputError, match=r"the server cannot do it now \(HTTP 503 Service Unavail.*try again la"
    ):
        read(f"{faltering}/503/999/file")


def test_many_threads_do_not_make_it_worse(faltering: str) -> None:
    storage = Storage(f"{faltering}/503/999")
    Faltering.asked.clear()
    with ThreadPoolExecutor(30) as pool:
        tasks = [pool.submit(storage.read, "file", limit=1 << 20) for _ in range(30)]
    assert all("HTTP 503" in str(task.exception()) for task in tasks)
    # All at once, one after the other with pauses, and each once more, when it is known that it is in vain.
    assert 30 <= Faltering.asked["/503/999/file"] <= 30 + len(patience._PAUSES) + 30


def test_what_was_reached_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.1,) * 100)
    Faltering.over, Faltering.asked = threading.Event(), {}
    with serving(Faltering) as url:
        storage = Storage(f"{url}/503/0")
    begun = threading.Timer(0.5, lambda: again.enter_context(serving(Faltering, int(url.rpartition(":")[2]))))
    with contextlib.ExitStack() as again:
        begun.start()
        assert storage.read("file", limit=1 << 20) == Faltering.DATA
        begun.join()


def test_threads_that_have_read_all_break_off_no_pauses_of_others(faltering: str) -> None:
    storage = Storage(f"{faltering}/503/3")
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            with patience.reading_pool(1) as pool:
                pool.submit(int).result()

    thread = threading.Thread(target=others)
    thread.start()
    try:
        assert storage.read("file", limit=1 << 20) == Faltering.DATA
    finally:
        done.set()
        thread.join()


def test_ctrl_c_does_not_wait_for_pauses(faltering: str) -> None:
    storage = Storage(f"{faltering}/429/999")
    Faltering.asked.clear()
    start = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), patience.reading_pool(2) as pool:
        task = pool.submit(storage.read, "file", limit=1 << 20)
        while not Faltering.asked:
            time.sleep(0.01)
        time.sleep(0.1)
        assert not task.done()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5
    assert sum(Faltering.asked.values()) == 1


def test_the_end_of_some_threads_is_not_that_of_others(
    faltering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two archives may be made at once, and one of them end, by an error perhaps, while the other pauses."""
    monkeypatch.setattr(patience, "_PAUSES", (0.1,) * 6)
    storage, begun = Storage(f"{faltering}/503/3"), threading.Event()
    Faltering.asked.clear()
    with patience.reading_pool(1) as one:
        task = one.submit(storage.read, "file", limit=1 << 20)
        with patience.reading_pool(1) as other:
            other.submit(lambda: begun.set() or task.result())
            assert begun.wait(10)
        assert task.result() == Faltering.DATA


def test_servers_tell_how_long_to_wait() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert [patience._wished(text) for text in ("7", "", "soon", "-1", "²")] == [7, 0, 0, 0, 0]
    assert 25 < patience._wished(later) <= 30
