# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The worker's event machinery: descriptors that cost no greenlet while nothing happens on them.

All channels stand in one epoll set of our own, registered once, edge-triggered; the set itself is watched by
the gevent hub. When it has events, a *leader* greenlet works them off, one channel after the other, and runs
whatever they lead to right there, without a switch. If that blocks, gevent switches to the hub, which finds the
batch unfinished and appoints the next leader; the old one carries on when its wait is over and goes back to the
pool. So a handler that never blocks costs no switch at all, and one that does costs what gevent always costs.

A batch has a slice of time. What it doesn't get to goes into the ready queue, and as long as anybody waits there,
new events are only noticed, with the time, and join its end: whoever came first has the first turn, and how long
each has waited is known to about the duration of one handler.

Law: this module knows descriptors, greenlets and time. It knows no HTTP, no configuration, no other process.

The hub runs `run_batch` and `on_tick`; everything else runs in greenlets that may block.
"""

import logging
import resource
from collections import deque

import gevent
import gevent.hub

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from acme_wsgi.clock cimport monotonic_ns

log = logging.getLogger("acme.reactor")

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET

cdef extern from *:
    """
    #include "greenlet.h"
    static int import_greenlet(void) { PyGreenlet_Import(); return _PyGreenlet_API ? 0 : -1; }
    static PyObject *current_greenlet(void) { return (PyObject *)PyGreenlet_GetCurrent(); }
    static PyObject *switch_to(PyObject *to) { return PyGreenlet_Switch((PyGreenlet *)to, NULL, NULL); }
    """
    int import_greenlet() except -1
    object current_greenlet()
    object switch_to(object greenlet)

import_greenlet()

from greenlet import greenlet as raw_greenlet

cdef enum:
    BATCH = 256
    POOLED = 512              # idle greenlets kept; more than that end
    SLICE_NS = 5000000        # a batch may run this long before other greenlets get their turn
    POLLS = 16                # so many batches are noticed at once
    MOST_DESCRIPTORS = 4194304


# Between these lies the resolution of the timers, in seconds: enough for most limits, and no load to speak of.
cdef double FINEST_TICK = 0.02
cdef double COARSEST_TICK = 0.5


cdef object running():
    """The greenlet that runs."""
    return current_greenlet()


cdef Reactor attached = None


cpdef Reactor current():
    """The reactor that works in this process; RuntimeError before one does."""
    if attached is None:
        raise RuntimeError("no reactor is attached in this process")
    return attached


cdef class Channel:
    """One descriptor in the reactor's care. Subclasses say what an event on it means."""

    cdef void on_event(self) noexcept:
        """Something happened and nobody waits for it. Runs in a leader greenlet and may block.

        Who looks at the clock meanwhile says so in `reactor.seen_ns`: the batch is timed by it.
        """

    cdef int wait(self, int what) except -1:
        """Park the running greenlet until the descriptor is readable or writable (again).

        Call it only after the descriptor refused with EAGAIN: the set is edge-triggered. Whatever is thrown
        into the greenlet meanwhile comes out of here. It may come back early, so ask the descriptor again.
        """
        if what & WAIT_READ and self.readable:
            return 0                      # that edge came while the greenlet waited for something else
        if self.fd < 0:
            return 0                      # it was closed meanwhile: no event would ever come
        if self.waiting:
            raise RuntimeError("another greenlet already waits for this connection")
        self.waiting = <uint8_t>what
        self.greenlet = current_greenlet()
        try:
            switch_to(self.reactor.hub)
        finally:
            self.waiting = WAIT_NONE
            self.greenlet = None
        return 0

    cdef int wait_until(self, int what, int64_t deadline_ns) except -1:
        """As `wait`; raises TimeoutError once CLOCK_MONOTONIC has passed `deadline_ns` (0 = never).

        Costs no timer: the reactor's tick looks at all who wait, and its length is how late that may be (see
        `need_tick`). Only for channels that stand in no list: in another one they have that one's limits.
        """
        if deadline_ns == 0 or what & WAIT_READ and self.readable:
            return self.wait(what)
        if monotonic_ns() >= deadline_ns:
            raise overdue(what)
        if self.list_number:
            raise RuntimeError("a channel in a timed list can't wait with a deadline of its own")
        self.deadline_ns = deadline_ns
        self.reactor.enter(self, LIST_WAITING, 0)
        try:
            return self.wait(what)
        finally:
            if self.list_number == LIST_WAITING:
                self.reactor.leave(self)


