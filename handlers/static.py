"""Static files: `root` and what lies below it, as RFC 9110 says.

    request -> _static.handle (known and plain) -> the response
            -> Files.answer -> _lookup (which file) -> _contents (what is in it) -> Resource -> the response

Law: decides which form of a file a request gets, and which answer. What a file's name may be is decided in
acme_wsgi.files, and nothing here opens one. Blocking calls go through the I/O threads.
"""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from acme_wsgi import iothreads
from acme_wsgi.compression import compress, costly, negotiate, refuses_identity, tokens
from acme_wsgi.errors import HTTPError
from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.cache import FileTable, own_share
from acme_wsgi.files.changes import Changes
from acme_wsgi.files.media import is_text
from acme_wsgi.handlers import _contents, _listing
from acme_wsgi.handlers._contents import Content, Digests, has_settled
from acme_wsgi.handlers._digesting import Digesting
from acme_wsgi.handlers._encoding import Encodings
from acme_wsgi.handlers._fillers import Fillers
from acme_wsgi.handlers._forms import OVERHEAD, Forms, media_of
from acme_wsgi.handlers._lookup import Directory, Elsewhere, Found, Lookup, Outcome, Refused
from acme_wsgi.handlers._static import Resource, Variant, make_front
from acme_wsgi.http.conditional import Validators, judge, range_applies, strong_match
from acme_wsgi.http.ranges import Range, Unsatisfiable, multipart, parse, unsatisfied
from acme_wsgi.http.writer import DIRECT, FileBody, Parts, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acme_wsgi.assets import Mounted
    from acme_wsgi.config import Route
    from acme_wsgi.config.schema.content import Compression
    from acme_wsgi.files.openfile import OpenFile
    from acme_wsgi.handlers import Context, Handler, Request

OK = "200 OK"
MOST_PATHS = 10_000
"""Paths that all static routes of a worker remember together, and the bytes of contents they keep."""
MEMORY = 64 << 20
_TRIES = 3
_LONGEST_REMEMBERED = 128
_PATH_SAFE = "/!$&'()*+,;=~:@"
_QUERY_SAFE = "%/:?#[]@!$&'()*+,;=~"
_TAGGED = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH", "HTTP_IF_RANGE")
_PATIENCE = 5.0
"""Seconds that a request waits for what takes long, and can do without it."""
_PATIENT_PART = 4
"""And at most this part of its time, as it may have to wait more than once."""

# One for all routes of a worker.
_DIGESTS = Digests()
_DIGESTING = Digesting(_DIGESTS)
_ENCODINGS = Encodings()


def build(route: Route, context: Context) -> Handler:
    """The handler of one directory; raises ValueError if it isn't there."""
    # Not resolved: it may be a symlink that a deployment switches.
    root = Path.cwd() / (route.root or "")
    if not route.root or not root.is_dir():
        wrong = "is no directory" if root.exists() else "doesn't exist"
        raise ValueError(f"{context.where}: root {str(root)!r} {wrong}")
    compression = context.compression
    lookup = Lookup(
        Beneath(root),
        tries=route.try_files,
        index=route.index,
        listing=route.directory_listing,
        extensions=route.extensions,
        siblings=_siblings(compression),
        prefix=context.prefix or "",
        assets=context.assets,
    )
    table = FileTable(lookup.beneath, _changes(), **_bounds(context.static_routes))
    forms = Forms(context.static, compression, route.cache_control)
    timeout = context.server.timeout if route.timeout is None else route.timeout
    patience = min(_PATIENCE, timeout / _PATIENT_PART)
    files = Files(lookup, table, forms, context.prefix or "", context.assets, patience)
    return make_front(files.table, files.answer)


