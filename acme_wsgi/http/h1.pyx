# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""HTTP/1.1 request heads, read in place.

Law: bytes in, spans of the same bytes out. Nothing here allocates, waits, or knows a socket; whatever is not
exactly what RFC 9112 allows is refused with the status that belongs to it, because a lenient reader behind a
lenient proxy is how requests are smuggled. `read_head` may be called again with a longer buffer: the verdict
depends on the bytes alone, never on how they were cut.
"""

from libc.string cimport memchr, memcmp, memset

from acme_wsgi.errors import HTTPError

from acme_wsgi.http.fields cimport (
    MAX_FIELDS,
    Field,
    Options,
    is_named,
    persists,
    read_connection,
    read_field,
    read_length,
)
from acme_wsgi.http.grammar cimport CLASS, HEX, REG_NAME, TARGET, TCHAR, hex_value, name_hash, same_name

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *source, void *target)
    int AF_INET6

# The fields that decide framing and routing are told apart by their hash before any byte is compared.
cdef uint32_t HOST = name_hash(b"host")
cdef uint32_t CONTENT_LENGTH = name_hash(b"content-length")
cdef uint32_t TRANSFER_ENCODING = name_hash(b"transfer-encoding")
cdef uint32_t CONNECTION = name_hash(b"connection")
cdef uint32_t EXPECT = name_hash(b"expect")
cdef uint32_t UPGRADE = name_hash(b"upgrade")

cdef enum:
    MAX_METHOD = 32


class ParseError(HTTPError):
    """A message that is not HTTP/1.1, with the status to answer it with."""


cdef inline int refuse(Head *head, int status, const char *message) noexcept nogil:
    head.status = status
    head.message = message
    return -1


# ---- the request line -----------------------------------------------------------------------------

cdef int read_authority(const char *text, size_t length, bint port_needed, uint32_t *host_length) noexcept nogil:
    """Check `uri-host [":" port]` (RFC 9110 4.2.1, 7.2); 1 if it is one. Sets the length of the host part."""
    cdef size_t index = 0, port = 0, digits = 0
    cdef char address[48]
    cdef char binary[16]
    if length and text[0] == c'[':
        while index < length and text[index] != c']':
            index += 1
        if index == length or index - 1 >= sizeof(address):
            return 0
        for port in range(1, index):
            address[port - 1] = text[port]
        address[index - 1] = 0
        if memchr(address, 0, index - 1) != NULL or inet_pton(AF_INET6, address, binary) != 1:
            return 0
        index += 1
    else:
        while index < length and CLASS[<unsigned char>text[index]] & REG_NAME:
            index += 1
        if index == 0:
            return 0
    host_length[0] = <uint32_t>index
    if index == length:
        return not port_needed
    if text[index] != c':':
        return 0
    index += 1
    port = 0
    while index < length:
        if not c'0' <= text[index] <= c'9':
            return 0
        port = port * 10 + (text[index] - c'0')
        if port > 65535:
            return 0
        digits += 1
        index += 1
    return digits > 0 or not port_needed


cdef int read_request_line(const char *line, size_t length, Head *head) noexcept nogil:
    """method SP request-target SP HTTP-version (RFC 9112 3). `length` is without CRLF."""
    cdef size_t index = 0, start
    cdef unsigned char kind
    while index < length and CLASS[<unsigned char>line[index]] & TCHAR:
        index += 1
    if index == 0 or index == length or line[index] != c' ':
        return refuse(head, 400, b"the request line does not begin with a method and one space")
    head.method = line
    head.method_length = <uint32_t>index
    index += 1
    start = index
    while index < length and CLASS[<unsigned char>line[index]] & TARGET:
        index += 1
    if index == start or index == length or line[index] != c' ':
        return refuse(head, 400, b"the request target is empty, has a forbidden character, or no version follows it")
    head.target = line + start
    head.target_length = <uint32_t>(index - start)
    index += 1
    if length - index != 8 or memcmp(line + index, b"HTTP/", 5) != 0 or line[index + 6] != c'.' \
            or not c'0' <= line[index + 5] <= c'9' or not c'0' <= line[index + 7] <= c'9':
        return refuse(head, 400, b"the request line does not end with an HTTP version")
    if line[index + 5] != c'1':
        return refuse(head, 505, b"only HTTP/1.0 and HTTP/1.1 are spoken here")
    head.minor = line[index + 7] - c'0'
    if head.method_length > MAX_METHOD:
        return refuse(head, 501, b"the method's name is too long")
    return 0


cdef int split_target(Head *head) noexcept nogil:
    """The four forms of a request target (RFC 9112 3.2). Sets path, query and, in absolute-form, host."""
    cdef const char *target = head.target
    cdef size_t length = head.target_length, index = 0
    cdef const char *mark
    cdef uint32_t ignored = 0
    if same_name(head.method, head.method_length, b"connect", 7) and memcmp(head.method, b"CONNECT", 7) == 0:
        if not read_authority(target, length, True, &ignored):
            return refuse(head, 400, b"CONNECT needs host:port as its target")
        head.path = target
        head.path_length = 0
        return 501
    if target[0] == c'*' and length == 1:
        if head.method_length != 7 or memcmp(head.method, b"OPTIONS", 7) != 0:
            return refuse(head, 400, b"the target * is for OPTIONS only")
        head.asterisk = 1
        head.path = target
        head.path_length = 1
        head.plain_path = 1
        return 0
    if target[0] != c'/':
        if length > 7 and same_name(target, 7, b"http://", 7):
            index = 7
        elif length > 8 and same_name(target, 8, b"https://", 8):
            index = 8
        else:
            return refuse(head, 400, b"the request target is neither a path nor an http URI")
        head.absolute = 1
        head.host = target + index
        while index < length and target[index] != c'/' and target[index] != c'?':
            index += 1
        head.authority_length = <uint32_t>(target + index - head.host)
        if not read_authority(head.host, head.authority_length, False, &head.host_length):
            return refuse(head, 400, b"the request target's authority is not a host")
    head.path = target + index
    mark = <const char *>memchr(head.path, c'?', length - index)
    if mark != NULL:
        head.path_length = <uint32_t>(mark - head.path)
        head.query = mark + 1
        head.query_length = <uint32_t>(length - index - head.path_length - 1)
    else:
        head.path_length = <uint32_t>(length - index)
    check_path(head)
    return 0


cdef void check_path(Head *head) noexcept nogil:
    """Is the path already normal? Most are, and need no copy."""
    cdef size_t index
    cdef char last = 0, c
    head.plain_path = 1
    if head.path_length == 0:
        head.plain_path = 0
        return
    for index in range(head.path_length):
        c = head.path[index]
        if c == c'%' or (last == c'/' and (c == c'/' or c == c'.')):
            head.plain_path = 0
            return
        last = c


cdef Py_ssize_t normalise_path(const char *path, size_t length, char *out) noexcept nogil:
    """Decode once, merge slashes, remove dot segments. `out` has room for length + 1 bytes.

    Returns the normal path's length, or -1 for a bad escape, a NUL or a climb above the root. Escapes are
    decoded before segments are looked at, so that an encoded slash or dot can't say one thing to us and
    another to whoever comes next.
    """
    cdef size_t index = 0, used = 0, start, end
    cdef Py_ssize_t written = 0
    cdef char c
    if length == 0:
        out[0] = c'/'
        return 1
    while index < length:
        c = path[index]
        if c == c'%':
            if index + 2 >= length or not CLASS[<unsigned char>path[index + 1]] & HEX \
                    or not CLASS[<unsigned char>path[index + 2]] & HEX:
                return -1
            c = <char>(hex_value(path[index + 1]) * 16 + hex_value(path[index + 2]))
            if c == 0:
                return -1
            index += 2
        out[used] = c
        used += 1
        index += 1
    # In place: the write position never passes the read position, since every segment carries its slash.
    index = 0
    while index < used:
        index += 1
        start = index
        while index < used and out[index] != c'/':
            index += 1
        end = index
        if end == start and end < used:
            continue
        if end - start == 1 and out[start] == c'.':
            if end == used:
                out[written] = c'/'
                written += 1
            continue
        if end - start == 2 and out[start] == c'.' and out[start + 1] == c'.':
            if written == 0:
                return -1
            written -= 1
            while out[written] != c'/':
                written -= 1
            if end == used:
                out[written] = c'/'
                written += 1
            continue
        out[written] = c'/'
        written += 1
        while start < end:
            out[written] = out[start]
            written += 1
            start += 1
    return written


# ---- the fields -----------------------------------------------------------------------------------

cdef struct Framing:
    int hosts
    int lengths
    int codings
    Options options
    int upgrade
    int expect
    int expect_other


cdef int note_field(Field *field, Head *head, Framing *framing) noexcept nogil:
    """Look at the fields that decide framing and routing; -1 with a refusal when one can't be trusted."""
    cdef uint32_t ignored = 0
    if is_named(field, HOST, b"host", 4):
        framing.hosts += 1
        if framing.hosts > 1:
            return refuse(head, 400, b"more than one Host field")
        if not read_authority(field.value, field.value_length, False, &ignored):
            return refuse(head, 400, b"the Host field is not a host")
        if not head.absolute:
            head.host = field.value
            head.host_length = ignored
            head.authority_length = field.value_length
    elif is_named(field, CONTENT_LENGTH, b"content-length", 14):
        framing.lengths += 1
        if framing.lengths > 1 or read_length(field, &head.content_length) < 0:
            return refuse(head, 400, b"the Content-Length is not one plain number")
    elif is_named(field, TRANSFER_ENCODING, b"transfer-encoding", 17):
        framing.codings += 1
        if framing.codings > 1 or not same_name(field.value, field.value_length, b"chunked", 7):
            return refuse(head, 400, b"the only Transfer-Encoding understood is a single chunked")
        head.chunked = 1
    elif is_named(field, CONNECTION, b"connection", 10):
        read_connection(field, &framing.options)
    elif is_named(field, EXPECT, b"expect", 6):
        framing.expect = 1
        if not same_name(field.value, field.value_length, b"100-continue", 12):
            framing.expect_other = 1
    elif is_named(field, UPGRADE, b"upgrade", 7):
        framing.upgrade = 1
    return 0


