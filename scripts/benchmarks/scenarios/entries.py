"""What takes part in a scenario with many measurements a round: a server set up in one way, and a load on it.

Checks before each measurement that the answers are right, and after it that they came in full.
"""

from __future__ import annotations

import gzip
import http.client
import importlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..documents import unnumbered
from ..drain import compare, drain
from ..load import Load, wrk
from ..peers import Coding, Peer, Site
from ..processes import ProcessTree
from ..report import Value
from ..server import Reply, Server, ask, running
from .base import Context, Cost, Meter, ScenarioFailed, progress

_ASKED = 4  # before the load: only the second may come from a cache, or over a kept connection
_REST, _IDLE = 0.3, 0.05  # seconds in which a server at rest uses at most this share of a core
_REST_PATIENCE = 60.0
_SLACK = 0.98  # of the bytes that are due; documents with other numbers in them compress a little differently


@dataclass(frozen=True)
class Entry:
    """One measurement of a round. `cells` name it in the table and the progress."""

    peer: Peer
    cells: Mapping[str, Value]
    path: str
    file: Path  # what a right answer holds, decoded
    headers: Mapping[str, str] = field(default_factory=dict)
    site: Site = "files"
    coding: Coding | None = None  # how the server is set up
    expected: str = "identity"  # the content-coding of a right answer
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    large: bool = False  # too large to be held in memory

    @property
    def name(self) -> str:
        """For the progress and for failures."""
        return " ".join(str(value) for value in self.cells.values() if value is not None)


@dataclass(frozen=True)
class Sample:
    """One measurement: its cost, and how many bytes a body had."""

    cost: Cost
    size: float


Samples = list[tuple[Entry, list[Sample]]]


def measure_rounds(context: Context, entries: Sequence[Entry], root: Path) -> Samples:
    """All entries in turn, `--rounds` times; those that failed are left out."""
    samples: Samples = [(entry, []) for entry in entries]
    rounds = context.options.rounds
    for number in range(rounds):
        for entry, taken in samples:
            sample = context.attempt(entry.peer, partial(_measure, entry=entry, root=root), entry.name)
            if sample is None:
                continue
            taken.append(sample)
            cost = sample.cost
            figures = f"{cost.load.rate:10,.1f}/s {cost.cpu_us:12.2f} us CPU"
            progress(f"round {number + 1}/{rounds} {entry.name:40}{figures}")
    return [(entry, taken) for entry, taken in samples if taken]


def _measure(context: Context, peer: Peer, *, entry: Entry, root: Path) -> Sample:
    """Start, check, warm up, load."""
    options = context.options
    with running(
        peer,
        context.cores,
        context.base,
        site=entry.site,
        connections=options.connections,
        root=root,
        coding=entry.coding,
        sections=entry.sections,
    ) as server:
        size = check(server, entry)
        await_rest(server.tree)
        load = _load(context, server, entry)
        load(seconds=options.warm_up)
        await_rest(server.tree)
        meter = Meter(server, context.cores)
        cost = meter.cost(load(seconds=options.seconds))
    in_full(cost.load, size)
    return Sample(cost, size)


def _load(context: Context, server: Server, entry: Entry) -> Callable[..., Load]:
    options = context.options
    if entry.large:
        address = (server.connect, server.launch.port)
        size = entry.file.stat().st_size
        return partial(drain, address, entry.path, size=size, connections=options.large_connections)
    url = server.url.removesuffix("/") + entry.path
    return partial(
        wrk, url, context.cores.client, connections=options.connections, headers=dict(entry.headers)
    )


def check(server: Server, entry: Entry) -> float:
    """Ask a few times; the mean size of the bodies as they came. Raises ScenarioFailed when one is wrong."""
    if entry.large:
        compare((server.connect, server.launch.port), entry.path, entry.file)
        return entry.file.stat().st_size
    document = entry.file.read_bytes()
    sizes = ask_often(server, entry.path, entry.headers, entry.expected, document)
    return sum(sizes) / len(sizes)


def ask_often(
    server: Server, path: str, headers: Mapping[str, str], coding: str, document: bytes
) -> list[int]:
    """The sizes of the bodies of a few answers. Raises ScenarioFailed when one is not this document."""
    sizes: list[int] = []
    for number in range(_ASKED):
        try:
            reply = ask(server, path, headers)
        except (OSError, http.client.HTTPException) as error:
            raise ScenarioFailed(f"request {number + 1}: {error!r}") from error
        if wrong := what_is_wrong(reply, coding, document):
            raise ScenarioFailed(f"answer {number + 1}: {wrong}")
        sizes.append(len(reply.body))
    return sizes


def await_rest(tree: ProcessTree) -> None:
    """Return once the server does nothing. Raises ScenarioFailed when it goes on for `_REST_PATIENCE`.

    The first request for a file may have begun work that nobody waits for, as hashing all of it for the ETag.
    """
    deadline = time.monotonic() + _REST_PATIENCE
    used = tree.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(_REST)
        before, used = used, tree.cpu_seconds()
        if used - before <= _REST * _IDLE:
            return
    raise ScenarioFailed(f"busy without a request for {_REST_PATIENCE:.0f} s")


def what_is_wrong(reply: Reply, coding: str, document: bytes) -> str | None:
    """Why the reply is not 200 with this document in this coding, whatever number it has; None: it is."""
    if reply.status != 200:
        return f"status {reply.status}: {reply.body[:200]!r}"
    said = reply.headers.get("content-encoding", "identity")
    if said != coding:
        return f"content-coding {said}, not {coding}"
    if coding != "identity" and "accept-encoding" not in reply.headers.get("vary", "").lower():
        return "no Vary: Accept-Encoding"
    try:
        body = decode(reply.body, coding)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        return f"not {coding}: {error}"
    if unnumbered(body) != unnumbered(document):
        return f"another body: {len(body)} bytes, not {len(document)}: {body[:80]!r}"
    return None


def decode(body: bytes, coding: str) -> bytes:
    """The body without its content-coding. Raises zlib.error, OSError, EOFError or ValueError."""
    if coding == "identity":
        return body
    if coding == "gzip":
        return gzip.decompress(body)
    if coding != "br":
        raise ValueError(f"unknown content-coding {coding}")
    brotli = importlib.import_module("brotli")  # it has no types
    try:
        decoded: bytes = brotli.decompress(body)
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return decoded


def in_full(load: Load, size: float) -> None:
    """Raises ScenarioFailed when fewer bytes came than this many bodies of `size` have."""
    if load.received < load.requests * size * _SLACK:
        raise ScenarioFailed(f"{load.requests} answers in {load.received} bytes: not {size:.0f} each")
