"""Gives a running ACME orders over its control socket, as `acme-server` does.

One JSON line goes there; lines with `progress` come back, then one with `ok`. See docs/processes.md.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from .errors import Failed


class OrderFailed(Failed):
    """The server couldn't be asked, or said no; the text says why."""


def order(runtime_dir: Path, verb: str, *, timeout: float = 120.0) -> dict[str, Any]:
    """The server's last word on an order. Raises OrderFailed, also when that is a no."""
    try:
        with _connect(runtime_dir) as sock:
            sock.settimeout(timeout)
            sock.sendall(json.dumps({"acme": 1, "verb": verb, "arguments": {}}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    said: dict[str, Any] = json.loads(line)
                    if "ok" in said:
                        break
                else:
                    raise OrderFailed(f"{verb}: the server left without a last word")
    except (OSError, ValueError) as error:
        raise OrderFailed(f"{verb}: {runtime_dir}/control.sock: {error}") from None
    if not said["ok"]:
        raise OrderFailed(f"{verb}: {said}")
    return said


def _connect(runtime_dir: Path) -> socket.socket:
    """Through a descriptor of the directory: its path may be longer than an address can be."""
    sock = socket.socket(socket.AF_UNIX)
    directory = -1
    try:
        directory = os.open(runtime_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{directory}/control.sock")
    except OSError:
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sock
