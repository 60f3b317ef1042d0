# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The story of a request, from the bytes that come in to the bytes that go out, in the order it travels.

    receive -> take -> begin -> run -> respond -> finish -> (after) -> parked, or closed

A connection holds a greenlet only from `run` to the end of `respond`, and only while its handler blocks or
streams. Heads that trickle in, small bodies that trickle in, and finished responses that a slow client takes
its time with are all parked in the reactor's lists, where the engine's clock watches their rates.

Law: this file decides what a request or a response means for its connection. It knows neither routes nor
configuration files nor other connections.
"""

import logging
import re
import sys

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc

from acme_wsgi.errors import (
    BodyError,
    ClientDisconnected,
    DeadlineExceeded,
    HTTPError,
    error_page,
    reason,
)
from acme_wsgi.http import proxy_protocol

from acme_wsgi.http.environ cimport ascii, latin1, method_name, put_fields
from acme_wsgi.http.h1 cimport chunked_next, chunked_start, normalise_path, read_head, same_name
from acme_wsgi.http.writer cimport FileBody, write_head, write_interim
from acme_wsgi.reactor cimport WAIT_READ, WAIT_WRITE, monotonic_ns

cdef extern from "Python.h":
    object PyContext_New()
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyDict_Copy(object mapping)
    int PyGC_Disable()
    int PyGC_Enable()

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int fd, int how)
    int SHUT_WR

cdef extern from *:
    """
    #include "greenlet.h"
    static int import_greenlet(void) { PyGreenlet_Import(); return _PyGreenlet_API ? 0 : -1; }
    static PyObject *current_greenlet(void) { return (PyObject *)PyGreenlet_GetCurrent(); }
    """
    int import_greenlet() except -1
    object current_greenlet()

import_greenlet()

log = logging.getLogger("acme.connection")

cdef enum:
    INPUT = 65536            # the worker's receive buffer
    PREBUFFER = 65536        # a body up to this size is waited for without a greenlet
    ROOM = 8192              # grown by at least this much when a head comes in parts
    SMALL = 16384            # a body up to this size is copied behind its head
    DRAIN = 262144           # an unread body up to this size is read and dropped, a larger one ends the connection
    LOG_BATCH = 128

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")

# Interned like the names that Cython interns by itself: the copied environ finds them without comparing.
cdef str WSGI_INPUT = sys.intern("wsgi.input")
cdef str WSGI_EARLY_HINTS = sys.intern("wsgi.early_hints")
cdef str ACME_REQUEST_ID = sys.intern("acme.request_id")
cdef str HTTP_1_1 = "HTTP/1.1"
cdef str HTTP_1_0 = "HTTP/1.0"
cdef Body NO_BODY = Body.__new__(Body)
NO_BODY.done = True
NO_BODY.length = -1


cdef class Service:
    """What all connections of a worker share: where requests go, the clock's text, the scratch buffers."""

    def __cinit__(self):
        self.input = <char *>malloc(INPUT)
        self.out = Scratch()
        if self.input == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.input)
        free(self.path)

    cdef str make_id(self):
        """32 hexadecimal digits nobody has seen before: splitmix64, seeded from the system per worker."""
        cdef char digits[32]
        cdef int half, at
        cdef uint64_t z
        for half in range(2):
            self.id_state += 0x9E3779B97F4A7C15ULL + (self.id_stream if half else 0)
            z = self.id_state
            z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9ULL
            z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EBULL
            z ^= z >> 31
            for at in range(16):
                digits[half * 16 + at] = b"0123456789abcdef"[z & 15]
                z >>= 4
        return ascii(digits, 32)


