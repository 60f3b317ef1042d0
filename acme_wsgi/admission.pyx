# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Who may run, who waits, and who is turned away: between the request being here and its begin.

    take -> admit -> begin
                  -> LIST_QUEUE -> LIST_GRANTED -> begin
                  -> shed (503), or dropped because its client has left

A request waits for one of two reasons. The worker runs as many as it may (server.max_concurrency): then it stands in
LIST_QUEUE with its bytes and no greenlet. Or the worker's loop is busy: then its connection stands in the reactor's
ready queue, and how long is known when its turn comes. Either way first come is first served, nobody waits longer
than server.queue_timeout, and being turned away costs a fraction of what being served would.

Law: this file decides whether a request begins, never what it means. It runs no handler and no Python of anybody's.
"""

import logging

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.chunked cimport Chunked, chunked_next, chunked_start
from acme_wsgi.http.environ cimport ascii, latin1, method_name, put_fields
from acme_wsgi.http.grammar cimport same_name
from acme_wsgi.http.h1 cimport Head, read_head
from acme_wsgi.http.writer cimport Scratch
from acme_wsgi.request cimport HTTP_1_0, HTTP_1_1
from acme_wsgi.service cimport LIST_GRANTED, LIST_IDLE, LIST_QUEUE, LIST_RUN, LOG_BATCH, Service

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

log = logging.getLogger("acme.admission")

# Whoever has closed its end and waited so long has probably left; before, it may have closed just this end.
cdef int64_t NOTICEABLE_NS = 100000000


def shed_head(bint server):
    """The answer to a request that is turned away, up to the Date's value."""
    lines = [
        b"HTTP/1.1 503 Service Unavailable", b"Content-Type: text/plain", b"Content-Length: 11",
        b"Cache-Control: no-store", b"Retry-After: 1", *([b"Server: acme"] if server else []), b"Date: ",
    ]
    return b"\r\n".join(lines)


