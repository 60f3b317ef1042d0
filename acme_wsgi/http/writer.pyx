# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The response as a value, and its head as bytes.

Law: nothing leaves here that could be read as more than one response. Names are tokens, values have no control
characters, the length is said once. What an application got wrong raises ValueError or TypeError and becomes a
500 and a log line; it is never repaired silently. This module knows no socket and no request object.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from acme_wsgi.errors import reason

from acme_wsgi.http.grammar cimport is_field_value, is_token, same_name

cdef extern from "Python.h":
    int PyUnicode_Check(object text)
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyTuple_CheckExact(object value)
    int PyList_CheckExact(object value)
    Py_ssize_t PyTuple_GET_SIZE(object value)
    PyObject *PyTuple_GET_ITEM(object value, Py_ssize_t index)
    Py_ssize_t PyList_GET_SIZE(object value)
    PyObject *PyList_GET_ITEM(object value, Py_ssize_t index)

cdef enum:
    MAX_HEAD = 1048576       # bytes of one response head

cdef enum:
    SWITCHING = 1
    NAMED = 2


cdef class FileBody:
    """A body that is a part of an open file.

    `file` has a fileno() and is kept alive until the last byte went out; `offset` and `count` are bytes. `way` says
    how the bytes get to the socket: SENDFILE, MAPPING, DIRECT or READ.
    """

    def __init__(self, file, long long offset, long long count, int way=SENDFILE):
        self.file = file
        self.offset = offset
        self.count = count
        self.way = way


cdef class Parts:
    """A body of several pieces, each of them bytes or a FileBody, sent one after the other.

    `count` is their length in bytes. Raises TypeError for a piece of another type.
    """

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.count = 0
        for piece in self.pieces:
            if type(piece) is FileBody:
                self.count += (<FileBody>piece).count
            elif type(piece) is bytes:
                self.count += len(<bytes>piece)
            else:
                raise TypeError(f"a part of a body is bytes or a FileBody, not {type(piece).__name__}")


cdef class Prepared:
    """Header fields that were checked and put into bytes once, to be sent often.

    Iterating gives the (name, value) pairs again. Raises TypeError and ValueError as a response's own fields would,
    and ValueError for a Content-Length or a Connection, which belong to the one response.
    """

    def __init__(self, headers):
        cdef Scratch out = Scratch()
        cdef Plan plan
        plan.close = plan.switching = 0
        self.seen.date = self.seen.server = self.seen.request_id = False
        self.seen.length = -1
        self.pairs = tuple(headers)
        put_fields(out, list(self.pairs), &self.seen, &plan)
        if self.seen.length >= 0 or plan.close:
            raise ValueError("Content-Length and Connection belong to one response, not to prepared fields")
        self.text = out.getvalue()

    def __iter__(self):
        return iter(self.pairs)


cdef class Tunnel:
    """The body of a 101: from its head on, bytes pass between the client and another server until both have ended.

    stream: a connected acme_wsgi.stream.Stream in the reactor's care, for reading and writing; it belongs to the
    server from the moment that the handler returns, which closes it however the tunnel ends. first: what came from it
    behind its own 101. idle_seconds: after so long without a byte either way the tunnel ends, 0 = never. Raises
    ValueError for a time below 0.
    """

    def __init__(self, stream, bytes first not None=b"", double idle_seconds=0):
        if not idle_seconds >= 0:
            raise ValueError(f"a tunnel can't be idle for {idle_seconds} seconds")
        self.stream = stream
        self.first = first
        self.idle_seconds = idle_seconds


cdef class Response:
    """One response: what comes back from the pipeline.

    status: the status line's code and reason, "200 OK". headers: a list of (name, value) pairs of str, or Prepared.
    body: bytes, a FileBody, Parts or an iterator of bytes; of a 101, a Tunnel. close: called exactly once when the
    response has ended, however it ended; None if there is nothing to close. buffer: of an iterator, how many bytes may be held for a client
    that is slower than it; 0 = the iterator waits for the client. With a buffer, an empty piece sends the head ahead of
    the first bytes.
    """

    def __init__(self, status, headers, body=b"", close=None, *, long long buffer=0):
        self.status = status
        self.headers = headers
        self.body = body
        self.close = close
        self.buffer = buffer


