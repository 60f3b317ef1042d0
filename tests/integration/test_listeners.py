"""Where the server listens, and how: addresses, sockets handed over, the queue, fast open."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Launcher, Server
from tests.wire import Wire

pytestmark = pytest.mark.slow  # whole servers, started and stopped: seconds each

APP = "tests.apps.basic:app"
SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())
FASTOPEN = Path("/proc/sys/net/ipv4/tcp_fastopen")
PIDFD_GETFD = 438  # the system call's number, the same on every architecture


def listener_of(server: Server) -> socket.socket:
    """A copy of the server's first TCP listener, taken out of the living process (pidfd_getfd(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(server.pid)
    try:
        for link in sorted(Path(f"/proc/{server.pid}/fd").iterdir(), key=lambda each: int(each.name)):
            if not str(link.readlink()).startswith("socket:"):
                continue
            copied = libc.syscall(PIDFD_GETFD, pidfd, int(link.name), 0)
            if copied < 0:
                pytest.skip(f"pidfd_getfd is not allowed here: {os.strerror(ctypes.get_errno())}")
            sock = socket.socket(fileno=copied)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return sock
            sock.close()
    finally:
        os.close(pidfd)
    raise AssertionError("the server has no listener")


def test_ipv4(acme: Launcher) -> None:
    server = acme(app=APP)
    assert server.addresses[0].startswith("127.0.0.1:")
    assert server.get("/").text == "hello\n"


def test_a_given_port(acme: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Freed a moment ago; should somebody be quicker, the message says so.
    server = acme({"server": {"port": port}}, app=APP)
    assert server.port == port


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(acme: Launcher, host: str) -> None:
    server = acme({"server": {"host": host}}, app=APP)
    assert server.addresses[0].startswith("[::1]:")
    assert server.get("/").text == "hello\n"
    with pytest.raises(ConnectionRefusedError):
        server.connect(f"127.0.0.1:{server.port}")


def test_the_unspecified_ipv6_address_takes_both_families(acme: Launcher) -> None:
    server = acme({"server": {"host": "::"}}, app=APP)
    for host in ("127.0.0.1", "[::1]"):
        with server.connect(f"{host}:{server.port}") as wire:
            assert wire.request("/").text == "hello\n"
    assert re.search(r"^127\.0\.0\.1 ", server.stop().stdout, re.MULTILINE), "IPv4 clients keep their address"


def test_a_host_name(acme: Launcher) -> None:
    server = acme({"server": {"host": "localhost"}}, app=APP)
    assert server.addresses
    for address in server.addresses:
        with server.connect(address) as wire:
            assert wire.request("/").text == "hello\n"


def test_a_unix_socket_and_its_removal(acme: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = acme({"server": {"host": f"unix:{path}"}}, app=APP, workers=2)
    assert server.addresses == (f"unix:{path}",)
    assert server.get("/").text == "hello\n"
    server.stop()
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_unix_socket_after_whatever_end(acme: Launcher, tmp_path: Path, number: int) -> None:
    path = tmp_path / "http.sock"
    first = acme({"server": {"host": f"unix:{path}"}}, app=APP)
    if number == signal.SIGKILL:
        first.kill()
        assert path.exists()
    else:
        first.stop(number)
    assert acme({"server": {"host": f"unix:{path}"}}, app=APP).get("/").status == 200


def test_a_unix_socket_that_another_server_answers_on(acme: Launcher, tmp_path: Path) -> None:
    first = acme({"server": {"host": f"unix:{tmp_path}/s"}}, app=APP)
    ended = acme.fails({"server": {"host": f"unix:{tmp_path}/s"}}, app=APP)
    assert ended.status == 1 and "another server answers on it" in ended.stderr
    assert first.get("/").status == 200


def test_a_port_in_use(acme: Launcher) -> None:
    first = acme(app=APP)
    ended = acme.fails({"server": {"port": first.port}}, app=APP)
    assert ended.status == 1
    assert f"127.0.0.1:{first.port}: already in use by 'acme: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sockets_of_systemd_win(acme: Launcher) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        names = (f"127.0.0.1:{one.getsockname()[1]}", f"[::1]:{two.getsockname()[1]}")
        server = acme({"server": {"host": "192.0.2.1", "port": 81}}, app=APP, listen=(one, two), workers=2)
        assert server.addresses == names
        for address in names:
            with server.connect(address) as wire:
                assert wire.request("/").text == "hello\n"
        environ = Path(f"/proc/{server.pid}/environ").read_bytes()
        assert b"LISTEN_FDS=2" in environ, "this is how it came"


def test_a_unix_socket_of_systemd_is_not_removed(acme: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "theirs.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        server = acme(app=APP, listen=(theirs,))
        assert server.get("/").text == "hello\n"
        server.stop()
        assert path.exists()


@pytest.mark.parametrize(("backlog", "queue"), [(7, 7), (65535, min(65535, SOMAXCONN))])
def test_the_listen_queue_is_as_long_as_configured(acme: Launcher, backlog: int, queue: int) -> None:
    server = acme({"server": {"backlog": backlog}}, app=APP)
    if shutil.which("ss") is None:
        pytest.skip("ss is not installed")
    lines = subprocess.run(
        ["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[2] for line in lines] == [str(queue)], "one listener; Send-Q is its limit"


@pytest.mark.parametrize(("wanted", "queue"), [(True, min(65535, SOMAXCONN)), (False, 0)])
def test_fast_open_is_set_on_the_listener(acme: Launcher, wanted: bool, queue: int) -> None:
    server = acme({"server": {"tcp_fastopen": wanted}}, app=APP)
    with listener_of(server) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == queue


def fast_opened() -> int:
    """Connections that the kernel has accepted with data in their SYN."""
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["TCPFastOpenPassive"])


@pytest.fixture
def fast_open_allowed() -> Iterator[None]:
    """The kernel lets servers use it, at least while the test runs."""
    allowed = FASTOPEN.read_text()
    if int(allowed) & 2:
        yield
        return
    if not os.access(FASTOPEN, os.W_OK):
        pytest.skip("net.ipv4.tcp_fastopen has no server bit here and can't be changed")
    FASTOPEN.write_text("3")
    yield
    FASTOPEN.write_text(allowed)


@pytest.mark.usefixtures("fast_open_allowed")
def test_a_request_in_the_syn_is_answered_if_fast_open_is_on(acme: Launcher) -> None:
    # One test and not two: both watch a counter of the whole machine.
    for wanted in (True, False):
        server = acme({"server": {"tcp_fastopen": wanted}}, app=APP)
        before = fast_opened()
        for _ in range(2):  # the first connection fetches the cookie, the second uses it
            with socket.socket() as client:
                request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                client.sendto(request, socket.MSG_FASTOPEN, (server.host, server.port))
                assert Wire(client).rest().startswith(b"HTTP/1.1 200 ")
        assert (fast_opened() > before) is wanted


def test_a_refused_address_names_the_reason(acme: Launcher) -> None:
    ended = acme.fails({"server": {"host": "192.0.2.1"}}, app=APP)
    assert ended.status == 1 and "this machine does not have that address" in ended.stderr


def test_the_terminal_is_not_needed(acme: Launcher) -> None:
    """stdout and stderr closed by the parent are no reason to stop serving."""
    server = acme(app=APP, wrap=("/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh"))
    server.errors_expected = True
    assert server.get("/").text == "hello\n"
