"""Handlers as plain functions: a werkzeug Request goes in, whatever is natural to return comes out.

Law: knows what a function may return and how that becomes a response; nothing of routes or connections. A
value it doesn't know is an error that says what was returned and what can be: never a guess.
"""

from __future__ import annotations

import inspect
import io
import json
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from uuid import UUID

import werkzeug.wrappers
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from acme_wsgi.errors import BootError, reason
from acme_wsgi.handlers._fields import checked_headers, checked_status
from acme_wsgi.handlers.wsgi import FileWrapper, bounded, file_body
from acme_wsgi.http.writer import Response

if TYPE_CHECKING:
    from acme_wsgi import handlers
    from acme_wsgi.config import Route
    from acme_wsgi.handlers import Context, Handler

HTML = "text/html; charset=utf-8"
BINARY = "application/octet-stream"
JSON = "application/json"

_RETURNABLE = (
    "a Response, str, bytes, dict or list (JSON), (body, status[, headers]), an iterator of str or bytes, "
    "or a file open for reading bytes"
)


class Request(werkzeug.wrappers.Request):
    """The request as a handler gets it: werkzeug's, and what the route's pattern captured.

    :ivar path_params: the captured parts as text: ``{"id": "7"}`` under ``/users/:id``
    """

    def __init__(self, environ: dict[str, Any], path_params: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.path_params = path_params

    @property
    def params(self) -> Mapping[str, str]:
        """The same as `path_params`."""
        return self.path_params


def build(route: Route, context: Context) -> Handler:
    """The handler around one function; raises errors.BootError when it can't be loaded or can't be one."""
    function = context.load(route.handler or "")
    where = f"{context.where}: {route.handler}"
    if not callable(function):
        raise BootError(where, f"a handler is a function; this is {type(function).__name__}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise BootError(where, "async functions can't be handlers; write a plain one, it may block")
    mimetypes.init()  # reads the system's files: at start-up, not in somebody's request
    return adapt(function, f"handler {route.handler}")


def adapt(function: Callable[[Request], object], name: str) -> Handler:
    """A handler around a function; `name` is how messages call it."""

    def handle(request: handlers.Request) -> Response:
        wrapped = Request(request.environ, request.params)
        try:
            value = function(wrapped)
        except HTTPException as error:
            value = error
        response = _Conversion(request, name).convert(value)
        if "files" in wrapped.__dict__:  # an upload was parsed: its temporary files end with the response
            response.close = _one_after_the_other(response.close, wrapped.close)
        return response

    return handle


def _one_after_the_other(
    first: Callable[[], object] | None, second: Callable[[], object]
) -> Callable[[], object]:
    if first is None:
        return second

    def both() -> None:
        try:
            first()
        finally:
            second()

    return both


class _Conversion:
    """What one function returned, on its way to being a Response."""

    __slots__ = ("name", "request")

    def __init__(self, request: handlers.Request, name: str) -> None:
        self.request = request
        self.name = name

    def convert(self, value: object) -> Response:
        """`value` as a response; raises TypeError that names the handler when there is no such way."""
        way = _WAYS.get(type(value))
        if way is None:
            way = next(
                (way for kind, way in _WAYS.items() if isinstance(value, kind)), _Conversion._by_protocol
            )
        return way(self, value)

    def _text(self, value: str) -> Response:
        return _plain(HTML, value.encode("utf-8"))

    def _bytes(self, value: bytes) -> Response:
        return _plain(BINARY, bytes(value))

    def _json(self, value: object) -> Response:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable
        )
        return _plain(JSON, text.encode("utf-8"))

    def _nothing(self, value: None) -> Response:
        raise TypeError(f"{self.name} returned None; return {_RETURNABLE}; for an empty answer: '', 204")

    def _tuple(self, value: tuple[object, ...]) -> Response:
        if not 2 <= len(value) <= 3:
            raise TypeError(
                f"{self.name} returned a tuple of {len(value)}; it must be (body, status[, headers])"
            )
        body, status = value[0], value[1]
        if isinstance(body, tuple):
            raise TypeError(f"{self.name} returned a tuple in a tuple; it must be (body, status[, headers])")
        response = Response("200 OK", []) if body is None else self.convert(body)
        try:
            response.status = self._status(status)
            if response.body == b"" and response.status[:3] in ("204", "304"):
                response.headers = [pair for pair in response.headers if pair[0] != "Content-Type"]
            if len(value) == 3:
                self._merge(response, _header_pairs(value[2], self.name))
        except BaseException:
            if response.close is not None:
                response.close()
            raise
        return response

    def _status(self, status: object) -> str:
        if isinstance(status, int):
            code = int(status)
            return checked_status(f"{code} {reason(code)}", self.name)
        if isinstance(status, str):
            return checked_status(status, self.name)
        raise TypeError(f"{self.name}: the status must be int or str, not {type(status).__name__}")

    def _merge(self, response: Response, pairs: list[tuple[str, str]]) -> None:
        """Given headers replace those of the same name, except cookies: each is its own."""
        own = checked_headers(pairs, self.request, self.name)
        replaced = {name.lower() for name, _ in own} - {"set-cookie"}
        response.headers = [pair for pair in response.headers if pair[0].lower() not in replaced] + own

    def _werkzeug(self, value: WerkzeugResponse) -> Response:
        environ = self.request.environ
        try:
            pairs = value.get_wsgi_headers(environ).to_wsgi_list()
            headers = checked_headers(pairs, self.request, self.name)
            response = Response(checked_status(value.status, self.name), headers)
        except BaseException:
            value.close()
            raise
        content = value.response
        if value.is_sequence:
            response.body = b"".join(value.iter_encoded())
            response.close = value.close
            return response
        body = file_body(content.filelike) if isinstance(content, FileWrapper) else None
        if body is None:
            return self._stream(response, iter(value.iter_encoded()), value.close)
        response.body = bounded(body, headers)
        response.close = value.close
        return response

    def _exception(self, value: HTTPException) -> Response:
        found = value.get_response(self.request.environ)
        if not isinstance(found, WerkzeugResponse):
            raise TypeError(f"{self.name}: {value!r} carries no Response") from value
        return self._werkzeug(found)

    def _by_protocol(self, value: Any) -> Response:
        """Files and iterators are known by what they can do, not by what they are."""
        if inspect.iscoroutine(value):
            value.close()
        elif hasattr(value, "read"):
            return self._file(value)
        elif isinstance(value, Iterator):
            return self._stream(Response("200 OK", []), value, getattr(value, "close", None))
        raise TypeError(f"{self.name} returned {type(value).__name__}; return {_RETURNABLE}")

    def _file(self, file: Any) -> Response:
        close = getattr(file, "close", None)
        if isinstance(file, io.TextIOBase):
            file.close()
            raise TypeError(f"{self.name} returned a file that is open as text; open it with 'rb'")
        response = Response("200 OK", [("Content-Type", _guess_type(getattr(file, "name", None)))])
        body = file_body(file)
        if body is None:
            return self._stream(response, FileWrapper(file), close)
        response.body = body
        response.close = close
        return response

    def _stream(
        self, response: Response, iterator: Iterator[Any], close: Callable[[], object] | None
    ) -> Response:
        """Let an iterator be the body. Its first chunk is taken now: what fails there is a clean 500."""
        encode = partial(_encoded, self.name)
        try:
            first: object = b""
            for first in iterator:
                if first:
                    break
            if not any(name.lower() == "content-type" for name, _ in response.headers):
                kind = HTML if isinstance(first, str) else BINARY
                response.headers = [*response.headers, ("Content-Type", kind)]
            head = encode(first)
        except BaseException:
            if close is not None:
                close()
            raise
        response.body = chain((head,), map(encode, iterator)) if head else b""
        response.close = close
        return response


def _plain(content_type: str, body: bytes) -> Response:
    return Response("200 OK", [("Content-Type", content_type)], body)


def _encoded(name: str, chunk: object) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, str):
        return chunk.encode("utf-8")
    raise TypeError(f"{name}: a chunk must be str or bytes, not {type(chunk).__name__}")


