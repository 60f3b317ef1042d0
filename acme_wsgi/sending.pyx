# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Responses on their way out without a greenlet: bytes and files, piece after piece, as fast as the peer takes them.

    send_or_hold -> the peer takes it, or it is held -> flush_held, when there is room
    send_rest -> head -> piece: bytes             -> send
                         piece: a part of a file  -> in memory?  sendfile, or send from a mapping
                                                  -> else        an I/O thread reads, then as above
                                                  -> DIRECT, READ: an I/O thread reads into a buffer, send

Nothing here holds a greenlet, and nothing waits for a disk: pages that are not in memory are brought there by the
I/O threads. A file that another process rewrites or truncates while it is being sent ends the connection before its
last bytes: what looks whole to the client is one version.

Law: sends what it was given in the order it was given. It knows no request and no header.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from acme_wsgi.clock cimport monotonic_ns
from acme_wsgi.files.openfile cimport Mapping, OpenFile
from acme_wsgi.http.writer cimport DIRECT, MAPPING, READ
from acme_wsgi.loading cimport is_resident, new_buffer
from acme_wsgi.reactor cimport WAIT_WRITE
from acme_wsgi.stream cimport is_gone, lost

cdef extern from "<sys/types.h>" nogil:
    ctypedef long off_t

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int fd, int how)
    int MSG_MORE, SHUT_WR

cdef extern from "<sys/sendfile.h>" nogil:
    ssize_t sendfile(int to, int source, off_t *offset, size_t count)

cdef enum:
    FILE_SLICE = 1048576     # one sendfile
    TURN = 4194304           # bytes of one response before others get their turn


cdef class Held:
    """A ring of output. Its memory is taken when something has to wait, and given back when nothing does."""

    def __cinit__(self, size_t size):
        self.data = <char *>malloc(size)
        if self.data == NULL:
            raise MemoryError
        self.size = size

    def __dealloc__(self):
        free(self.data)

    cdef int put(self, const char *data, size_t length) noexcept:
        """Append bytes for which there is room."""
        cdef size_t at = (self.first + self.used) % self.size
        cdef size_t before_end = min(length, self.size - at)
        memcpy(self.data + at, data, before_end)
        memcpy(self.data, data + before_end, length - before_end)
        self.used += length
        return 0

    cdef void drop(self, size_t length) noexcept:
        self.first = (self.first + length) % self.size
        self.used -= length


