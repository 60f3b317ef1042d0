# cython: boundscheck=False, wraparound=False, cdivision=True
"""The scoreboard: what every worker is doing, in fixed shared memory.

One slot per worker, written by that worker alone and read by anyone, without locks: every field is an
aligned 64-bit word, so a reader sees an old or a new value, never half of one. The memory is an anonymous
shared mapping made by the arbiter before the first fork; it survives any worker and needs no file.

Law: this module knows numbers. It knows neither HTTP nor processes nor how anything is displayed.
"""

import mmap

from libc.string cimport memset
from cpython.buffer cimport PyObject_GetBuffer, PyBuffer_Release, PyBUF_WRITABLE, Py_buffer

from acme_wsgi.clock cimport monotonic_ns

EMPTY = 0
STARTING = 1
READY = 2
DRAINING = 3

# The first bucket ends at 1 microsecond; each further octave is cut into four: bucket edges differ by at most 25 %.
_FIRST_NS = 1000
_SUB = 4
_BUCKETS = 120
_STATUSES = 600


cdef int bucket_of(uint64_t duration_ns) noexcept nogil:
    """The histogram bucket of a duration: 0 up to 1 us, then four per octave."""
    cdef uint64_t units = duration_ns // 1000
    cdef int octave = 0, index
    if units < 1:
        return 0
    while (units >> octave) > 1:
        octave += 1
    # The two bits under the leading one choose the quarter.
    if octave >= 2:
        index = 1 + octave * 4 + <int>((units >> (octave - 2)) & 3)
    else:
        index = 1 + octave * 4 + <int>(((units << 2) >> octave) & 3)
    return index if index < 120 else 119


def bucket_edges():
    """The upper edges of the latency buckets in seconds, as a tuple; the last is infinity."""
    edges = [_FIRST_NS / 1e9]
    for index in range(1, _BUCKETS - 1):
        octave, quarter = divmod(index - 1, _SUB)
        edges.append((2 ** octave) * (1 + (quarter + 1) / _SUB) * _FIRST_NS / 1e9)
    edges.append(float("inf"))
    return tuple(edges)


cdef class Slot:
    """One worker's part of the scoreboard. Made by `Scoreboard.slot`; keeps the board's memory alive."""

    def __init__(self):
        raise TypeError("slots are made by Scoreboard.slot()")

    @property
    def pid(self):
        """Process id of the worker that owns the slot; 0 while nobody does."""
        return self.data.pid

    @pid.setter
    def pid(self, value):
        self.data.pid = value

    @property
    def state(self):
        """EMPTY, STARTING, READY or DRAINING."""
        return self.data.state

    @state.setter
    def state(self, value):
        self.data.state = value

    @property
    def heartbeat(self):
        """CLOCK_MONOTONIC in nanoseconds of the last `beat`."""
        return self.data.heartbeat_ns

    def beat(self):
        """Say that the loop turns."""
        self.data.heartbeat_ns = monotonic_ns()

    def reset_gauges(self):
        """A new process takes the slot: what the dead one held is gone, what it counted stays."""
        self.data.pid = 0
        self.data.state = EMPTY
        self.data.connections = 0
        self.data.in_flight = 0
        self.data.idle = 0
        self.data.oldest_idle_ns = 0
        self.data.heartbeat_ns = monotonic_ns()
        self.data.started_ns = self.data.heartbeat_ns

    def count_log_dropped(self, lines):
        """Add access-log lines that a slow sink made us drop."""
        self.data.log_dropped += <uint64_t>lines

    cdef void count_response(self, int status, uint64_t sent, uint64_t duration_ns) noexcept nogil:
        cdef SlotData *data = self.data
        data.requests_total += 1
        data.bytes_out += sent
        data.latency_sum_ns += duration_ns
        if 0 <= status < 600:
            data.statuses[status] += 1
        data.latency[bucket_of(duration_ns)] += 1

    def observe(self, status, sent, duration_ns):
        """Count one response: its status, the bytes sent and its duration in nanoseconds."""
        self.count_response(status, sent, duration_ns)

    def snapshot(self):
        """All single numbers of the slot, by name; statuses summed by class."""
        cdef SlotData *data = self.data
        found = {
            "pid": data.pid, "state": data.state, "heartbeat_ns": data.heartbeat_ns,
            "started_ns": data.started_ns, "connections": data.connections, "in_flight": data.in_flight,
            "idle": data.idle, "connections_total": data.connections_total,
            "requests_total": data.requests_total, "bytes_in": data.bytes_in, "bytes_out": data.bytes_out,
            "errors": data.errors, "timeouts": data.timeouts, "rejected": data.rejected,
            "disconnects": data.disconnects, "log_dropped": data.log_dropped,
            "latency_sum_ns": data.latency_sum_ns,
        }
        cdef int status
        cdef uint64_t total
        for family in range(1, 6):
            total = 0
            for status in range(family * 100, family * 100 + 100):
                total += data.statuses[status]
            found[f"status_{family}xx"] = total
        return found

    def statuses(self):
        """Responses by exact status: only those that occurred."""
        return {status: self.data.statuses[status] for status in range(_STATUSES) if self.data.statuses[status]}

    def latency(self):
        """Counts per latency bucket, aligned with `bucket_edges()`."""
        return [self.data.latency[index] for index in range(_BUCKETS)]


