"""Where a worker stands: how it is asked, how it says so, and how its arbiter reads that.

    arbiter: Stacks.ask --two signals--> worker: faulthandler, Reporter --shared file--> Stacks.read: Answer

Two signals, since either answer can do what the other can't. STACK_SIGNAL is answered in C at once, even
while C code holds the interpreter, but knows nothing except threads. REPORT_SIGNAL is answered in Python as
soon as bytecode runs again (in `while True: pass`, at once), and knows requests, routes and all greenlets.

Law: the arbiter imports this file, so it never loads gevent or greenlet; the worker's side uses them where
they are loaded already. Nothing here waits. The reporter runs inside of whatever it interrupts: it writes a
limited amount, reads no source files, and raises nothing. The arbiter takes nothing it reads on trust.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import re
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from acme_wsgi.scoreboard import Slot

STACK_SIGNAL = signal.SIGUSR2
"""Makes a worker write the Python stacks of its threads to the file the arbiter reads, even when it hangs."""

REPORT_SIGNAL = signal.SIGURG
"""Makes it tell what request runs and, past `server.timeout`, all greenlets. Without effect by default."""

MAX_GREENLETS = 10_000
"""Greenlets that are looked at for a report."""

_MAX_STACKS = 200  # different ones of a report
_MAX_REPORT = 256 * 1024  # bytes of one
_MAX_READ = 1024 * 1024
_MAX_FRAMES = 60  # innermost ones of a stack; the rest is counted
_MAX_REQUESTS = 10  # named of those that stand at the same place
_MAX_PATH = 1000
_MAX_TEXT = 200  # characters of a name, a target, a route

Frame = tuple[str, int, str]
"""File, line and function."""

Running = tuple[Any, Any, str, float]
"""A request that is being run, as the engine knows it: greenlet, request, target, seconds since it began."""

_ROUTING = str(Path(__file__).parent / "routing.py")
_LOG_WRITER = str(Path(__file__).parent / "log" / "sink.py")


# -- what is said -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Doing:
    """A request that is being run; `route` is None if it isn't known."""

    method: str
    target: str
    route: str | None
    request_id: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.method} {self.target}" + ("" if self.route is None else f" (route {self.route})")


@dataclass(frozen=True, slots=True)
class Stack:
    """A place at which one or more greenlets stand.

    :ivar frames: innermost first
    :ivar more: further frames, of which there was no room to tell
    :ivar requests: whose greenlets these are; there may be more of them
    :ivar count: greenlets that stand there
    """

    frames: tuple[Frame, ...]
    more: int = 0
    requests: tuple[Doing, ...] = ()
    count: int = 1

    def lines(self) -> list[str]:
        """For people, in the form of faulthandler."""
        found = [f'  File "{file}", line {line} in {name}' for file, line, name in self.frames]
        return [*found, f"  ... {self.more} more"] if self.more else found

    def head(self) -> str:
        """Whose stack this is."""
        named = [f"{doing}, request {doing.request_id}, {doing.seconds:.1f} s" for doing in self.requests]
        if self.count == 1:
            return f"{named[0] if named else 'a greenlet without a request'}:"
        left = [f"{self.count - len(named)} more"] if self.count > len(named) else []
        return f"{self.count} greenlets ({'; '.join(named + left)}):"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process said of where it stands.

    :ivar threads: the stacks of its threads
    :ivar running: the greenlet that ran, with its request; None if no Python code could answer
    :ivar waiting: where the others stand; only past `server.timeout`
    :ivar left_out: places that there was no room for
    :ivar whole: there is nothing more to wait for
    """

    threads: str = ""
    running: Stack | None = None
    waiting: tuple[Stack, ...] = ()
    left_out: int = 0
    whole: bool = False

    @property
    def doing(self) -> Doing | None:
        """The request that runs, if there is one and it is known."""
        return self.running.requests[0] if self.running is not None and self.running.requests else None

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Where it stands, innermost first."""
        return self.running.frames if self.running is not None else frames_of(self._current())

    def handler(self) -> str:
        """The stack of what runs, for people."""
        if self.running is None:
            return self._current()
        return "\n".join([self.running.head(), *self.running.lines()])

    def others(self) -> Iterator[str]:
        """All the other stacks."""
        for stack in self.waiting:
            yield "\n".join([stack.head(), *stack.lines()])
        if self.left_out:
            yield f"... and {self.left_out} other places"
        if self.running is not None:
            yield from self._other_threads()

    def _other_threads(self) -> Iterator[str]:
        """All but the one whose stack is told already, and our log writers, which only ever wait."""
        for part in self.threads.split("\n\n"):
            if part != self._current() and _LOG_WRITER not in part:
                yield part

    def _current(self) -> str:
        """Of the threads, the one that the signal found: the main thread, unless it was busy ending."""
        for part in self.threads.split("\n\n"):
            if part.startswith("Current thread"):
                return part
        return self.threads


