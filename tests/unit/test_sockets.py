"""Binding, adopting and giving up listening sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acme_wsgi import sockets
from acme_wsgi.sockets import Listener, ListenError

FASTOPEN = getattr(socket, "TCP_FASTOPEN", 23)


@pytest.fixture
def opened() -> Iterator[list[Listener]]:
    """Listeners put in here are closed after the test."""
    found: list[Listener] = []
    yield found
    for listener in found:
        listener.close()


def tcp(opened: list[Listener], host: str, port: int = 0, **options: object) -> list[Listener]:
    made = sockets.bind_tcp(host, port, **({"backlog": 100, "fastopen": True} | options))  # type: ignore[arg-type]
    opened.extend(made)
    return made


def test_ipv4(opened: list[Listener]) -> None:
    [listener] = tcp(opened, "127.0.0.1")
    _, port = listener.sock.getsockname()
    assert listener.name == f"127.0.0.1:{port}"
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_accepted_connections_inherit_nodelay(opened: list[Listener]) -> None:
    [listener] = tcp(opened, "127.0.0.1")
    listener.sock.setblocking(True)
    with socket.create_connection(listener.sock.getsockname()):
        accepted, _ = listener.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(opened: list[Listener], host: str) -> None:
    [listener] = tcp(opened, host)
    assert listener.name == f"[::1]:{listener.sock.getsockname()[1]}"
    assert listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_all_of_ipv6_takes_ipv4_as_well(opened: list[Listener]) -> None:
    [listener] = tcp(opened, "::")
    port = listener.sock.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), 5).close()


def test_a_name_is_resolved_and_every_address_of_it_bound_to_one_port(
    opened: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    listeners = tcp(opened, "both.example")
    assert [listener.sock.family for listener in listeners] == [socket.AF_INET6, socket.AF_INET]
    assert len({listener.sock.getsockname()[1] for listener in listeners}) == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "a..b"])
def test_a_name_that_does_not_resolve(host: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on"):
        sockets.bind_tcp(host, 0, backlog=1, fastopen=False)


def test_an_address_in_use_names_who_has_it(opened: list[Listener]) -> None:
    [listener] = tcp(opened, "127.0.0.1")
    port = listener.sock.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        sockets.bind_tcp("127.0.0.1", port, backlog=1, fastopen=False)
    assert f"127.0.0.1:{port}: already in use by" in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert caught.value.exit_status == 1


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match="does not have that address"):
        sockets.bind_tcp("192.0.2.1", 0, backlog=1, fastopen=False)


def test_when_one_address_fails_none_is_kept(opened: list[Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    [taken] = tcp(opened, "127.0.0.1")
    with closing(socket.create_server(("127.0.0.2", 0))) as probe:
        free = probe.getsockname()[1]
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", free)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", taken.sock.getsockname()),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ListenError):
        sockets.bind_tcp("two.example", 1, backlog=1, fastopen=False)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.2", free))


def test_fast_open_is_set_as_long_as_the_queue(opened: list[Listener]) -> None:
    [on] = tcp(opened, "127.0.0.1", backlog=64)
    [off] = tcp(opened, "127.0.0.1", fastopen=False)
    assert on.sock.getsockopt(socket.IPPROTO_TCP, FASTOPEN) == 64
    assert off.sock.getsockopt(socket.IPPROTO_TCP, FASTOPEN) == 0


def test_the_kernel_caps_the_backlog() -> None:
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert sockets.capped_backlog(10**6) == somaxconn
    assert sockets.capped_backlog(5) == 5


# -- UNIX sockets


def test_unix(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "http.sock"
    umask = os.umask(0o077)
    try:
        listener = sockets.bind_unix(str(path), backlog=5)
    finally:
        os.umask(umask)
    opened.append(listener)
    assert listener.name == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not listener.sock.getblocking() and not listener.sock.get_inheritable()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.unlink()
    assert not path.exists()


def test_the_umask_is_left_as_it_was(tmp_path: Path, opened: list[Listener]) -> None:
    before = os.umask(0o027)
    try:
        opened.append(sockets.bind_unix(str(tmp_path / "s"), backlog=5))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_dead_servers_socket_is_replaced(tmp_path: Path, opened: list[Listener]) -> None:
    path = str(tmp_path / "http.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    opened.append(sockets.bind_unix(path, backlog=5))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_living_servers_socket_is_left_alone(tmp_path: Path, opened: list[Listener]) -> None:
    path = str(tmp_path / "http.sock")
    opened.append(sockets.bind_unix(path, backlog=5))
    with pytest.raises(ListenError, match="another server answers"):
        sockets.bind_unix(path, backlog=5)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_living_server_with_a_full_queue_is_left_alone(tmp_path: Path, opened: list[Listener]) -> None:
    path = str(tmp_path / "http.sock")
    opened.append(sockets.bind_unix(path, backlog=0))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with pytest.raises(ListenError, match="in use"):
            sockets.bind_unix(path, backlog=5)


def test_a_file_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="not a socket"):
        sockets.bind_unix(str(path), backlog=5)
    assert path.read_text() == "data"


@pytest.mark.parametrize("path", ["/no/such/directory/s", "/" + "long" * 40])
def test_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on unix:/"):
        sockets.bind_unix(path, backlog=5)


def test_only_the_process_that_made_a_path_removes_it(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    listener = sockets.bind_unix(str(path), backlog=5)
    opened.append(listener)
    child = os.fork()
    if child == 0:
        listener.unlink()
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()


def test_a_successors_socket_is_not_removed(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    ours = sockets.bind_unix(str(path), backlog=5)
    path.rename(tmp_path / "moved")
    opened += [ours, sockets.bind_unix(str(path), backlog=5)]
    ours.unlink()
    assert path.exists()


# -- systemd


def handed_over(pid: int | str, count: int | str) -> dict[str, str]:
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "x", "HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        handed_over(1, 1),
        handed_over("", 1),
        handed_over(os.getpid(), 0),
        handed_over(os.getpid(), "many"),
    ],
)
def test_what_is_not_meant_for_us_is_not_taken_and_not_passed_on(environ: dict[str, str]) -> None:
    assert sockets.from_systemd(environ) == []
    assert not any(name.startswith("LISTEN") for name in environ)


@pytest.fixture
def third(request: pytest.FixtureRequest) -> Iterator[None]:
    """Descriptor 3 is free for the test and as before after it."""
    try:
        saved = os.dup(3)
    except OSError:
        saved = -1
    yield
    if saved >= 0:
        os.dup2(saved, 3)
        os.close(saved)


@pytest.mark.usefixtures("third")
def test_sockets_of_systemd_are_adopted(opened: list[Listener]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as made:
        port = made.getsockname()[1]
        os.dup2(made.fileno(), 3)
    environ = handed_over(os.getpid(), 1)
    opened += sockets.listeners("192.0.2.1", 80, backlog=7, fastopen=True, environ=environ)
    [listener] = opened
    assert listener.name == f"127.0.0.1:{port}" and listener.path is None
    assert not listener.sock.getblocking() and not listener.sock.get_inheritable()
    assert environ == {"HOME": "/"}
    socket.create_connection(("127.0.0.1", port), 5).close()


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize("kind", ["file", "datagram"])
def test_what_systemd_hands_over_must_be_a_stream_socket(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        with open(tmp_path / "f", "w") as file:
            os.dup2(file.fileno(), 3)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            os.dup2(sock.fileno(), 3)
    try:
        with pytest.raises(ListenError, match="descriptor 3 from systemd"):
            sockets.from_systemd(handed_over(os.getpid(), 1))
    finally:
        os.close(3)


@pytest.mark.usefixtures("third")
def test_an_abstract_socket_of_systemd_has_a_name(opened: list[Listener]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind("")
        made.listen()
        address = made.getsockname()
        os.dup2(made.fileno(), 3)
    opened += sockets.from_systemd(handed_over(os.getpid(), 1))
    assert [listener.name for listener in opened] == ["unix:@" + address[1:].decode()]


# -- another configuration


def rebound(
    old: list[Listener], host: str, port: int, opened: list[Listener]
) -> tuple[list[Listener], list[Listener]]:
    now, removed = sockets.rebind(old, host, port, backlog=100, fastopen=True)
    opened += now
    return now, removed


def resolves_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Every name is these IPv4 addresses from now on."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda _host, port, **_: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts
        ],
    )


def queue(address: tuple[str, int] | str) -> socket.socket:
    """A connection that nobody has accepted yet."""
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(5)
    client.connect(address)
    return client


def accepts(listener: Listener) -> None:
    """A connection is waiting at this listener."""
    listener.sock.settimeout(5)
    listener.sock.accept()[0].close()


@pytest.mark.parametrize(
    ("first", "then"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "::1"), ("localhost",) * 2]
)
def test_an_address_that_stays_keeps_its_listeners(
    opened: list[Listener], first: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = rebound([], first, 0, opened)
    monkeypatch.setattr(socket, "getaddrinfo", None)  # nothing is resolved again
    assert sockets.rebind(old, then, 0, backlog=100, fastopen=True) == (old, [])


def test_waiting_connections_outlive_a_reload(opened: list[Listener]) -> None:
    old, _ = rebound([], "127.0.0.1", 0, opened)
    with queue(old[0].sock.getsockname()):
        [now], _ = rebound(old, "127.0.0.1", 0, opened)
        accepts(now)


def test_another_port_is_bound_and_the_old_one_still_listens(opened: list[Listener]) -> None:
    old, _ = rebound([], "127.0.0.1", 0, opened)
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    now, removed = rebound(old, "127.0.0.1", port, opened)
    assert removed == old and [one.name for one in now] == [f"127.0.0.1:{port}"]
    for listener in (*old, *now):
        with queue(listener.sock.getsockname()):
            accepts(listener)


def test_the_port_that_the_kernel_chose_may_be_written_down(opened: list[Listener]) -> None:
    old, _ = rebound([], "127.0.0.1", 0, opened)
    now, removed = rebound(old, "127.0.0.1", old[0].sock.getsockname()[1], opened)
    assert now == old and removed == []


def test_a_name_that_gains_and_loses_addresses_keeps_the_others(
    opened: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    old, _ = rebound([], "old.example", 0, opened)
    port = old[0].sock.getsockname()[1]
    resolves_to(monkeypatch, "127.0.0.3", "127.0.0.4")
    now, removed = rebound(old, "new.example", port, opened)
    assert now[0] is old[1] and removed == [old[0]]
    assert [one.name for one in now] == [f"127.0.0.3:{port}", f"127.0.0.4:{port}"]
    resolves_to(monkeypatch, "127.0.0.5")
    assert rebound(now, "new.example", port, opened) == (now, []), "the same name is not asked again"


def test_a_rebind_that_fails_has_changed_nothing(
    opened: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves_to(monkeypatch, "127.0.0.2")
    old, _ = rebound([], "old.example", 0, opened)
    port = old[0].sock.getsockname()[1]
    with closing(socket.create_server(("127.0.0.4", port))):
        resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.4")
        with pytest.raises(ListenError, match=f"127.0.0.4:{port}: already in use by"):
            sockets.rebind(old, "new.example", port, backlog=100, fastopen=True)
    with pytest.raises(ConnectionRefusedError):
        queue(("127.0.0.3", port))
    with queue(("127.0.0.2", port)):
        accepts(old[0])
    assert rebound(old, "old.example", 0, opened) == (old, [])


def test_a_rebind_is_taken_back(opened: list[Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "127.0.0.2")
    old, _ = rebound([], "old.example", 0, opened)
    port = old[0].sock.getsockname()[1]
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    now, _ = rebound(old, "new.example", port, opened)
    sockets.undo(old, now)
    with pytest.raises(ConnectionRefusedError):
        queue(("127.0.0.3", port))
    assert rebound(old, "old.example", 0, opened) == (old, []), "port 0 is still the one it was"


@pytest.mark.parametrize(
    ("first", "then"),
    [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::"), ("::", "::1")],
)
def test_one_address_and_all_of_them_exclude_each_other(
    opened: list[Listener], first: str, then: str
) -> None:
    old, _ = rebound([], first, 0, opened)
    port = old[0].sock.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        sockets.rebind(old, then, port, backlog=100, fastopen=True)
    assert f"while this server still listens on {old[0].name}" in str(caught.value)
    assert "stop the server and start it" in str(caught.value)


def test_somebody_elses_port_is_not_taken_for_ours(opened: list[Listener]) -> None:
    old, _ = rebound([], "127.0.0.2", 0, opened)
    port = old[0].sock.getsockname()[1]
    with (
        closing(socket.create_server(("127.0.0.3", port))),
        pytest.raises(ListenError, match="already in use by"),
    ):
        sockets.rebind(old, "127.0.0.3", port, backlog=100, fastopen=True)


@pytest.mark.usefixtures("third")
def test_sockets_of_systemd_stay_whatever_the_configuration_says(opened: list[Listener]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as made:
        os.dup2(made.fileno(), 3)
    opened += sockets.from_systemd(handed_over(os.getpid(), 1))
    assert sockets.rebind(opened, "192.0.2.1", 80, backlog=1, fastopen=False) == (opened, [])


def test_a_unix_path_that_stays_under_another_spelling(tmp_path: Path, opened: list[Listener]) -> None:
    old, _ = rebound([], f"unix:{tmp_path}/s", 8080, opened)
    assert rebound(old, f"unix:{tmp_path}/x/../s", 9090, opened) == (old, [])


def test_from_one_unix_path_to_another_and_to_a_port(tmp_path: Path, opened: list[Listener]) -> None:
    old, _ = rebound([], f"unix:{tmp_path}/a", 0, opened)
    now, removed = rebound(old, f"unix:{tmp_path}/b", 0, opened)
    assert removed == old
    with queue(f"{tmp_path}/a"):
        accepts(old[0])
    old[0].unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    tcp_now, removed = rebound(now, "127.0.0.1", 0, opened)
    assert removed == now
    sockets.undo(now, tcp_now)
    assert (tmp_path / "b").exists() and tcp_now[0].sock.fileno() == -1


def test_a_unix_path_that_is_taken_back_is_removed(tmp_path: Path, opened: list[Listener]) -> None:
    old, _ = rebound([], f"unix:{tmp_path}/a", 0, opened)
    now, _ = rebound(old, f"unix:{tmp_path}/b", 0, opened)
    sockets.undo(old, now)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
