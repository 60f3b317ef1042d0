"""A stand-in for the arbiter: a process with a control socket that gives canned answers.

    python standin.py DIRECTORY '{"status": {"pid": 0}, "reload": {"progress": ["..."], "error": "..."}}'

Each verb's answer is the facts of its last word; `progress` is said before it, `error` makes it a refusal,
and `silent` leaves it out. A pid of 0 stands for its own. What it was asked is written to DIRECTORY/orders,
a line of JSON each. After `stop` it ends, unless the answer says `stubborn`.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from acme_wsgi.control import Control, Order


class StandIn:
    """The loop, and what it answers."""

    def __init__(self, directory: str, answers: dict[str, Any]) -> None:
        self.orders = Path(directory) / "orders"
        self.answers = answers
        self.kept: list[Order] = []
        self.stopping = False
        self.control = Control.open(directory, self.obey)

    def obey(self, order: Order) -> None:
        with self.orders.open("a") as file:
            file.write(json.dumps([order.verb, order.arguments]) + "\n")
        facts = dict(self.answers.get(order.verb, {"error": "nothing canned"}))
        if facts.get("pid") == 0:
            facts["pid"] = os.getpid()
        for text in facts.pop("progress", ()):
            order.progress(text)
        self.stopping = order.verb == "stop" and not facts.pop("stubborn", False)
        if facts.pop("silent", False):
            self.kept.append(order)
        elif "error" in facts:
            order.fail(facts.pop("error"), **facts)
        else:
            order.reply(**facts)

    def run(self) -> None:
        while not self.stopping:
            poll = select.poll()
            for fd, events in self.control.descriptors():
                poll.register(fd, events)
            self.control.handle(poll.poll(100))
            self.control.expire(time.monotonic())
        self.control.close()


if __name__ == "__main__":
    StandIn(sys.argv[1], json.loads(sys.argv[2])).run()
