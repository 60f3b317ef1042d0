# cython: boundscheck=False, wraparound=False
"""The connections of one worker to all backends: kept alive, counted, bounded, and handed out in turn.

    acquire: an idle one -> else a new one -> else, at the limit, an idle one of another backend makes room
             -> else wait in line -> release or closed: the first in line goes on

Law: decides who gets which connection and when one ends. Nothing here knows HTTP, nor which backend is chosen. Whoever
waits is served in the order of coming, whatever the backend.
"""

import errno
import logging
import socket
from collections import OrderedDict

import gevent

from acme_wsgi.errors import BackendError, ClientDisconnected, HTTPError

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.reactor cimport running
from acme_wsgi.upstream.link cimport Link
from acme_wsgi.upstream.tls import TLSLink, handshake

log = logging.getLogger("acme.upstream")

WAITING_LIMIT = 100_000
"""Requests of one worker that may wait for a connection; more than clients can be connected, as it is delivered."""


# What this machine has run out of.
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


class PoolFull(HTTPError):
    """No connection became free in time, or none can be opened."""

    def __init__(self):
        super().__init__(503, "The servers behind this one are busy.", headers=[("Retry-After", "1")])


cdef enum:
    WAITS
    HAS_TURN                 # a connection is theirs, or the right to make one
    LATE                     # their time is over
    LEFT                     # their client has gone

# How often the line is looked through for those whose time is over, in seconds. One timer for all: with one for each,
# waiting cost as much as the request itself.
cdef double LOOK = 0.2


cdef class Place:
    """A request's on its way to a connection: in the line for one, and while one is made."""

    cdef bint has_waited(self) noexcept:
        """Has it stood in the line?"""
        return self.pool is not None

    def leave(self):
        """Its client has gone: others go on in its place. Does nothing for one who has its connection."""
        self.left = True
        if self.pool is not None and self in self.pool.waiters:
            del self.pool.waiters[self]
            self.decide(LEFT, None)
        elif self.making is not None:
            self.making.abort()

    cdef int decide(self, int outcome, Link link) except -1:
        """What has come of the waiting; its greenlet hears of it in the loop's next round."""
        self.outcome = outcome
        self.link = link
        self.pool.hub.loop.run_callback(self.resume)
        return 0

    def resume(self):
        if self.greenlet is not None:     # else it was ended meanwhile by somebody else
            self.greenlet.switch()


cdef class Pool:
    """What `server.connection_pool` says, and the connections of all shelves together.

    settings: the section. slot: this worker's on the Board.
    """

    def __init__(self, settings, int slot, long waiting_limit=WAITING_LIMIT):
        self.limit = settings.max_per_worker
        self.reuse = settings.reuse_connections
        self.idle_ns = <int64_t>(settings.idle_timeout * 1e9)
        self.min_idle = settings.min_idle if self.reuse else 0
        self.slot = slot
        self.waiting_limit = waiting_limit
        self.waiters = OrderedDict()
        self.shelves = []

    @property
    def waiting(self):
        """Requests that wait for a connection."""
        return len(self.waiters)

    def make_room(self):
        """At the limit: close the connection that has been idle for longest, of whichever backend. False if none is."""
        cdef Shelf oldest = None
        cdef Link first
        for shelf in self.shelves:
            if (<Shelf>shelf).idle:
                first = <Link>(<Shelf>shelf).idle[0]
                if oldest is None or first.since < (<Link>oldest.idle[0]).since:
                    oldest = <Shelf>shelf
        if oldest is None:
            return False
        (<Link>oldest.idle[0]).close()
        return True

    cdef Link wait_in_line(self, Shelf shelf, Place place, int64_t deadline_ns):
        """Wait for a turn: a connection to this very backend, or None, which is the right to make one."""
        cdef Link link
        if len(self.waiters) >= self.waiting_limit:
            raise PoolFull
        place.pool, place.shelf, place.deadline_ns = self, shelf, deadline_ns
        place.outcome = WAITS
        self.waiters[place] = None
        self.watch()
        place.greenlet = running()
        try:
            while place.outcome == WAITS:
                self.hub.switch()
        except BaseException:
            if place.outcome == HAS_TURN:      # it came in the very moment in which we were ended
                self.pass_on(place.link)
            else:
                self.waiters.pop(place, None)
            raise
        finally:
            place.greenlet = None
        if place.outcome == LATE:
            raise PoolFull
        if place.outcome == LEFT:
            raise ClientDisconnected("the client went away while its request waited for a backend")
        link, place.link = place.link, None
        return link

    cdef int watch(self) except -1:
        """Somebody waits: look for those whose time is over, as long as anybody does."""
        if self.hub is None:
            self.hub = gevent.get_hub()
            self.timer = self.hub.loop.timer(LOOK, LOOK)
        if not self.timer.active:
            self.timer.start(self.end_late, update=True)
        return 0

    def end_late(self):
        """In the hub, now and then."""
        cdef int64_t now = monotonic_ns()
        if not self.waiters:
            self.timer.stop()
            return
        for place in [place for place in self.waiters if (<Place>place).deadline_ns <= now]:
            del self.waiters[place]
            (<Place>place).decide(LATE, None)

    cdef Place first_in_line(self):
        """Who has waited for longest; waits no more."""
        return <Place>self.waiters.popitem(last=False)[0]

    def pass_on(self, Link link):
        """A turn that nobody took."""
        if link is not None:
            (<Shelf>link.shelf).release(link, True)
        else:
            self.open -= 1
            self.next_turn()

    def next_turn(self):
        """There is room for one more: who waits for longest may connect."""
        if self.waiters and self.open < self.limit:
            self.open += 1
            self.first_in_line().decide(HAS_TURN, None)


