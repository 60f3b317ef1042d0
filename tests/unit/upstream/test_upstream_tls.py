"""https:// backends: whom we talk to, and that encryption changes nothing about the bytes or their end."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acme_wsgi.errors import BackendError
from acme_wsgi.http.writer import Response, Tunnel
from acme_wsgi.upstream.tls import TLSLink, client_context, handshake
from tests.backends import Authority
from tests.unit.engine_harness import Rig, body_of, in_engine
from tests.unit.files.in_loop import until
from tests.unit.upstream.far import (
    MOMENT,
    Veiled,
    accepted,
    exactly,
    listening,
    outgoing,
    reset,
    soon,
    with_reactor,
)

pytestmark = pytest.mark.slow  # each in a child with a loop, and real sockets

OK = b"HTTP/1.1 200 OK\r\n"
MB = 1 << 20
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@dataclass(frozen=True)
class Parties:
    """Who is trusted, and who is not."""

    client: ssl.SSLContext
    server: ssl.SSLContext
    expired: ssl.SSLContext
    self_signed: ssl.SSLContext

    def of_version(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        """The client's context for one version only."""
        context = client_context()
        context.load_verify_locations(self.bundle)
        context.minimum_version = context.maximum_version = version
        return context

    bundle: str = ""


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    client = client_context()
    client.load_verify_locations(authority.bundle)
    return Parties(
        client=client,
        server=authority.context("backend.test"),
        expired=expired(authority),
        self_signed=alone(directory),
        bundle=str(authority.bundle),
    )


def alone(directory: Path) -> ssl.SSLContext:
    """A certificate that nobody else has signed."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=backend.test -addext subjectAltName=DNS:backend.test -keyout alone.key -out alone.pem"
    )
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "alone.pem", directory / "alone.key")
    return context


def expired(authority: Authority) -> ssl.SSLContext:
    """A certificate of the authority's whose time is over."""
    directory = authority.directory
    (directory / "index.txt").write_text("")
    (directory / "ca.cnf").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index.txt\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "rand_serial=yes\n[p]\ncommonName=supplied\n[x]\nsubjectAltName=DNS:backend.test\n"
    )
    for command in (
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=backend.test "
        "-keyout old.key -out old.csr",
        "openssl ca -batch -config ca.cnf -extensions x -cert ca.pem -keyfile ca.key -in old.csr "
        "-out old.pem -startdate 20200101000000Z -enddate 20200201000000Z",
    ):
        subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "old.pem", directory / "old.key")
    return context


def dial(
    context: ssl.SSLContext, *, name: str = "backend.test", buffers: int = 0
) -> tuple[TLSLink, socket.socket]:
    """Connected; nobody has said anything yet."""
    with listening(buffers=buffers) as listener:
        link = TLSLink(None, context, name)
        link.connect(socket.AF_INET, listener.getsockname(), soon())
        return link, accepted(listener)


def secured(client: ssl.SSLContext, server: ssl.SSLContext, *, buffers: int = 0) -> tuple[TLSLink, Veiled]:
    """A connection that is about to carry a request."""
    import gevent

    link, sock = dial(client, buffers=buffers)
    far = gevent.spawn(lambda: Veiled(sock, server).shake_hands())
    handshake(link, soon())
    link.begin()
    return link, far.get(timeout=5)


