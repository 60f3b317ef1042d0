"""The targets of tests/corpus/paths, and the directory that they are aimed at.

Knows the files (described in tests/corpus/paths/README.md) and how to build the tree; nothing of the server.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from functools import cache
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / "corpus/paths"

CANARY = b"CANARY"
"""In each file that must not be served."""

LEAKS = (CANARY, b"root:x:0:", b"root:*:0:", b"PATH=")
"""What an answer must not hold: the canary, /etc/passwd, an environ."""

PUBLIC = b"public"
"""What each file begins with that may be served."""

_REPEATED = re.compile(rb"\{([^{}]*?)\*(\d+)\}")
_BYTE = re.compile(rb"\\x([0-9a-f]{2})")

_PUBLIC_FILES = (
    "index.html",
    "page.html",
    "a/index.html",
    "a/page.html",
    "a/b/page.html",
    "sibling.html",
    "static.txt",
    ".well-known/security.txt",
)
_HIDDEN_FILES = (
    ".env",
    ".env.html",
    ".env.gz",
    ".env.br",
    ".ENV",
    ".git/config",
    ".git/HEAD",
    ".gitignore",
    ".htaccess",
    ".htpasswd",
    ".svn/entries",
    ".ssh/id_rsa",
    ".DS_Store",
    ".well-known/.secret",
    ".well-known/acme/.secret",
    "a/.htaccess",
    "a/b/.hidden",
    "a/.well-known/secret",
    ".WELL-KNOWN/secret",
    ".well-knownx/secret",
    "..hidden",
    ".../index.html",
    ".hidden-directory/page.html",
    ".hidden-directory/index.html",
    ".env-page.html",
    ".hidden-page.html",
    "a/.htaccess-page.html",
)
_OUTSIDE_FILES = (
    "secret.txt",
    "secret.html",
    "outside/page.html",
    "outside/index.html",
    "rootless/page.html",
)
_LINKS = {
    "out-file": "../secret.txt",
    "out-directory": "../outside",
    "out-root": "..",
    "out-rootless": "../rootless",
    "out-page.html": "../secret.txt",
    "there-and-back": "../root/index.html",
    "passwd": "/etc/passwd",
    "etc": "/etc",
    "slash": "/",
    "proc": "/proc/self",
    "hop": "hop1",
    "hop1": "a/hop",
    "a/hop": "../hop2",
    "hop2": "../secret.txt",
    "a/climbs": "b/../../../secret.txt",
    "a/b/out": "../../../outside",
    "in-directory": "a",
    "loop": "loop",
    "loop1": "loop2",
    "loop2": "loop1",
    "dangling": "nowhere",
    "dots": "a/../../outside/..",
    "self": ".",
    "a/b/up-one": "..",
    "lure/index.html": "../../secret.txt",
    "sibling.html.br": "../secret.txt",
    "sibling.html.gz": "/etc/passwd",
    "to-fifo": "fifo",
    "a/to-fifo": "../fifo",
    "to-socket": "socket",
    "to-null": "/dev/null",
    "to-zero": "/dev/zero",
    "to-random": "/dev/random",
    "to-full": "/dev/full",
    "to-tty": "/dev/tty",
    "to-stdin": "/dev/stdin",
    "pipe-fd": "/proc/self/fd/0",
}
_DIRECTORIES = ("lure", "fifo-directory", "evil.example", "\\evil.example", "\\\\evil.example", '"><script>')
_DEVICES = {"null": (1, 3), "zero": (1, 5)}


@cache
def targets() -> list[tuple[str, bytes]]:
    """All targets, each with its family. `@` still stands for a prefix."""
    found = []
    for path in sorted(DIRECTORY.glob("*.txt")):
        for line in path.read_bytes().splitlines():
            if line and not line.startswith(b"#"):
                found.append((path.stem, _written_out(line)))
    return found


def _written_out(line: bytes) -> bytes:
    line = _REPEATED.sub(lambda match: match[1] * int(match[2]), line)
    return _BYTE.sub(lambda match: bytes([int(match[1], 16)]), line)


def build(top: Path) -> Path:
    """Make the tree in `top`; the root to be served."""
    root = top / "root"
    for names, base, content in (
        (_PUBLIC_FILES, root, PUBLIC),
        (_HIDDEN_FILES, root, CANARY),
        (_OUTSIDE_FILES, top, CANARY),
    ):
        for name in names:
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_bytes(content + b" " + name.encode())
    for name in (*_DIRECTORIES, "line\r\nX-Injected: yes"):
        (root / name).mkdir()
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    (root / "out-absolute").symlink_to(top / "secret.txt")
    (root / "in-absolute").symlink_to(root / "index.html")
    for name in ("fifo", "fifo-page.html", "fifo-directory/index.html"):
        os.mkfifo(root / name)
    _bind(root, "socket")
    if os.geteuid() == 0:
        for name, (major, minor) in _DEVICES.items():
            os.mknod(root / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    return root


def _bind(directory: Path, name: str) -> None:
    """A UNIX socket, by a short way: its path may have 107 bytes at most."""
    fd = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
