"""The sample site: each page answers, stays silent under the validator, and shows nothing unescaped."""

from __future__ import annotations

import hashlib
import io
import time
import warnings
import wsgiref.validate
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRequest, Received, receive
from werkzeug.test import EnvironBuilder

from acme_wsgi.handlers import function
from acme_wsgi.handlers.wsgi import adapt
from acme_wsgi.http.writer import FileBody
from sample import site


def get(path: str, method: str = "GET", **environ: Any) -> Received:
    return receive(adapt(site.application, "sample")(FakeRequest(path, method, **environ)))


@pytest.mark.parametrize("path", ["/", "/request", "/upload"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_pages_answer_and_the_validator_stays_silent(path: str, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = adapt(wsgiref.validate.validator(site.application), "sample")
        received = receive(handle(FakeRequest(path, method)))
    assert received.status == "200 OK"
    assert received.header("Content-Type") == "text/html; charset=utf-8"
    assert (b"</html>" in received.body) is (method == "GET")


def test_every_page_is_linked_from_the_home_page() -> None:
    body = get("/").body.decode()
    assert [path for path in site.PAGES if f'href="{path}"' not in body] == []


def test_what_the_client_sends_is_escaped_and_its_secrets_are_not_shown() -> None:
    body = get("/request", HTTP_X_EVIL="<script>alert(1)</script>", HTTP_COOKIE="session=secret").body
    assert b"&lt;script&gt;" in body
    assert b"<script>" not in body
    assert b"secret" not in body


def test_the_stream_is_sent_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    response = adapt(site.application, "sample")(FakeRequest("/stream"))
    assert slept == []  # the first line goes out before anybody waits
    lines = receive(response).body.decode().splitlines()
    assert len(lines) == len(slept) == 10


def test_an_upload_is_hashed() -> None:
    content = bytes(range(256)) * 1000
    form = EnvironBuilder(method="POST", data={"file": (io.BytesIO(content), "<n>.bin")})
    environ = form.get_environ()
    body = environ["wsgi.input"].read()
    request = FakeRequest("/upload", "POST", body=body, CONTENT_TYPE=environ["CONTENT_TYPE"])
    received = receive(adapt(site.application, "sample")(request))
    assert received.status == "200 OK"
    assert hashlib.sha256(content).hexdigest().encode() in received.body
    assert b"&lt;n&gt;.bin" in received.body


def test_an_upload_without_a_file() -> None:
    assert get("/upload", "POST").status.startswith("400")


def test_the_source_is_sent_as_a_file() -> None:
    response = adapt(site.application, "sample")(FakeRequest("/source"))
    assert isinstance(response.body, FileBody)
    assert receive(response).body == Path(site.__file__).read_bytes()


def test_errors() -> None:
    assert get("/nowhere").status.upper() == "404 NOT FOUND"
    refused = get("/", "POST")
    assert (refused.status[:3], refused.header("Allow")) == ("405", "GET")
    with pytest.raises(RuntimeError, match="on purpose"):
        get("/broken")


def test_the_handler_function() -> None:
    request = FakeRequest("/hello/you", query="a=1")
    request.params = {"name": "you"}
    received = receive(function.adapt(site.page, "sample")(request))
    assert received.body == b'{"hello":"you","query":{"a":"1"}}'