def counted(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def answer(link: TLSLink) -> tuple[str, bytes]:
    text, _ = link.read_head(False, soon())
    return text, b"".join(iter(lambda: link.read_piece(soon()), b""))


def failure(step: Callable[[], object]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        step()
    return caught.value


# -- whom we talk to --------------------------------------------------------------------------------------


def refused(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "backend.test") -> BackendError:
    """The error of a handshake with whom we don't want; the server must not get a connection out of it."""
    import gevent

    link, sock = dial(client, name=name)

    def serve() -> object:
        try:
            return Veiled(sock, server).shake_hands().receive()
        except (ssl.SSLError, ConnectionError) as error:
            return error

    served = gevent.spawn(serve)
    error = failure(lambda: handshake(link, soon()))
    link.close()
    assert isinstance(served.get(timeout=5), (ssl.SSLError, ConnectionError))
    assert (error.status, error.connecting, error.retriable) == (502, True, True)
    return error


@with_reactor
def test_a_certificate_for_another_name_is_refused(parties: Parties) -> None:
    error = refused(parties.client, parties.server, "other.test")
    assert "can't be trusted" in str(error) and "other.test" in str(error)
    assert "backend.test" not in str(refused(parties.client, parties.server, "127.0.0.1"))


@with_reactor
def test_an_expired_one_is_refused(parties: Parties) -> None:
    assert "certificate has expired" in str(refused(parties.client, parties.expired))


@with_reactor
def test_one_that_nobody_else_signed_is_refused(parties: Parties) -> None:
    assert "self-signed certificate" in str(refused(parties.client, parties.self_signed))


@with_reactor
def test_one_of_an_unknown_authority_is_refused(parties: Parties) -> None:
    assert "can't be trusted" in str(refused(client_context(), parties.server))


@with_reactor
def test_an_old_version_is_refused(parties: Parties) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert "TLS failed" in str(refused(parties.client, old))


@with_reactor
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100])
def test_a_server_that_does_not_speak_tls_is_refused(parties: Parties, says: bytes) -> None:
    link, far = dial(parties.client)
    far.sendall(says)
    error = failure(lambda: handshake(link, soon()))
    assert (error.status, error.connecting, error.retriable) == (502, True, True)
    assert "TLS failed" in str(error)
    link.close()
    far.close()


