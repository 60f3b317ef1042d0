# The head of a request as a backend gets it.

from libc.stdint cimport int64_t

from acme_wsgi.http.writer cimport Scratch

cdef Scratch out         # what `write` has written last


cdef class Shaper:
    cdef tuple added             # (name and colon, parts of the value)
    cdef tuple host              # parts of the Host that the route sets; None = the client's goes on
    cdef readonly object hidden  # environ keys that aren't passed on: removed, or replaced by `added`
    cdef bint authorizes         # `added` has the Authorization
    cdef object pattern
    cdef object replacement
    cdef bint keep

    cdef int write(self, request, target, int64_t length, bint upgrade, bint expect) except -1
    cdef int put_host(self, request, dict environ, target) except -1
    cdef int put_own_host(self, request, dict environ, target) except -1
    cdef int put_added(self, request, dict environ) except -1
    cdef int put_framing(self, dict environ, int64_t length, bint upgrade) except -1
    cdef int put_all(self, request, dict environ, target, str line, hidden, str peer, int64_t length, bint upgrade,
                     bint expect) except -1
