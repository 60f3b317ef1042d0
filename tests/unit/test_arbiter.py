"""The arbiter without processes; its life with workers: integration/test_processes.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from acme_wsgi import arbiter, watch
from acme_wsgi.arbiter import Arbiter
from acme_wsgi.config import load
from acme_wsgi.scoreboard import Scoreboard


def test_a_fork_that_the_kernel_refuses_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    now = 0.0
    for module in (watch, arbiter):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    place = watch.Place(0)
    tree = Arbiter(load(), environ={})
    tree._board, tree._places = Scoreboard(1), [place]
    monkeypatch.setattr(os, "fork", refuse)
    descriptors = set(Path("/proc/self/fd").iterdir())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for pause in (0.1, 0.2, 0.4):
        now = place.start_at
        tree._start_missing()
        assert place.child is None and place.start_at == pytest.approx(now + pause)
    assert set(Path("/proc/self/fd").iterdir()) == descriptors
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
