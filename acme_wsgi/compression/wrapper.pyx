# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""What goes around a handler whose responses may be encoded: which of them are, and what their heads then say.

Law: decides by the head and the kind of body, and leaves the encoding itself to `bodies`. A response that it has
nothing to do with passes after one look at its fields. Compiled because it stands in the path of every request to
an application.
"""

from itertools import chain

cimport cython

from acme_wsgi.compression.bodies import Encoding, Pieces, encode_bytes, encode_file
from acme_wsgi.compression.encoders import tokens
from acme_wsgi.compression.negotiate import negotiate, refuses_identity
from acme_wsgi.compression.types import compressible, may_transform

from acme_wsgi.http.grammar cimport same_name
from acme_wsgi.http.writer cimport FileBody, Parts, Prepared, Response

cdef extern from "Python.h":
    int PyUnicode_CheckExact(object text)
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyTuple_CheckExact(object value)

cdef enum:
    REMEMBERED = 256         # so many different Content-Types, each of LONGEST characters at most
    LONGEST = 128
    UNKNOWN = -1             # sizes: of a stream without a Content-Length,
    INVALID = -2             # and of one whose Content-Length is no number

cdef str VARY = "Accept-Encoding"


cdef struct Seen:
    # Where in the list of fields those stand that count here; -1 = nowhere.
    Py_ssize_t kind
    Py_ssize_t length
    Py_ssize_t etag
    Py_ssize_t vary
    bint settled             # the body is what it must stay: coded, a range, under a digest
    bint cache_control


cdef inline bint named(str name, const char *lower, size_t length) noexcept:
    return same_name(<const char *>PyUnicode_DATA(name), length, lower, length)


cdef bint look(list headers, Seen *seen) noexcept:
    """One pass over the fields; False if they are not what the writer takes, who will say so."""
    cdef Py_ssize_t index, length
    cdef object pair, name
    seen.kind = seen.length = seen.etag = seen.vary = -1
    seen.settled = seen.cache_control = False
    for index in range(len(headers)):
        pair = headers[index]
        if not PyTuple_CheckExact(pair) or len(<tuple>pair) != 2:
            return False
        name = (<tuple>pair)[0]
        if not PyUnicode_CheckExact(name) or PyUnicode_KIND(name) != 1 \
                or not PyUnicode_CheckExact((<tuple>pair)[1]):
            return False
        length = PyUnicode_GET_LENGTH(name)
        if length == 12:
            if seen.kind < 0 and named(<str>name, b"content-type", 12):
                seen.kind = index
        elif length == 14:
            if named(<str>name, b"content-length", 14):
                seen.length = index
            elif named(<str>name, b"content-digest", 14):
                seen.settled = True
        elif length == 4:
            if named(<str>name, b"etag", 4):
                seen.etag = index
            elif named(<str>name, b"vary", 4):
                seen.vary = index
        elif length == 13:
            if named(<str>name, b"cache-control", 13):
                seen.cache_control = True
            elif named(<str>name, b"content-range", 13):
                seen.settled = True
        elif length == 16:
            if named(<str>name, b"content-encoding", 16):
                seen.settled = True
        elif length == 11:
            if named(<str>name, b"repr-digest", 11) or named(<str>name, b"content-md5", 11):
                seen.settled = True
        elif length == 6:
            if named(<str>name, b"digest", 6):
                seen.settled = True
    return True


cdef list listed(object headers):
    """The fields as a list: the one that it is, where it is one."""
    if type(headers) is list:
        return <list>headers
    if type(headers) is Prepared:
        return list((<Prepared>headers).pairs)
    return list(headers)


cdef bint transformable(list headers):
    """Does no Cache-Control forbid it?"""
    for name, value in headers:
        if len(name) == 13 and name.lower() == "cache-control" and not may_transform(value):
            return False
    return True


cdef list with_vary(list headers, Py_ssize_t last):
    """`headers` with Accept-Encoding in Vary (RFC 9110 section 12.5.5); a new list where that changes anything."""
    cdef list changed
    if last >= 0:
        for name, value in headers:
            if len(name) == 4 and name.lower() == "vary":
                members = [member.strip() for member in value.lower().split(",")]
                if "*" in members or "accept-encoding" in members:
                    return headers
        changed = headers.copy()
        name, value = changed[last]
        changed[last] = (name, f"{value}, {VARY}" if value.strip() else VARY)
        return changed
    changed = headers.copy()
    changed.append(("Vary", VARY))
    return changed


cdef object weak(object tag):
    """An ETag that says no more than it may once the bytes are others (RFC 9110 section 8.8.1)."""
    return tag if tag.startswith("W/") else "W/" + tag


cdef list encoded_head(list headers, str token):
    """The fields of the encoded body."""
    cdef list changed = []
    for pair in headers:
        name = pair[0].lower()
        if name == "content-length" or name == "accept-ranges":
            continue
        changed.append((pair[0], weak(pair[1])) if name == "etag" else pair)
    changed.append(("Content-Encoding", token))
    return changed


cdef long long number(str text) noexcept:
    """A Content-Length; INVALID if it isn't one, which the writer will say."""
    cdef long long value = 0
    cdef Py_ssize_t index, length = PyUnicode_GET_LENGTH(text)
    cdef const char *digits = <const char *>PyUnicode_DATA(text)
    if PyUnicode_KIND(text) != 1 or not 0 < length < 19:
        return INVALID
    for index in range(length):
        if not c'0' <= digits[index] <= c'9':
            return INVALID
        value = value * 10 + (digits[index] - c'0')
    return value


