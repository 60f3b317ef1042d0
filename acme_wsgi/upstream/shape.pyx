# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The head of a request as a backend gets it, made anew from the environ: nothing is copied from the wire.

    request line, Host, the client's fields less those of the connection, what we say of the client, the route's own

Fields that concern one connection only (RFC 9110 7.6.1) stay behind, and so does what an untrusted client says of
itself in X-Forwarded-* and Forwarded. docs/proxy.md is the promise kept here.

Law: an environ in, bytes out. Every name is a token and every value has no control characters, whoever put it there; a
value that can't be sent raises ValueError; a path that a rewrite leads astray, and a Host that the route's variables
make none, HTTPError. Knows no socket, and of the backend only its Target.
"""

import re
from urllib.parse import quote

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from acme_wsgi.config import templates
from acme_wsgi.errors import HTTPError
from acme_wsgi.http.forwarded import continued

from acme_wsgi.http.grammar cimport CLASS, TARGET, TCHAR, is_field_value, is_token
from acme_wsgi.http.h1 cimport read_authority
from acme_wsgi.http.writer cimport Scratch

cdef extern from "Python.h":
    int PyDict_Next(object mapping, Py_ssize_t *at, PyObject **key, PyObject **value)
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL
    int PyUnicode_CheckExact(object text)
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyGC_Disable()
    int PyGC_Enable()
    char *PyBytes_AS_STRING(object data)
    Py_ssize_t PyBytes_GET_SIZE(object data)

NO_BODY = -2
"""In place of a length: the request has no body, and says nothing of one."""

CHUNKED = -1
"""In place of a length: nobody knows it."""

# Of the connection, or made anew below.
_NOT_PASSED = frozenset((
    "HTTP_HOST", "HTTP_CONNECTION", "HTTP_KEEP_ALIVE", "HTTP_PROXY_CONNECTION", "HTTP_PROXY_AUTHORIZATION",
    "HTTP_PROXY_AUTHENTICATE", "HTTP_TE", "HTTP_TRAILER", "HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE", "HTTP_EXPECT",
    "HTTP_HTTP2_SETTINGS", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED",
    "HTTP_VIA", "HTTP_X_REQUEST_ID", "HTTP_CONTENT_LENGTH",
))
_OPTIONS = frozenset(("close", "keep-alive", "upgrade", ""))     # of Connection, which name no field to be dropped
_MOST_NAMES = 2048

# environ key -> what stands before the value, None for what isn't a field that is passed on.
cdef dict names = {"CONTENT_TYPE": b"Content-Type: "}
# The same for what only a trusted proxy may say.
cdef dict trusted_names = {}

# RFC 3986 3.3: what may stand for itself in a path.
_PATH_SAFE = "/!$&'()*+,;=:@~-._"
# Stands for an escaped slash: neither a byte of a path nor a text decoded from one is this character.
_SLASH = "\ud800"
_SLASHES = re.compile("//+")
_DOTS = re.compile(r"/\.\.?(?:/|\Z)")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")

out = Scratch()         # nothing that might switch greenlets runs while it is being filled


cdef bytes spelt(str key):
    """What stands before the value of a field, by its environ's key; None for what is no field's name."""
    cdef bytes name = key[5:].replace("_", "-").title().encode("latin-1")
    return name + b": " if is_token(name, len(name)) else None


cdef bytes forwarded_name(str key):
    """The same for what only a trusted proxy may say; None for other keys."""
    return spelt(key) if key.startswith("HTTP_X_FORWARDED_") and key not in _NOT_PASSED else None


def learn_name(str key not None):
    """What stands before the value of an environ's key in the head, None for nothing."""
    cdef bytes before = None
    cdef dict table = names
    if key.startswith("HTTP_") and key not in _NOT_PASSED:
        before = spelt(key)
        if key.startswith("HTTP_X_FORWARDED_"):
            table = trusted_names
            if len(names) < _MOST_NAMES:
                names[key] = None
    elif key in names:
        return names[key]
    if len(table) < _MOST_NAMES:
        table[key] = before
    return before if table is names else None


cdef int put_str(object text) except -1:
    """Text of one byte a character; it must be fit for a field."""
    cdef const char *data
    if not PyUnicode_CheckExact(text) or PyUnicode_KIND(text) != 1:
        raise ValueError(f"not a field value: {text!a:.120}")
    data = <const char *>PyUnicode_DATA(text)
    if not is_field_value(data, PyUnicode_GET_LENGTH(text)):
        raise ValueError(f"a control character in a field value: {text!a:.120}")
    return out.put(data, PyUnicode_GET_LENGTH(text))


