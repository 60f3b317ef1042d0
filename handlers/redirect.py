"""Redirects: `redirect_to` compiled once into literal text and what each request fills in.

Law: knows the template's spelling and how each value is escaped where it stands. Nothing that a client sends
can add a header, leave the host that the template names, or reach the Location unescaped.

    /new/:id            a parameter of the route's pattern
    /new/$1             a group of the route's regular expression, by number or $name
    /new$rest           what a prefix route /old/* matched beyond /old, with its slash
    $uri                the request's target as sent: path and query ($request_uri is the same)
    $path               the normalised path
    $query_string       the query as sent, without "?"
    $host, $scheme      the request's
    $$                  a dollar sign
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from acme_wsgi.errors import reason
from acme_wsgi.http.writer import Response

if TYPE_CHECKING:
    from acme_wsgi.config import Route
    from acme_wsgi.handlers import Context, Handler, Request

_Part = Callable[["Request"], str]

# RFC 3986 section 2: what may stand for itself. In a path a colon or an at sign could turn into a scheme or a
# user when the value comes first, and a backslash is a slash to browsers: those are never left as they are.
_PATH_SAFE = "/!$&'()*+,;=~"
_QUERY_VALUE_SAFE = "~"
_SENT_SAFE = "%/:?#[]@!$&'()*+,;=~"

_TOKEN = re.compile(
    r"\$\$|\$(?P<dollar>[A-Za-z_][A-Za-z0-9_]*|[0-9]+)|(?<=/):(?P<colon>[A-Za-z_][A-Za-z0-9_]*)"
)
_ABSOLUTE = re.compile(r"(?:https?|\$scheme):", re.IGNORECASE)


def build(route: Route, context: Context) -> Handler:
    """The handler of one redirect; raises ValueError for a target that can't be compiled."""
    target = _compile(route.redirect_to or "", context)
    status = f"{route.status_code} {reason(route.status_code)}"

    def handle(request: Request) -> Response:
        location = target(request)
        headers = [("Location", location), ("Content-Type", "text/html; charset=utf-8")]
        return Response(status, headers, _page(status, location))

    return handle


def _page(status: str, location: str) -> bytes:
    """For the client that doesn't follow (RFC 9110 section 15.4)."""
    title, link = html.escape(status), html.escape(location)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f'<body><h1>{title}</h1><p><a href="{link}">{link}</a></p></body></html>\n'
    ).encode()


def _compile(template: str, context: Context) -> _Part:
    """The template as one function from request to Location."""
    if not template:
        raise ValueError("a redirect needs redirect_to")
    parts: list[_Part | str] = []
    end = 0
    for token in _TOKEN.finditer(template):
        parts.append(_literal(template[end : token.start()]))
        name = token["dollar"] or token["colon"]
        if name is None:
            parts.append("$")
        else:
            in_query = "?" in template[: token.start()]
            parts.append(_value(name, token["colon"] is not None, in_query, context, template))
        end = token.end()
    if "$" in _TOKEN.sub("", template):
        raise ValueError(f"redirect_to {template!r}: a lone '$'; write $$ for a dollar sign")
    parts.append(_literal(template[end:]))
    pieces = [part for part in parts if part != ""]
    local = _ABSOLUTE.match(template) is None and not template.startswith("//")

    def fill(request: Request) -> str:
        location = "".join(part if isinstance(part, str) else part(request) for part in pieces)
        if local and location[:2] == "//":
            # A value may begin with a slash; two of them at the start would name another host.
            location = "/" + location.lstrip("/")
        return location.removesuffix("?")

    return fill


def _literal(text: str) -> str:
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in text):
        raise ValueError("redirect_to: no spaces or control characters; write %20 for a space")
    return quote(text, safe=_SENT_SAFE)


def _value(name: str, is_parameter: bool, in_query: bool, context: Context, template: str) -> _Part:
    """What a `$name` or `:name` stands for, escaped for its place."""
    if name in context.parameters:
        safe = _QUERY_VALUE_SAFE if in_query else _PATH_SAFE
        return lambda request: quote(request.params.get(name, ""), safe=safe)
    if is_parameter:
        raise ValueError(f"redirect_to {template!r}: the route's path has no parameter :{name}")
    if name == "rest":
        return _rest(context, template)
    try:
        return _VARIABLES[name]
    except KeyError:
        known = ", ".join("$" + known for known in sorted({*_VARIABLES, *context.parameters, "rest"}))
        raise ValueError(f"redirect_to {template!r}: there is no ${name} here; there are {known}") from None


def _rest(context: Context, template: str) -> _Part:
    if context.prefix is None:
        raise ValueError(f"redirect_to {template!r}: $rest needs a route whose path ends in /*")
    skip = len(context.prefix)
    return lambda request: _path_text(request.path[skip:])


def _path_text(path: str) -> str:
    return quote(path, safe=_PATH_SAFE + ":@", encoding="latin-1")


def _sent(text: str) -> str:
    """A part of the target as the client sent it: escapes stay, what must not stand in a URI is escaped."""
    return quote(text, safe=_SENT_SAFE, encoding="latin-1", errors="replace")


def _uri(request: Request) -> str:
    target: str = request.environ["REQUEST_URI"]
    if target.startswith("/"):
        return _sent(target)
    # absolute-form or `*`: its own host must not decide where we send anybody
    query = _query_string(request)
    return _path_text(request.path) + (f"?{query}" if query else "")


def _query_string(request: Request) -> str:
    return _sent(request.environ.get("QUERY_STRING", ""))


def _host(request: Request) -> str:
    return quote(request.host or request.environ["SERVER_NAME"], safe="[]:")


def _scheme(request: Request) -> str:
    return "https" if request.environ["wsgi.url_scheme"] == "https" else "http"


_VARIABLES: dict[str, _Part] = {
    "uri": _uri,
    "request_uri": _uri,
    "path": lambda request: _path_text(request.path),
    "query_string": _query_string,
    "host": _host,
    "scheme": _scheme,
}
