# The byte level of a connection.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from acme_wsgi.reactor cimport Channel


cdef class Ears:
    # Who hears of events on streams that are not its own.
    cdef void heard(self, Stream stream) noexcept
    cdef void parted(self, Stream stream, bint cut) noexcept
    cdef void cut(self) noexcept


cdef class Stream(Channel):
    cdef char *buffer            # bytes received and not yet used: buffer[start:end]
    cdef uint32_t start
    cdef uint32_t end
    cdef uint32_t size
    cdef uint8_t eof             # the peer will send no more
    cdef uint8_t torn            # the peer's reset was met, which the kernel tells once
    cdef int64_t moved           # bytes received or accepted by the peer, for the minimum rates
    cdef int64_t window_ns       # since when, the time in which nobody waited for the peer left out
    cdef int64_t paused_ns       # when the last wait in this window ended, 0 = none did
    cdef int64_t turn_ns         # since when a handler has kept the worker busy with this connection
    cdef uint8_t window_of       # WAIT_READ or WAIT_WRITE: the direction measured
    cdef int64_t client_wait_ns  # time spent waiting for the peer
    cdef int64_t sent_total      # bytes handed to the kernel over the connection's life
    cdef Ears ears               # who hears of what happens on it, or None
    cdef Stream other            # whose greenlet waits for this one as well, or None

    cdef int make_room(self, size_t more) except -1
    cdef int stash(self, const char *data, size_t length) except -1
    cdef void drop_buffer(self) noexcept
    cdef ssize_t receive_into(self, char *target, size_t room) except -2
    cdef int peek(self) noexcept
    cdef int wait_peer(self, int what) except -1
    cdef int give_way(self) except -1
    cdef ssize_t try_send(self, const char *data, size_t length, int flags) except -2
    cdef ssize_t try_send_two(self, const char *first, size_t first_length, const char *second,
                              size_t second_length) except -2
    cdef bint no_room(self) except? True
    cdef int send_all(self, const char *data, size_t length) except -1
    cdef int flush(self) except -1
    cdef int end_output(self) except -1
    cdef int64_t unacknowledged(self) noexcept
    cdef void open_window(self, int64_t now) noexcept
    cdef void close_descriptor(self, bint reset) noexcept


cdef class Dialled(Stream):
    pass


cdef object lost(str doing)
cdef bint is_gone(int error) noexcept
