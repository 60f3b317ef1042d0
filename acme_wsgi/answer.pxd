# The way out: what a worker's connections share, the request, and the half of a connection that answers.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from acme_wsgi.body cimport Body
from acme_wsgi.http.h1 cimport Head
from acme_wsgi.http.writer cimport Plan, Response, Scratch
from acme_wsgi.reactor cimport Reactor
from acme_wsgi.scoreboard cimport Slot
from acme_wsgi.sending cimport Sending

cdef enum:
    # Where a connection stands; each is a timed list of the reactor. docs/lifecycle.md draws this table.
    LIST_HEAD = 1       # fresh, or a part of a head is here
    LIST_IDLE = 2       # between two requests
    LIST_BODY = 3       # the head is here, a small body is still coming
    LIST_RUN = 4        # a handler runs
    LIST_SEND = 5       # the handler is done, the peer still takes the response
    LIST_LINGER = 6     # answered and half-closed, waiting for the peer's end
    LIST_QUEUE = 7      # the request is here, but the worker runs as many as it may
    LIST_GRANTED = 8    # it may run: its turn comes as soon as that of those before it
    # 9 is the reactor's own
    LIST_TUNNEL = 10    # it was answered with 101: bytes pass to another server and back


cdef enum:
    INPUT = 65536       # the worker's receive buffer, bytes
    LOG_BATCH = 128     # so many lines of the access log are handed over at once


cdef class Service:
    # What all connections of a worker share.
    cdef object dispatch
    cdef object access_log
    cdef list log_entries
    cdef bint log_environ
    cdef object trusted
    cdef Slot slot
    cdef Scratch out
    cdef char *input
    cdef char *path
    cdef Head head
    cdef char date[32]
    cdef double epoch            # time.time() - monotonic
    cdef uint64_t id_state
    cdef uint64_t id_stream
    cdef size_t max_head
    cdef int64_t max_body        # of a route without its own
    cdef int64_t largest_body    # of any route
    cdef int64_t timeout_ns
    cdef bint server_field
    cdef bint draining
    cdef long max_concurrency    # 0 = any
    cdef long queue_size
    cdef int64_t queue_ns        # longest time that a request waits to be started
    cdef bytes shed_head         # of the answer to a request that would have waited longer
    cdef long shed_untold        # so many of them are not in the error log yet,
    cdef long gone_untold        # and so many whose clients had left
    cdef str make_id(self)


cdef class Answering(Sending):
    cdef Service service
    cdef str address
    cdef uint8_t rude            # it ends with a reset
    cdef int64_t skip            # bytes of an unread body still to be dropped
    cdef Request request

    cdef int respond(self, Request request, Response response) except -1
    cdef int send_small(self, Request request, const char *data, size_t length) except -1
    cdef int send_parts(self, Request request, object body) except -1
    cdef int send_stream(self, Request request, object body) except -1
    cdef int put_out(self, Request request, const char *data, size_t length) except -1
    cdef int send_piece(self, Request request, bytes piece) except -1
    cdef int flush_head(self, Request request) except -1
    cdef int plan_head(self, Request request, object status, object headers, int64_t length) except -1
    cdef int continue_sending(self) except -1
    cdef int flush_running(self) except -1
    cdef void finish(self, Request request, bint cut) noexcept
    cdef void end_body(self, Request request) noexcept
    cdef void record(self, Request request) noexcept
    cdef void after(self, Request request, bint cut) noexcept
    cdef void linger(self) noexcept
    cdef int discard(self) except -1
    cdef void part(self) noexcept
    cdef void close(self, bint reset) noexcept
    cdef bint rest_is_here(self, Request request) except? True
    cdef int hand_over(self) except -1
    cdef int hold_head(self, Request request) except -1
    cdef bytes fit(self, Request request, bytes data)
    cdef int send_bytes(self, Request request, bytes data) except -1
    cdef int send_large_piece(self, Request request, bytes piece) except -1


cdef class Request:
    cdef Answering connection
    cdef readonly dict environ
    cdef readonly str method
    cdef readonly str path
    cdef readonly str request_id
    cdef dict _params
    cdef str target
    cdef readonly Body body
    cdef readonly int minor      # the client's version is HTTP/1.minor
    cdef readonly bint head_only
    cdef bint keep_alive
    cdef bint close_wanted
    cdef readonly bint started
    cdef bint head_pending       # planned, not sent: it leaves with the first bytes of the body
    cdef bytes head
    cdef Plan plan
    cdef int64_t promised        # body bytes that may still be sent; -1 = any
    cdef size_t hold             # so many bytes of a stream may wait for a slow client; 0: the stream waits for it
    cdef int64_t sent_before
    cdef int64_t head_length
    cdef public object on_start  # asked by `start`: (status, headers) -> (headers, bytes -> bytes or None)
    cdef public object on_leave  # called when the client's end is seen while the handler waits for something else
    cdef object closer
    cdef object context
    cdef object greenlet
    cdef int64_t begun_ns
    cdef int64_t timeout_ns
    cdef int64_t clock_ns        # since when the handler's time runs
    cdef uint64_t received
    cdef bint overlong           # it sent more than it promised
    cdef int64_t missing         # bytes it promised and did not send
    cdef bint over               # it has ended, or is about to
    cdef bint inside             # its context is entered

cdef Body NO_BODY            # of every request without one
cdef str HTTP_1_1
cdef str HTTP_1_0

cdef void call_closer(Request request) noexcept
cdef void grant(Reactor reactor, Service service) noexcept
cdef Response error_response(Request request, object error)
