"""The contract that every encoder keeps, at every level, whatever is put in and in whatever pieces."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.compression import encoders
from acme_wsgi.compression.encoders import compress, costly, encoder, extension, tokens
from acme_wsgi.config.schema.content import Compression

TOKENS = ("br", "gzip")
ALL = [(token, level) for token in TOKENS for level in range(1, 12)]
QUICK = [(token, level) for token in TOKENS for level in (1, 6, 11)]
TEXT = b"".join(b"<li class='row'>%d: %x</li>\n" % (number, number * 7919) for number in range(2_000))


DEFLATES = ["zlib", *(["zlib_ng.zlib_ng"] if importlib.util.find_spec("zlib_ng") else [])]


@pytest.fixture(scope="module", params=DEFLATES, autouse=True)
def deflate(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Every library that may be at work keeps the contract."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "deflate", importlib.import_module(request.param))
        yield encoders.deflate


class Decoder:
    """Bytes in, what can be read so far out."""

    def __init__(self, token: str) -> None:
        self._gzip = zlib.decompressobj(31) if token == "gzip" else None
        self._brotli = brotli.Decompressor() if token == "br" else None

    def feed(self, data: bytes) -> bytes:
        if self._gzip is not None:
            return self._gzip.decompress(data)
        assert self._brotli is not None
        return self._brotli.process(data) if data else b""

    @property
    def ended(self) -> bool:
        return self._gzip.eof if self._gzip is not None else self._brotli.is_finished()  # type: ignore[union-attr]


def decoded(token: str, data: bytes) -> bytes:
    decoder = Decoder(token)
    out = decoder.feed(data)
    assert decoder.ended
    return out


@pytest.mark.parametrize(("token", "level"), ALL)
def test_what_goes_in_comes_out(token: str, level: int) -> None:
    for body in (b"", b"x", TEXT[:1000], TEXT, bytes(100_000)):
        assert decoded(token, compress(token, level, body)) == body


@pytest.mark.parametrize(("token", "level"), ALL)
def test_a_flush_lets_the_recipient_have_everything(token: str, level: int) -> None:
    made = encoder(token, level)
    decoder = Decoder(token)
    for number in range(20):
        piece = b"data: %d\n\n" % number
        assert decoder.feed(made.compress(piece) + made.flush()) == piece
    assert not decoder.ended
    assert decoder.feed(made.finish()) == b""
    assert decoder.ended


@pytest.mark.parametrize(("token", "level"), QUICK)
@given(pieces=st.lists(st.tuples(st.binary(max_size=3000), st.booleans()), max_size=12), told=st.booleans())
def test_pieces_do_not_matter(token: str, level: int, pieces: list[tuple[bytes, bool]], told: bool) -> None:
    whole = b"".join(piece for piece, _ in pieces)
    made = encoder(token, level, len(whole) if told else None)
    out = b""
    for piece, flush in pieces:
        out += made.compress(piece)
        if flush:
            out += made.flush()
    assert decoded(token, out + made.finish()) == whole


@pytest.mark.parametrize(("token", "level"), QUICK)
def test_a_wrong_size_costs_ratio_and_nothing_else(token: str, level: int) -> None:
    for told in (0, 1, 100, 10 << 20):
        made = encoder(token, level, told)
        assert decoded(token, made.compress(TEXT) + made.finish()) == TEXT


@pytest.mark.parametrize(("token", "level"), ALL)
def test_the_same_body_gives_the_same_bytes(token: str, level: int) -> None:
    assert compress(token, level, TEXT) == compress(token, level, TEXT)


def test_a_gzip_header_has_neither_time_nor_name() -> None:
    head = compress("gzip", 6, TEXT)[:10]
    assert head[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


@pytest.mark.parametrize("token", TOKENS)
def test_a_higher_level_is_smaller(token: str) -> None:
    fast, usual, best = (len(compress(token, level, TEXT)) for level in (1, 6, 9))
    assert max(usual, best) < fast < len(TEXT)


@pytest.mark.parametrize("size", [1, 100, 1000, 4096, 16_000, 17_000, 31_000])
def test_a_smaller_window_costs_no_ratio(size: int) -> None:
    """A body that is known to be small gets small tables; they still reach over all of it."""
    body = TEXT[: size // 2] * 2
    stream = encoder("gzip", 6)
    assert len(compress("gzip", 6, body)) <= len(stream.compress(body) + stream.finish()) + 8


def test_levels_beyond_the_scale_mean_its_end() -> None:
    assert compress("gzip", 11, TEXT) == compress("gzip", 10, TEXT) == compress("gzip", 9, TEXT)


@pytest.mark.parametrize("token", TOKENS)
def test_small_bodies_stay_on_the_loop_and_big_ones_leave_it(token: str) -> None:
    for level in range(1, 12):
        assert not costly(token, level, 0)
        assert costly(token, level, 10 << 20)
    assert not costly(token, 6, 4096)
    sizes = [size for size in range(0, 1 << 20, 1024) if costly(token, 9, size)]
    assert sizes == list(range(sizes[0], 1 << 20, 1024))


@pytest.mark.parametrize("token", TOKENS)
def test_other_threads_run_meanwhile(token: str) -> None:
    """Whoever compresses in a thread must not hold the interpreter's lock all the while."""
    body = TEXT * 100
    done = threading.Event()

    def work() -> None:
        compress(token, 9, body)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not done.wait(0.0005):
        turns += 1
    thread.join()
    assert turns > 5


def test_names() -> None:
    assert tokens(Compression()) == ("br", "gzip")
    assert tokens(Compression(algorithms=("gzip", "brotli", "gzip"))) == ("gzip", "br")
    assert [extension(token) for token in TOKENS] == [".br", ".gz"]


def test_an_unknown_coding_is_an_error() -> None:
    unknown: Any = "zstd"
    with pytest.raises(KeyError):
        compress(unknown, 6, b"")
