"""What errors know about themselves, and what a client is told about one."""

from __future__ import annotations

import html.parser
import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from acme_wsgi.errors import (
    AcmeError,
    BodyError,
    BootError,
    ClientDisconnected,
    ConfigError,
    DeadlineExceeded,
    HTTPError,
    Problem,
    error_page,
    prefers_html,
    reason,
)

CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "payload_too_large",
    414: "uri_too_long",
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


@pytest.mark.parametrize(("status", "code"), CODES.items())
def test_an_http_error_knows_its_code_and_sentence(status, code):
    error = HTTPError(status)
    assert (error.status, error.code, error.message, error.headers) == (status, code, reason(status), ())
    assert str(error) == f"{status} {reason(status)}"


def test_an_http_error_says_what_it_is_told_to():
    error = HTTPError(405, "Only GET", code="read_only", headers=[("Allow", "GET")])
    assert (error.code, error.message, error.headers) == ("read_only", "Only GET", (("Allow", "GET"),))


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600])
def test_only_an_error_status_makes_an_error(status):
    with pytest.raises(ValueError, match=str(status)):
        HTTPError(status)


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (200, "OK"),
        (404, "Not Found"),
        (413, "Content Too Large"),
        (299, "Success"),
        (499, "Client Error"),
        (999, "Unknown"),
    ],
)
def test_reason_phrases(status, phrase):
    assert reason(status) == phrase


@given(st.integers(400, 599))
def test_every_error_status_has_a_code_that_can_be_switched_on(status):
    code = HTTPError(status).code
    assert code.isascii()
    assert code.replace("_", "").isalnum()
    assert code == code.lower()


def test_what_catches_what():
    assert issubclass(ClientDisconnected, ConnectionError)
    assert issubclass(BodyError, OSError)
    for kind in (ClientDisconnected, BodyError, HTTPError, ConfigError, BootError):
        assert issubclass(kind, AcmeError)
    assert not issubclass(DeadlineExceeded, Exception)
    assert not issubclass(DeadlineExceeded, KeyboardInterrupt | SystemExit | GeneratorExit)


def test_an_applications_except_exception_does_not_swallow_a_deadline():
    def application() -> str:
        try:
            raise DeadlineExceeded("server.timeout", 30.0)
        except Exception:  # noqa: BLE001 - what the test is about
            return "swallowed"

    with pytest.raises(DeadlineExceeded, match=r"^server\.timeout of 30 s exceeded$") as caught:
        application()
    assert (caught.value.deadline, caught.value.seconds) == ("server.timeout", 30.0)


def test_exit_statuses():
    assert ConfigError([Problem(None, None, None, None, "no")]).exit_status == 78
    assert BootError("app x:y", "ImportError: x").exit_status == 3


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.yaml", 7, 3, "cache.evicton_policy", "unknown key", "did you mean eviction_policy?"),
         "a.yaml:7:3: cache.evicton_policy: unknown key; did you mean eviction_policy?"),
        (Problem("a.yaml", 7, None, None, "bad tab"), "a.yaml:7: bad tab"),
        (Problem("a.yaml", None, None, None, "not UTF-8"), "a.yaml: not UTF-8"),
        (Problem(None, None, None, "server.port", "not a number"), "server.port: not a number"),
    ],
)  # fmt: skip
def test_a_problem_reads_like_a_compilers(problem, text):
    assert str(problem) == text


def test_a_config_error_carries_all_problems():
    problems = [Problem("a", 1, 1, None, "x"), Problem("b", 2, 2, None, "y")]
    error = ConfigError(iter(problems))
    assert error.problems == tuple(problems)
    assert str(error) == "a:1:1: x\nb:2:2: y"
    with pytest.raises(ValueError, match="at least one"):
        ConfigError([])


def test_a_boot_error_says_where_and_why():
    error = BootError(
        "route /*: app shop:app", "ModuleNotFoundError: No module named 'shop'", "Traceback ..."
    )
    assert str(error) == "route /*: app shop:app: ModuleNotFoundError: No module named 'shop'"
    assert error.traceback == "Traceback ..."


# -- the page


def test_the_documented_json():
    before = int(time.time())
    content_type, body = error_page(413, "payload_too_large", "Too much", "4711", "")
    assert content_type == "application/json"
    error = json.loads(body)["error"]
    stamp = datetime.strptime(error.pop("timestamp"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    assert before <= stamp <= time.time()
    assert error == {"code": "payload_too_large", "message": "Too much", "status": 413, "request_id": "4711"}


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text(), st.sampled_from(["", "text/html"]))
def test_nothing_in_a_page_is_raw(message, request_id, accept):
    content_type, body = error_page(400, "bad_request", message, request_id, accept)
    if not accept:
        error = json.loads(body.decode("ascii"))["error"]
        assert (error["message"], error["request_id"]) == (message, request_id)
        return
    assert content_type == "text/html; charset=utf-8"
    page = Tags()
    page.feed(body.decode("utf-8"))
    assert page.tags == ["html", "head", "meta", "title", "body", "h1", "p", "p", "small"]
    assert all(c.isprintable() or c == "\n" for c in page.text)


@pytest.mark.parametrize(
    ("accept", "wants_html"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html, application/json", False),
        ("text/html;q=0.9, application/json", False),
        ("text/html, application/json;q=0.9", True),
        ("text/html, application/json;Q=0.9", True),
        ("text/html;q=0", False),
        ("text/*", True),
        ("text/*, text/html;q=0", False),
        ("text/*;q=0.5, */*;q=0.4", True),
        ("text/html;level=1", True),
        ('text/plain;x=", text/html"', False),
        ("text/html;q=2", True),
        ("image/png", False),
        ("html", False),
        (", ,text/html,", True),
        ("x/y," * 1000 + "text/html", False),  # beyond what is read
    ],
)
def test_what_accept_asks_for(accept, wants_html):
    assert prefers_html(accept) is wants_html


ranges = st.sampled_from(["text/html", "text/*", "*/*", "application/json", "application/*", "image/png"])
weights = st.sampled_from(["", ";q=1", ";q=0.001", ";q=0.5", ";q=0.8", "; q=0"])


@given(st.lists(st.tuples(ranges, weights), max_size=6, unique_by=lambda pair: pair[0]))
def test_quality_values_mean_what_werkzeug_takes_them_for(items):
    accept = parse_accept_header(", ".join(media + weight for media, weight in items), MIMEAccept)
    ours = prefers_html(", ".join(media + weight for media, weight in items))
    assert ours is (accept.quality("text/html") > accept.quality("application/json"))


@given(st.text(max_size=2000))
def test_any_accept_gets_a_page(accept):
    content_type, body = error_page(500, "internal_error", "x", "1", accept)
    assert content_type in ("application/json", "text/html; charset=utf-8")
    assert b"500" in body
