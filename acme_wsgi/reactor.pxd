# The worker's event machinery, for the connection.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef object running()

cdef enum:
    WAIT_NONE = 0
    WAIT_READ = 1
    WAIT_WRITE = 2
    WAIT_EITHER = 3

cdef enum:
    LISTS = 11            # the first is none, the others are whoever's stands in them; of our own there is
    LIST_WAITING = 9      # whose greenlet waits with a deadline


cdef struct Links:
    void *first
    void *last
    long length


cdef class Channel:
    cdef Reactor reactor
    cdef int fd
    cdef uint32_t generation
    cdef uint8_t waiting       # WAIT_READ, WAIT_WRITE or both while a greenlet waits
    cdef uint8_t readable      # bytes may have come that nobody has tried to read
    cdef uint8_t ended         # the peer will send no more; what it sent before may still be unread
    cdef uint8_t hung_up       # the peer reset or closed both ways
    cdef uint8_t queued        # stands in the ready queue
    cdef uint8_t holding       # room is an event of its own, also while a greenlet waits to read
    cdef uint8_t list_number   # the timed list it stands in, 0 = none
    cdef object greenlet       # who waits
    cdef int64_t since_ns      # when it entered its list
    cdef int64_t noticed_ns    # when it entered the ready queue
    cdef int64_t deadline_ns   # in LIST_WAITING: until when its greenlet waits
    cdef void *previous
    cdef void *next
    cdef void on_event(self) noexcept
    cdef int wait(self, int what) except -1
    cdef int wait_until(self, int what, int64_t deadline_ns) except -1


cdef class Reactor:
    cdef readonly object hub
    cdef object loop
    cdef int epoll
    cdef object watcher
    cdef object timer
    cdef void **table          # descriptor -> Channel
    cdef long table_size
    cdef uint32_t generations
    cdef void *events
    cdef int64_t seen_ns       # when somebody in the batch last looked at the clock
    cdef int event_count
    cdef int event_index
    cdef bint batch_done
    cdef bint armed
    cdef bint continued        # there is something left of the slice for the next round
    cdef int64_t until         # when this batch has had its share
    cdef int64_t waiting_ns    # since when the channel whose turn it is stood in the ready queue, 0 = it did not
    cdef object leader
    cdef list idle_greenlets
    cdef readonly long greenlets
    cdef list woken
    cdef object ready
    cdef object resume         # timer: the next slice, after everybody else's turn
    cdef Links lists[11]
    cdef readonly double tick_seconds

    cdef int add(self, Channel channel, bint writing) except -1
    cdef void remove(self, Channel channel) noexcept
    cdef void enter(self, Channel channel, int number, int64_t now) noexcept
    cdef void leave(self, Channel channel) noexcept
    cdef Channel oldest(self, int number)
    cdef list members(self, int number)
    cdef void make_ready(self, Channel channel) noexcept
    cdef void wake(self, Channel channel) noexcept
    cdef void arm(self) noexcept
    cdef void put(self, Channel channel, int64_t now) noexcept
    cdef int64_t oldest_ready(self)
    cdef int poll(self) except -1
    cdef int notice(self) except -1
    cdef int put_off(self, int64_t now) except -1
    cdef void set_tick(self, double seconds)
    cpdef void need_tick(self, double seconds)
    cdef int end_waits(self) except -1
    cdef int run_batch(self) except -1
    cdef void process(self, object me) noexcept
    cdef void on_batch(self) noexcept
    cdef void on_tick(self) noexcept

cpdef Reactor current()
