# The layout of the scoreboard, for the Cython modules that count on the path of a request.

from libc.stdint cimport int64_t, uint64_t



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
    uint64_t latency_sum_ns
    uint64_t statuses[600]
    uint64_t latency[120]


cdef class Slot:
    cdef SlotData *data
    cdef readonly object board
    cdef readonly int index
    cdef void count_response(self, int status, uint64_t sent, uint64_t duration_ns) noexcept nogil


cdef class Scoreboard:
    cdef readonly int workers
    cdef object memory
    cdef SlotData *slots
    cdef int64_t total_connections(self) noexcept nogil
    cdef int64_t oldest_idle_elsewhere(self, int own) noexcept nogil
    cdef int64_t fewest_connections(self) noexcept nogil
