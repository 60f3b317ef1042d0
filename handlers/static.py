"""Static files: `root` and what lies below it, as RFC 9110 says.

    request -> _static.handle (known and plain) -> the response
            -> Files.answer -> _lookup (which file) -> _contents (what is in it) -> Resource -> the response

Law: decides which form of a file a request gets, and which answer. What a file's name may be is decided in
acme_wsgi.files, and nothing here opens one. Blocking calls go through the I/O threads.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from acme_wsgi import iothreads
from acme_wsgi.compression import compress, costly, negotiate, tokens
from acme_wsgi.errors import HTTPError
from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.media import is_text, media_type
from acme_wsgi.handlers import _contents, _listing
from acme_wsgi.handlers._contents import Content, Digests
from acme_wsgi.handlers._fillers import Fillers
from acme_wsgi.handlers._forms import Forms
from acme_wsgi.handlers._lookup import Directory, Elsewhere, Found, Lookup, Outcome, Refused
from acme_wsgi.handlers._static import Resource, Variant, make_front
from acme_wsgi.http.conditional import Validators, judge, range_applies, strong_match
from acme_wsgi.http.ranges import Range, Unsatisfiable, multipart, parse, unsatisfied
from acme_wsgi.http.writer import FileBody, Parts, Response

if TYPE_CHECKING:
    from acme_wsgi.config import Route
    from acme_wsgi.config.schema.content import Compression
    from acme_wsgi.files.openfile import OpenFile
    from acme_wsgi.handlers import Context, Handler, Request

log = logging.getLogger("acme.handlers.static")

OK = "200 OK"
_TRIES = 3
_LONGEST_REMEMBERED = 128
_PATH_SAFE = "/!$&'()*+,;=~:@"
_QUERY_SAFE = "%/:?#[]@!$&'()*+,;=~"
_DIGESTS = Digests()


def build(route: Route, context: Context) -> Handler:
    """The handler of one directory; raises ValueError if it isn't there, or for an impossible try_files."""
    # Not resolved: it may be a symlink that a deployment switches.
    root = Path.cwd() / (route.root or "")
    if not route.root or not root.is_dir():
        raise ValueError(f"{context.where}: root {route.root!r} is not a directory")
    compression = context.compression
    lookup = Lookup(
        Beneath(root),
        tries=route.try_files,
        index=route.index,
        listing=route.directory_listing,
        extensions=route.extensions,
        siblings=_siblings(compression),
    )
    files = Files(lookup, context.prefix or "", Forms(context.static, compression, route.cache_control))
    return make_front(files.table, files.answer)


def _siblings(compression: Compression | None) -> dict[str, str]:
    """Token -> extension of the files compressed beforehand that are looked for, the favourite first."""
    if compression is None or not compression.precompressed.enabled:
        return {}
    by_token = {"br": ".br", "gzip": ".gz"}
    order = [*tokens(compression), *by_token]
    wanted = compression.precompressed.extensions
    return {token: by_token[token] for token in dict.fromkeys(order) if by_token.get(token) in wanted}


class NoTable:
    """Nothing is known from before."""

    def get(self, path: str) -> None:
        """Nothing."""


