"""Flask, Django and httpbin behind `acme-wsgi -c`: each is served as its own users would use it.

Knows the clients of the standard library and tests/apps/frameworks. Uploads are in test_uploads.py, what
one request must not see of another in test_isolation.py.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import brotlicffi
import pytest

from acme_wsgi.config import load
from tests.server import ROOT, Launcher, Server, wait_until

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

MB = 1 << 20


def running(where: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server for a whole module's tests."""
    launcher = Launcher(where)
    try:
        yield launcher(config, env=env or {})
        launcher.finish()
    finally:
        launcher.kill()


def serves(app: str, **server: Any) -> dict[str, Any]:
    return {"server": server, "routes": [{"path": "/*", "type": "wsgi", "app": app}]}


class Browser:
    """A client that keeps cookies and follows redirects only when asked."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookies = http.cookiejar.CookieJar()

    def __call__(
        self,
        target: str,
        data: bytes | Mapping[str, str] | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        follow: bool = False,
    ) -> tuple[HTTPResponse, bytes]:
        if isinstance(data, Mapping):
            data = urllib.parse.urlencode(data).encode()
        url = target if target.startswith("http") else self.server.url + target
        request = urllib.request.Request(url, data, dict(headers or {}), method=method)
        handlers: list[Any] = [
            urllib.request.HTTPCookieProcessor(self.cookies),
            urllib.request.ProxyHandler({}),
        ]
        if not follow:
            handlers.append(_Stay())
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=20) as answer:
                return answer, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error, error.read()  # type: ignore[return-value]

    def json(self, target: str, *args: Any, **options: Any) -> Any:
        answer, body = self(target, *args, **options)
        assert answer.status == 200, (target, answer.status, body)
        return json.loads(body)

    def cookie(self, name: str) -> str | None:
        return next((cookie.value for cookie in self.cookies if cookie.name == name), None)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("example", ["flask", "django"])
def test_the_examples_load(example: str) -> None:
    config = load([str(ROOT / "examples" / example / "conf.d")], {})
    assert (len(config.routes) > 0, config.warnings) == (True, ())
    assert config.server.trusted_proxies


# ------------------------------------------------------------------------------------------------ Flask


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    where = tmp_path_factory.mktemp("flask")
    (where / "a.bin").write_bytes(os.urandom(3 * MB))
    yield from running(where, serves("tests.apps.frameworks.flask_app:app"), {"FILES": str(where)})


def test_flask_sessions(flask: Server) -> None:
    one, other = Browser(flask), Browser(flask)
    assert [one("/count")[1], one("/count")[1], other("/count")[1], one("/count")[1]] == [
        b"1",
        b"2",
        b"1",
        b"3",
    ]
    assert one("/count")[0].headers["X-Seen"] == "1"


def test_flask_streams_with_its_context(flask: Server) -> None:
    answer, body = Browser(flask)("/stream/100?word=piece")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert body.decode().splitlines() == [f"piece {number}" for number in range(100)]


def test_flask_takes_forms_files_and_json(flask: Server) -> None:
    browser = Browser(flask)
    content = b"\0\r\n--" * 100_000
    body, kind = multipart({"name": "J\u00fcrgen"}, {"file": content})
    assert browser.json("/form", body, headers={"Content-Type": kind}) == {
        "form": {"name": "J\u00fcrgen"},
        "files": {"file": len(content)},
    }
    document = {"a": [1, None, "\u00e9"]}
    sent = json.dumps(document).encode()
    assert browser.json("/json", sent, headers={"Content-Type": "application/json"}) == document


def test_flask_takes_chunks(flask: Server) -> None:
    head = b"POST /json HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    with flask.connect() as wire:
        wire.send(head).trickle(b"5\r\n[1, 2\r\n4\r\n, 3]\r\n0\r\n\r\n")
        assert json.loads(wire.reply().text) == [1, 2, 3]
        assert wire.request("/teapot").status == 418


def test_flask_errors_are_flasks(flask: Server) -> None:
    browser = Browser(flask)
    answer, body = browser("/teapot")
    assert (answer.status, b"teapot" in body) == (418, True)
    assert browser("/nowhere")[0].status == 404
    answer, _ = browser("/count", b"", method="POST")
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    answer, _ = browser("/json", b"{", headers={"Content-Type": "application/json"})
    assert answer.status == 400


def test_a_flask_error_is_logged_and_not_shown(acme: Launcher) -> None:
    server = acme(serves("tests.apps.frameworks.flask_app:app"))
    server.errors_expected = True
    reply = server.get("/boom")
    assert reply.status == 500
    assert "secret" not in reply.text
    server.wait_for_log("RuntimeError: a secret of the application")


def test_flask_makes_links_to_where_it_was_asked(flask: Server) -> None:
    assert Browser(flask)("/link")[1].decode() == f"{flask.url}/file/a.bin"
    assert flask.get("/link", headers=["X-Forwarded-Host: evil.example"]).text == "http://test/file/a.bin"


@pytest.mark.parametrize("app", ["fixed", 'create("/shop")'])
def test_flask_behind_proxy_fix(acme: Launcher, app: str) -> None:
    """werkzeug's ProxyFix around the application, as an attribute and made by a factory."""
    server = acme(serves(f"tests.apps.frameworks.flask_app:{app}"))
    headers = ["For: 203.0.113.9", "Proto: https", "Host: shop.example", "Prefix: /shop"]
    lines = [f"X-Forwarded-{header}" for header in headers]
    assert server.get("/link", headers=lines).text == "https://shop.example/shop/file/a.bin"
    assert json.loads(server.get("/who", headers=lines).text) == {
        "address": "203.0.113.9",
        "scheme": "https",
        "host": "shop.example",
        "root": "/shop",
    }


