# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Chunked bodies, read in place (RFC 9112 7.1).

Law: bytes in, spans of the same bytes out, whatever the cuts. Chunk extensions are skipped and trailer fields are
checked and dropped, both within bounds; anything else that is not the grammar ends the body as malformed.
"""

from libc.string cimport memset

from acme_wsgi.http.h1 import ParseError

from acme_wsgi.http.grammar cimport CLASS, HEX, TCHAR, hex_value

cdef enum:
    MAX_EXTENSION = 1024      # bytes of extension on one chunk-size line
    MAX_EXCESS = 16384        # extension bytes not paid for by body bytes, over a whole body
    MAX_TRAILER = 8192
    MAX_TRAILER_FIELDS = 100

cdef enum:
    SIZE
    BLANK             # BWS between the size and its extension
    EXTENSION
    SIZE_LF
    DATA = DATA_STATE
    DATA_CR
    DATA_LF
    TRAILER_START
    TRAILER_NAME
    TRAILER_VALUE
    TRAILER_LF
    END_LF
    DONE


cdef void chunked_start(Chunked *body) noexcept nogil:
    memset(body, 0, sizeof(Chunked))


cdef inline int spoil(Chunked *body, const char *message) noexcept nogil:
    body.message = message
    return -1


cdef int read_size(Chunked *body, unsigned char c) noexcept nogil:
    """One byte of chunk-size, or of what ends it."""
    if CLASS[c] & HEX:
        body.digits += 1
        if body.digits > 16 or body.remaining > <uint64_t>0x7FFFFFFFFFFFFFF:
            return spoil(body, b"a chunk size that is too large")
        body.remaining = body.remaining * 16 + hex_value(c)
        return 0
    if body.digits == 0:
        return spoil(body, b"a chunk size that is not a hexadecimal number")
    if c == c'\r':
        body.state = SIZE_LF
    elif c == c';':
        body.state = EXTENSION
    elif c == c' ' or c == c'\t':
        body.state = BLANK
    else:
        return spoil(body, b"a chunk size that is not a hexadecimal number")
    return 0


cdef int read_extension(Chunked *body, unsigned char c) noexcept nogil:
    """Extensions are skipped, within bounds: their sum must not outgrow the body that they decorate."""
    body.extension += 1
    body.excess += 1
    if body.extension > MAX_EXTENSION or body.excess > MAX_EXCESS:
        return spoil(body, b"a chunk extension that is too long")
    if body.state == BLANK:
        if c == c';':
            body.state = EXTENSION
        elif c != c' ' and c != c'\t':
            return spoil(body, b"space after a chunk size")
    elif c == c'\r':
        body.state = SIZE_LF
    elif (c < 0x20 and c != c'\t') or c == 0x7F:
        return spoil(body, b"a control character in a chunk extension")
    return 0


cdef int read_trailer(Chunked *body, unsigned char c) noexcept nogil:
    """Trailer fields are checked and dropped."""
    body.trailer += 1
    if body.trailer > MAX_TRAILER:
        return spoil(body, b"a trailer section that is too large")
    if body.state == TRAILER_START:
        if c == c'\r':
            body.state = END_LF
            return 0
        body.trailer_fields += 1
        if body.trailer_fields > MAX_TRAILER_FIELDS:
            return spoil(body, b"too many trailer fields")
        if not CLASS[c] & TCHAR:
            return spoil(body, b"a trailer line that is not a field")
        body.state = TRAILER_NAME
    elif body.state == TRAILER_NAME:
        if c == c':':
            body.state = TRAILER_VALUE
        elif not CLASS[c] & TCHAR:
            return spoil(body, b"a trailer line that is not a field")
    elif c == c'\r':
        body.state = TRAILER_LF
    elif (c < 0x20 and c != c'\t') or c == 0x7F:
        return spoil(body, b"a control character in a trailer field")
    return 0


cdef int read_line_feed(Chunked *body, unsigned char c) noexcept nogil:
    """The LF that must follow a CR, and where it leads."""
    if c != c'\n':
        return spoil(body, b"a CR without LF in a chunked body")
    if body.state == SIZE_LF:
        body.state = DATA if body.remaining else TRAILER_START
        body.digits = body.extension = 0
    elif body.state == DATA_LF:
        body.state = SIZE
    elif body.state == TRAILER_LF:
        body.state = TRAILER_START
    else:
        body.state = DONE
    return 0


cdef int chunked_next(Chunked *body, const char *data, size_t length, size_t *consumed,
                      const char **piece, size_t *piece_length) noexcept nogil:
    """Advance over `data`: 1 = a piece of body was found, 0 = more bytes needed, 2 = the body ended, -1 = bad.

    consumed[0] is how far it got; call again with the rest after a piece.
    """
    cdef size_t index = 0
    cdef unsigned char c
    cdef int result = 0
    while index < length and body.state != DONE:
        if body.state == DATA:
            piece[0] = data + index
            piece_length[0] = length - index
            if piece_length[0] > body.remaining:
                piece_length[0] = <size_t>body.remaining
            body.remaining -= piece_length[0]
            if body.remaining == 0:
                body.state = DATA_CR
            body.excess = body.excess - piece_length[0] if body.excess > piece_length[0] else 0
            consumed[0] = index + piece_length[0]
            return 1
        c = <unsigned char>data[index]
        index += 1
        if body.state == SIZE:
            result = read_size(body, c)
        elif body.state == BLANK or body.state == EXTENSION:
            result = read_extension(body, c)
        elif body.state == DATA_CR:
            if c != c'\r':
                result = spoil(body, b"chunk data longer than its size")
            body.state = DATA_LF
        elif TRAILER_START <= body.state <= TRAILER_VALUE:
            result = read_trailer(body, c)
        else:
            result = read_line_feed(body, c)
        if result < 0:
            consumed[0] = index
            return -1
    consumed[0] = index
    return 2 if body.state == DONE else 0


cdef class ChunkedDecoder:
    """A chunked body as Python sees it. `done` after the last chunk and its trailer section."""

    cdef Chunked body
    cdef readonly bint done
    cdef readonly unsigned long long consumed_total

    def __cinit__(self):
        chunked_start(&self.body)

    def feed(self, bytes data not None):
        """Decode `data` and return the body bytes in it; bytes after the end are not consumed.

        Raises ParseError (400) for anything that is not a chunked body.
        """
        cdef size_t offset = 0, used = 0, piece_length = 0
        cdef const char *piece = NULL
        cdef int verdict
        pieces = []
        while not self.done:
            verdict = chunked_next(&self.body, <const char *>data + offset, len(data) - offset, &used, &piece,
                                   &piece_length)
            offset += used
            self.consumed_total += used
            if verdict == 1:
                pieces.append(piece[:piece_length])
            elif verdict < 0:
                raise ParseError(400, self.body.message.decode("ascii"))
            elif verdict == 2:
                self.done = True
            else:
                break
        return b"".join(pieces)
