"""Work that is asked for by key: who asks for what is being made already waits for that, and gets the same.

    Fillers    who asks first makes it
    Later      it is made beside those who ask, and goes on when none of them waits any more

Law: knows keys and functions. In a worker threading is patched: those who wait are greenlets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
log = logging.getLogger("acme.handlers.static")


class Work(Generic[V]):
    """What is being made: in the end there is `value`, `error`, or neither, if its filler was stopped.

    :ivar since: when it was first asked for, by the monotonic clock
    """

    __slots__ = ("done", "error", "since", "value")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.done = threading.Event()
        self.value: tuple[V] | None = None
        self.error: Exception | None = None


class Fillers(Generic[K, V]):
    """The work that is going on, by key; as many entries as there are fillers at work."""

    def __init__(self) -> None:
        self._work: dict[K, Work[V]] = {}

    def fill(self, key: K, make: Callable[[], V]) -> V:
        """What `make` returns or raises, called by one at a time for each key."""
        while True:
            work = self._work.get(key)
            if work is None:
                return self._make(key, make)
            work.done.wait()
            if work.value is not None:
                return work.value[0]
            if work.error is not None:
                raise work.error
            # Its filler was stopped (a deadline, a client that went): the next one tries.

    def _make(self, key: K, make: Callable[[], V]) -> V:
        work: Work[V] = Work()
        self._work[key] = work
        try:
            value = make()
            work.value = (value,)
            return value
        except Exception as error:
            work.error = error
            raise
        finally:
            del self._work[key]
            work.done.set()


class Later(Generic[K, V]):
    """Work in a queue: one at a time, in the order in which it was begun.

    :param most: so many may be in the queue
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: dict[K, tuple[Work[V], Callable[[], V]]] = {}
        self._running = False

    def begin(self, key: K, make: Callable[[], V]) -> Work[V] | None:
        """Have `make` called, unless that is so already for `key`; its work, or None: there is no room.

        An error of `make` is logged with its traceback: nobody may be there to hear of it.
        """
        found = self._queue.get(key)
        if found is None:
            if len(self._queue) >= self._most:
                return None
            found = self._queue[key] = Work(), make
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="later", daemon=True).start()
        return found[0]

    def _run(self) -> None:
        try:
            while self._queue:
                key = next(iter(self._queue))
                work, make = self._queue[key]
                try:
                    work.value = (make(),)
                except Exception as error:  # what comes after it in the queue has no part in it
                    work.error = error
                    log.exception("work in the background has failed")
                finally:
                    del self._queue[key]
                    work.done.set()
        finally:
            self._running = False
