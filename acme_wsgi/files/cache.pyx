# cython: boundscheck=False, wraparound=False, cdivision=True
"""The table of open files: what was found for a path, valid until one of its files changes.

A value stays while nothing happens to the files that it was made from, where the kernel tells of changes; else
for a short interval. Whether the root is still the same directory (a deployment switches a symlink) is looked up
once per interval, when somebody asks. The table is bounded in entries, in bytes and in descriptors: what
wasn't asked for lately makes room (second chance: a hand goes round, and takes what wasn't used since it last
came by).

Threads: `get` and `Entry.changed` run in the loop, `keep` and `verify` in I/O threads. There are no locks: what
must not be interrupted is done without giving up the interpreter's lock, which is why values and watches, whose
ends may run anything, are let go last.

Law: knows paths as keys, and values not at all. It doesn't look into files; guard.py does.
"""

import resource
from collections import deque

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from acme_wsgi.clock cimport monotonic_ns

from acme_wsgi.files.guard import Guard

# What an entry takes beside its value: itself, its key, its watches. Measured roughly, counted in `memory`.
OVERHEAD = 1024

# How many entries that were used the hand passes before it takes the next one all the same.
_PATIENCE = 64

cdef int64_t _FOREVER = 0x7fffffffffffffff


cdef class Entry:
    """A value in the table, and what it is valid by. Its callback is what the watches call."""

    def __cinit__(self, FileTable table, str path, value, int64_t memory, int64_t descriptors):
        self.table = table
        self.path = path
        self.value = value
        self.memory = memory
        self.descriptors = descriptors
        self.until = _FOREVER
        self.watches = ()

    def changed(self):
        let_go(self.table.unlink(self))


