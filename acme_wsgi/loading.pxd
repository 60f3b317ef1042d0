# What an I/O thread does for a response: reading that would keep the loop waiting for a disk.

from libc.stdint cimport int64_t

from acme_wsgi.http.writer cimport FileBody


cdef class Buffer:
    cdef char *data              # aligned as O_DIRECT wants it
    cdef size_t size
    cdef size_t start            # what is still to be sent: data[start:end]
    cdef size_t end


cdef class Load:
    cdef object owner            # who hears of the end through `loaded`; None = nobody any more
    cdef FileBody body
    cdef Buffer buffer           # where the bytes go; None = nowhere, the pages just come into memory
    cdef int64_t offset
    cdef int64_t count
    cdef int error               # errno of what failed, 0 = nothing did

    cdef int begin(self) except -1
    cdef int read_or_raise(self) except -1
    cdef int fill(self, int fd, int64_t begin) noexcept


cdef bint is_resident(int fd, int64_t offset, int64_t count) noexcept
cdef Buffer new_buffer(int64_t wanted)
