"""One filler for each key: who asks for what somebody else is making already waits for it, and gets the same.

Law: knows keys and functions. In a worker threading is patched: those who wait are greenlets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Work(Generic[V]):
    """What is being made: in the end there is `value`, `error`, or neither, if its filler was stopped."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: tuple[V] | None = None
        self.error: Exception | None = None


class Fillers(Generic[K, V]):
    """The work that is going on, by key; as many entries as there are fillers at work."""

    def __init__(self) -> None:
        self._work: dict[K, _Work[V]] = {}

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
        work: _Work[V] = _Work()
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
