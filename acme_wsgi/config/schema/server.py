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
        check=grammar.bind_host,
        example="unix:/run/acme/http.sock",
    )
    port: int = key(8080, "bind port; 0 = one that the kernel chooses, named in the log", maximum=65535)
    workers: int = key(
        0, "worker processes; 0 = one per available CPU (cgroup and affinity aware)", maximum=1024
    )
    worker_stack_size: int = key(
        2 * MB,
        "C stack of the worker's main thread (RLIMIT_STACK, set before the worker's first frame) and "
        "of its I/O threads",
        unit="size",
        minimum=MB,
        maximum=GB,
        live=False,
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
    connection_pool: ConnectionPool = key(ConnectionPool(), "connections to backends")
    backlog: int = key(
        65535, "listen queue; the kernel's somaxconn caps it", minimum=1, maximum=MAX_BACKLOG, live=False
    )
    tcp_fastopen: bool = key(True, "TCP_FASTOPEN on the listener, where the kernel allows it", live=False)
    max_requests: int = key(
        0, "a worker is replaced after so many requests, its successor first; 0 = never", maximum=1 << 62
    )
    max_requests_jitter: int = key(
        0,
        "up to so many requests more, by chance, so that workers aren't replaced together",
        maximum=1 << 62,
    )
    max_memory: int | None = key(
        None,
        "a worker is replaced, its successor first, once its proportional memory (PSS) is above this; "
        "unset = never",
        unit="size",
        minimum=MB,
        example="1GB",
    )
    max_concurrency: int = key(
        0,
        "requests that one worker runs at the same time; the others wait in its queue; 0 = as many as come",
        maximum=1_000_000,
    )
    queue_size: int = key(
        1000,
        "requests that may wait in the queue of one worker; beyond it they are answered 503 with Retry-After",
        maximum=1_000_000,
    )
    queue_timeout: float = key(
        5.0,
        "longest time that a request waits to be started, be it for max_concurrency or for a busy worker; "
        "then it is answered 503 with Retry-After",
        unit="duration",
        minimum=0.001,
        maximum=86400,
    )
    blocked_after: float = key(
        1.0,
        "a worker whose loop stands still this long is reported while it does: route, line of the handler, "
        "how long",
        unit="duration",
        minimum=0.1,
        maximum=86400,
    )
    probe: str = key(
        "*",
        "what a new worker must answer before it serves: a path that is asked with GET and must answer below "
        "500, or * (OPTIONS *) for the engine alone",
        check=grammar.probe,
        example="/health",
    )
    preload_app: bool = key(
        False, "load the application once, in the arbiter, before forking", live=False, built=False
    )
    user: str | None = key(
        None,
        "user that workers run as, after bind; a server that root starts needs it, and user: root insists",
        live=False,
        check=grammar.account,
        example="acme",
    )
    group: str | None = key(
        None,
        "group that workers run as, after bind; unset = the user's own groups",
        live=False,
        check=grammar.account,
        example="acme",
    )
    pid_file: str | None = key(
        None, "file that holds the arbiter's process id", live=False,
        check=grammar.absolute, example="/run/acme/acme.pid",
    )  # fmt: skip
    runtime_dir: str | None = key(
        None, "directory of the control socket and the shared store; unset = /run/acme if it can be written, "
        "else acme in $XDG_RUNTIME_DIR",
        live=False,
        check=grammar.absolute, example="/run/acme",
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = key(
        (),
        "networks whose Forwarded, X-Forwarded-* and PROXY headers are believed; unix: means the "
        "peers of a UNIX socket",
        check=grammar.peer,
        example="[10.0.0.0/8, 'unix:']",
    )
