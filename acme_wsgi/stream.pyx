# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The byte level of a connection: what came in and isn't used yet, and single sends.

Law: bytes, the descriptor, and waiting for it. Nothing here knows what the bytes mean. A peer that went away
raises ClientDisconnected in whoever reads or writes next.
"""

import gevent

from libc.errno cimport EAGAIN, EBADF, ECONNABORTED, ECONNRESET, EINTR, ENOTCONN, EPIPE, ETIMEDOUT, errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from acme_wsgi.errors import ClientDisconnected
from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.reactor cimport WAIT_READ, WAIT_WRITE

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    int SHUT_WR, SOL_SOCKET, SO_LINGER, MSG_NOSIGNAL, MSG_DONTWAIT
    cdef struct linger:
        int l_onoff
        int l_linger
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCOUTQ

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    TURN_NS = 10000000       # time a handler may keep reading or writing before others get theirs


cdef object lost(str doing):
    return ClientDisconnected(f"the client went away while {doing}")


cdef bint is_gone(int error) noexcept:
    # EBADF: we closed it while a handler was at work.
    return error in (EPIPE, ECONNRESET, ENOTCONN, ECONNABORTED, ETIMEDOUT, EBADF)


cdef class Stream(Channel):
    """A connected socket in the reactor's care."""

    def __dealloc__(self):
        free(self.buffer)

    # ---- in ---------------------------------------------------------------------------------------

    cdef int make_room(self, size_t more) except -1:
        """Room for `more` bytes after what is buffered."""
        cdef size_t used = self.end - self.start, size
        cdef char *buffer
        if self.size - self.end >= more:
            return 0
        if self.start:
            memmove(self.buffer, self.buffer + self.start, used)
            self.start = 0
            self.end = <uint32_t>used
            if self.size - self.end >= more:
                return 0
        size = self.size * 2 if self.size else 1024
        while size < used + more:
            size *= 2
        buffer = <char *>realloc(self.buffer, size)
        if buffer == NULL:
            raise MemoryError
        self.buffer = buffer
        self.size = <uint32_t>size
        return 0

    cdef int stash(self, const char *data, size_t length) except -1:
        """Keep bytes that live in a buffer of somebody else."""
        self.make_room(length)
        memcpy(self.buffer + self.end, data, length)
        self.end += <uint32_t>length
        return 0

    cdef void drop_buffer(self) noexcept:
        """Nothing is pending: a parked connection holds no buffer."""
        free(self.buffer)
        self.buffer = NULL
        self.start = self.end = self.size = 0

    cdef ssize_t receive_into(self, char *target, size_t room) except -2:
        """One recv: bytes received, 0 at the peer's end, -1 when there is nothing now."""
        cdef ssize_t got
        while True:
            got = recv(self.fd, target, room, MSG_DONTWAIT)
            if got > 0:
                # A short read has emptied the socket, but an end that came with the bytes makes no further edge.
                self.readable = <size_t>got == room or self.ended
                self.moved += got
                return got
            if got == 0:
                self.eof = 1
                return 0
            if errno == EAGAIN:
                self.readable = 0
                return -1
            if errno == EINTR:
                continue
            self.hung_up = self.eof = 1
            if is_gone(errno):
                raise lost("we read from it")
            raise OSError(errno, "recv failed")

    cdef int wait_peer(self, int what) except -1:
        """Wait for the peer. Its time is not the handler's: it is counted apart.

        The window in which its rate is measured goes on from wait to wait, or a peer that sends a byte now and
        then would never be too slow.
        """
        cdef int64_t since = monotonic_ns()
        if self.paused_ns and self.window_of == what:
            self.window_ns += since - self.paused_ns
        else:
            self.open_window(since)
            self.window_of = <uint8_t>what
        try:
            self.wait(what)
        finally:
            self.paused_ns = self.turn_ns = monotonic_ns()
            self.client_wait_ns += self.paused_ns - since
        return 0

    cdef int give_way(self) except -1:
        """A peer that is always ready must not keep a handler from ever waiting: now and then others go first."""
        if monotonic_ns() - self.turn_ns > TURN_NS:
            gevent.sleep(0)
            self.turn_ns = monotonic_ns()
        return 0

    # ---- out --------------------------------------------------------------------------------------

    cdef ssize_t try_send(self, const char *data, size_t length, int flags) except -2:
        """One send: bytes taken, or -1 when there is no room now."""
        cdef ssize_t taken
        while True:
            taken = send(self.fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT | flags)
            if taken >= 0:
                self.sent_total += taken
                return taken
            if self.no_room():
                return -1

    cdef ssize_t try_send_two(self, const char *first, size_t first_length, const char *second,
                              size_t second_length) except -2:
        """As `try_send`, for two buffers that leave together."""
        cdef iovec parts[2]
        cdef msghdr message
        cdef ssize_t taken
        parts[0].iov_base = <void *>first
        parts[0].iov_len = first_length
        parts[1].iov_base = <void *>second
        parts[1].iov_len = second_length
        clear_message(&message)
        message.msg_iov = parts
        message.msg_iovlen = 2
        while True:
            taken = sendmsg(self.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if taken >= 0:
                self.sent_total += taken
                return taken
            if self.no_room():
                return -1

    cdef bint no_room(self) except? True:
        """After a send that took nothing: True = no room now, False = interrupted, again. Raises for the rest."""
        if errno == EAGAIN:
            return True
        if errno == EINTR:
            return False
        self.hung_up = 1
        if is_gone(errno):
            raise lost("we wrote to it")
        raise OSError(errno, "sending failed")

    cdef int send_all(self, const char *data, size_t length) except -1:
        """Send everything, waiting as the peer needs. `data` must stay valid meanwhile."""
        cdef ssize_t taken
        while length:
            taken = self.try_send(data, length, 0)
            if taken < 0:
                try:
                    self.wait_peer(WAIT_WRITE)
                except BaseException:
                    # Half of something went out. Should the handler go on, nothing may follow it.
                    self.hung_up = 1
                    shutdown(self.fd, SHUT_WR)
                    raise
                continue
            data += taken
            length -= taken
        return 0

    # ---- rates and the end ------------------------------------------------------------------------

    cdef int64_t unacknowledged(self) noexcept:
        """Bytes in the kernel that the peer has not taken yet."""
        cdef int waiting = 0
        if ioctl(self.fd, SIOCOUTQ, &waiting) < 0:
            return 0
        return waiting

    cdef void open_window(self, int64_t now) noexcept:
        """Begin to measure the peer's rate."""
        self.window_ns = now
        self.paused_ns = 0
        self.moved = 0

    cdef void close_descriptor(self, bint reset) noexcept:
        """The end. With `reset` the peer learns that what it got is not the whole."""
        cdef linger hard
        if self.fd < 0:
            return
        self.reactor.remove(self)
        if reset:
            hard.l_onoff = 1
            hard.l_linger = 0
            setsockopt(self.fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard))
        close(self.fd)
        self.fd = -1
        self.drop_buffer()


cdef inline void clear_message(msghdr *message) noexcept nogil:
    cdef size_t index
    for index in range(sizeof(msghdr)):
        (<char *>message)[index] = 0
