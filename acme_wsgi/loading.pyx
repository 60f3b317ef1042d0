# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What an I/O thread does for a response: reading from a file without the loop waiting for the disk.

    is_resident? -> (no) Load -> an I/O thread reads -> owner.loaded()

Law: knows files, buffers and the I/O threads; not whom the bytes are for. What runs in a thread touches nothing but
its own Load.
"""

import gevent

from libc.errno cimport EAGAIN, EBADF, EINTR, EINVAL, errno
from libc.stdlib cimport free, malloc

from acme_wsgi.files.openfile cimport OpenFile
from acme_wsgi.http.writer cimport DIRECT

cdef extern from "<sys/types.h>" nogil:
    ctypedef long off_t

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *parts, int count, off_t offset, int flags)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
    int munmap(void *address, size_t length)
    int mincore(void *address, size_t length, unsigned char *pages)
    int PROT_READ, MAP_SHARED
    void *MAP_FAILED

cdef enum:
    ALIGNMENT = 4096         # what O_DIRECT asks of offset, length and memory, on every disk in use
    RWF_NOWAIT = 8           # <linux/fs.h>
    PAGE = 4096
    LARGE = 262144           # of a buffer, as long as there are few
    SMALL = 32768            # of a buffer when there are many
    PLENTY = 67108864        # bytes in large buffers of one worker
    READ_THROUGH = 65536

cdef size_t in_large_buffers = 0


cdef class Buffer:
    """Memory that a piece of a file is read into."""

    def __dealloc__(self):
        global in_large_buffers
        if self.data != NULL:
            if self.size == LARGE:
                in_large_buffers -= LARGE
            free(self.data)


cdef Buffer new_buffer(int64_t wanted):
    """Room for a piece of `wanted` bytes: less of it for each response when many are under way.

    Slow clients hold theirs for long, so their number must not decide how much memory the worker takes.
    """
    global in_large_buffers
    cdef Buffer buffer = Buffer.__new__(Buffer)
    cdef size_t size = SMALL if wanted <= SMALL or in_large_buffers + LARGE > PLENTY else LARGE
    if posix_memalign(<void **>&buffer.data, ALIGNMENT, size) != 0:
        buffer.data = NULL
        raise MemoryError
    buffer.size = size
    if size == LARGE:
        in_large_buffers += LARGE
    return buffer


cdef bint is_resident(int fd, int64_t offset, int64_t count) noexcept:
    """Are the first and the last page of these bytes in memory, so that reading them won't wait for a disk?"""
    cdef char byte = 0
    cdef iovec part
    cdef ssize_t got
    part.iov_base = &byte
    part.iov_len = 1
    # From the end: that is the page most likely missing.
    got = preadv2(fd, &part, 1, offset + count - 1, RWF_NOWAIT)
    if got < 0 and errno != EAGAIN and errno != EINTR:
        return is_mapped_in(fd, offset, count)        # tmpfs, network file systems: they don't know the flag
    if got < 0:
        return False
    if count <= PAGE:
        return True
    return preadv2(fd, &part, 1, offset, RWF_NOWAIT) >= 0


cdef bint is_mapped_in(int fd, int64_t offset, int64_t count) noexcept:
    """As `is_resident`, asked of the memory manager; True where nobody can tell."""
    cdef unsigned char pages[1]
    cdef int64_t last = (offset + count - 1) // PAGE * PAGE
    cdef void *address = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, last)
    cdef bint resident
    if address == MAP_FAILED:
        return True
    resident = mincore(address, PAGE, pages) != 0 or pages[0] & 1
    munmap(address, PAGE)
    return resident


cdef class Load:
    """One reading in an I/O thread. `begin` may block while all of them are busy."""

    cdef int begin(self) except -1:
        result = gevent.get_hub().threadpool.spawn(self.read)
        result.rawlink(self.finished)
        return 0

    def finished(self, result):
        """In the hub, when the thread is done."""
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.loaded(self)

    def read(self):
        """In the thread. What fails is `error`."""
        try:
            self.read_or_raise()
        except (OSError, ValueError) as error:
            self.error = getattr(error, "errno", None) or EBADF      # ValueError: it was closed meanwhile

    cdef int read_or_raise(self) except -1:
        cdef int fd = self.body.file.fileno()
        cdef int direct = -1
        if self.buffer is None:
            self.error = read_through(fd, self.offset, self.count)
            return 0
        if self.body.way == DIRECT and type(self.body.file) is OpenFile:
            direct = self.body.file.direct_fd()
        if direct >= 0:
            self.error = self.fill(direct, self.offset // ALIGNMENT * ALIGNMENT)
            if self.error != EINVAL:
                return 0
            # A disk with larger blocks than any we know.
        self.error = self.fill(fd, self.offset)
        return 0

    cdef int fill(self, int fd, int64_t begin) noexcept:
        """Read into the buffer from `begin`, at or before our offset; 0 or errno."""
        cdef Buffer buffer = self.buffer
        cdef size_t wanted = <size_t>(self.count + self.offset - begin), have = 0
        cdef ssize_t got = 0
        cdef int failed = 0
        wanted = (wanted + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        if wanted > buffer.size:
            wanted = buffer.size
        with nogil:
            while have < wanted:
                got = pread(fd, buffer.data + have, wanted - have, begin + <off_t>have)
                if got < 0 and errno == EINTR:
                    continue
                if got < 0:
                    failed = errno
                if got <= 0:
                    break
                have += got
                if have % ALIGNMENT:
                    break                 # the end of the file
        buffer.start = <size_t>(self.offset - begin)
        buffer.end = have
        if buffer.end > buffer.start + <size_t>self.count:
            buffer.end = buffer.start + <size_t>self.count
        if buffer.end < buffer.start:
            buffer.end = buffer.start
        return failed if buffer.end == buffer.start else 0


cdef int read_through(int fd, int64_t offset, int64_t count) noexcept:
    """Bring these bytes into the page cache; 0 or errno."""
    cdef char *waste
    cdef int64_t end = offset + count
    cdef ssize_t got = 0
    cdef int failed = 0
    with nogil:
        waste = <char *>malloc(READ_THROUGH)
        while waste != NULL and offset < end:
            got = pread(fd, waste, READ_THROUGH, offset)
            if got < 0 and errno == EINTR:
                continue
            if got < 0:
                failed = errno
            if got <= 0:
                break
            offset += got
        free(waste)
    return failed
