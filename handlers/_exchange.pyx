# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The part of the WSGI adapter that every request runs through: start_response with nothing special about it.

Law: passes what is plainly right, hands everything else to the Python class in `wsgi.py`, decides nothing else.
Compiled because it stands in the path of every request: as Python it cost a tenth of the server's whole work on
one.
"""

from acme_wsgi.http.grammar cimport same_name
from acme_wsgi.http.writer cimport Response

cdef extern from "Python.h":
    int PyUnicode_CheckExact(object text)
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyTuple_CheckExact(object value)
    int PyList_CheckExact(object value)
    int PyBytes_CheckExact(object value)

cdef list NOTHING = []


cdef bint plain_status(object status) noexcept:
    """"200 OK": three digits, a space, something, in one byte a character."""
    cdef const char *text
    cdef int index
    if not PyUnicode_CheckExact(status) or PyUnicode_KIND(status) != 1 or PyUnicode_GET_LENGTH(status) < 5:
        return False
    text = <const char *>PyUnicode_DATA(status)
    for index in range(3):
        if not c'0' <= text[index] <= c'9':
            return False
    return text[0] >= c'2' and text[3] == c' '


cdef bint of_connection(const char *name, Py_ssize_t length) noexcept:
    """Is this a field of the connection, which is the server's (RFC 2616 13.5.1, which PEP 3333 names)?"""
    if length == 2:
        return same_name(name, 2, b"te", 2)
    if length == 7:
        return same_name(name, 7, b"upgrade", 7)
    if length == 8:
        return same_name(name, 8, b"trailers", 8)
    if length == 10:
        return same_name(name, 10, b"connection", 10) or same_name(name, 10, b"keep-alive", 10)
    if length < 16:
        return False
    return same_name(name, length, b"transfer-encoding", 17) or same_name(name, length, b"proxy-connection", 16) \
        or same_name(name, length, b"proxy-authenticate", 18) or same_name(name, length, b"proxy-authorization", 19)


cdef bint plain_headers(object headers) noexcept:
    """A list of tuples of two str, none of them about the connection. Their bytes are the writer's to judge."""
    cdef object pair, name
    if not PyList_CheckExact(headers):
        return False
    for pair in <list>headers:
        if not PyTuple_CheckExact(pair) or len(<tuple>pair) != 2:
            return False
        name = (<tuple>pair)[0]
        if not PyUnicode_CheckExact(name) or not PyUnicode_CheckExact((<tuple>pair)[1]) or PyUnicode_KIND(name) != 1:
            return False
        if of_connection(<const char *>PyUnicode_DATA(name), PyUnicode_GET_LENGTH(name)):
            return False
    return True


cdef class Exchange(Response):
    """One call of an application: its start_response and in the end the response itself.

    `request` becomes None when the response is handed over: from then on the head counts as sent.
    """

    cdef public object request
    cdef public object transmit

    def start_response(self, status, headers, exc_info=None):
        """PEP 3333's start_response; raises AssertionError, TypeError or ValueError into the application."""
        if exc_info is not None or self.status:
            self._start_again(exc_info)
        if plain_status(status) and plain_headers(headers):
            self.status = status
            self.headers = headers
        else:
            self.status, self.headers = self._checked(status, headers)
        return self


def make_handle(application, exchange_type):
    """The handler of an application: calls it, and returns a body of one bytes without a further look."""

    def handle(request):
        cdef Exchange exchange = Exchange.__new__(exchange_type)
        cdef object body
        exchange.status = ""
        exchange.headers = NOTHING
        exchange.body = b""
        exchange.request = request
        result = application(request.environ, exchange.start_response)
        if PyList_CheckExact(result) and len(<list>result) == 1:
            body = (<list>result)[0]
            if PyBytes_CheckExact(body) and exchange.status and not request.started:
                exchange.body = body
                exchange.request = None
                return exchange
        return exchange.finish(result)

    return handle
