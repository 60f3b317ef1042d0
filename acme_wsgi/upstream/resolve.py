"""Where a backend's name leads: its addresses, looked up again and again, and never waited for twice.

    first call        waits for the look-up, with all that call meanwhile
    later calls       get what is known at once; past its age a greenlet looks it up again behind their backs
    refresh           the same look-up, for who has connections and makes no new ones
    a look-up fails   what was known goes on to be used

New connections are made to the addresses of the latest answer. An address that is missing from it isn't gone
at once: a name server may tell some of many addresses at a time, others with each answer. It is gone when all
answers of REFRESH seconds have been without it.

The look-up is getaddrinfo(3), with the system's settings (/etc/hosts, resolv.conf, nsswitch.conf). It
blocks, for half a minute where a name server is dead, so it runs in a thread; and in threads that are for
names only: a worker has as few as one I/O thread, and a dead name server must not keep files from being
read. The function called is the C module's own: gevent's replacement of `socket.getaddrinfo` would want the
loop that those threads don't have.

Law: knows names and addresses, not who connects to them. In the worker, called from greenlets.
"""

from __future__ import annotations

import _socket
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from acme_wsgi import iothreads

SockAddr = tuple[Any, ...]
"""An address as connect(2) takes it: (host, port), or (host, port, flow, scope) for IPv6."""

Address = tuple[int, SockAddr]
"""The family (socket.AF_INET, AF_INET6) and the address."""

REFRESH = 30.0
"""Seconds for which an answer is good: getaddrinfo doesn't tell how long its records may be kept."""

RECHECK = 1.0
"""Seconds between look-ups when a connect failed, or when nothing is known."""

RETRY = 5.0
"""Seconds after which a look-up that failed is repeated while older addresses are in use."""

AVOID = 10.0
"""Seconds for which an address that refused a connection is tried after all others."""

MAX_ADDRESSES = 32
"""Of one name; more are left out."""

THREADS = 4
"""At most so many look-ups of a worker run at once; threads are started when they are first needed."""

log = logging.getLogger("acme.upstream")