cdef class Scratch:
    """A growing buffer, used again for every response of a worker."""

    def __cinit__(self):
        self.data = NULL
        self.used = self.size = 0
        self.reserve(16384)

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, size_t more) except -1:
        cdef size_t size
        cdef char *data
        if self.used + more <= self.size:
            return 0
        size = (self.used + more) * 2
        data = <char *>realloc(self.data, size)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.size = size
        return 0

    cdef int put(self, const char *text, size_t length) except -1:
        self.reserve(length)
        memcpy(self.data + self.used, text, length)
        self.used += length
        return 0

    cdef int put_size(self, size_t length) except -1:
        """A chunk-size line."""
        cdef char digits[20]
        cdef int at = 20
        digits[19] = c'\n'
        digits[18] = c'\r'
        at = 18
        while True:
            at -= 1
            digits[at] = b"0123456789abcdef"[length & 15]
            length >>= 4
            if length == 0:
                break
        return self.put(digits + at, 20 - at)

    def getvalue(self):
        """What was written since the last reset, as bytes."""
        return self.data[:self.used]


cdef int put_number(Scratch out, int64_t number) except -1:
    cdef char digits[20]
    cdef int at = 20
    while True:
        at -= 1
        digits[at] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            break
    return out.put(digits + at, 20 - at)


cdef const char *latin1(object text, size_t *length, str what) except NULL:
    """The bytes of a str that is Latin-1, without a copy; they live as long as the str."""
    if not PyUnicode_Check(text):
        raise TypeError(f"{what} must be str, not {type(text).__name__}")
    if PyUnicode_KIND(text) != 1:
        raise ValueError(f"{what} has characters outside Latin-1: {text!a:.120}")
    length[0] = <size_t>PyUnicode_GET_LENGTH(text)
    return <const char *>PyUnicode_DATA(text)


cdef int read_status(const char *text, size_t length, object status, bint switching) except -1:
    """The code of a status line's "200 OK": that of a final response, or 101 if the protocol is `switching`."""
    cdef int code = 0
    cdef size_t index
    if length < 3 or (length > 3 and text[3] != c' ') or not is_field_value(text, length):
        raise ValueError(f"status must be like '200 OK', not {status!a:.120}")
    for index in range(3):
        if not c'0' <= text[index] <= c'9':
            raise ValueError(f"status must be like '200 OK', not {status!a:.120}")
        code = code * 10 + (text[index] - c'0')
    if switching:
        if code != 101:
            raise ValueError(f"a tunnel begins with status 101, not {code}")
    elif not 200 <= code <= 599:
        raise ValueError(f"status {code} is not one of a final response")
    return code


cdef int64_t read_length(const char *text, size_t length) except -2:
    cdef int64_t value = 0
    cdef size_t index
    if length == 0 or length > 18:
        raise ValueError("Content-Length is not a number")
    for index in range(length):
        if not c'0' <= text[index] <= c'9':
            raise ValueError("Content-Length is not a number")
        value = value * 10 + (text[index] - c'0')
    return value


cdef int note_connection(const char *value, size_t length, Plan *plan) except -1:
    """Framing is the server's; an application may only ask for the connection's end, or switch its protocol."""
    if plan.switching:
        if not same_name(value, length, b"upgrade", 7):
            raise ValueError("Connection of a 101 is something other than upgrade")
    elif same_name(value, length, b"close", 5):
        plan.close = 1
    elif not same_name(value, length, b"keep-alive", 10):
        raise ValueError("the application set Connection to something other than close or keep-alive")
    return 0