cdef int settle(Head *head, Framing *framing, int deferred) noexcept nogil:
    """What all fields together mean. Doubt about the length comes before any politer refusal."""
    if head.chunked and framing.lengths:
        return refuse(head, 400, b"Content-Length together with Transfer-Encoding")
    if head.chunked and head.minor == 0:
        return refuse(head, 400, b"Transfer-Encoding in HTTP/1.0")
    if framing.hosts == 0 and head.minor >= 1:
        return refuse(head, 400, b"no Host field")
    if deferred:
        return refuse(head, deferred, b"CONNECT is not implemented")
    if head.minor == 0 and not framing.lengths and head.method_length <= 4 and \
            (memcmp(head.method, b"POST", head.method_length) == 0 and head.method_length == 4
             or memcmp(head.method, b"PUT", head.method_length) == 0 and head.method_length == 3):
        return refuse(head, 411, b"a body needs a Content-Length in HTTP/1.0")
    if framing.expect_other and head.minor >= 1:
        return refuse(head, 417, b"the only expectation understood is 100-continue")
    head.expect_continue = framing.expect and head.minor >= 1
    head.upgrade = framing.upgrade and framing.options.upgrade
    head.keep_alive = persists(head.minor, &framing.options)
    return 1


cdef int read_head(const char *data, size_t length, size_t max_size, Head *head) noexcept nogil:
    """Read one request head: 1 = whole, 0 = more bytes needed, -1 = refused (head.status, head.message).

    max_size counts the bytes from the request line through the empty line. One empty line before the
    request line is skipped (RFC 9112 2.2).
    """
    cdef size_t position = 0, skipped = 0, seen, line_length
    cdef const char *end
    cdef const char *line
    cdef Framing framing
    cdef int deferred = 0
    memset(&framing, 0, sizeof(framing))
    head.nfields = 0
    head.content_length = -1
    head.chunked = head.keep_alive = head.expect_continue = head.upgrade = 0
    head.absolute = head.asterisk = 0
    head.method = head.target = head.path = head.query = head.host = NULL
    head.method_length = head.target_length = head.path_length = head.query_length = 0
    head.host_length = head.authority_length = 0
    head.status = 0
    if length and data[0] == c'\r':
        if length < 2:
            return 0
        if data[1] != c'\n':
            return refuse(head, 400, b"a bare CR before the request line")
        skipped = position = 2
    while True:
        line = data + position
        seen = length if length - skipped <= max_size else max_size + skipped
        end = NULL
        if seen > position:
            end = <const char *>memchr(line, c'\n', seen - position)
        if end == NULL:
            if length - skipped < max_size:
                return 0
            if head.method == NULL:
                return refuse(head, 414, b"the request line is too long")
            return refuse(head, 431, b"the request head is too large")
        line_length = end - line
        if line_length == 0 or line[line_length - 1] != c'\r':
            return refuse(head, 400, b"a line that does not end in CR LF")
        line_length -= 1
        position += line_length + 2
        if head.method == NULL:
            if read_request_line(line, line_length, head) < 0:
                return -1
            deferred = split_target(head)
            if deferred < 0:
                return -1
        elif line_length == 0:
            head.consumed = <uint32_t>position
            return settle(head, &framing, deferred)
        else:
            if head.nfields == MAX_FIELDS:
                return refuse(head, 431, b"too many header fields")
            if read_field(line, line_length, &head.fields[head.nfields]) < 0:
                return refuse(head, 400, b"a line that is not a header field")
            if note_field(&head.fields[head.nfields], head, &framing) < 0:
                return -1
            head.nfields += 1


