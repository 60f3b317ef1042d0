"""A WSGI application for the tests of compression.

/page          HTML; a strong ETag, and a 304 for who has it by weak comparison
/text          text/plain
/tiny          13 bytes of HTML
/big           8 MB of HTML, as one body
/big-stream    the same as two pieces
/returned      has /big or /big-stream handed its body over?
/events?NAME   server-sent events: each waits until /next?NAME asked for it
/next?NAME     lets the next event go
/last?NAME     ends the stream
/left          how many /events were closed
/writes        write(), then an iterable
/breaks        a stream that raises in the middle
/short         a stream that ends before its Content-Length
/file          an HTML file by wsgi.file_wrapper
/encoded       HTML that the application has encoded itself
/private       HTML that must not be transformed
"""

from __future__ import annotations

import gzip
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from gevent.queue import Queue

from tests.apps.basic import Environ, StartResponse

PAGE = b"".join(b"<tr><td>%d</td><td>%x</td></tr>\n" % (number, number * 7919) for number in range(900))
BIG = b"".join(b"%d: %x\n" % (number, number * 48271 % 2147483647) for number in range(460_000))
TAG = '"page-1"'

_steps: defaultdict[str, Queue[bool]] = defaultdict(Queue)
_state = {"returned": 0, "left": 0}


class Events:
    """Pieces that each wait to be asked for; counts its close()."""

    def __init__(self, name: str) -> None:
        self.steps = _steps[name]
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self.steps.get():
            raise StopIteration
        self.number += 1
        return b"data: %d\n\n" % self.number

    def close(self) -> None:
        _state["left"] += 1


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    name = environ["PATH_INFO"].rpartition("/")[2].replace("-", "_")
    return _PAGES[name](environ, start_response)


def _html(start_response: StartResponse, *headers: tuple[str, str]) -> Any:
    return start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), *headers])


def _page(environ: Environ, start_response: StartResponse) -> list[bytes]:
    if TAG in environ.get("HTTP_IF_NONE_MATCH", ""):
        start_response("304 Not Modified", [("ETag", TAG)])
        return []
    _html(start_response, ("ETag", TAG), ("Content-Length", str(len(PAGE))), ("Vary", "Cookie"))
    return [PAGE]


def _text(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [PAGE]


def _tiny(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    _html(start_response)
    return [b"<p>tiny</p>\r\n"]


def _big(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    _html(start_response)
    _state["returned"] = 1
    return [BIG]


def _big_stream(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    _html(start_response)
    _state["returned"] = 1
    return [BIG, b"end"]


def _returned(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(_state["returned"]).encode()]


def _events(environ: Environ, start_response: StartResponse) -> Events:
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")])
    return Events(environ["QUERY_STRING"])


def _next(environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    _steps[environ["QUERY_STRING"]].put(environ["PATH_INFO"] == "/next")
    return [b"ok"]


_last = _next


def _left(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(_state["left"]).encode()]


def _writes(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    write = _html(start_response)
    write(PAGE)
    write(b"and ")
    return [b"the ", b"rest"]


def _breaks(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    _html(start_response)
    yield PAGE
    raise LookupError("in the middle")


def _short(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    _html(start_response, ("Content-Length", str(len(PAGE) + 10)))
    yield PAGE


def _file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    _html(start_response)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    file.write(b"--" + PAGE)
    file.seek(2)
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
    return wrapped


def _encoded(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    _html(start_response, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"))
    return [gzip.compress(PAGE)]


def _private(_environ: Environ, start_response: StartResponse) -> list[bytes]:
    _html(start_response, ("Cache-Control", "private, no-transform"))
    return [PAGE]


_PAGES = {name[1:]: value for name, value in list(globals().items()) if name[0] == "_" and callable(value)}