cdef class Shelf:
    """The connections of this worker to one backend.

    peer: its handle on the Board. target: target.Target. resolver: resolve.Resolver, None for a UNIX socket. context: an
    ssl.SSLContext, None for plain HTTP.
    """

    def __init__(self, Pool pool not None, peer, target, resolver, context):
        self.pool = pool
        self.peer = peer
        self.target = target
        self.resolver = resolver
        self.context = context
        self.idle = []
        self.busy = set()
        pool.shelves.append(self)

    # ---- for a request ----------------------------------------------------------------------------

    cpdef Link acquire(self, int64_t queue_deadline_ns, int64_t connect_ns, bint fresh=False,
                       int64_t until_ns=0, Place place=None):
        """A connection, an idle one if there is any.

        queue_deadline_ns: until then it waits at the limit. connect_ns: how long connecting may take. fresh: a new one,
        even where one is idle. until_ns: connecting ends then in any case, 0 = it doesn't. place: by which it can leave the
        line. Raises PoolFull, BackendError; ClientDisconnected for who has left.
        """
        cdef Link link
        cdef Pool pool = self.pool
        if place is None:
            place = Place()
        while self.idle and not fresh:
            link = <Link>self.idle.pop()
            if link.usable():
                return self.take(link)
            link.close()
        if pool.waiters or pool.open >= pool.limit and not pool.make_room():
            link = pool.wait_in_line(None if fresh else self, place, queue_deadline_ns)
            if link is not None:
                if link.usable():
                    return self.take(link)
                pool.open += 1            # it ended on its way to us: its place stays ours when it closes
                link.close()
            return self.take(self.connect(connect_ns, until_ns, place))
        pool.open += 1
        return self.take(self.connect(connect_ns, until_ns, place))

    cdef Link take(self, Link link):
        link.begin()
        self.busy.add(link)
        return link

    def connect(self, int64_t connect_ns, int64_t until_ns=0, Place place=None):
        """A new connection; its place in the pool is counted already, and given back when it can't be made."""
        cdef int64_t deadline = monotonic_ns() + connect_ns
        if until_ns and until_ns < deadline:
            deadline = until_ns
        try:
            link = self.connect_alone(deadline, place)
        except BaseException as error:
            self.pool.open -= 1
            self.pool.next_turn()
            if isinstance(error, OSError) and error.errno in _OURS:
                # It is no fault of the backend's, nor one of the program's.
                log.warning("backend %s: no connection can be opened: %s", self.target.shown, error.strerror)
                raise PoolFull from None
            raise
        link.adopt(self)
        self.peer.add_connections(self.pool.slot, 1)
        return link

    def connect_alone(self, int64_t deadline_ns, Place place=None):
        """A connection that is not the pool's: to the first of the backend's addresses that takes it.

        place: whose it will be; once that has left it raises ClientDisconnected.
        """
        cdef int64_t now
        error = None
        addresses = self.addresses(deadline_ns)
        for number, address in enumerate(addresses):
            # One that doesn't answer must leave time for the others.
            now = monotonic_ns()
            try:
                return self.dial(address, now + (deadline_ns - now) // (len(addresses) - number),
                                 place if place is not None else Place())
            except BackendError as failed:
                error = failed
                if self.resolver is not None:
                    self.resolver.failed(address)
        raise error if error is not None else BackendError.unreachable("its name has no address")

    cdef Link dial(self, tuple address, int64_t deadline_ns, Place place):
        """A connection to one address."""
        cdef Link link = TLSLink(None, self.context, self.target.server_name) if self.context is not None else Link(None)
        link.address = address
        place.making = link
        try:
            if not place.left:
                link.connect(address[0], address[1], deadline_ns)
                if self.context is not None:
                    handshake(link, deadline_ns)
        except BaseException:
            link.close()
            if not place.left:
                raise
        finally:
            place.making = None
        if place.left:
            link.close()
            raise ClientDisconnected("the client went away while a connection to a backend was made")
        return link

    def addresses(self, int64_t deadline_ns):
        """(family, address) pairs, in the order in which they are tried."""
        if self.resolver is None:
            return ((socket.AF_UNIX, self.target.socket),)
        try:
            return self.resolver.addresses((deadline_ns - monotonic_ns()) * 1e-9)
        except TimeoutError:
            raise BackendError.slow("its name could not be resolved in time", connecting=True) from None
        except OSError as error:
            raise BackendError.unreachable(f"its name could not be resolved: {error.strerror or error}") from None

    # ---- after a request --------------------------------------------------------------------------

    cpdef int release(self, Link link, bint reusable) except -1:
        """A request is done with the connection."""
        cdef Pool pool = self.pool
        self.busy.discard(link)
        if not reusable or not pool.reuse or link.astray or not link.rest():
            link.close()
            return 0
        if pool.waiters:
            # The loop has had no time to hear what happened on it.
            if (<Place>next(iter(pool.waiters))).shelf is self and link.usable():
                pool.first_in_line().decide(HAS_TURN, link)
            else:
                link.close()              # which gives the first in line its turn
            return 0
        link.since = monotonic_ns()
        self.idle.append(link)
        return 0

    def closed(self, Link link, bint rested):
        """Called by each connection at its end."""
        self.busy.discard(link)
        if rested and link in self.idle:
            self.idle.remove(link)
        self.pool.open -= 1
        self.peer.add_connections(self.pool.slot, -1)
        self.pool.next_turn()

    # ---- now and then -----------------------------------------------------------------------------

    def tidy(self, int64_t now):
        """Close what leads elsewhere by now, and what has been idle for too long, except for what is to be kept warm."""
        if self.resolver is not None:
            self.follow_name()
        while len(self.idle) > self.pool.min_idle and now - (<Link>self.idle[0]).since > self.pool.idle_ns:
            (<Link>self.idle[0]).close()

    def follow_name(self):
        """The backend may have moved: no request shall follow to an address that its name has no more."""
        cdef Link link
        self.resolver.refresh()
        current = self.resolver.current
        for link in self.idle[:]:
            if link.address not in current:
                link.close()
        for link in self.busy:
            link.astray = link.address not in current

    def warm(self, int64_t connect_ns):
        """Make one more idle connection if fewer than wanted are there; False when there is nothing to do."""
        cdef Pool pool = self.pool
        if len(self.idle) >= pool.min_idle or pool.open >= pool.limit or pool.waiters:
            return False
        pool.open += 1
        link = self.connect(connect_ns)
        self.release(link, True)
        return True

    def drop_idle(self):
        """Close every idle connection: the backend is taken out, or the worker leaves."""
        for link in self.idle[:]:
            (<Link>link).close()

    def cut(self):
        """Break off what is under way: the time of a backend that was taken out is over."""
        for link in list(self.busy):
            (<Link>link).abort()
