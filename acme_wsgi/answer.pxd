# The way out: the half of a connection that answers.

from libc.stdint cimport int64_t, uint8_t

from acme_wsgi.http.writer cimport Response
from acme_wsgi.sending cimport Sending
from acme_wsgi.service cimport Service

cdef class Answering(Sending)    # the request refers to it

from acme_wsgi.request cimport Request


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


cdef void call_closer(Request request) noexcept
