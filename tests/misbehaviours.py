"""How a backend can misbehave, and what becomes of it behind the proxy: one row a way.

Law: data and scripts of tests/rogue.py; who runs them is tests/integration/test_proxy_rogue.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.conversation import Conversation
from tests.rogue import Script, reply

CUT = 0
"""Instead of a status: the head came, its body ended without a clean end, and so did the connection."""

OWN = b"the right body"
HASTY = "/hasty"
"""The route whose timeouts for a backend's reads and writes are a second and a half."""

BIG = 20 << 20


@dataclass(frozen=True)
class Case:
    """One way.

    :ivar outcomes: what the client may get: a status, or CUT; what it gets whole and with status 200 is OWN
    :ivar reused: is the backend's connection used again? None: either is right
    :ivar tries: how often the backend may be asked, at least and at most
    :ivar stays: the client's connection must be good for another request (unless its body was CUT)
    """

    name: str
    script: Script
    outcomes: tuple[int, ...]
    reused: bool | None = False
    method: str = "GET"
    upload: int = 0
    route: str = ""
    tries: tuple[int, int] = (1, 3)
    minor: int = 1
    stays: bool = True
    body: bytes | None = OWN

    def request(self, target: str) -> bytes:
        """The head of what the client sends; `upload` bytes must follow."""
        fields = [f"{self.method} {target} HTTP/1.{self.minor}", "Host: test.example"]
        if self.minor == 0:
            fields.append("Connection: keep-alive")
        if self.upload or self.method in ("POST", "PUT"):
            fields.append(f"Content-Length: {self.upload}")
        return "\r\n".join([*fields, "", ""]).encode()


# ------------------------------------------------------------------- what scripts are made of


def says(*data: bytes) -> Script:
    """Reads the request, sends this, and waits for the next request."""

    def script(c: Conversation) -> None:
        c.body()
        c.send(*data)

    return script


def then(after: Callable[[Conversation], None], *data: bytes) -> Script:
    """Reads the request, sends this and does something at once."""

    def script(c: Conversation) -> None:
        c.body()
        c.send(*data)
        after(c)

    return script


def later(first: bytes, *rest: bytes, after: Callable[[Conversation], None] | None = None) -> Script:
    """Sends `first`, waits until the client has seen the head, then goes on."""

    def script(c: Conversation) -> None:
        c.body()
        c.send(first)
        c.wait(c.request.script or "")
        c.send(*rest)
        if after is not None:
            after(c)

    return script


