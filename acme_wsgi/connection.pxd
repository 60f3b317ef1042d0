# A client, for the engine.

from libc.stdint cimport int64_t, uint8_t

from acme_wsgi.admission cimport Waiting
from acme_wsgi.request cimport Request


cdef class Connection(Waiting):
    cdef dict base_environ
    cdef int port
    cdef str port_text           # as requests need it
    cdef uint8_t proxied         # a PROXY header may stand first
    cdef uint8_t expired         # its time in this state is over
    cdef int64_t taken_before    # bytes the peer had acknowledged when its rate was last looked at

    cdef int proceed(self) except -1
    cdef int receive(self) except -1
    cdef int take(self, const char *data, size_t length, bint fresh) except -1
    cdef int stay_idle(self) except -1
    cdef Py_ssize_t take_proxy(self, const char *data, size_t length) except -2
    cdef int park(self, int number, const char *rest, size_t length, bint fresh) except -1
    cdef bint body_due(self, const char *data, size_t length) except? True
    cdef int refuse(self, int status, str message) except -1
    cdef int begin(self, const char *data, size_t length, bint fresh) except -1
    cdef Request make_request(self, str path)
    cdef int run(self, Request request) except -1
    cdef int fail(self, Request request, object error) except -1
    cdef int expire(self) except -1
    cdef int last_look(self) except -1
    cdef int check(self, int64_t now, int64_t grace_ns, double receive_rate, double send_rate) except -1
    cdef bint too_slow(self, int64_t now, int64_t grace_ns, double rate) noexcept
