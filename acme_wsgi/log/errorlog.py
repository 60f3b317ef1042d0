"""The error log: the standard library's logging, formatted for people or for machines.

Law: configures the "acme" logger and Python's warnings, leaves the root logger and the applications' own
alone. Formatting happens in the caller's greenlet, writing in the sink's thread; no lock is held meanwhile,
since a greenlet that switched inside one would stop the others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from acme_wsgi.errors import ClientDisconnected, ConfigError
from acme_wsgi.log import escape
from acme_wsgi.log.access import open_output
from acme_wsgi.log.sink import CLOSE_TIMEOUT

MAX_MESSAGE = 8192
"""Characters of one message or extra field that are logged."""

MAX_TRACEBACK = 200
"""Lines of a traceback that are logged: the first quarter and, where the error is, the last three."""

_CAUSES = 8  # how far a chain of causes is followed

# What a LogRecord has without any `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_CORE = ("timestamp", "level", "logger", "process", "pid", "message", "traceback")
_NOT_A_KEY = re.compile(r"[^A-Za-z0-9_.-]")
_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # a logfmt value that needs no quotes


class ErrorSettings(Protocol):
    """``logging.error`` of the configuration."""

    @property
    def output(self) -> str | None: ...


class Settings(Protocol):
    """What the error log needs of the ``logging`` section."""

    @property
    def level(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def error(self) -> ErrorSettings: ...
    @property
    def mask_headers(self) -> Sequence[str]: ...
    @property
    def fields(self) -> Sequence[tuple[str, str]]: ...


def setup(settings: Settings, *, process: str) -> None:
    """Configure the error log of this process; a second call (after a fork, a reload) replaces the first.

    :param settings: the ``logging`` section
    :param process: what the lines call this process ("arbiter", "worker 3")
    :raises ConfigError: the output can't be opened; the log stays as it was
    """
    handler = _Handler(settings, process)
    acme = logging.getLogger("acme")
    acme.setLevel(settings.level.upper())
    for logger in (acme, logging.getLogger("py.warnings")):
        _drop_handlers(logger)
        logger.addHandler(handler)
        logger.propagate = False
    logging.captureWarnings(True)


def close(timeout: float = CLOSE_TIMEOUT) -> None:
    """Write what is queued, waiting at most ``timeout`` seconds, and take the handlers off."""
    logging.captureWarnings(False)
    for name in ("py.warnings", "acme"):
        logger = logging.getLogger(name)
        _drop_handlers(logger, timeout)
        logger.propagate = True


def _drop_handlers(logger: logging.Logger, timeout: float = CLOSE_TIMEOUT) -> None:
    for handler in logger.handlers[:]:
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
            handler.finish(timeout)


class _Handler(logging.Handler):
    """Formats records and puts them in the sink of ``logging.output``, or of ``logging.error.output``."""

    def __init__(self, settings: Settings, process: str) -> None:
        super().__init__()
        self._sink = self._error_sink = open_output(settings.output, "logging.output")
        self._opened = [self._sink]  # one for each use, though two outputs may be the same
        if settings.error.output is not None:
            try:
                self._error_sink = open_output(settings.error.output, "logging.error.output")
            except ConfigError:
                self._sink.close()
                raise
            self._opened.append(self._error_sink)
        self._format = _FORMATS[settings.format]
        self._process = process
        self._mask = escape.HeaderMask(settings.mask_headers)
        self._fields = dict(settings.fields)
        self._finished = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Format and queue a record, without the lock of logging.Handler: the sink has its own."""
        if self._finished or not self.filter(record):
            return False
        if _is_disconnect(record):
            if not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
                return False
            record = logging.makeLogRecord(record.__dict__ | {"levelno": logging.DEBUG, "levelname": "DEBUG"})
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, and a line of its own about lines that were lost before it."""
        try:
            self._put(record)
        except Exception as error:  # noqa: BLE001 - the logging call's mistake, which must not stop its caller
            where = f"{record.pathname}:{record.lineno}"
            self._put(_notice(f"the logging call at {where} failed: {type(error).__name__}: {error}"))
        for sink in self._opened:
            losses = sink.losses()
            if losses is not None:
                self._put(_notice(losses))

    def _put(self, record: logging.LogRecord) -> None:
        sink = self._error_sink if record.levelno >= logging.ERROR else self._sink
        line = _Line(record, self._process, self._mask, self._fields)
        sink.put(self._format(line).encode("utf-8"), 1)

    def finish(self, timeout: float) -> None:
        """Give the sink back; further records are not logged."""
        if not self._finished:
            self._finished = True
            deadline = time.monotonic() + timeout
            for sink in self._opened:
                sink.close(max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """What logging.shutdown() calls at exit."""
        self.finish(CLOSE_TIMEOUT)
        super().close()


def _notice(message: str) -> logging.LogRecord:
    """A warning of the log itself."""
    return logging.makeLogRecord(
        {"name": "acme.log", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
    )


def _is_disconnect(record: logging.LogRecord) -> bool:
    """Whether a record reports that a client went away: nobody's mistake, so nothing above debug."""
    error = record.exc_info[1] if record.exc_info else None
    for _ in range(_CAUSES):
        if error is None:
            return False
        if isinstance(error, ClientDisconnected):
            return True
        error = error.__cause__
    return False


