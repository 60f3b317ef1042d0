# The body of a request on its way to a backend.

from libc.stdint cimport int64_t

from acme_wsgi.stream cimport Stream

cdef class Payload:
    cdef readonly int64_t length
    cdef readonly bytes data
    cdef readonly bytes first
    cdef bint taken
    cdef readonly object reader
    cdef public bint expect
    cdef readonly bint upgrade
    cdef readonly double tunnel_idle

    cdef bytes next_piece(self)
    cdef bint comes_before(self, Stream other) except? True
