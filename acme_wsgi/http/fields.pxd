# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Header fields, read in place: what the heads of requests and of replies have in common (RFC 9112 5 and 6).

Law: bytes in, spans of the same bytes out, to the letter of the grammar. Knows nothing of first lines,
statuses or what a field means for the message around it. All of it is inline, so that each parser is still
one piece of code; there is no module of this name at run time.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from acme_wsgi.http.grammar cimport CLASS, TCHAR, judge_value, name_hash_step, same_name

cdef enum:
    MAX_FIELDS = 100

cdef struct Field:
    const char *name
    const char *value
    uint32_t value_length
    uint16_t name_length
    uint8_t underscore
    uint8_t ascii            # no byte of the value is above 0x7F
    uint32_t hash            # of the lower-case name

cdef struct Options:         # of all lines of the Connection list
    int close
    int keep_alive
    int upgrade


cdef inline int read_field(const char *line, size_t length, Field *field) noexcept nogil:
    """field-name ":" OWS field-value OWS (RFC 9112 5); 0, or -1 if it isn't one."""
    cdef size_t index = 0
    cdef uint32_t hashed = 2166136261
    cdef unsigned char c
    cdef int judged
    field.underscore = 0
    while index < length:
        c = <unsigned char>line[index]
        if not CLASS[c] & TCHAR:
            break
        if c == c'_':
            field.underscore = 1
        hashed = name_hash_step(hashed, c)
        index += 1
    if index == 0 or index == length or line[index] != c':' or index > 65535:
        return -1
    field.name = line
    field.name_length = <uint16_t>index
    field.hash = hashed
    index += 1
    while index < length and (line[index] == c' ' or line[index] == c'\t'):
        index += 1
    while length > index and (line[length - 1] == c' ' or line[length - 1] == c'\t'):
        length -= 1
    field.value = line + index
    field.value_length = <uint32_t>(length - index)
    judged = judge_value(field.value, field.value_length)
    field.ascii = judged == 1
    return 0 if judged >= 0 else -1


cdef inline bint is_named(const Field *field, uint32_t hashed, const char *lower,
                          size_t length) noexcept nogil:
    """Has the field this name, given in lower case with its hash?"""
    return field.hash == hashed and same_name(field.name, field.name_length, lower, length)


cdef inline int read_length(const Field *field, int64_t *number) noexcept nogil:
    """Content-Length = 1*DIGIT (RFC 9110 8.6), at most 2^63-1; 0, or -1 if it isn't one."""
    cdef uint32_t index
    cdef uint64_t value = 0
    if field.value_length == 0:
        return -1
    for index in range(field.value_length):
        if not c'0' <= field.value[index] <= c'9':
            return -1
        if value > (<uint64_t>0x7FFFFFFFFFFFFFFF - (field.value[index] - c'0')) // 10:
            return -1
        value = value * 10 + (field.value[index] - c'0')
    number[0] = <int64_t>value
    return 0


cdef inline size_t next_element(const Field *field, size_t *position, const char **text) noexcept nogil:
    """The element at `position` of a list (RFC 9110 5.6.1), without blanks around it; its length, maybe 0.

    Moves `position` behind its comma. Of lists without quoted strings only: tokens.
    """
    cdef const char *value = field.value
    cdef size_t start = position[0], end = position[0]
    while end < field.value_length and value[end] != c',':
        end += 1
    position[0] = end + 1
    while start < end and (value[start] == c' ' or value[start] == c'\t'):
        start += 1
    while end > start and (value[end - 1] == c' ' or value[end - 1] == c'\t'):
        end -= 1
    text[0] = value + start
    return end - start


cdef inline void read_connection(const Field *field, Options *options) noexcept nogil:
    """One line of the Connection list (RFC 9110 7.6.1)."""
    cdef const char *text = NULL
    cdef size_t position = 0, length
    while position < field.value_length:
        length = next_element(field, &position, &text)
        if same_name(text, length, b"close", 5):
            options.close = 1
        elif same_name(text, length, b"keep-alive", 10):
            options.keep_alive = 1
        elif same_name(text, length, b"upgrade", 7):
            options.upgrade = 1


cdef inline bint persists(int minor, const Options *options) noexcept nogil:
    """May the connection carry another message (RFC 9112 9.3), as far as version and options tell?"""
    if options.close:
        return False
    return minor >= 1 or options.keep_alive
