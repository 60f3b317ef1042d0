from libc.stdint cimport int64_t

from acme_wsgi.http.chunked cimport Chunked
from acme_wsgi.stream cimport Stream


cdef class Body:
    cdef Stream stream           # None: there is no body, or the request is over
    cdef bint over               # the request is over
    cdef readonly bint chunked
    cdef readonly bint done               # everything was read from the stream
    cdef bint expect             # a 100 (Continue) is owed before the first wait
    cdef int64_t remaining       # bytes of Content-Length not yet taken from the stream
    cdef readonly int64_t total           # body bytes so far, for the limit
    cdef int64_t limit
    cdef readonly int64_t length          # Content-Length, -1 without
    cdef Chunked decoder
    cdef bytes ahead             # read, but not handed out yet (lines),
    cdef Py_ssize_t ahead_at     # from here on
    cdef object failure          # once broken, always broken

    cdef bytes some(self, size_t most)
    cdef bytes some_of_length(self, size_t most)
    cdef bytes some_of_chunks(self, size_t most)
    cdef bytes from_buffer(self, size_t length)
    cdef int before_wait(self) except -1
    cdef int cut(self) except -1
    cdef bint is_coming(self) except? True
    cdef bint skip(self)
    cdef int64_t unread(self) noexcept
    cdef bytes take_ahead(self, Py_ssize_t end)
    cdef bytes exactly(self, size_t size)
    cdef bytes everything(self)
    cdef int give_back(self, size_t surplus, size_t *used, size_t *length) except -2
