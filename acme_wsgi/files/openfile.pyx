# cython: boundscheck=False, wraparound=False, cdivision=True
"""An open file and what it was when it was opened: descriptor, stat, shared mapping, a second way in for direct I/O.

A response promises a length and a tag, and keeps both only while the file stays the version that its head was
made from; `unchanged` tells. Whoever uses the descriptor or the mapping holds the OpenFile (or the Mapping):
both close when the last user lets go.

Law: knows descriptors and mappings of regular files. It doesn't know names: who opened it has seen to that.
"""

from libc.errno cimport EMFILE, ENFILE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

from cpython.exc cimport PyErr_SetFromErrno

cdef extern from "<time.h>" nogil:
    # The same struct timespec as in clock.pxd; its own declaration, because Cython joins none of them.
    cdef struct timespec:
        int64_t tv_sec
        long tv_nsec

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_of "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        uint64_t st_nlink
        int64_t st_size
        timespec st_mtim
        timespec st_ctim
    int fstat(int fd, stat_of *found)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    int MAP_SHARED, PROT_READ

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #ifndef O_DIRECT
    #define O_DIRECT __O_DIRECT  /* hidden where Python.h came before _GNU_SOURCE */
    #endif
    """
    int O_RDONLY, O_CLOEXEC, O_DIRECT
    int open(const char *path, int flags) nogil

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef int64_t nanoseconds(timespec at) noexcept nogil:
    return at.tv_sec * 1000000000 + at.tv_nsec


cdef class Mapping:
    """The pages of a file, shared with everybody who maps it; unmapped with its last user.

    Nobody may touch them from this process: if the file was truncated meanwhile that is a SIGBUS. send(2) and
    write(2) read them in the kernel, and fail with EFAULT instead.
    """

    def __init__(self):
        raise TypeError("an OpenFile makes its mapping")

    def __dealloc__(self):
        if self.address is not NULL:
            with nogil:
                munmap(self.address, self.length)


cdef class OpenFile:
    """A regular file, open for reading. `fd` is taken over: it is closed with this object, also when fstat fails.

    `size` in bytes, `mtime_ns` and `ctime_ns` in nanoseconds since the epoch, `links` (hard links), `dev`, `ino`
    and `mode` as fstat(2) told when it was made. Making it, `mapping` and `direct_fd` may wait for a disk.
    """

    def __cinit__(self):
        self.fd = -1
        self.direct = -2

    def __init__(self, int fd):
        cdef stat_of found
        cdef int failed
        if self.fd != -1:
            raise ValueError("already open")
        self.fd = fd
        with nogil:
            failed = fstat(fd, &found)
        if failed:
            PyErr_SetFromErrno(OSError)
        self.mode = found.st_mode
        self.size = found.st_size
        self.mtime_ns = nanoseconds(found.st_mtim)
        self.ctime_ns = nanoseconds(found.st_ctim)
        self.ino = found.st_ino
        self.dev = found.st_dev
        self.links = found.st_nlink

    def fileno(self):
        """The descriptor, as for a file object; ValueError once closed."""
        if self.fd < 0:
            raise ValueError("the file is closed")
        return self.fd

    def unchanged(self):
        """Whether the file still has the size and the mtime that it had when it was opened: one fstat.

        A file that was replaced or deleted is unchanged here: what is open stays what it was.
        """
        return self.same_version()

    cdef bint same_version(self) noexcept:
        cdef stat_of found
        if fstat(self.fd, &found):
            return False
        return found.st_size == self.size and nanoseconds(found.st_mtim) == self.mtime_ns

    cpdef Mapping mapping(self):
        """The whole file mapped, once for all users. OSError if the kernel won't."""
        cdef void *address = NULL
        cdef Mapping made
        cdef size_t length = self.size
        cdef int fd = self.fileno()
        if self.mapped is not None:
            return self.mapped
        if length:
            with nogil:
                address = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0)
            if address == MAP_FAILED:
                PyErr_SetFromErrno(OSError)
        made = Mapping.__new__(Mapping)
        made.address = <char *>address
        made.length = length
        if self.mapped is None:        # else another thread was quicker
            self.mapped = made
        return self.mapped

    cpdef int direct_fd(self) except -2:
        """A second descriptor of the same file, with O_DIRECT; -1 where that can't be had (tmpfs, no
        descriptors left): read through `fd` instead. Closed with this object."""
        cdef char path[32]
        cdef int opened, reason = 0, fd = self.fileno()
        if self.direct != -2:
            return self.direct
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd)
        with nogil:
            opened = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC)
        if self.direct >= 0:           # another thread was quicker
            if opened >= 0:
                close(opened)
        elif opened >= 0:
            self.direct = opened
        elif errno != EMFILE and errno != ENFILE:   # those: another time perhaps
            self.direct = -1
        return self.direct if self.direct >= 0 else -1

    def close(self):
        """Close now. Only for who knows that nobody else uses it; harmless when repeated."""
        self.mapped = None
        release(self)

    def __dealloc__(self):
        release(self)

    def __repr__(self):
        return f"<OpenFile {self.fd}, {self.size} bytes>"


cdef void release(OpenFile file) noexcept:
    cdef int fd = file.fd, direct = file.direct
    file.direct = file.fd = -1
    with nogil:      # the last descriptor of a big file that was deleted: its blocks are freed now
        if direct >= 0:
            close(direct)
        if fd >= 0:
            close(fd)
