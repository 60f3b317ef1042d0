# The handles on the board of backends, for the Cython modules on the path of a proxied request.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "board_layout.h":
    enum:
        MOST_MEMBERS, MOST_WEIGHT, FULL, KEY_SIZE, TEXT_SIZE

    ctypedef struct BoardEntry:
        uint64_t lock
        int64_t elected, generation, elected_seen, used, slow_start, frozen

    ctypedef struct PeerEntry:
        uint32_t serial
        int32_t down
        int64_t draining, removed, open_until, trial, slow
        uint64_t seed
        int32_t fails, refused, unhealthy, healthy
        uint64_t requests, failures, connect_errors, retries, latency_sum
        int64_t latency
        uint64_t lock
        int64_t since, opened, pause
        uint64_t opens, checks_good, checks_bad
        int64_t checked
        unsigned char key[16]
        char text[128]

    ctypedef struct MemberEntry:
        int64_t current
        int32_t weight, effective, peer
        uint32_t peer_serial

    ctypedef struct GroupEntry:
        uint64_t lock
        uint32_t serial
        int32_t algorithm, first, size
        unsigned char key[16]

    ctypedef struct Cell:
        int32_t active, connections

    ctypedef struct Places:
        BoardEntry *board
        PeerEntry *peers
        GroupEntry *groups
        MemberEntry *members
        Cell *cells
        int32_t slots, peer_count, group_count, member_count

    ctypedef struct GroupView:
        Places at
        GroupEntry *group
        MemberEntry *members
        uint32_t serial
        int32_t algorithm, size
        int32_t weight[64]
        int32_t peer[64]
        uint32_t peer_serial[64]


cdef class Board:
    cdef object memory
    cdef Places at
    cdef uint32_t peer_cursor, group_cursor
    cdef int new_group(self, bytes key, int algorithm, members) except -1
    cdef int room_for(self, int size) except -1
    cdef bint is_group(self, int index, int algorithm, members) except -1
    cdef Peer handle_on(self, int index, uint32_t serial)
    cdef Group group_handle(self, int index)


cdef class Peer:
    cdef Board board
    cdef PeerEntry *data
    cdef uint32_t serial
    cdef readonly int index
    cdef readonly bytes key
    cdef bint gone(self) noexcept nogil
    cpdef void add_connections(self, int slot, int n) except *
    cpdef void count_retry(self) except *


cdef class Group:
    cdef Board board
    cdef GroupView view
    cdef readonly bytes key
    cdef list peers
    cdef int check(self, int member, int slot) except -1
    cpdef int pick(self, uint64_t tried=*, uint64_t hash=*, bint repeatable=*) noexcept
    cpdef bint usable(self, int member) except -1
    cpdef void begin(self, int member, int slot) except *
    cpdef bint judge(self, int member, bint ok, int64_t duration_ns) except -1
    cpdef int leave(self, int member, int slot) except -1
    cpdef bint end(self, int member, int slot, bint ok, int64_t duration_ns, bint connecting=*) except -1
    cpdef void abandon(self, int member, int slot=*, int64_t duration_ns=*) except *
    cpdef bint failed(self, int member, bint connecting) except -1
    cpdef int64_t active(self, int member) except -1
    cpdef Peer peer(self, int member)
