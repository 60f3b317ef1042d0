# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""After a 101: bytes pass between a client and another server, both ways, without a greenlet.

    open_tunnel -> heard -> run -> up:   client -> far    -> finish, when both ways have ended, one was reset,
                                   down: far    -> client    or no byte has passed for too long

Either end's events lead to `heard`. What one end has sent is read only while the other takes it: each way holds 64 KB
at most, and nothing at all while nothing waits.

Law: passes bytes on and never looks at them. An end of input is passed on after the last byte before it; a reset is
passed on as one.
"""

import logging

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from acme_wsgi.errors import ClientDisconnected

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.writer cimport Plan, Scratch, Tunnel, write_switch
from acme_wsgi.reactor cimport Reactor
from acme_wsgi.service cimport LIST_QUEUE, LIST_RUN, LIST_TUNNEL, grant

cdef extern from "<sys/socket.h>" nogil:
    int getsockopt(int fd, int level, int name, void *value, unsigned int *length)
    int SOL_SOCKET, SO_ERROR

log = logging.getLogger("acme.tunnel")

cdef enum:
    ROOM = 65536             # most that is held of one way
    TURN = 1048576           # bytes of one way before others get their turn


cdef int open_tunnel(Answering client, Request request, Response response) except -1:
    """Answer with the 101 and let the bytes pass from now on; the running greenlet has nothing more to do with it.

    The stream is ours from here, also when this raises: TypeError and ValueError for what the handler got wrong.
    """
    cdef Tunnel body = <Tunnel>response.body
    cdef Scratch out = client.service.out
    cdef Reactor reactor = client.reactor
    cdef Pump pump
    cdef Plan plan
    request.closer = response.close
    if not isinstance(body.stream, Stream):
        raise TypeError(f"a tunnel leads to a Stream, not {type(body.stream).__name__}")
    try:
        headers = list(response.headers)  # before anything is touched that others use, too: iterating it may block
        if client.request is not request:
            raise ClientDisconnected("the request was over before its handler was")
        check(request, <Stream>body.stream)
        pump = Pump(client, <Stream>body.stream, <int64_t>(body.idle_seconds * 1e9))
        out.used = 0
        write_switch(out, response.status, headers, &plan, request.request_id)
        pump.down.load(out.data, out.used)
        pump.down.load(PyBytes_AS_STRING(body.first), len(body.first))
        pump.up.load(client.buffer + client.start, client.end - client.start)
        pump.up.moved = client.end - client.start
    except BaseException:
        (<Stream>body.stream).close_descriptor(True)
        raise
    request.plan = plan
    request.started = True
    request.head_length = out.used
    client.drop_buffer()
    client.ears = pump.far.ears = pump
    pump.last_ns = monotonic_ns()
    reactor.enter(client, LIST_TUNNEL, pump.last_ns)
    if pump.idle_ns:
        reactor.need_tick(body.idle_seconds)
    if reactor.lists[LIST_QUEUE].length:
        grant(reactor, client.service)
    pump.heard(client)
    return 0


cdef int check(Request request, Stream stream) except -1:
    """Can the protocol be switched now (RFC 9110 7.8)? ValueError if not."""
    if request.started:
        raise ValueError("the response has begun already, in HTTP")
    if request.minor < 1:
        raise ValueError("a client of HTTP/1.0 can't switch to another protocol")
    if not request.body.done:
        raise ValueError("the request's body has to be read before the protocol is switched")
    if stream.waiting or stream.ears is not None or request.connection.waiting:
        raise ValueError("somebody else still uses an end of the tunnel")
    return 0


cdef class Way:
    """One direction."""

    def __dealloc__(self):
        free(self.data)

    cdef int load(self, const char *data, size_t length) except -1:
        """Bytes that go before whatever the source sends."""
        if length == 0:
            return 0
        self.reserve(self.end + length)
        memcpy(self.data + self.end, data, length)
        self.end += length
        return 0

    cdef int reserve(self, size_t size) except -1:
        cdef char *data
        if self.size < size:
            data = <char *>realloc(self.data, size)
            if data == NULL:
                raise MemoryError
            self.data = data
            self.size = size
        return 0

    cdef void release(self) noexcept:
        """Nothing waits: it costs nothing."""
        free(self.data)
        self.data = NULL
        self.size = self.start = self.end = 0

    cdef int64_t move(self) except -1:
        """Pass on what there is and what the target takes. Returns the bytes that it took.

        Raises OSError when an end has gone.
        """
        cdef int64_t sent = 0
        cdef ssize_t taken
        self.turn_over = False
        while not self.done:
            if self.start < self.end:
                taken = self.target.try_send(self.data + self.start, self.end - self.start, 0)
                if taken < 0:
                    break
                self.start += taken
                sent += taken
            elif not self.target.flush():
                break
            elif self.told:
                self.done = True
            elif self.ended:
                self.told = True
                self.target.end_output()
            elif sent >= TURN:
                self.turn_over = True
                break
            elif not self.receive():
                break
        if self.start == self.end:
            self.release()
        return sent

    cdef bint receive(self) except? True:
        """Take what the source has sent; False if that was nothing. Only after nothing waits any more."""
        cdef ssize_t got
        if not self.again and not self.source.readable:
            return False
        # Until it says that there is nothing, not just until the next event: it may have decrypted more already.
        self.again = True
        self.reserve(ROOM)
        self.start = self.end = 0
        got = self.source.receive_into(self.data, ROOM)
        if got < 0:
            self.again = False
            return False
        if got == 0:
            self.ended = True
        self.end = <size_t>got
        self.moved += got
        return True


cdef class Pump(Ears):
    """Both directions of one tunnel. client: whose request it is. far: the stream to the other server.

    idle_ns: after so long without a byte it ends, 0 = never.
    """

    def __init__(self, Answering client, Stream far, int64_t idle_ns):
        self.client = client
        self.far = far
        self.idle_ns = idle_ns
        self.up = way(client, far)
        self.down = way(far, client)

    cdef void heard(self, Stream stream) noexcept:
        """Something happened at one of the ends."""
        cdef Pump alive = self            # the ends hold us only until the tunnel ends
        cdef Answering client = self.client
        cdef Request request
        if client is None:
            return                        # it has just ended
        request = client.request
        try:
            alive.run()
        except OSError as error:
            log.debug("%s %s: %s (request %s)", request.method, request.target, error, request.request_id)
            self.end(True)
        except BaseException:
            log.exception("the tunnel of %s %s failed (request %s)", request.method, request.target,
                          request.request_id)
            client.service.slot.data.errors += 1
            self.end(True)

    cdef int run(self) except -1:
        """Let pass what can. Raises OSError when an end has gone."""
        cdef Way up = self.up, down = self.down
        cdef int64_t sent
        cdef int64_t before = up.moved + down.moved
        fail_if_reset(self.client)
        fail_if_reset(self.far)
        sent = down.move() + up.move()
        self.client.reactor.seen_ns = monotonic_ns()
        if sent or up.moved + down.moved > before:
            self.last_ns = self.client.reactor.seen_ns
        if up.done and down.done:
            self.end(False)
        elif up.turn_over or down.turn_over:
            self.client.reactor.make_ready(self.client)
        return 0

    cdef bint is_idle(self, int64_t now) noexcept:
        return self.idle_ns != 0 and now - self.last_ns > self.idle_ns

    cdef int expire(self) except -1:
        """The engine's clock found no byte for too long. The next one may have come at the last moment."""
        cdef Pump alive = self
        cdef Answering client = self.client
        alive.heard(client)
        if self.client is None or not self.is_idle(monotonic_ns()):
            return 0
        client.service.slot.data.timeouts += 1
        log.debug("%s: a tunnel was idle for too long", client.address)
        self.end(self.up.start < self.up.end or self.down.start < self.down.end)
        return 0

    cdef void cut(self) noexcept:
        if self.client is not None:
            self.end(True)

    cdef void end(self, bint cut) noexcept:
        """The request is over, and so is all this."""
        cdef Answering client = self.client
        cdef Request request = client.request
        client.finish(request, cut)

    cdef void parted(self, Stream stream, bint cut) noexcept:
        """The client's request has ended, whoever ended it."""
        cdef Pump alive = self
        cdef Answering client = self.client
        cdef Stream far = self.far
        # As long as its `close` runs, it is a request like any other.
        client.reactor.enter(client, LIST_RUN, monotonic_ns())
        client.request.received += alive.up.moved
        client.ears = far.ears = None
        far.close_descriptor(cut)
        self.client = self.far = None
        self.up.source = self.up.target = self.down.source = self.down.target = None


cdef Way way(Stream source, Stream target):
    cdef Way made = Way.__new__(Way)
    made.source = source
    made.target = target
    made.again = True                     # what has come before made its edge before
    return made


cdef int fail_if_reset(Stream stream) except -1:
    """A reset counts at once, also while nothing is read from its sender because the other end takes nothing."""
    cdef int error = 0
    cdef unsigned int length = sizeof(error)
    if stream.hung_up and getsockopt(stream.fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 and error:
        raise ConnectionResetError(error, "an end of the tunnel was reset")
    return 0