cdef int put_word(object text, int kind) except -1:
    """A part of the request line: of characters of that kind only, or what follows is another part."""
    cdef const unsigned char *data
    cdef Py_ssize_t at, length
    if not PyUnicode_CheckExact(text) or PyUnicode_KIND(text) != 1:
        raise ValueError(f"not for a request line: {text!a:.120}")
    data = <const unsigned char *>PyUnicode_DATA(text)
    length = PyUnicode_GET_LENGTH(text)
    for at in range(length + (length == 0)):      # an empty one ends in a NUL, which is of no kind
        if not CLASS[data[at]] & kind:
            raise ValueError(f"not for a request line: {text!a:.120}")
    return out.put(<const char *>data, length)


cdef inline int put_bytes(object data) except -1:
    return out.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline int end_line() except -1:
    return out.put(b"\r\n", 2)


cdef int put_node(object address) except -1:
    """An address as Forwarded spells it (RFC 7239 6)."""
    if not address:
        return out.put(b"unknown", 7)
    if ":" in address:
        out.put(b'"[', 2)
        put_str(address)
        return out.put(b']"', 2)
    return put_str(address)


cdef int put_quoted(object text) except -1:
    out.put(b'"', 1)
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    put_str(text)
    return out.put(b'"', 1)


cdef class Shaper:
    """What a route makes of its requests.

    headers: the route's RouteHeaders. rewrite: its Rewrite or None. keep: the connection is to live on afterwards.
    """

    def __init__(self, headers, rewrite, bint keep):
        values = [(name, templates.header(value)) for name, value in headers.add]
        self.host = next((parts for name, parts in values if name.lower() == "host"), None)
        self.added = tuple((name.encode("ascii") + b": ", parts) for name, parts in values if name.lower() != "host")
        gone = [*headers.remove, *(name for name, _ in headers.add)]
        self.hidden = frozenset(environ_key(name) for name in gone)
        self.authorizes = any(name.lower() == "authorization" for name, _ in headers.add)
        self.pattern = re.compile(rewrite.from_) if rewrite is not None else None
        self.replacement = templates.rewrite(rewrite.to, self.pattern) if rewrite is not None else ()
        self.keep = keep

    # ---- the request line -------------------------------------------------------------------------

    def target(self, dict environ not None, str base not None):
        """The request target: `base`, the backend's own path, then the request's, rewritten, then its query."""
        cdef str raw = environ["REQUEST_URI"]
        cdef str path = environ["PATH_INFO"]
        cdef str query
        if self.pattern is None and raw is path and not base:
            return path
        if self.pattern is not None:
            path = self.rewritten(raw, path)
        elif raw.startswith(path) and (len(raw) == len(path) or raw[len(path)] == "?"):
            return base + raw
        else:
            path = escaped_path(raw, path)
        query = environ["QUERY_STRING"]
        return f"{base}{path}?{query}" if query else base + path

    def rewritten(self, str raw, str path):
        """The route's `rewrite` of the path, escaped. It sees text, in which an escaped slash is no slash.

        What it makes is normal again, as the path was: what stood before a group may make /../ of it.
        """
        kept = with_slashes(raw, path)
        shown = kept if kept is not None else path
        text = shown if shown.isascii() else _SLASH.join(
            part.encode("latin-1").decode("utf-8", "surrogateescape") for part in shown.split(_SLASH))
        found = self.pattern.search(text)
        if found is None:
            return escaped(shown)
        place = "".join([part if type(part) is str else found[part.number] or "" for part in self.replacement])
        if not place.startswith("/"):
            place = "/" + place
        if "//" in place:
            place = _SLASHES.sub("/", place)
        if "/." in place.replace(_SLASH, "/") and _DOTS.search(place.replace(_SLASH, "/")):
            raise HTTPError(400, "The path leads out of the place that it stands for.")
        return "%2F".join(
            quote(part.encode("utf-8", "surrogateescape"), safe=_PATH_SAFE) for part in place.split(_SLASH))

    # ---- the whole head ---------------------------------------------------------------------------

    def head(self, request, target, int64_t length, *, bint upgrade=False, bint expect=False):
        """The request's head as bytes.

        request: a handler's Request. target: the backend's Target. length: of the body, or CHUNKED or NO_BODY. upgrade:
        its Upgrade is passed on. expect: the client waits for a 100 (Continue). Raises ValueError for a value that can't
        be sent.
        """
        self.write(request, target, length, upgrade, expect)
        return out.getvalue()

    cdef int write(self, request, target, int64_t length, bint upgrade, bint expect) except -1:
        """The same into the scratch buffer, where it stays until anybody else writes a head."""
        cdef dict environ = request.environ
        cdef str peer = environ.get("acme.peer")
        cdef object hidden = self.hidden
        cdef str line = self.target(environ, target.prefix)
        cdef str connection = environ.get("HTTP_CONNECTION")
        cdef bint collecting
        if connection is not None:
            hidden = with_named(hidden, connection)
        # A collection might run anybody's __del__, which might block, and others would write into the scratch buffer.
        collecting = PyGC_Disable()
        try:
            return self.put_all(request, environ, target, line, hidden, peer, length, upgrade, expect)
        finally:
            if collecting:
                PyGC_Enable()

    cdef int put_all(self, request, dict environ, target, str line, hidden, str peer, int64_t length, bint upgrade,
                     bint expect) except -1:
        out.used = 0
        put_word(request.method, TCHAR)
        out.put(b" ", 1)
        put_word(line, TARGET)
        out.put(b" HTTP/1.1\r\n", 11)
        self.put_host(request, environ, target)
        put_fields(environ, hidden, peer is not None)
        put_client(environ, hidden, peer)
        if "HTTP_X_REQUEST_ID" not in hidden:
            out.put(b"X-Request-Id: ", 14)
            put_str(request.request_id)
            end_line()
        if target.authorization is not None and not self.authorizes \
                and ("HTTP_AUTHORIZATION" not in environ or "HTTP_AUTHORIZATION" in hidden):
            out.put(b"Authorization: ", 15)
            put_str(target.authorization)
            end_line()
        self.put_added(request, environ)
        if expect:
            out.put(b"Expect: 100-continue\r\n", 22)
        return self.put_framing(environ, length, upgrade)

    cdef int put_host(self, request, dict environ, target) except -1:
        """Host comes first (RFC 9110 7.2): the client's, unless the route sets another."""
        out.put(b"Host: ", 6)
        if self.host is not None:
            self.put_own_host(request, environ, target)
        else:
            put_str(environ.get("HTTP_HOST") or target.authority)
        return end_line()

    cdef int put_own_host(self, request, dict environ, target) except -1:
        """The route's Host for this request. What is none never leaves: each server would read it in its own way."""
        cdef size_t begin = out.used
        cdef uint32_t length
        put_parts(self.host, request, environ)
        if out.used == begin:
            return put_str(target.authority)
        if not read_authority(out.data + begin, out.used - begin, False, &length):
            raise HTTPError(400, "No Host for the server behind this one can be made of what this request says.")
        return 0

    cdef int put_added(self, request, dict environ) except -1:
        for name, parts in self.added:
            put_bytes(name)
            put_parts(parts, request, environ)
            end_line()
        return 0

    cdef int put_framing(self, dict environ, int64_t length, bint upgrade) except -1:
        """How long the body is, and what becomes of the connection; with the empty line."""
        cdef bytes number
        if length >= 0:
            number = b"Content-Length: %d\r\n" % length
            put_bytes(number)
        elif length == -1:
            out.put(b"Transfer-Encoding: chunked\r\n", 28)
        if upgrade:
            out.put(b"Connection: Upgrade\r\nUpgrade: ", 30)
            put_str(environ["HTTP_UPGRADE"])
            end_line()
        elif not self.keep:
            out.put(b"Connection: close\r\n", 19)
        return end_line()


