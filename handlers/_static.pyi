from collections.abc import Callable, Mapping

from acme_wsgi.files.cache import FileTable
from acme_wsgi.files.guard import Seen
from acme_wsgi.files.openfile import OpenFile
from acme_wsgi.handlers import Handler, Request
from acme_wsgi.http.writer import FileBody, Prepared, Response

class Variant:
    @property
    def head(self) -> Prepared | list[tuple[str, str]]: ...
    @property
    def unmodified(self) -> Prepared: ...
    @property
    def body(self) -> bytes | FileBody: ...
    @property
    def file(self) -> OpenFile | None: ...
    @property
    def token(self) -> str: ...
    @property
    def etag(self) -> str | None: ...
    @property
    def modified(self) -> int | None: ...
    @property
    def media_type(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    def __init__(
        self,
        head: Prepared | list[tuple[str, str]],
        unmodified: Prepared,
        body: bytes | FileBody,
        file: OpenFile | None,
        *,
        token: str,
        etag: str | None,
        modified: int | None,
        media_type: str,
        exact: bool,
    ) -> None: ...
    def is_current(self) -> bool: ...

class Resource:
    @property
    def plain(self) -> Variant: ...
    @property
    def coded(self) -> dict[str, Variant]: ...
    @property
    def offered(self) -> tuple[str, ...]: ...
    @property
    def depends(self) -> Mapping[bytes, Seen]: ...
    @property
    def descriptors(self) -> int: ...
    memory: int
    retired: bool
    def __init__(
        self,
        plain: Variant,
        coded: dict[str, Variant],
        offered: tuple[str, ...],
        depends: Mapping[bytes, Seen],
        *,
        memory: int,
        descriptors: int,
    ) -> None: ...
    def is_current(self) -> bool: ...
    def remember(self, accept_encoding: str | None, variant: Variant) -> None: ...

def make_front(table: FileTable, slow: Callable[[Request, Resource | None], Response]) -> Handler: ...
