# Chunked bodies as a C structure.

from libc.stdint cimport uint32_t, uint64_t

cdef struct Chunked:
    int state
    uint64_t remaining
    uint32_t digits
    uint32_t extension
    uint64_t excess
    uint32_t trailer
    uint32_t trailer_fields
    const char *message

cdef enum:
    DATA_STATE = 4           # Chunked.state inside the data of a chunk

cdef void chunked_start(Chunked *body) noexcept nogil
cdef int chunked_next(Chunked *body, const char *data, size_t length, size_t *consumed,
                      const char **piece, size_t *piece_length) noexcept nogil
