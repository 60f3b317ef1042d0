"""What both fuzzers do alike: write a message again from its parsed parts, and hand a check to libFuzzer.

Knows nothing of what is a request and what a reply.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType

import atheris


def written(line: bytes, headers: Iterable[tuple[bytes, bytes]], framing: str, body: bytes) -> bytes:
    """The message as one would send these parts: a chunked body in a single chunk."""
    head = line + b"\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n"
    if framing != "chunked":
        return head + body
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return head + chunk + b"0\r\n\r\n"


def fuzz(check: Callable[[bytes], None], parser: ModuleType) -> None:
    """Run libFuzzer with the arguments of the command line, over the parser that tests/fuzz/run compiled."""
    if parser.__name__.replace(".", "/") not in (parser.__file__ or ""):
        raise SystemExit("tests/fuzz: no compiled parser found")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
