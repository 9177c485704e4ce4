"""Reading stores wherever they lie: one face for local paths and fsspec URLs, with errors that help."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sunzip.errors import InputError, how_to_install

#: Bytes that are asked of a stream at once.
_PART = 1 << 20

#: Requests that a process may have under way to a far store: where it takes 0.1 s until an answer comes and
#: each connection gives 40 MB/s, chunks of 8 MB then come at 800 MB/s.
AT_ONCE = 32

#: Held to read from a store whose client is not made for threads. Clients are shared by all who name one
#: store: files in a tar, for instance, have one place in it that is read next.
_TURN = threading.Lock()


class Storage:
    """A read-only view of one file or folder, local or behind any fsspec URL.

    Parameters
    ----------
    url
        A local path or an fsspec URL (``s3://…``, ``memory://…``, ``zip://…::…``).
    anon
        Ask S3 or Google Cloud Storage without credentials; without meaning elsewhere.

    Raises
    ------
    InputError
        If the protocol is unknown, its package is not installed, or nothing is there.
    """

    def __init__(self, url: str, anon: bool = False) -> None:
        self.url = url
        self._at = Connection(url, anon)
        fs, root = self._at.open()
        self.local = "file" in (fs.protocol, *fs.protocol)
        self.root = root.rstrip("/") or root
        try:
            there = fs.exists(self.root)
        except Exception as error:  # each protocol's client raises its own kinds
            raise InputError(f"{url}: cannot be opened: {reason(error)}") from error
        if not there:
            try:
                # For `exists` a server that denies access, fails or is out of reach has nothing either.
                fs.info(self.root)
            except Exception as error:
                raise InputError(f"{url}: {reason(error)}") from error
            raise InputError(f"{url}: {_ABSENT}")
        if self._is_special(self.root):
            raise InputError(f"{url}: {SPECIAL}")

    @property
    def at_once(self) -> int:
        """How many files had best be read side by side: several only where clients are made for that."""
        return AT_ONCE if self.fs.async_impl else 1

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """What is to be held while a file is open: a lock where clients are not made for threads."""
        return nullcontext() if self.local or self.fs.async_impl else _TURN

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return self._at.open()[0]

    def isdir(self, path: str = "") -> bool:
        """Tell whether the path below the root is a folder.

        Raises
        ------
        InputError
            If the store does not tell.
        """
        try:
            return bool(self.fs.isdir(self.at(path)))
        except Exception as error:
            raise InputError(f"{self.name(path)}: cannot be listed: {reason(error)}") from error

    def size_of(self, file: Any, path: str) -> int:
        """Return the bytes of an open file, of which parts are to be read; its path is the file system's own.

        Most clients have asked the store to open it, which takes a while each time.

        Raises
        ------
        OSError
            If the store does not tell; the file is closed then.
        """
        size = getattr(file, "size", None)
        if size is None:
            size = self.fs.size(path)
        if size is None:
            file.close()
            raise OSError(UNSIZED)
        return int(size)

    def at(self, path: str) -> str:
        """Return the file system's own name for a path below the root."""
        if not path:
            return self.root
        # The root of an archive inside a store is "", below which names have no slash in front.
        return f"{self.root.rstrip('/')}/{path}" if self.root else path

    def name(self, path: str) -> str:
        """Return how a message should call a path below the root."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def list(self, path: str = "") -> dict[str, tuple[bool, int | None]]:
        """List one folder: name → (is a folder, size in bytes or None), sorted by name.

        Raises
        ------
        InputError
            If the folder cannot be listed.
        """
        try:
            entries = self.fs.ls(self.at(path), detail=True)
        except Exception as error:
            raise InputError(f"{self.name(path)}: cannot be listed: {reason(error)}") from error
        own = self.at(path).rstrip("/")
        found = {
            e["name"].rstrip("/").rsplit("/", 1)[-1]: (self._is_folder(e), e.get("size"))
            for e in entries
            if e["name"].rstrip("/") != own and not (e["type"] == "other" and self._is_special(e["name"]))
        }
        return dict(sorted(found.items()))

    def _is_folder(self, entry: dict[str, Any]) -> bool:
        # What lies on several disks is one tree by links, and fsspec lists a link to a folder as no folder.
        return entry["type"] == "directory" or bool(
            self.local and entry["islink"] and os.path.isdir(entry["name"])
        )

    def _is_special(self, path: str) -> bool:
        # Opening a pipe may wait for ever.
        return self.local and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))

    def tree(self) -> Iterator[tuple[str, dict[str, tuple[bool, int | None]]]]:
        """Yield each folder from the root down, sorted, with what `list` tells of it.

        One that several links lead to comes once, so that links may go in circles.

        Raises
        ------
        InputError
            As `list`.
        """
        seen: set[str] = set()
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            if self.local:
                real = os.path.realpath(self.at(folder))
                if real in seen:
                    continue
                seen.add(real)
            names = self.list(folder)
            yield folder, names
            below = (f"{folder}/{name}".lstrip("/") for name, (is_dir, _) in names.items() if is_dir)
            waiting += reversed([*below])

    def read(self, path: str = "", *, limit: int) -> bytes | None:
        """Read one file whole; None if it does not exist.

        Parameters
        ----------
        path
            Below the root.
        limit
            The most bytes that such a file may have.

        Raises
        ------
        InputError
            If it is longer than `limit`, neither a file nor a folder, or cannot be read.
        """
        if self._is_special(self.at(path)):
            raise InputError(f"{self.name(path)}: {SPECIAL}")
        try:
            if self.local:
                with open(self.at(path), "rb") as file:
                    # Reading by the file's own size: a read of `limit` bytes would first allocate them.
                    data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
            else:
                with self.turn:
                    data = self.fs.cat_file(self.at(path), start=0, end=limit + 1)
        except (FileNotFoundError, NotADirectoryError, KeyError):
            return None
        except Exception as error:
            # The range begins with the first byte, so that only an empty file has none of it.
            if _http_status(error) != 416:
                raise InputError(f"{self.name(path)}: cannot be read: {reason(error)}") from error
            data = b""
        if len(data) > limit:
            raise _too_long(self.name(path), limit)
        return data


def fetch(url: str, *, limit: int, anon: bool = False) -> bytes | None:
    """Read one file at a URL from its beginning to its end; None if there is none.

    It is asked for once, and no more than the limit is taken, whatever the server sends.

    Parameters
    ----------
    url
        An fsspec URL.
    limit
        The most bytes that such a file may have.
    anon
        As for `Storage`.

    Raises
    ------
    InputError
        If it is longer, or cannot be read.
    """
    fs, path = Connection(url, anon).open()
    # Over HTTP that is one answer, which is read as it comes.
    options = {"block_size": 0} if {"http", "https"} & {fs.protocol, *fs.protocol} else {}
    data = io.BytesIO()
    try:
        with fs.open(path, "rb", **options) as file:
            while data.tell() <= limit and (part := file.read(_PART)):
                data.write(part)
    except Exception as error:  # each protocol's client raises its own kinds
        said = reason(error)
        if said == _ABSENT or isinstance(error, KeyError):
            return None
        raise InputError(f"{url}: cannot be read: {said}") from error
    if data.tell() > limit:
        raise _too_long(url, limit)
    return data.getvalue()


def _too_long(name: str, limit: int) -> InputError:
    return InputError(f"{name}: is longer than the {limit} bytes that such a file may have")


class Connection:
    """The file system behind a URL, opened anew in each process: it survives neither fork nor pickling.

    Endpoint, credentials and all else come from where each client looks for them: for S3 the environment
    (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, …) and fsspec's own configuration.

    Parameters
    ----------
    url, anon
        As for `Storage`.

    Raises
    ------
    InputError
        If the protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str, anon: bool = False) -> None:
        self.url = url
        self._anon = anon
        self._of: tuple[int, Any, str] | None = None
        self.open()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_anon": self._anon, "_of": None}

    def open(self) -> tuple[Any, str]:
        """Return the file system and its own name for the URL."""
        of = self._of
        if of is None or of[0] != os.getpid():
            if of is not None:
                _INHERITED.append(of)
            self._of = of = os.getpid(), *_connect(self.url, self._anon)
        return of[1], of[2]