cdef class FileTable:
    """Values by path, for files below `root` (a Beneath), told of changes by `changes` (a Changes).

    `entries`, `memory` (bytes) and `descriptors` are its bounds; no `descriptors` means `own_share`. `interval`, in
    seconds: how long a value is valid whose files nobody watches, and how often the root is looked up.
    """

    def __init__(self, root, changes, *, int64_t entries=10_000, int64_t memory=64 << 20, descriptors=None,
                 double interval=1.0):
        self.guard = Guard(root, changes)
        self.entries = {}
        self.ring = deque()
        self.mortal = deque()
        self.interval = <int64_t>(interval * 1e9)
        self.max_entries = entries
        self.max_memory = memory
        self.max_descriptors = own_share() if descriptors is None else descriptors

    cpdef object get(self, str path):
        """The value kept for `path`; None if there is none, or none that is known to be valid now.

        After None: `verify`, and `get` once more, before the files are looked at.
        """
        cdef Entry entry
        cdef int64_t now
        cdef PyObject *found = PyDict_GetItemWithError(self.entries, path)
        if found is NULL:
            self.misses += 1
            return None
        entry = <Entry>found
        now = monotonic_ns()
        if now >= entry.until or (now >= self.verify_at and self.is_due(now)):
            self.misses += 1
            return None
        self.hits += 1
        entry.used = True
        return entry.value

    cdef bint is_due(self, int64_t now) noexcept:
        """Whether who asks now must verify first: the first one after each interval; all, if nobody did it."""
        if self.claimed:
            return True
        self.claimed = True
        self.verify_at = now + self.interval
        return True

    def verify(self):
        """Look up whether the root is still the same directory, if that is due; all is dropped if it isn't.

        Also lets go what has ended by itself. May wait for a disk.
        """
        if not self.claimed and monotonic_ns() < self.verify_at:
            return
        identity = self.guard.identity()
        if identity != self.identity:
            self.clear()
            self.identity = identity
        self.claimed = False
        self.verify_at = monotonic_ns() + self.interval
        for dropped in self.expired():
            let_go(dropped)

    def keep(self, str path not None, value not None, depends, *, int64_t memory, int64_t descriptors):
        """Keep `value` for `path`; whether it is kept now. Replaces what was kept for it. May wait for a disk.

        `depends`: relative path -> what was found there when the value was made (an OpenFile or a stat_result,
        None where there was nothing). They are watched first and looked at again then: if one isn't any more what
        was found, nothing is kept. `memory` in bytes and `descriptors` are what the value holds.
        """
        cdef Entry entry = Entry.__new__(Entry, self, path, value, memory + OVERHEAD, descriptors)
        if entry.memory > self.max_memory or descriptors > self.max_descriptors:
            return False
        self.verify()
        armed = self.guard.arm(depends, entry.changed)
        if armed is None:
            return False
        entry.watches = armed.watches
        if not armed.certain:
            entry.until = monotonic_ns() + self.interval
        others = self.insert(entry) if armed.identity == self.identity else None
        if others is None:
            # The watches refer to the entry: without this, only the collector could free what it holds.
            entry.value = None
            entry.watches = ()
            let_go((None, armed.watches))
            return False
        for other in others:
            let_go(other)
        return not entry.dropped

    def forget(self, str path not None):
        """Drop what is kept for `path`."""
        entry = self.entries.get(path)
        if entry is not None:
            let_go(self.unlink(entry))

    def clear(self):
        """Drop everything."""
        for entry in list(self.entries.values()):
            let_go(self.unlink(entry))

    def __len__(self):
        return len(self.entries)

    cdef list insert(self, Entry entry):
        """Put an entry in, if it is still good; what others held that had to go for it. None if it isn't."""
        cdef Entry old
        if entry.dropped:
            return None
        old = self.entries.get(entry.path)
        dropped = [] if old is None else [self.unlink(old)]
        dropped += self.make_room(entry)
        self.entries[entry.path] = entry
        self.ring.append(entry)
        if entry.until != _FOREVER:
            self.mortal.append(entry)
        self.memory += entry.memory
        self.descriptors += entry.descriptors
        self.tidy()
        return dropped

    cdef object unlink(self, Entry entry):
        """Take an entry out, if it is in; what it held, for let_go."""
        if entry.dropped:
            return None
        entry.dropped = True
        if self.entries.get(entry.path) is entry:
            del self.entries[entry.path]
            self.memory -= entry.memory
            self.descriptors -= entry.descriptors
        held = (entry.value, entry.watches)
        entry.value = None
        entry.watches = ()
        return held

    cdef list make_room(self, Entry new):
        """Take out entries until there is room for one more; what they held."""
        cdef Entry entry
        cdef int patience = _PATIENCE
        cdef list dropped = []
        while self.ring and (len(self.entries) >= self.max_entries or self.memory + new.memory > self.max_memory
                             or self.descriptors + new.descriptors > self.max_descriptors):
            entry = self.ring.popleft()
            if entry.dropped:
                continue
            if entry.used and patience > 0:
                patience -= 1
                entry.used = False
                self.ring.append(entry)
                continue
            self.evicted += 1
            dropped.append(self.unlink(entry))
        return dropped

    cdef list expired(self):
        """Take out what has ended by itself; what it held."""
        cdef Entry entry
        cdef int64_t now = monotonic_ns()
        cdef list dropped = []
        while self.mortal:
            entry = self.mortal[0]
            if not entry.dropped:
                if now < entry.until:
                    break
                dropped.append(self.unlink(entry))
            self.mortal.popleft()
        return dropped

    cdef void tidy(self):
        """Rid the queues of what was dropped, when that is more than half of them."""
        cdef Py_ssize_t bound = 2 * len(self.entries) + 64
        if len(self.ring) > bound:
            self.ring = alive(self.ring)
        if len(self.mortal) > bound:
            self.mortal = alive(self.mortal)


def own_share():
    """How many descriptors all tables of a worker may hold: a quarter of what the process may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit // 4


cdef object alive(entries):
    cdef Entry entry
    cdef list kept = []
    for entry in entries:
        if not entry.dropped:
            kept.append(entry)
    return deque(kept)


cdef int let_go(held) except -1:
    """End the watches of an entry that is out of the table; its value goes with `held`."""
    if held is not None:
        for watch in held[1]:
            watch.cancel()
    return 0
