# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One HTTP/1.1 connection to a backend, as a greenlet uses it: connect, send, read a head, read a body, again.

    connect -> send -> read_head (1xx, as often as they come) -> read_piece ... -> reusable? rest : close

The greenlet waits in the reactor, with a deadline for each wait. A response is read as strictly as a request: what is
not exactly one message ends the connection and is never passed on, and so do bytes that nobody asked for.

Law: bytes and framing towards one backend. Which backend, whether to try another one and what the client hears of it is
decided elsewhere. Raises BackendError and nothing else for whatever the other side does.
"""

import _socket
import logging
import os
import socket

import gevent

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINPROGRESS

from acme_wsgi.errors import BackendError, ClientDisconnected

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.chunked cimport chunked_next, chunked_start
from acme_wsgi.http.environ cimport latin1
from acme_wsgi.http.reply cimport (
    CHUNKED,
    COUNTED,
    NO_BODY,
    UNTIL_CLOSE,
    Reply,
    extent,
    read_reply,
    reply_headers,
    reply_status,
)
from acme_wsgi.reactor cimport WAIT_EITHER, WAIT_READ, WAIT_WRITE, current

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *text, Py_ssize_t length) except NULL
    int _PyBytes_Resize(PyObject **text, Py_ssize_t length) except -1
    void Py_XDECREF(PyObject *value)

cdef extern from "<sys/socket.h>" nogil:
    int getsockopt(int fd, int level, int name, void *value, unsigned int *length)
    int shutdown(int fd, int how)
    int SOL_SOCKET, SO_ERROR, SHUT_RDWR

log = logging.getLogger("acme.upstream")

cdef int64_t MOST_LENGTH = 1000000000000000000   # an exabyte; the writer takes no more digits

cdef enum:
    MAX_HEAD = 65536         # of a response, bytes
    ROOM = 8192              # of the buffer that a head is read into
    KEPT = 8192              # an idle connection keeps a buffer up to this size
    RAW = 65536              # one read of a chunked body
    PIECE = 262144           # one read of a body whose length is known, at most

cdef double FULL_QUEUE_PAUSE = 0.005    # seconds until a UNIX socket is tried again whose listen queue was full


cdef class Link(Stream):
    """A connection to a backend. `shelf` (a pool.Shelf, or None) hears of its end."""

    def __init__(self, shelf=None):
        self.shelf = shelf
        self.fd = -1

    # ---- connecting -------------------------------------------------------------------------------

    def connect(self, int family, address, int64_t deadline_ns):
        """Connect to a numeric `address` of `family`, until `deadline_ns` (CLOCK_MONOTONIC). Raises BackendError."""
        sock = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            error = sock.connect_ex(address)
            while error == EAGAIN and monotonic_ns() < deadline_ns:
                gevent.sleep(FULL_QUEUE_PAUSE)
                error = sock.connect_ex(address)
            if error == EAGAIN:
                raise BackendError.slow("it took too long to connect", connecting=True)
            if error != 0 and error != EINPROGRESS:
                raise BackendError.unreachable(os.strerror(error))
            self.fd = sock.detach()
        finally:
            sock.close()
        try:
            current().add(self, True)
            if error == EINPROGRESS:
                self.await_connected(deadline_ns)
        except BaseException:
            self.close()
            raise

    def await_connected(self, int64_t deadline_ns):
        cdef int error = 0
        cdef unsigned int size = sizeof(error)
        try:
            self.wait_until(WAIT_WRITE, deadline_ns)
        except TimeoutError:
            raise BackendError.slow("it took too long to connect", connecting=True) from None
        if self.aborted:
            raise BackendError.unreachable("connecting was given up")
        getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            raise BackendError.unreachable(os.strerror(error))

    # ---- bytes, with the backend's name for what goes wrong -----------------------------------------

    cdef ssize_t get(self, char *target, size_t room) except -2:
        """As receive_into: bytes, 0 at the end, -1 when there is nothing now."""
        cdef ssize_t got
        if self.fd < 0:
            raise BackendError.broke_off("the connection was closed under it", self.answered)
        try:
            got = self.receive_into(target, room)
        except OSError as error:
            self.torn = 1
            raise self.broken(error) from None
        if got == 0 and self.torn:
            raise BackendError.broke_off("it reset the connection", self.answered)
        return got

    cdef ssize_t give(self, const char *data, size_t length) except -2:
        """As try_send: bytes taken, -1 when there is no room now."""
        try:
            return self.try_send(data, length, 0)
        except OSError as error:
            raise self.broken(error) from None

    cdef int push(self) except -1:
        """As flush: 1 = all has left, 0 = no room now."""
        try:
            return self.flush()
        except OSError as error:
            raise self.broken(error) from None

    cdef object broken(self, error):
        """A Stream speaks of a client; here it is the backend that has gone."""
        gone = isinstance(error, ClientDisconnected)
        return BackendError.broke_off("it reset the connection" if gone else str(error), self.answered)

    cdef int more(self, int64_t deadline) except -1:
        """Read what has come into the buffer, waiting until something has. 0 at the backend's end, else 1."""
        cdef ssize_t got
        self.make_room(ROOM if self.extent != CHUNKED else RAW)
        if self.readable:
            self.give_way()
        else:
            self.await_readable(deadline)
        while True:
            got = self.fill()
            if got >= 0:
                return got > 0
            self.await_readable(deadline)

    cdef ssize_t fill(self) except -2:
        """One read into the room of the buffer: as `get`."""
        cdef ssize_t got = self.get(self.buffer + self.end, self.size - self.end)
        if got > 0:
            self.end += <unsigned int>got
            self.answered = 1
        return got

    cdef int await_readable(self, int64_t deadline) except -1:
        if self.fd < 0:
            return 0                      # nothing would end the wait; whoever reads next hears of it
        try:
            self.wait_until(WAIT_READ, deadline)
        except TimeoutError:
            raise BackendError.slow("it took too long to answer", answered=self.answered) from None
        return 0

    cdef int send_whole(self, const char *data, size_t length, int64_t deadline) except -1:
        cdef ssize_t taken
        while length:
            taken = self.give(data, length)
            if taken < 0:
                self.await_room(WAIT_WRITE, deadline)
                continue
            data += taken
            length -= taken
        self.all_out(deadline, False)
        return 0

    cdef bint all_out(self, int64_t deadline, bint watching) except? True:
        """Wait until what was taken has left. Watching, it gives up as soon as the backend says something: False."""
        while not self.push():
            if watching and self.readable and self.try_read():
                return False
            self.await_room(WAIT_EITHER if watching else WAIT_WRITE, deadline)
        return True

    cdef int await_room(self, int what, int64_t deadline) except -1:
        """Wait to send more; with WAIT_EITHER also for what the backend has to say meanwhile."""
        try:
            self.wait_until(what, deadline)
        except TimeoutError:
            raise BackendError.slow("it took too long to take the request") from None
        return 0

    # ---- the request ------------------------------------------------------------------------------

    cpdef int begin(self) except -1:
        """A new request is about to be sent."""
        self.resting = self.answered = self.whole = self.keeps = 0
        self.uses += 1
        return 0

    def send(self, bytes data not None, int64_t deadline_ns):
        """Send bytes of the request. Raises BackendError."""
        self.send_whole(PyBytes_AS_STRING(data), len(data), deadline_ns)

    cdef Py_ssize_t send_from(self, bytes data, Py_ssize_t at, int64_t deadline, bint watching) except -1:
        """Send a piece of the body from `at` on; up to where. Watching, it stops as soon as the backend answers."""
        cdef Py_ssize_t length = len(data)
        cdef ssize_t taken
        while at < length:
            if watching and self.readable and self.try_read():
                return at
            taken = self.give(PyBytes_AS_STRING(data) + at, length - at)
            if taken >= 0:
                at += taken
                continue
            self.await_room(WAIT_EITHER if watching else WAIT_WRITE, deadline)
        self.all_out(deadline, watching)
        return at

    cdef bint await_answer(self, int64_t deadline_ns) except? True:
        """Wait until the backend begins to answer, or closes; False if it does neither in time."""
        while self.end == self.start and not self.try_read():
            if not self.comes_until(deadline_ns):
                return False
        return True

    cdef bint comes_until(self, int64_t deadline) except? True:
        """Wait until there is something to read; False if it takes too long."""
        try:
            self.wait_until(WAIT_READ, deadline)
        except TimeoutError:
            return False
        return True

    cdef bint try_read(self) except? True:
        """Read what has come, without waiting: did anything, be it the end?"""
        self.make_room(ROOM)
        return self.fill() >= 0

    # ---- the response -----------------------------------------------------------------------------

    def read_head(self, bint head_only, int64_t deadline_ns):
        """One response head: (status line's text, fields). `status` has the code; of a 1xx another head follows.

        Fields of the connection are left out of the fields (RFC 9110 7.6.1). Raises BackendError.
        """
        return self.next_head(head_only, deadline_ns)

    cdef tuple next_head(self, bint head_only, int64_t deadline):
        cdef tuple found = self.head_here(head_only) if self.end > self.start else None
        while found is None:
            if not self.more(deadline):
                raise BackendError.broke_off("it closed the connection before its answer was whole"
                                             if self.answered else "it closed the connection without an answer",
                                             self.answered)
            found = self.head_here(head_only)
        return found

    cdef tuple head_here(self, bint head_only):
        """The head that stands in the buffer, None while it isn't whole. Waits for nothing: a Reply is too large for the
        stack of a greenlet that waits, which is copied."""
        cdef Reply reply
        cdef int verdict = read_reply(self.buffer + self.start, self.end - self.start, MAX_HEAD, &reply)
        if verdict == 0:
            return None
        if verdict < 0:
            raise BackendError.nonsense(reply.message.decode("ascii"))
        if reply.content_length >= MOST_LENGTH:
            raise BackendError.nonsense("a Content-Length that no body can have")
        self.status = reply.status
        text, fields = reply_status(&reply), reply_headers(&reply)
        self.protocol = latin1(reply.protocol, reply.protocol_length) if reply.upgrade else None
        self.start += reply.consumed
        self.keeps = reply.keep_alive
        self.begin_body(&reply, head_only)
        return text, fields

    def take_rest(self):
        """What came behind the head of a 101: bytes of the other protocol."""
        rest = self.buffer[self.start:self.end]
        self.drop_buffer()
        return rest

    cdef int begin_body(self, Reply *reply, bint head_only) except -1:
        """Where this response's body ends (RFC 9112 6.3)."""
        self.extent = extent(reply, head_only)
        self.remaining = reply.content_length if self.extent == COUNTED else 0
        self.whole = reply.status >= 200 and (self.extent == NO_BODY or self.extent == COUNTED and self.remaining == 0)
        if self.extent == CHUNKED:
            chunked_start(&self.decoder)
        elif self.extent == UNTIL_CLOSE:
            self.keeps = 0
        return 0

    cdef bint has_more(self) except? True:
        """Are there bytes of the body? What left right behind the head gets one turn of the loop to come."""
        if self.end == self.start and not self.readable:
            gevent.sleep(0)
        return self.end > self.start or self.readable

    cdef bytes body_here(self):
        """The whole body if it has come already, without waiting; else None. Raises BackendError for a broken one."""
        cdef bytes body
        if self.whole:
            return b""
        if self.extent == UNTIL_CLOSE:
            return None
        return self.buffered_body()

    cdef bytes short_body(self, int64_t deadline):
        """A short body of known length, once it is here as a whole; None for others, and where it takes too long.

        Raises BackendError for one that ends too early.
        """
        cdef bytes body = None
        cdef ssize_t got
        if self.extent != COUNTED or self.remaining > RAW:
            return None
        self.make_room(<size_t>self.remaining)
        while body is None:
            if not self.readable and not self.comes_until(deadline):
                return None
            got = self.fill()
            if got == 0:
                raise self.cut_short(self.end - self.start)
            if got > 0:
                body = self.buffered_body()
        return body

    cdef object cut_short(self, int64_t got):
        """The error of a body that ended amid its length, `got` bytes of which are in the buffer, or its chunks."""
        early = f"{self.remaining - got} bytes early" if self.extent == COUNTED else "amid its chunks"
        return BackendError.broke_off(f"its body ended {early}", True)

    cdef bytes buffered_body(self):
        """The body if all of it stands in the buffer, else None; nothing is used up then."""
        cdef size_t here = self.end - self.start, used = 0, length = 0, at
        cdef const char *piece = NULL
        cdef Chunked trial
        cdef int verdict = 1
        cdef bytes body
        if self.extent == COUNTED:
            if self.remaining > <int64_t>here:
                return None
            body = self.buffer[self.start:self.start + <size_t>self.remaining]
            self.start += <unsigned int>self.remaining
            self.remaining = 0
            self.whole = 1
            return body
        trial = self.decoder
        at = self.start
        while verdict == 1:
            verdict = chunked_next(&trial, self.buffer + at, self.end - at, &used, &piece, &length)
            at += used
        return self.decode() if verdict == 2 else None

    cdef bytes decode(self):
        """What the buffer holds of a chunked body, and whether its end is there."""
        cdef size_t used = 0, length = 0
        cdef const char *piece = NULL
        cdef int verdict = 1
        cdef bytes first = None
        cdef list pieces = None
        while verdict == 1:
            verdict = chunked_next(&self.decoder, self.buffer + self.start, self.end - self.start, &used, &piece, &length)
            self.start += <unsigned int>used
            if verdict == 1:
                if first is None:
                    first = piece[:length]
                elif pieces is None:
                    pieces = [first, piece[:length]]
                else:
                    pieces.append(piece[:length])
        if verdict < 0:
            raise BackendError.nonsense("malformed chunked body: " + self.decoder.message.decode("ascii"), answered=True)
        self.whole = verdict == 2
        if pieces is not None:
            return b"".join(pieces)
        return first if first is not None else b""

    def read_piece(self, int64_t deadline_ns):
        """The next bytes of the body, b"" at its end. Raises BackendError, also for a body that is cut short."""
        return self.next_piece(deadline_ns)

    cdef bytes piece_here(self):
        """What has come of the body; b"" if nothing has. Waits for nothing. Raises BackendError if no more can come."""
        cdef bytes piece = b""
        if self.readable:
            self.make_room(RAW)
            self.fill()
        if self.end > self.start:
            piece = self.decode() if self.extent == CHUNKED else self.buffered_piece()
        if not piece and not self.whole and self.eof:
            if self.extent != UNTIL_CLOSE:
                raise self.cut_short(0)
            self.whole = 1
        return piece

    cdef bytes next_piece(self, int64_t deadline):
        if self.whole:
            return b""
        if self.extent == COUNTED:
            return self.piece_of_length(deadline)
        if self.extent == CHUNKED:
            return self.piece_of_chunks(deadline)
        return self.piece_to_end(deadline)

    cdef bytes piece_of_length(self, int64_t deadline):
        """Buffered bytes first, then straight into the result."""
        cdef size_t most = PIECE if self.remaining > PIECE else <size_t>self.remaining
        cdef ssize_t got
        cdef PyObject *result
        cdef bytes piece
        if self.end > self.start:
            return self.buffered_piece()
        self.give_way()
        result = PyBytes_FromStringAndSize(NULL, most)
        try:
            while True:
                got = self.get(PyBytes_AS_STRING(<bytes>result), most)
                if got > 0:
                    break
                if got == 0:
                    raise self.cut_short(0)
                self.await_readable(deadline)
            _PyBytes_Resize(&result, got)
            piece = <bytes>result
        finally:
            Py_XDECREF(result)
        self.count(got)
        return piece

    cdef bytes buffered_piece(self):
        """What stands in the buffer of a body that is not chunked."""
        cdef size_t most = self.end - self.start
        cdef bytes piece
        if self.extent == COUNTED and <int64_t>most > self.remaining:
            most = <size_t>self.remaining
        piece = self.buffer[self.start:self.start + most]
        self.start += <unsigned int>most
        self.count(<int64_t>most)
        return piece

    cdef void count(self, int64_t got) noexcept:
        """So many bytes of the body were taken."""
        if self.extent == COUNTED:
            self.remaining -= got
            self.whole = self.remaining == 0

    cdef bytes piece_of_chunks(self, int64_t deadline):
        cdef bytes piece
        while True:
            if self.end > self.start:
                piece = self.decode()
                if piece or self.whole:
                    return piece
            if not self.more(deadline):
                raise self.cut_short(0)

    cdef bytes piece_to_end(self, int64_t deadline):
        if self.end == self.start and not self.more(deadline):
            self.whole = 1
            return b""
        return self.buffered_piece()

    # ---- between requests -------------------------------------------------------------------------

    @property
    def complete(self):
        """Was the response read to its end?"""
        return bool(self.whole)

    @property
    def reusable(self):
        """May another request follow on this connection?"""
        return self.is_reusable()

    def spoil(self):
        """No other request may follow: the present one was not sent to its end."""
        self.keeps = 0

    cdef bint is_reusable(self) noexcept:
        return self.whole and self.keeps and self.fd >= 0 and self.end == self.start \
            and not (self.eof or self.ended or self.hung_up)

    cpdef bint rest(self) except? True:
        """Nothing is expected any more: from now on every byte is one too many.

        False if one is there already, or the connection was closed meanwhile.
        """
        if self.fd < 0:
            return False
        if self.size > KEPT:
            self.drop_buffer()
        self.start = self.end = 0
        self.resting = 1
        if self.readable and not self.still_fresh():
            return False
        return self.fd >= 0 and not (self.ended or self.hung_up)

    cpdef bint usable(self) except? True:
        """Is the resting connection still good, by what the kernel knows at this moment?

        Its event may not have come yet; and bytes that nobody asked for must not be taken for the next answer.
        """
        return self.fd >= 0 and not (self.ended or self.hung_up or self.readable) and self.peek() < 0

    cdef bint still_fresh(self) noexcept:
        """Something happened on a resting connection: was it nothing that matters (as messages of TLS are)?"""
        cdef char byte
        cdef ssize_t got = 0
        try:
            got = self.get(&byte, 1)
        except BackendError as error:
            log.debug("an idle connection to a backend: %s", error)
        return got < 0

    cdef void on_event(self) noexcept:
        if self.ears is not None or self.other is not None:
            Stream.on_event(self)
        elif self.resting and not self.still_fresh():
            self.close()

    def adopt(self, shelf):
        """It belongs there from now on."""
        self.shelf = shelf

    def abort(self):
        """Close it while somebody may be at work with it, who hears that it is broken. A tunnel gets two calls for it."""
        self.aborted = 1
        if self.ears is None:
            self.close_descriptor(False)
            self.readable = 1             # whoever looks next hears of it, also who waits for the client meanwhile
            if self.other is not None:
                self.reactor.wake(self.other)
        elif not self.ended:
            shutdown(self.fd, SHUT_RDWR)  # it ends by itself then, if its client agrees
        else:
            self.ears.cut()

    def close(self):
        """The end of the connection. May be called twice."""
        self.close_descriptor(False)

    cdef void close_descriptor(self, bint reset) noexcept:
        if self.fd < 0:
            return
        Stream.close_descriptor(self, reset)
        if self.shelf is not None:
            self.shelf.closed(self, self.resting)
        self.resting = 0