def test_flask_behind_the_servers_own_trust(acme: Launcher) -> None:
    """trusted_proxies does for address, scheme and host what ProxyFix does, without it."""
    server = acme(serves("tests.apps.frameworks.flask_app:app", trusted_proxies=["127.0.0.0/8"]))
    lines = ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example"]
    assert server.get("/link", headers=lines).text == "https://shop.example/file/a.bin"


def test_flask_sends_a_file_in_the_kernel(acme: Launcher, tmp_path: Path) -> None:
    content = os.urandom(3 * MB)
    (tmp_path / "a.bin").write_bytes(content)
    server = acme(serves("tests.apps.frameworks.flask_app:app"), env={"FILES": str(tmp_path)})
    trace = tmp_path / "trace"
    with traced(server.worker_pids()[0], trace):
        reply = server.get("/file/a.bin")
    assert reply.body == content
    calls = re.findall(r"sendfile\(\d+, \d+, .*\) += (\d+)", trace.read_text())
    assert sum(map(int, calls)) == len(content), "the whole body, and nothing else, went through sendfile(2)"


class traced:
    """strace on a process; its sendfile calls are in `output`."""

    def __init__(self, pid: int, output: Path) -> None:
        strace = shutil.which("strace")
        assert strace is not None, "strace is needed (scripts/test installs it)"
        command = [strace, "-f", "-qq", "-e", "trace=sendfile", "-o", str(output), "-p", str(pid)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.status = Path(f"/proc/{pid}/status")

    def __enter__(self) -> None:
        wait_until(lambda: "TracerPid:\t0\n" not in self.status.read_text(), "strace is attached")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=10)


def test_flask_ranges_and_conditions_of_a_file(flask: Server) -> None:
    browser = Browser(flask)
    whole = browser("/file/a.bin")[1]
    assert len(whole) == 3 * MB
    answer, part = browser("/file/a.bin", headers={"Range": "bytes=1000000-1000099"})
    assert (answer.status, part) == (206, whole[1_000_000:1_000_100])
    assert answer.headers["Content-Range"] == f"bytes 1000000-1000099/{3 * MB}"
    answer, none = browser("/file/a.bin", headers={"If-None-Match": answer.headers["ETag"]})
    assert (answer.status, none) == (304, b"")
    reply = flask.get("/file/a.bin", method="HEAD")
    assert (reply.header("Content-Length"), reply.body) == (str(3 * MB), b"")


