"""Runs a parser over a copy of its input that ends where the input ends, so that AddressSanitizer sees a byte too far.

A Python bytes object has a NUL behind its last byte, and reading that one is no error to a sanitizer; in a connection's
buffer it is. Knows the C interface of acme_wsgi.http.h1, .reply and .chunked only; built by tests/fuzz/run.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from acme_wsgi.http.chunked cimport Chunked, chunked_next, chunked_start
from acme_wsgi.http.h1 cimport Head, normalise_path, read_head
from acme_wsgi.http.reply cimport CHUNKED, Reply, extent, read_reply, reply_headers, reply_status


def walk(bytes data not None, size_t max_size):
    """Read a head, normalise its path and decode its chunks, each from memory of exactly its size."""
    cdef size_t length = len(data)
    cdef char *copy = exactly(data, length)
    cdef Head head
    # A message of no bytes lies behind the memory's end, where nothing may be read.
    if read_head(copy if length else copy + 1, length, max_size, &head) == 1:
        walk_path(&head)
        walk_chunks(copy + head.consumed, length - head.consumed)
    free(copy)


def walk_reply(bytes data not None, size_t max_size):
    """Read a reply's head, make text of it and decode its chunks, each from memory of exactly its size."""
    cdef size_t length = len(data)
    cdef char *copy = exactly(data, length)
    cdef Reply reply
    if read_reply(copy if length else copy + 1, length, max_size, &reply) == 1:
        assert reply.consumed <= length
        reply_status(&reply)
        reply_headers(&reply)
        if extent(&reply, False) == CHUNKED:
            walk_chunks(copy + reply.consumed, length - reply.consumed)
    free(copy)


cdef char *exactly(const char *data, size_t length) except NULL:
    """A copy in memory of exactly its size, or of one byte if it has none; for the caller to free."""
    cdef char *copy = <char *>malloc(length if length else 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, data, length)
    return copy


cdef int walk_path(Head *head) except -1:
    cdef char *path = exactly(head.path, head.path_length)
    cdef char *normal = <char *>malloc(head.path_length + 1)
    cdef Py_ssize_t written
    written = normalise_path(path, head.path_length, normal)
    assert written <= <Py_ssize_t>head.path_length + 1
    assert written < 0 or head.asterisk or normal[0] == c'/'
    free(path)
    free(normal)
    return 0


cdef int walk_chunks(const char *data, size_t length) except -1:
    cdef Chunked body
    cdef size_t used = 0, found = 0
    cdef const char *piece = NULL
    cdef int verdict = 1
    chunked_start(&body)
    while verdict == 1:
        verdict = chunked_next(&body, data, length, &used, &piece, &found)
        assert used <= length
        if verdict == 1:
            assert piece >= data and piece + found <= data + length and found > 0
        data += used
        length -= used
    return 0
