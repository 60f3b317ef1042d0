"""What a route's settings make of a file: its fields, its tag, its forms, the way it is sent.

Law: from contents that were read to a Resource, by settings alone; no request, no file system.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from werkzeug.http import http_date

from acme_wsgi.compression import compressible, extension, may_transform, tokens
from acme_wsgi.files.media import is_text, media_type
from acme_wsgi.handlers._contents import AT_ONCE
from acme_wsgi.handlers._static import Resource, Variant
from acme_wsgi.http.writer import DIRECT, MAPPING, READ, SENDFILE, FileBody, Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acme_wsgi.config.schema.content import Compression, Static
    from acme_wsgi.files.guard import Seen
    from acme_wsgi.files.openfile import OpenFile
    from acme_wsgi.handlers._contents import Content
    from acme_wsgi.handlers._lookup import Found

IMMUTABLE = "public, max-age=31536000, immutable"
"""Cache-Control of a URL whose content never changes (RFC 8246)."""

OVERHEAD = 2048
"""Bytes that one form of a file takes besides its body: heads, tags, objects. Measured roughly."""


class Forms:
    """What a route's settings make of a file: its fields, its tag, the way it is sent."""

    def __init__(self, static: Static, compression: Compression | None, cache_control: str | None) -> None:
        self.static = static
        self.compression = compression
        self.algorithm = static.etag.algorithm if static.etag.enabled else None
        self._cache_control = cache_control
        self._may_transform = cache_control is None or may_transform(cache_control)
        self._tokens = tokens(compression) if compression is not None else ()
        self._types = frozenset(compression.types) if compression is not None else frozenset()

    def resource(
        self, found: Found, plain: Content, coded: Mapping[str, Content], depends: Mapping[bytes, Seen]
    ) -> Resource:
        """What a path stands for; `depends` is what it was made from."""
        media = media_of(found)
        described = media + "; charset=utf-8" if is_text(media) and plain.utf8 else media
        # What is immutable has a Cache-Control of its own.
        ours = found.immutable or self._may_transform
        offered = self._offer(ours and self.encodable(media, plain.file.size), coded)
        forced = self._offer(ours and self.encodable(media, plain.file.size, forced=True), coded)
        varies = bool(forced) or (ours and self.encodes(media))
        variants = {
            token: self.variant(found, content, described, token=token, varies=True)
            for token, content in coded.items()
        }
        contents = (plain, *coded.values())
        return Resource(
            self.variant(found, plain, described, token="", varies=varies),
            variants,
            offered,
            forced,
            depends,
            memory=sum(len(content.body or b"") + OVERHEAD for content in contents),
            # A file that is read past the page cache has a second one.
            descriptors=sum(2 for content in contents if content.body is None),
        )

    def _offer(self, encodable: bool, coded: Mapping[str, Content]) -> tuple[str, ...]:
        """The tokens of what is there and, of an `encodable` file, of what we can make; the best first."""
        return tuple(dict.fromkeys((*(t for t in self._tokens if encodable or t in coded), *coded)))

    def encodable(self, media: str, size: int, *, forced: bool = False) -> bool:
        """Whether a body is encoded; `forced`: for a client that rules it out as it is, however small."""
        compression = self.compression
        return (
            compression is not None
            and self.encodes(media)
            and 0 < size <= compression.max_size
            and (forced or size >= compression.min_size)
        )

    def encodes(self, media: str) -> bool:
        """Whether bodies of this type are encoded, as far as their size allows it."""
        return compressible(media, self._types)

    def variant(self, found: Found, content: Content, media: str, *, token: str, varies: bool) -> Variant:
        """One file as it is sent."""
        file = content.file
        etag = None if content.digest is None else _tag(content.digest, token)
        changed_ns = file.mtime_ns if found.modified_ns is None else found.modified_ns
        body: bytes | FileBody | None = content.body
        if body is None:
            body = FileBody(file, 0, file.size, self.way(file.size))
        return self._variant(
            body,
            file if content.body is None else None,
            media,
            token,
            etag=etag,
            modified=changed_ns // 1_000_000_000 if self.static.last_modified and content.steady else None,
            cache_control=IMMUTABLE if found.immutable else self._cache_control,
            varies=varies,
            # The pipeline's tag is that of the content before it was compressed, by whomever.
            exact=not (token and found.tag),
        )

    def encoded(self, plain: Variant, token: str, data: bytes) -> Variant:
        """A file that we compressed. Its tag is made from the file's, and survives a restart."""
        return self._variant(
            data,
            None,
            plain.media_type,
            token,
            etag=None if plain.etag is None else _tag(plain.etag.strip('"'), token),
            modified=plain.modified,
            cache_control=dict(plain.head).get("Cache-Control"),
            varies=True,
            exact=False,
        )

    def _variant(
        self,
        body: bytes | FileBody,
        file: OpenFile | None,
        media: str,
        token: str,
        *,
        etag: str | None,
        modified: int | None,
        cache_control: str | None,
        varies: bool,
        exact: bool,
    ) -> Variant:
        both = []
        if etag is not None:
            both.append(("ETag", etag))
        if cache_control is not None:
            both.append(("Cache-Control", cache_control))
        if varies:
            both.append(("Vary", "Accept-Encoding"))
        now = time.time()
        # RFC 9110 8.8.2.1: never later than the response.
        dated = [] if modified is None or modified > now else [("Last-Modified", http_date(modified))]
        head = [("Content-Type", media), *dated, *both, ("Accept-Ranges", "bytes")]
        if token:
            head.append(("Content-Encoding", token))
        if not body:
            # An empty body tells a HEAD nothing. Prepared fields have no length of their own.
            head.append(("Content-Length", "0"))
        return Variant(
            Prepared(head) if body else head,
            # RFC 9110 15.4.5: the date only where nothing better tells the versions apart.
            Prepared(both if etag is not None else dated + both),
            body,
            file,
            token=token,
            etag=etag,
            modified=modified if dated else None,
            media_type=media,
            exact=exact,
        )

    def lacks_tag(self, variant: Variant) -> bool:
        """Whether a variant goes without a tag only because its file is large."""
        file = variant.file
        if self.algorithm is None or variant.etag is not None or file is None:
            return False
        return file.size > AT_ONCE

    def way(self, size: int) -> int:
        """How a file of this size is sent."""
        static = self.static
        if static.direct_io and size >= static.direct_io_threshold:
            return DIRECT
        if static.mmap.enabled and static.mmap.threshold <= size <= static.mmap.max_size:
            return MAPPING
        return SENDFILE if static.zero_copy else READ


def media_of(found: Found) -> str:
    """The media type of a file, without parameters."""
    return found.media_type or media_type(found.name.rpartition(b"/")[2].decode("latin-1"))


def _tag(digest: str, token: str) -> str:
    """A strong entity tag (RFC 9110 8.8.3); each coding has its own, since its bytes are others."""
    coding = extension(token).replace(".", "-") if token else ""
    return f'"{digest}{coding}"'