cdef int code_of(object status) noexcept:
    """The three digits of "200 OK"; 0 if it isn't like that."""
    cdef const char *digits
    if not PyUnicode_CheckExact(status) or PyUnicode_KIND(status) != 1 or PyUnicode_GET_LENGTH(status) < 3:
        return 0
    digits = <const char *>PyUnicode_DATA(status)
    return (digits[0] - c'0') * 100 + (digits[1] - c'0') * 10 + (digits[2] - c'0')


cdef class Rules:
    """A route's settings, as every response is measured against them."""

    cdef tuple offered
    cdef frozenset types
    cdef dict known          # Content-Type, as it was sent -> is it one of them?
    cdef int level
    cdef long long min_size
    cdef long long max_size

    def __init__(self, settings):
        self.offered = tokens(settings)
        self.types = frozenset(settings.types)
        self.known = {}
        self.level = settings.level
        self.min_size = settings.min_size
        self.max_size = settings.max_size

    cdef bint compressible(self, str kind) except? True:
        """Is this Content-Type, whatever its parameters, one of the route's?"""
        cdef object known = self.known.get(kind)
        if known is None:
            known = compressible(kind, self.types)
            if len(kind) <= LONGEST:
                if len(self.known) >= REMEMBERED:
                    self.known.clear()
                self.known[kind] = known
        return known is True

    cdef bint fits(self, long long size, object accept) except? True:
        if size == UNKNOWN:
            return True
        if size > self.max_size or size == 0:
            return False
        return size >= self.min_size or "0" in accept and refuses_identity(accept)

    cdef bint concerned(self, int code, list headers, Seen *seen) except? True:
        """Might a response with this head be encoded, for one client or another?"""
        if not look(headers, seen) or seen.kind < 0 or seen.settled \
                or not self.compressible((<tuple>headers[seen.kind])[1]):
            return False
        return code not in (0, 101, 204, 205, 206, 304) and (not seen.cache_control or transformable(headers))

    cdef Response apply(self, object request, Response response):
        """The response as it goes out, changed in place."""
        cdef Seen seen
        cdef list headers = listed(response.headers)
        cdef object body, environ, accept, encoded, first, rest = None
        cdef long long promised, size
        cdef str token
        cdef int code = code_of(response.status)
        if code == 304:
            response.headers = self.not_modified(request, headers)
            return response
        if not self.concerned(code, headers, &seen):
            return response
        body = response.body
        environ = request.environ
        if type(body) is Parts or environ is None:
            return response
        promised = size = number((<tuple>headers[seen.length])[1]) if seen.length >= 0 else UNKNOWN
        if type(body) is bytes and (len(<bytes>body) or request.method != "HEAD"):
            size = len(<bytes>body)
        elif type(body) is FileBody:
            size = (<FileBody>body).count
        if promised != size and promised != UNKNOWN or promised == INVALID:
            return response               # the writer has something to say of it
        response.headers = headers = with_vary(headers, seen.vary)
        accept = environ.get("HTTP_ACCEPT_ENCODING")
        if accept is None or not self.fits(size, accept):
            return response
        token = negotiate(accept, self.offered)
        if not token:
            return response
        if request.method == "HEAD":
            return head_only(response, headers, token, size != UNKNOWN or type(body) is not bytes)
        if type(body) is bytes:
            encoded = encode_bytes(token, self.level, body)
        elif type(body) is FileBody:
            encoded = encode_file(token, self.level, body)
        elif promised == UNKNOWN:
            return self.stream(request, response, token, promised)
        else:
            # Most frameworks' responses: an iterable object, a Content-Length, and all of it in the first piece.
            body = iter(body)
            first = next(body, None)
            response.body = body if first is None else chain((first,), body)
            if type(first) is not bytes or len(<bytes>first) != promised:
                return self.stream(request, response, token, promised)
            encoded = encode_bytes(token, self.level, first)
            rest = body
        if encoded is None or len(<bytes>encoded) >= size and not refuses_identity(accept):
            return response
        response.headers = headers = encoded_head(headers, token)
        response.body = encoded
        if rest is not None:
            # Run to its end for what it may do there; whatever it still gives is more than was promised.
            headers.append(("Content-Length", str(len(<bytes>encoded))))
            response.body = chain((encoded,), rest)
        return response

    cdef Response stream(self, object request, Response response, str token, long long promised):
        response.body = Pieces(iter(response.body), self.encoding(token, promised, request))
        response.headers = encoded_head(response.headers, token)
        return response

    cdef tuple begin(self, object request, object status, list headers):
        """For a body that comes through write(): the fields, and its Encoding or None."""
        cdef Seen seen
        cdef object accept
        cdef str token
        cdef long long promised = UNKNOWN
        cdef int code = code_of(status)
        if code == 304:
            return self.not_modified(request, headers), None
        if not self.concerned(code, headers, &seen):
            return headers, None
        if seen.length >= 0:
            promised = number((<tuple>headers[seen.length])[1])
            if promised == INVALID:
                return headers, None
        headers = with_vary(headers, seen.vary)
        accept = request.environ.get("HTTP_ACCEPT_ENCODING")
        if accept is None or not self.fits(promised, accept):
            return headers, None
        token = negotiate(accept, self.offered)
        if not token:
            return headers, None
        if request.method == "HEAD":
            return encoded_head(headers, token), None
        return encoded_head(headers, token), self.encoding(token, promised, request)

    cdef list not_modified(self, object request, list headers):
        """A 304's fields: Vary as in the 200 (RFC 9110 section 15.4.5), which mostly only the application knows
        more of; and of the representation that the client holds the weak tag, if it got that one with its body.
        """
        cdef Seen seen
        cdef object environ = request.environ
        if not look(headers, &seen) or seen.settled or environ is None \
                or seen.kind >= 0 and not self.compressible((<tuple>headers[seen.kind])[1]) \
                or seen.cache_control and not transformable(headers):
            return headers
        headers = with_vary(headers, seen.vary)
        if seen.etag >= 0:
            name, tag = headers[seen.etag]
            if not tag.startswith("W/") and "W/" + tag in environ.get("HTTP_IF_NONE_MATCH", ""):
                headers = headers.copy()
                headers[seen.etag] = (name, weak(tag))
        return headers

    cdef object encoding(self, str token, long long promised, object request):
        who = f"{request.method} {request.path!a:.200} (request {request.request_id})"
        return Encoding(token, self.level, None if promised == UNKNOWN else promised, who)


