"""The keys of ``logging``: the error log, the access log and what is hidden in both.

Its law: declarations only.
"""

from __future__ import annotations

from typing import Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import key, section

MB = 1 << 20


@section
class Access:
    """The access log: one line a request."""

    enabled: bool = key(True, "write an access log")
    format: Literal["combined", "common", "json"] = key("combined", "form of its lines")
    output: str = key("stdout", "stdout, stderr or an absolute path", check=grammar.output)
    headers: tuple[str, ...] = key(
        (), "request headers added to json lines", check=grammar.header_name, example="[X-Tenant]"
    )
    sample: float = key(
        1.0, "share of the requests that is logged; those answered 5xx always are", unit="percent",
        example="10%",
    )  # fmt: skip


@section
class ErrorLog:
    """Where errors go, apart from the rest."""

    output: str | None = key(
        None, "stdout, stderr or an absolute path for errors; unset = where everything goes",
        check=grammar.output, example="/var/log/acme/error.log",
    )  # fmt: skip


@section
class Rotation:
    """Rotation of log files by the server itself. SIGUSR1 for logrotate works without it."""

    size: int | None = key(
        None, "rotate a file that grew to this size", unit="size", minimum=4096, example="100MB"
    )
    age: float | None = key(None, "rotate a file this old", unit="duration", minimum=60, example="1d")
    count: int = key(7, "rotated files kept of each log", maximum=10_000)
    compress: bool = key(False, "gzip rotated files, in a process of its own")


@section
class Logging:
    """What the server writes about itself and about requests."""

    level: Literal["debug", "info", "warning", "error", "critical"] = key(
        "info", "least severity that is written"
    )
    format: Literal["text", "json", "logfmt"] = key("text", "form of the server's own lines")
    output: str = key("stderr", "stderr, stdout or an absolute path", check=grammar.output)
    access: Access = key(Access(), "the access log")
    error: ErrorLog = key(ErrorLog(), "errors, apart from the rest")
    mask_headers: tuple[str, ...] = key(
        ("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key"),
        "headers shown as *** wherever one is logged",
        check=grammar.header_name,
    )
    fields: tuple[tuple[str, str], ...] = key(
        (), "fields added to every json and logfmt line, by name", check=grammar.log_field,
        example="{service: shop}",
    )  # fmt: skip
    rotation: Rotation = key(Rotation(), "rotation of log files by the server itself")
