# Who may run, who waits, and who is turned away.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from acme_wsgi.answer cimport Answering
from acme_wsgi.http.chunked cimport Chunked


cdef class Waiting(Answering):
    cdef Chunked *scan           # how far a chunked body that is still coming was looked at
    cdef size_t scanned
    cdef uint8_t trusted         # what the peer says of its client counts

    cdef void forget_scan(self) noexcept
    cdef int keep(self, const char *rest, size_t length, bint fresh) except -1
    cdef int admit(self, const char *data, size_t length, bint fresh) except -1
    cdef bint overdue(self) noexcept
    cdef int turn_away(self) except -1
    cdef int shed(self, const char *data, size_t length, bint fresh, int64_t since) except -1
    cdef int drop(self, int64_t since) except -1
    cdef int settle(self, bint closing, bint rest) except -1
    cdef int count(self, tuple entry, int status, uint64_t taken, uint64_t sent, int64_t since) except -1
    cdef tuple describe(self, str request_id)
