"""Backends for tests of the proxy: rogues in the test's process, and real servers in processes of their own.

    def test_it(acme, backends):
        rogue = backends.rogue({"short": script})     # tests/rogue.py
        one = backends.gunicorn()                     # kill() is kill -9, start() brings it back
        two = backends.nginx("location / { return 200 $request_uri; }")
        authority = backends.authority()              # certificates; SSL_CERT_FILE=authority.bundle
        secure = backends.rogue(context=authority.context("localhost"))

For a module's own scope: `with closing_all(Backends(directory)) as backends`. At the end all are
stopped, and each rogue must have seen well-formed requests only.

Law: knows the commands gunicorn (of this environment), nginx and openssl (Debian's); ports are the kernel's
choice and stay reserved while a server is down.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from tests.rogue import Rogue, Unreachable, reserve
from tests.server import ROOT, START_DEADLINE, living, wait_until
from tests.wire import DEADLINE, Reply, Wire

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Process:
    """A server in a session of its own that can be killed and brought back on the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._holder, self.port = reserve()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.directory / "output").read_text(errors="replace")

    def command(self) -> Sequence[str]:
        """How it is called."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "it runs already"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with open(self.directory / "output", "ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env={**os.environ, "PATH": _PATH, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._answers, f"{type(self).__name__} to answer on {self.url}", START_DEADLINE)

    def get(self, target: str = "/") -> Reply:
        """One request, straight to it."""
        with Wire(socket.create_connection(("127.0.0.1", self.port), DEADLINE)) as wire:
            return wire.request(target, headers=["Connection: close"])

    def kill(self) -> None:
        """kill -9 for all its processes at once."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it; asks first."""
        self._end(signal.SIGTERM)
        self._holder.close()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
        # A worker that is killed with its master may be the later one to go, and its socket with it.
        wait_until(lambda: not living(process.pid), "the end of all its processes")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it has ended:\n{self.log}"
        try:
            return self.get().status > 0
        except (OSError, AssertionError):
            return False


class Gunicorn(Process):
    """gunicorn with threads and keep-alive."""

    def __init__(self, directory: Path, app: str, *, threads: int, keep_alive: int) -> None:
        super().__init__(directory)
        self.app = app
        self.threads = threads
        self.keep_alive = keep_alive

    def command(self) -> Sequence[str]:
        # A file, since it bears settings that this version of gunicorn doesn't know yet.
        (self.directory / "gunicorn.conf.py").write_text("control_socket_disable = True\n")
        return [
            sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", str(self.threads),
            "--keep-alive", str(self.keep_alive), "--bind", f"127.0.0.1:{self.port}",
            "--worker-tmp-dir", str(self.directory), self.app,
        ]  # fmt: skip


_NGINX = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log access.log;
    default_type text/plain;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        {inside}
    }}
    {outside}
}}
"""


class Nginx(Process):
    """Debian's nginx with a server block of the test's own; `outside` stands beside it in the http block."""

    def __init__(self, directory: Path, inside: str, outside: str = "") -> None:
        super().__init__(directory)
        self.inside = inside
        self.outside = outside

    def command(self) -> Sequence[str]:
        # As root it would hand its workers to `nobody`, who may not write in a private directory.
        user = "user root;" if os.geteuid() == 0 else ""
        path = self.directory / "nginx.conf"
        path.write_text(_NGINX.format(user=user, port=self.port, inside=self.inside, outside=self.outside))
        binary = shutil.which("nginx", path=_PATH)
        assert binary is not None, "nginx isn't installed (apt-get install nginx)"
        return [binary, "-p", str(self.directory), "-c", str(path), "-e", str(self.directory / "error.log")]


class Authority:
    """A certificate authority of the test's own, made with the command openssl.

    :ivar bundle: its certificate, for SSL_CERT_FILE
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / "ca.pem"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=Test Authority", "-keyout", "ca.key", "-out", "ca.pem",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip

    def context(self, *names: str, days: int = 2) -> ssl.SSLContext:
        """A server's context with a certificate for these names ("localhost", "IP:127.0.0.1")."""
        stem = f"server-{len(list(self.directory.glob('server-*.key')))}"
        alternatives = ",".join(name if ":" in name else f"DNS:{name}" for name in names)
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=backend", "-keyout", f"{stem}.key", "-out", f"{stem}.csr",
        )  # fmt: skip
        (self.directory / f"{stem}.ext").write_text(
            f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
        )
        self._openssl(
            "x509", "-req", "-in", f"{stem}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", f"{stem}.ext", "-out", f"{stem}.pem",
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / f"{stem}.pem", self.directory / f"{stem}.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


P = ParamSpec("P")
Made = TypeVar("Made", bound=Rogue | Process | Unreachable)


def _keeping(make: Callable[P, Made]) -> Callable[Concatenate[Backends, P], Made]:
    """The method that makes one, with the arguments that its class takes, and keeps it to end it."""

    def made(self: Backends, /, *args: P.args, **kwargs: P.kwargs) -> Made:
        return self.keep(make(*args, **kwargs))

    return made


class Backends:
    """The `backends` fixture: makes backends, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: list[Rogue | Process | Unreachable] = []

    def keep(self, made: Made) -> Made:
        """Stop this one too at the end."""
        self._made.append(made)
        return made

    rogue = _keeping(Rogue)  # see tests/rogue.py
    unreachable = _keeping(Unreachable)  # where connecting takes for ever

    def gunicorn(
        self, app: str = "tests.apps.basic:app", *, threads: int = 8, keep_alive: int = 60
    ) -> Gunicorn:
        """A running gunicorn."""
        made = self.keep(Gunicorn(self._home("gunicorn"), app, threads=threads, keep_alive=keep_alive))
        made.start()
        return made

    def nginx(self, inside: str, outside: str = "") -> Nginx:
        """A running nginx with these directives in its server block, and beside it."""
        made = self.keep(Nginx(self._home("nginx"), inside, outside))
        made.start()
        return made

    def refusing(self) -> Rogue:
        """A port that refuses; start() opens it."""
        made = self.rogue()
        made.refuse()
        return made

    def authority(self) -> Authority:
        """A new certificate authority."""
        return Authority(self._home("authority"))

    def finish(self) -> None:
        """Stop all; then each rogue must have seen well-formed requests only."""
        self.stop()
        for one in self._made:
            if isinstance(one, Rogue):
                one.check()

    def stop(self) -> None:
        """Leave nothing behind, whatever happened."""
        for one in self._made:
            one.stop()

    def _home(self, name: str) -> Path:
        home = self.directory / f"{name}-{len(list(self.directory.glob(f'{name}-*'))) + 1}"
        home.mkdir()
        return home


@contextmanager
def closing_all(backends: Backends) -> Iterator[Backends]:
    """Check and end them at the end of a block, end them also when it fails."""
    try:
        yield backends
        backends.finish()
    finally:
        backends.stop()
