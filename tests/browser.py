"""A real browser for tests: headless Chromium, told what to do through the DevTools protocol.

    with Browser(tmp_path) as browser, browser.page() as page:
        visit = page.goto(server.url + "/")         # loaded, and nothing under way any more
        assert visit.problems == []                 # failed requests, statuses from 400 on, console errors
        picture = page.screenshot()                 # PNG of the whole page; equal pixels are equal bytes
        assert page.evaluate("document.title") == "hello"

Its law: knows Chromium and the protocol, nothing of the server. The protocol runs over a pair of pipes
(--remote-debugging-pipe): no port that somebody else could take, no websocket library, and the browser ends
when we do. Names resolve to nothing, so that only addresses on this machine can be reached.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE = 60.0
"""Seconds that the browser may take for one thing; generous, since test machines are busy."""

WIDTH, HEIGHT, TALLEST = 1000, 1200, 6000
"""The window, and how much of a long page is put into a picture, in CSS pixels."""

_OPTIONS = (
    "--headless",
    "--no-sandbox",  # root can't have one; what it opens is ours
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # small in containers
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    # Pictures that do not depend on the machine.
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--disable-lcd-text",
    "--font-render-hinting=none",
)

Message = dict[str, Any]


class BrowserError(AssertionError):
    """The browser could not do what it was told, or ended."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came for one request of a page."""

    url: str
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    cached: bool
    """It came from the browser's own cache; the server was not asked."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.partition("?")[0].rpartition("/")[2]


@dataclass(slots=True)
class Visit:
    """What happened since a page began to load."""

    url: str
    responses: list[Response] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Requests that failed or were answered with 400 or more, uncaught exceptions, console errors."""
    open: dict[str, str] = field(default_factory=dict)
    """Requests under way: id to URL."""
    documents: set[str] = field(default_factory=set)
    """Loader ids of what was navigated to. The document before this one may still ask for its icon, and is
    then cut off without a word."""
    remembered: set[str] = field(default_factory=set)
    """Requests that the browser has answered from its memory."""
    loaded: bool = False

    def response(self, part: str) -> Response:
        """The response whose URL has this in it; one must be there."""
        found = [response for response in self.responses if part in response.url]
        assert found, f"nothing with {part!r} among {[response.url for response in self.responses]}"
        return found[0]

    def note(self, method: str, told: Message) -> None:
        """Take in an event of the protocol."""
        match method:
            case "Network.requestWillBeSent":
                self._asked(told)
            case "Network.requestServedFromCache":
                self.remembered.add(told["requestId"])
            case "Network.responseReceived":
                if told["requestId"] in self.open:
                    self._answered(told["response"], told["requestId"])
            case "Network.loadingFinished":
                self.open.pop(told["requestId"], None)
            case "Network.loadingFailed":
                url = self.open.pop(told["requestId"], None)
                # A media element gives up a request whenever it seeks: that is its way, and canceled.
                if url is not None and not (told.get("canceled") and told["type"] == "Media"):
                    self.problems.append(f"{url}: {told['errorText']}")
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                what = details.get("exception", {}).get("description", details["text"])
                self.problems.append(f"{details.get('url', self.url)}: {what}")
            case "Runtime.consoleAPICalled":
                if told["type"] in ("error", "assert"):
                    self.problems.append(f"console: {[one.get('value') for one in told['args']]}")
            case "Log.entryAdded":
                entry = told["entry"]
                if entry["level"] == "error":
                    self.problems.append(f"{entry.get('url', self.url)}: {entry['text']}")
            case "Inspector.targetCrashed":
                raise BrowserError(f"the page {self.url} has crashed")
            case "Page.loadEventFired":
                self.loaded = True

    def _asked(self, told: Message) -> None:
        request, document = told["requestId"], told["loaderId"]
        if request == document:  # a navigation
            self.documents.add(document)
        elif document and document not in self.documents:
            return
        self.open[request] = told["request"]["url"]
        if "redirectResponse" in told:
            self._answered(told["redirectResponse"], request)

    def _answered(self, response: Message, request: str) -> None:
        headers = {name.lower(): value for name, value in response["headers"].items()}
        cached = request in self.remembered or response.get("fromDiskCache", False)
        self.responses.append(Response(response["url"], response["status"], headers, cached))
        if response["status"] >= 400:
            self.problems.append(f"{response['url']}: {response['status']}")


