/* Who may be given requests: checks, marks from traffic, the circuit and the slow start of one backend.

   Law: the only place that changes a peer's state. Each change is a few words under the peer's lock, stored in an
   order in which a reader finds a sound peer at any moment.

       closed --unhealthy_threshold failures in a row, another member usable--> open
       open --the pause is over--> half-open (one trial at a time, forgotten after TRIAL_LASTS; for as long again only
                                   by a request that can be repeated elsewhere, then by any)
       half-open --the trial failed--> open, the pause doubled
       half-open --the trial succeeded--> closed, slow start
       up --unhealthy_threshold bad checks in a row--> down
       down or open --healthy_threshold good checks in a row--> up and closed, slow start */

#ifndef ACME_BOARD_HEALTH_H
#define ACME_BOARD_HEALTH_H

#include "board_layout.h"
#include "board_lock.h"

#define SECOND ((int64_t)1000000000)
#define FIRST_PAUSE SECOND
#define LONGEST_PAUSE (60 * SECOND)
#define TRIAL_LASTS (10 * SECOND)

enum { UP, DOWN, OPEN, HALF_OPEN, DRAINING, SLOW_START };

static inline int64_t board_now(const BoardEntry *board) {
    int64_t frozen = LOAD(board->frozen);
    return frozen ? frozen : clock_ns();
}

/* Whether a handle's entry is still the one it was made for. */
static inline int is_current(const uint32_t *serial, uint32_t known) {
    return __atomic_load_n(serial, __ATOMIC_ACQUIRE) == known;
}

/* Up by the checks and not draining: what it may be given in need, whatever its circuit says. */
static inline int is_standing(const PeerEntry *peer) {
    return !LOAD(peer->down) && !LOAD(peer->draining);
}

static inline int is_closed(const PeerEntry *peer) {
    return LOAD(peer->open_until) == 0;
}

static inline int trial_under_way(const PeerEntry *peer, int64_t now) {
    int64_t trial = LOAD(peer->trial);
    return trial != 0 && now - trial < TRIAL_LASTS;
}

/* Whether an open circuit would let a trial request through. One that can't be repeated elsewhere leaves the trial to
   those that can for as long again as the circuit was open; but they may never come. */
static inline int trial_due(const PeerEntry *peer, int64_t now, int repeatable) {
    int64_t since = LOAD(peer->open_until) + (repeatable ? 0 : LOAD(peer->pause));
    return now >= since && !trial_under_way(peer, now);
}

