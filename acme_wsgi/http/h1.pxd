# HTTP/1.1 as C structures, for the modules on the path of a request.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from acme_wsgi.http.fields cimport Field

cdef struct Head:
    const char *method
    const char *target
    const char *path         # inside target
    const char *query        # inside target; NULL without "?"
    const char *host         # the authority that counts: absolute-form's, else Host's
    uint32_t method_length
    uint32_t target_length
    uint32_t path_length
    uint32_t query_length
    uint32_t host_length     # without port
    uint32_t authority_length
    uint8_t plain_path       # nothing to decode or to remove
    uint8_t absolute
    uint8_t asterisk
    int minor
    int nfields
    Field fields[100]
    int64_t content_length   # -1: none
    uint8_t chunked
    uint8_t keep_alive
    uint8_t expect_continue
    uint8_t upgrade
    uint32_t consumed
    int status               # of an error
    const char *message

cdef int read_authority(const char *text, size_t length, bint port_needed, uint32_t *host_length) noexcept nogil
cdef int read_head(const char *data, size_t length, size_t max_size, Head *head) noexcept nogil
cdef Py_ssize_t normalise_path(const char *path, size_t length, char *out) noexcept nogil
