"""The keys of ``compression`` and ``static``: what happens to bodies on their way out.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import key, section
from acme_wsgi.config.kinds import Arrow

KB, MB = 1 << 10, 1 << 20


@section
class Precompressed:
    """Files compressed beforehand."""

    enabled: bool = key(True, "serve FILE.br beside FILE instead of it, if not older")
    extensions: tuple[Literal[".gz", ".br"], ...] = key((".gz", ".br"), "which of them")


@section
class Compression:
    """Compression of response bodies."""

    SHORT: ClassVar[str] = "enabled"

    enabled: bool = key(True, "compress what the client accepts compressed")
    algorithms: tuple[Literal["brotli", "gzip"], ...] = key(
        ("brotli", "gzip"), "in order of preference among what the client accepts"
    )
    level: int = key(6, "1-11 brotli, 1-9 gzip (10 and 11 mean 9 there)", minimum=1, maximum=11)
    min_size: int = key(KB, "smallest body compressed", unit="size")
    max_size: int = key(10 * MB, "largest body compressed; a stream of unknown length always is", unit="size")
    types: tuple[str, ...] = key(
        (
            "text/html",
            "text/css",
            "text/javascript",
            "application/javascript",
            "application/json",
            "application/xml",
            "image/svg+xml",
        ),
        "media types compressed",
        check=grammar.mime_type,
        normal=str.lower,
    )
    precompressed: Precompressed = key(Precompressed(), "files compressed beforehand")


@section
class Mmap:
    """Files sent from a mapping that requests share."""

    enabled: bool = key(False, "send files between threshold and max_size from a mapping")
    threshold: int = key(MB, "smallest file mapped", unit="size")
    max_size: int = key(100 * MB, "largest file mapped", unit="size")


@section
class Etag:
    """Entity tags of files."""

    enabled: bool = key(True, "send an ETag")
    algorithm: Literal["md5", "sha256"] = key(
        "md5", "hash of the content, remembered by inode, size and mtime"
    )


@section
class Concatenation:
    """Several files served as one."""

    enabled: bool = key(False, "serve bundles")
    patterns: tuple[Arrow, ...] = key(
        (), "files -> bundle, in name order; → may be written for ->",
        example="['/static/css/*.css -> /static/bundle.css']",
    )  # fmt: skip


@section
class Minification:
    """Smaller text files."""

    enabled: bool = key(False, "minify files as they are served")
    css: bool = key(True, "style sheets")
    js: bool = key(True, "scripts")
    html: bool = key(True, "pages")


@section
class Versioning:
    """URLs that change with the content."""

    enabled: bool = key(False, "serve versioned URLs as immutable and rewrite references to them")
    pattern: str = key(
        "/static/{file}-{hash}.{ext}", "form of a versioned URL", check=grammar.versioned_pattern
    )


@section
class Static:
    """How files are served."""

    zero_copy: bool = key(True, "send files with sendfile(2)")
    direct_io: bool = key(False, "read big files with O_DIRECT in the I/O threads, past the page cache")
    direct_io_threshold: int = key(4 * MB, "smallest file read that way", unit="size")
    mmap: Mmap = key(Mmap(), "files sent from a shared mapping")
    etag: Etag = key(Etag(), "entity tags")
    last_modified: bool = key(True, "send Last-Modified")
    conditional_requests: bool = key(
        True, "obey If-None-Match, If-Match, If-Modified-Since, If-Unmodified-Since and If-Range"
    )
    concatenation: Concatenation = key(Concatenation(), "several files served as one")
    minification: Minification = key(Minification(), "smaller text files")
    versioning: Versioning = key(Versioning(), "URLs that change with the content")
