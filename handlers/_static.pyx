# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The part of static files that every request runs through: a known file, asked for without conditions.

A Resource is what one URL path stands for while its files stay as they are; a Variant is one form of it, as it is
or in a content coding. Both are made in `static.py`, which also answers everything that isn't plain.

Law: finds and hands out what is there, opens and computes nothing. Compiled because it stands in the path of every
request for a file.
"""

from acme_wsgi.files.cache cimport FileTable
from acme_wsgi.files.openfile cimport OpenFile
from acme_wsgi.http.writer cimport FileBody, Prepared, Response

cdef enum:
    MOST_CHOICES = 64        # Accept-Encoding fields remembered for one file; browsers have a handful


cdef class Variant:
    """One form of a file.

    head: the fields of a 200, as Response takes them. unmodified: those of a 304. body: bytes, or a FileBody of `file`, which is None for
    bytes. token: its content coding, "" for none. etag: as in the field; None: it has none. modified: seconds since
    the epoch or None. media_type: its Content-Type. size: bytes. exact: the same tag always means the same bytes, so
    that a range of it can complete what a client has.
    """

    cdef readonly object head
    cdef readonly Prepared unmodified
    cdef readonly object body
    cdef readonly OpenFile file
    cdef readonly str token
    cdef readonly object etag
    cdef readonly object modified
    cdef readonly str media_type
    cdef readonly long long size
    cdef readonly bint exact

    def __init__(self, head, unmodified, body, OpenFile file, *, str token, etag, modified, str media_type, exact):
        self.head = head
        self.unmodified = unmodified
        self.body = body
        self.file = file
        self.token = token
        self.etag = etag
        self.modified = modified
        self.media_type = media_type
        self.exact = exact
        self.size = len(<bytes>body) if type(body) is bytes else (<FileBody?>body).count

    cdef bint current(self) noexcept:
        return self.file is None or self.file.same_version()

    def is_current(self):
        """Whether its file is still the version that the head describes: one fstat, none for bytes."""
        return self.current()


cdef class Resource:
    """What a URL path stands for.

    plain: the file as it is. coded: token -> Variant, what is ready. offered: the tokens that a client may
    have, the best first. forced: likewise for a client that rules out the file as it is; all of `offered` and maybe
    more. larger: token -> Variant, for that one only, where `coded` has the file as it is. depends, memory,
    descriptors: as FileTable.keep takes them. retired: something better is known, look again.
    """

    cdef readonly Variant plain
    cdef readonly dict coded
    cdef readonly tuple offered
    cdef readonly tuple forced
    cdef readonly dict larger
    cdef readonly object depends
    cdef public long long memory
    cdef readonly int descriptors
    cdef public bint retired
    cdef dict chosen

    def __init__(self, Variant plain not None, dict coded not None, tuple offered not None, tuple forced not None,
                 depends, *, long long memory, int descriptors):
        self.plain = plain
        self.coded = coded
        self.offered = offered
        self.forced = forced
        self.larger = {}
        self.depends = depends
        self.memory = memory
        self.descriptors = descriptors
        self.chosen = {}

    def is_current(self):
        """Whether the files of all its variants are still the versions that their heads describe."""
        cdef Variant variant
        if not self.plain.current():
            return False
        for variant in self.coded.values():
            if not variant.current():
                return False
        return True

    def remember(self, accept_encoding, Variant variant not None):
        """Which variant an Accept-Encoding field leads to; None: the field is absent."""
        if len(self.chosen) >= MOST_CHOICES:
            self.chosen.clear()
        self.chosen[accept_encoding] = variant


def make_front(FileTable table not None, slow):
    """The handler of a route: what `table` has for a path is a Resource; `slow(request, found)` answers the rest."""

    def handle(request):
        cdef object found = table.get(request.path)
        cdef dict environ
        cdef Variant variant
        cdef Resource resource
        cdef Response response
        cdef object choice
        if type(found) is not Resource:
            return slow(request, None)
        resource = <Resource>found
        if resource.retired:
            return slow(request, None)
        method = request.method
        if method != "GET" and method != "HEAD":
            return slow(request, resource)
        environ = request.environ
        if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ or "HTTP_RANGE" in environ \
                or "HTTP_IF_MATCH" in environ or "HTTP_IF_UNMODIFIED_SINCE" in environ:
            return slow(request, resource)
        variant = resource.plain
        if resource.forced:
            choice = resource.chosen.get(environ.get("HTTP_ACCEPT_ENCODING"))
            if choice is None:
                return slow(request, resource)
            variant = <Variant>choice
        if not variant.current():
            return slow(request, None)
        response = Response.__new__(Response)
        response.status = "200 OK"
        response.headers = variant.head
        response.body = variant.body
        return response

    return handle
