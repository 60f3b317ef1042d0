# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The worker's engine: listeners, the clock, and the limits over all connections.

    Listener -> Connection (accepted) ... the clock expires, closes, counts

Law: this file knows every connection but not what is said on it. It never blocks: what takes time is made ready
for a leader greenlet.
"""

import logging
import os
import resource
import socket
import sys
import time
from email.utils import formatdate

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EPROTO, errno
from libc.stdint cimport int64_t, uint16_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy

from acme_wsgi.admission import shed_head
from acme_wsgi.http.forwarded import TrustedProxies

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.connection cimport Connection
from acme_wsgi.reactor cimport Channel, Reactor
from acme_wsgi.request cimport Request
from acme_wsgi.scoreboard cimport Scoreboard, Slot, SlotData
from acme_wsgi.service cimport (
    LIST_BODY,
    LIST_GRANTED,
    LIST_HEAD,
    LIST_IDLE,
    LIST_LINGER,
    LIST_QUEUE,
    LIST_RUN,
    LIST_SEND,
    LIST_TUNNEL,
    Service,
    grant,
)
from acme_wsgi.stream cimport Stream
from acme_wsgi.tunnel cimport Pump

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *source, char *target, unsigned int size)
    uint16_t ntohs(uint16_t value)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    int SOCK_NONBLOCK, SOCK_CLOEXEC, AF_INET, AF_INET6, AF_UNIX

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        unsigned int s_addr
    cdef struct in6_addr:
        unsigned char s6_addr[16]
    cdef struct sockaddr_in:
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        uint16_t sin6_port
        in6_addr sin6_addr

log = logging.getLogger("acme.engine")

cdef enum:
    ADDRESSES = 4096         # peer addresses kept as text

# A worker may hold this many connections more than the one with the fewest before it leaves new ones to others.
cdef int64_t SLACK = 8
# How soon a listener is looked at again that was left to others, or for which there was no room.
cdef double RECHECK = 0.02
# How many it then takes at most although others hold fewer.
cdef int OVERDUE = 64
# Descriptors that stay free for files, upstreams and logs.
cdef long RESERVED = 256
# Idle connections live this long into a drain, so that a request already under way is still answered.
cdef int64_t DRAIN_LINGER_NS = 500000000
# Resolution of the clock while draining: somebody waits for our end.
cdef double DRAIN_TICK = 0.05


# What every request sets. Standing in the dict that is copied, the keys make the copy large enough: it is not
# rebuilt while a request fills it.
EACH_REQUEST = tuple(map(sys.intern, (
    "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "RAW_URI", "SERVER_PROTOCOL", "REMOTE_ADDR",
    "wsgi.input", "wsgi.early_hints", "acme.request_id",
)))


# Warnings of one kind, about a lack of descriptors or too many requests, are this far apart.
cdef int64_t COMPLAIN_NS = 10000000000

cdef enum:
    NO
    YES
    YES_FOR_THE_IDLEST       # once another connection waits, the one idle for longest is closed for it


cdef class Listener(Channel):
    """One listening socket, shared with the other workers."""
    cdef readonly object socket
    cdef dict environ
    cdef int family
    cdef bint pending        # connections wait in it that we have not taken
    cdef int grant           # how many the clock allows us next time; doubles while nobody else comes
    cdef int overdue         # so many we may take although it is not our turn: those whose turn it is did not come

    cdef void on_event(self) noexcept:
        (<Engine>self.reactor).accept_from(self)


cdef class Engine(Reactor):
    """Serves HTTP on the sockets it is given, inside a worker, once `start` was called.

    Before that it serves whom it `adopt`s, and nobody hears of it: the worker's rehearsal.

    config: acme_wsgi.config.Config. dispatch: the compiled pipeline. access_log: an AccessLog or None.
    slot, board: the worker's part of the scoreboard and the whole. base_environ: what every environ begins with.
    """

    cdef Service service
    cdef Scoreboard board
    cdef Slot slot
    cdef object access_log
    cdef dict base_environ
    cdef list listeners
    cdef dict addresses
    cdef long max_connections
    cdef long own_limit
    cdef int64_t timeout_ns
    cdef int64_t keep_alive_ns
    cdef int64_t lingering_ns
    cdef int64_t grace_ns
    cdef double receive_rate
    cdef double send_rate
    cdef int64_t second_ns       # when the Date text is next due
    cdef int64_t drain_ns        # since when we drain, 0 = not
    cdef object recheck
    cdef bint accepting
    cdef int64_t complain_ns     # before then, no further warning about accept
    cdef int64_t tell_ns         # before then, no further warning about requests that were turned away
    cdef bint farewell           # take what still waits in the queues, then no more

    def __cinit__(self, config, dispatch, access_log, Slot slot, Scoreboard board, dict base_environ):
        pass

    def __init__(self, config, dispatch, access_log, Slot slot, Scoreboard board, dict base_environ):
        server = config.server
        cdef Service service = Service()
        self.board = board
        self.base_environ = base_environ
        self.listeners = []
        self.addresses = {}
        self.accepting = True
        self.max_connections = server.max_connections
        self.own_limit = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED)
        self.timeout_ns = <int64_t>(server.timeout * 1e9)
        self.keep_alive_ns = <int64_t>(server.keep_alive_timeout * 1e9)
        self.lingering_ns = <int64_t>(server.lingering_timeout * 1e9)
        self.grace_ns = <int64_t>(server.min_rate_grace * 1e9)
        self.receive_rate = server.body_min_rate
        self.send_rate = server.send_min_rate
        # Fine enough for the shortest limit, coarse enough to leave an idle machine alone. It is the heartbeat as
        # well: a standstill shall not look much longer than it is.
        limits = [server.timeout, server.keep_alive_timeout, server.min_rate_grace, 2 * server.blocked_after]
        if server.max_concurrency:
            limits.append(server.queue_timeout)
        self.tick_seconds = min(0.5, max(0.02, min(limits) / 8))
        service.dispatch = dispatch
        self.access_log = access_log
        service.trusted = TrustedProxies(server.trusted_proxies) if server.trusted_proxies else None
        self.slot = slot
        service.slot = Scoreboard(1).slot(0)      # until `start`: what a rehearsal counts is nobody's
        service.id_state = int.from_bytes(os.urandom(8), "little")
        service.id_stream = int.from_bytes(os.urandom(8), "little")
        service.max_head = server.max_header_size
        service.max_body = server.max_body_size
        # Refused before its route is known is only what no route takes.
        service.largest_body = max(server.max_body_size, *(route.max_body_size or 0 for route in config.routes), 0)
        service.path = <char *>malloc(service.max_head + 16)
        if service.path == NULL:
            raise MemoryError
        service.timeout_ns = self.timeout_ns
        service.server_field = server.server_header
        service.max_concurrency = server.max_concurrency
        service.queue_size = server.queue_size
        service.queue_ns = <int64_t>(server.queue_timeout * 1e9)
        service.shed_head = shed_head(server.server_header)
        self.service = service
        self.set_clock(monotonic_ns())

    # ---- life -------------------------------------------------------------------------------------

    def listen(self, sock):
        """Serve a bound, listening, non-blocking socket (AF_INET, AF_INET6 or AF_UNIX)."""
        cdef Listener listener = Listener()
        listener.socket = sock
        listener.fd = sock.fileno()
        listener.grant = 1
        listener.family = sock.family
        name, port = "localhost", "80"
        if sock.family != socket.AF_UNIX:
            # Accepted sockets inherit it: an answer never waits for an acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name, port = sock.getsockname()[:2]
            if name in ("0.0.0.0", "::"):
                name = socket.gethostname()
        listener.environ = self.environ_for(name, str(port))
        if sock.family != socket.AF_UNIX:
            listener.environ["REMOTE_PORT"] = ""
        self.listeners.append(listener)

    def attach(self):
        """Begin to work in the hub of the calling thread; no listener is looked at yet."""
        Reactor.attach(self)
        os.register_at_fork(after_in_child=self.leave_to_parent)

    def adopt(self, sock):
        """Serve a connected stream socket as if a client had come over a UNIX socket. It is ours from now on."""
        cdef Connection connection = Connection.__new__(Connection)
        if self.watcher is None:
            self.attach()
        sock.setblocking(False)
        connection.fd = sock.detach()
        connection.address = "unix:"
        try:
            self.take_in(connection, self.environ_for("localhost", "80"), monotonic_ns())
        except BaseException:
            close(connection.fd)
            raise

    def start(self):
        """Attach to the hub if that isn't done, and accept: from here on everything counts and is logged."""
        cdef Listener listener
        cdef Service service = self.service
        if self.watcher is None:
            self.attach()
        for channel in self.channels():
            if isinstance(channel, Connection):
                (<Connection>channel).close(True)     # whose rehearsal has not ended
        service.slot = self.slot
        if self.access_log is not None:
            service.access_log = self.access_log
            service.log_entries = self.access_log.entries
            service.log_environ = self.access_log.needs_environ
        self.recheck = self.loop.timer(RECHECK, RECHECK)
        service.slot.beat()
        for each in self.listeners:
            listener = <Listener>each
            self.add(listener, False)

    cdef dict environ_for(self, str name, str port):
        """What the environ of every request to this address begins with."""
        cdef dict environ = dict.fromkeys(EACH_REQUEST, "")
        environ.update(self.base_environ, SERVER_NAME=name, SERVER_PORT=port)
        return environ

    def leave_to_parent(self):
        """In a process that the application forked: the clients and their events are the parent's.

        The epoll set is shared with the parent, and edge-triggered: an event that the child takes would never come
        again. The descriptors of clients and of servers that we talk to are closed here, so that a child that lives
        on doesn't keep them open.
        """
        self.detach()
        for channel in self.channels():
            if isinstance(channel, Stream):
                os.close((<Stream>channel).fd)
                (<Stream>channel).fd = -1

    def stop_accepting(self):
        """Leave the listeners to others. What waits in their queues stays there."""
        self.accepting = False
        for listener in self.listeners:
            (<Listener>listener).pending = False
            self.remove(<Listener>listener)

    def drain(self):
        """Let every connection end after its request; idle ones after a short linger.

        Who already waits in a listen queue is still taken in: closing the listener would reset them.
        """
        self.service.draining = True
        self.drain_ns = monotonic_ns()
        self.farewell = True
        self.set_tick(min(self.tick_seconds, DRAIN_TICK))
        for listener in self.listeners:
            self.accept_from(<Listener>listener)
        self.stop_accepting()

    def close_all(self):
        """Cut what is left, log what was open, and stop. Who still waits for a turn hears that it won't come."""
        self.stop_accepting()
        self.service.draining = True
        for channel in self.channels():
            if isinstance(channel, Connection):
                (<Connection>channel).farewell()
        self.tell_shed()
        if self.service.access_log is not None:
            self.service.access_log.flush()
        self.publish()
        if self.recheck is not None:
            self.recheck.stop()
            self.recheck.close()
            self.recheck = None
        self.detach()

    @property
    def open_requests(self):
        """Requests that have begun to arrive and have not been answered in full."""
        cdef long waiting = 0
        cdef int number
        for channel in self.members(LIST_HEAD):
            waiting += (<Connection>channel).end > (<Connection>channel).start
        for channel in self.ready:
            # Whoever waits there for a turn has probably sent a request that nobody has read.
            number = (<Channel>channel).list_number
            if number == LIST_IDLE or number == LIST_HEAD and (<Connection>channel).end == (<Connection>channel).start:
                waiting += 1
        for number in (LIST_BODY, LIST_RUN, LIST_SEND, LIST_QUEUE, LIST_GRANTED, LIST_TUNNEL):
            waiting += self.lists[number].length
        return waiting

    @property
    def connections(self):
        """Client connections of this worker."""
        return self.service.slot.data.connections

    def running(self):
        """The requests whose handlers run or wait, oldest first: (greenlet, request, target, seconds so far)."""
        cdef int64_t now = monotonic_ns()
        cdef Request request
        found = []
        for channel in self.members(LIST_RUN):
            request = (<Connection>channel).request
            if request is not None and request.greenlet is not None:
                found.append((request.greenlet, request, request.target, (now - request.begun_ns) * 1e-9))
        return found

    # ---- accepting --------------------------------------------------------------------------------

    cdef int may_accept(self, Listener listener):
        """Is there room, and is it our turn? Decides for one connection; NO, YES or YES_FOR_THE_IDLEST.

        With room, a worker that holds clearly more than another leaves the connection to that one, but not for
        long: the other may be busy, stopped or dead. At
        max_connections the connection idle for longest in the whole server makes room, and it is its worker
        that accepts; while none is idle, new ones wait in the listen queue.
        """
        cdef int64_t own = self.service.slot.data.connections
        cdef int64_t fewest, elsewhere
        cdef Connection oldest
        if not self.accepting:
            return NO
        if self.farewell:
            return YES if own < self.own_limit else NO
        fewest = self.board.fewest_connections()
        if own >= self.own_limit and 0 <= fewest < own - SLACK:
            return NO            # no descriptor here, but another worker has one: nobody has to go
        if self.board.total_connections() < self.max_connections and own < self.own_limit:
            if fewest < 0 or own <= fewest + SLACK + fewest // 8:
                return YES
            listener.overdue -= 1
            return YES if listener.overdue >= 0 else NO
        oldest = <Connection>self.oldest(LIST_IDLE)
        if oldest is None:
            return NO
        elsewhere = self.board.oldest_idle_elsewhere(self.service.slot.index)
        if elsewhere and elsewhere < oldest.since_ns and own < self.own_limit:
            return NO
        if oldest.readable or oldest.end > oldest.start:
            return NO                     # it is idle no longer: its next request waits for its turn
        return YES_FOR_THE_IDLEST

    cdef void accept_from(self, Listener listener) noexcept:
        """Take what waits in a listener, as far as there is room and it is our turn."""
        cdef char address[128]
        cdef socklen_t length
        cdef int fd, turn
        cdef int64_t now = monotonic_ns()
        cdef Connection connection
        self.seen_ns = now
        listener.pending = False
        while True:
            fd = -1
            try:
                turn = self.may_accept(listener)
                if turn == NO:
                    self.look_again(listener)
                    return
                length = sizeof(address)
                fd = accept4(listener.fd, <sockaddr *>address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
                if fd < 0:
                    if errno == EINTR or errno == ECONNABORTED or errno == EPROTO:
                        continue
                    listener.grant = 1
                    if errno != EAGAIN:
                        if now >= self.complain_ns:
                            self.complain_ns = now + COMPLAIN_NS
                            log.warning("accept failed: %s", os.strerror(errno))
                        self.look_again(listener)
                    return
                if turn == YES_FOR_THE_IDLEST:
                    (<Connection>self.oldest(LIST_IDLE)).close(False)
                connection = Connection.__new__(Connection)
                connection.fd = fd
                self.name_peer(connection, <sockaddr *>address)
                self.take_in(connection, listener.environ, now)
            except BaseException:
                log.exception("a connection could not be taken in")
                if fd >= 0:
                    close(fd)
                self.look_again(listener)
                return

    cdef int take_in(self, Connection connection, dict environ, int64_t now) except -1:
        """A connection whose descriptor and peer are known is ours; OSError when the kernel doesn't agree."""
        connection.service = self.service
        connection.base_environ = environ
        self.add(connection, True)
        self.service.slot.data.connections += 1
        self.service.slot.data.connections_total += 1
        self.enter(connection, LIST_HEAD, now)
        return 0

    cdef void look_again(self, Listener listener) noexcept:
        """The set is edge-triggered: what we leave in the queue must be looked at again by the clock."""
        listener.pending = self.accepting
        listener.overdue = 0
        if self.accepting and self.recheck is not None and not self.recheck.active:
            self.recheck.start(self._on_recheck)

    def _on_recheck(self):
        waiting = False
        for listener in self.listeners:
            if (<Listener>listener).pending:
                waiting = True
                (<Listener>listener).overdue = (<Listener>listener).grant
                (<Listener>listener).grant = min(2 * (<Listener>listener).grant, OVERDUE)
                self.make_ready(<Listener>listener)
        if not waiting:
            self.recheck.stop()

    cdef int name_peer(self, Connection connection, sockaddr *address) except -1:
        """The peer's address as text; one str for all connections from there."""
        cdef char text[64]
        cdef const char *source
        cdef int family = address.sa_family
        if family == AF_UNIX:
            connection.address = "unix:"
        else:
            if family == AF_INET:
                source = <const char *>&(<sockaddr_in *>address).sin_addr
                connection.port = ntohs((<sockaddr_in *>address).sin_port)
            else:
                source = <const char *>&(<sockaddr_in6 *>address).sin6_addr
                connection.port = ntohs((<sockaddr_in6 *>address).sin6_port)
                if memcmp(source, b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff", 12) == 0:
                    # An IPv4 client on a dual-stack listener is an IPv4 client.
                    family = AF_INET
                    source += 12
            inet_ntop(family, source, text, sizeof(text))
            key = <bytes>text
            known = self.addresses.get(key)
            if known is None:
                if len(self.addresses) >= ADDRESSES:
                    self.addresses.clear()
                known = self.addresses[key] = key.decode("ascii")
            connection.address = known
        if self.service.trusted is not None and self.service.trusted.trusts(connection.address):
            connection.trusted = connection.proxied = 1
        return 0

    # ---- the clock --------------------------------------------------------------------------------

    cdef int set_clock(self, int64_t now) except -1:
        cdef bytes text
        cdef double at = time.time()
        # Not strftime: an application may set a locale, and its days would be in the Date.
        text = formatdate(at, usegmt=True).encode("ascii")
        memcpy(self.service.date, <const char *>text, len(text) + 1)
        self.service.epoch = at - now * 1e-9
        self.second_ns = now + <int64_t>((1.0 - at % 1.0) * 1e9)
        return 0

    cdef int publish(self) except -1:
        """Say in the scoreboard what we hold."""
        cdef Channel oldest = self.oldest(LIST_IDLE)
        cdef SlotData *slot = self.service.slot.data
        slot.idle = self.lists[LIST_IDLE].length
        slot.oldest_idle_ns = oldest.since_ns if oldest is not None else 0
        slot.queued = self.lists[LIST_QUEUE].length + len(self.ready)
        slot.oldest_queued_ns = self.oldest_waiting() if slot.queued else 0
        return 0

    cdef int64_t oldest_waiting(self) except -1:
        """Since when the request waits that has waited longest for its turn; 0 = none does."""
        cdef int64_t since = self.oldest_ready()
        cdef int number
        for number in (LIST_GRANTED, LIST_QUEUE):
            if self.lists[number].length and (since == 0 or self.oldest(number).since_ns < since):
                since = self.oldest(number).since_ns
        return since

    cdef void on_batch(self) noexcept:
        cdef int64_t now = monotonic_ns()
        self.service.slot.data.heartbeat_ns = now
        if self.lists[LIST_QUEUE].length:
            grant(self, self.service)     # somebody who had been granted a turn may have left
        self.publish()
        if now >= self.second_ns:
            self.set_clock(now)

    cdef void on_tick(self) noexcept:
        cdef int64_t now = monotonic_ns()
        try:
            self.expire_list(LIST_HEAD, now - self.timeout_ns)
            self.expire_list(LIST_LINGER, now - self.lingering_ns)
            self.expire_list(LIST_IDLE, now - self.keep_alive_ns)
            if self.service.max_concurrency:
                self.expire_list(LIST_QUEUE, now - self.service.queue_ns)
            if self.drain_ns and now - self.drain_ns > DRAIN_LINGER_NS:
                self.expire_list(LIST_IDLE, now - DRAIN_LINGER_NS)
                self.expire_silent(now - DRAIN_LINGER_NS)
            if now >= self.tell_ns:
                self.tell_ns = now + COMPLAIN_NS if self.tell_shed() else 0
            self.expire_slow(LIST_BODY, now, self.receive_rate)
            self.expire_slow(LIST_SEND, now, self.send_rate)
            self.expire_tunnels(now)
            for channel in self.members(LIST_RUN):
                if (<Connection>channel).list_number == LIST_RUN:
                    (<Connection>channel).check(now, self.grace_ns, self.receive_rate, self.send_rate)
            if self.service.access_log is not None:
                self.service.access_log.flush()
        except BaseException:
            log.exception("the clock stumbled")

    cdef int expire_list(self, int number, int64_t until) except -1:
        """Everyone who entered the list before `until` has had their time."""
        cdef void *at = self.lists[number].first
        while at != NULL and (<Channel>at).since_ns < until:
            # Whoever walks a list must not change it: the connection's own turn comes with a leader.
            (<Connection>at).expired = 1
            self.make_ready(<Connection>at)
            at = (<Channel>at).next
        return 0

    cdef int expire_silent(self, int64_t until) except -1:
        """While draining: connections on which nothing ever came."""
        for channel in self.members(LIST_HEAD):
            if (<Channel>channel).since_ns < until and (<Connection>channel).end == (<Connection>channel).start:
                (<Connection>channel).expired = 1
                self.make_ready(<Connection>channel)
        return 0

    cdef int expire_tunnels(self, int64_t now) except -1:
        cdef void *at = self.lists[LIST_TUNNEL].first
        while at != NULL:
            if (<Pump>(<Connection>at).ears).is_idle(now):
                (<Connection>at).expired = 1
                self.make_ready(<Connection>at)
            at = (<Channel>at).next
        return 0

    cdef bint tell_shed(self) except? True:
        """Say in the error log how many requests were not served; True if there were any."""
        cdef Service service = self.service
        if not service.shed_untold and not service.gone_untold:
            return False
        log.warning("overloaded: %d requests were answered 503, the clients of %d had left while they waited",
                    service.shed_untold, service.gone_untold)
        service.shed_untold = service.gone_untold = 0
        return True

    cdef int expire_slow(self, int number, int64_t now, double rate) except -1:
        for channel in self.members(number):
            if (<Connection>channel).too_slow(now, self.grace_ns, rate):
                (<Connection>channel).expired = 1
                self.make_ready(<Connection>channel)
        return 0