cdef Response head_only(Response response, list headers, str token, bint known):
    """The answer to a HEAD: what a GET's head would say, except for a length that only encoding could tell."""
    if known:
        response.headers = encoded_head(headers, token)
        if type(response.body) is bytes or type(response.body) is FileBody:
            response.body = b""
    else:
        response.headers = [(name, weak(value)) if name.lower() == "etag" else (name, value)
                            for name, value in headers]
    return response


@cython.freelist(64)
@cython.final
cdef class Starting:
    """What `Request.start` asks about a head that leaves before the handler returns."""

    cdef Rules rules
    cdef object request
    cdef object encoding     # the body's, once it has begun

    def __call__(self, status, headers):
        headers, self.encoding = self.rules.begin(self.request, status, headers)
        return headers, None if self.encoding is None else self.encoding.piece


cdef Response finish(Response response, object encoding):
    """What the handler returned goes after what it has written, and the encoded body gets its end."""
    body = response.body
    if type(body) is bytes:
        response.body = Pieces(iter((body,)), encoding)
    elif type(body) is not FileBody and type(body) is not Parts:
        response.body = Pieces(iter(body), encoding)
    return response


def with_compression(handler, settings):
    """`handler`, its responses encoded for clients that take them so.

    settings: the route's Compression. A response that is already encoded, partial, under a digest or `no-transform`
    passes as it is, as does one whose type or size isn't among those to be encoded.
    """
    cdef Rules rules = Rules(settings)

    def compressed(request):
        cdef Starting starting = Starting.__new__(Starting)
        starting.rules = rules
        starting.request = request
        request.on_start = starting
        try:
            response = handler(request)
        finally:
            starting.request = None       # no circle: the request refers to us
        if not isinstance(response, Response):
            return response               # the engine says what is wrong with that
        try:
            if starting.encoding is not None:
                return finish(<Response>response, starting.encoding)
            if request.started:
                return response
            return rules.apply(request, <Response>response)
        except BaseException:
            # The engine never gets to see this response, so nobody else would close it.
            if (<Response>response).close is not None:
                (<Response>response).close()
            raise

    return compressed