def _bounds(routes: int) -> dict[str, int]:
    """A route's part of what all tables of a worker may hold."""
    return {
        "entries": max(MOST_PATHS // routes, 100),
        "memory": MEMORY // routes,
        "descriptors": own_share() // routes,
    }


@functools.cache
def _changes() -> Changes:
    """What tells of changed files, one for all routes of a worker."""
    return Changes()


def _siblings(compression: Compression | None) -> dict[str, str]:
    """Token -> extension of the files compressed beforehand that are looked for, the favourite first."""
    if compression is None or not compression.precompressed.enabled:
        return {}
    by_token = {"br": ".br", "gzip": ".gz"}
    order = [*tokens(compression), *by_token]
    wanted = compression.precompressed.extensions
    return {token: by_token[token] for token in dict.fromkeys(order) if by_token.get(token) in wanted}


class Files:
    """The files of one route, and the answer to each request for one.

    :param patience: seconds that a request waits for what it can do without
    """

    def __init__(
        self,
        lookup: Lookup,
        table: FileTable,
        forms: Forms,
        prefix: str,
        assets: Mounted | None,
        patience: float,
    ) -> None:
        self.table = table
        self._lookup = lookup
        self._prefix = prefix
        self._assets = assets
        if assets is not None:
            assets.on_change(self._start_over)
        self._cleared = 0  # so many times the table was, because assets had changed
        self._forms = forms
        self._patience = patience
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
        for _ in range(_TRIES):
            if not isinstance(found, Resource):
                return self._without_file(request, found)
            resource, variant = found, self._choose(request, found)
            if variant.is_current() and not self._better_is_known(found, variant, request.environ):
                break
            found = self._load(path)
        return self._respond(request, resource, variant)

    def _better_is_known(self, found: Resource, variant: Variant, environ: Mapping[str, Any]) -> bool:
        """Whether the digest of a large file, which was served without it so far, is there now."""
        file = variant.file
        if file is None or not self._forms.lacks_tag(variant) or not self._wait_for_tag(found, file, environ):
            return False
        found.retired = True
        return True

    # -- what a path stands for

    def _load(self, path: str) -> Resource | Outcome:
        """Look at the disk; those who ask meanwhile get the same."""
        if path == self._prefix:
            return Elsewhere()
        return self._loading.fill(path, lambda: self._fill(path))

    def _fill(self, path: str) -> Resource | Outcome:
        try:
            found, contents = iothreads.run(self._look, path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            # What we hold open for later is what there is to give up.
            self.table.clear()
            raise HTTPError(503, headers=[("Retry-After", "1")]) from error
        for content in contents:
            if content.digest is not None and content.steady and has_settled(content.file):
                _DIGESTS.put(self._forms.algorithm or "", content.file, content.digest)
        return found

    def _look(self, path: str) -> tuple[Resource | Outcome, list[Content]]:
        """In an I/O thread: find the file, read what must be read of it and of its siblings, and keep it."""
        self.table.verify()
        known = self.table.get(path)
        if isinstance(known, Resource) and not known.retired and known.is_current():
            return known, []
        for tries_left in reversed(range(_TRIES)):
            generation = self._generation()
            outcome, depends = self._lookup.find(path[len(self._prefix) + 1 :].encode("latin-1"))
            if not isinstance(outcome, Found):
                return outcome, []
            tagged = bool(outcome.tag)
            plain = self._read(outcome.file, outcome.tag, is_text(media_of(outcome)))
            coded = {token: self._read(file, outcome.tag, False) for token, file in outcome.coded.items()}
            contents = [plain, *coded.values()]
            steady = all(content.steady for content in contents)
            if not steady and tries_left:
                continue
            resource = self._forms.resource(outcome, plain, coded, depends)
            if steady and self._keep(path, resource) and self._generation() != generation:
                self.table.forget(path)
            break
        # Whoever writes to a file without end gets its length right, but no tag, and nothing is kept.
        return resource, [] if tagged else contents

    def _start_over(self) -> None:
        self._cleared += 1
        self.table.clear()

    def _generation(self) -> int:
        return self._assets.generation if self._assets is not None else 0

    def _keep(self, path: str, resource: Resource) -> bool:
        return self.table.keep(
            path,
            resource,
            resource.depends,
            memory=resource.memory,
            descriptors=resource.descriptors,
        )

    def _read(self, file: OpenFile, tag: str, text: bool) -> Content:
        algorithm = self._forms.algorithm
        known = None if algorithm is None else tag or _DIGESTS.get(algorithm, file)
        content = _contents.read(file, algorithm, known, text)
        if content.body is not None:
            file.close()  # what it was is all that is still needed
        return content

    # -- which form of it

    def _choose(self, request: Request, resource: Resource) -> Variant:
        environ = request.environ
        if "HTTP_RANGE" in environ and request.method == "GET" and not _names_date(environ):
            return self._of_range(environ.get("HTTP_IF_RANGE"), resource)
        if not resource.forced:
            return resource.plain
        accept: str | None = environ.get("HTTP_ACCEPT_ENCODING")
        token = _token(accept, resource)
        variant = resource.plain
        if token:
            ready = resource.coded.get(token)
            variant = self._make(request.path, resource, token) if ready is None else ready
            if refuses_identity(accept):
                variant = resource.larger.get(token, variant)
            if ready is None:
                return variant
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

    def _make(self, path: str, resource: Resource, token: str) -> Variant:
        """A form that isn't there yet; the file as it is where that takes too long, or the file changed."""
        plain, compression = resource.plain, self._forms.compression
        if compression is None:
            return plain
        level, file, data = compression.level, plain.file, None
        if file is not None and costly(token, level, file.size):
            data = _ENCODINGS.get(token, level, file, self._patience)
            if data is None:
                return plain
        return self._encoding.fill((resource, token), lambda: self._add(path, resource, token, level, data))

    def _add(self, path: str, resource: Resource, token: str, level: int, data: bytes | None) -> Variant:
        """A form, from now on one of the resource's; the file as it is where that isn't smaller. Of a small
        file it is there all the same, for who rules out the file as it is.

        :param data: the file in the coding, or AS_IT_IS; None: it is still to be made
        """
        plain = resource.plain
        if data is None:
            body = plain.body if isinstance(plain.body, bytes) else None
            if body is None and plain.file is not None:
                body = iothreads.run(_contents.whole, plain.file)
            if body is None:
                return plain
            data = self._compressed(token, level, body)
        smaller = 0 < len(data) < plain.size
        if not smaller and (not data or plain.file is not None):
            resource.coded[token] = plain
            return plain
        made = self._forms.encoded(plain, token, data)
        variant = made if smaller else plain
        if not smaller:
            resource.larger[token] = made
        resource.memory += len(data) + OVERHEAD
        if self.table.get(path) is resource and not self._keep_again(path, resource):
            resource.memory -= len(data) + OVERHEAD
            return variant
        resource.coded[token] = variant
        return variant

    def _keep_again(self, path: str, resource: Resource) -> bool:
        """Keep what takes more memory by now. If assets change meanwhile, it isn't to come back by that."""
        cleared = self._cleared
        kept = iothreads.run(self._keep, path, resource)
        if self._cleared != cleared:
            self.table.forget(path)
        return kept

    @staticmethod
    def _compressed(token: str, level: int, body: bytes) -> bytes:
        if costly(token, level, len(body)):
            return iothreads.run(compress, token, level, body)
        return compress(token, level, body)

    # -- the response

    def _respond(self, request: Request, resource: Resource, variant: Variant) -> Response:
        environ = request.environ
        current = Validators(variant.etag, variant.modified)
        if self._forms.static.conditional_requests:
            status = judge(request.method, environ, current)
            if status == 304:
                return Response("304 Not Modified", variant.unmodified)
            if status == 412:
                raise HTTPError(412)
        field = environ.get("HTTP_RANGE") if request.method == "GET" else None
        if field is not None and self._range_applies(environ, resource, current):
            ranges = _ranges(field, variant.size)
            if ranges is not None:
                return _partial(variant, ranges)
        return Response(OK, variant.head, variant.body)

    def _range_applies(self, environ: Mapping[str, Any], resource: Resource, current: Validators) -> bool:
        """Whether a Range counts. Where If-Range isn't obeyed the whole is the one safe answer to it; so it
        is to a date for who takes a coding, because that is the date of all forms.
        """
        if not self._forms.static.conditional_requests:
            return "HTTP_IF_RANGE" not in environ
        if _names_date(environ) and _token(environ.get("HTTP_ACCEPT_ENCODING"), resource):
            return False
        return range_applies(environ, current)

    def _wait_for_tag(self, found: Resource, file: OpenFile, environ: Mapping[str, Any]) -> bool:
        """Have a large file's digest computed; whether it is there now. Waits if the request names a tag."""
        algorithm = self._forms.algorithm
        if algorithm is None:
            return False
        if _DIGESTS.get(algorithm, file) is not None:
            return True
        done = _DIGESTING.begin(algorithm, file, self._forms.way(file.size) != DIRECT, found)
        if done is not None and any('"' in environ.get(name, "") for name in _TAGGED):
            done.wait(self._patience)
        return _DIGESTS.get(algorithm, file) is not None

    def _without_file(self, request: Request, outcome: Outcome) -> Response:
        if isinstance(outcome, Refused):
            raise HTTPError(outcome.status)
        if isinstance(outcome, Directory):
            return self._listing(request, outcome)
        return _with_slash(request)

    def _listing(self, request: Request, directory: Directory) -> Response:
        path = request.path
        parent = path != self._prefix + "/"
        body = iothreads.run(_listing.page, path, directory.entries, more=directory.more, parent=parent)
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-cache")]
        compression = self._forms.compression
        if compression is not None and self._forms.encodes("text/html"):
            headers.append(("Vary", "Accept-Encoding"))
            accept = request.environ.get("HTTP_ACCEPT_ENCODING")
            token = negotiate(accept, tokens(compression))
            if token and self._forms.encodable("text/html", len(body), forced=refuses_identity(accept)):
                body = self._compressed(token, compression.level, body)
                headers.append(("Content-Encoding", token))
        return Response(OK, headers, body)


def _token(accept: str | None, resource: Resource) -> str:
    """The coding that a client gets of a file, "" for none."""
    return negotiate(accept, resource.forced if refuses_identity(accept) else resource.offered)


def _names_date(environ: Mapping[str, Any]) -> bool:
    """Whether a request's If-Range has a date, or what is taken for one, and no tag."""
    field: str | None = environ.get("HTTP_IF_RANGE")
    return field is not None and '"' not in field


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
