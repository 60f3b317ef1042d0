# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The byte level of a connection: what came in and isn't used yet, and single sends.

Law: bytes, the descriptor, and waiting for it. Nothing here knows what the bytes mean. A peer that went away
raises ClientDisconnected in whoever reads or writes next.
"""

import gevent

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EBADF, ECONNABORTED, ECONNRESET, EINTR, ENOTCONN, EPIPE, ETIMEDOUT, errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from acme_wsgi.errors import ClientDisconnected

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.reactor cimport WAIT_READ, WAIT_WRITE, current

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    int SHUT_WR, SOL_SOCKET, SO_LINGER, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_PEEK
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


cdef class Ears:
    """Who hears of events on streams that are not its own: both ends of a tunnel have the same."""

    cdef void heard(self, Stream stream) noexcept:
        """Something happened on the stream and nobody waits for it. Runs in a leader greenlet and may block."""

    cdef void parted(self, Stream stream, bint cut) noexcept:
        """Whoever uses the stream has done with it: no more will be heard. `cut`: before its proper end."""

    cdef void cut(self) noexcept:
        """Make an end of it now, whatever the other streams still have."""


cdef class Stream(Channel):
    """A connected socket in the reactor's care.

    What lies between the bytes and the descriptor, encryption for one, overrides `receive_into`, `try_send`, `flush`
    and `end_output`.
    """

    def __dealloc__(self):
        free(self.buffer)

    cdef void on_event(self) noexcept:
        if self.ears is not None:
            self.ears.heard(self)
        elif self.other is not None:
            self.reactor.wake(self.other)

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

    cdef int peek(self) noexcept:
        """What the socket holds: 1 for bytes, 0 for its end or an error, -1 for nothing now."""
        cdef char byte
        cdef ssize_t got
        while True:
            got = recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
            if got >= 0:
                return got > 0
            if errno == EAGAIN:
                self.readable = 0
                return -1
            if errno != EINTR:
                return 0

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
        if errno == ECONNRESET:
            self.torn = 1                 # reading would see a clean end now: the send has taken the error
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

    cdef int flush(self) except -1:
        """Push what was taken by `try_send` but is not with the kernel yet: 1 = nothing is, 0 = no room now."""
        return 1

    cdef int end_output(self) except -1:
        """Tell the peer that no more will come. What was taken before still goes out, perhaps by later `flush`es."""
        shutdown(self.fd, SHUT_WR)
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


cdef class Dialled(Stream):
    """A stream over a socket that Python has connected: what a handler may pass on in a Tunnel.

    sock: a connected stream socket; its descriptor belongs to us from now on. Raises OSError when the reactor of
    this process can't take it in, and RuntimeError when there is none. All deadlines are CLOCK_MONOTONIC in
    nanoseconds, 0 = none. Somebody has to call `close`.
    """

    def __init__(self, sock):
        reactor = current()
        sock.setblocking(False)
        self.fd = sock.detach()
        try:
            reactor.add(self, True)
        except BaseException:
            close(self.fd)
            self.fd = -1
            raise

    def receive(self, size_t most, int64_t deadline_ns=0):
        """1 to `most` bytes, b"" at the end. Raises TimeoutError, and ConnectionError when the peer has gone."""
        cdef ssize_t got
        self.make_room(most)
        while True:
            got = self.receive_into(self.buffer, most)
            if got >= 0:
                return self.buffer[:got]
            self.wait_until(WAIT_READ, deadline_ns)

    def send(self, bytes data not None, int64_t deadline_ns=0):
        """Send everything. Raises TimeoutError, and ConnectionError when the peer has gone."""
        cdef size_t at = 0
        cdef ssize_t taken
        while at < <size_t>len(data):
            taken = self.try_send(PyBytes_AS_STRING(data) + at, len(data) - at, 0)
            if taken < 0:
                self.wait_until(WAIT_WRITE, deadline_ns)
            else:
                at += taken

    def close(self, bint reset=False):
        """The end; does nothing the second time. With `reset` the peer learns that it didn't get the whole."""
        self.close_descriptor(reset)

    @property
    def closed(self):
        return self.fd < 0


cdef inline void clear_message(msghdr *message) noexcept nogil:
    cdef size_t index
    for index in range(sizeof(msghdr)):
        (<char *>message)[index] = 0