cdef class Sending(Stream):
    """A connection as far as it has something to send that needs no greenlet."""

    # ---- what a stream has sent and the peer doesn't take yet -----------------------------------------

    cdef int send_or_hold(self, const char *data, size_t length, size_t limit) except -1:
        """As `send_all`, but what the peer doesn't take is held, and waited for only where that is over `limit` bytes.

        What waits is sent before anything else is. `data` must stay valid meanwhile.
        """
        cdef ssize_t taken
        while length:
            if self.held is None:
                taken = self.try_send(data, length, 0)
                if taken < 0:
                    self.begin_holding(limit)
                    continue
            else:
                taken = <ssize_t>min(length, limit - self.held.used if limit > self.held.used else 0)
                self.held.put(data, <size_t>taken)
            data += taken
            length -= taken
            # Only after a fresh refusal: the edge of the last one may have come and gone.
            if length and self.held is not None and self.flush_held() == NO_ROOM and self.held.used >= limit:
                self.wait_room()
        return 0

    cdef int begin_holding(self, size_t limit) except -1:
        """The peer is slower than the stream: from now on its rate is watched, whoever waits for it."""
        self.held = Held(limit + LAST_CHUNK)
        self.holding = 1
        self.open_window(monotonic_ns())
        self.window_of = WAIT_WRITE
        return 0

    cdef Sent flush_held(self) except *:
        """Push what is held. Raises OSError when the peer has gone; then nothing can follow."""
        cdef Held held = self.held
        cdef size_t before_end
        cdef ssize_t taken
        while held.used:
            before_end = min(held.used, held.size - held.first)
            try:
                if before_end == held.used:
                    taken = self.try_send(held.data + held.first, held.used, 0)
                else:
                    taken = self.try_send_two(held.data + held.first, before_end, held.data, held.used - before_end)
            except BaseException:
                self.break_off()
                raise
            if taken < 0:
                return NO_ROOM
            held.drop(<size_t>taken)
        self.held = None
        self.holding = 0
        self.paused_ns = 0
        return ALL_OUT

    cdef int wait_room(self) except -1:
        """Wait until the peer takes something of what is held. Its time is not the handler's."""
        cdef int64_t since = monotonic_ns()
        try:
            self.wait(WAIT_WRITE)
        except BaseException:
            self.break_off()              # a part of a piece is held: nothing may follow it
            raise
        finally:
            self.turn_ns = monotonic_ns()
            self.client_wait_ns += self.turn_ns - since
        return 0

    cdef void break_off(self) noexcept:
        """Something that was sent will not arrive: nothing may follow it, whatever the handler does."""
        self.held = None
        self.holding = 0
        self.hung_up = 1
        if self.fd >= 0:
            shutdown(self.fd, SHUT_WR)

    # ---- what is complete -----------------------------------------------------------------------------

    cdef void set_body(self, object body) noexcept:
        """`body`, bytes or a FileBody, is next."""
        self.body_rest = body
        self.resident_to = 0
        if type(body) is FileBody:
            self.body_offset = (<FileBody>body).offset
            self.body_left = (<FileBody>body).count
        else:
            self.body_offset = 0
            self.body_left = len(<bytes>body)

    cdef Sent send_rest(self) except *:
        """Push what waits. Raises OSError when the peer has gone, EOFError for a file that isn't what it was."""
        cdef ssize_t taken
        cdef size_t budget = TURN
        cdef bytes data
        cdef Sent sent
        if self.held is not None:
            return self.flush_held()      # a stream has nothing behind it
        if self.load is not None:
            return LOADING
        if self.read_error:
            self.fail_reading()
        while self.head_rest is not None:
            data = <bytes>self.head_rest
            taken = self.try_send(PyBytes_AS_STRING(data), len(data), MSG_MORE if self.body_left or self.more else 0)
            if taken < 0:
                self.paused = True
                return NO_ROOM
            self.head_rest = data[taken:] if taken < len(data) else None
        while True:
            if self.body_left:
                if type(self.body_rest) is FileBody:
                    sent = self.send_file_rest(&budget)
                else:
                    sent = self.send_bytes_rest(&budget)
                if sent != ALL_OUT:
                    self.paused = True
                    return sent
            self.body_rest = None
            if not self.more:
                self.paused = False
                return ALL_OUT
            self.set_body(self.more.pop())

    cdef Sent send_bytes_rest(self, size_t *budget) except *:
        cdef bytes data = <bytes>self.body_rest
        cdef ssize_t taken
        while self.body_left:
            if budget[0] == 0:
                return TURN_OVER
            taken = self.try_send(PyBytes_AS_STRING(data) + self.body_offset, <size_t>self.body_left,
                                  MSG_MORE if self.more else 0)
            if taken < 0:
                return NO_ROOM
            self.took(taken, budget)
        return ALL_OUT

    cdef Sent send_file_rest(self, size_t *budget) except *:
        cdef FileBody body = <FileBody>self.body_rest
        if body.way == DIRECT or body.way == READ:
            return self.send_loaded(body, budget)
        return self.send_in_place(body, budget)

    # ---- from the page cache ----------------------------------------------------------------------

    cdef Sent send_in_place(self, FileBody body, size_t *budget) except *:
        """Straight from the pages that the kernel holds, if it holds them."""
        cdef int64_t count
        cdef ssize_t taken
        while self.body_left:
            if budget[0] == 0:
                return TURN_OVER
            count = self.body_left if self.body_left < FILE_SLICE else FILE_SLICE
            if self.body_offset + count > self.resident_to:
                if not is_resident(body.file.fileno(), self.body_offset, count):
                    return self.fetch(body, count, False)
                self.resident_to = self.body_offset + count
            if count == self.body_left:
                self.check_version(body)
            taken = self.push(body, <size_t>count)
            if taken < 0:
                return NO_ROOM
            if taken == 0:
                raise self.ended_early()
            self.took(taken, budget)
        return ALL_OUT

    cdef ssize_t push(self, FileBody body, size_t count) except -2:
        """One sendfile: bytes taken, 0 at the file's end, -1 when there is no room now."""
        cdef off_t offset
        cdef ssize_t taken
        cdef int source
        if body.way == MAPPING and type(body.file) is OpenFile:
            return self.push_mapped(body, count)
        source = body.file.fileno()
        while True:
            offset = self.body_offset
            taken = sendfile(self.fd, source, &offset, count)
            if taken >= 0:
                self.sent_total += taken
                return taken
            if errno == EAGAIN:
                return -1
            if errno == EINTR:
                continue
            if is_gone(errno):
                self.hung_up = 1
                raise lost("a file was sent to it")
            raise OSError(errno, "sendfile failed")

    cdef ssize_t push_mapped(self, FileBody body, size_t count) except -2:
        """As `push`, from a mapping.

        Only the kernel looks at its pages, in send(2): where the file was truncated that is EFAULT, never a SIGBUS.
        """
        cdef Mapping mapping = (<OpenFile>body.file).mapping()
        if <size_t>self.body_offset + count > mapping.length:
            return 0
        try:
            return self.try_send(mapping.address + self.body_offset, count, MSG_MORE if self.more else 0)
        except OSError as error:
            if error.errno != EFAULT:
                raise
            self.hung_up = 0              # it is not the peer's fault
            return 0

    # ---- through a buffer -------------------------------------------------------------------------

    cdef Sent send_loaded(self, FileBody body, size_t *budget) except *:
        """An I/O thread reads a piece, we send it, and so on."""
        cdef Buffer buffer
        cdef ssize_t taken
        cdef bint last
        while self.body_left:
            buffer = self.piece
            if buffer is None:
                return self.fetch(body, self.body_left, True)
            if budget[0] == 0:
                return TURN_OVER
            last = <int64_t>(buffer.end - buffer.start) == self.body_left
            if last:
                self.check_version(body)
            taken = self.try_send(buffer.data + buffer.start, buffer.end - buffer.start,
                                  0 if last and not self.more else MSG_MORE)
            if taken < 0:
                return NO_ROOM
            buffer.start += taken
            self.took(taken, budget)
            if buffer.start == buffer.end:
                self.piece = None
        return ALL_OUT

    # ---- both -------------------------------------------------------------------------------------

    cdef Sent fetch(self, FileBody body, int64_t count, bint keep) except *:
        """Have an I/O thread read the next `count` bytes: into a buffer (which may take fewer), or just into memory."""
        cdef Load load = Load.__new__(Load)
        load.owner = self
        load.body = body
        load.offset = self.body_offset
        load.count = count
        if keep:
            load.buffer = new_buffer(count)
            if <size_t>load.count > load.buffer.size:
                load.count = load.buffer.size
        self.load = load
        try:
            load.begin()
        except BaseException:
            self.load = load.owner = None
            raise
        return LOADING

    def loaded(self, Load load):
        """In the hub: the I/O thread is done. Our turn comes with a leader."""
        self.load = None
        self.piece = load.buffer
        self.resident_to = load.offset + load.count
        self.read_error = load.error
        if load.buffer is not None and load.buffer.start == load.buffer.end and not load.error:
            self.read_error = -1
        # The peer's rate is not to be blamed for our disk.
        self.open_window(monotonic_ns())
        self.reactor.make_ready(self)

    cdef object ended_early(self):
        """The exception for a file that has fewer bytes than its head promised."""
        return EOFError(f"{name_of(self.body_rest)} ended {self.body_left} bytes before its promised length")

    cdef int fail_reading(self) except -1:
        """What the I/O thread could not read."""
        cdef int error = self.read_error
        self.read_error = 0
        if error > 0:
            raise OSError(error, "reading a file failed")
        raise self.ended_early()

    cdef int check_version(self, FileBody body) except -1:
        """Before a file's last bytes leave: are they of the version whose first ones did?"""
        if self.paused and type(body.file) is OpenFile and not (<OpenFile>body.file).same_version():
            raise EOFError(f"{name_of(body)} was changed while it was sent; rename a new file into its place instead")
        return 0

    cdef int took(self, ssize_t count, size_t *budget) except -1:
        self.body_offset += count
        self.body_left -= count
        budget[0] = budget[0] - count if budget[0] > <size_t>count else 0
        return 0

    cdef void forget_output(self) noexcept:
        """The connection ends, or its response does: nothing of it is sent any more."""
        if self.load is not None:
            self.load.owner = None
            self.load = None
        self.head_rest = self.body_rest = self.more = self.piece = self.held = None
        self.holding = 0
        self.body_left = self.read_error = 0
        self.paused = False

    cdef void close_descriptor(self, bint reset) noexcept:
        Stream.close_descriptor(self, reset)
        self.forget_output()


cdef str name_of(FileBody body):
    """What an open file is called, for the log."""
    try:
        return ascii(os.readlink(f"/proc/self/fd/{body.file.fileno()}"))
    except (OSError, ValueError):
        return "a file"