# -- the arbiter's side -------------------------------------------------------------------------------------


class Stacks:
    """The arbiter's side of the file that one process writes its stacks to.

    :ivar file: anonymous memory, inherited by the process
    """

    def __init__(self, name: str) -> None:
        self.file: IO[bytes] = os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)

    def ask(self, pid: int) -> None:
        """Have the process write; what it wrote before is forgotten."""
        self.forget()
        os.kill(pid, STACK_SIGNAL)
        os.kill(pid, REPORT_SIGNAL)

    def forget(self) -> None:
        """Empty the file for the next stacks."""
        # Both processes share one file position: the worker's next word starts where this leaves it.
        self.file.seek(0)
        self.file.truncate()

    def read(self) -> Answer:
        """What the process wrote so far: because it was asked, or because it crashed."""
        return parse(os.pread(self.file.fileno(), _MAX_READ, 0).decode(errors="replace"))

    def close(self) -> None:
        """The process is gone, or was never started."""
        self.file.close()


def parse(text: str) -> Answer:
    """Take apart what a worker wrote. Of what isn't in order, the threads' part is still there."""
    threads: list[str] = []
    report: list[str] = []
    for line in text.split("\n"):
        (report if line.startswith('{"acme"') else threads).append(line)
    plain = "\n".join(threads).strip("\n")
    running, waiting, left_out, whole = None, [], 0, False
    try:
        for line in report:
            said = json.loads(line)
            if said["acme"] == "running":
                running = _stack(said)
            elif said["acme"] == "waiting":
                waiting.append(_stack(said))
            elif said["acme"] == "end":
                left_out, whole = int(said["left_out"]), True
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Answer(plain, running)  # half written, or not by us
    return Answer(plain, running, tuple(waiting[:_MAX_STACKS]), left_out, whole)


def _stack(said: dict[str, Any]) -> Stack:
    frames = tuple(
        (_cut(file, _MAX_PATH), int(line), _cut(name)) for file, line, name in said["frames"][:_MAX_FRAMES]
    )
    return Stack(frames, int(said["more"]), tuple(_doings(said["requests"])), int(said["count"]))


def _doings(said: list[Any]) -> Iterator[Doing]:
    for method, target, route, request_id, seconds in said[:_MAX_REQUESTS]:
        known = None if route is None else _cut(route)
        yield Doing(_cut(method), _cut(target), known, _cut(request_id), float(seconds))


def _cut(value: Any, limit: int = _MAX_TEXT) -> str:
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "..."


# -- from stacks to a place ---------------------------------------------------------------------------------

_FILE = re.compile(r'^  File "(.*)", line (\d{1,9}) in (.*)$', re.MULTILINE)
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/")
_STDLIB = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")})
_OURS = str(Path(__file__).parent) + "/"


def frames_of(text: str) -> tuple[Frame, ...]:
    """The frames in what faulthandler wrote of one thread, innermost first."""
    return tuple((file, int(line), name) for file, line, name in _FILE.findall(text)[:_MAX_FRAMES])


def place(frames: Iterable[Frame]) -> str:
    """Where that is, for people: ``shop/views.py:42 in search, now in json/decoder.py:353``.

    First the application's own line: the innermost that is neither ours nor the standard library's nor that
    of something installed; an application may be installed too, and then the innermost line of anything
    installed is named. Then the innermost line of all, if it is another.
    """
    found = list(frames)
    if not found:
        return ""
    distance = [_distance(file) for file, _, _ in found]
    file, line, name = found[distance.index(min(distance))]
    text = f"{_short(file)}:{line} in {name}"
    if distance.index(min(distance)):
        text += f", now in {_short(found[0][0])}:{found[0][1]}"
    return text


def _distance(file: str) -> int:
    """How far from the application's own code: 0 its own, 1 installed, 2 the standard library, the server."""
    if file.startswith((_OURS, "<frozen ")):
        return 2
    installed = _INSTALLED.match(file)
    if installed:
        return 2 if file.startswith(("gevent/", "greenlet/"), installed.end()) else 1
    return 2 if file.startswith(_STDLIB) else 0


def _short(file: str) -> str:
    """A file's name without the directory that everybody knows: the current one, the library's."""
    installed = _INSTALLED.match(file)
    if installed:
        return file[installed.end() :]
    for directory in (*_STDLIB, _OURS.removesuffix("acme_wsgi/"), _current_directory()):
        if file.startswith(directory):
            return file.removeprefix(directory)
    return file


def _current_directory() -> str:
    try:
        return str(Path.cwd()) + "/"
    except FileNotFoundError:  # it has been removed
        return "/"


# -- the worker's side --------------------------------------------------------------------------------------


