"""What proxy routes fill in: values of added headers and rewritten paths, taken apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.config import templates, urls
from acme_wsgi.config.kinds import Hinted
from acme_wsgi.config.templates import Group, Variable

PATTERN = re.compile(r"^/(?P<lang>..)/(.*)$")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("acme", ("acme",)),
        ("$remote_addr", (Variable("remote_addr"),)),
        ("$scheme://$host/", (Variable("scheme"), "://", Variable("host"), "/")),
        ("$$5 $$$host", ("$5 $", Variable("host"))),
        ("$host$request_id", (Variable("host"), Variable("request_id"))),
    ],
)
def test_the_parts_of_a_header(text: str, parts: tuple[str | Variable, ...]) -> None:
    assert templates.header(text) == parts


@pytest.mark.parametrize(("text", "hint"), [("$hots", "did you mean $host?"), ("$", ""), ("$_9", "")])
def test_a_variable_that_is_none(text: str, hint: str) -> None:
    with pytest.raises(Hinted, match=r"\$remote_addr, \$scheme, \$host, \$request_id, and \$\$") as caught:
        templates.header(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/", ("/",)),
        (r"/\2", ("/", Group(2))),
        (r"/\1/\g<2>\g<lang>", ("/", Group(1), "/", Group(2), Group(1))),
        (r"\g<0>", (Group(0),)),
        (r"/a\\1\1", ("/a\\1", Group(1))),
    ],
)
def test_the_parts_of_a_path(text: str, parts: tuple[str | Group, ...]) -> None:
    assert templates.rewrite(text, PATTERN) == parts
    # Whoever expands the text with Python's own means gets the same.
    match = PATTERN.match("/en/shop")
    assert match is not None
    expected = "".join(part if isinstance(part, str) else match[part.number] for part in parts)
    assert match.expand(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r"/\3", "there is no group 3: the expression has 2 groups"),
        (r"/\g<1000>", "there is no group '1000'"),
        (r"/\g<language>", "there is no group 'language'"),
        (r"/\g<>", "after a backslash"),
        (r"/\g<1", "after a backslash"),
        (r"/\100", "after a backslash"),
        (r"/\n", "after a backslash"),
        (r"/\0", "after a backslash"),
        ("/\\", "after a backslash"),
        ("shop", "a path that starts with /"),
    ],
)
def test_a_path_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        templates.rewrite(text, PATTERN)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://a", "http://a"),
        ("HTTP://A.Example:80/", "http://a.example"),
        ("https://a:443/B/", "https://a/B"),
        ("http://a:443", "http://a:443"),
        ("http://U:P@A/", "http://U:P@a"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://[::1]", "http://[::1]"),
        ("unix:/run/App.sock", "unix:/run/App.sock"),
        ("unix:///run/App.sock", "unix:/run/App.sock"),
        ("localhost", "localhost"),
    ],
)
def test_one_spelling_for_all(url: str, normal: str) -> None:
    assert urls.normal(url) == normal
    assert urls.normal(normal) == normal


@pytest.mark.parametrize(
    ("url", "masked", "bare"),
    [
        ("http://a:1/b", "http://a:1/b", "http://a:1/b"),
        ("http://u:hush@a:1", "http://u:***@a:1", "http://a:1"),
        ("http://u@a", "http://u@a", "http://a"),
        ("unix:/run/a.sock", "unix:/run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_what_of_a_url_is_shown(url: str, masked: str, bare: str) -> None:
    assert urls.masked(url) == masked
    assert urls.without_account(url) == bare


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://x/y", "ftp://x/y"),
        ("app1:8000", "app1:8000"),
        ("app1", "app1"),
        ("http:/app1/a", "http:/app1/a"),
        ("http://a:99999/b", "http://a:99999/b"),
        ("http://[::1", "http://[::1"),
        ("http://[::1]:x", "http://[::1]:***"),
        ("unix:run/a@b", "unix:run/a@b"),
        ("http://u@a b", "http://u@a b"),
        ("http://a#b", "http://a#b"),
        ("", ""),
        ("http://u:hush@a b/c", "http://u:***@a b/c"),
        ("http://u:hu/sh@a:x", "http://u:***@a:***"),
        ("http://u:hu#sh@a", "http://u:***@a"),
        ("http://u:hu@sh@a", "http://u:***@a"),
        ("http://u:hu://sh@a", "http://u:***@a"),
        ("http://u:hu?sh@a", "http://u:***"),
        ("http//u:hush@a", "http//u:***@a"),
        ("u:hu://sh@a", "u:***@a"),
        ("redis://:hush", "redis://:***"),
        ("postgresql://u:hush/db", "postgresql://u:***"),
        ("http://a?token=hush", "http://a?***"),
        ("http://a?token=hu@sh", "http://a?***"),
        ("http://a:80?token=hu@sh", "http://a:***"),
        ("unix:///a?password=hush", "unix:///a?***"),
    ],
)
def test_what_is_shown_of_a_text_that_is_no_url(text: str, shown: str) -> None:
    assert urls.refused(text) == shown


@given(
    st.sampled_from(["http://", "http:/", "//", "redis://", "ftp://["]), st.text("ab/?#:@[] .", max_size=8)
)
def test_a_password_is_never_shown(start: str, hidden: str) -> None:
    assert "hush" not in urls.refused(f"{start}joe:{hidden}hush@host")
    assert "hush" not in urls.refused(f"{start}joe:hush{hidden}@host")
