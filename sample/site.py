"""A small site that shows what the server does: `application` is plain WSGI, `page` is a handler function.

Law: an ordinary web application. It imports nothing of ACME, so any WSGI server could run it; it needs the
standard library and werkzeug. Everything in it blocks, as plain Python does, and none of it keeps anybody
else waiting.
"""

from __future__ import annotations

import hashlib
import html
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

Page = Callable[[Request], Response]

LAYOUT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · ACME</title>
<style>
  body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
  a {{ color: #0b5cad }} code, pre {{ font: .9rem/1.5 ui-monospace, monospace; background: #f4f4f2 }}
  code {{ padding: .1em .3em }} pre {{ padding: 1rem; overflow: auto }}
  td, th {{ text-align: left; padding: .2rem 1rem .2rem 0 }}
  nav a {{ margin-right: 1rem }} footer {{ margin-top: 3rem; color: #666; font-size: .85rem }}
</style>
</head>
<body>
<nav><a href="/">Home</a><a href="/request">Request</a><a href="/stream">Stream</a><a
href="/upload">Upload</a><a href="/source">Source</a><a href="/broken">Error</a></nav> <h1>{title}</h1>
{content} <footer>Answered by process {pid} for request <code>{request_id}</code>.</footer> </body> </html>
"""

HOME = """<p>This site is served by ACME from <code>conf.d</code>. It is one WSGI application of a hundred
lines, written in plain blocking Python:</p>
<ul>
<li><a href="/request">Request</a>: the environment that the application gets.</li>
<li><a href="/stream">Stream</a>: a generator that sleeps between its lines. A thousand visitors may
read it at once: sleeping costs no thread.</li>
<li><a href="/upload">Upload</a>: a file of any size that the limit allows, hashed while it arrives.</li>
<li><a href="/source">Source</a>: this site's source, sent by the kernel straight from the file.</li>
<li><a href="/broken">Error</a>: a handler that fails. The visitor sees an id, the log has the traceback.</li>
</ul>
<p>Put your own application in its place: in <code>conf.d/90-routes.yaml</code>, <code>app:
module:callable</code>.</p>
"""

UPLOAD = """<form method="post" enctype="multipart/form-data">
<p><input type="file" name="file" required> <button>Send</button></p>
</form>
"""


def render(request: Request, title: str, content: str, status: int = 200) -> Response:
    """A page in the site's layout; `content` is HTML, `title` text."""
    body = LAYOUT.format(
        title=html.escape(title),
        content=content,
        pid=os.getpid(),
        request_id=html.escape(request.environ.get("acme.request_id", "-")),
    )
    return Response(body, status, content_type="text/html; charset=utf-8")


def table(rows: Iterable[tuple[str, object]]) -> str:
    """Rows of text as an HTML table."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td><code>{html.escape(str(value))}</code></td></tr>\n"
        for name, value in rows
    )
    return f"<table>\n{cells}</table>"


def home(request: Request) -> Response:
    """What there is to see."""
    return render(request, "It works", HOME)


def show_request(request: Request) -> Response:
    """The request, as the application sees it: secrets in its headers are not shown back."""
    environ = request.environ
    names = ["REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "SERVER_PROTOCOL", "REMOTE_ADDR"]
    names += ["wsgi.url_scheme", "wsgi.multithread", "wsgi.multiprocess"]
    rows: list[tuple[str, object]] = [(name, environ[name]) for name in names if name in environ]
    hidden = {"Cookie", "Authorization"}
    rows += [(name, "***" if name in hidden else value) for name, value in request.headers.items()]
    return render(request, "Your request", table(rows))


def stream(request: Request) -> Response:
    """Ten lines, one every fifth of a second; the client sees each as soon as it is there."""

    def lines() -> Iterator[str]:
        started = time.monotonic()
        for number in range(1, 11):
            yield f"line {number:2} after {time.monotonic() - started:.1f} s\n"
            time.sleep(0.2)

    return Response(lines(), content_type="text/plain; charset=utf-8", headers={"X-Accel-Buffering": "no"})


def upload(request: Request) -> Response:
    """A form, and what came of it: size and SHA-256 of the file, read in pieces."""
    if request.method != "POST":
        return render(request, "Send a file", UPLOAD)
    file = request.files.get("file")
    if file is None:
        return render(request, "Send a file", "<p>There was no file in it.</p>" + UPLOAD, 400)
    digest, size = hashlib.sha256(), 0
    while piece := file.stream.read(65536):
        digest.update(piece)
        size += len(piece)
    rows = [("Name", file.filename), ("Bytes", size), ("SHA-256", digest.hexdigest())]
    return render(request, "It arrived", table(rows) + UPLOAD)


def source(request: Request) -> Response:
    """This file, through wsgi.file_wrapper."""
    file = Path(__file__).open("rb")  # noqa: SIM115 - closed with the response
    size = os.fstat(file.fileno()).st_size
    body = wrap_file(request.environ, file)
    response = Response(body, content_type="text/plain; charset=utf-8", direct_passthrough=True)
    response.content_length = size
    return response


def broken(request: Request) -> Response:
    """A mistake, as mistakes are made."""
    raise RuntimeError("this page is broken on purpose")


PAGES: dict[str, tuple[Page, tuple[str, ...]]] = {
    "/": (home, ("GET",)),
    "/request": (show_request, ("GET",)),
    "/stream": (stream, ("GET",)),
    "/upload": (upload, ("GET", "POST")),
    "/source": (source, ("GET",)),
    "/broken": (broken, ("GET",)),
}


def answer(request: Request) -> Response:
    """The page of the request's path; raises NotFound or MethodNotAllowed."""
    found = PAGES.get(request.path)
    if found is None:
        raise NotFound
    view, methods = found
    if request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
        raise MethodNotAllowed(methods)
    return view(request)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The site, PEP 3333."""
    request = Request(environ)
    try:
        response = answer(request)
    except HTTPException as error:
        page = render(
            request, error.name, f"<p>{html.escape(error.description or '')}</p>", error.code or 500
        )
        page.headers.extend((name, value) for name, value in error.get_headers() if name == "Allow")
        response = page
    return response(environ, start_response)


def page(request: Any) -> dict[str, object]:
    """A handler function, for `type: handler` with `handler: sample.site:page` on `path: /hello/:name`."""
    return {"hello": request.path_params.get("name", "world"), "query": request.args.to_dict()}
