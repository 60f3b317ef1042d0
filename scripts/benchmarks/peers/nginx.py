"""nginx answering `return 200`, with files or as a proxy: the practical floor of a server written in C."""

from __future__ import annotations

import os
from pathlib import Path

from ..apps import HELLO
from .base import Coding, Launch, Upstream
from .packaged import Packaged

# In the section http of every nginx of the bench: connections stay, all files are in its directory.
ALWAYS = """\
keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;"""
_CONFIGURATION = """\
daemon off;
worker_processes {workers};
worker_rlimit_nofile {descriptors};
pid nginx.pid;
error_log error.log {level};
{user}
events {{
    worker_connections {descriptors};
}}
http {{
    access_log {access_log};
    default_type text/plain;
    {always}
    {upstream}
    server {{
        listen {host}:{port} backlog=65535;
        location / {{
            {location}
        }}
    }}
}}
"""
_ANSWER = 'return 200 "{body}";'
# What its documentation advises for files. Times and counts that aren't named here are its defaults.
_FILES = """\
root {root};
            include /etc/nginx/mime.types;
            sendfile on;
            tcp_nopush on;
            etag on;
            open_file_cache max=10000 inactive=1h;
            {gzip}"""
# `max_conns` refuses: a queue for it is in the commercial version alone. No temporary file: a client that is
# slower than the origin is to hold the origin up, as it does with the other proxies, not to fill a disk.
_UPSTREAM = """\
upstream origin {{
        server 127.0.0.1:{port} max_conns={limit};
        keepalive {keep};
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}"""
_PROXY = """\
proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
            client_max_body_size 0;"""
_FORWARDED = """
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;"""
_GZIP = "gzip on; gzip_comp_level {level}; gzip_vary on; gzip_types text/css application/json;"


def user() -> str:
    """As root nginx would hand its workers to `nobody`, who may not write in a private directory."""
    return "user root;" if os.geteuid() == 0 else ""


def command_line(configuration: Path) -> list[str]:
    """Run nginx with this configuration, in its directory."""
    directory = configuration.parent
    # The log files named before the configuration is read would go to /var/log/nginx: -e says no.
    return ["nginx", "-p", str(directory), "-c", str(configuration), "-e", str(directory / "error.log")]


class Nginx(Packaged):
    """Debian's package, one worker, no modules loaded."""

    name = "nginx"
    can_log = True
    can_fork = True
    can_serve_files = True
    can_proxy = True
    told_as = r"nginx/([\d.]+)"
    note = "return 200, files or proxy_pass, C"

    def command(self, launch: Launch) -> list[str]:
        """Its prefix, temporary paths, pid file and error log are all in the launch's directory."""
        log = "off"
        if launch.access_log is not None:
            buffer = f" buffer={launch.log_buffer} flush=1s" if launch.log_buffer else ""
            log = f"{launch.access_log} combined{buffer}"
        configuration = _CONFIGURATION.format(
            workers=launch.workers,
            descriptors=launch.descriptors,
            access_log=log,
            host=launch.host,
            port=launch.port,
            # With `max_conns` every refusal would be a line; what is refused stands in the table.
            level="crit" if launch.upstream is not None and launch.upstream.limit else "error",
            upstream=_upstream(launch.upstream) if launch.upstream is not None else "",
            location=_location(launch),
            user=user(),
            always=ALWAYS,
        )
        path = launch.directory / "nginx.conf"
        path.write_text(configuration)
        return command_line(path)


def _location(launch: Launch) -> str:
    """What stands in the only location."""
    if launch.upstream is not None:
        return _PROXY + (_FORWARDED if launch.upstream.forwarded else "")
    if launch.site == "files":
        return _FILES.format(root=launch.root, gzip=_gzip(launch.coding))
    return _ANSWER.format(body=HELLO.decode() if launch.site == "hello" else "$pid")


def _upstream(upstream: Upstream) -> str:
    """The block for it. More than `limit` idle connections would be more connections."""
    keep = min(upstream.keep, upstream.limit) if upstream.limit else upstream.keep
    return _UPSTREAM.format(port=upstream.port, limit=upstream.limit, keep=keep)


def _gzip(coding: Coding | None) -> str:
    """The directives; off where nothing is said, as in nginx itself. It has no brotli of its own."""
    if coding is None or coding.token == "identity":
        return "gzip off;"
    if coding.token != "gzip":
        raise ValueError(f"nginx doesn't compress with {coding.token}")
    return _GZIP.format(level=coding.level) if coding.level else "gzip_static on; gzip_vary on;"
