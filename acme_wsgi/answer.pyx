# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The way out: from the response that a handler returned to the bytes on the wire, and the end of the request.

    plan_head -> respond -> send_... -> (parked while the client takes it) -> finish -> after

Complete responses (bytes, files) are sent without a greenlet from the moment the socket takes no more; streams are
sent from the handler's own, which is their backpressure, except for what they let us hold (Response.buffer).

Law: this file decides how a response is framed and what becomes of the connection after it. It never looks at
bytes that come in, except to drop them.
"""

import logging

from cpython.bytes cimport PyBytes_AS_STRING

from acme_wsgi.errors import ClientDisconnected

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.chunked cimport Chunked, chunked_next
from acme_wsgi.http.writer cimport FileBody, Parts, Prepared, Scratch, write_head
from acme_wsgi.reactor cimport running
from acme_wsgi.request cimport HTTP_1_0, HTTP_1_1, NO_BODY
from acme_wsgi.sending cimport ALL_OUT, LAST_CHUNK, TURN_OVER, Sending, Sent
from acme_wsgi.service cimport INPUT, LIST_IDLE, LIST_LINGER, LIST_QUEUE, LIST_RUN, LIST_SEND, LOG_BATCH, grant

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int fd, int how)
    int SHUT_WR, MSG_MORE

log = logging.getLogger("acme.answer")

cdef enum:
    SMALL = 16384            # a body up to this size is copied behind its head
    DRAIN = 262144           # an unread body up to this size is read and dropped, a larger one ends the connection


cdef class Answering(Sending):
    """A connection as far as it answers."""

    # ---- bytes out --------------------------------------------------------------------------------

    cdef int plan_head(self, Request request, object status, object headers, int64_t length) except -1:
        """Write the response head into the scratch buffer and settle the framing."""
        cdef Service service = self.service
        cdef int64_t unread = request.body.unread()
        if type(headers) is not list and type(headers) is not Prepared:
            headers = list(headers)       # before the shared buffer is touched: iterating it may block
        request.plan.close = request.close_wanted or not request.keep_alive or service.draining or self.eof
        if request.body.failure is not None or (unread and request.body.expect) \
                or not request.reads_on and (unread > DRAIN or unread < 0 and not self.rest_is_here(request)):
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
        request.closer = response.close
        if self.request is not request:
            raise ClientDisconnected("the request was over before its handler was")
        if request.started:
            if response.buffer > 0:
                request.hold = <size_t>response.buffer
            return self.send_stream(request, body)
        if type(body) is bytes:
            data = <bytes>body
            self.plan_head(request, response.status, response.headers, len(data))
            if request.plan.bodiless:
                return self.send_small(request, NULL, 0)
            if request.promised >= 0 and request.promised != len(data):
                data = self.fit(request, data)
            return self.send_bytes(request, data)
        if type(body) is FileBody or type(body) is Parts:
            self.plan_head(request, response.status, response.headers, length_of(body))
            if request.plan.bodiless:
                return self.send_small(request, NULL, 0)
            return self.send_parts(request, body)
        self.plan_head(request, response.status, response.headers, -1)
        self.hold_head(request)
        if response.buffer > 0:
            request.hold = <size_t>response.buffer
        return self.send_stream(request, body)

    cdef int hand_over(self) except -1:
        """The rest of the response is the reactor's business; this greenlet is free."""
        self.reactor.enter(self, LIST_SEND, monotonic_ns())
        self.open_window(self.since_ns)
        if self.reactor.lists[LIST_QUEUE].length:
            grant(self.reactor, self.service)
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
        self.set_body(data)
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

    cdef int send_parts(self, Request request, object body) except -1:
        """A file or several pieces, behind the head that stands in the scratch buffer."""
        cdef Scratch out = self.service.out
        cdef ssize_t taken
        if type(body) is Parts:
            if request.promised != (<Parts>body).count:
                raise ValueError("a body of several parts has the length of its parts")
            self.more = (<Parts>body).pieces[::-1]
            self.body_left = 0
        else:
            self.set_body(body)
            if 0 <= request.promised < self.body_left:
                self.body_left = request.promised
            elif request.promised > self.body_left:
                request.missing = request.promised - self.body_left
        taken = self.try_send(out.data, out.used, MSG_MORE if self.body_left or self.more else 0)
        if taken < <ssize_t>out.used:
            self.head_rest = out.data[taken if taken > 0 else 0:out.used]
        self.hand_over()
        return self.continue_sending()

    cdef int send_stream(self, Request request, object body) except -1:
        """Send a body of unknown extent piece by piece, as the peer takes them."""
        if not request.plan.bodiless:
            if type(body) is bytes:
                if body:
                    self.send_piece(request, <bytes>body)
            elif type(body) is FileBody or type(body) is Parts:
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
                    elif request.hold and request.head_pending:
                        self.flush_head(request)      # the source has nothing yet, but its head shall not wait
        if request.head_pending:
            self.flush_head(request)
        if request.plan.chunked and not request.plan.bodiless:
            if request.hold:
                request.hold += LAST_CHUNK            # the end of what could all be held never waits
            self.put_out(request, b"0\r\n\r\n", LAST_CHUNK)
        elif request.promised > 0 and not request.plan.bodiless:
            request.missing = request.promised
        if self.held is not None:
            return self.hand_over()       # its event continues it
        self.finish(request, False)
        return 0

    cdef int put_out(self, Request request, const char *data, size_t length) except -1:
        """Send bytes of a stream, waiting for the client as the response wants it. `data` must stay valid."""
        if request.hold:
            return self.send_or_hold(data, length, request.hold)
        return self.send_all(data, length)

    cdef int flush_head(self, Request request) except -1:
        """A head without a body to leave with."""
        cdef bytes head = request.head
        request.head_pending = False
        request.head = None
        self.put_out(request, PyBytes_AS_STRING(head), len(head))
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
        taken = self.try_send(out.data, out.used, 0) if self.held is None else 0
        if taken == <ssize_t>out.used:
            return 0
        rest = out.data[taken if taken > 0 else 0:out.used]
        return self.put_out(request, PyBytes_AS_STRING(rest), len(rest))

    cdef int send_large_piece(self, Request request, bytes piece) except -1:
        """The scratch buffer holds what stands before the piece."""
        cdef Scratch out = self.service.out
        cdef size_t before = out.used
        cdef bytes rest
        cdef ssize_t taken = 0
        if self.held is None:
            taken = self.try_send_two(out.data, before, PyBytes_AS_STRING(piece), len(piece))
        if taken < 0:
            taken = 0
        if <size_t>taken < before:
            rest = out.data[taken:before]
            self.put_out(request, PyBytes_AS_STRING(rest), len(rest))
            taken = before
        self.put_out(request, PyBytes_AS_STRING(piece) + (taken - before), len(piece) - (taken - before))
        if request.plan.chunked:
            self.put_out(request, b"\r\n", 2)
        return 0

    cdef int continue_sending(self) except -1:
        """The handler is done; the peer takes the rest of its response. Costs no greenlet."""
        cdef Request request = self.request
        cdef Sent sent
        try:
            sent = self.send_rest()
        except (OSError, EOFError) as error:
            log.log(severity(error), "%s %s: %s (request %s)", request.method, request.target, error,
                    request.request_id)
            self.finish(request, True)
            return 0
        if sent == ALL_OUT:
            self.finish(request, False)
        elif sent == TURN_OVER:
            self.reactor.make_ready(self)
        return 0

    cdef int flush_running(self) except -1:
        """The handler is at work, and the client may take something of what is held for it."""
        try:
            self.flush_held()
        except OSError as error:
            # The handler hears of it in its next write.
            log.debug("%s: %s", self.address, error)
        return 0

    # ---- the end of a request ---------------------------------------------------------------------

    cdef void finish(self, Request request, bint cut) noexcept:
        """The response has ended, one way or the other. Does its work once per request."""
        if request.over:
            return
        request.over = True
        if self.ears is not None:
            self.ears.parted(self, cut)
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
        request.on_leave = None
        request.environ = None
        request.connection = None
        if request.body is not NO_BODY:
            request.body.over = True
            request.body.stream = None
            request.body.failure = None   # its traceback leads back here
        if self.reactor.lists[LIST_QUEUE].length:
            grant(self.reactor, self.service)

    cdef void end_body(self, Request request) noexcept:
        """The closer is the application's code and may block: until it returns, the request still runs."""
        cdef object me = running()
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
        self.reactor.seen_ns = now
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
        if cut or self.hung_up:
            # A stream that only the connection's end delimits must not look whole.
            self.close(self.rude or cut and request.started and request.plan.length < 0 and not request.plan.chunked)
            return
        if request.plan.close:
            if self.readable or self.end > self.start or not request.body.done or request.body is NO_BODY \
                    and request.close_wanted or self.service.draining and request.keep_alive:
                self.linger()
            else:
                self.close(False)
            return
        if not request.body.skip():
            if request.body.chunked or request.body.failure is not None or request.body.remaining > DRAIN:
                self.linger()
                return
            self.skip = request.body.remaining
        self.reactor.enter(self, LIST_IDLE, self.reactor.seen_ns)     # `record` has just looked
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

    cdef void part(self) noexcept:
        """Let the peer see the end at once, and no reset for what it has sent before it could know."""
        cdef int rounds
        shutdown(self.fd, SHUT_WR)
        try:
            for rounds in range(DRAIN // INPUT):
                if self.receive_into(self.service.input, INPUT) <= 0:
                    break
        except OSError as error:
            log.debug("%s: %s", self.address, error)
        self.close(False)

    cdef void close(self, bint reset) noexcept:
        """Close the connection; a request in progress is over."""
        cdef Request request = self.request
        if self.fd < 0:
            return
        self.service.slot.data.connections -= 1
        self.close_descriptor(reset)
        if request is not None:
            self.finish(request, True)


cdef int severity(object error):
    """How bad it is that a response could not be sent to its end: clients leave, and files are rewritten."""
    if isinstance(error, ClientDisconnected):
        return logging.DEBUG
    return logging.WARNING if isinstance(error, EOFError) else logging.ERROR


cdef int64_t length_of(object body) except -1:
    """Bytes of a FileBody or of Parts."""
    if type(body) is Parts:
        return (<Parts>body).count
    if (<FileBody>body).offset < 0 or (<FileBody>body).count < 0:
        raise ValueError("a part of a file can't begin or end before the file does")
    return (<FileBody>body).count


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