class Resolver:
    """The addresses of one host and port."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        look_up: Callable[[str, int], list[Address]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look nothing up yet.

        :param host: a name in ASCII or a literal address without brackets (:attr:`Target.host`)
        :param port: 1 to 65535
        :param look_up: for tests: called in a greenlet, may wait, raises OSError
        """
        self.host = host
        self.port = port
        self._look_up = look_up or look_up_in_thread
        self._clock = clock
        self._known: list[Address] = literal(host, port)
        self._is_literal = bool(self._known)
        self._missing: dict[Address, float] = {}  # address -> when an answer first was without it
        self.current = frozenset(self._known)
        """Where connections may lead: what the name leads to, and what it has led to until just now."""
        self._turn = 0
        self._avoided: dict[Address, float] = {}  # address -> until when
        self._asked = float("-inf")  # when the last look-up ended
        self._due = float("-inf")  # when the next one may begin
        self._error: OSError | None = None  # of the last look-up
        self._pending: Event | None = None  # set when the look-up under way ends

    def addresses(self, timeout: float) -> list[Address]:
        """Where to connect, in the order in which to try: at least one.

        Calls take turns over the addresses of the family that the system prefers (RFC 6724); those of the
        other family follow, and last come those that :meth:`failed` named lately.

        :param timeout: seconds to wait for the first look-up; later calls don't wait
        :raises OSError: nothing is known: socket.gaierror, or TimeoutError past `timeout`
        """
        self._look_again()
        if not self._known:
            self._await_first(timeout)
        return self._ordered()

    def refresh(self) -> None:
        """Look again what is known, if it is time; waits for nothing. The outcome is in :attr:`current`.

        A name that led nowhere so far is left to who wants to connect.
        """
        if self._known:
            self._look_again()

    def failed(self, address: Address | None = None) -> None:
        """A connect failed: the name may lead elsewhere by now.

        :param address: the one that failed, to be tried last for a while
        """
        if address is not None and len(self._known) > 1 and address in self._known:
            self._avoided[address] = self._clock() + AVOID
        self._due = min(self._due, self._asked + RECHECK)

    # -- order -----------------------------------------------------------------------------------------------

    def _ordered(self) -> list[Address]:
        known = self._known
        if len(known) == 1:
            return [known[0]]
        self._turn += 1
        preferred = [address for address in known if address[0] == known[0][0]]
        others = [address for address in known if address[0] != known[0][0]]
        found = _turned(preferred, self._turn) + _turned(others, self._turn)
        return self._dead_last(found) if self._avoided else found

    def _dead_last(self, found: list[Address]) -> list[Address]:
        now = self._clock()
        self._avoided = {address: until for address, until in self._avoided.items() if until > now}
        return sorted(found, key=self._avoided.__contains__)

    # -- look-up ---------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Begin a look-up, if it is time for one and none is under way."""
        if not self._is_literal and self._pending is None and self._clock() >= self._due:
            self._pending = Event()
            gevent.spawn(self._look_up_now, self._pending)

    def _await_first(self, timeout: float) -> None:
        pending = self._pending
        if pending is not None and not pending.wait(max(timeout, 0.0)):
            raise TimeoutError(errno.ETIMEDOUT, f"the look-up of {self.host} took longer than {timeout:g} s")
        if not self._known:
            # A new exception for each greenlet: they'd share a traceback otherwise.
            error = self._error or socket.gaierror(socket.EAI_AGAIN, "the look-up was broken off")
            raise type(error)(*error.args)

    def _look_up_now(self, pending: Event) -> None:
        try:
            found = self._look_up(self.host, self.port)
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "no addresses")
        except OSError as error:
            self._note_failure(error)
        else:
            self._note(found)
        finally:
            self._pending = None
            pending.set()

    def _note(self, found: list[Address]) -> None:
        self._asked = self._clock()
        self._due = self._asked + REFRESH
        if self._error is not None:
            log.info("backend host %s is known again", self.host)
        self._error = None
        before, self._known = self._known, list(dict.fromkeys(found))[:MAX_ADDRESSES]
        self._note_missing(before, frozenset(found))
        self._avoided = {address: until for address, until in self._avoided.items() if address in self._known}

    def _note_missing(self, before: list[Address], named: frozenset[Address]) -> None:
        """Who was there `before`, or is missing for not too long, may be named again by the next answer.

        `named` is the whole answer: who is one too many of it is no new address, but isn't missing either.
        """
        now = self._asked
        since = {
            **dict.fromkeys(before, now),
            **self._missing,
            **dict.fromkeys(named & self._missing.keys(), now),
        }
        self._missing = {
            address: then
            for address, then in since.items()
            if address not in self._known and now - then < REFRESH
        }
        self.current = frozenset((*self._known, *self._missing))

    def _note_failure(self, error: OSError) -> None:
        self._asked = self._clock()
        self._due = self._asked + (RETRY if self._known else RECHECK)
        if self._error is None:
            what = error.strerror or str(error)
            if self._known:
                log.warning("backend host %s: %s; its last addresses stay in use", self.host, what)
            else:
                log.warning("backend host %s: %s", self.host, what)
        self._error = error


def _turned(addresses: list[Address], turn: int) -> list[Address]:
    if len(addresses) < 2:
        return addresses
    first = turn % len(addresses)
    return addresses[first:] + addresses[:first]


def literal(host: str, port: int) -> list[Address]:
    """The address that `host` spells; empty if it is a name. Nothing is looked up."""
    try:
        return _getaddrinfo(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return []


# -- threads -----------------------------------------------------------------------------------------------

_threads: ThreadPool | None = None


def look_up_in_thread(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the system's order; waits in the greenlet.

    :raises OSError: there are none (socket.gaierror), or they can't be found out
    """
    global _threads
    if _threads is None:
        _threads = ThreadPool(THREADS)
    return iothreads.apply(_threads, _getaddrinfo, host, port, 0)


def _getaddrinfo(host: str, port: int, flags: int) -> list[Address]:
    # As bytes: Python would have another try at encoding a name, and raise what isn't an OSError.
    answers: Iterable[Any] = _socket.getaddrinfo(
        host.encode("ascii"), port, socket.AF_UNSPEC, socket.SOCK_STREAM, socket.IPPROTO_TCP, flags
    )
    return [(int(family), address) for family, _, _, _, address in answers]
