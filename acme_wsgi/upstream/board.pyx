# cython: boundscheck=False, wraparound=False, cdivision=True
"""The board of backends: what all workers know of each, in fixed shared memory, and whose turn it is.

A *peer* is a backend as a server: its health, its circuit and its counters, over all groups, workers and generations
of the configuration. A *group* is the weighted list that a route balances over; its *members* are peers with a
weight and a place in the round. Because the round is shared, the sum over all workers follows the weights exactly,
however few requests there are.

The memory is an anonymous shared mapping made by the arbiter before the first fork. The arbiter alone makes and frees
entries; everybody else looks them up and changes what is in them, with atomic additions and, where several words
belong together, under a lock that can't be held beyond the grave (board_lock.h). Each use of an entry has a serial
number: a handle on one that has been freed finds nobody usable and writes nothing.

Law: this module knows keys, numbers and states. It knows neither URLs nor requests nor processes, and imports
nothing that would load gevent. The layout is in board_layout.h, the entries in board_entries.h, the states in
board_health.h, the picks in board_pick.h.
"""

import mmap

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.string cimport memcpy, memset

cimport cython

from acme_wsgi.errors import AcmeError

cdef extern from "board_lock.h":
    int watch_forks()
    uint64_t lock_take(uint64_t *word) nogil
    void lock_drop(uint64_t *word, uint64_t ticket) nogil
    bint is_gone(int64_t pid) nogil

cdef extern from "board_health.h":
    enum:
        UP, DOWN, SECOND
    int64_t board_now(const BoardEntry *board) nogil
    bint is_current(const uint32_t *serial, uint32_t known) nogil
    int mark_check(const BoardEntry *board, PeerEntry *peer, bint ok) nogil
    int state_of(const BoardEntry *board, PeerEntry *peer) nogil

cdef extern from "board_pick.h":
    int64_t active_on(const Places *at, int peer) nogil
    int group_pick(const GroupView *view, uint64_t tried, uint64_t hash, bint repeatable) nogil
    bint group_usable(const GroupView *view, int member) nogil
    bint group_failed(const GroupView *view, int member, int64_t took, bint connecting) nogil
    void group_begin(const GroupView *view, int member, int slot) nogil
    bint group_judge(const GroupView *view, int member, bint ok, int64_t took, bint connecting) nogil
    void *group_leave(const GroupView *view, int member, int slot) nogil
    void group_abandon(const GroupView *view, int member, int slot, int64_t took) nogil
    bint group_end(const GroupView *view, int member, int slot, bint ok, int64_t took, bint connecting) nogil

cdef extern from "board_entries.h":
    void turn_serial(uint32_t *serial) nogil
    int find_peer(const Places *at, const unsigned char *key) nogil
    int find_group(const Places *at, const unsigned char *key) nogil
    int take_peer(const Places *at, uint32_t *cursor, const unsigned char *key) nogil
    int free_group(const Places *at, uint32_t *cursor) nogil

cdef extern from *:
    """
    #define acme_add(place, n) __atomic_fetch_add((place), (n), __ATOMIC_RELAXED)
    """
    void acme_add_word "acme_add"(uint64_t *place, int n) nogil
    void acme_add_half "acme_add"(int32_t *place, int n) nogil

ROUND_ROBIN, LEAST_CONN, IP_HASH = 0, 1, 2
MAX_MEMBERS = MOST_MEMBERS
MAX_WEIGHT = MOST_WEIGHT

SLOW_START_NS = 30 * 1_000_000_000
ELECTION_LASTS_NS = 3 * 1_000_000_000
cdef int64_t _ELECTION_LASTS = ELECTION_LASTS_NS

# In the order of the enumeration in board_health.h.
STATES = ("up", "down", "open", "half-open", "draining", "slow-start")

if watch_forks() != 0:
    raise MemoryError("pthread_atfork")


class BoardFull(AcmeError):
    """There is no room for another backend or group; the limits are `Board`'s arguments."""


cdef size_t rounded(size_t size) noexcept:
    """To whole cache lines: what two kinds of entries hold is never in one."""
    return (size + 63) // 64 * 64


cdef const unsigned char *checked(bytes key) except NULL:
    if key is None or len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes: {key!r}")
    return <const unsigned char *>key