cdef bint claim_field(const char *name, size_t name_length, const char *value, size_t value_length,
                      Seen *seen, Plan *plan) except? True:
    """Note the fields that the writer itself has a say in; True when the field must not be copied."""
    if name_length == 4:
        if same_name(name, 4, b"date", 4):
            seen.date = True
    elif name_length == 6:
        if same_name(name, 6, b"server", 6):
            seen.server = True
    elif name_length == 14:
        if same_name(name, 14, b"content-length", 14):
            if seen.length >= 0:
                raise ValueError("more than one Content-Length")
            seen.length = read_length(value, value_length)
            return True
    elif name_length == 10:
        if same_name(name, 10, b"connection", 10):
            note_connection(value, value_length, plan)
            return True
        if same_name(name, 10, b"keep-alive", 10):
            raise ValueError("Keep-Alive is a field of the connection, which is the server's")
    elif name_length == 12:
        if same_name(name, 12, b"x-request-id", 12):
            seen.request_id = True
    elif name_length == 17:
        if same_name(name, 17, b"transfer-encoding", 17):
            raise ValueError("Transfer-Encoding is a field of the connection, which is the server's")
    elif name_length == 7:
        if plan.switching and same_name(name, 7, b"upgrade", 7):
            plan.switching |= NAMED
        elif same_name(name, 7, b"upgrade", 7) or same_name(name, 7, b"trailer", 7):
            raise ValueError("Upgrade and Trailer are fields of the connection, which is the server's")
    elif name_length == 2:
        if same_name(name, 2, b"te", 2):
            raise ValueError("TE is a field of the connection, which is the server's")
    return False


cdef int put_fields(Scratch out, object headers, Seen *seen, Plan *plan) except -1:
    """Copy the application's fields, each one checked."""
    cdef Py_ssize_t index, count
    cdef const char *name
    cdef const char *value
    cdef size_t name_length = 0, value_length = 0
    cdef object pair
    if not PyList_CheckExact(headers):
        headers = list(headers)
    count = PyList_GET_SIZE(headers)
    for index in range(count):
        pair = <object>PyList_GET_ITEM(headers, index)
        if not PyTuple_CheckExact(pair) or PyTuple_GET_SIZE(pair) != 2:
            raise TypeError(f"a header must be a tuple of name and value, not {pair!a:.120}")
        name = latin1(<object>PyTuple_GET_ITEM(pair, 0), &name_length, "a header name")
        value = latin1(<object>PyTuple_GET_ITEM(pair, 1), &value_length, "a header value")
        if not is_token(name, name_length):
            raise ValueError(f"a header name that is not a token: {pair[0]!a:.120}")
        if not is_field_value(value, value_length):
            raise ValueError(f"a control character in header {pair[0]!a:.120}: {pair[1]!a:.120}")
        if claim_field(name, name_length, value, value_length, seen, plan):
            continue
        out.reserve(name_length + value_length + 4)
        memcpy(out.data + out.used, name, name_length)
        out.used += name_length
        memcpy(out.data + out.used, b": ", 2)
        out.used += 2
        memcpy(out.data + out.used, value, value_length)
        out.used += value_length
        memcpy(out.data + out.used, b"\r\n", 2)
        out.used += 2
        if out.used > MAX_HEAD:
            raise ValueError("the response head is larger than 1 MB")
    return 0


cdef int plan_body(Plan *plan, Seen *seen, int minor, bint head_only, int64_t body_length) except -1:
    """How the recipient will know where the body ends (RFC 9112 6)."""
    plan.chunked = 0
    plan.bodiless = head_only or plan.status == 204 or plan.status == 304
    plan.length = seen.length if seen.length >= 0 else body_length
    if plan.status == 204:
        plan.length = -1
    elif plan.bodiless:
        # A HEAD's or a 304's length is the application's to tell; an empty stand-in body says nothing.
        if seen.length < 0 and body_length <= 0:
            plan.length = -1
    elif plan.length < 0:
        if minor >= 1:
            plan.chunked = 1
        else:
            plan.close = 1
    return 0