cdef class Reactor:
    """One per worker. `tick_seconds` is the resolution of every timer: `need_tick` makes it finer."""

    def __cinit__(self, *_):
        self.epoll = -1
        self.table_size = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if not 0 < self.table_size <= MOST_DESCRIPTORS:
            self.table_size = MOST_DESCRIPTORS
        # Untouched pages of it cost nothing.
        self.table = <void **>calloc(self.table_size, sizeof(void *))
        self.events = calloc(BATCH, sizeof(epoll_event))
        if self.table == NULL or self.events == NULL:
            raise MemoryError
        memset(self.lists, 0, sizeof(self.lists))
        self.tick_seconds = 0.25
        self.idle_greenlets = []
        self.woken = []
        self.ready = deque()
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1 failed")

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        free(self.table)
        free(self.events)

    def attach(self):
        """Begin to work in the hub of the calling thread; from here on it is the `current` one."""
        global attached
        attached = self
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.watcher = self.loop.io(self.epoll, 1)
        self.watcher.start(self._on_poll)
        self.timer = self.loop.timer(self.tick_seconds, self.tick_seconds)
        self.timer.start(self._on_timer)
        self.resume = self.loop.timer(0)

    def detach(self):
        """Stop working; channels stay as they are."""
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher.close()
            self.timer.stop()
            self.timer.close()
            self.resume.stop()
            self.resume.close()
            self.watcher = self.timer = self.resume = None

    cdef void set_tick(self, double seconds):
        """Another resolution for the timers from now on."""
        self.tick_seconds = seconds
        if self.timer is not None:
            self.timer.stop()
            self.timer.close()
            self.timer = self.loop.timer(seconds, seconds)
            self.timer.start(self._on_timer)

    cpdef void need_tick(self, double seconds):
        """Somebody has a limit of so many seconds: the timers shall be fine enough for it, if they aren't yet."""
        cdef double tick = min(COARSEST_TICK, max(FINEST_TICK, seconds / 8))
        if tick < self.tick_seconds:
            self.set_tick(tick)

    # ---- channels -------------------------------------------------------------------------------

    cdef int add(self, Channel channel, bint writing) except -1:
        """Take a channel in; OSError when the kernel doesn't."""
        cdef epoll_event event
        if channel.fd >= self.table_size:
            raise OSError(24, "descriptor past the reactor's table")
        self.generations += 1
        channel.generation = self.generations
        channel.reactor = self
        event.events = EPOLLIN | EPOLLRDHUP | EPOLLET
        if writing:
            event.events |= EPOLLOUT
        event.data.u64 = (<uint64_t>channel.generation << 32) | <uint32_t>channel.fd
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, channel.fd, &event) < 0:
            raise OSError(errno, "epoll_ctl failed")
        Py_INCREF(channel)
        self.table[channel.fd] = <void *>channel
        return 0

    cdef void remove(self, Channel channel) noexcept:
        """Forget a channel. The caller closes the descriptor, which takes it out of the epoll set."""
        cdef epoll_event event
        self.leave(channel)
        if channel.fd >= 0 and self.table[channel.fd] == <void *>channel:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, channel.fd, &event)
            self.table[channel.fd] = NULL
            if channel.waiting:
                self.wake(channel)        # no event of it comes any more
            Py_DECREF(channel)

    def channels(self):
        """All channels, for a last farewell."""
        cdef long fd
        return [<object>self.table[fd] for fd in range(self.table_size) if self.table[fd] != NULL]

    # ---- timed lists: first in, first due ---------------------------------------------------------

    cdef void enter(self, Channel channel, int number, int64_t now) noexcept:
        """Put the channel at the end of list `number`, out of any other."""
        cdef Links *links = &self.lists[number]
        self.leave(channel)
        if channel.fd < 0:
            return                        # the lists hold no references: who is closed stands in none
        channel.list_number = <uint8_t>number
        channel.since_ns = now
        channel.previous = links.last
        channel.next = NULL
        if links.last != NULL:
            (<Channel>links.last).next = <void *>channel
        else:
            links.first = <void *>channel
        links.last = <void *>channel
        links.length += 1

    cdef void leave(self, Channel channel) noexcept:
        cdef Links *links
        if channel.list_number == 0:
            return
        links = &self.lists[channel.list_number]
        if channel.previous != NULL:
            (<Channel>channel.previous).next = channel.next
        else:
            links.first = channel.next
        if channel.next != NULL:
            (<Channel>channel.next).previous = channel.previous
        else:
            links.last = channel.previous
        channel.previous = channel.next = NULL
        channel.list_number = 0
        links.length -= 1

    cdef Channel oldest(self, int number):
        """Who has stood longest in list `number`, or None."""
        if self.lists[number].first == NULL:
            return None
        return <Channel>self.lists[number].first

    cdef list members(self, int number):
        """A copy of list `number`, oldest first: whoever walks it may change the list."""
        cdef void *at = self.lists[number].first
        found = []
        while at != NULL:
            found.append(<Channel>at)
            at = (<Channel>at).next
        return found

    # ---- the batch --------------------------------------------------------------------------------

    cdef void make_ready(self, Channel channel) noexcept:
        """Its turn comes again after everybody else's, without waiting for an event."""
        if not channel.queued:
            self.put(channel, monotonic_ns())
            self.arm()

    cdef void put(self, Channel channel, int64_t now) noexcept:
        channel.queued = 1
        channel.noticed_ns = now
        self.ready.append(channel)

    cdef int64_t oldest_ready(self):
        """Since when the first in the ready queue waits, 0 = nobody does."""
        for channel in self.ready:
            return (<Channel>channel).noticed_ns
        return 0

    cdef void wake(self, Channel channel) noexcept:
        """Let the greenlet that waits for the channel look again, though nothing happened on it."""
        self.woken.append(channel)
        self.arm()

    cdef void arm(self) noexcept:
        if not self.armed:
            self.armed = True
            self.loop.run_callback(self._on_ready)

    def _on_ready(self):
        self.armed = False
        self._on_poll()

    def _on_poll(self):
        if self.watcher is not None:      # else we are detached: the set may be another process's to read
            self.poll()
            if self.ready:
                self.notice()
        self.run_batch()

    cdef int poll(self) except -1:
        """Take the next events; the array is empty before."""
        cdef int count = epoll_wait(self.epoll, <epoll_event *>self.events, BATCH, 0)
        if count < 0:
            if errno != EINTR:
                raise OSError(errno, "epoll_wait failed")
            count = 0
        self.event_count = count
        self.event_index = 0
        return count

    cdef int notice(self) except -1:
        """Others wait for their turn: whoever is new joins their end. In bounded time; the rest is noticed later."""
        cdef int64_t now = monotonic_ns()
        cdef int polls
        cdef void *at
        for polls in range(POLLS):
            while self.event_index < self.event_count:
                at = note(self, &(<epoll_event *>self.events)[self.event_index])
                self.event_index += 1
                if at != NULL and not (<Channel>at).queued:
                    self.put(<Channel>at, now)
            if self.event_count < BATCH or polls == POLLS - 1:
                break
            self.poll()
        return 0

    cdef int put_off(self, int64_t now) except -1:
        """The slice is over: what is left of the batch waits, before those who came while it ran."""
        cdef void *at
        while self.event_count > self.event_index:
            self.event_count -= 1
            at = note(self, &(<epoll_event *>self.events)[self.event_count])
            if at != NULL and not (<Channel>at).queued:
                (<Channel>at).queued = 1
                (<Channel>at).noticed_ns = now
                self.ready.appendleft(<Channel>at)
        return 0

    def _on_timer(self):
        if self.lists[LIST_WAITING].first != NULL:
            self.end_waits()
        self.on_tick()
        self.on_batch()

    cdef int end_waits(self) except -1:
        """In the hub: throw into every greenlet whose wait has lasted until its deadline."""
        cdef int64_t now = monotonic_ns()
        cdef Channel channel
        for each in self.members(LIST_WAITING):
            channel = <Channel>each
            # Those before it may have changed who waits.
            if channel.list_number == LIST_WAITING and channel.greenlet is not None and channel.deadline_ns <= now:
                try:
                    channel.greenlet.throw(overdue(channel.waiting))
                except BaseException:
                    log.exception("a greenlet did not survive the end of its wait")
        return 0

    cdef int run_batch(self) except -1:
        """In the hub: let leaders work until the batch is done, then wake those whose wait is over."""
        cdef Channel channel
        cdef list woken
        cdef int64_t now = monotonic_ns()
        if not self.continued:
            self.until = now + SLICE_NS
        self.continued = False
        while True:
            self.batch_done = False
            if self.idle_greenlets:
                worker = self.idle_greenlets.pop()
            else:
                worker = raw_greenlet(self._lead, self.hub)
                self.greenlets += 1
            switch_to(worker)
            # A handler that blocked had its share as well: its batch goes on after other greenlets' turn.
            if self.batch_done or monotonic_ns() > self.until:
                break
        self.leader = None
        if self.event_index < self.event_count:
            self.put_off(now)
        if self.woken:
            woken, self.woken = self.woken, []
            for waiting in woken:
                channel = <Channel>waiting
                if channel.greenlet is not None:
                    switch_to(channel.greenlet)
        if self.ready and not self.armed and self.resume is not None:
            if self.seen_ns <= self.until:
                self.continued = True
                self.arm()
            else:
                # Not by a callback: the loop runs dozens of those before it looks at timers and descriptors again.
                self.armed = True
                self.resume.start(self._on_ready)
        self.on_batch()
        return 0

    def _lead(self, *_):
        """The life of a pooled greenlet: lead, perhaps block, come back, park."""
        me = current_greenlet()
        while True:
            self.process(me)
            if len(self.idle_greenlets) >= POOLED:
                self.greenlets -= 1
                return
            self.idle_greenlets.append(me)
            switch_to(self.hub)

    cdef void process(self, object me) noexcept:
        """Work off events and then one round of the ready queue, as long as nobody else leads."""
        cdef epoll_event *events = <epoll_event *>self.events
        cdef Channel channel
        cdef void *at
        cdef long round_
        self.leader = me
        self.waiting_ns = 0
        while self.event_index < self.event_count:
            at = note(self, &events[self.event_index])
            self.event_index += 1
            if at != NULL:
                channel = <Channel>at
                channel.on_event()
                if self.leader is not me:
                    return
                if self.seen_ns > self.until:
                    break
        round_ = len(self.ready)
        while round_ > 0 and self.ready and self.seen_ns <= self.until:
            round_ -= 1
            channel = <Channel>self.ready.popleft()
            channel.queued = 0
            if channel.fd >= 0 and (not channel.waiting or channel.holding and channel.waiting == WAIT_READ):
                self.waiting_ns = channel.noticed_ns
                channel.on_event()
                if self.leader is not me:
                    return
        self.batch_done = True

    cdef void on_batch(self) noexcept:
        """After each batch, in the hub; must not block."""

    cdef void on_tick(self) noexcept:
        """Every `tick_seconds`, in the hub; must not block."""


