"""The next program: a new arbiter on the same listening sockets, while this one still serves.

    spawned -> it says that it serves -> our workers finish -> it has proven itself, we end
            -> it ends without that: nothing has happened

The new program is whatever the command line that started us means by now: another version of ACME, of Python,
of the application. If it dies within PROOF seconds after it took over, this program takes over again.

Law: makes that process and follows it; what the arbiter does about it is the arbiter's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from acme_wsgi import handover
from acme_wsgi.child import ended_how
from acme_wsgi.sockets import Listener

if TYPE_CHECKING:
    from acme_wsgi.control import Order

PROOF = 10.0
"""Seconds that a program must live after it took over before its predecessor ends."""

_MAX_WORD = 64 * 1024

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class Program:
    """The program that shall follow.

    :ivar pipe: through which it says "ready", or why not; -1 once that is known
    :ivar since: when it took over (monotonic seconds), 0 before
    """

    pid: int
    pipe: int
    order: Order | None
    since: float = 0.0
    _said: bytes = b""
    _began: float = field(default_factory=time.monotonic)
    _given_up: bool = False

    @property
    def ready(self) -> bool:
        """Does it serve?"""
        return self.since > 0

    @property
    def proven(self) -> bool:
        """Has it served for long enough to be left alone?"""
        return self.ready and time.monotonic() - self.since >= PROOF

    def hangs(self, seconds: float) -> bool:
        """Has it been starting for longer than that, and has nobody given it up yet?"""
        return not self.ready and not self._given_up and time.monotonic() - self._began > seconds

    def listen(self) -> None:
        """Take what it says."""
        with contextlib.suppress(BlockingIOError):
            while self.pipe >= 0:
                said = os.read(self.pipe, 4096)
                self._said += said
                if not said or len(self._said) > _MAX_WORD:
                    self.close()
        if not self.ready and self._said == handover.SERVES:
            self.since = time.monotonic()
            log.info(
                "pid %d serves after %.1f s: it goes on as the server", self.pid, self.since - self._began
            )
            if self.order is not None:
                self.order.reply(pid=self.pid)

    def ended(self, status: int) -> None:
        """It is dead; says why if it never served."""
        self.listen()
        self.close()
        if self.ready:
            return
        reason = self._said.decode(errors="replace").strip() or f"it {ended_how(status)}; the log says more"
        log.error("the next program (pid %d) does not serve, this one goes on: %s", self.pid, reason)
        if self.order is not None:
            self.order.fail(reason)

    def abandon(self, why: str) -> None:
        """It shall not follow after all."""
        self._given_up = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        if self.order is not None:
            self.order.fail(why)
            self.order = None

    def close(self) -> None:
        """Nothing more is expected through the pipe."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def spawn(
    listeners: Sequence[Listener], environ: Mapping[str, str], directory: str, order: Order | None
) -> Program:
    """Start the command line that started us again, with our listening sockets.

    :param environ: its environment, to which the description of the sockets is added
    :param directory: where it starts
    :raises OSError: there can be no further process
    """
    for_us, for_it = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(for_us, False)
    descriptors, environ = handover.offer(listeners, for_it, environ)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(descriptors, environ, directory, for_it)
    except OSError:
        os.close(for_us)
        raise
    finally:
        os.close(for_it)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    log.info("starting the next program on the same sockets (pid %d)", pid)
    if order is not None:
        order.progress(f"the next program starts as pid {pid}")
    return Program(pid, for_us, order)


def _become(descriptors: Sequence[int], environ: Mapping[str, str], directory: str, pipe: int) -> NoReturn:
    """In the child: execute the program that follows; what goes wrong goes into the pipe."""
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.chdir(directory)
        handover.let_pass(descriptors)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - the process ends here; our arbiter must hear why
        os.write(pipe, f"can't execute {sys.executable}: {error}".encode()[:_MAX_WORD])
    finally:
        os._exit(127)


def logical_directory(environ: Mapping[str, str]) -> str:
    """The current directory by the name it was entered with.

    That name may be a link which a deployment turns to the next release: then a reload finds that one.
    """
    by_name, here = environ.get("PWD", ""), os.getcwd()  # noqa: PTH109 - as text, like the other
    with contextlib.suppress(OSError):
        if os.path.isabs(by_name) and os.path.samefile(by_name, here):  # noqa: PTH117, PTH121
            return by_name
    return here
