# A worker's connections to backends.

from libc.stdint cimport int64_t

from acme_wsgi.upstream.link cimport Link


cdef class Place:
    cdef Pool pool
    cdef readonly Shelf shelf
    cdef object greenlet                 # who waits
    cdef int64_t deadline_ns
    cdef int outcome
    cdef bint left                       # nobody wants the connection any more
    cdef Link link                       # whose turn it is: their connection, None if they are to make one
    cdef Link making                     # the connection that is being made for it

    cdef bint has_waited(self) noexcept
    cdef int decide(self, int outcome, Link link) except -1


cdef class Pool:
    cdef readonly long limit             # most connections, all backends together
    cdef readonly long waiting_limit     # most requests that wait for one
    cdef readonly bint reuse
    cdef readonly int64_t idle_ns
    cdef readonly long min_idle
    cdef readonly int slot               # of this worker on the Board
    cdef readonly long open              # connections, those that are being made included
    cdef object waiters                  # Places, who waits for longest comes first
    cdef readonly list shelves
    cdef object hub
    cdef object timer

    cdef int watch(self) except -1
    cdef Link wait_in_line(self, Shelf shelf, Place place, int64_t deadline_ns)
    cdef Place first_in_line(self)


cdef class Shelf:
    cdef readonly Pool pool
    cdef readonly object peer            # board.Peer
    cdef readonly object target          # target.Target
    cdef object resolver
    cdef object context                  # ssl.SSLContext, None: not TLS
    cdef readonly list idle              # the one used last comes last
    cdef readonly set busy

    cpdef Link acquire(self, int64_t queue_deadline_ns, int64_t connect_ns, bint fresh=*,
                       int64_t until_ns=*, Place place=*)
    cdef Link take(self, Link link)
    cdef Link dial(self, tuple address, int64_t deadline_ns, Place place)
    cpdef int release(self, Link link, bint reusable) except -1
