# What all connections of a worker share, and who of them may run next.

from libc.stdint cimport int64_t, uint64_t

from acme_wsgi.http.h1 cimport Head
from acme_wsgi.http.writer cimport Scratch
from acme_wsgi.reactor cimport Reactor
from acme_wsgi.scoreboard cimport Slot

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


cdef void grant(Reactor reactor, Service service) noexcept
