"""The access log: one line for each request, in a format that other people's tools read.

Law: runs on the request's bill, so there is one tight loop a format, and one check for a whole batch; the
careful path is taken only by a batch that needs it. Nothing here waits.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Protocol

from acme_wsgi.errors import ConfigError, Problem
from acme_wsgi.log import escape
from acme_wsgi.log.sink import CLOSE_TIMEOUT, Sink, open_sink

Entry = tuple[
    float, int, str, str, str, str, int, int, str | None, str | None, str | None, str, dict[str, Any] | None
]
"""end (epoch s), duration (ns), remote address, method, target, protocol, status, body bytes sent, Referer,
User-Agent, Host, request id, environ (only with ``needs_environ``)."""

MAX_FIELD = 8192
"""Characters of one field that are logged."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_RAW = bytes([*range(0x20, 0x7F), 0x0A])  # bytes that stand raw in a line, and the line's end
_USUAL_LINE = 1024  # a batch whose lines are longer on average goes the careful way, which cuts them

_logger = logging.getLogger("acme.log")


class AccessSettings(Protocol):
    """``logging.access`` of the configuration."""

    @property
    def format(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def headers(self) -> Sequence[str]: ...
    @property
    def sample(self) -> float: ...


class Settings(Protocol):
    """What the access log needs of the ``logging`` section."""

    @property
    def access(self) -> AccessSettings: ...
    @property
    def mask_headers(self) -> Sequence[str]: ...
    @property
    def fields(self) -> Sequence[tuple[str, str]]: ...


class AccessLog:
    """Collects entries and writes them in batches; with ``logging.access.sample``, a share of them.

    :ivar entries: append an :data:`Entry` for each finished request; the list is the same one for ever
    :ivar needs_environ: whether entries must carry the request's environ

    :param settings: the ``logging`` section
    :raises ConfigError: the output can't be opened
    """

    def __init__(self, settings: Settings) -> None:
        access = settings.access
        mask = escape.HeaderMask(settings.mask_headers)
        self.entries: list[Entry] = []
        self.needs_environ = False
        self._sink = open_output(access.output, "logging.access.output")
        self._keep = sampler(access.sample) if access.sample < 1 else None
        self._format: CommonFormat | JsonFormat
        if access.format == "json":
            self._format = JsonFormat(access.headers, mask, fields=settings.fields, sample=access.sample)
            self.needs_environ = bool(access.headers)
        else:
            self._format = CommonFormat(access.format == "combined", mask)

    def flush(self) -> None:
        """Hand all entries to the writer. Call it every few hundred entries and at least twice a second."""
        entries = self.entries
        if entries:
            batch = entries[:]
            entries.clear()
            try:
                keep = self._keep
                if keep is not None:
                    batch = [entry for entry in batch if keep(entry)]
                if batch:
                    self._sink.put(self._format(batch), len(batch))
            except Exception:  # the caller is the event loop, which must not end for a line
                _logger.exception("access log: %d lines could not be formatted", len(batch))
        losses = self._sink.losses()
        if losses is not None:
            _logger.warning("access log: %s", losses)

    def reopen(self) -> None:
        """Open a file output anew (SIGUSR1); on failure the old file stays in use, and a warning says so."""
        reopen(self._sink)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Write what there is, waiting at most ``timeout`` seconds for a slow output."""
        self.flush()
        self._sink.close(timeout)


def sampler(share: float) -> Callable[[Entry], bool]:
    """Whether an entry is among the share of requests that is logged; a failure of the server's always is.

    The request's id decides, so that servers which hand it on (to a trusting one) log the same requests.

    :param share: from 0 to 1
    """
    limit = round(share * (1 << 32))

    def keep(entry: Entry) -> bool:
        if entry[6] >= 500:
            return True
        # Checksums of neighbouring ids are related; the multiplication spreads them (Fibonacci hashing).
        checksum = zlib.crc32(str(entry[11]).encode("utf-8", "replace"))
        return (checksum * 0x9E3779B1 & 0xFFFFFFFF) < limit

    return keep


def open_output(output: str, key: str) -> Sink:
    """The sink of an output named by a configuration key.

    :raises ConfigError: it can't be opened
    """
    try:
        return open_sink(output)
    except OSError as error:
        message = f"can't open {output}: {error.strerror or error}"
        raise ConfigError([Problem(None, None, None, key, message)]) from error


def reopen(sink: Sink) -> None:
    """Reopen a sink's file; a failure is a warning, never an error."""
    try:
        sink.reopen()
    except OSError as error:
        cause = error.strerror or error
        _logger.warning("can't reopen %s, still writing to the old file: %s", sink.output, cause)


class CommonFormat:
    """The `common` and `combined` formats, byte for byte as Apache httpd writes them (no bytes sent: "-")."""

    def __init__(self, combined: bool, mask: escape.HeaderMask) -> None:
        self._combined = combined
        self._mask_referer = "referer" in mask
        self._mask_agent = "user-agent" in mask
        self._quotes = 6 if combined else 2
        self._second = -1
        self._stamp = ""

    def __call__(self, batch: list[Entry]) -> bytes:
        """The lines of a batch."""
        first = int(batch[0][0])
        # Entries come in the order of time, so two ends in the same second mean one time stamp for all.
        if first == int(batch[-1][0]) and not (self._mask_referer or self._mask_agent):
            text = self._fast(batch, self._stamp_of(first))
            # Nothing to escape in any line: only printable ASCII, no more quotes than ours, and no backslash.
            if text.isascii() and len(text) <= _USUAL_LINE * len(batch):
                data = text.encode("ascii")
                if (
                    data.count(b'"') == self._quotes * len(batch)
                    and data.count(b"\n") == len(batch)
                    and b"\\" not in data
                    and not data.translate(None, _RAW)
                ):
                    return data
        return "".join([self._careful(entry) for entry in batch]).encode("ascii")

    def _fast(self, batch: list[Entry], stamp: str) -> str:
        if self._combined:
            return "".join(
                [
                    f'{addr or "-"} - - {stamp} "{method} {target} {protocol}" {status} {size or "-"} '
                    f'"{referer or "-"}" "{agent or "-"}"\n'
                    for _, _, addr, method, target, protocol, status, size, referer, agent, _, _, _ in batch
                ]
            )
        return "".join(
            [
                f'{addr or "-"} - - {stamp} "{method} {target} {protocol}" {status} {size or "-"}\n'
                for _, _, addr, method, target, protocol, status, size, _, _, _, _, _ in batch
            ]
        )

    def _careful(self, entry: Entry) -> str:
        end, _, addr, method, target, protocol, status, size, referer, agent, _, _, _ = entry
        addr = escape.apache(addr or "-", MAX_FIELD).replace(" ", "\\x20")
        line = escape.apache(f"{method} {target} {protocol}", MAX_FIELD)
        common = f'{addr} - - {self._stamp_of(int(end))} "{line}" {status} {size or "-"}'
        if not self._combined:
            return common + "\n"
        referer = self._header(referer, self._mask_referer)
        return f'{common} "{referer}" "{self._header(agent, self._mask_agent)}"\n'

    @staticmethod
    def _header(value: str | None, masked: bool) -> str:
        if not value:
            return "-"
        return escape.MASK if masked else escape.apache(value, MAX_FIELD)

    def _stamp_of(self, second: int) -> str:
        """``[10/Oct/2000:13:55:36 -0700]``, made once a second; the months are English in every locale."""
        if second != self._second:
            t = time.localtime(second)
            sign, offset = ("-", -t.tm_gmtoff) if t.tm_gmtoff < 0 else ("+", t.tm_gmtoff)
            self._stamp = (
                f"[{t.tm_mday:02d}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year:04d}:{t.tm_hour:02d}:{t.tm_min:02d}:"
                f"{t.tm_sec:02d} {sign}{offset // 3600:02d}{offset // 60 % 60:02d}]"
            )
            self._second = second
        return self._stamp


class JsonFormat:
    """One JSON object a line; ASCII only, so that nothing in it can be read as anything but JSON.

    Fields: timestamp (RFC 3339, UTC, milliseconds), remote_addr, method, target, protocol, status, bytes,
    duration_ms, referer, user_agent, host, request_id, and headers when ``logging.access.headers`` names any.
    A header that the request didn't have is null, or missing from ``headers``. At the end ``sample``, where
    not every request is logged (the line stands for 1/sample requests), and ``logging.fields``.
    """

    def __init__(
        self,
        headers: Sequence[str],
        mask: escape.HeaderMask,
        *,
        fields: Sequence[tuple[str, str]] = (),
        sample: float = 1.0,
    ) -> None:
        self._mask = mask
        own = "".join(f", {_quoted(name)}: {_quoted(value)}" for name, value in fields)
        # The end of a line: of one that is always written, and of one that was chosen.
        self._end = self._sampled_end = own + "}\n"
        if sample < 1:
            self._end = f', "sample": 1{own}}}\n'
            self._sampled_end = f', "sample": {sample!r}{own}}}\n'
        self._headers = [(name, _environ_key(name)) for name in headers]
        self._masked_host, self._masked_referer, self._masked_agent = (
            name in mask for name in ("host", "referer", "user-agent")
        )
        self._second = -1
        self._stamp = ""

    def __call__(self, batch: list[Entry]) -> bytes:
        """The lines of a batch."""
        return "".join([self._line(entry) for entry in batch]).encode("ascii")

    def _line(self, entry: Entry) -> str:
        end, duration, addr, method, target, protocol, status, size = entry[:8]
        referer, agent, host, request_id, environ = entry[8:]
        second = int(end)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        headers = ""
        if self._headers and environ is not None:
            headers = f', "headers": {self._header_object(environ)}'
        return (
            f'{{"timestamp": "{self._stamp}.{int((end - second) * 1000):03d}Z", '
            f'"remote_addr": {_field(addr)}, "method": {_field(method)}, '
            f'"target": {_field(target)}, "protocol": {_field(protocol)}, '
            f'"status": {status}, "bytes": {size}, "duration_ms": {duration / 1e6:.3f}, '
            f'"referer": {_header_field(referer, self._masked_referer)}, '
            f'"user_agent": {_header_field(agent, self._masked_agent)}, '
            f'"host": {_header_field(host, self._masked_host)}, '
            f'"request_id": {_field(request_id)}{headers}'
            f"{self._end if status >= 500 else self._sampled_end}"
        )

    def _header_object(self, environ: dict[str, Any]) -> str:
        pairs = []
        for name, key in self._headers:
            value = environ.get(key)
            if isinstance(value, str) and value:
                pairs.append(f"{_quoted(name)}: {_field(self._mask.shown(name, value))}")
        return "{" + ", ".join(pairs) + "}"


def _environ_key(header: str) -> str:
    key = header.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _field(value: object) -> str:
    if not isinstance(value, str):  # an application has put something else into the environ
        value = str(value)
    if not value.isascii():
        value = escape.wire(value)
    if len(value) > MAX_FIELD:
        value = value[:MAX_FIELD] + "..."
    return _quoted(value)


def _header_field(value: str | None, masked: bool) -> str:
    if value is None:
        return "null"
    return f'"{escape.MASK}"' if masked else _field(value)
