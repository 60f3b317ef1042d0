# After a 101: two streams, and the bytes that pass between them.

from libc.stdint cimport int64_t

from acme_wsgi.answer cimport Answering
from acme_wsgi.http.writer cimport Response
from acme_wsgi.request cimport Request
from acme_wsgi.stream cimport Ears, Stream


cdef class Way:
    cdef Stream source
    cdef Stream target
    cdef char *data              # received and not yet taken: data[start:end]; NULL while there is nothing
    cdef size_t size
    cdef size_t start
    cdef size_t end
    cdef int64_t moved           # bytes received from the source so far
    cdef bint again              # the source was left before it had nothing more,
    cdef bint turn_over          # because others should get their turn
    cdef bint ended              # the source has sent its last byte,
    cdef bint told               # the target was told so,
    cdef bint done               # and everything has left
    cdef int load(self, const char *data, size_t length) except -1
    cdef int reserve(self, size_t size) except -1
    cdef void release(self) noexcept
    cdef int64_t move(self) except -1
    cdef bint receive(self) except? True


cdef class Pump(Ears):
    cdef Answering client
    cdef Stream far
    cdef Way up                  # from the client
    cdef Way down                # to it
    cdef int64_t idle_ns         # longest time without a byte, 0 = any
    cdef int64_t last_ns         # when the last byte passed
    cdef int run(self) except -1
    cdef bint is_idle(self, int64_t now) noexcept
    cdef int expire(self) except -1
    cdef void end(self, bint cut) noexcept


cdef int open_tunnel(Answering client, Request request, Response response) except -1