cdef int put_fields(dict environ, hidden, bint trusted) except -1:
    """The client's own fields, as far as they are for whoever answers."""
    cdef Py_ssize_t at = 0
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *known
    cdef object before
    cdef bint some_hidden = len(hidden) > 0
    while PyDict_Next(environ, &at, &key, &value):
        known = PyDict_GetItemWithError(names, <object>key)
        before = <object>known if known != NULL else learn_name(<object>key)
        if before is None:
            if not trusted:
                continue
            before = trusted_names.get(<object>key)
            if before is None and len(trusted_names) >= _MOST_NAMES:
                before = forwarded_name(<object>key)    # others' inventions have filled the table
            if before is None:
                continue
        if some_hidden and <object>key in hidden:
            continue
        put_bytes(before)
        put_str(<object>value)
        end_line()
    return 0


cdef int put_client(dict environ, hidden, str peer) except -1:
    """Who asks, as we know it: X-Forwarded-*, Forwarded (RFC 7239), Via (RFC 9110 7.6.3).

    A trusted peer's lists go on with the peer's own address, as far as we believe that it wrote them; anybody else's
    begin with us.
    """
    cdef str address = peer if peer is not None else environ["REMOTE_ADDR"]
    cdef str host = environ.get("HTTP_HOST", "")
    cdef str scheme = environ.get("wsgi.url_scheme", "http")
    cdef object before
    if address == "unix:":
        address = ""
    if "HTTP_X_FORWARDED_FOR" not in hidden:
        before = environ.get("HTTP_X_FORWARDED_FOR") if peer is not None else None
        if before or address:
            out.put(b"X-Forwarded-For: ", 17)
            if before:
                put_str(before)
                if address:
                    out.put(b", ", 2)
            put_str(address)
            end_line()
    if "HTTP_X_FORWARDED_PROTO" not in hidden:
        out.put(b"X-Forwarded-Proto: ", 19)
        put_str(scheme)
        end_line()
    if host and "HTTP_X_FORWARDED_HOST" not in hidden:
        out.put(b"X-Forwarded-Host: ", 18)
        put_str(host)
        end_line()
    if "HTTP_FORWARDED" not in hidden:
        out.put(b"Forwarded: ", 11)
        before = continued(environ) if peer is not None and "HTTP_FORWARDED" in environ else None
        if before:
            put_str(before)
            out.put(b", ", 2)
        out.put(b"for=", 4)
        put_node(address)
        if host:
            out.put(b";host=", 6)
            put_quoted(host)
        out.put(b";proto=", 7)
        put_str(scheme)
        end_line()
    if "HTTP_VIA" not in hidden:
        out.put(b"Via: ", 5)
        before = environ.get("HTTP_VIA")
        if before:
            put_str(before)
            out.put(b", ", 2)
        if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
            out.put(b"1.0 acme", 8)
        else:
            out.put(b"1.1 acme", 8)
        end_line()
    return 0