class Engine(Protocol):
    """What the reporter needs of the engine."""

    def running(self) -> list[Running]: ...


class Reporter:
    """Answers in a worker when its arbiter asks.

    :param file: where to
    :param slot: the worker's part of the scoreboard; its heartbeat says how long we have stood still
    :param timeout: `server.timeout`; whoever stands still longer is about to be replaced and tells everything
    """

    def __init__(self, file: IO[bytes], slot: Slot, timeout: float) -> None:
        self._file = file
        self._slot = slot
        self._timeout_ns = int(timeout * 1e9)
        self._engine: Engine | None = None
        self._route_of: Callable[[Any], str | None] = _unknown

    def install(self) -> None:
        """From here on the signals are answered, and a crash of the interpreter leaves its stacks as well."""
        faulthandler.enable(file=self._file, all_threads=True)
        faulthandler.register(STACK_SIGNAL, file=self._file, all_threads=True, chain=False)
        signal.signal(REPORT_SIGNAL, self._answer)
        # Being asked is no reason for anybody's system call to fail.
        signal.siginterrupt(REPORT_SIGNAL, False)

    def know(self, engine: Engine, route_of: Callable[[Any], str | None]) -> None:
        """From here on there are requests to tell of.

        :param route_of: the path of a request's route as it is configured
        """
        self._engine, self._route_of = engine, route_of

    def _answer(self, _number: int, frame: FrameType | None) -> None:
        try:
            text = "".join(self._report(frame))
        except Exception as error:  # noqa: BLE001 - raised, it would come out of the line that we interrupted
            text = f"the report failed: {error!r}\n"
        with suppress(OSError):  # without memory for it the arbiter has to do with the stacks of the threads
            os.write(self._file.fileno(), text.encode())

    def _report(self, frame: FrameType | None) -> Iterator[str]:
        greenlets = sys.modules.get("greenlet")  # while starting there may be none yet
        current = greenlets.getcurrent() if greenlets is not None else None
        requests = self._engine.running() if self._engine is not None else []
        known = {id(greenlet): (request, target, seconds) for greenlet, request, target, seconds in requests}
        frames, more = _walk(frame)
        doing = []
        if id(current) in known:
            # A standstill in the routes' own expressions must not be walked into again.
            routing = frame is not None and frame.f_code.co_filename == _ROUTING
            request, target, seconds = known[id(current)]
            doing = [_told(request, target, seconds, None if routing else self._route_of(request))]
        yield _line("running", frames=frames, more=more, requests=doing, count=1)
        left_out = 0
        if greenlets is not None and time.monotonic_ns() - self._slot.heartbeat >= self._timeout_ns:
            ours = [greenlet for greenlet, *_ in requests]
            size = 0
            for number, line in enumerate(_waiting(ours, known, current, greenlets.greenlet)):
                size += len(line)
                if number < _MAX_STACKS and size < _MAX_REPORT:
                    yield line
                else:
                    left_out += 1
        yield _line("end", left_out=left_out)


def _waiting(ours: list[Any], known: dict[int, Any], current: Any, kind: type) -> Iterator[str]:
    """All greenlets but the current one: those of requests first, longest first; each place told once."""
    # Not isinstance(): it would ask the objects, and there are some that answer by doing something.
    others = (thing for thing in gc.get_objects() if issubclass(type(thing), kind))
    seen = {id(current)}
    places: dict[tuple[tuple[Frame, ...], int], list[tuple[Any, str, float] | None]] = {}
    for greenlet in (*ours, *others):
        if id(greenlet) not in seen and len(seen) <= MAX_GREENLETS:
            seen.add(id(greenlet))
            if greenlet.gr_frame is not None:
                places.setdefault(_walk(greenlet.gr_frame), []).append(known.get(id(greenlet)))
    for (frames, more), members in places.items():
        named = [one for one in members if one is not None][:_MAX_REQUESTS]
        requests = [_told(*one, None) for one in named]  # looking for each one's route would take its time
        yield _line("waiting", frames=frames, more=more, requests=requests, count=len(members))


def _unknown(_request: Any) -> str | None:
    return None


def _told(request: Any, target: str, seconds: float, route: str | None) -> list[Any]:
    return [request.method, _cut(target), route, request.request_id, round(seconds, 3)]


def _walk(frame: FrameType | None) -> tuple[tuple[Frame, ...], int]:
    """The innermost frames, and how many more there are."""
    found: list[Frame] = []
    more = 0
    while frame is not None:
        if len(found) < _MAX_FRAMES:
            code = frame.f_code
            found.append((_cut(code.co_filename, _MAX_PATH), frame.f_lineno or 0, _cut(code.co_name)))
        else:
            more += 1
        frame = frame.f_back
    return tuple(found), more


def _line(kind: str, **facts: Any) -> str:
    return json.dumps({"acme": kind, **facts}) + "\n"
