class ChunkedDecoder:
    done: bool
    consumed_total: int
    def feed(self, data: bytes) -> bytes: ...
