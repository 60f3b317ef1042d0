# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The request's body as the application reads it: wsgi.input.

Law: a read returns what the client sent and nothing else. The end of the body is an empty read; a body that was
cut or is malformed is an error in the read that meets it and in every read after it, never a clean end.
Blocking happens in the reading greenlet, and only when the bytes are not there yet.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from acme_wsgi.errors import BodyError, HTTPError

from acme_wsgi.http.chunked cimport DATA_STATE, chunked_next
from acme_wsgi.reactor cimport WAIT_READ

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *text, Py_ssize_t length) except NULL
    int _PyBytes_Resize(PyObject **text, Py_ssize_t length) except -1
    void Py_XDECREF(PyObject *value)

cdef enum:
    PIECE = 65536            # how much is read at once when the application asks for "all"
    LARGEST = 1048576        # one allocation for a sized read; larger ones are gathered
    RAW = 16384              # one recv of a chunked body

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


cdef class Body:
    """wsgi.input: read, readline, readlines and iteration, as PEP 3333 asks."""

    cdef bytes some(self, size_t most):
        """At least one byte and at most `most`, or b"" at the end. Raises BodyError, HTTPError 413."""
        cdef bytes piece
        if self.over:
            raise ValueError("the request is over; its body can't be read any more")
        if self.done:
            return b""
        if self.failure is not None:
            raise self.failure
        if self.length > self.limit:
            self.failure = HTTPError(413, "the request body is larger than this server takes")
            raise self.failure
        try:
            self.stream.give_way()
            piece = self.some_of_chunks(most) if self.chunked else self.some_of_length(most)
        except (BodyError, HTTPError, ConnectionError) as error:
            self.failure = error
            raise
        return piece

    cdef bytes from_buffer(self, size_t length):
        cdef Stream stream = self.stream
        cdef bytes piece = stream.buffer[stream.start:stream.start + length]
        stream.start += <uint32_t>length
        return piece

    cdef int before_wait(self) except -1:
        """Only a handler that really waits for the body makes the client send it (RFC 9110 10.1.1)."""
        if self.expect:
            self.expect = False
            self.stream.send_all(PyBytes_AS_STRING(CONTINUE), len(CONTINUE))
        return 0

    cdef int cut(self) except -1:
        raise BodyError("the request body ended before its announced end")

    cdef bytes some_of_length(self, size_t most):
        """One read against Content-Length: buffered bytes first, then straight into the result."""
        cdef Stream stream = self.stream
        cdef size_t buffered = stream.end - stream.start
        cdef ssize_t got
        cdef PyObject *result
        cdef bytes piece
        if <int64_t>most > self.remaining:
            most = <size_t>self.remaining
        if buffered:
            if most > buffered:
                most = buffered
            piece = self.from_buffer(most)
            got = <ssize_t>most
        else:
            result = PyBytes_FromStringAndSize(NULL, most)
            try:
                while True:
                    if stream.eof:
                        self.cut()
                    got = stream.receive_into(PyBytes_AS_STRING(<bytes>result), most)
                    if got > 0:
                        break
                    if got == 0:
                        self.cut()
                    self.before_wait()
                    stream.wait_peer(WAIT_READ)
                _PyBytes_Resize(&result, got)
                piece = <bytes>result
            finally:
                Py_XDECREF(result)
        self.remaining -= got
        self.total += got
        self.done = self.remaining == 0
        return piece

    cdef bytes some_of_chunks(self, size_t most):
        """One read of a chunked body; trailer fields are checked and dropped (RFC 9112 7.1.2)."""
        cdef Stream stream = self.stream
        cdef size_t available, used = 0, length = 0
        cdef const char *piece = NULL
        cdef bytes result
        cdef ssize_t got
        cdef int verdict
        while True:
            available = stream.end - stream.start
            if available:
                # In the data of a chunk, no more is taken than is asked for.
                if self.decoder.state == DATA_STATE and available > most:
                    available = most
                verdict = chunked_next(&self.decoder, stream.buffer + stream.start, available, &used, &piece, &length)
                if verdict == 1 and length > most:
                    verdict = self.give_back(length - most, &used, &length)
                result = piece[:length] if verdict == 1 else None
                stream.start += <uint32_t>used
                if verdict < 0:
                    raise BodyError("malformed chunked body: " + self.decoder.message.decode("ascii"))
                if verdict == 2:
                    self.done = True
                    return b""
                if verdict == 1:
                    self.total += len(result)
                    if self.total > self.limit:
                        raise HTTPError(413, "the request body is larger than this server takes")
                    return result
                continue
            stream.make_room(RAW)
            if stream.eof:
                self.cut()
            got = stream.receive_into(stream.buffer + stream.end, stream.size - stream.end)
            if got > 0:
                stream.end += <uint32_t>got
            elif got == 0:
                self.cut()
            else:
                self.before_wait()
                stream.wait_peer(WAIT_READ)

    cdef int give_back(self, size_t surplus, size_t *used, size_t *length) except -2:
        """The decoder took more data than was asked for: let it forget the rest."""
        used[0] -= surplus
        length[0] -= surplus
        self.decoder.remaining += surplus
        self.decoder.state = DATA_STATE
        return 1

    cdef int64_t unread(self) noexcept:
        """Bytes that still have to come from the network before the body's end; -1 when nobody knows."""
        cdef int64_t buffered
        if self.done or self.stream is None:
            return 0
        if self.chunked:
            return -1
        buffered = self.stream.end - self.stream.start
        return self.remaining - buffered if self.remaining > buffered else 0

    cdef bint skip(self):
        """Drop what is buffered of an unread body; True when that was all of it, so that the next request follows."""
        cdef Stream stream = self.stream
        cdef size_t buffered, used = 0, length = 0
        cdef const char *piece = NULL
        cdef int verdict
        if self.done or stream is None:
            return True
        if self.failure is not None:
            return False
        buffered = stream.end - stream.start
        if not self.chunked:
            if <int64_t>buffered > self.remaining:
                buffered = <size_t>self.remaining
            stream.start += <uint32_t>buffered
            self.remaining -= buffered
            self.done = self.remaining == 0
            return self.done
        while stream.end > stream.start:
            verdict = chunked_next(&self.decoder, stream.buffer + stream.start, stream.end - stream.start, &used,
                                   &piece, &length)
            stream.start += <uint32_t>used
            if verdict == 2:
                self.done = True
                return True
            if verdict < 0:
                return False
        return False

    # ---- PEP 3333 ---------------------------------------------------------------------------------

    cdef bytes take_ahead(self, Py_ssize_t end):
        """The bytes ahead up to `end`. They are not moved: a body may be a million lines."""
        cdef bytes piece = self.ahead[self.ahead_at:end]
        if end == len(self.ahead):
            self.ahead = None
        else:
            self.ahead_at = end
        return piece

    cdef bytes exactly(self, size_t size):
        """`size` bytes, fewer only at the end."""
        cdef bytes piece
        cdef size_t have
        if self.ahead is not None:
            have = len(self.ahead) - self.ahead_at
            piece = self.take_ahead(self.ahead_at + <Py_ssize_t>(size if size < have else have))
        else:
            piece = self.some(size if size < LARGEST else LARGEST)
        have = len(piece)
        if have == size or self.done:
            return piece
        pieces = [piece]
        while have < size:
            piece = self.some(size - have if size - have < LARGEST else LARGEST)
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        return b"".join(pieces)

    cdef bytes everything(self):
        pieces = []
        if self.ahead is not None:
            pieces.append(self.take_ahead(len(self.ahead)))
        while True:
            piece = self.some(PIECE)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    def read(self, size=-1):
        """Up to `size` bytes, all without it. Fewer than asked for only at the end of the body."""
        if size is None or size < 0:
            return self.everything()
        if size == 0:
            return b""
        return self.exactly(size)

    def read1(self, size_t size=PIECE):
        """1 to `size` bytes: what is there, or what comes next; b"" at the end. For who passes the body on."""
        if size == 0:
            return b""
        if self.ahead is not None:
            return self.take_ahead(min(self.ahead_at + <Py_ssize_t>size, <Py_ssize_t>len(self.ahead)))
        return self.some(size if size < LARGEST else LARGEST)

    def ready_before(self, Stream other not None):
        """Wait until `read1` would not have to wait, or until something happens on `other`: True if that came second."""
        while not self.is_coming():
            if not other.readable:
                self.before_wait()
            if other.readable:
                return False
            other.other = self.stream
            try:
                self.stream.wait_peer(WAIT_READ)
            finally:
                other.other = None
        return True

    cdef bint is_coming(self) except? True:
        """Is something of the body here, or its end, or what is wrong with it?"""
        cdef Stream stream = self.stream
        cdef Chunked trial
        cdef size_t used = 0, length = 0
        cdef const char *piece = NULL
        cdef ssize_t got
        if self.over or self.done or self.failure is not None or self.ahead is not None or stream.eof:
            return True
        if not self.chunked:
            return stream.end > stream.start or stream.readable and stream.peek() >= 0
        while True:
            trial = self.decoder
            if stream.end > stream.start:
                if chunked_next(&trial, stream.buffer + stream.start, stream.end - stream.start, &used, &piece, &length):
                    return True
                self.decoder = trial      # what stood there was no data, but what stands between two pieces of it
                stream.start += <uint32_t>used
            if not stream.readable:
                return False
            stream.make_room(RAW)
            got = stream.receive_into(stream.buffer + stream.end, stream.size - stream.end)
            if got <= 0:
                return got == 0
            stream.end += <uint32_t>got

    def readline(self, size=-1):
        """One line with its end, at most `size` bytes of it."""
        cdef Py_ssize_t at, end, stop, have = 0, most = -1 if size is None or size < 0 else size
        cdef bint whole = most == 0
        cdef list pieces = []
        while not whole:
            if self.ahead is None:
                piece = self.some(PIECE)
                if not piece:
                    break
                self.ahead = piece
                self.ahead_at = 0
            at = self.ahead_at
            stop = len(self.ahead)
            if most > 0 and stop - at > most - have:
                stop = at + most - have
            end = self.ahead.find(b"\n", at, stop) + 1
            whole = end > 0
            if not whole:
                end = stop
            have += end - at
            whole = whole or have == most
            pieces.append(self.take_ahead(end))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readlines(self, hint=-1):
        """All lines; with `hint`, no further ones once they hold that many bytes."""
        lines = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self):
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line
