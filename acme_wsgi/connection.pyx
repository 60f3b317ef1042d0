# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The story of a request, in the order it travels; from `respond` on it is told in answer.pyx.

    receive -> take -> (admit) -> begin -> run -> (respond -> finish -> after) -> parked, or closed

A connection holds a greenlet only from `run` to the end of `respond`, and only while its handler blocks or
streams. Heads that trickle in, small bodies that trickle in, and finished responses that a slow client takes
its time with are all parked in the reactor's lists, where the engine's clock watches their rates.

Law: this file decides what bytes that come in mean for their connection. It knows neither routes nor
configuration files nor other connections.
"""

import logging
import re
import sys

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from acme_wsgi.errors import BodyError, ClientDisconnected, DeadlineExceeded, HTTPError
from acme_wsgi.http import proxy_protocol

from acme_wsgi.admission cimport Waiting
from acme_wsgi.answer cimport call_closer
from acme_wsgi.body cimport Body
from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.chunked cimport Chunked, chunked_next, chunked_start
from acme_wsgi.http.environ cimport ascii, latin1, method_name, put_fields
from acme_wsgi.http.grammar cimport same_name
from acme_wsgi.http.h1 cimport Head, normalise_path, read_head
from acme_wsgi.http.writer cimport Response, Tunnel
from acme_wsgi.reactor cimport WAIT_READ, WAIT_WRITE, running
from acme_wsgi.request cimport HTTP_1_0, HTTP_1_1, NO_BODY, error_response
from acme_wsgi.scoreboard cimport SlotData
from acme_wsgi.service cimport (
    INPUT,
    LIST_BODY,
    LIST_GRANTED,
    LIST_HEAD,
    LIST_IDLE,
    LIST_LINGER,
    LIST_QUEUE,
    LIST_RUN,
    LIST_SEND,
    LIST_TUNNEL,
    Service,
)
from acme_wsgi.tunnel cimport Pump, open_tunnel

cdef extern from "Python.h":
    object PyContext_New()
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyDict_Copy(object mapping)
    int PyGC_Disable()
    int PyGC_Enable()

log = logging.getLogger("acme.connection")

cdef enum:
    PREBUFFER = 65536        # a body up to this size is waited for without a greenlet
    ROOM = 8192              # grown by at least this much when a head comes in parts

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")

# Interned like the names that Cython interns by itself: the copied environ finds them without comparing.
cdef str WSGI_INPUT = sys.intern("wsgi.input")
cdef str WSGI_EARLY_HINTS = sys.intern("wsgi.early_hints")
cdef str ACME_REQUEST_ID = sys.intern("acme.request_id")


cdef class Connection(Waiting):
    """One client."""

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
            if self.ended and self.request is not None and self.request.on_leave is not None:
                self.request.on_leave()
            # The handler will find out when it reads or writes; what it lets us hold is ours to send.
            return self.flush_running() if self.held is not None else 0
        if self.list_number == LIST_SEND:
            return self.continue_sending()
        if self.list_number == LIST_LINGER:
            return self.discard()
        if self.list_number == LIST_QUEUE:
            return self.turn_away() if self.ended else 0
        if self.list_number == LIST_TUNNEL:
            self.ears.heard(self)
            return 0
        return self.receive()

    # ---- bytes in ---------------------------------------------------------------------------------

    cdef int receive(self) except -1:
        cdef ssize_t got
        cdef size_t pending = self.end - self.start
        if pending and (self.list_number == LIST_IDLE or self.list_number == LIST_GRANTED):
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
        if (self.reactor.waiting_ns or service.max_concurrency) and not self.admit(data, length, fresh):
            return 0
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
            self.port_text = None
            self.trusted = self.service.trusted.trusts(self.address)
        return found.consumed

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
            self.forget_scan()
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
            if self.port_text is None:
                self.port_text = str(self.port)
            environ["REMOTE_PORT"] = self.port_text
        else:
            environ["REMOTE_ADDR"] = ""
        environ[ACME_REQUEST_ID] = request.request_id
        self.request = request
        request.begun_ns = request.clock_ns = self.turn_ns = self.reactor.seen_ns = monotonic_ns()
        self.client_wait_ns = self.paused_ns = 0
        service.slot.data.in_flight += 1
        tell_request(service.slot.data, head)
        self.reactor.enter(self, LIST_RUN, request.begun_ns)
        return request

    def believe(self, Request request):
        """What a trusted proxy says of the client counts."""
        cdef dict environ = request.environ
        given = environ.get("HTTP_X_REQUEST_ID")
        if given is not None and _REQUEST_ID.match(given):
            request.request_id = environ[ACME_REQUEST_ID] = given
        # Whom we believe, and that we do: a proxy route adds this address to the chain that it passes on.
        environ["acme.peer"] = self.address
        self.service.trusted.apply(environ, self.address)

    cdef int run(self, Request request) except -1:
        """Run the handler and send what it returns, in a context of its own (PEP 567)."""
        cdef object response
        request.greenlet = running()
        request.context = PyContext_New()
        PyContext_Enter(request.context)
        request.inside = True
        try:
            try:
                response = self.service.dispatch(request)
                if not isinstance(response, Response):
                    raise TypeError(f"a handler must return a Response, not {type(response).__name__}")
                if type((<Response>response).body) is Tunnel:
                    open_tunnel(self, request, <Response>response)
                else:
                    self.respond(request, <Response>response)
                if request.over and request.closer is not None:
                    # We were closed while the response waited for an I/O thread to take its first reading.
                    call_closer(request)
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

    # ---- the clock --------------------------------------------------------------------------------

    cdef int expire(self) except -1:
        """The engine's clock ran out on this connection."""
        cdef int number = self.list_number
        self.expired = 0
        if number == LIST_QUEUE or number == LIST_GRANTED:
            if self.overdue():
                return self.turn_away()
            return self.receive() if number == LIST_GRANTED else 0
        if number == LIST_IDLE and not self.skip or number == LIST_HEAD and self.end == self.start:
            return self.last_look()
        if number == LIST_HEAD or number == LIST_BODY:
            self.service.slot.data.timeouts += 1
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
        elif number == LIST_TUNNEL:
            return (<Pump>self.ears).expire()
        return 0

    cdef int last_look(self) except -1:
        """It is to be closed for having been silent. Its next request may have come at the last moment."""
        cdef ssize_t got
        if self.end > self.start:
            return self.receive()
        got = self.receive_into(self.service.input, INPUT)
        if got > 0:
            return self.take(self.service.input, got, True)
        if self.service.draining and got < 0:
            # A client that sends just now shall see the end of a connection, never a reset.
            self.linger()
            return 0
        self.service.slot.data.timeouts += self.list_number == LIST_HEAD and not self.service.draining
        self.close(False)
        return 0

    def farewell(self):
        """The server goes: close, and say whose request was open."""
        if self.request is not None:
            log.warning("%s %s from %s was cut by the shutdown (request %s)", self.request.method,
                        self.request.target, self.address, self.request.request_id)
        elif self.list_number == LIST_QUEUE or self.list_number == LIST_GRANTED:
            self.turn_away()
        elif self.fd >= 0 and self.list_number != LIST_SEND:
            self.part()
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
        elif self.held is not None and self.too_slow(now, grace_ns, send_rate):
            self.service.slot.data.timeouts += 1
            self.rude = 1
            self.break_off()
            if request is not None and request.greenlet is not None:
                request.greenlet.throw(ClientDisconnected("the client is too slow in taking its response"))
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
        if now - self.window_ns < grace_ns or self.load is not None:
            return False
        if self.list_number == LIST_SEND or self.waiting == WAIT_WRITE or self.held is not None and not self.waiting:
            # What the peer acknowledged, not what the kernel's buffer swallowed.
            taken = self.sent_total - self.unacknowledged()
            progress = taken - self.taken_before
            self.taken_before = taken
        if progress < rate * (now - self.window_ns) * 1e-9:
            return True
        self.open_window(now)
        return False


cdef inline void tell_request(SlotData *slot, Head *head) noexcept:
    """Method and target, as they stand in the head, for who wonders what a worker does that stands still."""
    cdef size_t length = <size_t>(head.target + head.target_length - head.method)
    if length > sizeof(slot.current):
        length = sizeof(slot.current)
    memcpy(slot.current, head.method, length)
    slot.current_length = <uint16_t>length


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
