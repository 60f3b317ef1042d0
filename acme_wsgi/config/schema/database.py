"""The keys of ``database``: pooled connections and cached queries.

Its law: declarations only.
"""

from __future__ import annotations

from typing import ClassVar

from acme_wsgi.config import grammar
from acme_wsgi.config.keys import REQUIRED, key, section

KB, MB = 1 << 10, 1 << 20


@section
class QueryRule:
    """How long the result of some statements is kept."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("pattern",)

    pattern: str = key(
        REQUIRED, "regular expression over the normalised statement (literals and placeholders as ?)",
        check=grammar.statement_pattern, example='"SELECT .* FROM config"',
    )  # fmt: skip
    ttl: float = key(REQUIRED, "lifetime of the result", unit="duration", example="300s")


@section
class QueryCache:
    """Results of SELECTs, shared by all workers."""

    enabled: bool = key(False, "cache results")
    size: int = key(64 * MB, "size, over all workers together", unit="size", minimum=64 * KB)
    cache_selects: bool = key(True, "with no rule matching, cache SELECTs for ttl; false = rules only")
    ttl: float = key(60.0, "lifetime of a result that no rule names", unit="duration")
    rules: tuple[QueryRule, ...] = key((), "lifetimes by statement")


@section
class Database:
    """SQL for handlers."""

    url: str | None = key(
        None, "postgresql://... or sqlite:///...; unset = an SQLite file in server.runtime_dir",
        check=grammar.database_url, secret=True, default_text="SQLite in server.runtime_dir",
        example="postgresql://shop:${DB_PASSWORD}@db.internal/shop",
    )  # fmt: skip
    pool_size: int = key(10, "connections of one worker", minimum=1, maximum=10_000)
    min_idle: int = key(1, "idle connections kept open", maximum=10_000)
    max_lifetime: float = key(1800.0, "a connection is replaced when this old", unit="duration", minimum=1)
    connect_timeout: float = key(5.0, "how long connecting may take", unit="duration", minimum=0.01)
    query_timeout: float = key(
        10.0, "a query over it is cancelled on the server and raises", unit="duration", minimum=0.01
    )
    query_cache: QueryCache = key(QueryCache(), "results of SELECTs")
