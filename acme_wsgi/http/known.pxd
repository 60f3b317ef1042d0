"""Field names that were seen before, each with the str that stands for it.

Law: a table that only grows, up to its bound, and looks at a name as it was sent: peers keep to one
spelling, and bytes compare faster than letters. What the str says is its owner's business: an environ's
key, the name itself. All of it is inline; there is no module of this name at run time.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from acme_wsgi.http.fields cimport Field

cdef enum:
    KNOWN_SLOTS = 2048       # a power of two; at most half are used
    MAX_LEARNED = 1024
    MAX_KNOWN_NAME = 64      # longer names are not learned

cdef struct Known:
    uint32_t hash
    uint16_t length
    char name[64]            # as it was sent
    PyObject *text           # NULL: free

cdef struct Names:           # must begin as zeros
    int learned
    Known slots[2048]


cdef inline Known *find_name(Names *names, const Field *field) noexcept:
    """The entry of the field's name, or the free one where it belongs."""
    cdef uint32_t slot = field.hash & (KNOWN_SLOTS - 1)
    cdef Known *entry
    while True:
        entry = &names.slots[slot]
        if entry.text == NULL:
            return entry
        if entry.hash == field.hash and entry.length == field.name_length \
                and memcmp(entry.name, field.name, field.name_length) == 0:
            return entry
        slot = (slot + 1) & (KNOWN_SLOTS - 1)


cdef inline void learn_name(Names *names, Known *entry, const Field *field, object text) noexcept:
    """Keep `text` for the field's name in the free entry that find_name gave, while there is room."""
    if names.learned >= MAX_LEARNED or field.name_length > MAX_KNOWN_NAME:
        return
    memcpy(entry.name, field.name, field.name_length)
    entry.length = field.name_length
    entry.hash = field.hash
    Py_INCREF(text)
    entry.text = <PyObject *>text
    names.learned += 1