@cython.final
cdef class Board:
    """Shared memory for `peers` backends in `groups` groups with `members` members in all, used by `slots` workers.

    Raises ValueError for a size below one, OSError when the mapping can't be made.
    """

    def __cinit__(self, int slots, *, int peers=1024, int groups=512, int members=4096):
        if min(slots, peers, groups, members) < 1:
            raise ValueError("a board needs at least one slot, peer, group and member")
        cdef Py_buffer view
        cdef char *base
        cdef size_t[5] sizes
        sizes[0] = rounded(sizeof(BoardEntry))
        sizes[1] = rounded(<size_t>peers * sizeof(PeerEntry))
        sizes[2] = rounded(<size_t>groups * sizeof(GroupEntry))
        sizes[3] = rounded(<size_t>members * sizeof(MemberEntry))
        sizes[4] = <size_t>slots * peers * sizeof(Cell)
        # Anonymous memory is zeroed, and what nobody touches costs nothing.
        self.memory = mmap.mmap(-1, sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4])
        PyObject_GetBuffer(self.memory, &view, PyBUF_WRITABLE)
        base = <char *>view.buf
        # The mapping lives as long as self.memory, which nobody else can reach to close.
        PyBuffer_Release(&view)
        self.at.board = <BoardEntry *>base
        self.at.peers = <PeerEntry *>(base + sizes[0])
        self.at.groups = <GroupEntry *>(base + sizes[0] + sizes[1])
        self.at.members = <MemberEntry *>(base + sizes[0] + sizes[1] + sizes[2])
        self.at.cells = <Cell *>(base + sizes[0] + sizes[1] + sizes[2] + sizes[3])
        self.at.slots, self.at.peer_count = slots, peers
        self.at.group_count, self.at.member_count = groups, members
        self.at.board.slow_start = SLOW_START_NS

    @property
    def slots(self):
        """How many workers there is room for."""
        return self.at.slots

    @property
    def slow_start_ns(self):
        """How long a backend that came back gets less than its share."""
        return self.at.board.slow_start

    @slow_start_ns.setter
    def slow_start_ns(self, int64_t value):
        self.at.board.slow_start = value

    @property
    def clock_ns(self):
        """Where the board's clock stands, for tests that go forward in time; 0 = it runs."""
        return self.at.board.frozen

    @clock_ns.setter
    def clock_ns(self, int64_t value):
        self.at.board.frozen = value

    # -- the arbiter's alone

    def enrol(self, bytes key, *, int unhealthy_threshold, int healthy_threshold):
        """The peer of a key of 16 bytes: the one there is, its state kept, or a new one that is up.

        Raises BoardFull, and ValueError for a key of another length or a threshold below 1.
        """
        cdef int index = find_peer(&self.at, checked(key))
        if min(unhealthy_threshold, healthy_threshold) < 1:
            raise ValueError(f"thresholds of {unhealthy_threshold} and {healthy_threshold}")
        if index < 0:
            index = take_peer(&self.at, &self.peer_cursor, key)
        if index < 0:
            raise BoardFull(f"{self.at.peer_count} backends are known already")
        cdef PeerEntry *data = &self.at.peers[index]
        data.unhealthy, data.healthy = unhealthy_threshold, healthy_threshold
        return self.handle_on(index, data.serial)

    def group(self, bytes key, int algorithm, members):
        """The group of a key of 16 bytes over (peer, weight) pairs: the one there is, its round kept, or a new one.

        Raises BoardFull; ValueError when the key already stands for something else, and for anything out of bounds.
        """
        cdef int index = find_group(&self.at, checked(key))
        if algorithm not in (ROUND_ROBIN, LEAST_CONN, IP_HASH):
            raise ValueError(f"no algorithm {algorithm}")
        if not 1 <= len(members) <= MOST_MEMBERS:
            raise ValueError(f"a group has 1 to {MOST_MEMBERS} members, not {len(members)}")
        cdef Peer peer
        for peer, weight in members:
            if peer.board is not self or peer.gone():
                raise ValueError(f"peer {peer.key.hex()} is not on this board")
            if not 1 <= weight <= MOST_WEIGHT:
                raise ValueError(f"a weight is from 1 to {MOST_WEIGHT}, not {weight}")
        if index < 0:
            index = self.new_group(key, algorithm, members)
        elif not self.is_group(index, algorithm, members):
            raise ValueError(f"group {key.hex()} has other members or another algorithm")
        return self.group_handle(index)

    def retain(self, peers, groups):
        """Free all peers and groups but those with these keys. Handles on them find nobody, and write nothing."""
        cdef int index
        for index in range(self.at.group_count):
            if self.at.groups[index].serial & 1 and self.at.groups[index].key[:KEY_SIZE] not in groups:
                turn_serial(&self.at.groups[index].serial)
        for index in range(self.at.peer_count):
            if self.at.peers[index].serial & 1 and self.at.peers[index].key[:KEY_SIZE] not in peers:
                turn_serial(&self.at.peers[index].serial)

    def release(self, int slot):
        """A worker has ended: what it held of any peer is gone. IndexError past the last slot."""
        if not 0 <= slot < self.at.slots:
            raise IndexError(f"slot {slot} of {self.at.slots}")
        memset(&self.at.cells[<int64_t>slot * self.at.peer_count], 0, self.at.peer_count * sizeof(Cell))

    # -- anybody's

    def peer(self, bytes key):
        """The peer of a key; KeyError if there is none."""
        cdef int index = find_peer(&self.at, checked(key))
        if index < 0:
            raise KeyError(key)
        return self.handle_on(index, self.at.peers[index].serial)

    def find(self, bytes key):
        """The group of a key; KeyError if there is none."""
        cdef int index = find_group(&self.at, checked(key))
        if index < 0:
            raise KeyError(key)
        return self.group_handle(index)

    def describe(self):
        """What `Peer.snapshot` says of every peer on the board."""
        return [
            self.handle_on(index, self.at.peers[index].serial).snapshot()
            for index in range(self.at.peer_count) if self.at.peers[index].serial & 1
        ]

    def elect(self, int pid, int64_t generation):
        """Whether the process is the one that runs the checks. To be asked at least once a second.

        Who has it keeps it, until it ends, has not asked for three seconds, or one of a later generation asks.
        """
        cdef BoardEntry *board = self.at.board
        cdef uint64_t ticket = lock_take(&board.lock)
        cdef int64_t now = board_now(board)
        cdef bint free = (
            board.elected == 0 or generation > board.generation
            or now - board.elected_seen > _ELECTION_LASTS or is_gone(board.elected)
        )
        cdef bint elected = free or board.elected == pid
        if elected:
            board.elected, board.generation, board.elected_seen = pid, generation, now
        lock_drop(&board.lock, ticket)
        return elected

    def resign(self, int pid):
        """The process runs no checks any more; does nothing if it isn't the elected one."""
        cdef BoardEntry *board = self.at.board
        cdef uint64_t ticket = lock_take(&board.lock)
        if board.elected == pid:
            board.elected = 0
        lock_drop(&board.lock, ticket)

    # -- entries

    cdef int new_group(self, bytes key, int algorithm, members) except -1:
        cdef int first = self.room_for(len(members)), index = free_group(&self.at, &self.group_cursor), at = first
        if index < 0:
            raise BoardFull(f"there are {self.at.group_count} groups of backends already")
        cdef GroupEntry *data = &self.at.groups[index]
        cdef Peer peer
        for peer, weight in members:
            memset(&self.at.members[at], 0, sizeof(MemberEntry))
            self.at.members[at].weight = self.at.members[at].effective = weight
            self.at.members[at].peer, self.at.members[at].peer_serial = peer.index, peer.serial
            at += 1
        memcpy(data.key, <const char *>key, KEY_SIZE)
        data.lock, data.algorithm, data.first, data.size = 0, algorithm, first, len(members)
        turn_serial(&data.serial)
        return index

    cdef int room_for(self, int size) except -1:
        """The first of so many members in a row that no group has."""
        cdef int at = 0
        for first, length in sorted(
            (self.at.groups[index].first, self.at.groups[index].size)
            for index in range(self.at.group_count) if self.at.groups[index].serial & 1
        ):
            if first - at >= size:
                break
            at = first + length
        if self.at.member_count - at < size:
            raise BoardFull(f"the groups have {self.at.member_count} members already, or nearly")
        return at

    cdef bint is_group(self, int index, int algorithm, members) except -1:
        """Whether the entry is the group that is meant."""
        cdef GroupEntry *data = &self.at.groups[index]
        found = [
            (self.at.members[at].peer, self.at.members[at].peer_serial, self.at.members[at].weight)
            for at in range(data.first, data.first + data.size)
        ]
        return data.algorithm == algorithm and found == [
            ((<Peer>peer).index, (<Peer>peer).serial, weight) for peer, weight in members
        ]

    cdef Peer handle_on(self, int index, uint32_t serial):
        cdef Peer peer = Peer.__new__(Peer)
        peer.board, peer.data, peer.index, peer.serial = self, &self.at.peers[index], index, serial
        peer.key = self.at.peers[index].key[:KEY_SIZE]
        return peer

    cdef Group group_handle(self, int index):
        cdef Group group = Group.__new__(Group)
        cdef GroupEntry *data = &self.at.groups[index]
        cdef GroupView *view = &group.view
        cdef MemberEntry *member
        cdef int at, size = data.size, first = data.first
        if not (1 <= size <= MOST_MEMBERS and 0 <= first <= self.at.member_count - size):
            raise ValueError(f"group {index} is spoilt")
        view.at, view.group, view.serial = self.at, data, data.serial
        view.members, view.algorithm, view.size = &self.at.members[first], data.algorithm, size
        group.board, group.key, group.peers = self, data.key[:KEY_SIZE], []
        for at in range(size):
            member = &view.members[at]
            if not 0 <= member.peer < self.at.peer_count:
                raise ValueError(f"group {index} is spoilt")
            view.weight[at] = min(max(member.weight, 1), MOST_WEIGHT)
            view.peer[at], view.peer_serial[at] = member.peer, member.peer_serial
            group.peers.append(self.handle_on(member.peer, member.peer_serial))
        return group


