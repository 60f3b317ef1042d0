from acme_wsgi.upstream.link cimport Link


cdef class TLSLink(Link):
    cdef object tls              # ssl.SSLObject between two memory BIOs
    cdef object incoming
    cdef object outgoing
    cdef bint ending             # nothing follows the backlog
    cdef bytes held              # decrypted, and not read yet
    cdef bytes backlog           # encrypted, and the kernel had no room for it

    cdef int pull(self) except -2
    cdef int encrypted(self) except -1