# ---- the same for Python: tests, tools ------------------------------------------------------------

class ParsedHead:
    """A request head as Python values; what `read_head` found, for tests and tools."""

    __slots__ = ("chunked", "consumed", "content_length", "expect_continue", "headers", "host", "keep_alive",
                 "method", "minor", "path", "query", "target", "upgrade")

    def __eq__(self, other):
        return isinstance(other, ParsedHead) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None

    def __repr__(self):
        return "ParsedHead(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"


cdef str latin(const char *text, size_t length):
    return text[:length].decode("latin-1")


def parse_head(bytes data not None, size_t max_size=8192):
    """Parse one request head: None while incomplete, else a ParsedHead. Raises ParseError."""
    cdef Head head
    cdef int verdict
    cdef bytearray normal
    cdef Py_ssize_t length
    verdict = read_head(data, len(data), max_size, &head)
    if verdict == 0:
        return None
    if verdict < 0:
        raise ParseError(head.status, head.message.decode("ascii"))
    parsed = ParsedHead()
    normal = bytearray(head.path_length + 1)
    if head.plain_path:
        parsed.path = latin(head.path, head.path_length)
    else:
        length = normalise_path(head.path, head.path_length, normal)
        if length < 0:
            raise ParseError(400, "the path has a bad escape or climbs above the root")
        parsed.path = normal[:length].decode("latin-1")
    parsed.method = latin(head.method, head.method_length)
    parsed.target = head.target[:head.target_length]
    parsed.minor = head.minor
    parsed.query = latin(head.query, head.query_length) if head.query != NULL else ""
    parsed.host = latin(head.host, head.host_length).lower() if head.host != NULL else ""
    parsed.headers = [
        (head.fields[index].name[:head.fields[index].name_length],
         head.fields[index].value[:head.fields[index].value_length])
        for index in range(head.nfields)
    ]
    parsed.content_length = head.content_length
    parsed.chunked = bool(head.chunked)
    parsed.keep_alive = bool(head.keep_alive)
    parsed.expect_continue = bool(head.expect_continue)
    parsed.upgrade = bool(head.upgrade)
    parsed.consumed = head.consumed
    return parsed
