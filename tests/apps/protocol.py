"""A WSGI application that does what a protocol test asks of it: reads, answers and fails in every way.

The path says what; the query gives numbers. What it saw beyond its response stands in `EVENTS`, which
`/events` returns, so that a test can prove what the application did or did not hear of. Knows PEP 3333 only.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs

from greenlet import greenlet

Environ = dict[str, Any]
Start = Callable[..., Any]

EVENTS: list[str] = []
TEXT = [("Content-Type", "text/plain")]


def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Dispatch on the path; any path without a handler is answered by `saw`."""
    return HANDLERS.get(environ["PATH_INFO"], saw)(environ, start_response)


def number(environ: Environ, name: str, default: int = 0) -> int:
    """An integer of the query string."""
    return int(parse_qs(environ["QUERY_STRING"]).get(name, [str(default)])[0])


def answer(start_response: Start, text: str, status: str = "200 OK") -> list[bytes]:
    body = text.encode()
    start_response(status, [*TEXT, ("Content-Length", str(len(body)))])
    return [body]


def saw(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads the body and returns all that it was told, as JSON."""
    EVENTS.append(f"saw {environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
    body = environ["wsgi.input"].read()
    told = {key: value for key, value in environ.items() if isinstance(value, str)}
    document = json.dumps({"environ": told, "body": body.decode("latin-1")}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(document)))])
    return [document]


def digest(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads the body in pieces of `size` bytes and returns its length and digest."""
    size = number(environ, "size", 65536)
    sum_, length = sha256(), 0
    while piece := environ["wsgi.input"].read(size):
        sum_.update(piece)
        length += len(piece)
    return answer(start_response, f"{length} {sum_.hexdigest()}")


def ignore(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Answers without a look at the body."""
    EVENTS.append("ignored")
    return answer(start_response, "ignored")


def some(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads `n` bytes of the body and leaves the rest."""
    return answer(start_response, environ["wsgi.input"].read(number(environ, "n")).decode("latin-1"))


def forms(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads the body by all methods that PEP 3333 names, and on past its end."""
    source = environ["wsgi.input"]
    seen = [
        source.read(3),
        source.readline(),
        source.readline(4),
        *source.readlines(1),
        next(iter(source)),
        source.read(0),
        source.read(),
        source.read(),
        source.read(10),
        source.readline(),
        *source.readlines(),
        *source,
    ]
    return answer(start_response, json.dumps([piece.decode("latin-1") for piece in seen]))


def catch(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads until an error or the end, then once more; answers 200 with what each read came to."""
    outcomes = []
    for _ in range(2):
        try:
            while piece := environ["wsgi.input"].read(4):
                outcomes.append(f"read {piece.decode('latin-1')!r}")
            outcomes.append("end")
        except OSError as error:
            outcomes.append(f"OSError {type(error).__name__}")
    EVENTS.append("; ".join(outcomes))
    return answer(start_response, "; ".join(outcomes))


def read_or_note(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Reads the whole body and notes how that ended; the error goes its way."""
    try:
        body = environ["wsgi.input"].read()
    except BaseException as error:
        EVENTS.append(f"read failed: {type(error).__name__}")
        raise
    EVENTS.append(f"read {len(body)}")
    return answer(start_response, str(len(body)))


def stream(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """`n` pieces of `size` bytes, length not told."""
    start_response("200 OK", TEXT)
    piece = b"x" * number(environ, "size", 5)
    return (piece for _ in range(number(environ, "n", 3)))


def sized(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Promises `promise` bytes and sends `n` pieces of `size`; `join` sends them as one."""
    start_response("200 OK", [*TEXT, ("Content-Length", str(number(environ, "promise")))])
    pieces = [b"x" * number(environ, "size", 1) for _ in range(number(environ, "n", 1))]
    return [b"".join(pieces)] if number(environ, "join") else iter(pieces)


class Watched:
    """An endless body that notes its end."""

    def __init__(self, size: int) -> None:
        self.piece = b"x" * size

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.piece

    def close(self) -> None:
        EVENTS.append("closed")


def endless(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Pieces of `size` bytes without end."""
    start_response("200 OK", TEXT)
    return Watched(number(environ, "size", 65536))


def large(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """One piece of `size` bytes."""
    body = b"x" * number(environ, "size")
    start_response("200 OK", [*TEXT, ("Content-Length", str(len(body)))])
    return [body]


def status(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Any status, with a body that must not go out for 204 and 304."""
    code = number(environ, "code", 200)
    start_response(f"{code} Status", [*TEXT, ("ETag", '"a"')])
    return [b"body"]


def hints(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Early hints, twice, then the response."""
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    environ["wsgi.early_hints"]([("Link", "</b.js>; rel=preload"), ("Link", "</c.js>; rel=preload")])
    return answer(start_response, "hinted")


def bad_header(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """A status line or field made of the request's X-Name, X-Value and X-Status, escapes decoded."""

    def given(name: str, default: str) -> str:
        text: str = environ.get(f"HTTP_X_{name}", default)
        return text.encode("latin-1").decode("unicode_escape")

    start_response(given("STATUS", "200 OK"), [*TEXT, (given("NAME", "X-Given"), given("VALUE", "v"))])
    return [b"the body"]


def bad_hints(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Early hints that would split the response."""
    environ["wsgi.early_hints"]([("Link", "</a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\ninjected")])
    return answer(start_response, "hinted")


def fail(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Raises at once, before start_response."""
    raise RuntimeError("a secret of the application")


def fail_after_start(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Raises after start_response and before any bytes: the head must not have gone out."""
    start_response("200 OK", [*TEXT, ("X-Never", "sent")])
    raise RuntimeError("a secret of the application")


def fail_midway(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Raises after a piece; with `promise`, its length was told."""
    headers = [*TEXT]
    if promise := number(environ, "promise"):
        headers.append(("Content-Length", str(promise)))
    start_response("200 OK", headers)

    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise RuntimeError("a secret of the application")

    return pieces()


def sleep(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Takes `ms` milliseconds."""
    time.sleep(number(environ, "ms") / 1000)
    return answer(start_response, f"slept {number(environ, 'ms')}")


def greenlets(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """How many greenlets live in this worker."""
    gc.collect()
    return answer(start_response, str(sum(isinstance(one, greenlet) for one in gc.get_objects())))


def events(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """What was noted, as JSON."""
    return answer(start_response, json.dumps(EVENTS))


HANDLERS: dict[str, Callable[[Environ, Start], Iterable[bytes]]] = {
    "/" + handler.__name__.replace("_", "-"): handler
    for handler in (
        bad_header, bad_hints, catch, digest, endless, events, fail, fail_after_start, fail_midway, forms,
        greenlets, hints, ignore, large, read_or_note, sized, sleep, some, status, stream,
    )
}  # fmt: skip
