"""Generators of messages whose every part may be bad, for the searches with other parsers: what requests and
replies have in common.

The law: a message is bytes, made from good and bad pieces of them; what is right or wrong with it is for
those who read it to say.
"""

from __future__ import annotations

from hypothesis import strategies as st

FIELDS = (
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"content-length:  5\t",
    b"Content-Length: 005",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: 5_0",
    b"Content-Length: 9223372036854775808",
    b"Content-Length:",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: keep-alive, x",
    b"X-Empty:",
    b"X-Fold: a\r\n b",
    b"X-Bytes: \xe9\xff\t x",
    b"X Space: 1",
    b": no name",
    b"no colon",
    b"X-Nul: a\x00",
    b"X-Esc: a\x1b",
    b"X-Del: a\x7f",
    b"X-CR: a\rb",
    b"X-LF: a\nX-Next: b",
)
BODIES = (
    b"",
    b"hello",
    b"hel",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"1\r\na\r\n4\r\nbcde\r\n00\r\nT: x\r\n\r\n",
    b"5\r\nhello\r\n0\r\nT : x\r\n\r\n",
    b"5\r\nhello\r\n",
    b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
)
PIECES = (
    *(bytes([value]) for value in b"\r\n \t\x00\x0b\x7f\x80:,;05a"),
    b"\r\n",
    b"\r\n\r\n",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
)

some = st.sampled_from


@st.composite
def mutated(draw: st.DrawFn, base: st.SearchStrategy[bytes], *further: bytes) -> bytes:
    """The base with a few pieces, also `further` ones, replaced, inserted or taken out."""
    raw = draw(base)
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(raw)))
        removed = draw(st.integers(0, 3))
        piece = draw(st.one_of(some(PIECES + further), st.binary(max_size=2)))
        raw = raw[:position] + piece + raw[position + removed :]
    return raw
