# Open files, for what sends them.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t


@cython.final
cdef class Mapping:
    cdef char *address         # NULL for an empty file
    cdef readonly size_t length


@cython.final
cdef class OpenFile:
    cdef readonly int fd       # -1 when closed
    cdef int direct            # -1: there is none, -2: not tried yet
    cdef Mapping mapped        # None until somebody wanted it
    cdef readonly uint32_t mode
    cdef readonly int64_t size
    cdef readonly int64_t mtime_ns
    cdef readonly int64_t ctime_ns
    cdef readonly uint64_t ino
    cdef readonly uint64_t dev
    cdef readonly uint64_t links

    cdef bint same_version(self) noexcept
    cpdef Mapping mapping(self)
    cpdef int direct_fd(self) except -2
