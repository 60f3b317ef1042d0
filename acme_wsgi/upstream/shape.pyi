from typing import Any

from acme_wsgi.config.schema.routes import Rewrite, RouteHeaders
from acme_wsgi.upstream.target import Target

NO_BODY: int
CHUNKED: int

def learn_name(key: str) -> bytes | None: ...

class Shaper:
    @property
    def hidden(self) -> frozenset[str]: ...
    def __init__(self, headers: RouteHeaders, rewrite: Rewrite | None, keep: bool) -> None: ...
    def target(self, environ: dict[str, Any], base: str) -> str: ...
    def head(
        self,
        request: Any,
        target: Target,
        length: int,
        *,
        upgrade: bool = False,
        expect: bool = False,
    ) -> bytes: ...
