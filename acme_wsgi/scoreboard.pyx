# cython: boundscheck=False, wraparound=False, cdivision=True
"""The scoreboard: what every worker is doing, in fixed shared memory.

One slot per worker, read by anyone, without locks. Each number is an aligned 64-bit word with one writer (the
worker; for what is said about its standstills, the arbiter), so a reader sees an old or a new value, never half
of one; a text may be seen half changed, and is for people. The memory is an anonymous shared mapping made by the
arbiter before the first fork; it survives any worker and needs no file. There are more slots than workers: while
one is replaced, its successor already has another.

Law: this module knows numbers. It knows neither HTTP nor processes nor how anything is displayed.
"""

import mmap

from libc.string cimport memset

from cpython.buffer cimport PyObject_GetBuffer, PyBuffer_Release, PyBUF_WRITABLE, Py_buffer

from libc.string cimport memcpy

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

# What `Scoreboard.numbers` gives, in its order, before the latency buckets: four gauges, then counters.
NUMBERS = (
    "connections", "in_flight", "idle", "queued",
    "connections_total", "requests_total", "bytes_in", "bytes_out", "errors", "timeouts", "rejected",
    "disconnects", "log_dropped", "shed", "gone", "latency_sum_ns", "stalls",
    "status_1xx", "status_2xx", "status_3xx", "status_4xx", "status_5xx",
)


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


cdef int put_text(char *target, size_t size, str text) except -1:
    """Store a text for people, cut to what there is room for, with a NUL at its end."""
    cdef bytes data = text.encode("utf-8", "replace")[:size - 1]
    data = data.decode("utf-8", "ignore").encode("utf-8")    # not half a character
    memcpy(target, <const char *>data, len(data) + 1)
    return 0


cdef str got_text(const char *source, size_t size):
    return source[:size].partition(b"\0")[0].decode("utf-8", "replace")


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
    def number(self):
        """The worker's number, from 1, for people."""
        return self.data.number

    @number.setter
    def number(self, value):
        self.data.number = value

    @property
    def generation(self):
        """Which configuration the worker serves: the first is 1, each reload adds one."""
        return self.data.generation

    @generation.setter
    def generation(self, value):
        self.data.generation = value

    @property
    def in_flight(self):
        """Requests that the worker is working on."""
        return self.data.in_flight

    @property
    def requests(self):
        """Requests that the process in this slot has answered."""
        return self.data.requests_total - self.data.requests_before

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
        self.data.queued = 0
        self.data.oldest_queued_ns = 0
        self.data.current_length = 0
        self.data.stall_since_ns = 0
        self.data.requests_before = self.data.requests_total
        self.data.heartbeat_ns = monotonic_ns()
        self.data.started_ns = self.data.heartbeat_ns

    @property
    def current(self):
        """Method and target of the request that the worker began last, escaped; "" if there was none."""
        cdef Py_ssize_t length = self.data.current_length
        cdef bytes text = self.data.current[:min(length, <Py_ssize_t>sizeof(self.data.current))]
        return "".join([chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in text])

    def note_stall(self, since_ns, str route not None, str where not None):
        """The arbiter says that the worker stands still: since when (CLOCK_MONOTONIC), in which route, where."""
        put_text(self.data.stall_route, sizeof(self.data.stall_route), route)
        put_text(self.data.stall_where, sizeof(self.data.stall_where), where)
        self.data.stall_since_ns = since_ns
        self.data.stalls += 1

    def end_stall(self, duration_ns):
        """It goes on, or has been ended."""
        self.data.stall_since_ns = 0
        self.data.stall_last_ns = duration_ns
        self.data.stall_longest_ns = max(self.data.stall_longest_ns, <int64_t>duration_ns)

    def stall(self):
        """The standstill that lasts: its route ("" if not known), where, and for how many seconds; or None."""
        cdef int64_t since = self.data.stall_since_ns
        if not since:
            return None
        return {
            "route": got_text(self.data.stall_route, sizeof(self.data.stall_route)),
            "where": got_text(self.data.stall_where, sizeof(self.data.stall_where)),
            "seconds": (monotonic_ns() - since) / 1e9,
        }

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
            "latency_sum_ns": data.latency_sum_ns, "queued": data.queued,
            "oldest_queued_ns": data.oldest_queued_ns, "number": data.number, "generation": data.generation,
            "shed": data.shed, "gone": data.gone, "stalls": data.stalls,
            "stall_last_ns": data.stall_last_ns, "stall_longest_ns": data.stall_longest_ns,
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


cdef enum:
    _NUMBERS_LENGTH = 22 + 120


