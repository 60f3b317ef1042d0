"""The parts of `static` about compression: an application's body, compressed for each request, and files,
which need it once.

nginx compresses the same document from a file for each request; an application's is made anew each time, so
that nothing can be remembered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..documents import DOCUMENT_SIZE, DOCUMENTS, READY, Directory
from ..load import BROWSER_HEADERS
from ..peers import Coding, Peer, Site
from ..report import Column, Table
from .base import Row, medians
from .entries import Entry, Samples

PARTS = ("dynamic", "kept")
#: Whose body it is, and when it is compressed.
EACH_TIME, DYNAMIC, ONCE, BESIDE = "a file, each time", "an application's", "a file, once", "a .gz beside it"
_SAME = 1.005  # a body counts as no larger up to this: the number in it is another one each time

Token = Literal["identity", "gzip", "br"]

COLUMNS = (
    Column("peer", "server"),
    Column("what", "what"),
    Column("coding", "coding"),
    Column("level", "level"),
    Column("size", "bytes", "{:,.0f}"),
    Column("factor", "ratio", "{:.2f}"),
    Column("rate", "requests/s", "{:,.0f}"),
    Column("p99_us", "p99 us", "{:,.0f}"),
    Column("cpu_us", "CPU us/request", "{:.2f}"),
    Column("ratio", "CPU to nginx gzip", "{:.2f}"),
    Column("spread", "spread", "±{:.0%}"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which document, at which levels."""
    parser.add_argument(
        "--document", choices=list(DOCUMENTS), default="page", help="what is compressed (default: page)"
    )
    parser.add_argument(
        "--nginx-level", type=int, default=6, help="of nginx's gzip, what all is compared with (default: 6)"
    )
    parser.add_argument(
        "--gzip-levels", type=levels, default=(1, 4, 6, 9), metavar="N,...", help="of ACME (default: 1,4,6,9)"
    )
    parser.add_argument(
        "--brotli-levels", type=levels, default=(1, 3, 4, 5, 6), metavar="N,...", help="(default: 1,3,4,5,6)"
    )


def levels(text: str) -> tuple[int, ...]:
    """The type of the options that take levels, with commas between; none at all is allowed."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give levels, as 1,4,6") from None


def entries(peers: Sequence[Peer], directory: Directory, options: argparse.Namespace) -> list[Entry]:
    """What the parts ask for; nginx's gzip, which all is compared with, in any case."""
    if not set(options.what) & set(PARTS):
        return []
    file = directory.root / DOCUMENTS[options.document].file
    ready = directory.root / READY
    found: list[Entry] = []
    for peer in peers:
        if peer.name == "nginx":
            coding = Coding("gzip", options.nginx_level)
            found.append(_entry(peer, EACH_TIME, file, coding, "gzip"))
        if "dynamic" in options.what and peer.name == "acme":
            found += [
                _entry(peer, DYNAMIC, file, coding, coding.token, options.document)
                for coding in (
                    Coding("identity"),
                    *(Coding("gzip", level) for level in options.gzip_levels),
                    *(Coding("br", level) for level in options.brotli_levels),
                )
            ]
        if "kept" in options.what:
            if peer.name == "acme":
                found += [_entry(peer, ONCE, file, None, token) for token in ("gzip", "br")]
            found.append(_entry(peer, BESIDE, ready, Coding("gzip"), "gzip"))
    return found


def _entry(
    peer: Peer, what: str, file: Path, coding: Coding | None, token: Token, application: Site | None = None
) -> Entry:
    """A browser's request that accepts this coding alone; for the application's body or for the file."""
    level = coding.level if coding is not None and coding.level else None
    return Entry(
        peer,
        {"peer": peer.name, "what": what, "coding": token, "level": level},
        "/" if application else f"/{file.name}",
        file,
        BROWSER_HEADERS | {"Accept-Encoding": token},
        site=application or "files",
        coding=coding,
        expected=token,
    )


def table(options: argparse.Namespace, samples: Samples) -> Table:
    """All to nginx's gzip."""
    document = DOCUMENTS[options.document]
    title = f"{DOCUMENT_SIZE >> 10} KB of {document.media_type}, {options.connections} connections"
    made = Table(title, COLUMNS)
    for entry, taken in samples:
        row: Row = {**entry.cells, **medians([sample.cost for sample in taken])}
        row["size"] = sum(sample.size for sample in taken) / len(taken)
        row["factor"] = DOCUMENT_SIZE / row["size"]
        made.rows.append(row)
    floor = next((row for row in made.rows if row["peer"] == "nginx" and row["what"] == EACH_TIME), None)
    for row in made.rows:
        row["ratio"] = row["cpu_us"] / floor["cpu_us"] if floor else None
    if floor and "dynamic" in options.what:
        made.remarks += [at_same_size(made.rows, floor, token) for token in ("gzip", "br")]
    return made


def at_same_size(rows: Sequence[Row], floor: Row, token: Token) -> str:
    """Of the application's rows with this coding, the cheapest whose body is as small as `floor`'s.

    And the cost on the line from the next larger body to that one, at nginx's size, where that is less:
    levels are far apart.
    """
    own = [row for row in rows if row["what"] == DYNAMIC and row["coding"] == token]
    small = [row for row in own if row["size"] <= floor["size"] * _SAME]
    if not small:
        return f"{token}: no measured level makes the body as small as nginx's {floor['size']:,.0f} bytes."
    best = min(small, key=lambda row: float(row["cpu_us"]))
    cpu = best["cpu_us"] / floor["cpu_us"]
    said = (
        f"{token}: level {best['level']} is the cheapest that makes the body as small as nginx's: "
        f"{best['size']:,.0f} bytes to {floor['size']:,.0f}, CPU to nginx {cpu:.2f}."
    )
    larger = min((row for row in own if row not in small), key=lambda row: float(row["size"]), default=None)
    if larger is None or larger["cpu_us"] >= best["cpu_us"] or best["size"] >= floor["size"]:
        return said
    share = (larger["size"] - floor["size"]) / (larger["size"] - best["size"])
    between = larger["cpu_us"] + share * (best["cpu_us"] - larger["cpu_us"])
    return f"{said} Interpolated from level {larger['level']}: {between / floor['cpu_us']:.2f}."
