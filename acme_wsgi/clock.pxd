# The one clock that everything in a worker is timed by.

from libc.stdint cimport int64_t
from libc.time cimport time_t

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    clockid_t CLOCK_MONOTONIC
    int clock_gettime(clockid_t clock, timespec *at)


cdef inline int64_t monotonic_ns() noexcept nogil:
    """CLOCK_MONOTONIC in nanoseconds; the same for all processes of the machine."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
