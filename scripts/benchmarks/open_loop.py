"""An open loop: requests at a fixed rate, whatever the answers do, over as many connections as that takes.

Times run from the moment a request was due, not from when it could be sent, so that a server (or this
program) that falls behind is seen to. Memory is bounded, by the connections allowed and by the requests of
one offer.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field

from .answers import TIMEOUT, WRONG, Answer, NotAnAnswer, ended_how, read_answer

GOOD, SHED = "good", "shed"
UNSENT = "unsent"  # every connection allowed was waiting for an answer
_BURST = 64  # requests sent in a row before answers are looked at again


@dataclass(eq=False, slots=True)
class _Call:
    """A connection and the request that is on it: `due` is 0 while it is idle."""

    sock: socket.socket
    due: float = 0.0
    sent: bool = False
    connecting: bool = True
    came: bytes = b""


@dataclass
class Offer:
    """What became of the requests that were due in the window of an offer; times in seconds from when due.

    `good_in_time` are the good answers that came during the window, whenever their requests were due: the
    goodput is theirs.
    """

    rate: float
    seconds: float  # the window's length
    due: int = 0
    good_in_time: int = 0
    good: array[float] = field(default_factory=lambda: array("d"))
    shed: array[float] = field(default_factory=lambda: array("d"))
    late: array[float] = field(default_factory=lambda: array("d"))  # how late each request was sent
    failures: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)  # of the first wrong answers

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.good_in_time / self.seconds

    @property
    def shed_share(self) -> float:
        """Of the requests due, how many were turned away in order."""
        return len(self.shed) / self.due if self.due else 0.0

    @property
    def under_way(self) -> int:
        """Requests that have no end yet."""
        return self.due - len(self.good) - len(self.shed) - self.failures.total()


def percentile(values: array[float], share: float) -> float | None:
    """The value below which this share of them lies; None without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


class OpenLoop:
    """Offers requests for `/` to one address. A 200 with `body` is good, a 503 with Retry-After is shed.

    :param limit: connections at the same time; what is due beyond them is counted as unsent
    :param patience: seconds from when a request was due before its answer counts as missing
    """

    def __init__(
        self, address: tuple[str, int], body: bytes, *, limit: int = 10_000, patience: float = 10.0
    ) -> None:
        self._address = address
        self._body = body
        self._limit = limit
        self._patience = patience
        self._request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self._epoll = select.epoll()
        self._calls: dict[int, _Call] = {}
        self._idle: dict[_Call, None] = {}  # the last one in is the first one out
        self._deadlines: deque[tuple[float, _Call]] = deque()
        self._offer = Offer(0, 1)
        self._window = (0.0, 0.0)

    def close(self) -> None:
        """Close every connection."""
        for call in self._calls.values():
            call.sock.close()
        self._calls.clear()
        self._epoll.close()

    def offer(self, rate: float, seconds: float, *, settle: float = 0.0) -> Offer:
        """Offer `rate` requests a second for `settle` and then `seconds`; the window is the latter.

        Returns when each request of the window has its end; what is still open from before it is given up.
        """
        began = time.monotonic()
        first, total = round(rate * settle), round(rate * (settle + seconds))
        # By the same arithmetic as each request's own time, so that exactly `total - first` are counted.
        self._window = (began + first / rate, began + total / rate)
        self._offer = Offer(rate, seconds)
        sent = 0
        while sent < total:
            now = time.monotonic()
            for _ in range(_BURST):
                if sent == total or (due := began + sent / rate) > now:
                    break
                self._launch(due)
                sent += 1
            self._round(max(0.0, began + sent / rate - now))
        while self._offer.under_way:
            self._round(0.05)
        for call in [call for call in self._calls.values() if call.due]:
            self._drop(call)
        self._deadlines.clear()
        return self._offer

    def _counts(self, due: float) -> bool:
        return due >= self._window[0]

    def _launch(self, due: float) -> None:
        """Send the request that is due on an idle connection or on a new one."""
        counts = self._counts(due)
        self._offer.due += counts
        if not self._idle and len(self._calls) >= self._limit:
            self._offer.failures[UNSENT] += counts
            return
        if counts:
            self._offer.late.append(time.monotonic() - due)
        try:
            call = self._idle.popitem()[0] if self._idle else self._connect()
            call.due, call.sent, call.came = due, False, b""
        except OSError as error:
            self._offer.failures[ended_how(error, b"")] += counts
            return
        self._deadlines.append((due, call))
        self._send(call)

    def _connect(self) -> _Call:
        sock = socket.socket()
        sock.setblocking(False)
        number = sock.connect_ex(self._address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(number, os.strerror(number))
        call = _Call(sock)
        self._calls[sock.fileno()] = call
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return call

    def _send(self, call: _Call) -> None:
        try:
            call.sock.send(self._request)
        except BlockingIOError:
            return  # it isn't connected yet: epoll will tell
        except OSError as error:
            self._ended(call, error)
            return
        call.sent = True
        if call.connecting:
            call.connecting = False
            self._epoll.modify(call.sock.fileno(), select.EPOLLIN)

    def _round(self, wait: float) -> None:
        """Take what came; give up what is past patience."""
        for descriptor, _ in self._epoll.poll(wait):
            if (call := self._calls.get(descriptor)) is not None:
                self._turn(call)
        past = time.monotonic() - self._patience
        while self._deadlines and self._deadlines[0][0] < past:
            due, call = self._deadlines.popleft()
            if call.due == due:
                self._end(call, TIMEOUT)
                self._drop(call)

    def _turn(self, call: _Call) -> None:
        try:
            if call.due and not call.sent:
                if number := call.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
                self._send(call)
                return
            chunk = call.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(call, error)
            return
        if not chunk:
            self._ended(call, None)
            return
        call.came += chunk
        self._read(call)

    def _read(self, call: _Call) -> None:
        try:
            answer = read_answer(call.came)
            if answer is None:
                return
            how = self._judge(call, answer)
        except NotAnAnswer as trouble:
            if len(self._offer.details) < 5:
                self._offer.details.append(str(trouble))
            self._end(call, WRONG)
            self._drop(call)
            return
        self._end(call, how)
        if answer.last:
            self._drop(call)
        else:
            self._idle[call] = None

    def _judge(self, call: _Call, answer: Answer) -> str:
        if call.due and answer.status == 200 and answer.body == self._body:
            return GOOD
        if call.due and answer.status == 503 and answer.has(b"retry-after"):
            return SHED
        raise NotAnAnswer(f"{answer.status} {answer.body[:80]!r}")

    def _ended(self, call: _Call, error: OSError | None) -> None:
        if call.due:
            self._end(call, ended_how(error, call.came))
        self._drop(call)

    def _end(self, call: _Call, how: str) -> None:
        """The request on this connection has its end."""
        now, due = time.monotonic(), call.due
        call.due = 0.0
        offer = self._offer
        if how == GOOD and self._window[0] <= now < self._window[1]:
            offer.good_in_time += 1
        if not self._counts(due):
            return
        if how == GOOD:
            offer.good.append(now - due)
        elif how == SHED:
            offer.shed.append(now - due)
        else:
            offer.failures[how] += 1

    def _drop(self, call: _Call) -> None:
        call.due = 0.0
        self._calls.pop(call.sock.fileno(), None)
        call.sock.close()
        self._idle.pop(call, None)
