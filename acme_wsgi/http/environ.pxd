from acme_wsgi.http.h1 cimport Head

cdef int put_fields(dict environ, Head *head) except -1
cdef object method_name(Head *head)
cdef object ascii(const char *text, size_t length)
cdef object latin1(const char *text, size_t length)
