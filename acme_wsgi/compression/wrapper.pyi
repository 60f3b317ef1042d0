from collections.abc import Callable
from typing import Any

from acme_wsgi.config.schema.content import Compression
from acme_wsgi.http.writer import Response

Handler = Callable[[Any], Response]

def with_compression(handler: Handler, settings: Compression) -> Handler: ...
