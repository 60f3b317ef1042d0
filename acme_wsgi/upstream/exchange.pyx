# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""One request to one backend: from the choice that was made to the end of its answer.

    begin -> acquire a connection -> send -> (1xx ...) -> head -> whole body, or piece by piece -> release

A response that is here in full gives its connection back before the client has seen a byte of it; others do so with
their last piece, whether or not the client has taken that.

Law: one attempt. Whether there is another one, and on which backend, is the handler's to decide. However it ends, the
Board hears of it exactly once and the connection is released or closed exactly once.
"""

import logging

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t

from acme_wsgi.errors import BackendError, BodyError, ClientDisconnected

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.http.writer cimport Response, Tunnel
from acme_wsgi.upstream.board cimport Group
from acme_wsgi.upstream.link cimport Link
from acme_wsgi.upstream.payload cimport Payload
from acme_wsgi.upstream.pool cimport Place, Shelf
from acme_wsgi.upstream.shape cimport Shaper, out

log = logging.getLogger("acme.upstream")

HELD = 262144
"""Bytes of a response that are held for a client which is slower than the backend."""

# A client that asked whether it may send waits so long for the backend's word, then for ours.
cdef int64_t GO_AHEAD_NS = 1000000000

# Heads wait so long for a short body. Many backends send the two apart, and as long as nothing has left for the client, one
# that dies between them can be followed by another.
cdef int64_t SOON_NS = 200000000

# A backend that closes a connection which was idle for too long may do so as the next request is on its way, and then it
# shows by now. Whoever breaks off later has been at work.
cdef int64_t CROSSING_NS = 250000000

cdef enum:
    INTERIMS = 32            # 1xx responses before the final one


cdef class Patience:
    """How long a route waits for a backend; all in seconds.

    connect, read, write: each single step. queue: for a connection, where the pool is at its limit. total: for
    everything, over all attempts; None = no limit.
    """

    cdef readonly int64_t connect_ns
    cdef readonly int64_t read_ns
    cdef readonly int64_t write_ns
    cdef readonly int64_t queue_ns
    cdef readonly int64_t total_ns

    def __init__(self, double connect, double read, double write, double queue, total):
        self.queue_ns = <int64_t>(queue * 1e9)
        self.connect_ns = <int64_t>(connect * 1e9)
        self.read_ns = <int64_t>(read * 1e9)
        self.write_ns = <int64_t>(write * 1e9)
        self.total_ns = <int64_t>(total * 1e9) if total is not None else 0


cdef class Lane:
    """A member of a group as this worker reaches it.

    group, member: on the Board. shelf: its connections. shown: its URL for people.
    """

    cdef readonly Group group
    cdef readonly int member
    cdef readonly Shelf shelf
    cdef readonly str shown
    cdef readonly object target
    cdef readonly int slot

    def __init__(self, Group group not None, int member, Shelf shelf not None, str shown not None):
        self.group = group
        self.member = member
        self.shelf = shelf
        self.shown = shown
        self.target = shelf.target
        self.slot = shelf.pool.slot


cdef class Exchange:
    """One attempt. Iterated, it is the rest of the response's body."""

    cdef readonly Lane lane
    cdef Patience patience
    cdef Link link
    cdef Place place             # in the line for that
    cdef int64_t begun_ns
    cdef int64_t sent_ns         # when the request, or its head, began to leave
    cdef bint withdrawn          # its backend was taken out before it could be sent
    cdef readonly int64_t until_ns        # of the whole, over all attempts (CLOCK_MONOTONIC); 0 = no limit
    cdef str request_id
    cdef bint over
    cdef tuple early             # a head that came before the request was sent to its end
    cdef bint head_only
    cdef int interims
    cdef bint broken_off         # the backend has refused the request before it was sent to its end
    cdef Payload upload          # what is still to be sent while the answer comes, or None
    cdef bytes rest              # the piece of that under way, from
    cdef Py_ssize_t rest_at      # here on
    cdef bytes kept              # the last piece of the answer, as long as there is an upload
    cdef readonly bint left      # the client has gone
    cdef bint begun              # the body was asked for
    cdef bint judged             # the board has heard how it went, but not yet that it is over
    cdef bint failing            # the answer is whole, but says that the backend is not well
    cdef readonly bint stale     # it failed since the connection had been closed while it was idle

    def __init__(self, Lane lane not None, Patience patience not None, int64_t until_ns=0):
        """until_ns: of the attempt before this one; 0 for the first."""
        self.lane = lane
        self.patience = patience
        if until_ns == 0 and patience.total_ns:
            until_ns = monotonic_ns() + patience.total_ns
        self.until_ns = until_ns

    cdef int64_t deadline(self, int64_t patience_ns) noexcept:
        cdef int64_t at = monotonic_ns() + patience_ns
        return self.until_ns if self.until_ns and self.until_ns < at else at

    # ---- the attempt ------------------------------------------------------------------------------

    cpdef Response run(self, request, Shaper shaper, Payload payload, bint fresh=False):
        """Send the request and return the Response, whose body may still be coming.

        fresh: an idle connection won't do. Raises BackendError, pool.PoolFull, and whatever reading the client's body raises.
        """
        cdef Lane lane = self.lane
        self.request_id = request.request_id
        request.on_leave = self.leave
        self.begun_ns = monotonic_ns()
        self.place = Place()
        lane.group.begin(lane.member, lane.slot)
        try:
            self.link = lane.shelf.acquire(
                self.deadline(self.patience.queue_ns), self.patience.connect_ns, fresh, self.until_ns, self.place)
            if self.left:
                raise ClientDisconnected("the client went away while its request waited for a backend")
            self.withdrawn = self.place.has_waited() and lane.shelf.peer.draining_since > self.begun_ns
            if self.withdrawn:
                raise BackendError.withdrawn("it was taken out while the request waited for a connection")
            self.sent_ns = monotonic_ns()
            self.send(request, shaper, payload)
            return self.receive(request, payload)
        except BackendError as error:
            self.fail(error)
            raise
        except BaseException:
            self.end(-1, False)           # the client's doing, or the clock's: no mark for the backend
            raise

    cdef int send(self, request, Shaper shaper, Payload payload) except -1:
        """The head, with the body if that is here and small."""
        cdef bytes data = payload.data, rest
        cdef Link link = self.link
        cdef size_t sent
        cdef ssize_t taken
        try:
            shaper.write(request, self.lane.target, payload.length, payload.upgrade, payload.expect)
        except Exception:
            self.end(-1, True)            # nothing of it was sent
            raise
        if data is not None:
            out.put(PyBytes_AS_STRING(data), len(data))
        taken = link.give(out.data, out.used)
        sent = taken if taken > 0 else 0
        if sent < out.used or link.encrypts:
            rest = out.data[sent:out.used]        # others write heads while we wait
            link.send(rest, self.deadline(self.patience.write_ns))
        return 0

    cdef object receive(self, request, Payload payload):
        """The body where it streams, the interim responses, the final head, and what of the body is here."""
        cdef Link link = self.link
        cdef bint unsent = payload.data is None
        cdef tuple head
        self.head_only = request.method == "HEAD"
        if unsent and not payload.expect:
            unsent = self.stream(request, payload)
        while True:
            if unsent and payload.expect and not link.await_answer(monotonic_ns() + GO_AHEAD_NS):
                payload.expect = False    # it says nothing: many never do (RFC 9110 10.1.1)
                unsent = self.stream(request, payload)
            head = self.early
            self.early = None
            if head is None:
                head = link.next_head(self.head_only, self.deadline(self.patience.read_ns))
            if link.status >= 200:
                self.broken_off = unsent
                request.reads_on = self.upload is not None
                return self.answer(head[0], head[1])
            if link.status == 101:
                return self.switch(payload, head[0], head[1])
            self.pass_interim(request, head[1])
            if link.status == 100 and unsent and payload.expect:
                payload.expect = False
                unsent = self.stream(request, payload)

    cdef int pass_interim(self, request, fields) except -1:
        """A 1xx goes on to the client, but for a 100, which is our own affair: each hop has its expectations."""
        self.interims += 1
        if self.interims > INTERIMS:
            raise BackendError.nonsense("too many interim responses")
        if self.link.status == 101:
            raise BackendError.nonsense("it switched protocols without having been asked")
        if self.link.status != 100:
            request.interim(self.link.status, fields)
        return 0

    cdef bint stream(self, request, Payload payload) except? True:
        """Pass the body on as it comes. True if that was broken off because the backend has refused it already.

        If an answer comes meanwhile that is no refusal, the rest of the body is left to `both_ways`.
        """
        cdef Link link = self.link
        cdef bytes piece
        try:
            self.look_for_head(request)   # it may have come with the 100
            while self.early is None and not link.eof:
                self.check_time()
                if not payload.comes_before(link):
                    link.try_read()
                    self.look_for_head(request)
                    continue
                piece = payload.next_piece()
                if piece is not None:
                    self.send_piece(request, piece)
                elif link.all_out(self.deadline(self.patience.write_ns), True):
                    return False
                else:
                    self.look_for_head(request)
            if self.early is None or link.status >= 400:
                return True
            self.upload = payload
            while link.whole and self.upload is not None:
                self.send_on()            # an answer without a body, whose end is the exchange's
        except BackendError as error:
            # It may have said why before it closed.
            if error.status != 502 and not link.whole or not self.has_answered():
                raise
            self.upload = None
            return True
        return False

    cdef int send_piece(self, request, bytes piece) except -1:
        """One piece of the body, or as much of it as leaves before the backend begins its final answer or closes."""
        cdef Link link = self.link
        cdef Py_ssize_t at = 0
        while self.early is None and not link.eof:
            at = link.send_from(piece, at, self.deadline(self.patience.write_ns), True)
            self.look_for_head(request)
            if at == len(piece):
                return 0
        self.rest = piece
        self.rest_at = at
        return 0

    cdef int look_for_head(self, request) except -1:
        """Has the backend said something before the request was sent to its end? Interim responses go on at once."""
        cdef Link link = self.link
        cdef tuple head
        while link.end > link.start:
            head = link.head_here(self.head_only)
            if head is None or link.status >= 200:
                self.early = head
                return 0
            self.pass_interim(request, head[1])
        return 0

    cdef int send_on(self) except -1:
        """Send more of the upload, if need be wait for it, until the backend goes on with its answer."""
        cdef Link link = self.link
        cdef bint watching = not link.whole
        if self.rest is None:
            if watching and not self.upload.comes_before(link):
                return 0
            self.rest = self.upload.next_piece()
            self.rest_at = 0
        if self.rest is not None:
            self.rest_at = link.send_from(self.rest, self.rest_at, self.deadline(self.patience.write_ns), watching)
            if self.rest_at == len(self.rest):
                self.rest = None
        elif link.all_out(self.deadline(self.patience.write_ns), watching):
            self.upload = None
        return 0

    cdef bint has_answered(self) except? True:
        """The connection broke while the body was sent: is there a head to be read nevertheless?"""
        cdef Link link = self.link
        while self.early is None:
            if link.end > link.start:
                self.early = link.head_here(self.head_only)
            if self.early is None and (not link.try_read() or link.eof):
                return False
        return True

    # ---- the answer -------------------------------------------------------------------------------

    cdef object answer(self, text, fields):
        """The final response: whole, or to be continued by iterating."""
        cdef Link link = self.link
        cdef bytes body = None
        if self.upload is None:
            body = link.body_here()
            if body is None:
                body = link.short_body(self.deadline(SOON_NS))
        if self.broken_off:
            link.spoil()
        self.failing = link.status >= 500 and link.status != 501 and link.status != 505
        if body is not None:
            self.end(not self.failing, link.is_reusable())
            return Response(text, fields, body)
        self.judge()
        return Response(text, fields, self, self.close, buffer=HELD)

    cdef object switch(self, Payload payload, text, fields):
        """The backend speaks another protocol from here on, as the client has asked."""
        cdef Link link = self.link
        if not payload.upgrade:
            raise BackendError.nonsense("it switched protocols without having been asked")
        fields = [*fields, ("Connection", "Upgrade"), ("Upgrade", link.protocol)]
        self.judge()
        return Response(text, fields, Tunnel(link, link.take_rest(), payload.tunnel_idle), self.close)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Link link = self.link
        cdef bytes piece
        if self.over:
            raise StopIteration
        if not self.begun:
            self.begun = True
            if self.upload is not None or not link.has_more():
                return b""                # lets the head go ahead: the body may be long in coming
        try:
            self.check_time()
            piece = self.both_ways() if self.upload is not None else b""
            if not piece:
                piece = link.next_piece(self.deadline(self.patience.read_ns))
        except BackendError as error:
            self.fail(error)
            log.warning("backend %s: %s (request %s)", self.lane.shown, error, self.request_id)
            raise
        if link.whole:
            self.end(not self.failing, link.is_reusable())
        if not piece:
            raise StopIteration
        return piece

    cdef bytes both_ways(self):
        """The next piece of an answer that has begun before the request was sent to its end, which goes on meanwhile.

        The answer's last piece waits for the end of the request: a client that has everything sends no more. b"" if
        the request has ended and there is no such piece.
        """
        cdef Link link = self.link
        cdef bytes piece
        while self.upload is not None:
            self.check_time()
            if not link.whole:
                piece = link.piece_here()
                if piece and not link.whole:
                    return piece
                self.kept = piece
            try:
                self.send_on()
            except BackendError as error:
                if error.status != 502 and not link.whole:
                    raise
                self.end_upload()         # it takes no more; what it says stands nevertheless
            except BodyError:
                if not link.whole:
                    raise
                self.end_upload()
        piece = self.kept
        self.kept = None
        return piece if piece is not None else b""

    cdef int end_upload(self) except -1:
        """The rest of the request is not sent."""
        self.upload = None
        self.link.spoil()
        return 0

    cdef int check_time(self) except -1:
        """Of the whole exchange. Single waits have limits of their own, or the client's."""
        if self.until_ns and monotonic_ns() > self.until_ns:
            raise BackendError.slow("the whole exchange took too long", answered=self.link.answered)
        return 0

    # ---- the end ----------------------------------------------------------------------------------

    def close(self):
        """The response has ended for the client, whole or not."""
        self.end(not self.failing, False)

    def leave(self):
        """The client has left: nobody waits for the answer any more."""
        self.left = True
        if self.link is not None:
            self.link.abort()
        elif self.place is not None:
            self.place.leave()

    cdef int fail(self, error) except -1:
        """It is the backend's failure, unless it had closed the connection before it could know of the request, or it was
        we who took the backend out."""
        cdef Link link = self.link
        cdef bint ours = self.withdrawn or link is not None and link.aborted
        if self.left:
            self.end(-1, False)
            raise ClientDisconnected("the client went away while a backend was at work for it")
        self.stale = not ours and link is not None and link.uses > 1 and not link.answered \
            and error.retriable and not error.connecting and monotonic_ns() - self.sent_ns < CROSSING_NS
        if self.stale or ours:
            self.end(-1, False)
        else:
            self.end(0, False, error.connecting)
        return 0

    cdef int judge(self) except -1:
        """The response has begun, and may last: what is known of the backend now doesn't wait for its end."""
        cdef Lane lane = self.lane
        self.judged = True
        lane.group.judge(lane.member, not self.failing, monotonic_ns() - self.begun_ns)
        return 0

    cdef int end(self, int ok, bint reusable, bint connecting=False) except -1:
        """Once: ok is 1 for a success, 0 for a failure (while connecting or not), -1 for neither."""
        cdef Link link = self.link
        cdef Lane lane = self.lane
        if self.over:
            return 0
        self.over = True
        self.link = None
        if link is not None:
            lane.shelf.release(link, reusable)
        if self.judged:
            if ok == 0 and not self.failing:
                lane.group.failed(lane.member, False)
            lane.group.leave(lane.member, lane.slot)
        elif ok < 0:
            lane.group.abandon(lane.member, lane.slot, monotonic_ns() - self.begun_ns)
        else:
            lane.group.end(lane.member, lane.slot, ok, monotonic_ns() - self.begun_ns, connecting)
        return 0
