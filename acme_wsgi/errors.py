"""Every error the server itself raises, and what a client is told about one.

Law: imports nothing of ACME, so that every floor may raise and catch these. An error knows what it means to
the outside (its HTTP status, its exit status); nobody else keeps a ladder that translates one into the other.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

EX_BOOT = 3
"""Exit status: an application could not be loaded; starting again would only fail again."""

EX_CONFIG = 78
"""Exit status: the configuration is wrong (sysexits.h)."""

# The word a client's code can switch on; part of the documented error body, so never reworded.
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "conflict",
    410: "gone",
    411: "length_required",
    412: "precondition_failed",
    413: "payload_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    417: "expectation_failed",
    421: "misdirected_request",
    426: "upgrade_required",
    429: "too_many_requests",
    431: "request_header_fields_too_large",
    500: "internal_error",
    501: "not_implemented",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
    505: "http_version_not_supported",
}

# http.HTTPStatus renamed these between Python versions; the wire must not depend on the interpreter.
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def reason(status: int) -> str:
    """The reason phrase of a status code, RFC 9110 section 15: ``reason(404) == "Not Found"``.

    A code nobody has registered gets the phrase of its class ("Client Error"), never an empty one.
    """
    phrase = _REASONS.get(status)
    if phrase is not None:
        return phrase
    classes = {1: "Informational", 2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}
    return classes.get(status // 100, "Unknown")


def code_of(status: int) -> str:
    """The machine-readable code of an error status: ``code_of(413) == "payload_too_large"``."""
    known = _CODES.get(status)
    if known is not None:
        return known
    return re.sub(r"[^a-z]+", "_", reason(status).lower().replace("'", ""))


class AcmeError(Exception):
    """The root of all errors that ACME raises (except :class:`DeadlineExceeded`)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the configuration, and where. Lines and columns count from 1; None where unknown."""

    file: str | None
    line: int | None
    column: int | None
    key: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        place = ""
        if self.file is not None:
            place = self.file
            if self.line is not None:
                place += f":{self.line}"
                if self.column is not None:
                    place += f":{self.column}"
            place += ": "
        key = f"{self.key}: " if self.key else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place}{key}{self.message}{hint}"


class ConfigError(AcmeError):
    """The configuration cannot be used. Carries ALL problems found, not the first one.

    :ivar problems: at least one :class:`Problem`, in the order of the files
    :ivar exit_status: what the process exits with (78)
    """

    exit_status = EX_CONFIG

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        if not self.problems:
            raise ValueError("a ConfigError needs at least one problem")
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class BootError(AcmeError):
    """A route's application or handler can't be loaded.

    :ivar where: what was being loaded, for a person ("route /api/*: app shop.wsgi:application")
    :ivar cause: the exception in one line ("ModuleNotFoundError: No module named 'shop'")
    :ivar traceback: the traceback as text, "" when there is nothing to show
    :ivar exit_status: what the process exits with (3)
    """

    exit_status = EX_BOOT

    def __init__(self, where: str, cause: str, traceback: str = "") -> None:
        super().__init__(where, cause, traceback)
        self.where = where
        self.cause = cause
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}"


class HTTPError(AcmeError):
    """An answer other than the one asked for; the engine turns it into a response.

    :ivar status: 400 to 599
    :ivar code: machine-readable code of the error body, derived from the status unless given
    :ivar message: one sentence for the client; shown to it, so never anything internal
    :ivar headers: further response headers (``Allow``, ``Retry-After``, ...)
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"{status} is not an error status")
        self.status = status
        self.code = code if code is not None else code_of(status)
        self.message = message if message is not None else reason(status)
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        super().__init__(status, self.message)

    def __str__(self) -> str:
        return f"{self.status} {self.message}"


class ClientDisconnected(AcmeError, ConnectionError):
    """The client went away; raised in the handler's next read or write."""


class BodyError(AcmeError, OSError):
    """The request body was cut or is malformed; raised in the read that meets it: it never looks complete."""


