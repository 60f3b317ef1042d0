"""The keys of ``server``: listener, processes and the limits of every connection and request.

Its law: declarations only.
"""

from __future__ import annotations

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import key, section

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
MAX_BACKLOG = (1 << 31) - 1


@section
class ConnectionPool:
    """Connections to backends."""

    min_idle: int = key(0, "warm idle connections kept to each healthy backend", maximum=100_000)
    max_per_worker: int = key(
        1000,
        "most backend connections of one worker, all backends together; beyond it requests queue, up to the "
        "request's timeout, then 503",
        minimum=1,
        maximum=1_000_000,
    )
    reuse_connections: bool = key(True, "keep-alive to backends; false = one request a connection")
    idle_timeout: float = key(
        60.0, "an idle backend connection is closed after it", unit="duration", minimum=0.01, maximum=86400
    )


@section
class Server:
    """The listener, the processes, and the limits of every connection and request."""

    host: str = key(
        "0.0.0.0",  # noqa: S104 - a server is there to be reached
        "bind address; unix:/run/acme/http.sock binds a UNIX socket; sockets handed over by systemd "
        "(LISTEN_FDS) win",
        live=False,
        check=grammar.bind_host,
        example="unix:/run/acme/http.sock",
    )
    port: int = key(
        8080, "bind port; 0 = one that the kernel chooses, named in the log", maximum=65535, live=False
    )
    workers: int = key(
        0, "worker processes; 0 = one per available CPU (cgroup and affinity aware)", maximum=1024, live=False
    )
    worker_stack_size: int = key(
        2 * MB,
        "C stack of the worker's main thread (RLIMIT_STACK, set before the worker's first frame) and "
        "of its I/O threads",
        unit="size",
        minimum=MB,
        maximum=GB,
    )
    io_threads: int = key(
        4,
        "I/O threads over all workers, each worker gets its share, at least 1: blocking file, DNS and SQLite "
        "calls run there, never on the loop",
        minimum=1,
        maximum=4096,
    )
    max_connections: int = key(
        10_000,
        "client connections over all workers; at the limit the longest-idle keep-alive connection makes "
        "room, and when none is idle new ones wait in the listen queue",
        minimum=1,
        maximum=10_000_000,
    )
    timeout: float = key(
        30.0,
        "a request's whole time in the server: the head must arrive in it (408), a handler that runs over "
        "gets 503; a worker whose loop stands still this long is replaced and its stack logged",
        unit="duration",
        minimum=0.01,
        maximum=86400,
    )
    keep_alive_timeout: float = key(
        120.0, "idle time of a kept-alive client connection", unit="duration", minimum=0.01, maximum=86400
    )
    shutdown_timeout: float = key(
        30.0, "how long a graceful stop waits for open requests", unit="duration", maximum=86400
    )
    max_body_size: int = key(
        10 * MB,
        "largest request body; a larger one is 413, from Content-Length at once, from a chunked body "
        "as soon as it passes",
        unit="size",
        minimum=1,
        maximum=1 << 50,
    )
    max_header_size: int = key(
        8 * KB, "largest request head; a larger one is 431", unit="size", minimum=256, maximum=MB
    )
    body_min_rate: int = key(
        256, "bytes a second that a request body must arrive with after min_rate_grace; 0 = any",
        unit="size", maximum=GB,
    )  # fmt: skip
    send_min_rate: int = key(
        256, "bytes a second that a client must take a response with after min_rate_grace; 0 = any",
        unit="size", maximum=GB,
    )  # fmt: skip
    min_rate_grace: float = key(
        10.0,
        "how long a body or a response may be slower than its minimum rate",
        unit="duration",
        maximum=86400,
    )
    lingering_timeout: float = key(
        5.0,
        "how long an unread request body is drained before the connection closes",
        unit="duration",
        maximum=3600,
    )
    server_header: bool = key(True, "responses carry Server: acme")
    connection_pool: ConnectionPool = key(ConnectionPool(), "connections to backends", built=False)
    backlog: int = key(
        65535, "listen queue; the kernel's somaxconn caps it", minimum=1, maximum=MAX_BACKLOG, live=False
    )
    tcp_fastopen: bool = key(True, "TCP_FASTOPEN on the listener, where the kernel allows it", live=False)
    max_requests: int = key(0, "a worker is recycled after so many requests; 0 = never", built=False)
    max_requests_jitter: int = key(
        0, "up to so many requests more, by chance, so that workers aren't recycled together", built=False
    )
    preload_app: bool = key(
        False, "load the application once, in the arbiter, before forking", live=False, built=False
    )
    user: str | None = key(
        None,
        "user that workers run as, after bind",
        live=False,
        built=False,
        check=grammar.account,
        example="acme",
    )
    group: str | None = key(
        None,
        "group that workers run as, after bind",
        live=False,
        built=False,
        check=grammar.account,
        example="acme",
    )
    pid_file: str | None = key(
        None, "file that holds the arbiter's process id", live=False, built=False,
        check=grammar.absolute, example="/run/acme/acme.pid",
    )  # fmt: skip
    runtime_dir: str | None = key(
        None, "directory of the control socket and the shared store", live=False, built=False,
        check=grammar.absolute, example="/run/acme",
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = key(
        (),
        "networks whose Forwarded, X-Forwarded-* and PROXY headers are believed; unix: means the "
        "peers of a UNIX socket",
        check=grammar.peer,
        example="[10.0.0.0/8, 'unix:']",
    )
