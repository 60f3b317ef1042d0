"""A bare WSGI application for what PEP 3333 asks of a server; `validated` has wsgiref.validate around it.

What it saw beyond its responses stands in NOTES, which /notes returns. Knows PEP 3333 only.
"""

from __future__ import annotations

import contextvars
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs
from wsgiref.validate import validator

Environ = dict[str, Any]
Start = Callable[..., Any]

NOTES: dict[str, list[str]] = {}
PLAIN = [("Content-Type", "text/plain")]
CURRENT: contextvars.ContextVar[str] = contextvars.ContextVar("CURRENT", default="nothing")


def note(environ: Environ, what: str) -> None:
    NOTES.setdefault(query(environ, "key", "-"), []).append(what)


def query(environ: Environ, name: str, default: str = "") -> str:
    value: str = parse_qs(environ["QUERY_STRING"]).get(name, [default])[0]
    return value


class Body:
    """An iterable that notes each close(), and its generator's end."""

    def __init__(self, environ: Environ, pieces: Iterable[bytes]) -> None:
        self.environ = environ
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def close(self) -> None:
        note(self.environ, "closed")


def normal(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*PLAIN, ("Content-Length", "6")])
    return Body(environ, [b"ab", b"", b"cdef"])


def overlong(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*PLAIN, ("Content-Length", "3")])
    return Body(environ, [b"ab", b"cdef", b"gh"])


def short(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*PLAIN, ("Content-Length", "9")])
    return Body(environ, [b"ab"])


