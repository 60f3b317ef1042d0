# Complete responses on their way out.

from libc.stdint cimport int64_t, uint8_t

from acme_wsgi.http.writer cimport FileBody
from acme_wsgi.loading cimport Buffer, Load
from acme_wsgi.stream cimport Stream

cdef enum Sent:
    NO_ROOM              # the peer takes no more now
    ALL_OUT
    TURN_OVER            # others should get their turn
    LOADING              # an I/O thread reads what comes next


cdef enum:
    LAST_CHUNK = 5       # bytes of the end of a chunked body, which may be held above the limit


cdef class Held:
    # A ring of bytes.
    cdef char *data
    cdef size_t size
    cdef size_t first            # where the oldest byte is,
    cdef size_t used             # and how many there are
    cdef int put(self, const char *data, size_t length) noexcept
    cdef void drop(self, size_t length) noexcept


cdef class Sending(Stream):
    cdef object head_rest        # output that waits for room: bytes or None,
    cdef object body_rest        # then bytes or a FileBody or None,
    cdef list more               # then these, the last one first
    cdef int64_t body_offset
    cdef int64_t body_left
    cdef int64_t resident_to     # a file's bytes up to here were seen in memory
    cdef Load load               # what an I/O thread does for this response, or None
    cdef Buffer piece            # what it has read and the peer has not taken, or None
    cdef int read_error          # errno of a reading that failed, -1 = the file has ended, 0 = none
    cdef uint8_t paused          # this response had to wait: its files may have changed meanwhile
    cdef Held held               # what a stream has sent and the peer has not taken, before all else; or None

    cdef int send_or_hold(self, const char *data, size_t length, size_t limit) except -1
    cdef int begin_holding(self, size_t limit) except -1
    cdef Sent flush_held(self) except *
    cdef int wait_room(self) except -1
    cdef void break_off(self) noexcept
    cdef void set_body(self, object body) noexcept
    cdef Sent send_rest(self) except *
    cdef Sent send_bytes_rest(self, size_t *budget) except *
    cdef Sent send_file_rest(self, size_t *budget) except *
    cdef Sent send_in_place(self, FileBody body, size_t *budget) except *
    cdef Sent send_loaded(self, FileBody body, size_t *budget) except *
    cdef ssize_t push(self, FileBody body, size_t count) except -2
    cdef ssize_t push_mapped(self, FileBody body, size_t count) except -2
    cdef Sent fetch(self, FileBody body, int64_t count, bint keep) except *
    cdef int check_version(self, FileBody body) except -1
    cdef object ended_early(self)
    cdef int fail_reading(self) except -1
    cdef int took(self, ssize_t count, size_t *budget) except -1
    cdef void forget_output(self) noexcept
