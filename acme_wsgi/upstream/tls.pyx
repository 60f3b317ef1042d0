# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Connections to https:// backends: the same bytes, encrypted on their way.

TLS stands between the socket and the parser as two memory BIOs, so that nothing above this file knows of it and nothing
here waits: the three ways in which a Stream touches its socket are answered here in terms of the socket's.

Law: encrypts, decrypts, and checks whom we talk to: certificates are verified against the system's authorities, for the
name in the backend's URL. Decides nothing else.
"""

import ssl

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from acme_wsgi.errors import BackendError

from acme_wsgi.reactor cimport WAIT_READ, WAIT_WRITE
from acme_wsgi.stream cimport Stream

cdef extern from "Python.h":
    int PyBUF_WRITE

cdef enum:
    RAW = 32768              # one read from the socket
    RECORD = 16384           # plain bytes of one TLS record, at most (RFC 8446 5.1)

cdef char raw[RAW]


def client_context():
    """What all connections to backends share: TLS 1.2 or later, verified, HTTP/1.1 named in ALPN.

    SSL_CERT_FILE and SSL_CERT_DIR name other authorities than the system's, as for every program that uses OpenSSL.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


cdef class TLSLink(Link):
    """A Link whose bytes are encrypted. context: an ssl.SSLContext. host: whose certificate we expect, and the SNI."""

    def __init__(self, shelf, context, str host not None):
        Link.__init__(self, shelf)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.backlog = self.held = b""
        self.encrypts = 1

    cdef int pull(self) except -2:
        """Hand what the socket has to OpenSSL: 1 = something came, 0 = the end, -1 = nothing now."""
        cdef ssize_t got = Stream.receive_into(self, raw, RAW)
        if got > 0:
            self.incoming.write(raw[:got])
            return 1
        if got == 0:
            self.incoming.write_eof()
        return <int>got

    cdef ssize_t receive_into(self, char *target, size_t room) except -2:
        cdef ssize_t got
        cdef int pulled
        if self.held:
            got = min(<ssize_t>room, <ssize_t>len(self.held))
            memcpy(target, PyBytes_AS_STRING(self.held), got)
            self.held = self.held[got:]
            self.readable = 1
            return got
        while True:
            try:
                got = self.tls.read(room, PyMemoryView_FromMemory(target, <Py_ssize_t>room, PyBUF_WRITE))
            except ssl.SSLWantReadError:
                pulled = self.pull()
                self.flush()              # answers of the protocol's own
                if pulled < 0:
                    return -1
                continue
            except ssl.SSLZeroReturnError:
                got = 0
            if got == 0:
                self.eof = 1
                return 0
            # What OpenSSL still holds, decrypted or not, makes no further event on the socket.
            self.readable = self.readable or self.tls.pending() > 0 or self.incoming.pending > 0
            return got

    cdef ssize_t try_send(self, const char *data, size_t length, int flags) except -2:
        """Bytes taken; they may still wait here, encrypted, for room. -1 while earlier ones do."""
        cdef size_t part = length if length < RECORD else RECORD
        if not self.flush():
            return -1
        part = self.tls.write(data[:part])
        self.encrypted()
        return <ssize_t>part

    cdef int encrypted(self) except -1:
        """Send what OpenSSL has made."""
        if self.outgoing.pending:
            self.backlog += self.outgoing.read()
        return self.flush()

    cdef int flush(self) except -1:
        cdef ssize_t taken
        if self.outgoing.pending:
            self.backlog += self.outgoing.read()
        while self.backlog:
            taken = Stream.try_send(self, PyBytes_AS_STRING(self.backlog), len(self.backlog), 0)
            if taken < 0:
                return 0
            self.backlog = self.backlog[taken:]
        if self.ending:
            self.ending = 0
            Stream.end_output(self)
        return 1

    cdef int end_output(self) except -1:
        """Say goodbye (RFC 8446 6.1); the socket's own end follows once that has left."""
        cdef bytes piece = None
        try:
            # OpenSSL looks for the other side's goodbye at once, and would take anything else there for an error.
            while piece != b"":
                piece = self.tls.read(RECORD)
                self.held += piece
        except ssl.SSLError:
            pass                          # nothing more is here; an error comes again
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass                          # the other side has not said its own yet
        self.ending = 1
        self.flush()
        return 0

    def deliver(self, int64_t deadline_ns):
        """Send all that the handshake has made. Raises TimeoutError, and another OSError when the other side has gone."""
        while not self.flush():
            self.wait_until(WAIT_WRITE, deadline_ns)

    def await_bytes(self, int64_t deadline_ns):
        """Wait for bytes of the handshake; raises as `deliver` does."""
        while self.pull() < 0:
            self.wait_until(WAIT_READ, deadline_ns)


def handshake(TLSLink link not None, int64_t deadline_ns):
    """Agree on keys and check the certificate, until `deadline_ns` (CLOCK_MONOTONIC). Raises BackendError."""
    cdef bint agreed = False
    try:
        while not agreed:
            try:
                link.tls.do_handshake()
                agreed = True
            except ssl.SSLWantReadError:
                pass
            link.deliver(deadline_ns)
            if not agreed:
                link.await_bytes(deadline_ns)
    except ssl.SSLCertVerificationError as error:
        raise BackendError.unreachable(f"its certificate can't be trusted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise BackendError.unreachable(f"TLS failed: {error.reason or error}") from None
    except TimeoutError:
        raise BackendError.slow("its TLS handshake took too long", connecting=True) from None
    except OSError as error:
        raise BackendError.unreachable(f"it broke off the TLS handshake: {error}") from None
    # What came with its last word makes no further event.
    link.readable = link.readable or link.incoming.pending > 0
