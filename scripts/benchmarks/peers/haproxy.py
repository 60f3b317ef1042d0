"""HAProxy: the proxy that others are measured against. Of its own it has nothing but a short fixed answer."""

from __future__ import annotations

from ..apps import HELLO
from .base import Launch, PeerUnavailable, Upstream
from .packaged import Packaged

# One thread, as the others have one worker. What isn't named here is as shipped; times that would cut a
# measurement short are an hour, as with nginx. It counts on two descriptors a client, and above a fifth
# of its descriptors it keeps no idle connection to a backend: neither may depend on this machine's limit.
_CONFIGURATION = """\
global
    maxconn {connections}
    nbthread 1
    no strict-limits
    tune.pool-low-fd-ratio 99
    tune.pool-high-fd-ratio 100
defaults
    mode http
    option http-keep-alive
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout queue 1h
    timeout http-keep-alive 1h
frontend site
    bind {host}:{port} backlog 65535
    {site}
"""
_ANSWER = 'http-request return status 200 content-type text/plain string "{body}"'
_PROXY = """\
default_backend origin
backend origin
    http-reuse always{forwarded}
    server origin 127.0.0.1:{port}{limit}"""
_FORWARDED = """
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]"""


class HAProxy(Packaged):
    """Debian's package, in the foreground as one process; its log goes to syslog only, so it has none."""

    name = "haproxy"
    can_proxy = True
    can_queue = True
    told_as = r"version ([\d.]+)"
    note = "a proxy, C"

    def command(self, launch: Launch) -> list[str]:
        """It takes the descriptors that `maxconn` needs by itself, as far as the hard limit allows."""
        path = launch.directory / "haproxy.cfg"
        path.write_text(
            _CONFIGURATION.format(
                connections=launch.connections + 64, host=launch.host, port=launch.port, site=_site(launch)
            )
        )
        return ["haproxy", "-db", "-f", str(path)]


def _site(launch: Launch) -> str:
    """The end of the frontend, and the backend. Raises PeerUnavailable."""
    if launch.upstream is not None:
        return _backend(launch.upstream)
    if launch.site != "hello":
        raise PeerUnavailable(f"haproxy has nothing like the site {launch.site!r}")
    return _ANSWER.format(body=HELLO.decode())


def _backend(upstream: Upstream) -> str:
    return _PROXY.format(
        port=upstream.port,
        limit=f" maxconn {upstream.limit}" if upstream.limit else "",
        forwarded=_FORWARDED if upstream.forwarded else "",
    )
