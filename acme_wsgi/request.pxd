# One request, as the pipeline and the handlers see it.

from libc.stdint cimport int64_t, uint64_t

from acme_wsgi.body cimport Body
from acme_wsgi.http.writer cimport Plan, Response

cdef class Request              # the connection refers to it

from acme_wsgi.answer cimport Answering


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
    cdef public bint reads_on    # the handler reads the rest of the body while it answers
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

cdef Response error_response(Request request, object error)