cdef int put_parts(tuple parts, request, dict environ) except -1:
    """A value of `headers.add`, its variables filled in."""
    for part in parts:
        put_str(part if type(part) is str else value_of(part.name, request, environ))
    return 0


cdef str value_of(str variable, request, dict environ):
    """What a variable of `headers.add` stands for."""
    if variable == "remote_addr":
        return environ.get("REMOTE_ADDR", "")
    if variable == "scheme":
        return environ.get("wsgi.url_scheme", "http")
    if variable == "host":
        return environ.get("HTTP_HOST", "")
    return request.request_id


cdef str environ_key(str name):
    """The environ's key of a field's name."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


cdef object with_named(object hidden, str connection):
    """And those that Connection names; what we say ourselves isn't the client's to remove."""
    options = {option.strip().lower() for option in connection.split(",")} - _OPTIONS
    if not options:
        return hidden
    named = {environ_key(option) for option in options if option.isascii()}
    return hidden | (named - _NOT_PASSED)


cdef str escaped_path(str raw, str path):
    """The normal path, escaped again."""
    kept = with_slashes(raw, path)
    return escaped(kept if kept is not None else path)


cdef object with_slashes(str raw, str path):
    """The path with each %2F of the client's still as _SLASH; None if it has none, or if more had to be made normal.

    Where only escapes had to be decoded, an escaped slash is a character of its segment, and may stay one.
    """
    begin = raw.find("/", raw.find("//") + 2) if not raw.startswith("/") else 0
    given = raw[begin:].partition("?")[0] if begin >= 0 else ""
    if "%2f" not in given.lower():
        return None
    parts = _ESCAPE.split(given)          # text, digits, text, ...
    parts[1::2] = [chr(int(digits, 16)) for digits in parts[1::2]]
    if "".join(parts) != path:
        return None
    parts[1::2] = [_SLASH if one == "/" else one for one in parts[1::2]]
    return "".join(parts)


cdef str escaped(str path):
    """A path as it stands in a request line: bytes as latin-1 text, and _SLASH."""
    if _SLASH not in path:
        return quote(path, safe=_PATH_SAFE, encoding="latin-1")
    return "%2F".join(quote(part, safe=_PATH_SAFE, encoding="latin-1") for part in path.split(_SLASH))
