"""A running server: started on its core, awaited until it answers, watched, stopped.

Knows peers by their interface only.
"""

from __future__ import annotations

import http.client
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .apps import HELLO
from .errors import Failed
from .machine import Cores, free_port, pin
from .peers import Coding, Launch, Peer, PeerUnavailable, Site, Upstream
from .processes import ProcessTree, alive

START_PATIENCE = 30.0  # seconds from the command to the first right answer


class ServerFailed(Failed):
    """The server didn't start, died, or answered wrongly; the text has the end of its output."""


@dataclass(frozen=True)
class Server:
    """One that answers. `connect` is the address for clients; the tree is its processes."""

    peer: Peer
    launch: Launch
    tree: ProcessTree
    connect: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """The URL of the site."""
        return f"http://{self.connect}:{self.launch.port}/"


@contextmanager
def running(
    peer: Peer,
    cores: Cores,
    base: Path,
    *,
    host: str = "127.0.0.1",
    site: Site = "hello",
    workers: int = 1,
    connections: int = 1024,
    descriptors: int = 20_000,
    access_log: bool = False,
    log_buffer: str | None = None,
    keys: Mapping[str, str | int | float] | None = None,
    root: Path | None = None,
    coding: Coding | None = None,
    sections: Mapping[str, Mapping[str, object]] | None = None,
    upstream: Upstream | None = None,
) -> Iterator[Server]:
    """Start `peer` in a private directory below `base`, yield it once it answers, stop it whatever happens.

    Raises ServerFailed when it doesn't answer rightly in time, isn't there any more at the end, or the
    measurement failed; with the end of what the server wrote.
    """
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-", dir=base) as name:
        directory = Path(name)
        launch = Launch(
            directory,
            host,
            free_port(),
            site,
            workers,
            connections,
            descriptors,
            directory / "access.log" if access_log else None,
            log_buffer,
            keys or {},
            root,
            coding,
            sections or {},
            upstream,
        )
        try:
            command = peer.command(launch)
        except PeerUnavailable as reason:
            raise ServerFailed(str(reason)) from reason
        with open(directory / "output", "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=peer.environment(),
                start_new_session=True,
                preexec_fn=lambda: pin(cores.server),
            )
        tree = ProcessTree(process.pid)
        try:
            server = Server(peer, launch, tree)
            _await_answer(server, process)
            try:
                yield server
            except Failed as failure:  # what the server itself said belongs to it
                ended = "" if process.poll() is None else f"; it ended, status {process.returncode}"
                raise ServerFailed(f"{failure}{ended}\n{_tail(directory)}".rstrip()) from failure
            if not tree.stopped and not alive(tree.root):
                raise ServerFailed(
                    f"{peer.name} ended by itself, status {process.returncode}\n{_tail(directory)}"
                )
        finally:
            if not tree.stopped:
                tree.stop()
            process.wait()


def _await_answer(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_PATIENCE
    trouble: object = "no answer"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            reply = ask(server)
        except (OSError, http.client.HTTPException) as error:
            trouble = error
            time.sleep(0.05)
            continue
        if reply.status != 200 or (server.launch.site in ("hello", "proxy") and reply.body != HELLO):
            raise ServerFailed(f"{server.peer.name} answered {reply.status}: {reply.body[:2000]!r}")
        return
    how = trouble if process.poll() is None else f"exit status {process.returncode}"
    raise ServerFailed(f"{server.peer.name} doesn't serve: {how}\n{_tail(server.launch.directory)}")


@dataclass(frozen=True)
class Reply:
    """One answer; header names in lower case, the body as it came, without the framing."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(server: Server, path: str = "/", headers: Mapping[str, str] | None = None) -> Reply:
    """One request on its own connection. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(server.connect, server.launch.port, timeout=5)
    try:
        # With a field of its own http.client would say that it accepts no coding.
        connection.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in {**(headers or {}), "Connection": "close"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, fields, response.read())
    finally:
        connection.close()


def _tail(directory: Path, lines: int = 15) -> str:
    found: list[str] = []
    for name in ("output", "error.log"):
        path = directory / name
        if path.exists():
            found += path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in found)