cdef object overdue(int what):
    """The exception for a deadline that has passed."""
    return TimeoutError("the peer sent nothing in time" if what & WAIT_READ else "the peer took nothing in time")


cdef inline void *note(Reactor reactor, epoll_event *event) noexcept:
    """What an event tells of its channel is noted there. Returns whose turn it is, borrowed, or NULL."""
    cdef uint32_t fd = <uint32_t>event.data.u64      # the low half; the generation is the high one
    cdef void *at = reactor.table[fd]
    # A stale event of a descriptor that was closed, perhaps taken again, since the poll.
    if at == NULL or (<Channel>at).generation != <uint32_t>(event.data.u64 >> 32):
        return NULL
    if event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        (<Channel>at).readable = 1
    if event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        (<Channel>at).ended = 1
        if event.events & (EPOLLHUP | EPOLLERR):
            (<Channel>at).hung_up = 1
    if not (<Channel>at).waiting:
        return at
    if (<Channel>at).hung_up or ((<Channel>at).waiting & WAIT_READ and (<Channel>at).readable) \
            or ((<Channel>at).waiting & WAIT_WRITE and event.events & EPOLLOUT):
        reactor.woken.append(<Channel>at)
    if (<Channel>at).holding and (<Channel>at).waiting == WAIT_READ and event.events & EPOLLOUT:
        return at
    return NULL
