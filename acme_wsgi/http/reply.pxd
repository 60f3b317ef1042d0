# Heads of replies as C structures, for the modules that talk to backends.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from acme_wsgi.http.fields cimport Field

cdef enum Extent:            # where the body of a reply ends (RFC 9112 6.3)
    NO_BODY
    COUNTED                  # after content_length bytes
    CHUNKED
    UNTIL_CLOSE              # with the connection, which can't be used again

cdef struct Reply:
    const char *reason
    uint32_t reason_length
    int minor                # of the version: 0 or 1
    int status               # 100 to 599
    int nfields
    Field fields[100]
    uint8_t drop[100]        # of each field: it is for this connection alone and goes no further
    int64_t content_length   # of the body, or of the one that HEAD and 304 speak of; -1: none
    uint8_t chunked
    uint8_t keep_alive       # by version and Connection; see extent() for what the body's end has to say
    uint8_t upgrade          # an Upgrade field, and Connection names it
    const char *protocol     # of the last Upgrade field; the only one in a 101
    uint32_t protocol_length
    uint32_t consumed
    const char *message      # why it was refused

cdef int read_reply(const char *data, size_t length, size_t max_size, Reply *reply) noexcept nogil
cdef list reply_headers(Reply *reply)
cdef str reply_status(Reply *reply)


cdef inline bint is_bodiless(int status) noexcept nogil:
    """Has a reply of this status no body, whatever was asked? 1xx, 204, 304 (RFC 9112 6.3 rule 1)."""
    return status < 200 or status == 204 or status == 304


cdef inline Extent extent(const Reply *reply, bint head_asked) noexcept nogil:
    """Where the reply's body ends; `head_asked`: the request was a HEAD."""
    if head_asked or is_bodiless(reply.status):
        return NO_BODY
    if reply.chunked:
        return CHUNKED
    return COUNTED if reply.content_length >= 0 else UNTIL_CLOSE