@with_reactor
def test_silence_is_waited_for_until_the_deadline(parties: Parties) -> None:
    link, far = dial(parties.client)
    error = failure(lambda: handshake(link, soon(MOMENT)))
    assert (error.status, error.connecting, error.retriable) == (504, True, True)
    assert far.recv(1) == b"\x16"
    link.close()


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_a_server_that_leaves_at_once_is_unreachable(
    parties: Parties, away: Callable[[socket.socket], None]
) -> None:
    link, far = dial(parties.client)
    away(far)
    error = failure(lambda: handshake(link, soon()))
    assert (error.status, error.connecting, error.retriable) == (502, True, True)
    link.close()


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_leaves_before_our_last_word_is_unreachable(
    parties: Parties, version: ssl.TLSVersion
) -> None:
    import gevent

    link, sock = dial(parties.of_version(version))
    far = Veiled(sock, parties.server)
    shaking = gevent.spawn(failure, lambda: handshake(link, soon()))
    far.incoming.write(sock.recv(65536))
    with pytest.raises(ssl.SSLWantReadError):
        far.tls.do_handshake()
    sock.sendall(far.outgoing.read())
    reset(sock)  # before the loop lets the other end read
    error = shaking.get(timeout=5)
    assert (error.status, error.connecting, error.retriable) == (502, True, True)
    link.close()


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_may_be_cut_anywhere(parties: Parties, version: ssl.TLSVersion) -> None:
    import gevent

    link, sock = dial(parties.of_version(version))
    done = gevent.spawn(handshake, link, soon())
    far = Veiled(sock, parties.server)
    agreed = False
    while not agreed:
        far.incoming.write(sock.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            far.tls.do_handshake()
            agreed = True
        for byte in far.outgoing.read():
            sock.sendall(bytes([byte]))
            gevent.sleep(0)
    done.get()
    link.begin()
    far.send(counted(b"hello"))
    assert answer(link) == ("200 OK", b"hello")


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
def test_the_name_is_told_and_the_protocol(parties: Parties, version: ssl.TLSVersion) -> None:
    names: list[str | None] = []
    parties.server.sni_callback = lambda _, name, __: names.append(name)
    parties.server.set_alpn_protocols(["h2", "http/1.1"])
    _, far = secured(parties.of_version(version), parties.server)
    assert names == ["backend.test"] and far.tls.selected_alpn_protocol() == "http/1.1"


# -- bytes ------------------------------------------------------------------------------------------------


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("buffers", [0, 8192])
def test_much_goes_both_ways(parties: Parties, version: ssl.TLSVersion, buffers: int) -> None:
    import gevent

    link, far = secured(parties.of_version(version), parties.server, buffers=buffers)
    data = body_of(200_000 if buffers else 3 * MB)
    for form in (counted(data), in_chunks(data, 50_000), in_chunks(data, 7001)):
        link.begin()
        sending = gevent.spawn(link.send, data, soon())
        assert far.exactly(len(data)) == data
        sending.get()
        speaking = gevent.spawn(far.send, form)
        assert answer(link) == ("200 OK", data)
        speaking.get()
        assert link.reusable and link.rest()
    far.close()


@with_reactor
def test_what_was_decrypted_already_needs_no_further_event(parties: Parties) -> None:
    """Many small records in one segment: the socket is empty while most of them are still to be read."""
    link, far = secured(parties.client, parties.server)
    small = b"".join(far.encrypted(bytes([byte])) for byte in in_chunks(b"some words", 3))
    for _ in range(3):
        link.begin()
        far.sock.sendall(small)
        assert answer(link) == ("200 OK", b"some words")
        small = b"".join(far.encrypted(bytes([byte])) for byte in counted(b"others"))
        link.begin()
        far.sock.sendall(small)
        assert answer(link) == ("200 OK", b"others")
        small = b"".join(far.encrypted(bytes([byte])) for byte in in_chunks(b"some words", 3))


@with_reactor
def test_records_may_be_cut_anywhere(parties: Parties) -> None:
    import gevent

    link, far = secured(parties.client, parties.server)
    rng = random.Random(1)
    for _ in range(100):
        link.begin()
        data = far.encrypted(in_chunks(b"some words", 4))
        cut = rng.randrange(len(data))
        reading = gevent.spawn(answer, link)
        far.sock.sendall(data[:cut])
        gevent.sleep(0)
        gevent.sleep(0)
        far.sock.sendall(data[cut:])
        assert reading.get(timeout=5) == ("200 OK", b"some words")
        assert link.reusable and link.rest()


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
def test_what_comes_with_the_last_word_of_the_handshake_is_not_waited_for_again(
    parties: Parties, version: ssl.TLSVersion
) -> None:
    """A server that is too busy may say so at once."""
    import gevent

    link, sock = dial(parties.of_version(version))
    far = Veiled(sock, parties.server)
    shaking = gevent.spawn(handshake, link, soon())
    while True:
        far.incoming.write(sock.recv(65536))
        try:
            far.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(far.outgoing.read())
    held = far.outgoing.read() + far.encrypted(counted(b"busy"))
    sock.sendall(held)
    shaking.get(timeout=5)
    link.begin()
    with gevent.Timeout(5):
        assert answer(link) == ("200 OK", b"busy")


@with_reactor
def test_a_backend_that_reads_nothing_is_waited_for_until_the_deadline(parties: Parties) -> None:
    link, far = secured(parties.client, parties.server, buffers=8192)
    error = failure(lambda: link.send(bytes(20 * MB), soon(MOMENT)))
    assert (error.status, error.retriable, error.connecting) == (504, False, False)
    far.close()


@with_reactor
@pytest.mark.parametrize("size", [20 * MB, 1])
def test_a_backend_that_leaves_while_it_is_sent_to_broke_off(parties: Parties, size: int) -> None:
    import gevent

    link, far = secured(parties.client, parties.server, buffers=8192)

    def send() -> None:
        while True:
            link.send(bytes(size), soon())
            gevent.sleep(0)

    sending = gevent.spawn(failure, send)
    far.sock.recv(1)
    reset(far.sock)
    error = sending.get(timeout=5)
    assert (error.status, error.retriable, error.connecting) == (502, True, False)


@with_reactor
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_a_backend_that_leaves_while_the_last_record_waits_for_room_broke_off(
    parties: Parties, away: Callable[[socket.socket], None]
) -> None:
    import gevent

    link, far = secured(parties.client, parties.server, buffers=8192)

    def flush() -> object:
        try:
            link.send(b"", soon())
        except BackendError as error:
            return error
        return None

    while True:
        failure(lambda: link.send(bytes(20 * MB), soon(MOMENT)))
        sending = gevent.spawn(flush)
        gevent.sleep(0)
        if not sending.dead:
            break
    away(far.sock)
    error = sending.get(timeout=5)
    assert isinstance(error, BackendError)
    assert (error.status, error.retriable, error.connecting) == (502, True, False)


# -- the end ----------------------------------------------------------------------------------------------


@with_reactor
def test_a_body_until_the_end_ends_with_a_goodbye(parties: Parties) -> None:
    link, far = secured(parties.client, parties.server)
    far.send(OK + b"\r\nall of it")
    far.say_goodbye()
    assert answer(link) == ("200 OK", b"all of it")
    assert link.complete and not link.reusable


@with_reactor
@pytest.mark.parametrize(
    "said", [OK + b"\r\nnot all", counted(b"not all!")[:-1], in_chunks(b"not all", 9)[:-5], OK]
)
@pytest.mark.parametrize("away", [reset, socket.socket.close])
def test_without_a_goodbye_it_was_cut(
    parties: Parties, said: bytes, away: Callable[[socket.socket], None]
) -> None:
    link, far = secured(parties.client, parties.server)
    far.send(said)
    away(far.sock)
    error = failure(lambda: answer(link))
    assert (error.status, error.answered) == (502, True)
    assert not link.complete and not link.reusable


@with_reactor
def test_a_goodbye_too_early_cuts_a_body_with_a_length(parties: Parties) -> None:
    link, far = secured(parties.client, parties.server)
    far.send(counted(b"not all!")[:-1])
    far.say_goodbye()
    assert "early" in str(failure(lambda: answer(link)))


@with_reactor
def test_a_damaged_record_breaks_off(parties: Parties) -> None:
    link, far = secured(parties.client, parties.server)
    data = bytearray(far.encrypted(counted(b"x" * 1000)))
    data[-1] ^= 1
    far.sock.sendall(data)
    assert failure(lambda: answer(link)).status == 502


# -- between requests -------------------------------------------------------------------------------------


def resting(parties: Parties, version: ssl.TLSVersion) -> tuple[TLSLink, Veiled]:
    link, far = secured(parties.of_version(version), parties.server)
    far.send(counted(b"body"))
    answer(link)
    assert link.reusable and link.rest() and link.usable()
    return link, far


@with_reactor
def test_tickets_that_come_late_end_nothing(parties: Parties) -> None:
    """TLS 1.3: a server sends them when it likes. Here they come once the connection rests."""
    import gevent

    link, sock = dial(parties.of_version(ssl.TLSVersion.TLSv1_3))
    far = Veiled(sock, parties.server)
    shaking = gevent.spawn(handshake, link, soon())
    far.incoming.write(sock.recv(65536))
    with pytest.raises(ssl.SSLWantReadError):
        far.tls.do_handshake()
    sock.sendall(far.outgoing.read())
    shaking.get(timeout=5)
    link.begin()
    assert link.rest()
    far.incoming.write(sock.recv(65536))
    far.tls.do_handshake()
    tickets = far.outgoing.read()
    assert tickets
    for byte in tickets:
        sock.sendall(bytes([byte]))
        gevent.sleep(0)
    until(lambda: link.usable())
    link.begin()
    link.send(b"a request", soon())
    assert far.exactly(9) == b"a request"
    far.send(counted(b"its answer"))
    assert answer(link) == ("200 OK", b"its answer")


@with_reactor
@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_a_goodbye_or_an_end_do(parties: Parties, version: ssl.TLSVersion) -> None:
    ends: list[Callable[[Veiled], object]] = [
        lambda far: far.send(b"!"),
        Veiled.say_goodbye,
        Veiled.close,
        lambda far: reset(far.sock),
        lambda far: far.sock.sendall(b"HTTP/1.1 408 Late\r\n\r\n"),
    ]
    for end in ends:
        link, far = resting(parties, version)
        end(far)
        assert not link.usable()
        until(lambda link=link: not link.usable())  # type: ignore[misc]
        link.close()


@with_reactor
def test_bytes_behind_an_answer_in_its_very_record_end_it_too(parties: Parties) -> None:
    for form in (counted(b"body"), in_chunks(b"body", 9)):
        link, far = secured(parties.client, parties.server)
        far.send(form + b"H")
        answer(link)
        assert not (link.reusable and link.rest())
        link, far = secured(parties.client, parties.server)
        far.sock.sendall(far.encrypted(form) + far.encrypted(b"H"))
        answer(link)
        assert not (link.reusable and link.rest())


# -- tunnels ----------------------------------------------------------------------------------------------

UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
FIELDS = [("Connection", "Upgrade"), ("Upgrade", "echo")]


def tunnelled(parties: Parties, test: Callable[[Rig, Any, Veiled], None], *, buffers: int = 0) -> None:
    """A client's connection that leads through a tunnel to a TLS backend."""

    @in_engine()
    def run(rig: Rig) -> None:
        link, far = secured(parties.client, parties.server, buffers=buffers)
        rig.dispatch = lambda request: Response("101 Switching Protocols", FIELDS, Tunnel(link, b"", 0))
        with rig.connect() as wire:
            wire.send(UPGRADE)
            assert wire.reply().status == 101
            test(rig, wire, far)
        far.close()
        rig.until(lambda: not rig.count("in_flight"), "the tunnel's end")
        assert not link.usable()

    run()


def test_a_tunnel_carries_much_both_ways_at_once(parties: Parties) -> None:
    def test(_: Rig, wire: Any, far: Veiled) -> None:
        import gevent

        data = body_of(3 * MB)
        tasks = [gevent.spawn(wire.send, data), gevent.spawn(far.exactly, len(data))]
        assert tasks[1].get(timeout=20) == data
        tasks += [gevent.spawn(far.send, data)]
        assert wire.exactly(len(data)) == data
        gevent.joinall(tasks, raise_error=True)

    tunnelled(parties, test, buffers=16384)


def test_the_end_of_a_client_is_a_goodbye_after_its_last_byte(parties: Parties) -> None:
    def test(_: Rig, wire: Any, far: Veiled) -> None:
        import gevent

        data = body_of(MB)

        def send() -> None:
            wire.send(data)
            wire.end()

        sending = gevent.spawn(send)
        assert far.exactly(len(data)) == data
        assert far.receive() == b""
        sending.get()
        far.send(b"and an answer after it")
        far.say_goodbye()
        far.close()
        assert wire.rest() == b"and an answer after it"

    tunnelled(parties, test, buffers=16384)


def test_the_end_of_a_client_loses_nothing_of_what_comes_from_the_backend(parties: Parties) -> None:
    def test(rig: Rig, wire: Any, far: Veiled) -> None:
        import gevent

        data = body_of(8 * MB)

        def send() -> None:
            far.send(data)
            far.say_goodbye()

        sending = gevent.spawn(send)
        rig.until(lambda: outgoing(far.sock), "bytes at every place on the way: nobody reads")
        wire.end()
        assert far.receive() == b""
        assert exactly(wire.sock, len(data) + 1) == data
        sending.get()

    tunnelled(parties, test)


def test_a_client_may_end_after_the_backend(parties: Parties) -> None:
    def test(_: Rig, wire: Any, far: Veiled) -> None:
        far.send(b"goodbye")
        far.say_goodbye()
        assert wire.rest() == b"goodbye"
        wire.send(b"and the same to you").end()
        assert far.exactly(20) == b"and the same to you"

    tunnelled(parties, test)


def test_a_backend_that_ends_without_a_goodbye_resets_the_client(parties: Parties) -> None:
    def test(_: Rig, wire: Any, far: Veiled) -> None:
        far.send(b"the last bytes")
        assert wire.exactly(14) == b"the last bytes"
        far.close()
        with pytest.raises(ConnectionResetError):
            wire.sock.recv(1)

    tunnelled(parties, test)