def head(*fields: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    """A head, whatever its lines say."""
    return "\r\n".join([status, *fields, "", ""]).encode("latin-1")


close, reset, half = Conversation.close, Conversation.reset, Conversation.half_close
good = reply(OWN)
sized = f"Content-Length: {len(OWN)}"
chunked = "Transfer-Encoding: chunked"
CHUNKED = head(chunked)
chunk = b"%x\r\n%s\r\n" % (len(OWN), OWN)
END = b"0\r\n\r\n"


def endless(piece: bytes) -> Script:
    """Begins a head, and sends the piece until the other side has had enough."""

    def script(c: Conversation) -> None:
        c.body()
        c.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            c.send(piece)

    return script


def bad_head(raw: bytes) -> Script:
    """Sends it; and closes where a reader could take it for the begin of a head that is still to come."""
    return says(raw) if b"\r\n\r\n" in raw else then(close, raw)


def on_reuse(script: Script) -> Script:
    """Behaves at a connection's first request, and does `script` at each later one."""

    def behave(c: Conversation) -> None:
        if len(c.requests) > 1:
            script(c)
        else:
            says(good)(c)

    return behave


def answers_early(c: Conversation) -> None:
    """The whole answer while the request's body is still coming; which is then read to its end."""
    c.send(good)
    for _ in c.pieces():
        pass


def refuses_upload(c: Conversation) -> None:
    """413 after the head alone; what comes is dropped for as long as it comes."""
    c.send(reply(OWN, "Connection: close", status="413 Content Too Large"))
    c.half_close()
    c.gone()


def refuses_upload_rudely(c: Conversation) -> None:
    """413 and a close with unread bytes, which makes a reset that may overtake the answer."""
    c.send(reply(OWN, "Connection: close", status="413 Content Too Large"))
    c.close()


def never_reads(c: Conversation) -> None:
    """Takes the head, and nothing of the body until the client has been answered."""
    c.wait("seen", seconds=60)


# ------------------------------------------------------------------- the table

BAD_HEADS = {
    "http-0.9": b"hello, this is not HTTP\r\n",
    "http-0.9-page": b"<html><body>hello</body></html>",
    "http-2.0": head(sized, status="HTTP/2.0 200 OK") + OWN,
    "http-3.0": head(sized, status="HTTP/3.0 200 OK") + OWN,
    "http-2-frames": b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\0\4\0\xa0\0\0\0\2\0\0\0\0",
    "version-lower-case": head(sized, status="http/1.1 200 OK") + OWN,
    "version-long": head(sized, status="HTTP/1.10 200 OK") + OWN,
    "version-icy": head(sized, status="ICY 200 OK") + OWN,
    "tls-alert": b"\x15\x03\x01\0\2\2\x46" + b"\0" * 20 + b"\r\n\r\n",
    "ssh-banner": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "a-request": b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n",
    "status-099": head(sized, status="HTTP/1.1 099 Low") + OWN,
    "status-000": head(sized, status="HTTP/1.1 000 None") + OWN,
    "status-999": head(sized, status="HTTP/1.1 999 High") + OWN,
    "status-abc": head(sized, status="HTTP/1.1 abc What") + OWN,
    "status-two-digits": head(sized, status="HTTP/1.1 20 OK") + OWN,
    "status-four-digits": head(sized, status="HTTP/1.1 2000 OK") + OWN,
    "status-signed": head(sized, status="HTTP/1.1 +20 OK") + OWN,
    "status-missing": head(sized, status="HTTP/1.1 ") + OWN,
    "status-two-spaces": head(sized, status="HTTP/1.1  200 OK") + OWN,
    "reason-with-nul": head(sized, status="HTTP/1.1 200 O\0K") + OWN,
    "obs-fold": head(sized, "X-Folded: a", " b") + OWN,
    "obs-fold-first": head(" X-Folded: a", sized) + OWN,
    "bare-lf-line": head(sized, "X-A: a\nX-B: b") + OWN,
    "bare-lf-all": b"HTTP/1.1 200 OK\n" + sized.encode() + b"\n\n" + OWN,
    "bare-cr": head(sized, "X-A: a\rX-B: b") + OWN,
    "nul-in-value": head(sized, "X-A: a\0b") + OWN,
    "nul-in-name": head(sized, "X-\0A: b") + OWN,
    "control-in-value": head(sized, "X-A: a\x01b") + OWN,
    "space-before-colon": head("Content-Length : 14") + OWN,
    "space-in-name": head(sized, "X A: b") + OWN,
    "no-colon": head(sized, "X-A") + OWN,
    "empty-name": head(sized, ": b") + OWN,
    "length-and-chunked": head(sized, "Transfer-Encoding: chunked") + chunk + END,
    "chunked-and-length": head("Transfer-Encoding: chunked", sized) + chunk + END,
    "two-lengths": head(sized, "Content-Length: 3") + OWN,
    "two-equal-lengths": head(sized, sized) + OWN,
    "length-list": head("Content-Length: 14, 14") + OWN,
    "length-negative": head("Content-Length: -1") + OWN,
    "length-signed": head("Content-Length: +14") + OWN,
    "length-hexadecimal": head("Content-Length: 0xe") + OWN,
    "length-exponent": head("Content-Length: 14e0") + OWN,
    "length-fraction": head("Content-Length: 14.0") + OWN,
    "length-underscore": head("Content-Length: 1_4") + OWN,
    "length-inner-space": head("Content-Length: 1 4") + OWN,
    "length-empty": head("Content-Length:") + OWN,
    "length-huge": head("Content-Length: 99999999999999999999") + OWN,
    "length-overflows-64-bits": head("Content-Length: 18446744073709551630") + OWN,
    "gzip-chunked": head("Transfer-Encoding: gzip, chunked") + chunk + END,
    "chunked-gzip": head("Transfer-Encoding: chunked, gzip") + chunk + END,
    "chunked-twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunk + END,
    "coding-unknown": head("Transfer-Encoding: xchunked") + chunk + END,
    "coding-vertical-tab": head("Transfer-Encoding: \x0bchunked") + chunk + END,
    "head-too-large": head(sized, *(f"X-{number}: {'v' * 1000}" for number in range(1000))) + OWN,
    "field-too-large": head(sized, "X-Large: " + "v" * 1_000_000) + OWN,
    "fields-too-many": head(sized, *(f"X-{number}: v" for number in range(20_000))) + OWN,
    "switched-unasked": head("Connection: Upgrade", "Upgrade: websocket", status="HTTP/1.1 101 Go") + b"\0",
}  # fmt: skip
"""Of these nothing may reach the client: 502, and the connection is closed."""

BAD_CHUNKS = {
    "size-no-digits": b"xyz\r\nabc\r\n",
    "size-empty": b"\r\nabc\r\n",
    "size-signed": b"+3\r\nabc\r\n",
    "size-negative": b"-3\r\nabc\r\n",
    "size-prefixed": b"0x3\r\nabc\r\n",
    "size-space-before": b" 3\r\nabc\r\n",
    "size-overflows": b"fffffffffffffffff\r\nabc\r\n",
    "size-overflows-to-small": b"10000000000000003\r\nabc\r\n",
    "size-bare-lf": b"3\nabc\r\n",
    "data-too-long": b"3\r\nabcd\r\n",
    "data-bare-lf": b"3\r\nabc\n3\r\ndef\r\n",
    "extension-with-nul": b"3;a=\0\r\nabc\r\n",
    "extension-endless": b"3;" + b"a" * 100_000 + b"\r\nabc\r\n",
    "extensions-without-data": b"1;%s\r\na\r\n" % (b"e" * 900) * 200,
    "trailer-no-colon": b"0\r\nnonsense\r\n\r\n",
    "trailer-folded": b"0\r\nX-A: a\r\n b\r\n\r\n",
    "trailer-nul": b"0\r\nX-A: \0\r\n\r\n",
    "trailers-endless": b"0\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 20_000,
}
"""What stands behind one good chunk."""

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
NO_LENGTH = head("Content-Type: text/plain")
LONG = b"0123456789abcdef" * 20_000

CASES: tuple[Case, ...] = (
    *(Case(name, bad_head(raw), (502,)) for name, raw in BAD_HEADS.items()),
    Case("chunked-in-1.0", says(head(chunked, status="HTTP/1.0 200 OK") + chunk + END), (200, 502)),
    Case("binary-and-silence", then(Conversation.gone, BAD_HEADS["http-2-frames"]), (502, 504), route=HASTY),
    *(Case(f"{name}-at-once", says(CHUNKED, chunk, raw), (502, CUT)) for name, raw in BAD_CHUNKS.items()),
    *(Case(f"{name}-later", later(CHUNKED + chunk, raw), (CUT,)) for name, raw in BAD_CHUNKS.items()),
    # -- the connection ends too early
    Case("closes-at-once", then(close), (502,), tries=(3, 3)),
    Case("closes-in-status-line", then(close, b"HTTP/1.1 2"), (502,), tries=(3, 3)),
    Case("closes-in-head", then(close, b"HTTP/1.1 200 OK\r\nContent-Le"), (502,), tries=(3, 3)),
    Case("closes-before-empty-line", then(close, head(sized)[:-2]), (502,), tries=(3, 3)),
    Case("half-closes-at-once", then(half), (502,), tries=(3, 3)),
    Case("resets-at-once", then(reset), (502,), tries=(3, 3)),
    Case("resets-in-head", then(reset, b"HTTP/1.1 200 OK\r\nContent-Le"), (502,), tries=(3, 3)),
    Case("head-closed-at-once", then(close), (502,), method="HEAD", tries=(3, 3)),
    Case("options-closed-at-once", then(close), (502,), method="OPTIONS", tries=(3, 3)),
    Case("delete-closed-at-once", then(close), (502,), method="DELETE", tries=(2, 3)),
    Case("put-closed-at-once", then(close), (502,), method="PUT", upload=100, tries=(1, 3)),
    Case("post-closed-at-once", then(close), (502,), method="POST", upload=100, tries=(1, 1)),
    Case("post-reset-at-once", then(reset), (502,), method="POST", upload=100, tries=(1, 1)),
    Case("post-closed-in-head", then(close, b"HTTP/1.1 2"), (502,), method="POST", tries=(1, 1)),
    Case("patch-closed-at-once", then(close), (502,), method="PATCH", upload=100, tries=(1, 1)),
    Case("closes-after-interim", then(close, INTERIM), (502,), tries=(1, 3)),
    Case("post-closed-when-reused", on_reuse(close), (200, 502), None, method="POST", tries=(1, 1)),
    Case("get-closed-when-reused", on_reuse(close), (200,), None),
    Case("get-reset-when-reused", on_reuse(reset), (200,), None),
    # -- the body ends too early
    Case("short-at-once", then(close, head("Content-Length: 100"), OWN), (502,), tries=(3, 3)),
    Case("short-when-reused", on_reuse(then(close, head("Content-Length: 100"), OWN)), (200,), None),
    Case("short-later", later(head("Content-Length: 100") + OWN, after=close), (CUT,)),
    Case("short-long", then(close, head("Content-Length: 400000"), LONG), (CUT,)),
    Case("short-no-byte", then(close, head("Content-Length: 100")), (502,), tries=(3, 3)),
    Case("short-no-byte-reset", then(reset, head("Content-Length: 100")), (502,), tries=(3, 3)),
    Case(
        "short-post-at-once", then(close, head("Content-Length: 100")), (502,), method="POST", tries=(1, 1)
    ),
    Case("short-half-closed", later(head("Content-Length: 100") + OWN, after=half), (CUT,)),
    Case("short-reset", later(head("Content-Length: 100") + OWN, after=reset), (CUT,)),
    Case(
        "short-post",
        later(head("Content-Length: 100") + OWN, after=close),
        (CUT,),
        method="POST",
        tries=(1, 1),
    ),
    Case("chunks-end-in-size", later(CHUNKED + chunk, b"5", after=close), (CUT,)),
    Case("chunks-end-in-data", later(CHUNKED + chunk, b"5\r\nabc", after=close), (CUT,)),
    Case("chunks-end-behind-data", later(CHUNKED + chunk, b"3\r\nabc", after=close), (CUT,)),
    Case("chunks-end-without-last", later(CHUNKED + chunk, after=close), (CUT,)),
    Case("chunks-end-in-last", later(CHUNKED + chunk, b"0\r\n", after=close), (CUT,)),
    Case("chunks-end-in-trailer", later(CHUNKED + chunk, b"0\r\nX-A: ", after=close), (CUT,)),
    Case("chunks-reset", later(CHUNKED + chunk, after=reset), (CUT,)),
    Case("until-close-reset", later(NO_LENGTH + OWN, after=reset), (CUT,)),
    # -- too many bytes
    Case("excess-behind-length", says(good, b"more"), (200,)),
    Case("excess-line-end", says(good, b"\r\n"), (200,)),
    Case("excess-long", says(good, LONG), (200,)),
    Case("excess-behind-last-chunk", says(CHUNKED, chunk, END, b"more"), (200,)),
    Case("excess-chunk-behind-last", says(CHUNKED, chunk, END, chunk), (200,)),
    Case("two-responses", says(good, reply(b"another's")), (200,)),
    Case("three-responses", says(good, reply(b"another's"), reply(b"a third one's")), (200,)),
    Case("two-responses-chunked", says(CHUNKED, chunk, END, CHUNKED, chunk, END), (200,)),
    Case("hint-behind-response", says(good, HINT), (200,)),
    Case("204-with-body", says(head(status="HTTP/1.1 204 No Content"), OWN), (204,)),
    Case("204-with-response", says(head(status="HTTP/1.1 204 No Content"), good), (204,)),
    Case("304-with-body", says(head(sized, status="HTTP/1.1 304 Not Modified"), OWN), (304,)),
    Case("304-with-chunks", says(head('ETag: "a"', status="HTTP/1.1 304 Not Modified"), chunk, END), (304,)),
    Case("head-with-body", says(good), (200,), method="HEAD", body=b""),
    Case("head-with-chunks", says(CHUNKED, chunk, END), (200,), method="HEAD", body=b""),
    # -- interim responses
    Case("interim-flood", says(INTERIM * 100, good), (502,)),
    Case("hints-flood", says(HINT * 100, good), (502,)),
    Case("processing-flood", says(b"HTTP/1.1 102 Processing\r\n\r\n" * 100, good), (502,)),
    Case("interim-only", then(close, INTERIM * 3), (502,)),
    Case("continue-unasked", says(INTERIM, good), (200,), True),
    Case("continue-twice", says(INTERIM, INTERIM, good), (200,), True),
    Case("hint-first", says(HINT, good), (200,), True),
    Case("hint-first-to-1.0", says(HINT, good), (200,), True, minor=0),
    Case("hint-malformed", says(b"HTTP/1.1 103 Early Hints\r\nLink : x\r\n\r\n", good), (502,)),
    # -- time
    Case("never-answers", then(Conversation.gone), (504,), route=HASTY, tries=(1, 3)),
    Case("never-ends-its-head", then(Conversation.gone, b"HTTP/1.1 200 OK\r\n"), (504,), route=HASTY),
    Case(
        "post-never-answered",
        then(Conversation.gone),
        (504,),
        method="POST",
        upload=9,
        route=HASTY,
        tries=(1, 1),
    ),
    Case(
        "stalls-in-body",
        later(head("Content-Length: 100") + OWN, after=Conversation.gone),
        (CUT,),
        route=HASTY,
    ),
    Case("stalls-in-chunks", later(CHUNKED + chunk, after=Conversation.gone), (CUT,), route=HASTY),
    Case("stalls-after-interim", then(Conversation.gone, INTERIM), (504,), route=HASTY),
    Case("drips", lambda c: c.drip(good, 0.03), (200,), True, route=HASTY),
    Case("drips-chunks", lambda c: c.drip(CHUNKED + chunk + END, 0.03), (200,), True, route=HASTY),
    # -- endless
    Case("endless-head", endless(b"X-Filler: vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\r\n" * 100), (502,)),
    Case("endless-field", endless(b"v" * 4000), (502,)),
    Case("endless-line-ends", endless(b"\r"), (502,)),
    # -- what looks odd and is right
    Case("http-1.0", then(close, head(sized, status="HTTP/1.0 200 OK"), OWN), (200,)),
    Case(
        "http-1.0-kept",
        says(head(sized, "Connection: keep-alive", status="HTTP/1.0 200 OK"), OWN),
        (200,),
        None,
    ),
    Case("http-1.0-not-kept", says(head(sized, status="HTTP/1.0 200 OK"), OWN), (200,)),
    Case("until-close", then(close, NO_LENGTH, OWN), (200,)),
    Case("until-half-close", then(half, NO_LENGTH, OWN), (200,)),
    Case("says-close", says(reply(OWN, "Connection: close")), (200,)),
    Case("says-close-in-capitals", says(reply(OWN, "Connection: foo, CLOSE")), (200,)),
    Case("half-closes-after", then(half, good), (200,)),
    Case("closes-after", then(close, good), (200,)),
    Case("no-reason", says(head(sized, status="HTTP/1.1 200 "), OWN), (200,), True),
    Case("length-with-zeros", says(head("Content-Length: 00014"), OWN), (200,), True),
    Case("obs-text", says(reply(OWN, "X-Latin: caf\xe9")), (200,), True),
    Case("no-body", says(reply(b"")), (200,), True, body=b""),
    Case("chunk-extension", says(CHUNKED, b"e;a=b;c\r\n", OWN, b"\r\n", END), (200,), True),
    Case("chunk-trailers", says(CHUNKED, chunk, b"0\r\nX-Sum: 1\r\n\r\n"), (200,), True),
    Case("chunk-upper-case", says(CHUNKED, b"0E\r\n", OWN, b"\r\n", END), (200,), True),
    Case(
        "304-with-length", says(head("Content-Length: 900", status="HTTP/1.1 304 Not Modified")), (304,), True
    ),
    Case("head-with-length", says(head(sized)), (200,), True, method="HEAD", body=b""),
    Case("head-chunked", says(CHUNKED), (200,), None, method="HEAD", body=b""),
    Case("500", says(reply(OWN, status="500 Oh no")), (500,), True),
    Case("502", says(reply(OWN, status="502 Mine")), (502,), True),
    Case("503", says(reply(OWN, "Retry-After: 7", status="503 Busy")), (503,), True),
    Case("599", says(reply(OWN, status="599 Own")), (599,), True),
    Case("418", says(reply(OWN, status="418 Teapot")), (418,), True),
    # -- uploads
    Case("refuses-upload", refuses_upload, (413,), method="POST", upload=5 << 20, tries=(1, 1), stays=False),
    Case(
        "refuses-upload-rudely",
        refuses_upload_rudely,
        (413, 502),
        method="POST",
        upload=5 << 20,
        tries=(1, 1),
        stays=False,
        body=None,
    ),
    Case(
        "never-reads", never_reads, (504,), method="POST", upload=BIG, route=HASTY, tries=(1, 1), stays=False
    ),
    Case(
        "answers-early", answers_early, (200,), None, method="POST", upload=5 << 20, tries=(1, 1), stays=False
    ),
    Case(
        "closes-in-upload",
        Conversation.close,
        (502,),
        method="POST",
        upload=5 << 20,
        tries=(1, 1),
        stays=False,
    ),
    Case(
        "resets-in-upload",
        Conversation.reset,
        (502,),
        method="PUT",
        upload=5 << 20,
        tries=(1, 3),
        stays=False,
    ),
)