#: File systems that a process inherited from the one that forked it. Their connections must neither be used
#: nor, when nobody holds them any more, be closed: the parent uses them.
_INHERITED: list[Any] = []


def _connect(url: str, anon: bool) -> tuple[Any, str]:
    from fsspec import filesystem
    from fsspec.config import conf
    from fsspec.core import split_protocol, url_to_fs

    if "://" not in url:
        # To fsspec a colon in a name can mean a protocol.
        local = filesystem("file")
        return local, str(local._strip_protocol(os.path.abspath(os.path.expanduser(url))))

    # An archive inside a store (zip::s3://…) takes its options per protocol.
    from sunzip.sources.patience import get_client

    links = [split_protocol(link)[0] or link for link in url.split("::")]
    given: dict[str, dict[str, Any]] = {
        p: {"anon": True} if p.startswith("s3") else {"token": "anon"}
        for p in links
        if anon and p in ("s3", "s3a", "gs", "gcs")
    }
    # Unless the user's own configuration names a client.
    given |= {
        p: {"get_client": get_client}
        for p in links
        if p in ("http", "https") and "get_client" not in conf.get(p, {})
    }
    # Left to itself, S3's client has ten connections, for which all others wait.
    for p in links:
        if p in ("s3", "s3a"):
            own = conf.get(p, {}).get("config_kwargs", {})
            given.setdefault(p, {})["config_kwargs"] = {"max_pool_connections": AT_ONCE, **own}
    options: dict[str, Any] = given if len(links) > 1 else next(iter(given.values()), {})
    try:
        fs, path = url_to_fs(url, **options)
    except ImportError as error:
        extra = f"; {how_to_install('s3')}" if {"s3", "s3a"} & set(links) else ""
        raise InputError(
            f"{url}: this kind of store needs a further package: {_line(error)}{extra}"
        ) from error
    except Exception as error:
        raise InputError(f"{url}: cannot be opened: {reason(error)}") from error
    return fs, str(path)