def test_flask_wrong_length_never_sends_more(acme: Launcher) -> None:
    server = acme(serves("tests.apps.frameworks.flask_app:app"))
    server.errors_expected = True
    raw = server.raw(b"GET /wrong-length HTTP/1.1\r\nHost: a\r\n\r\n")
    assert raw.partition(b"\r\n\r\n")[2] == b"ab"
    server.wait_for_log("more than its Content-Length")


# ----------------------------------------------------------------------------------------------- Django


@pytest.fixture(scope="module")
def django(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    where = tmp_path_factory.mktemp("django")
    env = {"SITE_DATA": str(where), "DJANGO_SETTINGS_MODULE": "tests.apps.frameworks.django_site.settings"}
    prepare_django(env)
    (where / "b.txt").write_bytes(b"line\n" * 100_000)
    yield from running(where, serves("tests.apps.frameworks.django_site.wsgi:application"), env)


def prepare_django(env: Mapping[str, str]) -> None:
    """Make its database and a user who may log in."""
    code = (
        "import django; django.setup()\n"
        "from django.core.management import call_command as call\n"
        "call('migrate', verbosity=0)\n"
        "from django.contrib.auth.models import User\n"
        "User.objects.create_superuser('admin', 'a@example.org', 'correct horse')\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, cwd=ROOT, check=True)


def log_in(browser: Browser, password: str) -> tuple[HTTPResponse, bytes]:
    _, page = browser("/admin/login/?next=/admin/")
    token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    fields = {"username": "admin", "password": password, "next": "/admin/"}
    return browser("/admin/login/", {**fields, "csrfmiddlewaretoken": token[1].decode()})


def test_the_admins_login_page(django: Server) -> None:
    answer, page = Browser(django)("/admin/", follow=True)
    assert answer.status == 200
    assert answer.url == f"{django.url}/admin/login/?next=/admin/"
    assert b"Log in | Django site admin" in page


def test_the_admins_static_files(django: Server) -> None:
    browser = Browser(django)
    _, page = browser("/admin/login/")
    links = re.findall(rb'(?:href|src)="(/static/[^"]+)"', page)
    assert len(links) >= 3
    for link in links:
        answer, body = browser(link.decode())
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(body))
        assert body == admin_asset(link.decode())


def admin_asset(link: str) -> bytes:
    from django import contrib

    return (Path(contrib.__path__[0]) / "admin" / link.lstrip("/")).read_bytes()


def test_a_login_with_its_csrf_token(django: Server) -> None:
    browser = Browser(django)
    answer, _ = log_in(browser, "correct horse")
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/")
    answer, page = browser("/admin/")
    assert answer.status == 200
    assert b"Site administration" in page
    assert browser.json("/whoami")["user"] == "admin"
    assert Browser(django).json("/whoami")["user"] == "AnonymousUser"


def test_a_login_with_a_wrong_password(django: Server) -> None:
    browser = Browser(django)
    answer, page = log_in(browser, "wrong")
    assert answer.status == 200
    assert b"Please enter the correct username and password" in page
    assert browser.cookie("sessionid") is None


def test_a_post_without_the_token_is_refused(django: Server) -> None:
    answer, _ = Browser(django)("/admin/login/", {"username": "admin", "password": "correct horse"})
    assert answer.status == 403


def test_a_form_in_the_admin_makes_a_row(django: Server) -> None:
    browser = Browser(django)
    log_in(browser, "correct horse")
    _, page = browser("/admin/auth/group/add/")
    token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    body, kind = multipart({"csrfmiddlewaretoken": token[1].decode(), "name": "Les \u00e9diteurs"}, {})
    answer, _ = browser("/admin/auth/group/add/", body, headers={"Content-Type": kind})
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/auth/group/")
    assert "Les \u00e9diteurs" in browser("/admin/auth/group/")[1].decode()


def test_django_streams(django: Server) -> None:
    answer, body = Browser(django)("/stream/500")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert body.decode() == "".join(f"line {number}\n" for number in range(500))


def test_django_sends_a_file_in_the_kernel(django: Server, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with traced(django.worker_pids()[0], trace):
        reply = django.get("/file/b.txt")
    assert reply.body == b"line\n" * 100_000
    calls = re.findall(r"sendfile\(\d+, \d+, .*\) += (\d+)", trace.read_text())
    assert sum(map(int, calls)) == 500_000


def test_django_knows_its_own_address(django: Server) -> None:
    seen = Browser(django).json("/whoami")
    assert seen == {"user": "AnonymousUser", "address": "127.0.0.1", "url": f"{django.url}/whoami"}


# ---------------------------------------------------------------------------------------------- httpbin


@pytest.fixture(scope="module")
def httpbin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running(tmp_path_factory.mktemp("httpbin"), serves("httpbin:app"))


def multipart(fields: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A form as browsers send it: body and Content-Type."""
    mark = "----mark7d1b2"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
        for k, v in fields.items()
    ]
    for name, content in files.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.bin"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_httpbin_methods(httpbin: Server, method: str) -> None:
    browser = Browser(httpbin)
    own = browser.json(f"/{method.lower()}?a=1&a=2", None if method == "GET" else b"x=y", method=method)
    assert own["args"] == {"a": ["1", "2"]}
    assert own["url"] == f"{httpbin.url}/{method.lower()}?a=1&a=2"
    any_ = browser.json("/anything/deeper?b=3", None if method == "GET" else b"x=y", method=method)
    assert (any_["method"], any_["args"], any_["origin"]) == (method, {"b": "3"}, "127.0.0.1")
    if method != "GET":
        assert own["form"] == any_["form"] == {"x": "y"}


def test_httpbin_head_options_trace(httpbin: Server) -> None:
    whole = httpbin.get("/get")
    head = httpbin.get("/get", method="HEAD")
    assert (head.status, head.body, head.header("Content-Length")) == (
        200,
        b"",
        whole.header("Content-Length"),
    )
    options = httpbin.get("/get", method="OPTIONS")
    assert set((options.header("Allow") or "").split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert httpbin.get("/anything", method="TRACE").status == 200
    assert httpbin.get("/get", method="BREW").status == 405


@pytest.mark.parametrize(
    "status", [200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 406, 418, 429, 500, 503, 599]
)
def test_httpbin_status(httpbin: Server, status: int) -> None:
    with httpbin.connect() as wire:
        for method in ("GET", "PUT", "DELETE", "PATCH", "POST"):
            reply = wire.request(f"/status/{status}", method=method, headers=["Content-Length: 0"])
            assert reply.status == status
            assert wire.request("/get").status == 200, "the connection is where it should be"


@pytest.mark.parametrize("status", [301, 302, 303, 305, 307])
def test_httpbin_redirecting_status(httpbin: Server, status: int) -> None:
    reply = httpbin.get(f"/status/{status}")
    assert (reply.status, reply.header("Location")) == (status, "/redirect/1")


def test_httpbin_what_was_asked(httpbin: Server) -> None:
    browser = Browser(httpbin)
    sent = {"User-Agent": "a/1", "X-One": "1", "Accept-Language": "de, en;q=0.5"}
    assert browser.json("/headers", headers=sent)["headers"].items() >= sent.items()
    assert browser.json("/ip") == {"origin": "127.0.0.1"}
    assert browser.json("/user-agent", headers=sent) == {"user-agent": "a/1"}
    assert len(browser.json("/uuid")["uuid"]) == 36
    assert browser.json("/response-headers?X-A=1&X-A=2&Server=mine")["X-A"] == ["1", "2"]
    reply = httpbin.get("/response-headers?X-A=1&X-A=2")
    assert [value for name, value in reply.headers if name == "X-A"] == ["1", "2"]
    assert browser("/base64/aGVsbG8=")[1] == b"hello"


def test_httpbin_bodies(httpbin: Server) -> None:
    browser = Browser(httpbin)
    assert browser.json("/post", {"a": "\u00e4 b", "c": ""})["form"] == {"a": "\u00e4 b", "c": ""}
    body, kind = multipart({"field": "v"}, {"file": b"content"})
    seen = browser.json("/post", body, headers={"Content-Type": kind})
    assert (seen["form"], seen["files"]) == ({"field": "v"}, {"file": "content"})
    document = {"a": [1, 2, {"b": None}]}
    seen = browser.json("/post", json.dumps(document).encode(), headers={"Content-Type": "application/json"})
    assert (seen["json"], seen["data"]) == (document, json.dumps(document))
    raw = bytes(range(256))
    seen = browser.json("/post", raw, headers={"Content-Type": "application/octet-stream"})
    assert seen["data"] == "data:application/octet-stream;base64," + base64.b64encode(raw).decode()


def test_httpbin_itself_refuses_chunks(httpbin: Server) -> None:
    """It takes them from gunicorn only; the answer is its own, and the unread body is no next request."""
    head = b"POST /post HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with httpbin.connect() as wire:
        reply = wire.send(head, b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n").reply()
        assert (reply.status, "Chunked requests are not supported" in reply.text) == (501, True)
        assert wire.request("/get").status == 200


def test_httpbin_encodings(httpbin: Server) -> None:
    browser = Browser(httpbin)
    for name, decode in (
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
        ("brotli", brotlicffi.decompress),
    ):
        answer, body = browser(f"/{name}")
        assert answer.headers["Content-Encoding"] == {"brotli": "br"}.get(name, name)
        document = json.loads(decode(body))
        assert document.get("gzipped") or document.get("deflated") or document.get("brotli")
    assert "\u2200x\u2208\u211d" in browser("/encoding/utf8")[1].decode()
    for page in ("/html", "/xml", "/json", "/robots.txt", "/deny", "/"):
        answer, body = browser(page)
        assert (answer.status, bool(body)) == (200, True)


def test_httpbin_bytes(httpbin: Server) -> None:
    browser = Browser(httpbin)
    assert len(browser("/bytes/1024?seed=1")[1]) == 1024
    assert browser("/bytes/1024?seed=1")[1] == browser("/bytes/1024?seed=1")[1]
    answer, streamed = browser("/stream-bytes/50000?chunk_size=777&seed=1")
    assert (answer.headers["Transfer-Encoding"], len(streamed)) == ("chunked", 50000)
    assert browser("/bytes/50000?seed=1")[1] == streamed
    lines = browser("/stream/20")[1].splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(20))
    answer, dripped = browser("/drip?numbytes=20&duration=1&delay=0")
    assert (answer.status, dripped, answer.headers["Content-Length"]) == (200, b"*" * 20, "20")
    whole = browser("/range/1024")[1]
    assert len(whole) == 1024
    answer, part = browser("/range/1024?duration=0&chunk_size=10", headers={"Range": "bytes=100-299"})
    assert (answer.status, part, answer.headers["Content-Range"]) == (
        206,
        whole[100:300],
        "bytes 100-299/1024",
    )
    assert browser("/range/1024", headers={"Range": "bytes=5000-"})[0].status == 416


def test_httpbin_drips_as_it_comes(httpbin: Server) -> None:
    """The first byte is here while the application still waits to make the last."""
    with httpbin.connect() as wire:
        wire.send(b"GET /drip?numbytes=3&duration=3&delay=0 HTTP/1.1\r\nHost: a\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n*"):
            head += wire.exactly(1)
        assert wire.silent(0.3), "the next one isn't here yet"
        assert wire.exactly(2) == b"**"


def test_httpbin_delay_holds_nobody_up(httpbin: Server) -> None:
    """Twenty of one second each, in one worker, take one second."""
    wires = [httpbin.connect() for _ in range(20)]
    began = time.monotonic()
    for wire in wires:
        wire.send(b"GET /delay/1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert {wire.reply().status for wire in wires} == {200}
    assert 1 <= time.monotonic() - began < 5
    for wire in wires:
        wire.close()


def test_httpbin_redirects(httpbin: Server) -> None:
    browser = Browser(httpbin)
    for target in ("/redirect/3", "/relative-redirect/3", "/absolute-redirect/3"):
        answer, body = browser(target, follow=True)
        assert (answer.status, answer.url) == (200, f"{httpbin.url}/get"), body
    to = browser("/redirect-to?url=/anything/x&status_code=307", b"a=b", method="POST")[0]
    assert (to.status, to.headers["Location"]) == (307, "/anything/x")
    assert httpbin.get("/absolute-redirect/1").header("Location") == "http://test/get"


def test_httpbin_cookies(httpbin: Server) -> None:
    browser = Browser(httpbin)
    _, body = browser("/cookies/set?one=1&two=2", follow=True)
    assert json.loads(body) == {"cookies": {"one": "1", "two": "2"}}
    assert browser("/cookies/set/three/3")[0].status == 302
    assert browser.json("/cookies")["cookies"] == {"one": "1", "two": "2", "three": "3"}
    browser("/cookies/delete?one=", follow=True)
    assert browser.json("/cookies")["cookies"] == {"two": "2", "three": "3"}


def test_httpbin_authentication(httpbin: Server) -> None:
    browser = Browser(httpbin)
    right = {"Authorization": "Basic " + base64.b64encode(b"user:pass").decode()}
    assert browser("/basic-auth/user/pass")[0].status == 401
    assert browser.json("/basic-auth/user/pass", headers=right)["authenticated"] is True
    assert browser("/hidden-basic-auth/user/pass")[0].status == 404
    assert browser.json("/hidden-basic-auth/user/pass", headers=right)["authenticated"] is True
    assert browser("/bearer")[0].status == 401
    assert browser.json("/bearer", headers={"Authorization": "Bearer abc"})["token"] == "abc"


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_httpbin_digest_authentication(httpbin: Server, algorithm: str) -> None:
    browser = Browser(httpbin)
    target = f"/digest-auth/auth/user/pass/{algorithm}"
    asked = browser(target)[0]
    assert asked.status == 401
    asked_fields = dict(re.findall(r'(\w+)="([^"]*)"', asked.headers["WWW-Authenticate"]))

    def hash_(text: str) -> str:
        return hashlib.new(algorithm.replace("-", ""), text.encode()).hexdigest()

    first = hash_(f"user:{asked_fields['realm']}:pass")
    second = hash_(f"GET:{target}")
    response = hash_(f"{first}:{asked_fields['nonce']}:00000001:c:auth:{second}")
    given = (
        f'Digest username="user", realm="{asked_fields["realm"]}", nonce="{asked_fields["nonce"]}", '
        f'uri="{target}", '
        f'algorithm={algorithm}, opaque="{asked_fields["opaque"]}", qop=auth, nc=00000001, cnonce="c", '
        f'response="{response}"'
    )
    assert browser.json(target, headers={"Authorization": given})["authenticated"] is True
    wrong = given.replace(response, "0" * len(response))
    assert browser(target, headers={"Authorization": wrong})[0].status == 401


@pytest.mark.parametrize(
    ("kind", "begin"),
    [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF"), ("svg", b"<svg")],
)
def test_httpbin_images(httpbin: Server, kind: str, begin: bytes) -> None:
    browser = Browser(httpbin)
    answer, body = browser(f"/image/{kind}")
    assert answer.headers["Content-Type"] == f"image/{'svg+xml' if kind == 'svg' else kind}"
    assert body.startswith(begin)
    assert len(body) == int(answer.headers["Content-Length"])
    accepted, same = browser("/image", headers={"Accept": answer.headers["Content-Type"]})
    assert (accepted.status, same) == (200, body)
    assert browser("/image", headers={"Accept": "audio/ogg"})[0].status == 406


def test_httpbin_caching(httpbin: Server) -> None:
    browser = Browser(httpbin)
    fresh = browser("/cache")[0]
    assert fresh.status == 200
    assert browser("/cache", headers={"If-None-Match": fresh.headers["ETag"]})[0].status == 304
    assert browser("/cache", headers={"If-Modified-Since": fresh.headers["Last-Modified"]})[0].status == 304
    assert browser("/cache/60")[0].headers["Cache-Control"] == "public, max-age=60"
    assert browser("/etag/abc")[0].status == 200
    assert browser("/etag/abc", headers={"If-None-Match": '"abc"'})[0].status == 304
    assert browser("/etag/abc", headers={"If-Match": '"other"'})[0].status == 412


def test_httpbin_links(httpbin: Server) -> None:
    _, body = Browser(httpbin)("/links/5/2", follow=True)
    assert body.count(b"<a href=") == 4
    answer, _ = Browser(httpbin)("/links/3", follow=True)
    assert answer.url == f"{httpbin.url}/links/3/0"
