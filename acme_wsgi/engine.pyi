import socket
from collections.abc import Callable
from typing import Any

from acme_wsgi.config import Config
from acme_wsgi.connection import Request
from acme_wsgi.http.writer import Response
from acme_wsgi.log import AccessLog
from acme_wsgi.scoreboard import Scoreboard, Slot

class Engine:
    def __init__(
        self,
        config: Config,
        dispatch: Callable[[Request], Response],
        access_log: AccessLog | None,
        slot: Slot,
        board: Scoreboard,
        base_environ: dict[str, Any],
    ) -> None: ...
    def listen(self, sock: socket.socket) -> None: ...
    def start(self) -> None: ...
    def stop_accepting(self) -> None: ...
    def drain(self) -> None: ...
    def close_all(self) -> None: ...
    @property
    def open_requests(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def greenlets(self) -> int: ...