def _jsonable(value: object) -> str:
    """What JSON has no type for and everybody writes the same way."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def _header_pairs(headers: object, name: str) -> list[tuple[str, str]]:
    """Headers from a mapping (values may be lists), werkzeug's Headers or pairs; numbers become str."""
    if isinstance(headers, Headers):
        return list(headers.to_wsgi_list())
    items: Iterable[Any]
    if isinstance(headers, Mapping):
        items = [
            (key, one)
            for key, value in headers.items()
            for one in (value if isinstance(value, list | tuple) else (value,))
        ]
    elif isinstance(headers, list | tuple):
        items = headers
    else:
        raise TypeError(
            f"{name}: the headers must be a dict or a list of pairs, not {type(headers).__name__}"
        )
    return [_header_pair(item, name) for item in items]


def _header_pair(item: object, name: str) -> tuple[str, str]:
    if isinstance(item, tuple | list) and len(item) == 2:
        key, value = item
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(key, str) and isinstance(value, str):
            return key, value
    raise TypeError(f"{name}: a header must be a pair of str, not {item!r:.200}")


def _guess_type(name: object) -> str:
    """The Content-Type that a file's name suggests; a compressed file is what it is, not what is in it."""
    if not isinstance(name, str):
        return BINARY
    kind, encoding = mimetypes.guess_type(name)
    if encoding is not None:
        return {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}.get(
            encoding, BINARY
        )
    if kind is None:
        return BINARY
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


_WAYS: dict[type, Callable[[_Conversion, Any], Response]] = {
    str: _Conversion._text,
    bytes: _Conversion._bytes,
    dict: _Conversion._json,
    list: _Conversion._json,
    tuple: _Conversion._tuple,
    WerkzeugResponse: _Conversion._werkzeug,
    HTTPException: _Conversion._exception,
    type(None): _Conversion._nothing,
    bytearray: _Conversion._bytes,
}
