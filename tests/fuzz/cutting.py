"""Ways to cut a stream into what single reads of a connection give. Knows nothing of what is in it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from tests.unit.http.receiver import single_bytes

BYTE_BY_BYTE = 300  # bytes of a stream; longer ones are cut less often, since each cut reads the head again


def cuts(data: bytes) -> Iterable[Iterable[bytes]]:
    """Several ways to cut the stream, chosen by its content so that a finding repeats."""
    seed = zlib.crc32(data)
    position = seed % (len(data) + 1)
    yield data[:position], data[position:]
    step = 1 + seed // 7 % 61
    if len(data) <= BYTE_BY_BYTE:
        yield single_bytes(data)
    else:
        step += len(data) // 50
    yield (data[index : index + step] for index in range(0, len(data), step))
