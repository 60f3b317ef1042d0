# The response as the pipeline returns it and its head as bytes, for the modules that send it.

from libc.stdint cimport int64_t, uint8_t


cdef struct Plan:
    int status
    int64_t length       # body bytes promised; -1 = unknown, the end of the connection tells
    uint8_t chunked
    uint8_t close        # the connection ends with this response
    uint8_t bodiless     # no body follows this head, whatever the application returned
    uint8_t switching    # of a 101: SWITCHING, and NAMED once Upgrade has said to what; of others 0


cdef struct Seen:            # fields that the application has set itself
    bint date
    bint server
    bint request_id
    int64_t length


cpdef enum:               # the ways of a file to the socket
    SENDFILE             # sendfile(2)
    MAPPING              # send(2) from a mapping that requests share
    DIRECT               # O_DIRECT reads in the I/O threads, past the page cache
    READ                 # reads in the I/O threads


cdef class FileBody:
    cdef public object file
    cdef public long long offset
    cdef public long long count
    cdef public int way


cdef class Parts:
    cdef readonly list pieces
    cdef readonly long long count


cdef class Prepared:
    cdef readonly bytes text
    cdef readonly tuple pairs
    cdef Seen seen


cdef class Tunnel:
    cdef readonly object stream
    cdef readonly bytes first
    cdef readonly double idle_seconds


cdef class Response:
    cdef public object status
    cdef public object headers
    cdef public object body
    cdef public object close
    cdef public long long buffer


cdef class Scratch:
    cdef char *data
    cdef size_t used
    cdef size_t size
    cdef int reserve(self, size_t more) except -1
    cdef int put(self, const char *text, size_t length) except -1
    cdef int put_size(self, size_t length) except -1


cdef int write_head(Scratch out, object status, object headers, Plan *plan, int minor, bint head_only,
                    int64_t body_length, const char *date, bint server, object request_id) except -1
cdef int write_switch(Scratch out, object status, object headers, Plan *plan, object request_id) except -1
cdef int write_interim(Scratch out, int status, object headers) except -1
