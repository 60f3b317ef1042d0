# The response as the pipeline returns it, for the Cython modules that send it.

cdef class FileBody:
    cdef public object file
    cdef public long long offset
    cdef public long long count


cdef class Response:
    cdef public object status
    cdef public object headers
    cdef public object body
    cdef public object close
