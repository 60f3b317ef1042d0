"""The crew: the worker processes as a set, and how each of them is followed by the next.

    (missing) -> starting -> serving -> its successor serves -> leaving -> gone

A *place* is a worker's number; processes take it in turn. A *generation* is a configuration with its
listeners: a reload tries the next one with a single process, and only when that is ready do the others
follow, one by one. Whoever is replaced while the server goes on (by a reload, or because it is worn) keeps
serving until its successor does.

Law: forks workers, sends them signals, buries them, and decides nothing but whose turn it is. What went wrong
is the arbiter's to tell and watch.py's to find out. Imports no gevent.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from acme_wsgi import log as logs
from acme_wsgi import worker
from acme_wsgi.child import Child, Place, ended_how, log_with_stacks, start_error
from acme_wsgi.errors import AcmeError
from acme_wsgi.generation import Generation
from acme_wsgi.privileges import Account
from acme_wsgi.scoreboard import Scoreboard
from acme_wsgi.stacks import Stacks
from acme_wsgi.upstream.board import Board

SLOTS_PER_WORKER = 4
"""Slots of the scoreboard for each place: its process, the successor, and some that still leave."""

FEWEST_SLOTS = 64

_NO_SLOT = 0.5  # seconds until it is tried again when every slot is taken by workers that still leave
_STRUGGLES = 3  # failures in a row after which nobody should wait for a place any more
_WORN_AFTER = 10.0  # a worker serves at least this long before its memory is a reason to replace it

log = logging.getLogger("acme.arbiter")


@dataclass(slots=True)
class Crew:
    """All worker processes of the server.

    :ivar board: its slots are given to processes, never to two at a time
    :ivar generation: the configuration that holds
    :ivar backends: what all processes know of backends; slots are the same
    :ivar account: what workers run as, None for "as the arbiter"
    :ivar shed: called in a forked child: closes what is the arbiter's alone
    :ivar pss: memory of the process in a slot, in bytes, None while unknown
    :ivar stranger: told of processes that ended and are no workers
    :ivar make_engine: given to the workers, for tests; None means the real engine
    :ivar leaving: processes that were replaced and finish what they have
    :ivar settled: every place has been served by `generation` since it began
    :ivar failed: what kept the very first workers from starting, None if nothing did
    """

    board: Scoreboard
    backends: Board
    generation: Generation
    account: Account | None
    shed: Callable[[], None]
    pss: Callable[[int], int | None] = lambda _slot: None
    stranger: Callable[[int, int], None] = lambda _pid, _status: None
    make_engine: Callable[..., worker.Engine] | None = None
    places: list[Place] = field(default_factory=list)
    leaving: list[Child] = field(default_factory=list)
    settled: bool = False
    failed: AcmeError | None = None
    _trial: Generation | None = None
    _outcome: Callable[[AcmeError | None], None] = lambda _error: None
    _stopping: bool = False
    _ever_served: bool = False

    def __post_init__(self) -> None:
        self.places = [Place(index) for index in range(self.generation.workers)]

    # -- looking at it ----------

    def __iter__(self) -> Iterator[Child]:
        """Every process that lives, in the order of places, the leaving ones last."""
        for place in self.places:
            yield from (child for child in (place.child, place.successor) if child is not None)
        yield from self.leaving

    @property
    def serving(self) -> bool:
        """Is there a worker that answers requests?"""
        return any(place.child is not None and place.child.ready for place in self.places)

    @property
    def generations(self) -> set[Generation]:
        """Those that a process may live in: what holds, what is tried, and what still leaves."""
        tried = {self._trial} if self._trial is not None else set()
        return {self.generation, *tried, *(child.generation for child in self)}

    @property
    def trying(self) -> bool:
        """Is a new generation being tried?"""
        return self._trial is not None

    @property
    def struggling(self) -> Place | None:
        """A place whose next process can't start, again and again; it is tried on all the same."""
        return next((place for place in self.places if place.failures >= _STRUGGLES), None)

    # -- one round of the arbiter's loop ----------

    def step(self) -> None:
        """Hear what the processes say, bury the dead, start who is missing, and go on replacing."""
        for child in self:
            child.read_report()
        self._reap()
        self._promote()
        if self._stopping:
            self._hurry()
            return
        self._start_missing()
        self._replace_next()
        self._settle()
        self._hurry()

    def next_start(self) -> float:
        """When (monotonic seconds) the next process is due to be started; infinity for "none is"."""
        if self._stopping:
            return float("inf")
        due = [place.start_at for place in self.places if self._misses(place)]
        return min(due, default=float("inf"))

    def _settle(self) -> None:
        if not self.settled and all(
            place.child is not None and place.child.ready and place.child.generation is self.generation
            for place in self.places
        ):
            self.settled = self._ever_served = True

    # -- the next generation ----------

    def attempt(self, generation: Generation, outcome: Callable[[AcmeError | None], None]) -> None:
        """Try a new generation with one process; once that is ready, it holds and the others follow.

        :param outcome: called with None once it holds, or with what was wrong; then nothing has changed
        """
        self._trial, self._outcome = generation, outcome
        for place in self.places:
            if place.successor is not None:  # it would bring what is about to be replaced
                # Not killed: it may have got ready by now, and have taken in clients already.
                self._dismiss(place.successor)
                place.successor = None
        self._start_trial()

    def _start_trial(self) -> None:
        """As soon as the first place has room for it."""
        place = self.places[0]
        if self._trial is None or place.successor is not None:
            return
        place.successor = self._start(place, self._trial)
        if place.successor is None:
            self._end_trial(AcmeError("no process could be started; the log says why"))

    def end_trial(self, error: AcmeError) -> None:
        """Nobody waits any longer for the generation that is tried; the outcome is told with `error`."""
        place = self.places[0]
        if place.successor is not None and place.successor.generation is self._trial:
            self._dismiss(place.successor)
            place.successor = None
        self._end_trial(error)

    def _end_trial(self, error: AcmeError | None) -> None:
        generation, self._trial = self._trial, None
        assert generation is not None
        if error is None:
            self.generation = generation
            self.settled = False
            self._resize()
        self._outcome(error)

    def _resize(self) -> None:
        """As many places as the generation wants."""
        while len(self.places) < self.generation.workers:
            self.places.append(Place(len(self.places)))
        for place in self.places[self.generation.workers :]:
            for child in (place.child, place.successor):
                if child is not None:
                    self._dismiss(child)
            place.child = place.successor = None
        del self.places[self.generation.workers :]
        for place in self.places:
            # What kept a worker from starting may be what the reload has mended.
            place.failures, place.start_at = 0, 0.0

    # -- replacing ----------

    def _promote(self) -> None:
        """Successors that are ready take over."""
        for place in self.places[:]:
            successor = place.successor
            if successor is None or not successor.ready:
                continue
            place.successor, before = None, place.child
            place.child, place.failures = successor, 0
            if before is not None:
                self._dismiss(before)
            if successor.generation is self._trial:
                self._end_trial(None)

    def _replace_next(self) -> None:
        """One at a time: whoever serves an older generation, or is worn."""
        if self._trial is not None:
            self._start_trial()
            return
        now = time.monotonic()
        if any(place.successor is not None for place in self.places):
            return
        for place in self.places:
            child = place.child
            if child is None or not child.ready or now < place.start_at:
                continue
            outdated = child.generation is not self.generation
            worn = "" if outdated else self._worn(child, now)
            if outdated or worn:
                if worn:
                    log.info("%s %s: it is replaced", child.name, worn)
                place.successor = self._start(place, self.generation)
                return

    def _worn(self, child: Child, now: float) -> str:
        """Why it is time for another process in its place, "" if it isn't."""
        if child.quota and child.slot.requests >= child.quota:
            return f"has answered {child.slot.requests} requests"
        limit = self.generation.config.server.max_memory
        if limit is not None and now - child.ready >= _WORN_AFTER:
            used = self.pss(child.slot.index)
            if used is not None and used > limit:
                return f"uses {used >> 20} MB of memory"
        return ""

    def _dismiss(self, child: Child) -> None:
        """Let it finish what it has, and no longer than shutdown_timeout."""
        child.leave_by = time.monotonic() + child.generation.config.server.shutdown_timeout
        child.leave_by += 2 * worker.STOP_MARGIN
        self.leaving.append(child)
        child.tell(signal.SIGTERM)

    def _hurry(self) -> None:
        """Kill who still lives past its time."""
        now = time.monotonic()
        for child in self:
            if child.leave_by and now >= child.leave_by and not child.killed:
                child.kill("it did not stop in time")

    # -- the end ----------

    def stop(self, *, quick: bool) -> None:
        """Tell all to stop: at once, or after their requests, within shutdown_timeout. May be said again."""
        self._stopping = True
        if self._trial is not None:
            self._end_trial(AcmeError("the server stops"))
        patience = 0.0 if quick else self.generation.config.server.shutdown_timeout
        by = time.monotonic() + patience + 2 * worker.STOP_MARGIN
        for child in self:
            child.leave_by = min(child.leave_by, by) if child.leave_by else by
            child.tell(signal.SIGQUIT if quick else signal.SIGTERM)

    def resume(self) -> None:
        """A `stop` is taken back: whoever leaves goes on leaving, and every place is filled anew."""
        self._stopping = self.settled = False
        for place in self.places:
            self.leaving += [child for child in (place.child, place.successor) if child is not None]
            place.child = place.successor = None
            place.start_at = 0.0

    def give_up(self, error: AcmeError) -> None:
        """The server has never been up: who can't start now won't start the next time either."""
        self.failed = error
        self.stop(quick=True)

    def take_down(self) -> None:
        """Whatever happened, leave no process behind."""
        for child in self:
            child.tell(signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            child.bury()
        self.places.clear()
        self.leaving.clear()

    def tell_all(self, number: int) -> None:
        """Send every process a signal."""
        for child in self:
            child.tell(number)

    # -- starting ----------

    def _misses(self, place: Place) -> bool:
        """Has it nobody? Who only tries the next generation may take its time, and may never be ready."""
        successor = place.successor
        return place.child is None and (successor is None or successor.generation is self._trial)

    def _start_missing(self) -> None:
        now = time.monotonic()
        for place in self.places:
            if self._misses(place) and now >= place.start_at:
                place.child = self._start(place, self.generation)

    def _start(self, place: Place, generation: Generation) -> Child | None:
        """A new process for the place; None, and the place postponed, if there can't be one now."""
        slot = self._free_slot()
        if slot is None:
            log.warning("worker %d can't be started yet: too many others still leave", place.index + 1)
            place.start_at = time.monotonic() + _NO_SLOT
            return None
        stacks = None
        try:
            stacks = Stacks(f"acme-stacks-{place.index + 1}")
            return self._fork(place, generation, slot, stacks)
        except OSError as error:  # no process or descriptor to be had: it may pass
            if stacks is not None:
                stacks.close()
            pause = place.postpone()
            number = place.index + 1
            log.error("worker %d cannot be started: %s; trying again in %g s", number, error, pause)
            return None

    def _free_slot(self) -> int | None:
        """The first slot that no living process has."""
        taken = {child.slot.index for child in self}
        free = next((index for index in range(self.board.size) if index not in taken), None)
        if free is not None and free >= self.board.used:
            self.board.used = free + 1
        return free

    def _fork(self, place: Place, generation: Generation, slot: int, stacks: Stacks) -> Child:
        """Start a worker; raises OSError when the kernel refuses."""
        arbiter = os.getpid()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        # Until the child has let go of the arbiter's signal pipe, a signal to it would look like one to us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                task = worker.Assignment(
                    config=generation.config,
                    listeners=generation.listeners,
                    board=self.board,
                    slot=self.board.slot(slot),
                    index=place.index,
                    workers=generation.workers,
                    generation=generation.number,
                    account=self.account,
                    arbiter=arbiter,
                    report=writing,
                    stacks=stacks.file,
                    backends=self.backends,
                    plans=generation.plans,
                    sticky_key=generation.sticky_key,
                    make_engine=self.make_engine,
                )
                self._become_worker(task, generation, reading, before)
        except OSError:
            os.close(reading)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writing)
        os.set_blocking(reading, False)
        child = Child(
            pid, self.board.slot(slot), place.index + 1, generation, stacks, time.monotonic(), reading
        )
        server = generation.config.server
        if server.max_requests:
            child.quota = server.max_requests + secrets.randbelow(server.max_requests_jitter + 1)
        return child

    def _become_worker(
        self, task: worker.Assignment, generation: Generation, reading: int, mask: Any
    ) -> NoReturn:
        """In the child: shed everything of the arbiter's, work, and never return."""
        status = 1
        try:
            self.shed()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reading)
            for child in self:
                child.bury()
            for other in (self.generation, self._trial):
                # A socket that another generation gives up must not live on in us.
                for listener in other.listeners if other is not None else ():
                    if listener not in generation.listeners:
                        listener.close()
            status = worker.run(task)
        except BaseException:  # the process ends here whatever it was; the log must have it
            log.critical("worker %d failed", task.index + 1, exc_info=True)
        finally:
            logs.close()
            os._exit(status)

    # -- the dead ----------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((child for child in self if child.pid == pid), None)
            if child is not None:
                self._bury(child, status)
            else:  # as process 1 of a container we inherit every orphan
                self.stranger(pid, status)

    def _bury(self, child: Child, status: int) -> None:
        child.read_report()
        in_hand = child.slot.snapshot()["in_flight"]
        child.slot.reset_gauges()
        self.backends.release(child.slot.index)
        if child in self.leaving:
            self.leaving.remove(child)
            self._see_off(child, status, in_hand)
        else:
            place = next(place for place in self.places if child in (place.child, place.successor))
            if child is place.child:
                place.child = None
                self._miss(place, child, status, in_hand)
            else:
                place.successor = None
                self._do_without(place, child, status)
        child.bury()

    def _see_off(self, child: Child, status: int, in_hand: int) -> None:
        """It was told to go, and is gone."""
        if not self.failed and (in_hand or status):
            why = f" ({child.killed})" if child.killed else ""
            log.warning("%s %s with %d requests in its hands%s", child.name, ended_how(status), in_hand, why)

    def _miss(self, place: Place, child: Child, status: int, in_hand: int) -> None:
        """Who served, or was the only one to start, is dead."""
        if self._stopping:
            self._see_off(child, status, in_hand)
        elif child.ready or self._ever_served:
            place.mourn(child, status, in_hand)
        else:
            self.give_up(start_error(child, status, child.stacks.read().threads))

    def _do_without(self, place: Place, child: Child, status: int) -> None:
        """A successor died before it was ready: whom it was to replace goes on."""
        if child.generation is self._trial:
            self._end_trial(start_error(child, status, child.stacks.read().threads))
        elif not self._stopping:
            error = start_error(child, status, child.stacks.read().threads)
            pause = place.postpone()
            log_with_stacks(
                logging.ERROR,
                f"{child.name} was to follow and cannot start: {error}; trying again in {pause:g} s",
                getattr(error, "traceback", ""),
            )
