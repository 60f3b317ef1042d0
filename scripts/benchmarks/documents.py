"""What the scenario static serves: documents that compress as real ones do, and a directory with files.

Imports no server. The same bytes on every machine and in every run, so that sizes compare.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT_SIZE = 31 << 10
_BLOCK = 4 << 20
READY = "ready.html"  # has a .gz beside it
_READY_LEVEL = 9  # of files that are compressed beforehand

_TEXT = """\
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what
its about than into them can only other time new some could these two may first then do any like my now over
such our man me even most made after also well did many before must years through where much your way down
should because long each just state those people too mister how little good world make very year still see
own work men day get here between both life being under three never know same last another while us off might
great go come since against right came take used himself house few use place during high without again home
around small however found part school thought went say general once upon every left war water always light
cotton steel linen walnut summer winter garden kitchen leather ceramic handmade recycled waterproof adjustable
delivery returns warranty availability dimensions material colour quantity address customer reviews average
"""
_WORDS = _TEXT.split()
_WEIGHTS = [1 / (rank + 3) for rank in range(len(_WORDS))]
_SERIAL = re.compile(rb"(serial\"[^0-9]{1,12}\")[0-9]{10}")
_NUMBER = b"0000000000"


class _Writer:
    """Words as often as English uses its own (Zipf), and numbers, from a generator with a fixed seed."""

    def __init__(self) -> None:
        self._random = random.Random(31)

    def words(self, least: int, most: int) -> str:
        return " ".join(self._random.choices(_WORDS, _WEIGHTS, k=self._random.randint(least, most)))

    def number(self, most: int) -> int:
        return self._random.randrange(most)

    def token(self) -> str:
        return f"{self._random.getrandbits(48):012x}"


def _record(writer: _Writer) -> dict[str, Any]:
    return {
        "id": writer.token(),
        "name": writer.words(2, 4),
        "price": writer.number(50_000) / 100,
        "stock": writer.number(300),
        "tags": writer.words(1, 4).split(),
        "description": writer.words(12, 40),
    }


_PAGE_TOP = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="serial" content="0000000000">
<title>Products</title>
<link rel="stylesheet" href="/static/css/site.css">
<script src="/static/js/site.js" defer></script>
</head>
<body class="catalogue">
<nav class="top"><a href="/">Home</a> <a href="/products/">Products</a> <a href="/account/">Account</a></nav>
<main>
"""
_PAGE_ITEM = """\
<article class="product" id="p-{id}">
  <h2 class="product__name"><a href="/products/{id}/">{name}</a></h2>
  <img class="product__image" src="/static/images/{id}.jpg" alt="{name}" width="320" height="240">
  <p class="product__text">{description}</p>
  <p class="product__price"><span class="amount">{price:.2f}</span> <span class="stock">{stock}</span></p>
  <form method="post" action="/cart/add">
    <input type="hidden" name="product" value="{id}"><button type="submit">Add to cart</button>
  </form>
</article>
"""
_PAGE_END = "</p>\n</main>\n</body>\n</html>\n"


@functools.cache
def page(size: int = DOCUMENT_SIZE) -> bytes:
    """A shop's page in HTML, ASCII, of exactly `size` bytes (at least 2000)."""
    writer = _Writer()
    text = _PAGE_TOP
    while len(text) + len(item := _PAGE_ITEM.format(**_record(writer))) < size - 100:
        text += item
    text += '<p class="imprint">'
    while len(text) < size:
        text += " " + writer.words(20, 20)
    return (text[: size - len(_PAGE_END)] + _PAGE_END).encode("ascii")


@functools.cache
def records(size: int = DOCUMENT_SIZE) -> bytes:
    """An interface's answer in JSON, ASCII, of exactly `size` bytes (at least 2000)."""
    writer = _Writer()
    start, end = '{"serial": "0000000000", "products": [', '], "note": "'
    items = json.dumps(_record(writer))
    while len(items) + len(item := ", " + json.dumps(_record(writer))) < size - 100:
        items += item
    text = start + items + end
    while len(text) < size:
        text += writer.words(20, 20) + " "
    return (text[: size - 2] + '"}').encode("ascii")


@dataclass(frozen=True)
class Document:
    """A kind of document: its media type, its file in the directory, and what makes it."""

    media_type: str
    file: str
    make: Callable[[], bytes]


DOCUMENTS = {
    "page": Document("text/html; charset=utf-8", "page.html", page),
    "records": Document("application/json", "records.json", records),
}


def around_serial(document: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the document's serial number of ten digits."""
    found = _SERIAL.search(document)
    if found is None:
        raise ValueError("the document has no serial number")
    return document[: found.end(1)], document[found.end() :]


def unnumbered(document: bytes) -> bytes:
    """The same document for every request, to compare."""
    return _SERIAL.sub(rb"\g<1>" + _NUMBER, document, count=1)


@dataclass(frozen=True)
class Directory:
    """A directory that is served; `small` and `large`: names and sizes of the incompressible files in it."""

    root: Path
    small: dict[str, int]
    large: dict[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """All incompressible files."""
        return self.small | self.large


def write_directory(root: Path, large: int) -> Directory:
    """Make `root` with what the scenario asks for, on disk and in the page cache.

    4k.jpg, 100k.jpg and large.mp4 hold random bytes. The documents are there, and READY has a .gz beside it.
    index.html answers who only wants to know whether the server is up.
    """
    root.mkdir()
    made = Directory(root, {"4k.jpg": 4 << 10, "100k.jpg": 100 << 10}, {"large.mp4": large} if large else {})
    for name, size in made.sizes.items():
        _write(root / name, _random_blocks(size))
    for name, document in (
        ("index.html", page()),
        (READY, page()),
        (f"{READY}.gz", gzip.compress(page(), _READY_LEVEL, mtime=0)),
        *((kind.file, kind.make()) for kind in DOCUMENTS.values()),
    ):
        _write(root / name, iter([document]))
    return made


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    """Written back before anything is measured: the disk must not be busy with it meanwhile."""
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _random_blocks(size: int) -> Iterator[bytes]:
    """One random block over and over, each with its number, so that none can stand for another."""
    block = random.Random(size).randbytes(min(size, _BLOCK))
    for number, start in enumerate(range(0, size, _BLOCK)):
        yield (number.to_bytes(8, "big") + block[8:])[: size - start]