@cython.final
cdef class Peer:
    """A handle on a backend's entry. Made by `Board.enrol` and `Board.peer`."""

    def __init__(self):
        raise TypeError("peers are made by Board.enrol()")

    cdef bint gone(self) noexcept nogil:
        return not is_current(&self.data.serial, self.serial)

    @property
    def alive(self):
        """Whether the entry still is this peer's: it has not been freed."""
        return not self.gone()

    def state(self):
        """What people are told: "up", "down", "open", "half-open", "draining" or "slow-start".

        "down" also when nobody can connect to a group's last backend, which is tried nevertheless.
        """
        return "down" if self.gone() else STATES[state_of(self.board.at.board, self.data)]

    @property
    def down(self):
        """Whether checks have taken it out; `state` may say something else, or the same for another reason."""
        return not self.gone() and self.data.down != 0

    @property
    def draining_since(self):
        """Since when it gets no new requests (CLOCK_MONOTONIC, ns); 0 = it does. The arbiter's to set."""
        return 0 if self.gone() else self.data.draining

    @draining_since.setter
    def draining_since(self, int64_t value):
        if not self.gone():
            self.data.draining = value

    @property
    def removed_since(self):
        """Since when no configuration in force has it (CLOCK_MONOTONIC, ns); 0 = one does. The arbiter's to set.

        It still gets requests where a group has nobody else, from workers that are not yet replaced.
        """
        return 0 if self.gone() else self.data.removed

    @removed_since.setter
    def removed_since(self, int64_t value):
        if not self.gone():
            self.data.removed = value

    def note_check(self, bint ok, str text not None):
        """The result of an active check, and what it found. Returns "up" or "down" when that changed the state."""
        cdef bytes data = text.encode("utf-8", "replace")[:TEXT_SIZE - 1]
        cdef int change
        if self.gone():
            return None
        data = data.decode("utf-8", "ignore").encode("utf-8")    # not half a character
        memcpy(self.data.text, <const char *>data, len(data) + 1)
        acme_add_word(&self.data.checks_good if ok else &self.data.checks_bad, 1)
        change = mark_check(self.board.at.board, self.data, ok)
        return None if change < 0 else STATES[change]

    cpdef void add_connections(self, int slot, int n) except *:
        """Count open connections of a worker to it up or down. IndexError past the last slot."""
        cdef Places *at = &self.board.at
        if not 0 <= slot < at.slots:
            raise IndexError(f"slot {slot} of {at.slots}")
        if not self.gone():
            acme_add_half(&at.cells[<int64_t>slot * at.peer_count + self.index].connections, n)

    cpdef void count_retry(self) except *:
        """A request went on to another backend after it failed here."""
        if not self.gone():
            acme_add_word(&self.data.retries, 1)

    def snapshot(self):
        """Everything that is known of it, for `status` and metrics; gauges are sums over all workers.

        Times are CLOCK_MONOTONIC in ns, 0 = never; `latency_seconds` is the smoothed duration of its responses.
        """
        cdef Places *at = &self.board.at
        cdef PeerEntry *data = self.data
        cdef PeerEntry nothing
        cdef bint gone = self.gone()
        cdef int slot, here
        connections = 0
        if gone:
            memset(&nothing, 0, sizeof(nothing))
            data = &nothing
        for slot in range(0 if gone else at.slots):
            here = at.cells[<int64_t>slot * at.peer_count + self.index].connections
            connections += here if here > 0 else 0
        return {
            "index": self.index, "key": self.key.hex(), "state": self.state(),
            "active": 0 if gone else active_on(at, self.index), "connections": connections,
            "requests": data.requests, "failures": data.failures, "connect_errors": data.connect_errors,
            "retries": data.retries, "latency_seconds": data.latency / 1e9, "latency_sum_ns": data.latency_sum,
            "checks_good": data.checks_good, "checks_bad": data.checks_bad, "checked_ns": data.checked,
            "last_check": data.text[:TEXT_SIZE].partition(b"\0")[0].decode("utf-8", "replace"),
            "since_ns": data.since, "draining_since_ns": data.draining, "open_until_ns": data.open_until,
            "opens": data.opens, "fails_in_row": data.fails,
        }