#: Said of what a store does not have.
_ABSENT = "nothing is there; check the path"
#: Said of what is neither a file nor a folder.
SPECIAL = "is a pipe or a device, which cannot be read at random; save it first"
#: Said of what a server sends without telling its length, as programs behind a URL do.
UNSIZED = "its size is unknown, so it cannot be read at random; fetch it first"

#: Errors of aiohttp, fsspec's client for HTTP. All clients' errors are known by name: none need be installed.
_HTTP = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ClientResponseError",
    "InvalidURL",
    "RedirectClientError",
}


def reason(error: BaseException, *, writing: bool = False) -> str:
    """Say what a store's client means by an error, and what to do, in one line.

    Parameters
    ----------
    error
        What was raised.
    writing
        Whether it was while writing, which nobody does without credentials.
    """
    anonymous = "" if writing else ", or ask without {} (--anon, anon=True)"
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and (isinstance(cause, TimeoutError) or _kinds(cause) & _HTTP):
        # Over HTTP fsspec calls everything absent that it cannot ask for, and keeps the truth as the cause.
        assert cause is not None
        error = cause
    line, kinds = _line(error), _kinds(error)
    if isinstance(error, MemoryError):
        return "the memory of this machine is not enough for it"
    if "ClientResponseError" in kinds:
        return _status(error)
    if isinstance(error, FileNotFoundError):
        if "bucket does not exist" in line:
            return "the bucket does not exist; check its name, and AWS_ENDPOINT_URL if it is set"
        return _ABSENT
    if isinstance(error, PermissionError):
        if error.filename is not None:
            # Only the operating system names the file; the clients of servers raise nothing but a text.
            return (
                "permission is denied; look at the owner and mode of it and of the folders above (ls -ld), "
                "and change them (chmod) or ask the owner"
            )
        return f"access is denied ({line}); check the credentials{anonymous.format('them')}"
    if "ClientError" in _kinds(cause) and (told := _answer(getattr(cause, "response", {}), line)):
        return told
    if kinds & {"NoCredentialsError", "PartialCredentialsError"}:
        return f"{line}; set AWS_ACCESS_KEY_ID and the like{anonymous.format('credentials')}"
    if kinds & {"EndpointConnectionError", "ConnectTimeoutError"}:
        return f"{line.rstrip('.')}; check the network, and AWS_ENDPOINT_URL if it is set"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time; check the network, or try again later"
    if "RedirectClientError" in kinds:
        return f"the server sends to what is no URL of HTTP ({line}); check the URL"
    if "ClientPayloadError" in kinds:
        return f"the answer comes broken ({line.rstrip('.:')}); try again later, or fetch the file first"
    if "InvalidURL" in kinds:
        return "is no URL that can be asked; check how it is written"
    if kinds & _HTTP:
        return f"the server cannot be reached ({line.rstrip('.')}); check the address and the network"
    return line


def _status(error: Any) -> str:
    """Say what an answer of HTTP means that is none."""
    if "TooManyRedirects" in _kinds(error):
        return "the server sends from one URL to the next without end; check the URL"
    said = "".join(error.message.splitlines()[:1]).rstrip(" :")
    if "HttpProcessingError" in _kinds(error.__cause__):
        # The client makes up the status, and says several lines, or in older releases nothing.
        return f"the answer is no HTTP ({said or 'it cannot be parsed'}); check the URL and its port"
    told = f"HTTP {error.status} {said}".rstrip()
    if error.status in (404, 410):
        return _ABSENT
    if error.status in (401, 403):
        return f"access is denied ({told}); check the URL, and whether it can be read without an account"
    return _busy(error.status, told) or f"the server refuses ({told}); check the URL"


def _http_status(error: BaseException) -> int | None:
    """Return the status of the answer that a client of HTTP or S3 made an error of."""
    answer = getattr(error.__cause__, "response", None) or {}
    found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or getattr(error, "status", None)
    return found if isinstance(found, int) else None


def _answer(answer: dict[str, Any], line: str) -> str | None:
    """Say what an answer of S3 means whose text alone does not tell; None of others."""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    told = line.partition("] ")[2] or line  # without the number of the system's error that s3fs likens it to
    code = answer.get("Error", {}).get("Code")
    if status in (301, 307) or code == "AuthorizationHeaderMalformed":
        return f"the bucket is in another region ({told}); set AWS_DEFAULT_REGION to that"
    if status == 400 and code == "400":
        # Asked for a size, a store has no place to say why.
        return (
            f"the store refuses ({told}); check that the credentials have not expired, and that "
            "AWS_DEFAULT_REGION is the bucket's region"
        )
    return _busy(status, told)


def _busy(status: int, told: str) -> str | None:
    if status == 429 or status >= 500:
        return f"the server cannot do it now ({told}); try again later"
    return None


def _kinds(error: BaseException | None) -> set[str]:
    """Return the names of an error's class and of those that it derives from."""
    return {kind.__name__ for kind in type(error).__mro__}


def _line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
