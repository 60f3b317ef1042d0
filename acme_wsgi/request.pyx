# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One request, as the pipeline and the handlers see it; and what it is answered with when it fails.

connection.pyx makes it, a handler asks it and may send through it before it returns, answer.pyx ends it. Then it
has no connection and no environ any more, whoever still holds it.

Law: this file holds what a request is and refuses what comes too late. It frames nothing and sends nothing itself:
whatever leaves goes through the connection's own methods (answer.pyx).
"""

from cpython.bytes cimport PyBytes_AS_STRING

from acme_wsgi.errors import ClientDisconnected, HTTPError, error_page, reason

from acme_wsgi.http.writer cimport write_interim

HTTP_1_1 = "HTTP/1.1"
HTTP_1_0 = "HTTP/1.0"
NO_BODY = Body.__new__(Body)
NO_BODY.done = True
NO_BODY.length = -1


cdef class Request:
    """One request: what the pipeline sees. `environ` is the whole WSGI environ.

    Called, it is environ["wsgi.early_hints"].
    """

    def __call__(self, headers):
        self.early_hints(headers)

    @property
    def params(self):
        """What the route's pattern captured, as text."""
        if self._params is None:
            self._params = {}
        return self._params

    @params.setter
    def params(self, dict value):
        self._params = value

    @property
    def host(self):
        """The Host in lower case without port, "" if there was none."""
        cdef str host = self.environ.get("HTTP_HOST", "").lower()
        if host.startswith("["):
            return host[:host.find("]") + 1]
        return host.partition(":")[0]

    def start(self, status, headers):
        """Begin the response early; returns `write` (PEP 3333). The head leaves with the first write."""
        if self.started:
            raise AssertionError("the response has begun already")
        if self.connection is None:
            raise ClientDisconnected("the request is over")
        encode = None
        if self.on_start is not None:
            headers, encode = self.on_start(status, list(headers))
        self.connection.plan_head(self, status, headers, -1)
        self.connection.hold_head(self)
        if encode is None:
            return self.write
        write = self.write
        return lambda data: write(encode(data))

    def write(self, bytes data not None):
        """Send a piece of the body now."""
        if self.connection is None:
            raise ValueError("write() after the end of the request")
        if data:
            self.connection.send_piece(self, data)

    def early_hints(self, headers):
        """Send a 103 with `headers` now (RFC 8297); nothing to a client of HTTP/1.0 or after the head."""
        self.interim(103, headers)

    def interim(self, int status, headers):
        """Send an interim response now (RFC 9110 15.2); nothing to a client of HTTP/1.0 or after the head.

        status: 100 to 199 but not 101, which is final; ValueError for another, or for fields that it can't have.
        """
        cdef bytes interim
        headers = list(headers)           # before the shared buffer is touched: iterating it may block
        if self.minor < 1 or self.started or self.connection is None:
            return
        self.connection.service.out.used = 0
        write_interim(self.connection.service.out, status, headers)
        interim = self.connection.service.out.getvalue()
        if status == 100 and self.body is not NO_BODY:
            self.body.expect = False
        self.connection.send_all(PyBytes_AS_STRING(interim), len(interim))

    def limit_body(self, long long size):
        """Another max_body_size, in bytes, for this request. Raises HTTPError 413 if its length is known and over."""
        if self.body is not NO_BODY:
            self.body.limit = size
        if self.body.length > size:
            raise HTTPError(413, "the request body is larger than this route takes")

    def set_timeout(self, double seconds):
        """Another deadline for this request, in seconds from its begin."""
        self.timeout_ns = <int64_t>(seconds * 1e9)

    def close_connection(self):
        """The connection ends with this response."""
        self.close_wanted = True


cdef Response error_response(Request request, object error):
    content_type, page = error_page(error.status, error.code, error.message, request.request_id,
                                    request.environ.get("HTTP_ACCEPT", ""))
    headers = [("Content-Type", content_type), ("Cache-Control", "no-store"), *error.headers]
    return Response(f"{error.status} {reason(error.status)}", headers, page)
