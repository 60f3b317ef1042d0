# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""HTTP/1.1 heads of replies, read in place: what backends answer.

Law: as strict towards backends as h1 is towards clients, because a reply that two readers could cut
differently puts one client's answer into another's hands. Bytes in, spans of the same bytes out: reading
allocates nothing, waits for nothing and knows no socket, and its verdict depends on the bytes alone, never
on how they were cut. What was asked (a HEAD, an Upgrade) is not known here, nor what a client is told about
a reply that was refused.
"""

import sys

from acme_wsgi.errors import HTTPError

from libc.string cimport memchr, memcmp, memset

from acme_wsgi.http.environ cimport ascii, latin1
from acme_wsgi.http.fields cimport (
    MAX_FIELDS,
    Options,
    next_element,
    persists,
    read_connection,
    read_field,
    read_length,
)
from acme_wsgi.http.grammar cimport alike, judge_value, name_hash_step, same_name
from acme_wsgi.http.known cimport Known, Names, find_name, learn_name

cdef extern from "Python.h":
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void *PyUnicode_1BYTE_DATA(object text)

cdef enum:
    MAX_OPTIONS = 100        # in the Connection lists of one head; each is compared with each field
    MAX_REASON = 64          # bytes; longer reasons are not kept as str

cdef struct Framing:
    int lengths
    int codings
    int upgrades
    int connections
    Options options


class ReplyError(HTTPError):
    """A backend's answer that is not HTTP/1.1; always 502."""


cdef inline int refuse(Reply *reply, const char *message) noexcept nogil:
    reply.message = message
    return -1


# ---- the status line ------------------------------------------------------------------------------

cdef inline bint may_begin(const char *data, size_t length) noexcept nogil:
    """Could these first bytes become a status line? Others may never send a line end to wait for."""
    return length == 0 or memcmp(data, b"HTTP/1.", length if length < 7 else 7) == 0


cdef int read_status_line(const char *line, size_t length, Reply *reply) noexcept nogil:
    """HTTP-version SP status-code [SP reason-phrase] (RFC 9112 4). `length` is without CRLF.

    The space before a reason that isn't there is left out by too many to refuse it; nothing hangs on it.
    """
    cdef size_t index
    if length < 12 or line[8] != c' ':
        return refuse(reply, b"the status line is not a version, one space and a status of three digits")
    if line[7] != c'0' and line[7] != c'1':
        return refuse(reply, b"the version is neither HTTP/1.0 nor HTTP/1.1")
    reply.minor = line[7] - c'0'
    reply.status = 0
    for index in range(9, 12):
        if not c'0' <= line[index] <= c'9':
            return refuse(reply, b"the status line is not a version, one space and a status of three digits")
        reply.status = reply.status * 10 + (line[index] - c'0')
    if not 100 <= reply.status <= 599:
        return refuse(reply, b"the status is outside of 100 to 599")
    if reply.status < 200 and reply.minor == 0:
        # RFC 9110 15.2: HTTP/1.0 has none, so that its readers take this for the final reply.
        return refuse(reply, b"an interim reply in HTTP/1.0")
    reply.reason = line + 12
    reply.reason_length = 0
    if length > 12:
        if line[12] != c' ':
            return refuse(reply, b"the status has more than three digits or no space follows it")
        reply.reason = line + 13
        reply.reason_length = <uint32_t>(length - 13)
        if judge_value(reply.reason, reply.reason_length) < 0:
            return refuse(reply, b"a control character in the status line")
    return 0


# ---- the fields -----------------------------------------------------------------------------------

cdef int note_field(Reply *reply, int index, Framing *framing) noexcept nogil:
    """Look at the fields that decide framing, and mark those of one connection; -1 when one can't be trusted.

    The marked are RFC 9110 7.6.1's, and those that RFC 9110 11.7 has for the next recipient alone.
    """
    cdef Field *field = &reply.fields[index]
    cdef const char *name = field.name
    cdef size_t length = field.name_length
    cdef bint drop = False
    # Most names differ in their length from all of these.
    if length == 14:
        if same_name(name, length, b"content-length", 14):
            framing.lengths += 1
            if framing.lengths > 1 or read_length(field, &reply.content_length) < 0:
                return refuse(reply, b"the Content-Length is not one plain number")
    elif length == 17:
        if same_name(name, length, b"transfer-encoding", 17):
            framing.codings += 1
            if framing.codings > 1 or not same_name(field.value, field.value_length, b"chunked", 7):
                return refuse(reply, b"the only Transfer-Encoding understood is a single chunked")
            reply.chunked = 1
            drop = True
    elif length == 10:
        if same_name(name, length, b"connection", 10):
            framing.connections += 1
            read_connection(field, &framing.options)
            drop = True
        else:
            drop = same_name(name, length, b"keep-alive", 10)
    elif length == 7:
        if same_name(name, length, b"upgrade", 7):
            framing.upgrades += 1
            reply.protocol = field.value
            reply.protocol_length = field.value_length
            drop = True
        else:
            drop = same_name(name, length, b"trailer", 7)
    elif length == 2:
        drop = same_name(name, length, b"te", 2)
    elif length == 16:
        drop = same_name(name, length, b"proxy-connection", 16)
    elif length == 18:
        drop = same_name(name, length, b"proxy-authenticate", 18)
    elif length == 25:
        drop = same_name(name, length, b"proxy-authentication-info", 25)
    reply.drop[index] = drop
    return 0


