# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The body of a request on its way to a backend: here as a whole, or still to come from the client.

Law: reads what has come anyway, and leaves the rest to whoever sends it. What is here as a whole can be sent again.
"""

from acme_wsgi.upstream.shape import CHUNKED, NO_BODY

cdef enum:
    PIECE = 65536            # one read of it

cdef bytes LAST_CHUNK = b"0\r\n\r\n"

WHOLE = 65536
"""Bytes up to which a body is awaited before a backend is chosen: as many as the engine awaits by itself."""


cdef class Payload:
    """What follows the head.

    length: bytes, or shape.CHUNKED or shape.NO_BODY. data: all of it; None if it is still to be read. first: what of
    that was read already. reader: wsgi.input, where the rest comes from. expect: the client waits for a 100 (Continue)
    before it sends it. upgrade: the client wants to speak another protocol on this connection. tunnel_idle: seconds
    without a byte after which that ends.
    """

    def __init__(self, int64_t length=-2, bytes data=b"", *, bytes first=b"", reader=None, bint expect=False,
                 bint upgrade=False, double tunnel_idle=0.0):
        self.length = length
        self.data = data
        self.first = first
        self.reader = reader
        self.expect = expect
        self.upgrade = upgrade
        self.tunnel_idle = tunnel_idle

    cdef bytes next_piece(self):
        """The next bytes of a body that is still to be read, framed for the backend; None once all were taken.

        Waits for the client, and raises whatever reading from it does.
        """
        cdef bytes piece = self.first
        if self.taken:
            return None
        self.first = b""
        if not piece:
            piece = self.reader.read1(PIECE)
        if piece:
            return piece if self.length >= 0 else b"%x\r\n%b\r\n" % (len(piece), piece)
        self.taken = True
        return None if self.length >= 0 else LAST_CHUNK

    cdef bint comes_before(self, Stream other) except? True:
        """Wait for the client's next bytes, or for something to happen on `other`: True if the client was first."""
        return self.taken or bool(self.first) or self.reader.ready_before(other)


NOTHING = Payload()
EMPTY = Payload(0)

# A server may insist on a length where a body is to be expected (RFC 9110 section 8.6).
_SAY_NOTHING_COMES = frozenset(("POST", "PUT", "PATCH"))

_CARRY_REQUESTS = frozenset(("h2c", "h2", "h3", "http", "tls", ""))


def payload_of(dict environ not None, str method not None, double tunnel_idle, hidden=frozenset()):
    """The body of a request; a small one is read, which waits for nothing unless the client expects a 100.

    hidden: keys of the environ whose fields the route takes out. Without its Expect a request's body is read as any
    other, which tells the client to send it; without its Upgrade it is a plain request.
    """
    given = environ.get("CONTENT_LENGTH")
    if given is None and "HTTP_TRANSFER_ENCODING" not in environ:
        if "HTTP_UPGRADE" in environ and "HTTP_UPGRADE" not in hidden and wants_upgrade(environ):
            return Payload(upgrade=True, tunnel_idle=tunnel_idle)
        return EMPTY if method in _SAY_NOTHING_COMES else NOTHING
    reader = environ["wsgi.input"]
    length = int(given) if given is not None else CHUNKED
    if "HTTP_EXPECT" in environ and "HTTP_EXPECT" not in hidden and length and environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        return Payload(length, None, reader=reader, expect=True)
    if length > WHOLE:
        return Payload(length, None, reader=reader)
    first = reader.read(WHOLE if length < 0 else length)
    if length < 0 and len(first) == WHOLE:
        return Payload(length, None, first=first, reader=reader)
    return Payload(len(first), first)


cdef bint wants_upgrade(dict environ) except? True:
    """RFC 9110 section 7.8: an Upgrade counts only if Connection names it, and in HTTP/1.1.

    One to HTTP doesn't count: in the tunnel the client could ask for what no route gives it.
    """
    options = environ.get("HTTP_CONNECTION", "").lower()
    named = any(option.strip() == "upgrade" for option in options.split(","))
    if not named or environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        return False
    wanted = environ["HTTP_UPGRADE"].lower().split(",")
    return not any(protocol.partition("/")[0].strip() in _CARRY_REQUESTS for protocol in wanted)