cdef class Waiting(Answering):
    """A connection as far as it waits for its turn."""

    def __dealloc__(self):
        free(self.scan)

    cdef void forget_scan(self) noexcept:
        free(self.scan)
        self.scan = NULL

    cdef int keep(self, const char *rest, size_t length, bint fresh) except -1:
        """What is left belongs to whatever comes next."""
        if fresh:
            if length:
                self.stash(rest, length)
        elif length:
            self.start = <uint32_t>(rest - self.buffer)
        else:
            self.start = self.end = 0
        return 0

    cdef int admit(self, const char *data, size_t length, bint fresh) except -1:
        """A whole request is at `data`, and it may have to wait: 1 = it begins now, 0 = it is dealt with."""
        cdef Service service = self.service
        cdef int64_t now = monotonic_ns(), since = now
        cdef bint granted = self.list_number == LIST_GRANTED
        if granted:
            since = self.since_ns
        elif self.reactor.waiting_ns:
            since = self.reactor.waiting_ns
        if (self.ended or self.eof) and (granted or now - since > NOTICEABLE_NS):
            return self.drop(since)
        if now - since > service.queue_ns:
            return self.shed(data, length, fresh, since)
        if granted or not service.max_concurrency:
            return 1
        if not self.reactor.lists[LIST_QUEUE].length and service.max_concurrency > \
                self.reactor.lists[LIST_RUN].length + self.reactor.lists[LIST_GRANTED].length:
            return 1
        if self.reactor.lists[LIST_QUEUE].length >= service.queue_size:
            return self.shed(data, length, fresh, since)
        self.forget_scan()                # its body will be looked at anew
        self.keep(data, length, fresh)
        self.reactor.enter(self, LIST_QUEUE, since)
        return 0

    cdef bint overdue(self) noexcept:
        """In LIST_QUEUE or LIST_GRANTED: is its time over?"""
        return monotonic_ns() - self.since_ns > self.service.queue_ns

    cdef int turn_away(self) except -1:
        """In LIST_QUEUE or LIST_GRANTED: it won't begin. Its client hears of it if it is still there."""
        read_head(self.buffer + self.start, self.end - self.start, self.service.max_head, &self.service.head)
        if self.ended:
            return self.drop(self.since_ns)
        return self.shed(self.buffer + self.start, self.end - self.start, False, self.since_ns)

    # ---- turned away ------------------------------------------------------------------------------

    cdef int shed(self, const char *data, size_t length, bint fresh, int64_t since) except -1:
        """Answer the request at `data`, whose head was just read, with a 503; as cheaply as can be."""
        cdef Service service = self.service
        cdef Head *head = &service.head
        cdef Scratch out = service.out
        cdef str request_id = service.make_id()
        cdef tuple entry = None
        cdef Py_ssize_t body = body_here(head, data + head.consumed, length - head.consumed)
        cdef size_t used = head.consumed + (body if body > 0 else 0)
        cdef bint closing = body < 0 or not head.keep_alive or service.draining or self.eof
        cdef bint bare = head.method_length == 4 and memcmp(head.method, b"HEAD", 4) == 0
        cdef bint old = head.minor == 0, whole
        cdef ssize_t taken = 0
        cdef bint collecting = PyGC_Disable()         # as in Connection.begin: the bytes must stay ours
        try:
            if service.log_entries is not None:
                entry = self.describe(request_id)
            self.keep(data + used, length - used, fresh)
            self.forget_scan()
            write_shed(out, service, request_id, closing, old, bare)
            try:
                taken = self.try_send(out.data, out.used, 0)
            except OSError:
                taken = -1
            whole = taken == <ssize_t>out.used
        finally:
            if collecting:
                PyGC_Enable()
        service.slot.data.shed += 1
        service.shed_untold += 1
        if not whole:
            # Who doesn't even take so much gets no more of a busy server.
            self.close(True)
        else:
            self.settle(closing, body < 0)
        # Last: a log that is flushed may let others run.
        return self.count(entry, 503, used, taken if taken > 0 else 0, since)

    cdef int settle(self, bint closing, bint rest) except -1:
        """Ready for the next request, or closed; with `rest`, more of this one is on its way."""
        if closing:
            if rest or self.readable or self.end > self.start:
                self.linger()
            else:
                self.close(False)
            return 0
        self.reactor.enter(self, LIST_IDLE, monotonic_ns())
        if self.end > self.start or self.readable:
            self.reactor.make_ready(self)
        else:
            self.drop_buffer()
        return 0

    cdef int drop(self, int64_t since) except -1:
        """The client has left while its request, whose head was just read, waited: nobody would hear an answer."""
        cdef Service service = self.service
        cdef uint64_t used = service.head.consumed
        cdef tuple entry = None
        cdef bint collecting = PyGC_Disable()
        try:
            if service.log_entries is not None:
                entry = self.describe(service.make_id())
        finally:
            if collecting:
                PyGC_Enable()
        service.slot.data.gone += 1
        service.gone_untold += 1
        self.close(False)
        return self.count(entry, 499, used, 0, since)

    cdef int count(self, tuple entry, int status, uint64_t taken, uint64_t sent, int64_t since) except -1:
        """As for a request that ran: it is counted once and logged once."""
        cdef Service service = self.service
        cdef int64_t now = monotonic_ns()
        self.reactor.seen_ns = now
        service.slot.data.bytes_in += taken
        service.slot.count_response(status, sent, now - since)
        if entry is None or service.log_entries is None:
            return 0
        address, method, target, protocol, *rest = entry
        service.log_entries.append((service.epoch + now * 1e-9, now - since, address, method, target, protocol, status,
                                    len(SHED_BODY) if sent and method != "HEAD" else 0, *rest))
        if len(service.log_entries) >= LOG_BATCH:
            service.access_log.flush()
        return 0

    cdef tuple describe(self, str request_id):
        """What the access log tells of the request whose head was just read."""
        cdef Head *head = &self.service.head
        cdef object address = self.address
        cdef dict environ = None
        if self.trusted or self.service.log_environ:
            environ = {}
            put_fields(environ, head)
            if self.trusted:
                self.service.trusted.apply(environ, self.address)
                address = environ.get("REMOTE_ADDR") or address
        return (
            address, method_name(head), latin1(head.target, head.target_length), HTTP_1_1 if head.minor else HTTP_1_0,
            field_value(head, b"referer", 7), field_value(head, b"user-agent", 10), field_value(head, b"host", 4),
            request_id, environ if self.service.log_environ else None,
        )


cdef bytes SHED_BODY = b"overloaded\n"


cdef int write_shed(Scratch out, Service service, str request_id, bint closing, bint old, bint bare) except -1:
    """The whole 503 into the scratch buffer."""
    cdef Py_ssize_t length = 0
    cdef const char *text = PyUnicode_AsUTF8AndSize(request_id, &length)
    out.used = 0
    out.put(service.shed_head, len(service.shed_head))
    out.put(service.date, 29)
    out.put(b"\r\nX-Request-ID: ", 16)
    out.put(text, length)
    if closing:
        out.put(b"\r\nConnection: close\r\n\r\n", 23)
    elif old:
        out.put(b"\r\nConnection: keep-alive\r\n\r\n", 28)
    else:
        out.put(b"\r\n\r\n", 4)
    if not bare:
        out.put(SHED_BODY, len(SHED_BODY))
    return 0


cdef Py_ssize_t body_here(Head *head, const char *data, size_t have) noexcept:
    """How many bytes the body takes, if `data` holds all of it; else -1."""
    cdef Chunked decoder
    cdef size_t at = 0, used = 0, found = 0
    cdef const char *piece = NULL
    cdef int verdict
    if head.chunked:
        chunked_start(&decoder)
        while at < have:
            verdict = chunked_next(&decoder, data + at, have - at, &used, &piece, &found)
            at += used
            if verdict != 1:
                return <Py_ssize_t>at if verdict == 2 else -1
        return -1
    if head.content_length <= 0:
        return 0
    return <Py_ssize_t>head.content_length if <int64_t>have >= head.content_length else -1


cdef object field_value(Head *head, const char *name, size_t length):
    """The first field of that name, or None."""
    cdef int index
    for index in range(head.nfields):
        if same_name(head.fields[index].name, head.fields[index].name_length, name, length):
            return latin1(head.fields[index].value, head.fields[index].value_length)
    return None
