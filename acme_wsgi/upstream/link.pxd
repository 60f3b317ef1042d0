# One connection to a backend.

from libc.stdint cimport int64_t, uint8_t

from acme_wsgi.http.chunked cimport Chunked
from acme_wsgi.http.reply cimport Extent, Reply
from acme_wsgi.stream cimport Stream

cdef class Link(Stream):
    cdef readonly object shelf       # told when a resting link dies, and when any is closed; None: nobody is
    cdef public object address       # of the backend that it leads to: (family, as connect(2) takes it); None: nobody asks
    cdef public bint astray          # the backend's name leads there no more: no other request may follow
    cdef readonly long uses          # requests that it has carried
    cdef readonly int status         # of the response that was read last
    cdef readonly str protocol       # of a 101: its Upgrade
    cdef Extent extent               # where its body ends
    cdef int64_t remaining           # body bytes of a COUNTED one that haven't come yet
    cdef Chunked decoder
    cdef uint8_t keeps               # the backend lets the connection live after this response
    cdef uint8_t whole               # the response was read to its end
    cdef uint8_t resting             # idle: whatever comes now is not wanted
    cdef public int64_t since        # when it began to rest
    cdef uint8_t encrypts            # what it took may still have to be flushed
    cdef uint8_t aborted             # it was we who ended it amid its request
    cdef uint8_t answered            # a byte of the answer to the present request has come

    cdef ssize_t get(self, char *target, size_t room) except -2
    cdef ssize_t give(self, const char *data, size_t length) except -2
    cdef int push(self) except -1
    cdef object broken(self, error)
    cdef int more(self, int64_t deadline) except -1
    cdef ssize_t fill(self) except -2
    cdef int send_whole(self, const char *data, size_t length, int64_t deadline) except -1
    cdef int begin_body(self, Reply *reply, bint head_only) except -1
    cdef bint try_read(self) except? True
    cdef tuple next_head(self, bint head_only, int64_t deadline)
    cdef tuple head_here(self, bint head_only)
    cdef Py_ssize_t send_from(self, bytes data, Py_ssize_t at, int64_t deadline, bint watching) except -1
    cdef bint await_answer(self, int64_t deadline_ns) except? True
    cdef bint has_more(self) except? True
    cdef bytes body_here(self)
    cdef bytes short_body(self, int64_t deadline)
    cdef object cut_short(self, int64_t got)
    cdef bint comes_until(self, int64_t deadline) except? True
    cdef int await_readable(self, int64_t deadline) except -1
    cdef int await_room(self, int what, int64_t deadline) except -1
    cpdef int begin(self) except -1
    cpdef bint rest(self) except? True
    cpdef bint usable(self) except? True
    cdef bytes buffered_body(self)
    cdef bytes buffered_piece(self)
    cdef bytes piece_here(self)
    cdef void count(self, int64_t got) noexcept
    cdef bint all_out(self, int64_t deadline, bint watching) except? True
    cdef bytes next_piece(self, int64_t deadline)
    cdef bytes piece_of_length(self, int64_t deadline)
    cdef bytes piece_of_chunks(self, int64_t deadline)
    cdef bytes piece_to_end(self, int64_t deadline)
    cdef bytes decode(self)
    cdef bint is_reusable(self) noexcept
    cdef bint still_fresh(self) noexcept