cdef void add_numbers(SlotData *data, uint64_t *into) noexcept nogil:
    """Add one slot to a row laid out as NUMBERS says."""
    cdef int status, bucket
    # A gauge read in the middle of a change may be one below zero.
    into[0] += <uint64_t>data.connections if data.connections > 0 else 0
    into[1] += <uint64_t>data.in_flight if data.in_flight > 0 else 0
    into[2] += <uint64_t>data.idle if data.idle > 0 else 0
    into[3] += <uint64_t>data.queued if data.queued > 0 else 0
    into[4] += data.connections_total
    into[5] += data.requests_total
    into[6] += data.bytes_in
    into[7] += data.bytes_out
    into[8] += data.errors
    into[9] += data.timeouts
    into[10] += data.rejected
    into[11] += data.disconnects
    into[12] += data.log_dropped
    into[13] += data.shed
    into[14] += data.gone
    into[15] += data.latency_sum_ns
    into[16] += data.stalls
    for status in range(100, 600):
        into[16 + status // 100] += data.statuses[status]
    for bucket in range(120):
        into[22 + bucket] += data.latency[bucket]


# Facts of one process that make no sense in a sum.
_NOT_SUMMED = (
    "pid", "state", "heartbeat_ns", "started_ns", "oldest_queued_ns", "number", "generation", "stall_last_ns",
    "stall_longest_ns",
)


cdef class Scoreboard:
    """Shared memory for `size` slots, of which the first `used` count; all of them unless told otherwise.

    Raises ValueError for fewer than one slot, OSError when the mapping can't be made.
    """

    def __cinit__(self, int size, used=None):
        if size < 1:
            raise ValueError("a scoreboard needs at least one slot")
        cdef Py_buffer view
        self.size = size
        # Anonymous memory is zeroed, and what nobody touches costs nothing.
        self.memory = mmap.mmap(-1, sizeof(BoardData) + size * sizeof(SlotData))
        PyObject_GetBuffer(self.memory, &view, PyBUF_WRITABLE)
        self.data = <BoardData *>view.buf
        self.slots = <SlotData *>(<char *>view.buf + sizeof(BoardData))
        # The mapping lives as long as self.memory, which nobody else can reach to close.
        PyBuffer_Release(&view)
        self.data.used = size if used is None else used

    @property
    def used(self):
        """How many slots, from the first, anybody has ever taken. The arbiter's to raise."""
        return self.walked()

    @used.setter
    def used(self, int value):
        if not 0 <= value <= self.size:
            raise ValueError(f"{value} slots of {self.size}")
        self.data.used = value

    cdef int64_t walked(self) noexcept nogil:
        """How many slots to walk: what the memory says, which any worker might have spoilt, within its bounds."""
        cdef int64_t used = self.data.used
        return 0 if used < 0 else self.size if used > self.size else used

    def slot(self, int index):
        """The slot with this index; IndexError past the last."""
        if not 0 <= index < self.size:
            raise IndexError(f"slot {index} of {self.size}")
        cdef Slot slot = Slot.__new__(Slot)
        slot.data = &self.slots[index]
        slot.board = self
        slot.index = index
        return slot

    def numbers(self, index=None):
        """Gauges, counters and latency buckets at once: native 64-bit words, named by NUMBERS, then the buckets.

        Of the slot with this index, or the sum of all. Cheap: for who looks every second.
        """
        cdef uint64_t row[_NUMBERS_LENGTH]
        cdef int at, first = 0, end = self.walked()
        if index is not None:
            first = index
            end = first + 1
            if not 0 <= first < self.size:
                raise IndexError(f"slot {index} of {self.size}")
        memset(row, 0, sizeof(row))
        for at in range(first, end):
            add_numbers(&self.slots[at], row)
        return (<char *>row)[:sizeof(row)]

    def totals(self):
        """The sum over all slots of every number that can be summed."""
        result = {}
        for index in range(self.walked()):
            for name, value in self.slot(index).snapshot().items():
                if name not in _NOT_SUMMED:
                    result[name] = result.get(name, 0) + value
        return result

    def latency(self):
        """The latency histogram of the whole server, aligned with `bucket_edges()`."""
        if not self.walked():
            return [0] * _BUCKETS
        columns = zip(*(self.slot(index).latency() for index in range(self.walked())), strict=True)
        return [sum(column) for column in columns]

    cdef int64_t total_connections(self) noexcept nogil:
        cdef int64_t total = 0, index
        for index in range(self.walked()):
            total += self.slots[index].connections
        return total

    cdef int64_t oldest_idle_elsewhere(self, int own) noexcept nogil:
        """When the longest-idle connection of the other workers went idle (ns), or 0 if none is."""
        cdef int64_t oldest = 0, at, index
        for index in range(self.walked()):
            if index == own or self.slots[index].idle <= 0:
                continue
            at = self.slots[index].oldest_idle_ns
            if at and (oldest == 0 or at < oldest):
                oldest = at
        return oldest

    cdef int64_t fewest_connections(self) noexcept nogil:
        """Connections of the ready worker that holds the fewest; -1 when none is ready."""
        cdef int64_t fewest = -1, index
        for index in range(self.walked()):
            if self.slots[index].state == 2 and (fewest < 0 or self.slots[index].connections < fewest):
                fewest = self.slots[index].connections
        return fewest
