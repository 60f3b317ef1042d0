"""The response as a value, and its head as bytes."""


cdef class FileBody:
    """A body that is a part of an open file: the writer sends it without copying.

    `file` has a fileno() and is kept alive until the last byte went out; `offset` and `count` are bytes.
    """

    def __init__(self, file, long long offset, long long count):
        self.file = file
        self.offset = offset
        self.count = count


cdef class Response:
    """One response: what comes back from the pipeline.

    status: the status line's code and reason, "200 OK". headers: a list of (name, value) pairs of str.
    body: bytes, a FileBody or an iterator of bytes. close: called exactly once when the response has ended,
    however it ended; None if there is nothing to close.
    """

    def __init__(self, status, headers, body=b"", close=None):
        self.status = status
        self.headers = headers
        self.body = body
        self.close = close
