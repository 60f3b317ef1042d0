/* What lies in the shared memory of the board of backends, and where.

   Law: structures only. Everything is reached by index from a base, nothing by a pointer that is itself in the
   memory, and no index read from it is used unchecked: any worker might have spoilt it. Every number is an aligned
   word that is read and written whole. Times are nanoseconds of CLOCK_MONOTONIC, 0 = never. */

#ifndef ACME_BOARD_LAYOUT_H
#define ACME_BOARD_LAYOUT_H

#include <stdint.h>

enum { ROUND_ROBIN, LEAST_CONN, IP_HASH };

enum {
    MOST_MEMBERS = 64,      /* of one group: a pick keeps them as the bits of a word */
    MOST_WEIGHT = 1 << 20,  /* so that no product below leaves 64 bits */
    FULL = 256,             /* the factor of a peer that takes its whole share */
    FLOOR = 16,             /* ... and of one that has just come back */
    KEY_SIZE = 16,
    TEXT_SIZE = 128
};

/* The board's own facts. */
typedef struct {
    uint64_t lock;          /* over the election */
    int64_t elected;        /* pid of the worker that runs the checks, 0 = nobody */
    int64_t generation;     /* the configuration it serves */
    int64_t elected_seen;   /* when it last said that it is there */
    int64_t used;           /* worker slots, from the first, that have ever begun something */
    int64_t slow_start;     /* how long a peer that came back gets less than its share */
    int64_t frozen;         /* where the clock stands, 0 = it runs; for tests */
} BoardEntry;

/* A backend as a server. `serial` is odd while the entry is in use, and grows with each use: a handle knows the one
   it was made for. */
typedef struct {
    /* what a pick reads: one cache line, seldom written */
    uint32_t serial;
    int32_t down;           /* taken out by checks */
    int64_t draining;       /* since when */
    int64_t removed;        /* since when no configuration in force has it */
    int64_t open_until;     /* the pause of the open circuit; 0 = closed */
    int64_t trial;          /* when the one trial request was picked, 0 = none is under way */
    int64_t slow;           /* when it came back, 0 = it takes its whole share */
    uint64_t seed;          /* the key, mixed, for rendezvous hashing */
    int32_t fails;          /* in a row, of requests */
    int32_t refused;        /* connect errors in a row */
    /* what requests write */
    uint64_t requests, failures, connect_errors, retries;
    uint64_t latency_sum;
    int64_t latency;        /* moving average, 0 = none yet */
    int32_t unhealthy, healthy; /* thresholds, of which every failure reads */
    uint64_t spare;
    /* what changes with its state; under the lock */
    uint64_t lock;
    int64_t since;          /* the latest change of state */
    int64_t opened;         /* the circuit, for the latest time */
    int64_t pause;          /* how long it is open this time */
    uint64_t opens;         /* how often it has been opened */
    uint64_t checks_good, checks_bad;
    int32_t good, bad;      /* checks in a row */
    int64_t checked;        /* when the latest check ended */
    unsigned char key[KEY_SIZE];
    char text[TEXT_SIZE];   /* what it found, for people; ends with NUL */
} PeerEntry;

/* A peer in a group. `current` is in 1/256ths, so that a peer in slow start can take part of a turn. */
typedef struct {
    int64_t current;
    int32_t weight;
    int32_t effective;      /* lowered by failures, brought back by turns */
    int32_t peer;           /* index of the peer, and which use of that entry is meant */
    uint32_t peer_serial;
} MemberEntry;

typedef struct {
    uint64_t lock;          /* over the `current` and `effective` of its members */
    uint32_t serial;
    int32_t algorithm;
    int32_t first, size;    /* its members */
    unsigned char key[KEY_SIZE];
    uint64_t spare[2];
} GroupEntry;

/* What one worker holds of one peer. The cells of a worker lie together: no two workers write to one cache line. */
typedef struct {
    int32_t active;
    int32_t connections;
} Cell;

/* Where everything is, for one process. */
typedef struct {
    BoardEntry *board;
    PeerEntry *peers;
    GroupEntry *groups;
    MemberEntry *members;
    Cell *cells;            /* [slot][peer] */
    int32_t slots, peer_count, group_count, member_count;
} Places;

/* A group as one handle knows it: copied from the memory when the handle was made, so that a pick follows no index
   that somebody else could have changed. */
typedef struct {
    Places at;
    GroupEntry *group;
    MemberEntry *members;
    uint32_t serial;
    int32_t algorithm, size;
    int32_t weight[MOST_MEMBERS];
    int32_t peer[MOST_MEMBERS];
    uint32_t peer_serial[MOST_MEMBERS];
} GroupView;

#endif
