# grammar.h, for Cython.

from libc.stdint cimport uint32_t

cdef extern from "grammar.h" nogil:
    enum:
        TCHAR
        TARGET
        REG_NAME
        HEX
    const unsigned char CLASS[256]
    int hex_value(unsigned char c) noexcept
    bint is_token(const char *text, size_t length) noexcept
    bint same_name(const char *text, size_t length, const char *lower, size_t lower_length) noexcept
    bint alike(const char *one, const char *other, size_t length) noexcept
    uint32_t name_hash_step(uint32_t hashed, unsigned char c) noexcept
    uint32_t name_hash(const char *name) noexcept
    int judge_value(const char *text, size_t length) noexcept
    bint is_field_value(const char *text, size_t length) noexcept