class _Line:
    """A record taken apart, the way all formats need it."""

    def __init__(
        self, record: logging.LogRecord, process: str, mask: escape.HeaderMask, fields: Mapping[str, str]
    ) -> None:
        self.timestamp = _timestamp(record.created)
        self.level = record.levelname.lower()
        self.logger = record.name
        self.process = process
        self.pid = os.getpid()
        self.message = record.getMessage()
        self.traceback = list(_traceback(record))
        self.fields = fields
        self._record = record
        self._mask = mask

    def extras(self) -> Iterator[tuple[str, Any]]:
        """The fields given as ``extra=``: strings, numbers, booleans, None; headers with masked values."""
        for key, value in self._record.__dict__.items():
            if key in _STANDARD:
                continue
            if key == "headers" or key.endswith("_headers"):
                value = self._mask.mapping(value)
            elif not isinstance(value, str | int | float | bool | None):
                value = str(value)
            key = _NOT_A_KEY.sub("_", key)
            yield key + ("_" if key in _CORE or key in self.fields else ""), value


def _timestamp(created: float) -> str:
    second = int(created)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{int((created - second) * 1000):03d}Z"


_formatter = logging.Formatter()


def _traceback(record: logging.LogRecord) -> Iterator[str]:
    text = ""
    if record.exc_info and record.exc_info[0] is not None:
        text = record.exc_text or _formatter.formatException(record.exc_info)
    if record.stack_info:
        text += ("\n" if text else "") + record.stack_info
    # Only \n ends a line here: what str.splitlines() takes for one besides may come from outside.
    lines = text.split("\n") if text else []
    if len(lines) > MAX_TRACEBACK:
        head, tail = MAX_TRACEBACK // 4, MAX_TRACEBACK * 3 // 4
        lines = [*lines[:head], f"... {len(lines) - head - tail} lines ...", *lines[-tail:]]
    for line in lines:
        yield line[:MAX_MESSAGE]


def _as_text(line: _Line) -> str:
    """``2026-01-31T12:00:00.000Z error acme.connection worker 3[4711]: message key=value``.

    A traceback follows, each line behind a bar, so that nothing in it can pass for a line of the log.
    """
    extras = "".join(f" {key}={_logfmt_value(value)}" for key, value in line.extras())
    head = f"{line.timestamp} {line.level} {line.logger} {escape.text(line.process, 64)}[{line.pid}]: "
    trace = "".join(f"    | {escape.text(text, MAX_MESSAGE)}\n" for text in line.traceback)
    return f"{head}{escape.text(line.message, MAX_MESSAGE)}{extras}\n{trace}"


def _as_json(line: _Line) -> str:
    """One object a line, ASCII only; ``logging.fields`` behind the server's own."""
    fields: dict[str, Any] = {
        "timestamp": line.timestamp,
        "level": line.level,
        "logger": line.logger,
        "process": line.process,
        "pid": line.pid,
        "message": _cut(line.message),
        **line.fields,
    }
    fields.update((key, _cut(value)) for key, value in line.extras())
    if line.traceback:
        fields["traceback"] = "\n".join(line.traceback)
    return json.dumps(fields) + "\n"


def _as_logfmt(line: _Line) -> str:
    """``key=value`` pairs on one line, quoted where they must be; the same ones as in JSON."""
    fields: list[tuple[str, Any]] = [
        ("timestamp", line.timestamp),
        ("level", line.level),
        ("logger", line.logger),
        ("process", line.process),
        ("pid", line.pid),
        ("message", line.message),
        *line.fields.items(),
        *line.extras(),
    ]
    if line.traceback:
        fields.append(("traceback", "\n".join(line.traceback)))
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in fields) + "\n"


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_MESSAGE:
        return value[:MAX_MESSAGE] + "..."
    if isinstance(value, dict):
        return {key[:MAX_MESSAGE]: _cut(item) for key, item in value.items()}
    return value


def _logfmt_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        value = json.dumps(_cut(value))
    text = str(value)
    if _BARE.fullmatch(text) and len(text) <= MAX_MESSAGE:
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape.text(quoted, MAX_MESSAGE)}"'


_FORMATS: dict[str, Callable[[_Line], str]] = {"text": _as_text, "json": _as_json, "logfmt": _as_logfmt}