# Facts of one process that make no sense in a sum.
_NOT_SUMMED = ("pid", "state", "heartbeat_ns", "started_ns")


cdef class Scoreboard:
    """Shared memory for `workers` slots.

    Raises ValueError for fewer than one worker, OSError when the mapping can't be made.
    """

    def __cinit__(self, int workers):
        if workers < 1:
            raise ValueError("a scoreboard needs at least one worker")
        cdef Py_buffer view
        self.workers = workers
        self.memory = mmap.mmap(-1, workers * sizeof(SlotData))
        PyObject_GetBuffer(self.memory, &view, PyBUF_WRITABLE)
        self.slots = <SlotData *>view.buf
        # The mapping lives as long as self.memory, which nobody else can reach to close.
        PyBuffer_Release(&view)
        memset(self.slots, 0, workers * sizeof(SlotData))

    def slot(self, int index):
        """The slot of worker `index`; IndexError past the last."""
        if not 0 <= index < self.workers:
            raise IndexError(f"slot {index} of {self.workers}")
        cdef Slot slot = Slot.__new__(Slot)
        slot.data = &self.slots[index]
        slot.board = self
        slot.index = index
        return slot

    def totals(self):
        """The sum over all slots of every number that can be summed."""
        result = {}
        for index in range(self.workers):
            for name, value in self.slot(index).snapshot().items():
                if name not in _NOT_SUMMED:
                    result[name] = result.get(name, 0) + value
        return result

    def latency(self):
        """The latency histogram of the whole server, aligned with `bucket_edges()`."""
        columns = zip(*(self.slot(index).latency() for index in range(self.workers)), strict=True)
        return [sum(column) for column in columns]

    cdef int64_t total_connections(self) noexcept nogil:
        cdef int64_t total = 0
        cdef int index
        for index in range(self.workers):
            total += self.slots[index].connections
        return total

    cdef int64_t oldest_idle_elsewhere(self, int own) noexcept nogil:
        """When the longest-idle connection of the other workers went idle (ns), or 0 if none is."""
        cdef int64_t oldest = 0, at
        cdef int index
        for index in range(self.workers):
            if index == own or self.slots[index].idle <= 0:
                continue
            at = self.slots[index].oldest_idle_ns
            if at and (oldest == 0 or at < oldest):
                oldest = at
        return oldest

    cdef int64_t fewest_connections(self) noexcept nogil:
        """Connections of the ready worker that holds the fewest; -1 when none is ready."""
        cdef int64_t fewest = -1
        cdef int index
        for index in range(self.workers):
            if self.slots[index].state == 2 and (fewest < 0 or self.slots[index].connections < fewest):
                fewest = self.slots[index].connections
        return fewest
