"""A request without a connection: what handlers and the router see of one, for tests of what lies above the
engine.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from acme_wsgi.errors import HTTPError
from acme_wsgi.handlers.wsgi import FileWrapper
from acme_wsgi.http.writer import FileBody, Response


class FakeRequest:
    """The request's attributes, and a record of what was asked of it."""

    def __init__(
        self,
        path: str = "/",
        method: str = "GET",
        host: str = "example.test",
        query: str = "",
        body: bytes = b"",
        target: str | None = None,
        **environ: Any,
    ) -> None:
        self.method = method
        self.path = path
        self.host = host
        self.request_id = "0123456789abcdef"
        self.params: dict[str, str] = {}
        self.started = False
        self.sent: list[Any] = []
        self.interims: list[tuple[int, Sequence[tuple[str, str]]]] = []
        self.closes_connection = False
        self.body_limit: int | None = None
        self.timeout: float | None = None
        target = target if target is not None else path + (f"?{query}" if query else "")
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_URI": target,
            "RAW_URI": target,
            "SERVER_NAME": host,
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": host,
            "REMOTE_ADDR": "192.0.2.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.input_terminated": True,
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "acme.request_id": self.request_id,
            **environ,
        }

    def start(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], None]:
        assert not self.started, "the head can only be sent once"
        self.started = True
        self.sent.append((status, headers))
        return self.sent.append

    def early_hints(self, headers: Sequence[tuple[str, str]]) -> None:
        self.interim(103, headers)

    def interim(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.interims.append((status, headers))

    def limit_body(self, size: int) -> None:
        self.body_limit = size
        if int(self.environ["CONTENT_LENGTH"]) > size:
            raise HTTPError(413)

    def set_timeout(self, seconds: float) -> None:
        self.timeout = seconds

    def close_connection(self) -> None:
        self.closes_connection = True


@dataclass
class Received:
    """A response as its client would see it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


def receive(response: Response) -> Received:
    """Do what the writer does: take the whole body, then call close exactly once."""
    try:
        body = b"".join(_chunks(response))
    finally:
        if response.close is not None:
            response.close()
    return Received(response.status, response.headers, body)


def _chunks(response: Response) -> Iterator[bytes]:
    body = response.body
    if isinstance(body, bytes):
        yield body
    elif isinstance(body, FileBody):
        with open(body.file.fileno(), "rb", closefd=False) as file:
            file.seek(body.offset)
            yield file.read(body.count)
    else:
        yield from body