cdef class Request:
    """One request: what the pipeline sees. `environ` is the whole WSGI environ.

    Called, it is environ["wsgi.early_hints"].
    """

    def __call__(self, headers):
        self.early_hints(headers)

    @property
    def params(self):
        """What the route's pattern captured, as text."""
        if self._params is None:
            self._params = {}
        return self._params

    @params.setter
    def params(self, dict value):
        self._params = value

    @property
    def host(self):
        """The Host in lower case without port, "" if there was none."""
        cdef str host = self.environ.get("HTTP_HOST", "").lower()
        if host.startswith("["):
            return host[:host.find("]") + 1]
        return host.partition(":")[0]

    def start(self, status, headers):
        """Begin the response early; returns `write` (PEP 3333). The head leaves with the first write."""
        if self.started:
            raise AssertionError("the response has begun already")
        if self.connection is None:
            raise ClientDisconnected("the request is over")
        self.connection.plan_head(self, status, headers, -1)
        self.connection.hold_head(self)
        return self.write

    def write(self, bytes data not None):
        """Send a piece of the body now."""
        if self.connection is None:
            raise ValueError("write() after the end of the request")
        if data:
            self.connection.send_piece(self, data)

    def early_hints(self, headers):
        """Send a 103 with `headers` now (RFC 8297); nothing to a client of HTTP/1.0 or after the head."""
        cdef bytes interim
        headers = list(headers)           # before the shared buffer is touched: iterating it may block
        if self.minor < 1 or self.started or self.connection is None:
            return
        self.connection.service.out.used = 0
        write_interim(self.connection.service.out, headers)
        interim = self.connection.service.out.getvalue()
        self.connection.send_all(PyBytes_AS_STRING(interim), len(interim))

    def limit_body(self, long long size):
        """Another max_body_size, in bytes, for this request. Raises HTTPError 413 if its length is known and over."""
        if self.body is not NO_BODY:
            self.body.limit = size
        if self.body.length > size:
            raise HTTPError(413, "the request body is larger than this route takes")

    def set_timeout(self, double seconds):
        """Another deadline for this request, in seconds from its begin."""
        self.timeout_ns = <int64_t>(seconds * 1e9)

    def close_connection(self):
        """The connection ends with this response."""
        self.close_wanted = True


