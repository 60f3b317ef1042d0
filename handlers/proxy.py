"""The proxy: a request goes on to one of the route's backends, and its answer comes back.

    choose a backend -> one Exchange with it -> its response
                     -> it failed: may this request be sent again?  -> choose another one
                     -> nobody is usable: 503, or the route's fallback page

Law: decides which failure is tried again and what the client hears; an attempt itself is
upstream/exchange.pyx's, the choice upstream/balancer.py's. Nothing that a backend says about the connection
reaches the client, and nothing that the client says about its own reaches a backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent

from acme_wsgi.errors import BackendError, ClientDisconnected, HTTPError
from acme_wsgi.http.writer import Response
from acme_wsgi.upstream import fallback
from acme_wsgi.upstream.balancer import Balancer
from acme_wsgi.upstream.budget import backoff
from acme_wsgi.upstream.exchange import Exchange, Lane, Patience
from acme_wsgi.upstream.payload import Payload, payload_of
from acme_wsgi.upstream.shape import Shaper

if TYPE_CHECKING:
    from acme_wsgi.config import Route
    from acme_wsgi.handlers import Context, Handler, Request

TRIES = 3
"""Attempts at one request in all."""

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
"""Methods that may be sent again after bytes were sent (RFC 9110 section 9.2.2)."""

_RETRY_AFTER = ("Retry-After", "5")
MOST_HOPS = 8
"""Servers of this kind that a request may have come through: more are one, whose backend leads back."""

# RFC 9110 section 7.6.2: their Max-Forwards is each proxy's to count down.
_ABOUT_THE_WAY = frozenset(("TRACE", "OPTIONS"))
_MOST_FORWARDS = 255

# The attempts have limits of their own; the engine's clock must not end them as a handler that hangs.
_OWN_CLOCK = 1e9

log = logging.getLogger("acme.upstream")


def build(route: Route, context: Context) -> Handler:
    """The handler of one proxy route; raises ValueError for a fallback page that can't be read."""
    group, service = context.group, context.service
    if group is None or service is None:
        raise ValueError("a route of type proxy needs backends")
    patience = _patience(route, context.server.timeout)
    service.need(patience)
    forwarder = Forwarder(
        balancer=service.balancer(group),
        shaper=Shaper(route.headers, route.rewrite, service.pool.reuse),
        patience=patience,
        tunnel_idle=route.proxy_read_timeout or context.server.keep_alive_timeout,
        page=_page(route),
    )
    return forwarder.handle


def _patience(route: Route, request_timeout: float) -> Patience:
    """What isn't said for a step is as long as the whole may take, or the request."""
    whole = route.proxy_timeout or route.timeout or request_timeout
    return Patience(
        route.proxy_connect_timeout or whole,
        route.proxy_read_timeout or whole,
        route.proxy_write_timeout or whole,
        whole,
        route.proxy_timeout,
    )


def _page(route: Route) -> Callable[[], Response] | None:
    """The route's own answer for when no backend can."""
    if route.fallback is None:
        return None
    page = fallback.read(str(Path.cwd() / route.fallback))
    headers = [("Content-Type", page.content_type), ("Cache-Control", "no-store"), _RETRY_AFTER]
    return lambda: Response("503 Service Unavailable", headers.copy(), page.body)


