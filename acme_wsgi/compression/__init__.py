"""Content codings: what a client takes, what encodes it, and what goes around a handler.

Law: a body is encoded at most once. Which coding fits a request is decided in `negotiate` alone, what a level
means in `encoders` alone. Knows no socket, no route and no file but those that an application hands over.
"""

from acme_wsgi.compression.encoders import Encoder, compress, costly, encoder, extension, tokens
from acme_wsgi.compression.negotiate import negotiate, refuses_identity
from acme_wsgi.compression.types import compressible, may_transform

__all__ = [
    "Encoder",
    "compress",
    "compressible",
    "costly",
    "encoder",
    "extension",
    "may_transform",
    "negotiate",
    "refuses_identity",
    "tokens",
]