cdef void drop_named(Reply *reply, const char *name, size_t length) noexcept nogil:
    """Mark all fields of one name."""
    cdef uint32_t hashed = 2166136261
    cdef size_t at
    cdef int index
    for at in range(length):
        hashed = name_hash_step(hashed, <unsigned char>name[at])
    for index in range(reply.nfields):
        if reply.fields[index].hash == hashed and reply.fields[index].name_length == length \
                and alike(reply.fields[index].name, name, length):
            reply.drop[index] = 1


cdef int drop_options(Reply *reply) noexcept nogil:
    """Mark the fields that Connection names (RFC 9110 7.6.1), wherever they stand."""
    cdef const char *name = NULL
    cdef size_t position, length
    cdef int index, options = 0
    cdef Field *field
    for index in range(reply.nfields):
        field = &reply.fields[index]
        if not same_name(field.name, field.name_length, b"connection", 10):
            continue
        position = 0
        while position < field.value_length:
            length = next_element(field, &position, &name)
            if length == 0:
                continue
            options += 1
            if options > MAX_OPTIONS:
                return refuse(reply, b"too many options in Connection")
            drop_named(reply, name, length)
    return 0


cdef void drop_length(Reply *reply) noexcept nogil:
    """Forget the Content-Length."""
    drop_named(reply, b"content-length", 14)
    reply.content_length = -1


# ---- what all fields together mean ----------------------------------------------------------------

cdef int settle_status(Reply *reply, Framing *framing) noexcept nogil:
    """The statuses with rules of their own: 1xx and 204 have no body and may not speak of one."""
    if reply.status >= 200 and reply.status != 204:
        return 0
    # RFC 9112 6.1 and RFC 9110 8.6 forbid both. A length of 0 is common and says what every reader assumes;
    # the rest is a body to some readers, and to the others the next reply.
    if reply.chunked:
        return refuse(reply, b"Transfer-Encoding in a reply that has no body")
    if reply.content_length > 0:
        return refuse(reply, b"Content-Length in a reply that has no body")
    if framing.lengths:
        drop_length(reply)
    # RFC 9110 15.2.2 and 7.8: without them nobody can say what the bytes behind this head are.
    if reply.status == 101 and not (reply.upgrade and framing.upgrades == 1 and reply.protocol_length):
        return refuse(reply, b"a 101 that does not name one protocol in Upgrade, and Upgrade in Connection")
    return 0


cdef int settle(Reply *reply, Framing *framing) noexcept nogil:
    """What all fields together mean."""
    if reply.chunked and framing.lengths:
        return refuse(reply, b"Content-Length together with Transfer-Encoding")
    if reply.chunked and reply.minor == 0:
        return refuse(reply, b"Transfer-Encoding in HTTP/1.0")
    reply.upgrade = framing.upgrades and framing.options.upgrade
    reply.keep_alive = persists(reply.minor, &framing.options)
    if settle_status(reply, framing) < 0:
        return -1
    if framing.connections and drop_options(reply) < 0:
        return -1
    return 1


cdef int read_reply(const char *data, size_t length, size_t max_size, Reply *reply) noexcept nogil:
    """Read one reply's head: 1 = whole, 0 = more bytes needed, -1 = refused (reply.message).

    max_size counts the bytes from the status line through the empty line. Nothing may precede the status
    line.
    """
    cdef size_t position = 0, seen, line_length
    cdef const char *end
    cdef const char *line
    cdef Framing framing
    memset(&framing, 0, sizeof(framing))
    reply.reason = reply.protocol = reply.message = NULL
    reply.reason_length = reply.protocol_length = 0
    reply.minor = reply.status = reply.nfields = 0
    reply.content_length = -1
    reply.chunked = reply.keep_alive = reply.upgrade = 0
    reply.consumed = 0
    if not may_begin(data, length):
        return refuse(reply, b"no HTTP/1 status line")
    seen = length if length <= max_size else max_size
    while True:
        line = data + position
        end = NULL
        if seen > position:
            end = <const char *>memchr(line, c'\n', seen - position)
        if end == NULL:
            if length < max_size:
                return 0
            return refuse(reply, b"the head is too large")
        line_length = end - line
        if line_length == 0 or line[line_length - 1] != c'\r':
            return refuse(reply, b"a line that does not end in CR LF")
        line_length -= 1
        position += line_length + 2
        if reply.reason == NULL:
            if read_status_line(line, line_length, reply) < 0:
                return -1
        elif line_length == 0:
            reply.consumed = <uint32_t>position
            return settle(reply, &framing)
        else:
            if reply.nfields == MAX_FIELDS:
                return refuse(reply, b"too many header fields")
            if read_field(line, line_length, &reply.fields[reply.nfields]) < 0:
                return refuse(reply, b"a line that is not a header field")
            if note_field(reply, reply.nfields, &framing) < 0:
                return -1
            reply.nfields += 1


