"""A Flask application: sessions, streams, files, errors, links made behind a proxy.

Knows Flask only. Where its files lie comes from FILES in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from flask import (
    Flask,
    Response,
    abort,
    g,
    jsonify,
    request,
    send_file,
    session,
    stream_with_context,
    url_for,
)
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.secret_key = "for tests"
FILES = Path(os.environ.get("FILES", "."))


@app.get("/count")
def count() -> str:
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])


@app.get("/stream/<int:pieces>")
def stream(pieces: int) -> Response:
    def lines() -> Iterator[str]:
        for number in range(pieces):
            yield f"{request.args['word']} {number}\n"  # the request is still there

    return Response(stream_with_context(lines()), mimetype="text/plain")


@app.get("/file/<name>")
def file(name: str) -> Response:
    return send_file((FILES / name).resolve(), conditional=True)


@app.get("/link")
def link() -> str:
    return url_for("file", name="a.bin", _external=True)


@app.get("/who")
def who() -> Response:
    return jsonify(
        address=request.remote_addr, scheme=request.scheme, host=request.host, root=request.root_path
    )


@app.post("/form")
def form() -> Response:
    return jsonify(form=request.form.to_dict(), files={k: len(f.read()) for k, f in request.files.items()})


@app.post("/store")
def store() -> Response:
    """werkzeug keeps a large file on the disk while it parses the form."""
    digest, size = sha256(), 0
    stream = request.files["file"].stream
    while piece := stream.read(1 << 16):
        digest.update(piece)
        size += len(piece)
    return jsonify(size=size, sha256=digest.hexdigest())


@app.post("/json")
def echo_json() -> Response:
    return jsonify(request.get_json())


@app.get("/teapot")
def teapot() -> str:
    abort(418)


@app.get("/boom")
def boom() -> str:
    raise RuntimeError("a secret of the application")


@app.get("/wrong-length")
def wrong_length() -> Response:
    return Response(iter([b"abc"]), headers={"Content-Length": "2"})


@app.before_request
def mark() -> None:
    g.seen = getattr(g, "seen", 0) + 1


@app.after_request
def show_mark(response: Response) -> Response:
    response.headers["X-Seen"] = str(g.seen)
    return response


def create(prefix: str = "") -> Any:
    """A factory, as `app: module:create()` names it: the application behind one proxy."""
    return ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1 if prefix else 0)


fixed = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