class BackendError(HTTPError):
    """A server behind this one that could not be reached, or whose answer is none.

    The client hears a sentence without names; `detail` is for the log.

    :ivar status: 502, 504 where time ran out, 503 where it was taken out
    :ivar detail: what it did, for a person who knows which backend it was
    :ivar connecting: nothing of the request has reached it
    :ivar answered: bytes of an answer had come
    :ivar retriable: it may go better with another backend, or another time
    """

    def __init__(
        self,
        status: int,
        message: str,
        detail: str,
        *,
        connecting: bool = False,
        answered: bool = False,
        retriable: bool = False,
    ) -> None:
        super().__init__(status, message)
        self.detail = detail
        self.connecting = connecting
        self.answered = answered
        self.retriable = retriable

    def __str__(self) -> str:
        return self.detail

    @classmethod
    def unreachable(cls, detail: str) -> BackendError:
        """No connection to it could be made."""
        message = "The server behind this one could not be reached."
        return cls(502, message, detail, connecting=True, retriable=True)

    @classmethod
    def slow(cls, detail: str, *, connecting: bool = False, answered: bool = False) -> BackendError:
        """It took longer than it may."""
        message = "The server behind this one took too long."
        # Whoever is asked a second time because the first one was slow gets the load of both.
        return cls(504, message, detail, connecting=connecting, answered=answered, retriable=connecting)

    @classmethod
    def withdrawn(cls, detail: str) -> BackendError:
        """No request may go to it any more."""
        message = "No server behind this one can answer now."
        return cls(503, message, detail, connecting=True, retriable=True)

    @classmethod
    def broke_off(cls, detail: str, answered: bool) -> BackendError:
        """It ended the connection amid the exchange."""
        message = "The server behind this one broke off the connection."
        return cls(502, message, detail, answered=answered, retriable=True)

    @classmethod
    def nonsense(cls, detail: str, *, answered: bool = True) -> BackendError:
        """What it sent is not an HTTP response to this request."""
        return cls(502, "The server behind this one did not answer in HTTP.", detail, answered=answered)


class DeadlineExceeded(BaseException):
    """Thrown into a handler that ran past its deadline.

    Not an :class:`Exception`, so that an application's ``except Exception`` does not swallow it and go on
    working for a client that has its answer already.

    :ivar deadline: which one ("server.timeout", "route /report timeout")
    :ivar seconds: how long it was
    """

    def __init__(self, deadline: str, seconds: float) -> None:
        super().__init__(deadline, seconds)
        self.deadline = deadline
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.deadline} of {self.seconds:g} s exceeded"


def error_page(status: int, code: str, message: str, request_id: str, accept: str) -> tuple[str, bytes]:
    """The body of an error response.

    :param accept: the request's Accept header, "" if it had none; RFC 9110 section 12.5.1
    :returns: (Content-Type, body): the documented JSON, or a small HTML page for a client that prefers that;
        everything in it is escaped for where it stands
    """
    if prefers_html(accept):
        return "text/html; charset=utf-8", _html_page(status, message, request_id)
    body = {
        "error": {
            "code": code,
            "message": message,
            "status": status,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": request_id,
        }
    }
    # ASCII only: whatever bytes a message repeats from a client, they leave as \u escapes.
    return "application/json", json.dumps(body, ensure_ascii=True).encode("ascii") + b"\n"


def _html_page(status: int, message: str, request_id: str) -> bytes:
    title = html.escape(f"{status} {reason(status)}")
    page = (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><h1>{title}</h1><p>{_html_text(message)}</p>"
        f"<p><small>Request {_html_text(request_id)}</small></p></body></html>\n"
    )
    return page.encode("utf-8")


def _html_text(text: str) -> str:
    """Text as it may stand in a page: controls and lone surrogates (no UTF-8 for them) are replaced."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in text))


_MEDIA_RANGE = re.compile(r'((?:[^,"]|"(?:[^"\\]|\\.)*"?)+)')
_QVALUE = re.compile(r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?=;|$)", re.IGNORECASE)
_MAX_ACCEPT = 1024  # longer Accept headers are judged by their beginning


def prefers_html(accept: str) -> bool:
    """Whether an Accept header ranks ``text/html`` above ``application/json``; a tie means JSON."""
    json_rank = html_rank = (-1, 0.0)
    for match in _MEDIA_RANGE.finditer(accept[:_MAX_ACCEPT]):
        item = match.group(1)
        media = item.partition(";")[0].strip().lower()
        if ";" in media or "/" not in media:
            continue
        found = _QVALUE.search(item)
        quality = float(found.group(1)) if found else 1.0
        json_rank = _more_specific(json_rank, media, ("*/*", "application/*", "application/json"), quality)
        html_rank = _more_specific(html_rank, media, ("*/*", "text/*", "text/html"), quality)
    return html_rank[1] > json_rank[1]


def _more_specific(
    best: tuple[int, float], media: str, ladder: tuple[str, str, str], quality: float
) -> tuple[int, float]:
    """The quality that the most specific media range matching a type gives it (RFC 9110 section 12.5.1)."""
    if media not in ladder:
        return best
    rank = ladder.index(media)
    if rank > best[0]:
        return rank, quality
    return (rank, max(best[1], quality)) if rank == best[0] else best
