# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What all connections of a worker share, and who of them may run next.

The engine makes one Service, fills it in from the configuration, and gives it to each connection that it accepts.
The scratch buffers in it belong to whoever runs: between filling one and using it up, nothing may block.

Law: this file knows no single connection beyond the list that it stands in, and no request.
"""

from libc.stdlib cimport free, malloc

from acme_wsgi.http.environ cimport ascii
from acme_wsgi.reactor cimport Channel


cdef class Service:
    """What all connections of a worker share: where requests go, the clock's text, the scratch buffers."""

    def __cinit__(self):
        self.input = <char *>malloc(INPUT)
        self.out = Scratch()
        if self.input == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.input)
        free(self.path)

    cdef str make_id(self):
        """32 hexadecimal digits nobody has seen before: splitmix64, seeded from the system per worker."""
        cdef char digits[32]
        cdef int half, at
        cdef uint64_t z
        for half in range(2):
            self.id_state += 0x9E3779B97F4A7C15ULL + (self.id_stream if half else 0)
            z = self.id_state
            z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9ULL
            z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EBULL
            z ^= z >> 31
            for at in range(16):
                digits[half * 16 + at] = b"0123456789abcdef"[z & 15]
                z >>= 4
        return ascii(digits, 32)


cdef void grant(Reactor reactor, Service service) noexcept:
    """Whoever has waited longest may run, if there is room; they keep the time since when they wait."""
    cdef Channel first
    while reactor.lists[LIST_QUEUE].length \
            and reactor.lists[LIST_RUN].length + reactor.lists[LIST_GRANTED].length < service.max_concurrency:
        first = reactor.oldest(LIST_QUEUE)
        reactor.enter(first, LIST_GRANTED, first.since_ns)
        reactor.make_ready(first)