cdef int write_head(Scratch out, object status, object headers, Plan *plan, int minor, bint head_only,
                    int64_t body_length, const char *date, bint server, object request_id) except -1:
    """Append a response head to `out` and decide the framing.

    plan.close goes in as the server's wish and comes out as the decision. body_length is what the body is
    known to hold, -1 for a stream. date is the 29 characters of an IMF-fixdate. Raises TypeError and
    ValueError for what the application got wrong; `out` may then hold a part of the head.
    """
    cdef Seen seen
    cdef size_t length = 0
    cdef const char *text = latin1(status, &length, "status")
    seen.date = seen.server = seen.request_id = False
    seen.length = -1
    plan.status = read_status(text, length, status, False)
    # RFC 9112 2.3: the answer carries our version, whatever minor version was asked.
    out.put(b"HTTP/1.1 ", 9)
    out.put(text, length)
    if length == 3:
        out.put(b" ", 1)
    out.put(b"\r\n", 2)
    if type(headers) is Prepared:
        seen = (<Prepared>headers).seen
        out.put(PyBytes_AS_STRING((<Prepared>headers).text), len((<Prepared>headers).text))
    else:
        put_fields(out, headers, &seen, plan)
    plan_body(plan, &seen, minor, head_only, body_length)
    if plan.chunked:
        out.put(b"Transfer-Encoding: chunked\r\n", 28)
    elif plan.length >= 0:
        out.put(b"Content-Length: ", 16)
        put_number(out, plan.length)
        out.put(b"\r\n", 2)
    if not seen.date:
        out.put(b"Date: ", 6)
        out.put(date, 29)
        out.put(b"\r\n", 2)
    if server and not seen.server:
        out.put(b"Server: acme\r\n", 14)
    if not seen.request_id:
        text = latin1(request_id, &length, "request id")
        out.put(b"X-Request-ID: ", 14)
        out.put(text, length)
        out.put(b"\r\n", 2)
    if plan.close:
        out.put(b"Connection: close\r\n\r\n", 21)
    elif minor == 0:
        out.put(b"Connection: keep-alive\r\n\r\n", 26)
    else:
        out.put(b"\r\n", 2)
    return 0


cdef int write_switch(Scratch out, object status, object headers, Plan *plan, object request_id) except -1:
    """Append the head of a 101 (RFC 9110 15.2.2), after which the bytes are another protocol's.

    Raises TypeError and ValueError for what the application got wrong, a missing Upgrade included.
    """
    cdef Seen seen
    cdef size_t length = 0
    cdef const char *text = latin1(status, &length, "status")
    seen.date = seen.server = seen.request_id = False
    seen.length = -1
    plan.status = read_status(text, length, status, True)
    plan.switching = SWITCHING
    plan.length = -1
    plan.chunked = plan.bodiless = 0
    plan.close = 1
    out.put(b"HTTP/1.1 ", 9)
    out.put(text, length)
    if length == 3:
        out.put(b" ", 1)
    out.put(b"\r\n", 2)
    put_fields(out, headers, &seen, plan)
    if seen.length >= 0:
        raise ValueError("a 101 has no Content-Length")
    if not plan.switching & NAMED:
        raise ValueError("a 101 names the protocol in Upgrade")
    if not seen.request_id:
        text = latin1(request_id, &length, "request id")
        out.put(b"X-Request-ID: ", 14)
        out.put(text, length)
        out.put(b"\r\n", 2)
    out.put(b"Connection: Upgrade\r\n\r\n", 23)
    return 0


cdef int write_interim(Scratch out, int status, object headers) except -1:
    """Append an interim response (RFC 9110 15.2) with the given fields; ValueError for a status that isn't one."""
    cdef Seen seen
    cdef Plan plan
    seen.date = seen.server = seen.request_id = False
    seen.length = -1
    plan.close = plan.switching = 0
    if not 100 <= status <= 199 or status == 101:
        raise ValueError(f"status {status} is not one of an interim response")
    line = b"HTTP/1.1 %d %s\r\n" % (status, reason(status).encode("ascii"))
    out.put(PyBytes_AS_STRING(line), len(line))
    put_fields(out, headers, &seen, &plan)
    if seen.length >= 0:
        raise ValueError("an interim response has no Content-Length")
    out.put(b"\r\n", 2)
    return 0


def render_head(status, headers, body_length=0, *, minor=1, head_only=False, close=False, request_id="-"):
    """A response head as bytes and its framing as (chunked, length, close): for tests and tools.

    Raises TypeError and ValueError as the server would before answering 500.
    """
    cdef Scratch out = Scratch()
    cdef Plan plan
    plan.close = close
    plan.switching = 0
    write_head(out, status, headers, &plan, minor, head_only, body_length,
               b"Thu, 01 Jan 1970 00:00:00 GMT", True, request_id)
    return out.getvalue(), (bool(plan.chunked), plan.length, bool(plan.close))
