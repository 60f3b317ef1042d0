"""WSGI applications, PEP 3333 to the letter.

Law: the only place that knows start_response, write(), exc_info and wsgi.file_wrapper; everything else in the
server sees one request go in and one Response come out. What every request runs through is compiled, in
`_exchange.pyx`; what is out of the ordinary is here.
"""

from __future__ import annotations

import inspect
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from acme_wsgi.errors import BootError
from acme_wsgi.handlers._exchange import Exchange, make_handle
from acme_wsgi.handlers._fields import checked_headers, checked_status
from acme_wsgi.http.writer import FileBody, Response

if TYPE_CHECKING:
    from acme_wsgi.config import Route
    from acme_wsgi.handlers import Context, Handler, Request

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
Application = Callable[[dict[str, Any], Callable[..., Callable[[bytes], None]]], Iterable[bytes]]

JOIN_LIMIT = 65536
"""Bytes: a list of several chunks up to this size becomes one body with a Content-Length, sent at once."""


class FileLike(Protocol):
    """What wsgi.file_wrapper accepts; `close` and `fileno` are optional (PEP 3333)."""

    def read(self, size: int, /) -> bytes: ...


class FileWrapper:
    """``environ["wsgi.file_wrapper"]``: a file as an application's result.

    A real file is sent by the kernel from its current position; anything else with a `read` is iterated in
    blocks. `close` exists when the file has one, as PEP 3333 asks.
    """

    __slots__ = ("block_size", "close", "filelike")

    def __init__(self, filelike: FileLike, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close: Callable[[], object] = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        block = self.filelike.read(self.block_size)
        if block:
            return block
        raise StopIteration


class _Exchange(Exchange):
    """What is out of the ordinary in one call of an application, and its write().

    One object for start_response, write() and the response keeps a request to a single allocation; its
    `start_response` is in the compiled base class.
    """

    __slots__ = ()

    application: ClassVar[str] = ""

    def _checked(self, status: str, headers: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
        return (
            checked_status(status, self.application),
            checked_headers(headers, self.request, self.application),
        )

    def __call__(self, data: bytes) -> None:
        """PEP 3333's write(): the first call sends the head, every call returns when `data` is on its way."""
        request = self.request
        if request is None:
            raise AssertionError(f"{self.application}: write() called after the response was handed over")
        if not isinstance(data, bytes):
            raise TypeError(f"{self.application}: write() needs bytes, not {type(data).__name__}")
        if not request.started:
            self.transmit = request.start(self.status, self.headers)
        self.transmit(data)

    def _start_again(self, exc_info: ExcInfo | None) -> None:
        if exc_info is None:
            raise AssertionError(f"{self.application}: start_response() called again without exc_info")
        try:
            if self.request is None or self.request.started:
                raise exc_info[1].with_traceback(exc_info[2])
        finally:
            exc_info = None  # PEP 3333: no cycle through the traceback's frames

    def finish(self, result: Iterable[bytes]) -> Response:
        """Everything that isn't a list of one bytes: takes `result` over, its close() included."""
        kind = type(result)
        if kind is FileWrapper and self.status and not self._written:
            return self._finish_file(result)  # type: ignore[arg-type]
        if (kind is list or kind is tuple) and self.status and not self._written:
            chunks = [checked_chunk(self.application, chunk) for chunk in result]
            if sum(map(len, chunks)) <= JOIN_LIMIT:
                self.body = b"".join(chunks)
                self.request = None
                return self
        return self._finish_iterable(result)

    @property
    def _written(self) -> bool:
        return self.request is not None and self.request.started

    def _finish_file(self, wrapper: FileWrapper) -> Response:
        body = file_body(wrapper.filelike)
        if body is None:
            return self._finish_iterable(wrapper)
        self.body = bounded(body, self.headers)
        self.close = getattr(wrapper, "close", None)
        self.request = None
        return self

    def _finish_iterable(self, result: Iterable[bytes]) -> Response:
        close = getattr(result, "close", None)
        try:
            if not isinstance(result, Iterable):
                kind = type(result).__name__
                raise TypeError(f"{self.application}: must return an iterable of bytes, not {kind}")
            iterator = iter(result)
            # start_response may be called as late as in the first next(), and the head goes out with the
            # first chunk that isn't empty: until then an exc_info may still replace it.
            first = b""
            for chunk in iterator:
                first = checked_chunk(self.application, chunk)
                if first:
                    break
            if not self.status:
                raise AssertionError(f"{self.application}: start_response() was never called")
            if self._written:
                self._write_all(first, iterator)
                first = b""
            if first:
                self.body = chain((first,), map(partial(checked_chunk, self.application), iterator))
        except BaseException:
            if close is not None:
                close()
            raise
        self.close = close
        self.request = None
        return self

    def _write_all(self, first: bytes, rest: Iterator[bytes]) -> None:
        """The application used write(): what it returned besides goes the same way."""
        if first:
            self.transmit(first)
        for chunk in rest:
            self.transmit(checked_chunk(self.application, chunk))


def checked_chunk(who: str, chunk: bytes) -> bytes:
    """`chunk`, if it is bytes; raises a TypeError that names `who` if not."""
    if isinstance(chunk, bytes):
        return chunk
    raise TypeError(f"{who}: a body chunk must be bytes, not {type(chunk).__name__}")


def file_body(file: object) -> FileBody | None:
    """The rest of a real file from its current position, or None for what has to be read instead.

    Only objects whose `read` gives the very bytes of the descriptor: a GzipFile has a fileno() too, but that
    file's bytes are not what it reads as.
    """
    real = _real_file(file)
    if real is None:
        return None
    try:
        status = os.fstat(real.fileno())
        if not stat.S_ISREG(status.st_mode):
            return None
        offset = real.tell()
    except (OSError, ValueError):  # closed, detached: reading it will say so in its own words
        return None
    return FileBody(real, offset, max(0, status.st_size - offset))


def bounded(body: FileBody, headers: Iterable[tuple[str, str]]) -> FileBody:
    """`body`, no longer than a Content-Length that the application has set."""
    for name, value in headers:
        if name.lower() == "content-length" and len(value) < 19 and value.isascii() and value.isdecimal():
            body.count = min(body.count, int(value))
    return body


def _real_file(file: object) -> io.BufferedReader | io.BufferedRandom | io.FileIO | None:
    for _ in range(3):  # Django's File around a temporary file around a buffered one
        kind = type(file)
        if kind is io.FileIO:
            return file  # type: ignore[return-value]
        if kind is io.BufferedReader or kind is io.BufferedRandom:
            return file if type(file.raw) is io.FileIO else None  # type: ignore[attr-defined,return-value]
        inner = getattr(file, "file", None)
        if inner is None:
            return None
        passes_through = isinstance(file, tempfile._TemporaryFileWrapper) or (
            getattr(file, "read", None) == getattr(inner, "read", file)
        )
        if not passes_through:
            return None
        file = inner
    return None


def build(route: Route, context: Context) -> Handler:
    """The adapter of one application; raises errors.BootError when it can't be loaded."""
    application = context.load(route.app or "")
    where = f"{context.where}: {route.app}"
    if not callable(application):
        raise BootError(where, f"a WSGI application is callable; this is {type(application).__name__}")
    called = getattr(application, "__call__", None)  # noqa: B004 - an instance's own method is asked for
    if inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(called):
        raise BootError(where, "this is an ASGI application (async); a WSGI application is needed here")
    return with_routing_args(adapt(application, f"application {route.app}"), context)


def adapt(application: Application, name: str) -> Handler:
    """A handler around a WSGI application; `name` is how messages call it."""
    members = {"__slots__": (), "application": name}
    exchange_type = cast("type[_Exchange]", type("_Exchange", (_Exchange,), members))
    return make_handle(application, exchange_type)


def with_routing_args(handle: Handler, context: Context) -> Handler:
    """Pass what the route's pattern captured as ``environ["wsgiorg.routing_args"]``, where it captures
    anything.
    """
    if not context.parameters:
        return handle

    def handle_with_args(request: Request) -> Response:
        request.environ["wsgiorg.routing_args"] = ((), request.params)
        return handle(request)

    return handle_with_args
