"""Which route answers a request: patterns compiled once, matched in the documented order.

Law: knows paths, hosts and methods; not what the routes do. Paths are PATH_INFO: normalised by the parser,
bytes as latin-1 text; patterns come as text and are turned into that once. docs/routing.md is the promise
kept here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from acme_wsgi.errors import HTTPError
from acme_wsgi.handlers import Handler, Request
from acme_wsgi.http.writer import Response

_PARAMETER = re.compile(r":([A-Za-z_][A-Za-z0-9_]*)")
_MAX_CAPTURES = 64


class Kind(IntEnum):
    """The kinds of patterns, in their order of precedence."""

    EXACT = 0
    PREFIX = 1
    PARAMETER = 2
    REGEX = 3
    FALLBACK = 4


@dataclass(frozen=True, slots=True)
class Pattern:
    """A route's path, compiled.

    :ivar literal: exact: the path; prefix: the path without ``/*``; else "" (latin-1 bytes as text)
    :ivar regex: parameter and regex patterns
    :ivar parameters: the names it captures
    """

    kind: Kind
    source: str
    literal: str = ""
    regex: re.Pattern[str] | None = None
    parameters: frozenset[str] = frozenset()


def compile_pattern(source: str) -> Pattern:
    """Compile one `path` of the configuration; raises ValueError that says what is wrong with it."""
    if source.startswith("~"):
        return _compile_regex(source)
    if not source.startswith("/"):
        raise ValueError(f"{source!r}: a path starts with '/' (or with '~' for a regular expression)")
    if source == "/*":
        return Pattern(Kind.FALLBACK, source)
    path, below = (source[:-2], True) if source.endswith("/*") else (source, False)
    if "*" in path:
        raise ValueError(f"{source!r}: '*' can only be the last part, as in /a/*")
    segments = path.split("/")[1:]
    if any(segment in (".", "..") for segment in segments) or "" in (segments if below else segments[:-1]):
        raise ValueError(f"{source!r} can never match: paths are normalised before they are compared")
    if any(segment.startswith(":") for segment in segments):
        return _compile_parameters(source, segments, below)
    return Pattern(Kind.PREFIX if below else Kind.EXACT, source, _wire(path))


def _compile_parameters(source: str, segments: list[str], below: bool) -> Pattern:
    parts, names = [], []
    for segment in segments:
        if not segment.startswith(":"):
            parts.append(re.escape(_wire(segment)))
            continue
        found = _PARAMETER.fullmatch(segment)
        if found is None or found[1] in names:
            fault = "is not a parameter; it looks like :name" if found is None else "stands there twice"
            raise ValueError(f"{source!r}: {segment!r} {fault}")
        names.append(found[1])
        parts.append(f"(?P<{found[1]}>[^/]+)")
    regex = re.compile("/" + "/".join(parts) + ("(?:/.*)?" if below else ""), re.DOTALL)
    return Pattern(Kind.PARAMETER, source, "", regex, frozenset(names))


def _compile_regex(source: str) -> Pattern:
    text = source[1:].strip()
    # `$` also matches before a last line break, and a path may hold one (%0A): `^/u/(\d+)$` means the end.
    body = text.removesuffix("$")
    if body != text and (len(body) - len(body.rstrip("\\"))) % 2 == 0:
        text = body + r"\Z"
    try:
        # ASCII: \d means 0-9 here, as in every other server's configuration; [ä] and . still mean characters.
        regex = re.compile(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{source!r}: bad regular expression: {error}") from None
    except ValueError as error:  # (?u) against ASCII
        raise ValueError(f"{source!r}: bad regular expression: {error}") from None
    if not text:
        raise ValueError(f"{source!r}: the regular expression is empty")
    if regex.groups > _MAX_CAPTURES:
        raise ValueError(f"{source!r}: more than {_MAX_CAPTURES} groups")
    names = {str(number) for number in range(1, regex.groups + 1)}
    return Pattern(Kind.REGEX, source, "", regex, frozenset(names | set(regex.groupindex)))


def _wire(text: str) -> str:
    """Text as PATH_INFO has it: its UTF-8 bytes, each a character (PEP 3333)."""
    return text if text.isascii() else text.encode("utf-8").decode("latin-1")


def _real(value: str) -> str:
    """A captured part as text; raises HTTPError 400 if its bytes aren't UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise HTTPError(400, "The path is not valid UTF-8.") from None


@dataclass(frozen=True, slots=True)
class Rule:
    """One route as the router takes it.

    :ivar methods: upper case; empty: any. GET includes HEAD.
    :ivar hosts: as compile_host() gives them; empty: any
    """

    pattern: Pattern
    handler: Handler
    methods: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()


class _Choice:
    """The rules of one pattern, and which of them fits a request: exact host, then the longest wildcard, then
    none.

    `always` is the handler when there is nothing to choose: the one rule has neither host nor method.
    """

    __slots__ = ("always", "named", "open", "pattern", "wild")

    def __init__(self, pattern: Pattern, rules: Iterable[Rule]) -> None:
        self.pattern = pattern
        self.named: dict[str, list[Rule]] = {}
        self.wild: dict[str, list[Rule]] = {}
        self.open: list[Rule] = []
        for rule in rules:
            if not rule.hosts:
                self.open.append(rule)
            for name in rule.hosts:
                if name.startswith("*."):
                    self.wild.setdefault(name[2:], []).append(rule)
                else:
                    self.named.setdefault(name, []).append(rule)
        for group in (self.open, *self.named.values(), *self.wild.values()):
            group.sort(key=lambda rule: not rule.methods)  # the routes with methods first; stable otherwise
        unconditional = not self.named and not self.wild and not self.open[0].methods
        self.always = self.open[0].handler if unconditional else None

    def select(self, request: Request) -> Handler | None:
        """The handler for the request's host and method, or None."""
        if self.always is not None:
            return self.always
        method = request.method
        for rule in self._hosted(request.host):
            methods = rule.methods
            if not methods or method in methods or (method == "HEAD" and "GET" in methods):
                return rule.handler
        return None

    def allowed(self, request: Request) -> set[str]:
        """The methods that would have been answered on the request's host."""
        methods: set[str] = set()
        for rule in self._hosted(request.host):
            methods |= rule.methods
        return methods | {"HEAD"} if "GET" in methods else methods

    def _hosted(self, host: str) -> Iterable[Rule]:
        """The rules for a host, most specific first."""
        return self._by_host(host) if self.named or self.wild else self.open

    def _by_host(self, host: str) -> Iterator[Rule]:
        yield from self.named.get(host, ())
        if self.wild:
            parent = host.partition(".")[2]
            while parent:
                yield from self.wild.get(parent, ())
                parent = parent.partition(".")[2]
        yield from self.open


def compile_host(text: str) -> str:
    """A host pattern in the form hosts arrive in: lower case, names beyond ASCII as xn--.

    ``*.example.com`` stands for everything below example.com. Raises ValueError for what is no host.
    """
    name = text.strip().lower()
    star = name.startswith("*.")
    if not name.isascii():
        try:
            name = ("*." if star else "") + name.removeprefix("*.").encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError(f"{text!r} is not a host name") from None
    if not name or "*" in name.removeprefix("*.") or name == "*.":
        raise ValueError(f"{text!r}: a host is a name, or *.name for everything below it")
    return name


def _specificity(item: tuple[Pattern, list[Rule]]) -> tuple[tuple[bool, ...], ...]:
    """Orders parameter patterns: literal segments before parameters, from the left; no `*` before `*`."""
    segments = item[0].source.split("/")[1:]
    return ((segments[-1] == "*",), tuple(segment.startswith(":") for segment in segments))


class Router:
    """All routes, compiled. Calling it answers a request.

    Tables instead of a list: an exact path is one lookup, a prefix one lookup per segment, and only parameter
    and regex patterns are tried one after the other.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        grouped: dict[tuple[Kind, str], tuple[Pattern, list[Rule]]] = {}
        for rule in rules:
            key = (rule.pattern.kind, rule.pattern.source)
            grouped.setdefault(key, (rule.pattern, []))[1].append(rule)
        of_kind: dict[Kind, list[tuple[Pattern, list[Rule]]]] = {kind: [] for kind in Kind}
        for pattern, members in grouped.values():
            of_kind[pattern.kind].append((pattern, members))
        of_kind[Kind.PARAMETER].sort(key=_specificity)
        self._exact = {item[0].literal: _Choice(*item) for item in of_kind[Kind.EXACT]}
        self._prefix = {item[0].literal: _Choice(*item) for item in of_kind[Kind.PREFIX]}
        self._parameter = [_Choice(*item) for item in of_kind[Kind.PARAMETER]]
        self._regex = [_Choice(*item) for item in of_kind[Kind.REGEX]]
        self._fallback = [_Choice(*item) for item in of_kind[Kind.FALLBACK]]

    def dispatcher(self) -> Callable[[Request], Response]:
        """The callable that answers requests: the route's own where there is only the one, unconditional
        route.
        """
        specific = self._exact or self._prefix or self._parameter or self._regex
        if not specific and self._fallback and self._fallback[0].always is not None:
            return self._fallback[0].always
        exact, prefixes, route = self._exact.get, self._prefix.get, self.route
        any_prefix = bool(self._prefix)
        tried_in_turn = self._parameter or self._regex
        last = self._fallback[0] if self._fallback and not tried_in_turn else None

        def dispatch(request: Request) -> Response:
            # The most specific table entry; if it asks for neither host nor method, it is the answer.
            path = request.path
            choice = exact(path)
            if choice is None:
                head = path if any_prefix else ""
                while head:
                    choice = prefixes(head)
                    if choice is not None:
                        break
                    head = head.rpartition("/")[0]
                else:
                    choice = last
            if choice is not None and choice.always is not None:
                return choice.always(request)
            return route(request)

        return dispatch

    def route(self, request: Request) -> Response:
        """Answer by the first route that fits; raises HTTPError 404, or 405 with Allow (RFC 9110 section
        10.2.1).
        """
        refused: list[_Choice] = []
        for choice, params in self._matches(request.path):
            handler = choice.select(request)
            if handler is None:
                refused.append(choice)
                continue
            if params:
                request.params = {name: _real(value) for name, value in params.items()}
            return handler(request)
        methods = sorted(set().union(*(choice.allowed(request) for choice in refused)))
        if methods:
            raise HTTPError(405, headers=[("Allow", ", ".join(methods))])
        raise HTTPError(404)

    def route_of(self, request: Request) -> str | None:
        """The path, as it is configured, of the route that answers a request; None if none does."""
        for choice, _ in self._matches(request.path):
            if choice.select(request) is not None:
                return choice.pattern.source
        return None

    def _matches(self, path: str) -> Iterator[tuple[_Choice, dict[str, str] | None]]:
        """The patterns that the path matches, in order of precedence, with what they capture."""
        choice = self._exact.get(path)
        if choice is not None:
            yield choice, None
        if self._prefix:
            head = path
            while head:
                choice = self._prefix.get(head)
                if choice is not None:
                    yield choice, None
                head = head.rpartition("/")[0]
        for choice in self._parameter:
            match = choice.pattern.regex.fullmatch(path)  # type: ignore[union-attr]
            if match is not None:
                yield choice, match.groupdict()
        if self._regex:
            yield from self._regex_matches(path)
        for choice in self._fallback:
            yield choice, None

    def _regex_matches(self, path: str) -> Iterator[tuple[_Choice, dict[str, str] | None]]:
        # Regular expressions speak of characters, so they see the path as text; bytes that are no UTF-8 pass
        # as surrogates and are refused only if they end up in a parameter.
        text = path if path.isascii() else path.encode("latin-1").decode("utf-8", "surrogateescape")
        for choice in self._regex:
            match = choice.pattern.regex.search(text)  # type: ignore[union-attr]
            if match is None:
                continue
            groups = {
                str(number): value for number, value in enumerate(match.groups(), 1)
            } | match.groupdict()
            yield (
                choice,
                {
                    name: value.encode("utf-8", "surrogateescape").decode("latin-1")
                    for name, value in groups.items()
                    if value is not None
                },
            )
