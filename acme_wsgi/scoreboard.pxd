# The layout of the scoreboard, for the Cython modules that count on the path of a request.

from libc.stdint cimport int64_t, uint16_t, uint64_t



cdef struct SlotData:
    int64_t pid
    int64_t state
    int64_t heartbeat_ns
    int64_t started_ns
    # gauges: what this process holds now
    int64_t connections
    int64_t in_flight
    int64_t idle
    int64_t oldest_idle_ns
    int64_t queued              # requests that wait to be started
    int64_t oldest_queued_ns    # since when the first of them does, 0 = none
    int64_t number              # of the worker, from 1, for people
    int64_t generation          # of the configuration that it serves
    uint64_t requests_before    # what requests_total was when this process took the slot
    # counters: they survive the process that filled them
    uint64_t connections_total
    uint64_t requests_total
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t errors
    uint64_t timeouts
    uint64_t rejected
    uint64_t disconnects
    uint64_t log_dropped
    uint64_t shed               # requests answered 503 because they would have waited too long
    uint64_t gone               # clients that left while they waited
    uint64_t latency_sum_ns
    uint64_t statuses[600]
    uint64_t latency[120]
    # what the worker does, for who looks while it stands still: method and target of the request begun last
    uint16_t current_length
    char current[126]
    # written by the arbiter, about the worker: its standstills
    uint64_t stalls
    int64_t stall_since_ns      # of the one that lasts, 0 = none does
    int64_t stall_last_ns       # how long the latest one took
    int64_t stall_longest_ns
    char stall_route[128]       # of the latest one; ends with NUL
    char stall_where[256]


cdef struct BoardData:
    int64_t used                # slots that anybody has ever taken: who walks the board walks these


cdef class Slot:
    cdef SlotData *data
    cdef readonly object board
    cdef readonly int index
    cdef void count_response(self, int status, uint64_t sent, uint64_t duration_ns) noexcept nogil


cdef class Scoreboard:
    cdef readonly int size
    cdef object memory
    cdef BoardData *data
    cdef SlotData *slots
    cdef int64_t walked(self) noexcept nogil
    cdef int64_t total_connections(self) noexcept nogil
    cdef int64_t oldest_idle_elsewhere(self, int own) noexcept nogil
    cdef int64_t fewest_connections(self) noexcept nogil