cdef class Connection(Stream):
    """One client."""

    def __dealloc__(self):
        free(self.scan)

    cdef void on_event(self) noexcept:
        """Whatever happens, the connection survives it whole or not at all."""
        try:
            self.proceed()
        except (ClientDisconnected, EOFError) as error:
            log.debug("%s: %s", self.address, error)
            self.close(False)
        except BaseException:
            log.exception("connection from %s failed", self.address)
            self.service.slot.data.errors += 1
            self.close(True)

    cdef int proceed(self) except -1:
        if self.expired:
            return self.expire()
        if self.list_number == LIST_RUN:
            return 0                      # the handler will find out when it reads or writes
        if self.list_number == LIST_SEND:
            return self.continue_sending()
        if self.list_number == LIST_LINGER:
            return self.discard()
        return self.receive()

    # ---- bytes in ---------------------------------------------------------------------------------

    cdef int receive(self) except -1:
        cdef ssize_t got
        cdef size_t pending = self.end - self.start
        if pending and self.list_number == LIST_IDLE:
            return self.take(self.buffer + self.start, pending, False)
        if pending or self.list_number == LIST_BODY:
            self.make_room(ROOM)
            got = self.receive_into(self.buffer + self.end, self.size - self.end)
            if got > 0:
                self.end += <uint32_t>got
                return self.take(self.buffer + self.start, self.end - self.start, False)
        else:
            got = self.receive_into(self.service.input, INPUT)
            if got > 0:
                return self.take(self.service.input, got, True)
        if got < 0:
            return 0
        if self.list_number == LIST_BODY:
            # The body was cut. The handler hears of it in its read; whoever half-closed hears the answer.
            return self.take(self.buffer + self.start, self.end - self.start, False)
        self.close(False)
        return 0

    cdef int take(self, const char *data, size_t length, bint fresh) except -1:
        """Look for a whole request in what is there."""
        cdef Service service = self.service
        cdef size_t dropped
        cdef Py_ssize_t proxy
        cdef int verdict
        if self.skip:
            dropped = length if <int64_t>length < self.skip else <size_t>self.skip
            self.skip -= dropped
            data += dropped
            length -= dropped
        if self.proxied and length:
            if fresh:
                # Python code looks at it, and might let others at the shared buffer.
                self.stash(data, length)
                data = self.buffer + self.start
                fresh = False
            proxy = self.take_proxy(data, length)
            if proxy < 0:
                return self.park(LIST_HEAD, data, length, fresh)
            data += proxy
            length -= proxy
        verdict = read_head(data, length, service.max_head, &service.head)
        if verdict == 0:
            if length == 0 and self.list_number == LIST_IDLE:
                return self.stay_idle()
            return self.park(LIST_HEAD, data, length, fresh)
        if verdict < 0:
            self.keep(data, 0, fresh)
            return self.refuse(service.head.status, service.head.message.decode("ascii"))
        if service.head.content_length > service.largest_body:
            self.keep(data, 0, fresh)
            return self.refuse(413, "the request body is larger than this server takes")
        if (service.head.content_length > 0 or service.head.chunked) and not self.body_due(data, length):
            return self.park(LIST_BODY, data, length, fresh)
        return self.begin(data, length, fresh)

    cdef int stay_idle(self) except -1:
        """All that came was the rest of a body that nobody had read."""
        self.drop_buffer()
        if self.readable:
            self.reactor.make_ready(self)
        return 0

    cdef Py_ssize_t take_proxy(self, const char *data, size_t length) except -2:
        """A PROXY header from a trusted peer: its length, 0 if there is none, -1 if more bytes are needed."""
        cdef bytes seen = data[:length if length < 1024 else 1024]
        looks = proxy_protocol.looks_like_proxy(seen)
        if looks is None:
            return -1
        if not looks:
            self.proxied = 0
            return 0
        try:
            found = proxy_protocol.parse(seen)
        except ValueError as error:
            raise ClientDisconnected(f"refused: a malformed PROXY header: {error}") from error
        if found is None:
            return -1
        self.proxied = 0
        if found.source is not None:
            self.address, self.port = found.source
            self.trusted = self.service.trusted.trusts(self.address)
        return found.consumed

    cdef int keep(self, const char *rest, size_t length, bint fresh) except -1:
        """What is left belongs to whatever comes next."""
        if fresh:
            if length:
                self.stash(rest, length)
        elif length:
            self.start = <uint32_t>(rest - self.buffer)
        else:
            self.start = self.end = 0
        return 0

    cdef int park(self, int number, const char *rest, size_t length, bint fresh) except -1:
        """More bytes are needed; wait for them in list `number`, without a greenlet."""
        cdef int64_t now
        self.keep(rest, length, fresh)
        if self.list_number != number:
            now = monotonic_ns()
            self.reactor.enter(self, number, now)
            self.open_window(now)
        if self.readable:
            self.reactor.make_ready(self)
        return 0

    cdef bint body_due(self, const char *data, size_t length) except? True:
        """Is so much of the body here that the handler may begin?"""
        cdef Head *head = &self.service.head
        cdef size_t have = length - head.consumed, used = 0, found = 0
        cdef const char *piece = NULL
        cdef int verdict
        if head.expect_continue or self.eof or have >= PREBUFFER:
            return True
        if not head.chunked:
            return <int64_t>have >= head.content_length
        if self.scan == NULL:
            self.scan = <Chunked *>calloc(1, sizeof(Chunked))
            if self.scan == NULL:
                raise MemoryError
            chunked_start(self.scan)
            self.scanned = 0
        while self.scanned < have:
            verdict = chunked_next(self.scan, data + head.consumed + self.scanned, have - self.scanned, &used,
                                   &piece, &found)
            self.scanned += used
            if verdict != 1:
                # A malformed body is the handler's to hear of, in its read.
                return verdict != 0
        return False

    cdef int refuse(self, int status, str message) except -1:
        """Answer bytes that are not a request, and read no further ones as requests."""
        cdef Head *head = &self.service.head
        cdef Request request = Request.__new__(Request)
        cdef str accept = ""
        cdef int index
        request.connection = self
        request.request_id = self.service.make_id()
        request.method = method_name(head) if head.method_length else "-"
        request.target = latin1(head.target, head.target_length) if head.target_length else "-"
        request.head_only = request.method == "HEAD"
        request.minor = 1
        request.body = NO_BODY
        request.close_wanted = True
        request.begun_ns = monotonic_ns()
        request.sent_before = self.sent_total
        for index in range(head.nfields):
            if same_name(head.fields[index].name, head.fields[index].name_length, b"accept", 6):
                accept = latin1(head.fields[index].value, head.fields[index].value_length)
        request.environ = {"HTTP_ACCEPT": accept}
        self.request = request
        self.service.slot.data.in_flight += 1
        self.service.slot.data.rejected += 1
        self.reactor.enter(self, LIST_RUN, request.begun_ns)
        log.debug("%s: refused with %d: %s", self.address, status, message)
        self.respond(request, error_response(request, HTTPError(status, message)))
        return 0

    # ---- the request ------------------------------------------------------------------------------

    cdef int begin(self, const char *data, size_t length, bint fresh) except -1:
        """A whole head is here: make the request and run it."""
        cdef Service service = self.service
        cdef Head *head = &service.head
        cdef Py_ssize_t normal
        cdef Request request
        cdef str path
        cdef bint asterisk, collecting
        if self.scan != NULL:
            free(self.scan)
            self.scan = NULL
        if head.plain_path:
            path = ascii(head.path, head.path_length)
        else:
            normal = normalise_path(head.path, head.path_length, service.path)
            if normal < 0:
                self.keep(data, 0, fresh)
                return self.refuse(400, "the path has a bad escape or climbs above the root")
            path = latin1(service.path, normal)
        asterisk = head.asterisk
        # A collection might run anybody's __del__, which might block: until everything is copied out of it, the
        # shared buffer must stay ours.
        collecting = PyGC_Disable()
        try:
            request = self.make_request(path)
            self.keep(data + head.consumed, length - head.consumed, fresh)
        finally:
            if collecting:
                PyGC_Enable()
        if self.trusted:
            self.believe(request)
        if asterisk:
            # RFC 9110 9.3.7: about the server as a whole; we have nothing to add to "it lives".
            self.respond(request, Response("204 No Content", []))
            return 0
        return self.run(request)

    cdef Request make_request(self, str path):
        """The request as Python values; afterwards the bytes of the head may go."""
        cdef Service service = self.service
        cdef Head *head = &service.head
        cdef Request request = Request.__new__(Request)
        cdef dict environ = <dict>PyDict_Copy(self.base_environ)
        cdef Body body = NO_BODY
        cdef bint same
        request.connection = self
        request.environ = environ
        request.method = method_name(head)
        request.path = path
        # Most targets are their own path; one str serves for both.
        same = head.plain_path and head.path_length == head.target_length
        request.target = path if same else ascii(head.target, head.target_length)
        request.request_id = service.make_id()
        request.minor = head.minor
        request.head_only = head.method_length == 4 and request.method == "HEAD"
        request.keep_alive = head.keep_alive
        request.promised = -1
        request.sent_before = self.sent_total
        request.received = head.consumed
        request.timeout_ns = service.timeout_ns
        if head.content_length > 0 or head.chunked:
            body = Body.__new__(Body)
            body.stream = self
            body.chunked = head.chunked
            body.remaining = body.length = head.content_length
            body.limit = service.max_body
            body.expect = head.expect_continue
            if head.chunked:
                chunked_start(&body.decoder)
        request.body = body
        put_fields(environ, head)
        environ["REQUEST_METHOD"] = request.method
        environ["PATH_INFO"] = path
        environ["QUERY_STRING"] = ascii(head.query, head.query_length) if head.query_length else ""
        environ["REQUEST_URI"] = request.target
        environ["RAW_URI"] = request.target
        environ["SERVER_PROTOCOL"] = HTTP_1_1 if head.minor else HTTP_1_0
        environ[WSGI_INPUT] = body
        environ[WSGI_EARLY_HINTS] = request
        if self.port:
            environ["REMOTE_ADDR"] = self.address
            environ["REMOTE_PORT"] = str(self.port)
        else:
            environ["REMOTE_ADDR"] = ""
        environ[ACME_REQUEST_ID] = request.request_id
        self.request = request
        request.begun_ns = request.clock_ns = self.turn_ns = monotonic_ns()
        self.client_wait_ns = self.paused_ns = 0
        service.slot.data.in_flight += 1
        self.reactor.enter(self, LIST_RUN, request.begun_ns)
        return request

    def believe(self, Request request):
        """What a trusted proxy says of the client counts."""
        cdef dict environ = request.environ
        given = environ.get("HTTP_X_REQUEST_ID")
        if given is not None and _REQUEST_ID.match(given):
            request.request_id = environ[ACME_REQUEST_ID] = given
        self.service.trusted.apply(environ, self.address)

    cdef int run(self, Request request) except -1:
        """Run the handler and send what it returns, in a context of its own (PEP 567)."""
        cdef object response
        request.greenlet = current_greenlet()
        request.context = PyContext_New()
        PyContext_Enter(request.context)
        request.inside = True
        try:
            try:
                response = self.service.dispatch(request)
                if not isinstance(response, Response):
                    raise TypeError(f"a handler must return a Response, not {type(response).__name__}")
                self.respond(request, <Response>response)
            except BaseException as error:
                self.fail(request, error)
        finally:
            request.greenlet = None
            request.inside = False
            PyContext_Exit(request.context)
        return 0

    cdef int fail(self, Request request, object error) except -1:
        """The handler or its response failed: answer if that is still possible, else cut."""
        call_closer(request)
        if self.fd < 0 or self.request is not request:
            return 0
        if isinstance(error, ClientDisconnected):
            log.debug("%s %s: %s", request.method, request.target, error)
            self.service.slot.data.disconnects += 1
            self.finish(request, True)
            return 0
        answer = error_for(request, error)
        self.service.slot.data.errors += answer.status >= 500
        if request.started and not request.head_pending:
            log.warning("the response to %s %s was cut (request %s)", request.method, request.target,
                        request.request_id)
            self.finish(request, True)
            return 0
        request.started = request.head_pending = request.overlong = False
        request.missing = 0
        request.head = None
        request.close_wanted = request.close_wanted or isinstance(error, (DeadlineExceeded, BodyError))
        try:
            self.respond(request, error_response(request, answer))
        except (OSError, ValueError, TypeError) as second:
            log.debug("%s: the error page did not get out: %s", self.address, second)
            self.finish(request, True)
        return 0

    # ---- bytes out --------------------------------------------------------------------------------

    cdef int plan_head(self, Request request, object status, object headers, int64_t length) except -1:
        """Write the response head into the scratch buffer and settle the framing."""
        cdef Service service = self.service
        cdef int64_t unread = request.body.unread()
        if type(headers) is not list:
            headers = list(headers)       # before the shared buffer is touched: iterating it may block
        request.plan.close = request.close_wanted or not request.keep_alive or service.draining or self.eof
        if unread > DRAIN or request.body.failure is not None or (unread < 0 and not self.rest_is_here(request)) or (unread and request.body.expect):
            request.plan.close = 1
        service.out.used = 0
        write_head(service.out, status, headers, &request.plan, request.minor, request.head_only, length,
                   service.date, service.server_field, request.request_id)
        request.started = True
        request.head_length = service.out.used
        request.promised = request.plan.length
        if request.body is not NO_BODY:
            # After the head of the final response, a 100 would be out of order.
            request.body.expect = False
        return 0

    cdef bint rest_is_here(self, Request request) except? True:
        """Does the buffer hold the rest of an unread chunked body?"""
        cdef Chunked decoder = request.body.decoder
        cdef size_t at = self.start, used = 0, found = 0
        cdef const char *piece = NULL
        cdef int verdict = 0
        while at < self.end:
            verdict = chunked_next(&decoder, self.buffer + at, self.end - at, &used, &piece, &found)
            at += used
            if verdict != 1:
                break
        return verdict == 2

    cdef int respond(self, Request request, Response response) except -1:
        """Send a response: at once where it fits, else parked with the reactor, else from this greenlet."""
        cdef object body = response.body
        cdef bytes data
        cdef FileBody part
        request.closer = response.close
        if self.request is not request:
            raise ClientDisconnected("the request was over before its handler was")
        if request.started:
            return self.send_stream(request, body)
        if type(body) is bytes:
            data = <bytes>body
            self.plan_head(request, response.status, response.headers, len(data))
            if request.plan.bodiless:
                return self.send_small(request, NULL, 0)
            if request.promised >= 0 and request.promised != len(data):
                data = self.fit(request, data)
            return self.send_bytes(request, data)
        if type(body) is FileBody:
            part = <FileBody>body
            if part.offset < 0 or part.count < 0:
                raise ValueError("a part of a file can't begin or end before the file does")
            self.plan_head(request, response.status, response.headers, part.count)
            if request.plan.bodiless:
                return self.send_small(request, NULL, 0)
            self.body_offset = part.offset
            self.body_left = part.count
            if request.promised >= 0 and request.promised < part.count:
                self.body_left = request.promised
            elif request.promised > part.count:
                request.missing = request.promised - part.count
            self.body_rest = part
            self.head_rest = self.service.out.getvalue()
            self.hand_over()
            return self.continue_sending()
        self.plan_head(request, response.status, response.headers, -1)
        self.hold_head(request)
        return self.send_stream(request, body)

    cdef int hand_over(self) except -1:
        """The rest of the response is the reactor's business; this greenlet is free."""
        self.reactor.enter(self, LIST_SEND, monotonic_ns())
        self.open_window(self.since_ns)
        return 0

    cdef int hold_head(self, Request request) except -1:
        """The head leaves with the first bytes of the body."""
        request.head = self.service.out.getvalue()
        request.head_pending = True
        return 0

    cdef bytes fit(self, Request request, bytes data):
        """The application promised another length: never more bytes than that, and no reuse after fewer.

        `finish` logs it: to log may block, and the head stands in a buffer that all share.
        """
        if len(data) > request.promised:
            request.overlong = True
            return data[:request.promised]
        request.missing = request.promised - len(data)
        return data

    cdef int send_bytes(self, Request request, bytes data) except -1:
        cdef Scratch out = self.service.out
        cdef ssize_t taken
        cdef size_t length = len(data), head = out.used
        if length <= SMALL:
            return self.send_small(request, PyBytes_AS_STRING(data), length)
        taken = self.try_send_two(out.data, head, PyBytes_AS_STRING(data), length)
        if taken < 0:
            taken = 0
        if <size_t>taken == head + length:
            self.finish(request, False)
            return 0
        if <size_t>taken < head:
            self.head_rest = out.data[taken:head]
            taken = <ssize_t>head
        self.body_rest = data
        self.body_offset = taken - head
        self.body_left = length - (taken - head)
        self.hand_over()
        return self.continue_sending()

    cdef int send_small(self, Request request, const char *data, size_t length) except -1:
        """Head and body in one send."""
        cdef Scratch out = self.service.out
        cdef ssize_t taken
        if length:
            out.put(data, length)
        taken = self.try_send(out.data, out.used, 0)
        if taken == <ssize_t>out.used:
            self.finish(request, False)
            return 0
        if taken < 0:
            taken = 0
        self.head_rest = out.data[taken:out.used]
        self.body_left = 0
        self.hand_over()
        return 0

    cdef int send_stream(self, Request request, object body) except -1:
        """Send a body of unknown extent piece by piece, as the peer takes them."""
        if not request.plan.bodiless:
            if type(body) is bytes:
                if body:
                    self.send_piece(request, <bytes>body)
            elif type(body) is FileBody:
                raise TypeError("a file can't follow what write() has sent")
            else:
                for piece in body:
                    if type(piece) is not bytes:
                        if not isinstance(piece, bytes):
                            raise TypeError(f"a body is made of bytes, not {type(piece).__name__}")
                        piece = bytes(piece)
                    if piece:
                        self.send_piece(request, <bytes>piece)
                        if request.overlong:
                            break
        if request.head_pending:
            self.flush_head(request)
        if request.plan.chunked and not request.plan.bodiless:
            self.send_all(b"0\r\n\r\n", 5)
        elif request.promised > 0 and not request.plan.bodiless:
            request.missing = request.promised
        self.finish(request, False)
        return 0

    cdef int flush_head(self, Request request) except -1:
        """A head without a body to leave with."""
        cdef bytes head = request.head
        request.head_pending = False
        request.head = None
        self.send_all(PyBytes_AS_STRING(head), len(head))
        return 0

    cdef int send_piece(self, Request request, bytes piece) except -1:
        """One piece of a stream, framed, with the head if that still waits."""
        cdef Scratch out = self.service.out
        cdef bytes rest
        cdef ssize_t taken
        cdef bytes head
        if request.plan.bodiless:
            return 0
        if request.promised >= 0:
            if len(piece) > request.promised:
                piece = self.fit(request, piece)
                if not piece and not request.head_pending:
                    return 0
            request.promised -= len(piece)
        # The handler's clock runs from piece to piece, not over the whole stream.
        request.clock_ns = monotonic_ns()
        self.client_wait_ns = 0
        self.give_way()
        out.used = 0
        if request.head_pending:
            head = request.head
            request.head_pending = False
            request.head = None
            out.put(PyBytes_AS_STRING(head), len(head))
        if request.plan.chunked:
            out.put_size(len(piece))
        if len(piece) > SMALL:
            return self.send_large_piece(request, piece)
        out.put(PyBytes_AS_STRING(piece), len(piece))
        if request.plan.chunked:
            out.put(b"\r\n", 2)
        taken = self.try_send(out.data, out.used, 0)
        if taken == <ssize_t>out.used:
            return 0
        rest = out.data[taken if taken > 0 else 0:out.used]
        return self.send_all(PyBytes_AS_STRING(rest), len(rest))

    cdef int send_large_piece(self, Request request, bytes piece) except -1:
        """The scratch buffer holds what stands before the piece."""
        cdef Scratch out = self.service.out
        cdef size_t before = out.used
        cdef bytes rest
        cdef ssize_t taken = self.try_send_two(out.data, before, PyBytes_AS_STRING(piece), len(piece))
        if taken < 0:
            taken = 0
        if <size_t>taken < before:
            rest = out.data[taken:before]
            self.send_all(PyBytes_AS_STRING(rest), len(rest))
            taken = before
        self.send_all(PyBytes_AS_STRING(piece) + (taken - before), len(piece) - (taken - before))
        if request.plan.chunked:
            self.send_all(b"\r\n", 2)
        return 0

    cdef int continue_sending(self) except -1:
        """The handler is done; the peer takes the rest of its response. Costs no greenlet."""
        cdef Request request = self.request
        cdef int verdict
        try:
            verdict = self.send_rest()
        except (OSError, EOFError) as error:
            log.log(logging.DEBUG if isinstance(error, ClientDisconnected) else logging.ERROR,
                    "%s %s: %s (request %s)", request.method, request.target, error, request.request_id)
            self.finish(request, True)
            return 0
        if verdict == 1:
            self.finish(request, False)
        elif verdict == 2:
            self.reactor.make_ready(self)
        return 0

    # ---- the end of a request ---------------------------------------------------------------------

    cdef void finish(self, Request request, bint cut) noexcept:
        """The response has ended, one way or the other. Does its work once per request."""
        if request.over:
            return
        request.over = True
        if request.overlong or request.missing:
            request.plan.close = 1
            log_misfit(request)
        if request.closer is not None:
            self.end_body(request)
        if self.waiting:
            # A greenlet of the application's own still reads or writes: it must not get at the next request.
            self.reactor.wake(self)
            cut = True
        self.record(request)
        self.request = None
        if self.fd >= 0:
            self.after(request, cut)
        # The environ refers to the request (early hints): without this, only the collector could free them.
        request.environ = None
        request.connection = None
        if request.body is not NO_BODY:
            request.body.over = True
            request.body.stream = None
            request.body.failure = None   # its traceback leads back here

    cdef void end_body(self, Request request) noexcept:
        """The closer is the application's code and may block: until it returns, the request still runs."""
        cdef object me = current_greenlet()
        if request.greenlet is None:
            request.greenlet = me
            request.clock_ns = monotonic_ns()
            self.client_wait_ns = 0
            self.reactor.enter(self, LIST_RUN, request.clock_ns)
            call_closer(request)
            request.greenlet = None
        elif request.greenlet is me:
            call_closer(request)
        # Else we are closed while the handler is at work: its own end calls the closer.

    cdef void record(self, Request request) noexcept:
        """Count and log."""
        cdef Service service = self.service
        cdef int64_t now = monotonic_ns()
        cdef int64_t sent = self.sent_total - request.sent_before
        cdef dict environ = request.environ
        cdef object address
        service.slot.data.in_flight -= 1
        service.slot.data.bytes_in += request.received + request.body.total
        service.slot.count_response(request.plan.status if request.started else 499, sent, now - request.begun_ns)
        if service.log_entries is None:
            return
        sent -= request.head_length
        address = environ.get("REMOTE_ADDR") or self.address
        service.log_entries.append((
            service.epoch + now * 1e-9, now - request.begun_ns, address, request.method, request.target,
            HTTP_1_1 if request.minor else HTTP_1_0, request.plan.status if request.started else 499,
            sent if sent > 0 else 0, environ.get("HTTP_REFERER"), environ.get("HTTP_USER_AGENT"),
            environ.get("HTTP_HOST"), request.request_id, environ if service.log_environ else None))
        if len(service.log_entries) >= LOG_BATCH:
            service.access_log.flush()

    cdef void after(self, Request request, bint cut) noexcept:
        """What becomes of the connection (RFC 9112 9.3, 9.6)."""
        cdef int64_t now
        if cut or self.hung_up:
            # A stream that only the connection's end delimits must not look whole.
            self.close(self.rude or cut and request.started and request.plan.length < 0 and not request.plan.chunked)
            return
        if request.plan.close:
            if self.readable or self.end > self.start or not request.body.done or request.body is NO_BODY \
                    and request.close_wanted:
                self.linger()
            else:
                self.close(False)
            return
        if not request.body.skip():
            if request.body.chunked or request.body.failure is not None:
                self.linger()
                return
            self.skip = request.body.remaining
        now = monotonic_ns()
        self.reactor.enter(self, LIST_IDLE, now)
        if self.end > self.start or self.readable:
            self.reactor.make_ready(self)
        else:
            self.drop_buffer()

    cdef void linger(self) noexcept:
        """Half-close, then read and drop what still comes, so that the answer isn't lost in a reset."""
        shutdown(self.fd, SHUT_WR)
        self.drop_buffer()
        self.moved = 0
        self.reactor.enter(self, LIST_LINGER, monotonic_ns())
        if self.eof:
            self.close(False)
        elif self.readable:
            self.reactor.make_ready(self)

    cdef int discard(self) except -1:
        """Lingering: drop bytes until the peer's end, the bound or the time limit."""
        cdef ssize_t got
        while self.moved < DRAIN:
            got = self.receive_into(self.service.input, INPUT)
            if got < 0:
                return 0
            if got == 0:
                break
        self.close(False)
        return 0

    cdef int expire(self) except -1:
        """The engine's clock ran out on this connection."""
        cdef int number = self.list_number
        self.expired = 0
        if number == LIST_IDLE and not self.skip and (self.readable or self.end > self.start):
            return self.receive()         # its next request came at the last moment
        if number == LIST_HEAD or number == LIST_BODY:
            self.service.slot.data.timeouts += 1
            if number == LIST_HEAD and self.end == self.start:
                self.close(False)
                return 0
            # Once more, for the log line: method and target, if they are there.
            read_head(self.buffer + self.start, self.end - self.start, self.service.max_head, &self.service.head)
            return self.refuse(408, "the request took too long to arrive")
        if number == LIST_SEND:
            self.service.slot.data.timeouts += 1
            log.debug("%s: too slow in taking its response", self.address)
            # With a reset: what the kernel still holds for it would stay there for minutes.
            self.close(True)
        elif number == LIST_IDLE or number == LIST_LINGER:
            self.close(False)
        return 0

    cdef void close(self, bint reset) noexcept:
        """Close the connection; a request in progress is over."""
        cdef Request request = self.request
        if self.fd < 0:
            return
        self.service.slot.data.connections -= 1
        self.close_descriptor(reset)
        if request is not None:
            self.finish(request, True)

    def farewell(self):
        """The server goes: close, and say whose request was open."""
        if self.request is not None:
            log.warning("%s %s from %s was cut by the shutdown (request %s)", self.request.method,
                        self.request.target, self.address, self.request.request_id)
        self.close(False)

    cdef int check(self, int64_t now, int64_t grace_ns, double receive_rate, double send_rate) except -1:
        """From the hub's clock, while a handler runs: is it or its client too slow?"""
        cdef Request request = self.request
        if self.waiting:
            if self.too_slow(now, grace_ns, receive_rate if self.waiting == WAIT_READ else send_rate):
                self.service.slot.data.timeouts += 1
                if self.waiting == WAIT_READ:
                    error = BodyError("the request body arrives too slowly")
                    error.status = 408
                else:
                    error = ClientDisconnected("the client is too slow in taking its response")
                    self.rude = 1         # what the kernel still holds for it would stay there for minutes
                self.greenlet.throw(error)
        elif request is not None and request.greenlet is not None \
                and now - request.clock_ns - self.client_wait_ns > request.timeout_ns:
            # Once more after another timeout, should the handler swallow this.
            request.clock_ns = now
            self.client_wait_ns = 0
            self.service.slot.data.timeouts += 1
            request.greenlet.throw(DeadlineExceeded("timeout", request.timeout_ns / 1e9))
        return 0

    cdef bint too_slow(self, int64_t now, int64_t grace_ns, double rate) noexcept:
        """Did the peer move less than `rate` bytes a second over the last grace period?"""
        cdef int64_t progress = self.moved
        cdef int64_t taken
        if now - self.window_ns < grace_ns:
            return False
        if self.list_number == LIST_SEND or self.waiting == WAIT_WRITE:
            # What the peer acknowledged, not what the kernel's buffer swallowed.
            taken = self.sent_total - self.unacknowledged()
            progress = taken - self.taken_before
            self.taken_before = taken
        if progress < rate * (now - self.window_ns) * 1e-9:
            return True
        self.open_window(now)
        return False