/* Of several processes that want to send the trial request, one may. */
static inline int claim_trial(PeerEntry *peer, int64_t now) {
    int64_t seen = LOAD(peer->trial);
    if (seen != 0 && now - seen < TRIAL_LASTS) return 0;
    return __atomic_compare_exchange_n(&peer->trial, &seen, now, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* What part of its weight counts, in 1/256ths: rises over the slow start, and is whole ever after. */
static inline int factor_of(const BoardEntry *board, PeerEntry *peer, int64_t now) {
    int64_t since = LOAD(peer->slow), lasts = LOAD(board->slow_start), passed = now - since;
    if (since == 0) return FULL;
    if (passed >= lasts) {
        __atomic_compare_exchange_n(&peer->slow, &since, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
        return FULL;
    }
    return passed <= 0 ? FLOOR : FLOOR + (int)((FULL - FLOOR) * (double)passed / (double)lasts);
}

static inline void open_circuit(PeerEntry *peer, int64_t now, int64_t pause) {
    STORE(peer->pause, pause);
    STORE(peer->opened, now);
    STORE(peer->since, now);
    STORE(peer->good, 0);      /* checks that were good before say nothing about it */
    ADD(peer->opens, 1);
    STORE(peer->open_until, now + pause);
    STORE(peer->trial, 0);
}

/* Back to work: as an unknown, with a part of its share. */
static inline void come_back(PeerEntry *peer, int64_t now) {
    STORE(peer->slow, now);
    STORE(peer->since, now);
    STORE(peer->fails, 0);
    STORE(peer->refused, 0);
    STORE(peer->open_until, 0);
    STORE(peer->trial, 0);
    STORE(peer->down, 0);
}

/* A request succeeded that took so long. One that began before the circuit was opened says nothing about it. */
static inline void mark_success(const BoardEntry *board, PeerEntry *peer, int64_t took) {
    if (is_closed(peer)) {
        if (LOAD(peer->fails)) STORE(peer->fails, 0);
        if (LOAD(peer->refused)) STORE(peer->refused, 0);
        return;
    }
    uint64_t ticket = lock_take(&peer->lock);
    int64_t now = board_now(board);
    if (!is_closed(peer) && now - took >= LOAD(peer->opened) && !LOAD(peer->down)) come_back(peer, now);
    lock_drop(&peer->lock, ticket);
}

/* A request failed; `spare` says that the group has somebody else. Returns whether this opened a closed circuit. */
static int mark_failure(const BoardEntry *board, PeerEntry *peer, int64_t took, int connecting, int spare) {
    uint64_t ticket = lock_take(&peer->lock);
    int64_t now = board_now(board);
    int fails = LOAD(peer->fails), opened = 0;
    if (fails < INT32_MAX) STORE(peer->fails, ++fails);
    if (connecting && LOAD(peer->refused) < INT32_MAX) STORE(peer->refused, LOAD(peer->refused) + 1);
    if (is_closed(peer)) {
        opened = spare && fails >= LOAD(peer->unhealthy);
        if (opened) open_circuit(peer, now, FIRST_PAUSE);
    } else if (LOAD(peer->trial) != 0 && now - took >= LOAD(peer->opened)) {
        int64_t pause = LOAD(peer->pause) * 2;
        open_circuit(peer, now, pause < FIRST_PAUSE ? FIRST_PAUSE : pause > LONGEST_PAUSE ? LONGEST_PAUSE : pause);
    }
    lock_drop(&peer->lock, ticket);
    return opened;
}

/* The outcome of an active check; returns UP or DOWN when that changed the state, -1 when it didn't. */
static int mark_check(const BoardEntry *board, PeerEntry *peer, int ok) {
    uint64_t ticket = lock_take(&peer->lock);
    int64_t now = board_now(board);
    int good = ok ? LOAD(peer->good) + 1 : 0, bad = ok ? 0 : LOAD(peer->bad) + 1, change = -1;
    if (good < INT32_MAX && bad < INT32_MAX) {
        STORE(peer->good, good);
        STORE(peer->bad, bad);
    }
    STORE(peer->checked, now);
    if (good >= LOAD(peer->healthy)) STORE(peer->refused, 0);
    if (good >= LOAD(peer->healthy) && (LOAD(peer->down) || !is_closed(peer))) {
        come_back(peer, now);
        change = UP;
    } else if (bad >= LOAD(peer->unhealthy) && !LOAD(peer->down)) {
        STORE(peer->since, now);
        STORE(peer->down, 1);
        change = DOWN;
    }
    lock_drop(&peer->lock, ticket);
    return change;
}

/* What people are told. A peer that can't be reached is down to them even where it is all there is to try. */
static int state_of(const BoardEntry *board, PeerEntry *peer) {
    int64_t now = board_now(board);
    if (LOAD(peer->draining)) return DRAINING;
    if (LOAD(peer->down)) return DOWN;
    if (!is_closed(peer)) return now >= LOAD(peer->open_until) || LOAD(peer->trial) ? HALF_OPEN : OPEN;
    if (LOAD(peer->refused) >= LOAD(peer->unhealthy)) return DOWN;
    return factor_of(board, peer, now) < FULL ? SLOW_START : UP;
}

/* The smoothed round-trip time of RFC 6298 section 2, for whole responses. A lost update costs one sample. */
static inline void note_latency(PeerEntry *peer, int64_t took) {
    int64_t smoothed = LOAD(peer->latency);
    STORE(peer->latency, smoothed ? smoothed + (took - smoothed) / 8 : took);
    ADD(peer->latency_sum, (uint64_t)took);
}

#endif
