"""A real S3 server on the loopback interface, moto's, behind a counter of what it is asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: What makes clients ask this server and nobody else; dummies, but for the endpoint that `serve` adds.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the server saw it; `sent` counts the bytes of the body of its answer."""

    method: str
    path: str
    query: str
    range: str
    status: int
    sent: int
    seconds: float


class Server:
    """A running server.

    Attributes
    ----------
    url
        What ``AWS_ENDPOINT_URL`` must be.
    requests
        All requests so far.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.url = ""
        self.requests: list[Request] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        status = [0]

        def start(line: str, headers: Any, exc_info: Any = None) -> Any:
            status[0] = int(line.split()[0])
            return start_response(line, headers, exc_info)

        began = time.perf_counter()
        body = list(self._app(environ, start))
        self.requests.append(
            Request(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                environ["QUERY_STRING"],
                environ.get("HTTP_RANGE", ""),
                status[0],
                0 if environ["REQUEST_METHOD"] == "HEAD" else sum(map(len, body)),
                time.perf_counter() - began,
            )
        )
        return body

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """Yield a list that holds, at the end, the requests that came meanwhile."""
        begin = len(self.requests)
        seen: list[Request] = []
        yield seen
        seen += self.requests[begin:]


@contextmanager
def serve() -> Iterator[Server]:
    """Start a server on a free port; stop it at the end."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=MotoRequestHandler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
