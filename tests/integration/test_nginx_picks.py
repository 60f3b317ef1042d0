"""The picks of a group beside those of a real nginx, request by request."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from acme_wsgi.upstream.board import LEAST_CONN, ROUND_ROBIN
from tests.server import wait_until
from tests.unit.upstream.backends import group_of

pytestmark = pytest.mark.slow

NAMES = "abcdefgh"
WEIGHTS = [(5, 3, 2), (5, 1, 1), (1, 1, 1), (7, 2, 1), (1, 2, 3, 4), (10, 1)]

# One process on Unix sockets: the backends are servers of the same nginx. Nobody listens on that of `x`.
CONFIG = """
daemon off; master_process off; error_log stderr crit; pid nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp;
    uwsgi_temp_path tmp; scgi_temp_path tmp; keepalive_requests 100000;
    {upstreams}
    {backends}
    server {{
        listen unix:{home}/front.sock;
        add_header Tried $upstream_addr;
        {routes}
    }}
}}
"""


@contextmanager
def nginx(home: Path, upstreams: Mapping[str, str]) -> Iterator[http.client.HTTPConnection]:
    """A keep-alive connection to an nginx that balances /NAME over the upstream of that name."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert found, "nginx is needed to compare with"
    config = CONFIG.format(
        home=home,
        upstreams="".join(f"upstream {name} {{ {body} }}\n" for name, body in upstreams.items()),
        backends="".join(
            f"server {{ listen unix:{home}/{name}.sock; return 200 {name}; }}\n" for name in NAMES
        ),
        routes="".join(f"location = /{name} {{ proxy_pass http://{name}/; }}\n" for name in upstreams),
    )
    (home / "nginx.conf").write_text(config)
    command = [found, "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")]
    front = str(home / "front.sock")
    with subprocess.Popen(command) as process:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            wait_until(lambda: process.poll() or connection.sock.connect_ex(front) == 0, "nginx listens")
            assert process.poll() is None
            yield connection
        finally:
            connection.close()
            process.terminate()


def asked(connection: http.client.HTTPConnection, name: str) -> tuple[str, str]:
    """The backend that answered, and all that were tried for the request, in order, as letters."""
    connection.request("GET", f"/{name}")
    response = connection.getresponse()
    assert response.status == 200
    tried = (response.getheader("Tried") or "").split(", ")
    return response.read().decode(), "".join(Path(one).stem for one in tried)


def servers(home: Path, weights: tuple[int, ...]) -> str:
    return "".join(
        f"server unix:{home}/{name}.sock weight={weight};"
        for name, weight in zip(NAMES, weights, strict=False)
    )


def named(weights: tuple[int, ...]) -> str:
    return "u" + "-".join(map(str, weights))


@pytest.mark.parametrize("algorithm", [ROUND_ROBIN, LEAST_CONN])
def test_a_thousand_picks_are_the_same(tmp_path: Path, algorithm: int) -> None:
    prefix = "least_conn;" if algorithm == LEAST_CONN else ""
    upstreams = {named(weights): prefix + servers(tmp_path, weights) for weights in WEIGHTS}
    with nginx(tmp_path, upstreams) as connection:
        for weights in WEIGHTS:
            theirs = "".join(asked(connection, named(weights))[0] for _ in range(1000))
            _, group = group_of(weights, algorithm)
            ours = ""
            for _ in range(1000):
                member = group.pick()
                group.begin(member, 0)
                ours += NAMES[member]
                group.end(member, 0, True, 1000)
            assert ours == theirs, weights


@pytest.mark.parametrize(("weights", "max_fails"), [((8, 5, 3), 4), ((6, 6, 6), 2), ((9, 1, 1), 3)])
def test_so_are_the_ones_after_failures(tmp_path: Path, weights: tuple[int, ...], max_fails: int) -> None:
    """The first server refuses: each request that meets it goes on to another, until it is out."""
    body = f"server unix:{tmp_path}/x.sock weight={weights[0]} max_fails={max_fails} fail_timeout=1h;"
    for name, weight in list(zip(NAMES, weights, strict=False))[1:]:
        body += f"server unix:{tmp_path}/{name}.sock weight={weight};"
    with nginx(tmp_path, {"failing": body}) as connection:
        theirs = [asked(connection, "failing")[1] for _ in range(100)]
    _, group = group_of(weights, unhealthy=max_fails)
    ours = []
    for _ in range(100):
        tried, path = 0, ""
        while (member := group.pick(tried)) == 0:
            group.failed(0, connecting=True)
            tried |= 1
            path += "x"
        ours.append(path + NAMES[member])
    assert sum(path.count("x") for path in theirs) == max_fails
    assert ours == theirs