class Forwarder:
    """One route's way to its backends."""

    def __init__(
        self,
        *,
        balancer: Balancer,
        shaper: Shaper,
        patience: Patience,
        tunnel_idle: float,
        page: Callable[[], Response] | None,
    ) -> None:
        self.balancer = balancer
        self.shaper = shaper
        self.patience = patience
        self.tunnel_idle = tunnel_idle
        self.page = page

    def handle(self, request: Request) -> Response:
        """Answer a request by the answer of a backend."""
        balancer = self.balancer
        if request.method in _ABOUT_THE_WAY or "HTTP_VIA" in request.environ:
            answer = _answer_ourselves(request)
            if answer is not None:
                return answer
        request.set_timeout(_OWN_CLOCK)
        payload = payload_of(request.environ, request.method, self.tunnel_idle, self.shaper.hidden)
        again = request.method in IDEMPOTENT and payload.data is not None
        balancer.budget.deposit()
        cookie = ""
        if balancer.simple:
            lane = balancer.next(0, again)
        else:
            environ = request.environ
            lane, cookie = balancer.choose(environ, 0, again)
            balancer.hide(environ)
        if lane is None:
            return self._refuse()
        exchange = Exchange(lane, self.patience)
        try:
            response = exchange.run(request, self.shaper, payload)
        except BackendError as error:
            response, cookie = self._retry(request, payload, exchange, error, again, cookie)
        if cookie:
            response.headers = balancer.seal(list(response.headers), cookie)
        return response

    # -- after a failure ----------

    def _retry(
        self,
        request: Request,
        payload: Payload,
        failed: Exchange,
        error: BackendError,
        again: bool,
        cookie: str,
    ) -> tuple[Response, str]:
        """Try once more, as often as that may be; raises the last BackendError if it may not.

        cookie: what goes with an answer of the backend that failed.
        """
        tried, attempt = 0, 1
        while True:
            _tell(failed, error, request)
            if failed.lane.group is self.balancer.group:  # else a reload has taken it out: it has no bit
                tried |= 1 << failed.lane.member
            if attempt >= TRIES or not self._may(failed, error, again):
                return self._give_up(error)
            if attempt > 1:
                gevent.sleep(backoff(attempt))
                if failed.left:
                    raise ClientDisconnected("the client went away before its request was tried again")
            lane: Lane | None = failed.lane
            # A connection that was idle for too long is no reason to send a visitor elsewhere.
            if not failed.stale or self.balancer.simple:
                lane, cookie = self._other(request.environ, tried, again, error)
            if lane is None:
                return self._give_up(error)
            attempt += 1
            failed.lane.shelf.peer.count_retry()
            exchange = Exchange(lane, self.patience, failed.until_ns)
            try:
                # On a new connection: that an idle one breaks can happen to a request once.
                return exchange.run(request, self.shaper, payload, True), cookie
            except BackendError as next_error:
                failed, error = exchange, next_error

    def _may(self, failed: Exchange, error: BackendError, again: bool) -> bool:
        """Nothing has reached a backend: always. Else only what may be repeated, and within the budget."""
        if error.connecting:
            return True
        return again and error.retriable and (failed.stale or self.balancer.budget.withdraw())

    def _other(
        self, environ: dict[str, Any], tried: int, again: bool, error: BackendError
    ) -> tuple[Lane | None, str]:
        """Another backend; the same one if there is no other and it didn't run out of time."""
        lane, cookie = self.balancer.choose(environ, tried, again)
        if lane is None and error.status != 504:
            lane, cookie = self.balancer.choose(environ, 0, again)
        return lane, cookie

    def _give_up(self, error: BackendError) -> tuple[Response, str]:
        """No attempt is left. Where nobody could be reached the route's own page says so, if it has one."""
        if self.page is not None and error.connecting:
            return self.page(), ""
        raise error

    def _refuse(self) -> Response:
        """No backend is usable."""
        if self.page is not None:
            return self.page()
        raise HTTPError(503, "No server behind this one can answer now.", headers=[_RETRY_AFTER])


def _answer_ourselves(request: Request) -> Response | None:
    """What concerns the chain of proxies, not the backend; None: it goes on."""
    environ = request.environ
    if environ.get("HTTP_VIA", "").count(" acme") >= MOST_HOPS:
        raise HTTPError(508, "This request goes in a circle.")
    if request.method == "TRACE":
        # A backend would answer the whole request: the account of its URL, and what the route adds.
        raise HTTPError(501, "TRACE is not passed on to the servers behind this one.")
    hops = environ.get("HTTP_MAX_FORWARDS", "")
    if request.method == "OPTIONS" and hops.isascii() and hops.isdigit():
        if not hops.strip("0"):
            return Response("204 No Content", [])
        hops = hops.lstrip("0")
        environ["HTTP_MAX_FORWARDS"] = str(min(int(hops[:9]), _MOST_FORWARDS) - 1)
    return None


def _tell(failed: Exchange, error: BackendError, request: Request) -> None:
    # That an idle connection was closed as a request left is nothing out of the ordinary.
    log.log(
        logging.DEBUG if failed.stale else logging.WARNING,
        "backend %s: %s (%s %s, request %s)",
        failed.lane.shown, error, request.method, request.path, request.request_id,
    )  # fmt: skip