class Files:
    """The files of one route, and the answer to each request for one."""

    def __init__(self, lookup: Lookup, prefix: str, forms: Forms) -> None:
        self.table = NoTable()
        self._lookup = lookup
        self._prefix = prefix
        self._forms = forms
        self._loading: Fillers[str, Resource | Outcome] = Fillers()
        self._encoding: Fillers[tuple[Resource, str], Variant] = Fillers()

    def answer(self, request: Request, known: Resource | None) -> Response:
        """The response to any request; raises HTTPError.

        :param known: what the path stands for, if that is known and valid
        """
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers=[("Allow", "GET, HEAD")])
        path = request.path
        found: Resource | Outcome
        found = known if known is not None else self._load(path)
        if not isinstance(found, Resource):
            return self._without_file(request, found)
        variant = self._choose(request, found)
        if not variant.is_current():
            found = self._load(path)
            if not isinstance(found, Resource):
                return self._without_file(request, found)
            variant = self._choose(request, found)
        return self._respond(request, variant)

    # -- what a path stands for

    def _load(self, path: str) -> Resource | Outcome:
        """Look at the disk; those who ask meanwhile get the same."""
        if path == self._prefix:
            return Elsewhere()
        return self._loading.fill(path, lambda: self._fill(path))

    def _fill(self, path: str) -> Resource | Outcome:
        relative = path[len(self._prefix) + 1 :].encode("latin-1")
        outcome, contents, _ = iothreads.run(self._look, relative)
        if not isinstance(outcome, Found):
            return outcome
        algorithm = self._forms.algorithm
        for content in contents.values():
            if algorithm is not None and content.digest is not None:
                _DIGESTS.put(algorithm, content.file, content.digest)
        plain = contents.pop("")
        return self._forms.resource(outcome.name, plain, contents)

    def _look(self, relative: bytes) -> tuple[Outcome, dict[str, Content], list[bytes]]:
        """In an I/O thread: find the file, and read what must be read of it and of its siblings."""
        for _ in range(_TRIES):
            outcome, depends = self._lookup.find(relative)
            if not isinstance(outcome, Found):
                return outcome, {}, depends
            text = is_text(media_type(os.fsdecode(outcome.name.rpartition(b"/")[2])))
            contents = {"": self._read(outcome.file, text)}
            for token, sibling in outcome.coded.items():
                contents[token] = self._read(sibling, False)
            if all(content.steady for content in contents.values()):
                break
        # Whoever writes to a file without end gets its length right and no tag.
        return outcome, contents, depends

    def _read(self, file: OpenFile, text: bool) -> Content:
        algorithm = self._forms.algorithm
        known = None if algorithm is None else _DIGESTS.get(algorithm, file)
        return _contents.read(file, algorithm, known, text)

    # -- which form of it

    def _choose(self, request: Request, resource: Resource) -> Variant:
        environ = request.environ
        if "HTTP_RANGE" in environ and request.method == "GET":
            return self._of_range(environ.get("HTTP_IF_RANGE"), resource)
        if not resource.offered:
            return resource.plain
        accept: str | None = environ.get("HTTP_ACCEPT_ENCODING")
        token = negotiate(accept, resource.offered)
        variant = resource.plain
        if token:
            variant = resource.coded.get(token) or self._encoding.fill(
                (resource, token), lambda: self._encode(resource, token)
            )
        if accept is None or len(accept) <= _LONGEST_REMEMBERED:
            resource.remember(accept, variant)
        return variant

    def _of_range(self, if_range: str | None, resource: Resource) -> Variant:
        """What a range is taken from: the file as it is, unless the client says that it has a part of another
        form.
        """
        if if_range is not None:
            for variant in resource.coded.values():
                if variant.exact and strong_match(if_range, variant.etag):
                    return variant
        return resource.plain

    def _encode(self, resource: Resource, token: str) -> Variant:
        """The file in a coding, made now; as it is where that isn't smaller, or the file changed."""
        plain, compression = resource.plain, self._forms.compression
        if compression is None:
            return plain
        body = plain.body if isinstance(plain.body, bytes) else None
        if body is None and plain.file is not None:
            body = iothreads.run(_contents.whole, plain.file)
        if body is None:
            return plain
        level = compression.level
        if costly(token, level, len(body)):
            data = iothreads.run(compress, token, level, body)
        else:
            data = compress(token, level, body)
        variant = self._forms.encoded(plain, token, data) if len(data) < len(body) else plain
        resource.coded[token] = variant
        return variant

    # -- the response

    def _respond(self, request: Request, variant: Variant) -> Response:
        environ = request.environ
        current = Validators(variant.etag, variant.modified)
        conditional = self._forms.static.conditional_requests
        if conditional:
            status = judge(request.method, environ, current)
            if status == 304:
                return Response("304 Not Modified", variant.unmodified)
            if status == 412:
                raise HTTPError(412)
        field = environ.get("HTTP_RANGE") if request.method == "GET" else None
        if field is not None:
            # Where If-Range isn't obeyed, the whole is the one safe answer to it.
            applies = range_applies(environ, current) if conditional else "HTTP_IF_RANGE" not in environ
            ranges = _ranges(field, variant.size) if applies else None
            if ranges is not None:
                return _partial(variant, ranges)
        return Response(OK, variant.head, variant.body)

    def _without_file(self, request: Request, outcome: Outcome) -> Response:
        if isinstance(outcome, Refused):
            raise HTTPError(outcome.status)
        if isinstance(outcome, Directory):
            return self._listing(request, outcome)
        return _with_slash(request)

    def _listing(self, request: Request, directory: Directory) -> Response:
        path = request.path
        parent = path != self._prefix + "/"
        body = _listing.page(path, directory.entries, more=directory.more, parent=parent)
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-cache")]
        return Response(OK, headers, body)


def _ranges(field: str, size: int) -> list[Range] | None:
    try:
        return parse(field, size)
    except Unsatisfiable:
        raise HTTPError(416, headers=[("Content-Range", unsatisfied(size))]) from None


def _partial(variant: Variant, ranges: list[Range]) -> Response:
    """A 206 (RFC 9110 15.3.7)."""
    headers = list(variant.head)
    if len(ranges) == 1:
        headers.append(("Content-Range", ranges[0].content_range(variant.size)))
        return Response("206 Partial Content", headers, _cut(variant, ranges[0]))
    media, pieces = multipart(ranges, variant.size, variant.media_type)
    headers = [("Content-Type", media), *(pair for pair in headers if pair[0] != "Content-Type")]
    body = Parts([piece if isinstance(piece, bytes) else _cut(variant, piece) for piece in pieces])
    return Response("206 Partial Content", headers, body)


def _cut(variant: Variant, part: Range) -> bytes | FileBody:
    body = variant.body
    if isinstance(body, bytes):
        return body[part.first : part.last + 1]
    return FileBody(body.file, part.first, part.count, body.way)


def _with_slash(request: Request) -> Response:
    """To the directory's own URL. The path has one slash at its front, so that it can't name another host."""
    location = quote(request.path, safe=_PATH_SAFE, encoding="latin-1") + "/"
    query = request.environ.get("QUERY_STRING", "")
    if query:
        location += "?" + quote(query, safe=_QUERY_SAFE, encoding="latin-1", errors="replace")
    return Response("301 Moved Permanently", [("Location", location)])
