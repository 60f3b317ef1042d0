# ruff: noqa: E501 - tables of texts
"""What texts may look like."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.config import grammar

GOOD: list[tuple[Callable[[str], None], list[str]]] = [
    (grammar.bind_host, ["0.0.0.0", "::", "[::1]", "localhost", "a-b.example.", "unix:/run/acme/http.sock"]),
    (grammar.peer, ["10.0.0.0/8", "::1", "unix:"]),
    (grammar.account, ["www-data", "1000", "_acme", "acme$"]),
    (grammar.route_path, ["/", "/a", "/a/*", "/*", "/users/:id", "/:a/:b/*", "~ ^/u/(\\d+)$", "/é"]),
    (grammar.statement_pattern, ["SELECT .* FROM users WHERE id = ?", "IN (?, ?)", "(?:a|b)", "x = ?"]),
    (grammar.route_host, ["example.org", "*.example.org", "[::1]", "10.0.0.1"]),
    (grammar.host_and_port, ["a", "a:1", "[::1]:1", "10.0.0.1:65535"]),
    (grammar.backend_url, ["http://a", "https://a:1/b", "unix:/run/a.sock", "http://u:p@a"]),
    (grammar.added_header, ["X-Real-IP", "Host", "Forwarded"]),
    (grammar.removed_header, ["X-Debug", "Accept-Encoding", "Expect", "UPGRADE"]),
    (grammar.header_template, ["a", "$remote_addr", "$scheme://$host/$$x", "$$$request_id", 'a b; c="d"']),
    (grammar.header_value, ["", "public, max-age=60", "é", "\xa0\xff"]),
    (grammar.sent_path, ["/", "/health", "/h%C3%A9"]),
    (
        grammar.host_template,
        ["a", "a_b.c:80", "[::1]:1", "$host", "$request_id.a", "$remote_addr:80", "$scheme.$host"],
    ),
    (grammar.rewritten_path, ["/a", "/\\1", "\\g<name>/b", "a"]),
    (grammar.redis_url, ["redis://h", "rediss://:p@h:1/0", "unix:///run/r.sock?db=1"]),
    (
        grammar.database_url,
        ["postgresql://u:p@h/db", "postgresql:///db", "sqlite:////a.db", "sqlite:///a.db"],
    ),
    (grammar.callable_name, ["a:b", "a.b:c.d", "a:b()", 'a:b("x", y=1)', "a"]),
    (grammar.function_name, ["a:b", "a.b:c.d"]),
    (grammar.redirect_target, ["/a", "https://a/b?c#d", "/$1"]),
    (grammar.cron, ["0 6 * * *", "*/5 0-6,8 1 jan-mar mon-fri", "59 23 31 12 7", "0-30/10 * * * *"]),
    (grammar.mime_type, ["text/html", "text/*", "application/vnd.a+json"]),
    (grammar.versioned_pattern, ["/s/{file}-{hash}.{ext}"]),
    (grammar.log_field, ["service", "host.name", "_a-1", "a" * 64]),
]
BAD: list[tuple[Callable[[str], None], list[str]]] = [
    (grammar.bind_host, ["", "a b", "999.1.1.1", "http://a", "unix:a", "unix:/" + "a" * 107, "-a", "a..b", "[10.0.0.1]"]),
    (grammar.peer, ["10.0.0.1/8", "10.0.0.0/33", "a", "unix:/a"]),
    (grammar.account, ["", "a b", "-a", "root:root"]),
    (grammar.route_path, ["", "a", "/a b", "/a?b", "/a*", "/*/a", "/*/*", "~ (", "/:", "/:1", "/:a/:a", "/:a-b"]),
    (grammar.regexp, ["(", "*", "[a"]),
    (grammar.route_host, ["a:80", "*", "*.*.a", "http://a"]),
    (grammar.host_and_port, ["a:0", "a:65536", "a:b", ":1", "::1:1", "[::1", "[::1]1", "[::1]x"]),
    (grammar.backend_url, ["a", "ftp://a", "http://", "http://a:b", "http://a:99999", "http:a", "http://a b", "unix:a", "http://a?b", "http://a#b"]),
    (grammar.redis_url, ["http://a", "redis://", "unix://a"]),
    (grammar.database_url, ["mysql://a/b", "sqlite:///", "postgresql:db"]),
    (grammar.callable_name, ["", ":", "a:", ":b", "a b", "a/b.py:c", "a:b(", "1a:b", "a:b;c"]),
    (grammar.function_name, ["a", "a:b()", "a:"]),
    (grammar.redirect_target, ["a", "javascript:x", "/a b", "/a\r\nb"]),
    (grammar.cron, ["", "* * * *", "60 * * * *", "* * * * 8", "*/0 * * * *", "5-1 * * * *", "* * * mon *", "a * * * *", "1-2-3 * * * *"]),
    (grammar.header_name, ["", "a b", "a:", "ä"]),
    (grammar.added_header, ["", "a b", "Connection", "KEEP-ALIVE", "te", "Upgrade", "Content-Length", "transfer-encoding", "Trailer", "Proxy-Connection", "expect"]),
    (grammar.removed_header, ["", "a b", "Content-Length", "Transfer-Encoding", "host", "Connection", "keep-alive", "TE", "Proxy-Connection", "Proxy-Authorization"]),
    (grammar.header_template, ["$", "a $ b", "$remote_adr", "$1", "${host}", "a\nb", "a\x7f", "é", " a", "a "]),
    (grammar.header_value, ["caf\u20ac", "a\nb", "a\0", "a\x7f"]),
    (grammar.sent_path, ["", "a", "/a b", "/a?b", "/é", "/\u20ac", "/\x7f"]),
    (grammar.host_template, ["a b", "a/b", "u@a", "a:b", "$host $host", "$scheme://$host", "$hos", "[::1", "[fe80::1%lo]", "::1"]),
    (grammar.rewritten_path, ["/a b", "/a?b", "/a#b"]),
    (grammar.mime_type, ["html", "*/*", "text/", "text/a b"]),
    (grammar.file_extension, ["css", ".", ".a/b"]),
    (grammar.file_name, ["a/b", "..", "."]),
    (grammar.tried, ["", "index.html", "$host", "$uri$x", "/../x", "$uri/../../x", "=200", "=40", "=4044", "=404\n"]),
    (grammar.versioned_pattern, ["/s/{file}.{ext}", "s/{file}-{hash}.{ext}", "/{hash}{hash}{file}{ext}", "/s/{hash}/{file}.{ext}"]),
    (grammar.output, ["acme.log", "stdin"]),
    (grammar.log_field, ["", "a b", "1a", "a=b", "é", "a" * 65, "status", "host", "timestamp", "a\n"]),
    (grammar.probe, ["", "health", "/a b", "/é", "/a\r\nX: y", "**"]),
]  # fmt: skip


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in GOOD for text in texts])
def test_what_is_allowed(check: Callable[[str], None], text: str) -> None:
    assert check(text) is None


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in BAD for text in texts])
def test_what_is_not(check: Callable[[str], None], text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check(text)


CHECKS = [check for name, check in inspect.getmembers(grammar, inspect.isfunction) if check.__module__ == grammar.__name__ and not name.startswith("_")]  # fmt: skip
HARD = st.text(st.sampled_from("a1.:/*~[](){}?+$\\-@%#=, \u0660é\n\0") | st.characters(), max_size=30)


@given(st.sampled_from(CHECKS), st.sampled_from(["", "http://", "redis://", "unix:", "~ ", "/", "["]), HARD)
def test_no_text_raises_anything_but_a_value_error(
    check: Callable[[str], None], start: str, text: str
) -> None:
    try:
        check(start + text)
    except ValueError as error:
        assert str(error)


def test_every_check_has_examples() -> None:
    assert {check for check, _ in GOOD + BAD} >= {check for check in CHECKS if check not in COMPOSED}


# Used by others, or too simple to be wrong by themselves.
COMPOSED = {grammar.absolute, grammar.socket_path, grammar.network, grammar.url_path, grammar.http_url, grammar.peer_host, grammar.cookie_name, grammar.method}  # fmt: skip
