/* The grammar of fields and targets, byte by byte (RFC 9110 5, RFC 9112 3, RFC 3986 3.2.2).

   Law: says what a byte or a span of bytes may be. Static and inline, because it is asked for every byte that
   comes in and every header that goes out. */

#ifndef ACME_GRAMMAR_H
#define ACME_GRAMMAR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    TCHAR = 1,    /* a token's (RFC 9110 5.6.2) */
    TARGET = 2,   /* a request-target's: 0x21 to 0x7E without "#" */
    REG_NAME = 4, /* a host name's: unreserved (RFC 3986 2.3) */
    HEX = 8
};

static const unsigned char CLASS[256] = {
    [0x21 ... 0x7E] = 2,
    ['!'] = 3, ['#'] = 1, ['$'] = 3, ['%'] = 3, ['&'] = 3, ['\''] = 3, ['*'] = 3, ['+'] = 3, ['^'] = 3,
    ['`'] = 3, ['|'] = 3, ['-'] = 7, ['.'] = 7, ['_'] = 7, ['~'] = 7,
    ['0' ... '9'] = 15, ['A' ... 'F'] = 15, ['a' ... 'f'] = 15, ['G' ... 'Z'] = 7, ['g' ... 'z'] = 7,
};

static inline unsigned char lower_case(unsigned char c) {
    return c | (((unsigned char)(c - 'A') < 26) << 5);
}

static inline int hex_value(unsigned char c) {
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

static inline int is_token(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!(CLASS[(unsigned char)text[i]] & TCHAR)) return 0;
    return length > 0;
}

/* Case-insensitive comparison with a name given in lower case. */
static inline int same_name(const char *text, size_t length, const char *lower, size_t lower_length) {
    if (length != lower_length) return 0;
    for (size_t i = 0; i < length; i++)
        if (lower_case((unsigned char)text[i]) != (unsigned char)lower[i]) return 0;
    return 1;
}

/* FNV-1a of a name in lower case, step by step and whole. */
static inline uint32_t name_hash_step(uint32_t hash, unsigned char c) {
    return (hash ^ lower_case(c)) * 16777619u;
}

static inline uint32_t name_hash(const char *name) {
    uint32_t hash = 2166136261u;
    while (*name) hash = name_hash_step(hash, (unsigned char)*name++);
    return hash;
}

static inline int judge_bytes(const char *text, size_t length) {
    unsigned char high = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != 0x09) || c == 0x7F) return -1;
        high |= c;
    }
    return !(high & 0x80);
}

/* Is it a field value? -1: no; 1: yes, in ASCII; 0: yes, with bytes above. Eight bytes at a time: a byte below 0x20
   or equal to 0x7F leaves its top bit in `odd`; what borrows or tabs leave there too is looked at one by one. */
static inline int judge_value(const char *text, size_t length) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    uint64_t high = 0;
    int verdict = 1;
    while (length >= 8) {
        uint64_t word, deleted, odd;
        memcpy(&word, text, 8);
        deleted = word ^ (ones * 0x7F);
        odd = ((word - ones * 0x20) & ~word) | ((deleted - ones) & ~deleted);
        if (odd & tops) {
            int judged = judge_bytes(text, 8);
            if (judged < 0) return -1;
            verdict &= judged;
        }
        high |= word;
        text += 8;
        length -= 8;
    }
    if (length) {
        int judged = judge_bytes(text, length);
        if (judged < 0) return -1;
        verdict &= judged;
    }
    return verdict && !(high & tops);
}

static inline int is_field_value(const char *text, size_t length) {
    return judge_value(text, length) >= 0;
}

#endif