@cython.final
cdef class Group:
    """A handle on a group. Made by `Board.group` and `Board.find`. Members are numbered from 0, in their order."""

    def __init__(self):
        raise TypeError("groups are made by Board.group()")

    @property
    def size(self):
        """How many members it has."""
        return self.view.size

    @property
    def algorithm(self):
        """ROUND_ROBIN, LEAST_CONN or IP_HASH."""
        return self.view.algorithm

    @property
    def alive(self):
        """Whether the entry still is this group's: it has not been freed."""
        return is_current(&self.view.group.serial, self.view.serial)

    cdef int check(self, int member, int slot) except -1:
        if not 0 <= member < self.view.size:
            raise IndexError(f"member {member} of {self.view.size}")
        if not 0 <= slot < self.view.at.slots:
            raise IndexError(f"slot {slot} of {self.view.at.slots}")
        return 0

    cpdef int pick(self, uint64_t tried=0, uint64_t hash=0, bint repeatable=True) noexcept:
        """The member that gets the next request, or -1 when nobody is usable.

        `tried` has the bits of members not to choose, `hash` is the client's for IP_HASH, and `repeatable` says that
        another backend could be asked after this one has failed. Such requests are the first to be the trial of a
        half-open circuit: `end`, `failed` or `abandon` must tell how it went.
        """
        return group_pick(&self.view, tried, hash, repeatable)

    cpdef bint usable(self, int member) except -1:
        """Whether a request that belongs to this member may go there. IndexError past the last."""
        self.check(member, 0)
        return group_usable(&self.view, member)

    cpdef void begin(self, int member, int slot) except *:
        """A request goes to the member from the worker in this slot."""
        self.check(member, slot)
        group_begin(&self.view, member, slot)

    cpdef bint end(self, int member, int slot, bint ok, int64_t duration_ns, bint connecting=False) except -1:
        """It has ended, well or not, so long after `begin`. Returns whether this opened a closed circuit.

        `connecting`: it failed because there was no connection; that counts as a connect error, not as a latency.
        """
        self.check(member, slot)
        return group_end(&self.view, member, slot, ok, duration_ns, connecting and not ok)

    cpdef bint judge(self, int member, bint ok, int64_t duration_ns) except -1:
        """The verdict and the latency of a request that goes on: its response has begun, so long after `begin`.

        Returns whether this opened a closed circuit. Its end is `leave`.
        """
        self.check(member, 0)
        return group_judge(&self.view, member, ok, duration_ns, False)

    cpdef int leave(self, int member, int slot) except -1:
        """It has ended, and was judged before."""
        self.check(member, slot)
        group_leave(&self.view, member, slot)
        return 0

    cpdef void abandon(self, int member, int slot=-1, int64_t duration_ns=0) except *:
        """It has ended without a verdict on the backend: its client left. Slot -1: it was picked, and never begun."""
        self.check(member, max(slot, 0))
        group_abandon(&self.view, member, slot, duration_ns)

    cpdef bint failed(self, int member, bint connecting) except -1:
        """A failure outside `begin` and `end`: no connection. Returns whether this opened a closed circuit."""
        self.check(member, 0)
        return group_failed(&self.view, member, 0, connecting)

    cpdef int64_t active(self, int member) except -1:
        """Requests that all workers have at the member's peer now, over all groups."""
        self.check(member, 0)
        return 0 if (<Peer>self.peers[member]).gone() else active_on(&self.view.at, self.view.peer[member])

    cpdef Peer peer(self, int member):
        """The peer of a member. IndexError past the last."""
        self.check(member, 0)
        return <Peer>self.peers[member]

    def describe(self):
        """What `Peer.snapshot` says of each member, with its `weight` and `effective` weight in this group."""
        return [
            {**self.peers[member].snapshot(), "weight": self.view.weight[member],
             "effective": self.view.members[member].effective}
            for member in range(self.view.size)
        ]

    def hold_lock(self):
        """Take the lock and keep it: a test's way to die or to stand still with it."""
        lock_take(&self.view.group.lock)
