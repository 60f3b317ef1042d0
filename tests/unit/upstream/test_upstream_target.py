"""The URL of a backend, taken apart."""

from __future__ import annotations

import base64

import pytest

from acme_wsgi.config import grammar
from acme_wsgi.upstream.target import Target


def account(target: Target) -> bytes:
    assert target.authorization is not None
    scheme, _, value = target.authorization.partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(value, validate=True)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "prefix", "authority"),
    [
        ("http://app1.internal:8000", "http", "app1.internal", 8000, "", "app1.internal:8000"),
        ("http://app1.internal", "http", "app1.internal", 80, "", "app1.internal"),
        ("http://app1.internal:80/", "http", "app1.internal", 80, "", "app1.internal"),
        ("http://app1.internal:/", "http", "app1.internal", 80, "", "app1.internal"),
        ("http://app1.internal:443/", "http", "app1.internal", 443, "", "app1.internal:443"),
        ("https://app1.internal/base", "https", "app1.internal", 443, "/base", "app1.internal"),
        ("https://app1:8443/base/v2/", "https", "app1", 8443, "/base/v2", "app1:8443"),
        ("HTTPS://App1.Internal/Base", "https", "app1.internal", 443, "/Base", "app1.internal"),
        ("http://my_app:8000", "http", "my_app", 8000, "", "my_app:8000"),
        ("http://10.0.0.7:8000", "http", "10.0.0.7", 8000, "", "10.0.0.7:8000"),
        ("http://[::1]:8000/x", "http", "::1", 8000, "/x", "[::1]:8000"),
        ("http://[2001:DB8:0::1]", "http", "2001:db8::1", 80, "", "[2001:db8::1]"),
        ("http://[fe80::1%25eth0]:81", "http", "fe80::1%eth0", 81, "", "[fe80::1]:81"),
        ("http://[fe80::1%eth0]:81", "http", "fe80::1%eth0", 81, "", "[fe80::1]:81"),
        ("http://bücher.example/", "http", "xn--bcher-kva.example", 80, "", "xn--bcher-kva.example"),
        ("http://例え.テスト:81", "http", "xn--r8jz45g.xn--zckzah", 81, "", "xn--r8jz45g.xn--zckzah:81"),
        ("http://h/a%2Fb/ü", "http", "h", 80, "/a%2Fb/%C3%BC", "h"),
    ],
)
def test_a_url_is_taken_apart(
    url: str, scheme: str, host: str, port: int, prefix: str, authority: str
) -> None:
    target = Target.parse(url)
    found = (target.scheme, target.host, target.port, target.prefix, target.authority)
    assert found == (scheme, host, port, prefix, authority)
    assert (target.socket, target.authorization, target.tls) == ("", None, scheme == "https")


@pytest.mark.parametrize("url", ["unix:/run/app.sock", "unix:///run/app.sock"])
def test_a_unix_socket(url: str) -> None:
    target = Target.parse(url)
    assert (target.scheme, target.socket, target.authority) == ("unix", "/run/app.sock", "localhost")
    assert (target.host, target.port, target.prefix, target.authorization) == ("", 0, "", None)
    assert not target.tls
    assert target.shown == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://joe:secret@h/", b"joe:secret"),
        ("http://joe:p%40ss%3Aw@h/", b"joe:p@ss:w"),
        ("http://joe:a:b@h/", b"joe:a:b"),
        ("http://joe@h/", b"joe:"),
        ("http://:secret@h/", b":secret"),
        ("http://j%C3%B6:ö@h/", "jö:ö".encode()),
        ("http://a@b:c@h/", b"a@b:c"),
    ],
)
def test_an_account_becomes_basic_credentials(url: str, expected: bytes) -> None:
    target = Target.parse(url)
    assert account(target) == expected
    assert target.host == target.authority == "h"


def test_no_password_is_shown() -> None:
    target = Target.parse("http://joe:secret@app1.internal:8000/base")
    assert target.shown == "http://joe:***@app1.internal:8000/base"
    assert target.authorization is not None
    for text in (repr(target), str(target)):
        assert "secret" not in text
        assert target.authorization not in text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://App1.Internal:8443", "app1.internal"),
        ("https://app1.internal.", "app1.internal"),
        ("https://[fe80::1%25eth0]", "fe80::1"),
        ("https://10.0.0.7", "10.0.0.7"),
    ],
)
def test_the_name_in_the_certificate(url: str, name: str) -> None:
    assert Target.parse(url).server_name == name


@pytest.mark.parametrize(
    "url",
    [
        "", "app1:8000", "//app1", "ftp://h/", "http:h", "http://", "http:///path", "http://:80/",
        "http://joe:secret@", "http://h:0/", "http://h:65536/", "http://h:x/", "http://h:-1/",
        "http://h:8 0/", "http://h:80:80/", "http://h/?q=secret", "http://h?secret", "http://h/#secret",
        "http://h/a b", "http://h/a\r\nHost: secret", "http://h\n/", "http://h\t/", " http://h/", "http://h/\x7f",
        "http://[::1/", "http://::1/", "http://[::1]x/", "http://x[::1]/", "http://[10.0.0.1]/", "http://[v1.a]/",
        "http://[fe80::1%]/", "http://1234/", "http://10.0.0.256/", "http://a..b/", "http://ü..b/",
        "http://-h/", "http://h\\secret/", "http://straße.example/", "http://a\u200db.example/",
        "http://jo%3Ae:secret@h/", "http://joe:secret%0A@h/", "http://joe:secret%00@h/",
        "unix:", "unix:relative.sock", "unix:/" + "x" * 107, "unix:/run/a\0b", "UNIX:/run/app.sock",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_backend_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        Target.parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://h:8443/base",
        "http://j:p@h",
        "http://[::1]:80",
        "http://[fe80::1%25e0]/",
        "unix:/a",
    ],
)
def test_what_the_configuration_accepts_is_understood(url: str) -> None:
    grammar.backend_url(url)
    assert Target.parse(url).shown
