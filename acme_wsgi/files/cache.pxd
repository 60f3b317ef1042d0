# Resources by their path, for what serves them.

cimport cython
from libc.stdint cimport int64_t


@cython.final
cdef class Entry:
    cdef FileTable table
    cdef str path
    cdef object value
    cdef int64_t until         # CLOCK_MONOTONIC, nanoseconds
    cdef int64_t memory
    cdef int64_t descriptors
    cdef object watches
    cdef bint used             # asked for since the hand last came by
    cdef bint dropped          # a file of it changed, or it had to go


@cython.final
cdef class FileTable:
    cdef dict entries
    cdef object ring           # of all entries, what is to go next in front; also some that were dropped
    cdef object mortal         # of those that end by themselves, the first to end in front
    cdef object guard
    cdef object identity       # of the root's directory that all entries were found in
    cdef int64_t interval
    cdef int64_t verify_at
    cdef bint claimed          # somebody was sent to verify
    cdef readonly int64_t hits
    cdef readonly int64_t misses
    cdef readonly int64_t evicted
    cdef readonly int64_t memory
    cdef readonly int64_t descriptors
    cdef readonly int64_t max_entries
    cdef readonly int64_t max_memory
    cdef readonly int64_t max_descriptors

    cpdef object get(self, str path)
    cdef bint is_due(self, int64_t now) noexcept
    cdef list insert(self, Entry entry)
    cdef object unlink(self, Entry entry)
    cdef list make_room(self, Entry new)
    cdef list expired(self)
    cdef void tidy(self)
