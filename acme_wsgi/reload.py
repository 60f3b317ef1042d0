"""A reload, from the order to the last worker's replacement.

    asked -> read and checked -> addresses bound -> one worker tried -> taken over -> everybody replaced

Until "taken over" anything that goes wrong leaves the server exactly as it was, with the reason in the log
and in the answer. Orders that come while one reload is under way are answered by the next.

Law: decides when a generation follows another and says how it went; processes are crew.py's, sockets are
sockets.py's, and what may change is the schema's.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acme_wsgi import cpus, limits, sockets
from acme_wsgi import log as logs
from acme_wsgi.child import Place, log_with_stacks
from acme_wsgi.config import Config
from acme_wsgi.config.compare import settle
from acme_wsgi.errors import AcmeError, BootError, ConfigError
from acme_wsgi.generation import Generation
from acme_wsgi.watch import BOOT_REPORT

if TYPE_CHECKING:
    from acme_wsgi.arbiter import Arbiter
    from acme_wsgi.control import Order

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class Attempt:
    """One reload under way.

    :ivar orders: who waits for its end
    :ivar changed: dotted keys that it changes; `left`: those that need a restart, and why
    :ivar before: what was listened on; `served`: what the workers served
    """

    orders: list[Order]
    generation: Generation
    changed: tuple[str, ...]
    left: tuple[str, ...]
    before: list[sockets.Listener]
    served: Generation
    began: float = field(default_factory=time.monotonic)
    holds: bool = False


@dataclass(slots=True)
class Reload:
    """All reloads of a server, one after the other.

    :ivar last: how the latest one ended, for `status`: None, or at, ok, error, generation, left
    """

    arbiter: Arbiter
    last: dict[str, Any] | None = None
    _wanted: bool = False
    _orders: list[Order] = field(default_factory=list)
    _attempt: Attempt | None = None

    @property
    def busy(self) -> bool:
        """Is a reload under way, or about to be?"""
        return self._wanted or self._attempt is not None

    def ask(self, order: Order | None) -> None:
        """A reload is wanted, by an order or (None) by SIGHUP."""
        self._wanted = True
        if order is not None:
            order.progress("asked for")
            self._orders = [each for each in self._orders if not each.gone] + [order]

    def cancel(self, reason: str) -> None:
        """No reload will happen any more; one under way stops where it is."""
        attempt, self._attempt = self._attempt, None
        self._wanted = False
        for order in [*self._orders, *(attempt.orders if attempt is not None else ())]:
            order.fail(reason)
        self._orders.clear()
        if attempt is not None and not attempt.holds:
            sockets.undo(attempt.before, attempt.generation.listeners)

    def advance(self) -> None:
        """Once a round: begin the one that is wanted, end the one that is done."""
        if self._attempt is not None:
            if self._wanted and self._hangs(self._attempt):
                self.arbiter.crew.end_trial(
                    AcmeError("it did not get ready, and another reload was asked for")
                )
            else:
                self._finish(self._attempt)
        elif self._wanted and self.arbiter.announced and self.arbiter.program is None:
            self._wanted = False
            orders, self._orders = self._orders, []
            try:
                self._begin(orders)
            except (AcmeError, OSError) as error:
                self._refused(orders, error)

    @staticmethod
    def _hangs(attempt: Attempt) -> bool:
        """Has its one worker been starting for so long that the log says where it stands?"""
        patience = max(BOOT_REPORT, attempt.generation.config.server.timeout)
        return not attempt.holds and time.monotonic() - attempt.began > patience

    def _begin(self, orders: list[Order]) -> None:
        """Read the configuration and try it with one worker; raises what keeps that from happening."""
        arbiter = self.arbiter
        if arbiter.reread is None:
            raise AcmeError("this server has no configuration to read again")
        arbiter.manager.reloading()
        os.chdir(arbiter.home)  # by its name: a link may point elsewhere by now
        for order in orders:
            order.progress("reading the configuration")
        changes = settle(arbiter.config, arbiter.reread())
        config, too_many = self._bounded(changes.config)
        served = arbiter.crew.generation
        prepared = arbiter.backends.prepare(config, served.plans)
        server = config.server
        before = arbiter.listeners
        listeners, _ = sockets.rebind(
            before, server.host, server.port, backlog=server.backlog, fastopen=server.tcp_fastopen
        )
        workers = server.workers or cpus.available()
        generation = Generation(served.number + 1, config, tuple(listeners), workers, *prepared)
        left = tuple(f"{dotted}: needs a restart" for dotted in changes.left) + too_many
        self._attempt = Attempt(orders, generation, changes.changed, left, before, served)
        for order in orders:
            order.progress("starting one worker with it")
        arbiter.crew.attempt(generation, self._tried)

    def _bounded(self, config: Config) -> tuple[Config, tuple[str, ...]]:
        """With no more workers than the scoreboard has room for, and what is to be said of that."""
        arbiter = self.arbiter
        most = arbiter.crew.board.size // 2
        if (config.server.workers or cpus.available()) <= most:
            return config, ()
        now = len(arbiter.crew.places)
        server = dataclasses.replace(config.server, workers=now)
        return dataclasses.replace(config, server=server), (
            f"server.workers: more than {most} needs a restart",
        )

    def _tried(self, error: AcmeError | None) -> None:
        """The first worker is ready, or will never be."""
        attempt = self._attempt
        if attempt is None:
            return  # cancelled
        if error is not None:
            self._attempt = None
            sockets.undo(attempt.before, attempt.generation.listeners)
            self._refused(attempt.orders, error)
            return
        attempt.holds = True
        arbiter = self.arbiter
        arbiter.config = attempt.generation.config
        arbiter.listeners = list(attempt.generation.listeners)
        for listener in attempt.before:
            if listener not in arbiter.listeners:
                # The workers that still have it take in who waits there before they let go.
                listener.unlink()
                listener.close()
        arbiter.backends.holds(attempt.served, attempt.generation)
        try:
            logs.setup(arbiter.config.logging, process="arbiter")
        except ConfigError as problem:
            log.warning("the arbiter goes on logging as before: %s", problem)
        arbiter.warn(attempt.generation.workers, limits.raise_descriptor_limit())
        workers = attempt.generation.workers
        others = f"; replacing the others of {workers} workers" if workers > 1 else ""
        for order in attempt.orders:
            order.progress(f"it serves{others}")

    def _finish(self, attempt: Attempt) -> None:
        """Once everybody serves the new generation."""
        arbiter = self.arbiter
        if not attempt.holds:
            return
        if not arbiter.crew.settled:
            place = arbiter.crew.struggling
            if place is not None:
                self._leave_unfinished(attempt, place)
            return
        self._attempt = None
        number, workers = attempt.generation.number, attempt.generation.workers
        took = time.monotonic() - attempt.began
        changed = ", ".join(attempt.changed) or "nothing in the configuration"
        log.info(
            "reloaded: generation %d, %d %s on %s after %.1f s; changed: %s",
            number, workers, "worker" if workers == 1 else "workers", arbiter.where(), took, changed,
        )  # fmt: skip
        for sentence in attempt.left:
            log.warning("left by the reload: %s", sentence)
        self._remember(None, attempt.left)
        for order in attempt.orders:
            order.reply(
                generation=number,
                changed=list(attempt.changed),
                left=list(attempt.left),
                workers=attempt.generation.workers,
            )
        arbiter.manager.ready(f"serving on {arbiter.where()}")

    def _leave_unfinished(self, attempt: Attempt, place: Place) -> None:
        """It holds, but somebody can't follow: what mends that is the next reload, which must not wait."""
        self._attempt = None
        arbiter = self.arbiter
        number = attempt.generation.number
        reason = (
            f"generation {number} holds, but worker {place.index + 1} can't start with it; the log says why."
            " It is tried again and again: mend it, or reload with what worked"
        )
        log.error("reload unfinished: %s", reason)
        self._remember(reason, attempt.left)
        for order in attempt.orders:
            order.fail(reason, generation=number, changed=list(attempt.changed), left=list(attempt.left))
        arbiter.manager.ready(f"serving on {arbiter.where()}; the last reload is unfinished")

    def _refused(self, orders: list[Order], error: AcmeError | OSError) -> None:
        """The old configuration stays: say why, to everybody who asked."""
        problems = [str(problem) for problem in error.problems] if isinstance(error, ConfigError) else []
        reason = f"{len(problems)} problems in the configuration" if len(problems) > 1 else str(error)
        trace = error.traceback if isinstance(error, BootError) else ""
        log_with_stacks(logging.ERROR, f"reload refused, nothing was changed: {reason}", trace)
        if len(problems) > 1:
            for problem in problems:
                log.error("%s", problem)
        self._remember(reason, ())
        for order in orders:
            order.fail(reason, problems=problems, traceback=trace)
        self.arbiter.manager.ready(f"serving on {self.arbiter.where()}; the last reload was refused")

    def _remember(self, error: str | None, left: tuple[str, ...]) -> None:
        self.last = {
            "at": time.time(),
            "ok": error is None,
            "error": error,
            "generation": self.arbiter.crew.generation.number,
            "left": list(left),
        }