class Page:
    """A tab. A context manager."""

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self._browser = browser
        self._context = context
        self._session = session
        self.visit = Visit("about:blank")

    def goto(self, url: str) -> Visit:
        """Open a URL and wait until it is loaded and no request is under way.

        :raises BrowserError: it can't be opened, or does not finish in time
        """
        self.visit = Visit(url)
        if error := self.call("Page.navigate", url=url).get("errorText"):
            raise BrowserError(f"{url}: {error}")
        self._browser.wait(lambda: self.visit.loaded, f"{url} to be loaded")
        self.settle()
        return self.visit

    def settle(self) -> None:
        """Wait until nothing is under way."""
        visit = self.visit
        self._browser.wait(
            lambda: not visit.open, lambda: f"the end of {list(visit.open.values())} of {visit.url}"
        )

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for.

        :raises BrowserError: it throws
        """
        done = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in done:
            raise BrowserError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def screenshot(self) -> bytes:
        """The page from its top, up to TALLEST pixels of it, as a PNG."""
        size = self.evaluate("document.fonts.ready.then(() => document.documentElement.scrollHeight)")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(max(size, HEIGHT), TALLEST), "scale": 1}
        taken = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def call(self, method: str, **parameters: Any) -> Message:
        """Any method of the protocol."""
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
        self._browser.pages.pop(self._session)

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


class Browser:
    """A running Chromium with an empty profile of its own. A context manager.

    :param directory: where its profile and what it writes may lie
    :raises BrowserError: it doesn't start
    """

    def __init__(self, directory: Path) -> None:
        self.pages: dict[str, Page] = {}
        self._log = directory / "chromium.log"
        self._process, self._to, self._from = _start(directory, self._log)
        self._last = 0
        self._answers: dict[int, Message] = {}
        self._rest = b""
        self.version = self.call("Browser.getVersion")["product"]

    def page(self) -> Page:
        """A new tab with a cache of its own, empty."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, context, session)
        for domain in ("Page", "Network", "Runtime", "Log", "Inspector"):
            page.call(f"{domain}.enable")
        window = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **window)
        still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        page.call("Emulation.setEmulatedMedia", features=still)
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Message:
        """Call a method of the protocol and wait for its result; events that come meanwhile are noted.

        :raises BrowserError: it fails
        """
        self._last += 1
        number = self._last
        message: Message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        _write(self._to, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: Message = answer["result"]
        return result

    def wait(self, condition: Callable[[], object], what: str | Callable[[], str]) -> None:
        """Take in what the browser says until a condition holds.

        :raises BrowserError: not within DEADLINE, or the browser has ended
        """
        deadline = time.monotonic() + DEADLINE
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise BrowserError(f"not within {DEADLINE} s: {what if isinstance(what, str) else what()}")
            self._take()

    def close(self) -> None:
        """End it and whatever it started."""
        os.close(self._to)  # the end of the pipe is its signal to go
        try:
            self._process.wait(DEADLINE)
        finally:
            with suppress(ProcessLookupError):  # helpers of it may be a moment later
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(DEADLINE)
            os.close(self._from)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> None:
        data = os.read(self._from, 1 << 20)
        if not data:
            raise BrowserError(f"Chromium has ended:\n{self._log.read_text(errors='replace')}")
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif page := self.pages.get(message.get("sessionId", "")):
                page.visit.note(message["method"], message["params"])


def _start(directory: Path, log: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start it with its ends of the pipes as descriptors 3 and 4; ours are returned."""
    command = shutil.which("chromium")
    assert command is not None, "there is no chromium: scripts/test installs it (apt-get install chromium)"
    bash = shutil.which("bash")
    assert bash is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Neither may be in the other's place when the shell moves them.
    low, high = (fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (theirs_in, theirs_out))
    profile = directory / "profile"
    moved = f'exec "$@" 3<&{low} 4>&{high} {low}<&- {high}>&-'
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [bash, "-c", moved, "bash", command, *_OPTIONS, f"--user-data-dir={profile}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "HOME": str(directory)},
                start_new_session=True,
                pass_fds=(low, high),
            )
    finally:
        for number in (theirs_in, theirs_out, low, high):
            os.close(number)
    return process, ours_out, ours_in


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