def nothing(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", PLAIN)
    return Body(environ, [])


def fails_first(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", PLAIN)
    return Body(environ, (1 // 0 for _ in [1]))  # type: ignore[misc]


def fails_later(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", PLAIN)

    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("amid the body")

    return Body(environ, pieces())


def bad_header(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*PLAIN, ("X-Bad", "a\r\nb")])
    return Body(environ, [b"x"])


def not_bytes(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", PLAIN)
    return Body(environ, [b"one", "two"])  # type: ignore[list-item]


def close_fails(environ: Environ, start: Start) -> Iterable[bytes]:
    class Failing(Body):
        def close(self) -> None:
            super().close()
            raise RuntimeError("in close")

    start("200 OK", [*PLAIN, ("Content-Length", "2")])
    return Failing(environ, [b"a", b"b"])


def many(environ: Environ, start: Start) -> Iterable[bytes]:
    """64 KB pieces, each noted before it is given away; what ends it is noted too."""
    start("200 OK", PLAIN)

    def pieces() -> Iterator[bytes]:
        made = 0
        try:
            for made in range(1, 1_000_000):
                NOTES[query(environ, "key") + "-made"] = [str(made)]
                yield b"x" * 65536
        except GeneratorExit:
            note(environ, "generator closed")
            raise
        finally:
            note(environ, f"ended after {made}")

    generator: Any = pieces()

    class Generated(Body):
        def close(self) -> None:
            generator.close()
            super().close()

    return Generated(environ, generator)


def write_for_ever(environ: Environ, start: Start) -> Iterable[bytes]:
    """write() until it raises."""
    write = start("200 OK", PLAIN)
    note(environ, "began")
    try:
        while True:
            write(b"x" * 65536)
    except BaseException as error:
        note(environ, f"write raised {type(error).__mro__[0].__name__}, {isinstance(error, OSError)}")
        raise


def read_all(environ: Environ, start: Start) -> Iterable[bytes]:
    note(environ, "began")
    try:
        body = environ["wsgi.input"].read()
    except BaseException as error:
        note(environ, f"read raised {type(error).__name__}, {isinstance(error, OSError)}")
        raise
    start("200 OK", PLAIN)
    return [str(len(body)).encode()]


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    source = environ["wsgi.input"]
    body = b""
    while piece := source.read(1000):
        body += piece
    start("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


def writes(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start("200 OK", PLAIN)
    write(b"one ")
    write(b"two ")
    return [b"three"]


def again(environ: Environ, start: Start) -> Iterable[bytes]:
    """start_response a second time, with exc_info, before anything is sent."""
    start("200 OK", [*PLAIN, ("X-First", "1")])
    try:
        raise ValueError("seen by the application itself")
    except ValueError:
        start("503 Changed", [*PLAIN, ("X-Second", "1")], sys.exc_info())
    return [b"the second"]


def again_late(environ: Environ, start: Start) -> Iterable[bytes]:
    """The same after the head went out: start_response has to raise the original exception."""
    write = start("200 OK", PLAIN)
    write(b"sent")
    try:
        raise ValueError("too late")
    except ValueError:
        try:
            start("503 Changed", PLAIN, sys.exc_info())
        except ValueError as error:
            note(environ, f"raised {error}")
            raise
    return []


def generated(environ: Environ, start: Start) -> Iterator[bytes]:
    """start_response in the first next()."""
    start("200 OK", PLAIN)
    yield b""
    yield b"one "
    yield b"two"


def wrapped(environ: Environ, start: Start) -> Iterable[bytes]:
    """The file FILE by wsgi.file_wrapper, from `at` on; `length` is announced when given."""
    file = open(os.environ["FILE"], "rb")  # noqa: SIM115 - the server closes it
    file.seek(int(query(environ, "at", "0")))
    NOTES["descriptor"] = [str(file.fileno())]
    headers = [*PLAIN]
    if length := query(environ, "length"):
        headers.append(("Content-Length", length))
    start("200 OK", headers)
    given = Noted(environ, file) if query(environ, "noted") else file
    result: Iterable[bytes] = environ["wsgi.file_wrapper"](given)
    return result


class Noted:
    """A file-like object without a descriptor."""

    def __init__(self, environ: Environ, file: Any) -> None:
        self.environ = environ
        self.file_ = file

    def read(self, size: int) -> bytes:
        piece: bytes = self.file_.read(size)
        return piece

    def close(self) -> None:
        note(self.environ, "closed")
        self.file_.close()


def reads(environ: Environ, start: Start) -> Iterable[bytes]:
    """Performs the reads listed in the query's `do`, JSON [[method, argument], ...]; answers what came."""
    source = environ["wsgi.input"]
    seen: list[Any] = []
    for name, argument in json.loads(query(environ, "do", "[]")):
        if name == "next":
            piece = next(iter(source), b"")
            seen.append(piece.decode("latin-1"))
            continue
        arguments = [] if argument is None else [argument]
        value = getattr(source, name)(*arguments)
        seen.append(
            [one.decode("latin-1") for one in value] if isinstance(value, list) else value.decode("latin-1")
        )
    body = json.dumps(seen).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def context(environ: Environ, start: Start) -> Iterable[bytes]:
    """What the context variable held at the begin, after a blocking call, in the body and in close()."""
    mine = query(environ, "key")
    found = [CURRENT.get()]
    CURRENT.set(mine)
    time.sleep(0.002)
    found.append(CURRENT.get())
    start("200 OK", PLAIN)

    class InContext(Body):
        def close(self) -> None:
            note(environ, CURRENT.get())

    def pieces() -> Iterator[bytes]:
        yield b" ".join(one.encode() for one in found)
        time.sleep(0.002)
        yield b" " + CURRENT.get().encode()

    return InContext(environ, pieces())


def facts(environ: Environ, start: Start) -> Iterable[bytes]:
    told = {key: value for key, value in environ.items() if isinstance(value, str | bool | tuple)}
    body = json.dumps(told).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def notes(environ: Environ, start: Start) -> Iterable[bytes]:
    body = json.dumps(NOTES).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


PAGES = {
    "/" + page.__name__.replace("_", "-"): page
    for page in (
        again, again_late, bad_header, close_fails, context, echo, facts, fails_first, fails_later, generated,
        many, normal, not_bytes, notes, nothing, overlong,
        read_all, reads, short, wrapped, write_for_ever, writes,
    )
}  # fmt: skip


def app(environ: Environ, start: Start) -> Iterable[bytes]:
    return PAGES[environ["PATH_INFO"]](environ, start)


validated = validator(app)
