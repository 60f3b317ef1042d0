import os
from collections.abc import Mapping

from acme_wsgi.files.beneath import Beneath
from acme_wsgi.files.changes import Changes
from acme_wsgi.files.openfile import OpenFile

OVERHEAD: int

class FileTable:
    def __init__(
        self,
        root: Beneath,
        changes: Changes,
        *,
        entries: int = ...,
        memory: int = ...,
        descriptors: int | None = ...,
        interval: float = ...,
    ) -> None: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def descriptors(self) -> int: ...
    @property
    def max_entries(self) -> int: ...
    @property
    def max_memory(self) -> int: ...
    @property
    def max_descriptors(self) -> int: ...
    def get(self, path: str) -> object: ...
    def verify(self) -> None: ...
    def keep(
        self,
        path: str,
        value: object,
        depends: Mapping[bytes, OpenFile | os.stat_result | None],
        *,
        memory: int,
        descriptors: int,
    ) -> bool: ...
    def forget(self, path: str) -> None: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...