cdef void log_misfit(Request request) noexcept:
    if request.overlong:
        log.error("%s %s: the application sent more than its Content-Length (request %s)", request.method,
                  request.target, request.request_id)
    else:
        log.error("%s %s: the application sent %d bytes less than its Content-Length (request %s)", request.method,
                  request.target, request.missing, request.request_id)


cdef void call_closer(Request request) noexcept:
    """close() of the application's iterable: once, in the request's context, and never the end of the server."""
    cdef object closer = request.closer
    cdef bint inside = request.inside or request.context is None
    if closer is None:
        return
    request.closer = None
    try:
        if not inside:
            PyContext_Enter(request.context)
        try:
            closer()
        finally:
            if not inside:
                PyContext_Exit(request.context)
    except BaseException:
        log.exception("close() of the response to %s %s failed (request %s)", request.method, request.target,
                      request.request_id)


cdef object error_for(Request request, object error):
    """What the client hears of an exception; what only we should know goes to the log."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, BodyError):
        return HTTPError(getattr(error, "status", 400), str(error))
    if isinstance(error, DeadlineExceeded):
        log.error("%s %s: %s; the handler stood here (request %s)", request.method, request.target, error,
                  request.request_id, exc_info=error)
        return HTTPError(503, "the request took too long")
    log.error("%s %s failed (request %s)", request.method, request.target, request.request_id, exc_info=error)
    return HTTPError(500, "the server failed to answer this request")


cdef Response error_response(Request request, object error):
    content_type, page = error_page(error.status, error.code, error.message, request.request_id,
                                    request.environ.get("HTTP_ACCEPT", ""))
    headers = [("Content-Type", content_type), ("Cache-Control", "no-store"), *error.headers]
    return Response(f"{error.status} {reason(error.status)}", headers, page)
