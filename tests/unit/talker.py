"""A control socket that answers as a test says, in a thread of the test's own process.

with Talker(directory) as talker:
    talker.answers["status"] = {"pid": 1}      # may be changed while it runs
    ...
    assert talker.orders == [("status", {})]
"""

from __future__ import annotations

import select
import threading
import time
from pathlib import Path
from typing import Any, Self

from acme_wsgi.control import Control, Order


class Talker:
    """Answers orders out of `answers`; an answer that is a string is a refusal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: dict[str, Any] = {}
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self._control = Control.open(str(directory), self._obey)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _obey(self, order: Order) -> None:
        self.orders.append((order.verb, order.arguments))
        answer = self.answers.get(order.verb, "nothing to say")
        if isinstance(answer, str):
            order.fail(answer)
        else:
            order.reply(**answer)

    def _run(self) -> None:
        while not self._ending.is_set():
            poll = select.poll()
            for fd, events in self._control.descriptors():
                poll.register(fd, events)
            self._control.handle(poll.poll(10))
            self._control.expire(time.monotonic())

    def stop(self) -> None:
        """End as a server ends: nobody answers any more."""
        if not self._ending.is_set():
            self._ending.set()
            self._thread.join()
            self._control.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