# ---- as a response's values -----------------------------------------------------------------------

cdef Names names
cdef list spoken = [None] * 600      # status -> the "200 OK" that was last said


cdef object field_name(Field *field):
    """The field's name as a str; spellings seen before cost one look."""
    cdef Known *entry = find_name(&names, field)
    if entry.text != NULL:
        return <object>entry.text
    name = sys.intern(latin1(field.name, field.name_length))
    learn_name(&names, entry, field, name)
    return name


cdef object field_value(Field *field, Reply *reply):
    """The field's value as a str. A length is said anew: one number has one spelling."""
    if field.name_length == 14 and field.value_length > 1 and field.value[0] == c'0' \
            and same_name(field.name, 14, b"content-length", 14):
        return str(reply.content_length)
    if field.ascii:
        return ascii(field.value, field.value_length)
    return latin1(field.value, field.value_length)


cdef list reply_headers(Reply *reply):
    """The fields that go further, in their order, as (name, value) pairs of str; names as sent, in latin-1."""
    cdef list headers = []
    cdef Field *field
    cdef int index
    for index in range(reply.nfields):
        if not reply.drop[index]:
            field = &reply.fields[index]
            headers.append((field_name(field), field_value(field, reply)))
    return headers


cdef str reply_status(Reply *reply):
    """Status and reason as a response has them, "200 OK"; the same object while a status keeps its reason."""
    cdef object text = spoken[reply.status]
    if text is not None and <size_t>PyUnicode_GET_LENGTH(text) == 4 + <size_t>reply.reason_length \
            and memcmp(<char *>PyUnicode_1BYTE_DATA(text) + 4, reply.reason, reply.reason_length) == 0:
        return <str>text
    text = f"{reply.status} " + latin1(reply.reason, reply.reason_length)
    if reply.reason_length <= MAX_REASON:
        spoken[reply.status] = text
    return <str>text


# ---- the same for Python: tests, tools ------------------------------------------------------------

EXTENTS = {NO_BODY: "none", COUNTED: "length", CHUNKED: "chunked", UNTIL_CLOSE: "close"}


class ParsedReply:
    """A reply's head as Python values; what `read_reply` found, for tests and tools.

    headers: all fields as sent. dropped: for each of them whether it goes no further. forwarded: the others
    as `reply_headers` has them. extent: where the body ends unless a HEAD was asked: none, length, chunked
    or close.
    """

    __slots__ = ("chunked", "consumed", "content_length", "dropped", "extent", "forwarded", "headers",
                 "keep_alive", "minor", "protocol", "reason", "status", "status_line", "upgrade")

    def __eq__(self, other):
        return isinstance(other, ParsedReply) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None

    def __repr__(self):
        return "ParsedReply(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"


def parse_reply(bytes data not None, size_t max_size=8192):
    """Parse one reply's head: None while incomplete, else a ParsedReply. Raises ReplyError."""
    cdef Reply reply
    cdef int verdict = read_reply(data, len(data), max_size, &reply)
    if verdict == 0:
        return None
    if verdict < 0:
        raise ReplyError(502, reply.message.decode("ascii"))
    parsed = ParsedReply()
    parsed.minor = reply.minor
    parsed.status = reply.status
    parsed.reason = reply.reason[:reply.reason_length]
    parsed.status_line = reply_status(&reply)
    parsed.headers = [
        (reply.fields[index].name[:reply.fields[index].name_length],
         reply.fields[index].value[:reply.fields[index].value_length])
        for index in range(reply.nfields)
    ]
    parsed.dropped = [bool(reply.drop[index]) for index in range(reply.nfields)]
    parsed.forwarded = reply_headers(&reply)
    parsed.content_length = reply.content_length
    parsed.chunked = bool(reply.chunked)
    parsed.keep_alive = bool(reply.keep_alive)
    parsed.upgrade = bool(reply.upgrade)
    parsed.protocol = reply.protocol[:reply.protocol_length] if reply.upgrade else b""
    parsed.extent = EXTENTS[extent(&reply, False)]
    parsed.consumed = reply.consumed
    return parsed
