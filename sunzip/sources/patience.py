"""Patience with servers of HTTP: what one cannot do just now is asked for again, as clients of S3 do it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import Coroutine, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

#: Seconds before each further try, or down to half of that, so that many do not ask at the same moment.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

#: The most seconds that a server may have us wait.
_LONGEST = 60.0

#: Seconds after which nothing is tried again: a server that keeps silent costs minutes each time.
_PATIENCE = 600.0

#: Seconds until a connection must be made.
_CONNECT = 30.0

#: Seconds without a single byte after which a server is taken to keep silent.
_SILENCE = 300.0

#: Seconds after which who pauses looks whether to go on pausing.
_GLANCE = 0.1

#: What a server means to be able to do later.
_LATER = frozenset({429, 500, 502, 503, 504})

#: Set when the threads end for which something is asked, which then do not want to wait for pauses. fsspec's
#: event loop does its work in the context of the thread that wants it.
_ends: ContextVar[threading.Event | None] = ContextVar("ends", default=None)


@contextlib.contextmanager
def reading_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that read; when it ends, by Ctrl-C perhaps, none of them pauses any more."""
    ends = threading.Event()
    pool = ThreadPoolExecutor(threads, "sunzip", _ends.set, (ends,))
    try:
        yield pool
    finally:
        ends.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _in_vain() -> bool:
    """Whether nobody waits any more for what is asked here."""
    ends = _ends.get()
    return ends is not None and ends.is_set()


async def get_client(**options: Any) -> Any:
    """Return a client of HTTP as fsspec makes one, but with patience."""
    import aiohttp
    from fsspec.implementations import http

    # Left to itself it gives each answer five minutes in all, within which none comes on a slow line that
    # many answers share.
    options.setdefault(
        "timeout", aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
    )
    return _Patient(await http.get_client(**options))


@dataclass(slots=True)
class _Host:
    """What is known of a server.

    Attributes
    ----------
    answered
        Whether it has ever answered. If not, that it cannot be reached is final: its name may be wrong.
    failed
        How often it has failed since it last did what it was asked for. Several requests that were on their
        way together count once, and from then on there is one at a time.
    until
        When the pause ends before which it is not asked.
    turn
        Held by the one that asks while it fails.
    """

    answered: bool = False
    failed: int = 0
    until: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def pause(self) -> None:
        """Wait until it may be asked."""
        while not _in_vain() and (left := self.until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _GLANCE))


class _Patient:
    """A client of HTTP that asks again for what fails to come, unless somebody has seen a part of it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._hosts: dict[str, _Host] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get(self, url: Any, **options: Any) -> _Asked:
        """Ask for what is at a URL. For a size alone, HEAD, fsspec asks so, too, if that fails."""
        return _Asked(self._get(url, options))

    async def _get(self, url: Any, options: dict[str, Any]) -> Any:
        host = self._hosts.setdefault(url.raw_authority, _Host())
        begun, tries = time.monotonic(), 0
        answer: Any = None
        error: Exception | None = None
        while True:
            async with host.turn if host.failed else contextlib.nullcontext():
                await host.pause()
                if tries and _in_vain():
                    break
                asked, answer, error = time.monotonic(), None, None
                try:
                    answer = await self._session.get(url, **options)
                    host.answered = True
                    if answer.status not in _LATER:
                        answer = await _taken(answer, options)
                        host.failed = 0
                        return answer
                except Exception as e:  # aiohttp's own, or the operating system's
                    if answer is not None:
                        answer.close()
                    if not _passes(e, host.answered):
                        raise
                    error = e
                tries += 1
                host.failed += asked >= host.until
                # It may be this that fails for good, or all that the server has.
                n = max(tries, host.failed)
                now = time.monotonic()
                if n > len(_PAUSES) or now > begun + _PATIENCE:
                    break
                wait = _PAUSES[n - 1] * random.uniform(0.5, 1)
                if error is None:
                    wait = max(wait, _wished(answer.headers.get("Retry-After", "")))
                    answer.close()
                host.until = max(host.until, now + min(wait, _LONGEST))
        if error is not None:
            raise error
        return answer  # of which the caller makes an error


class _Asked:
    """A request as aiohttp has them: to be awaited for its answer, or entered for as long as that is read."""

    def __init__(self, asked: Coroutine[Any, Any, Any]) -> None:
        self._asked = asked
        self._answer: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._asked.__await__()

    async def __aenter__(self) -> Any:
        self._answer = await self._asked
        await self._answer.__aenter__()
        return self._answer

    async def __aexit__(self, *error: object) -> None:
        await self._answer.__aexit__(*error)


class _Part:
    """An answer that may be longer than the part of a file that was asked for, or without end."""

    def __init__(self, answer: Any, most: int) -> None:
        self._answer = answer
        self._most = most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer, name)

    async def read(self) -> bytes:
        """Read it as far as it was asked for; what is longer is refused before memory is taken."""
        data = bytearray()
        async for part in self._answer.content.iter_any():
            data += part
            if len(data) > self._most:
                self._answer.close()
                raise OSError("the server does not give parts of files; fetch the file first")
        return bytes(data)


async def _taken(answer: Any, options: Mapping[str, Any]) -> Any:
    """Read an answer if it is no longer than what was asked for, as a connection may break in its middle.

    Raises
    ------
    OSError
        If it is said to be another part of the file.
    """
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", (options.get("headers") or {}).get("Range", ""))
    if not asked or answer.status >= 400:
        return answer
    first, last = int(asked[1]), int(asked[2])
    # A cache on the way may give what it has in place of what it is asked for, and many files have no
    # checksum that would tell.
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status == 206 and given:
        end = int(given[2]) if given[3] == "*" else int(given[3]) - 1
        if (int(given[1]), int(given[2])) != (first, min(last, end)):
            raise OSError("the server gives other parts of files than it is asked for; fetch the file first")
    most, length = last - first + 1, answer.content_length
    if length is None or length > most or "Content-Encoding" in answer.headers:
        return _Part(answer, most)
    await answer.read()
    return answer


def _passes(error: Exception, answered: bool) -> bool:
    """Whether what went wrong may go well another time."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorError):
        return answered and not isinstance(error, aiohttp.ClientSSLError)
    broken = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)
    return isinstance(error, (TimeoutError, ConnectionError, *broken))


def _wished(after: str) -> float:
    """Return the seconds that a server has us wait, told as such or as a date; 0 if it does not tell."""
    with contextlib.suppress(ValueError, TypeError):
        if after.isascii() and after.isdecimal():
            return float(after)
        return (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()
    return 0.0
