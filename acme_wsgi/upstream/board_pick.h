/* Which member of a group gets the next request.

   Law: the algorithms, over what board_health.h says of each member. A pick decides on copies and writes them back
   only while the lock is still its own: a process that was stopped in the middle and has lost the lock decides
   again, so shares stay exact even then. */

#ifndef ACME_BOARD_PICK_H
#define ACME_BOARD_PICK_H

#include <math.h>

#include "board_health.h"

#define FURTHEST ((int64_t)1 << 42)   /* from zero that a `current` can get: 64 members of MOST_WEIGHT, 256ths */
#define BIT(member) ((uint64_t)1 << (member))

/* What one pick knows of the members, by bits, and what it would write. */
typedef struct {
    uint64_t able;                    /* may be chosen */
    uint64_t trials;                  /* of these: only as the trial of a half-open circuit */
    int64_t now;                      /* 0: nobody needed the time */
    int32_t factor[MOST_MEMBERS];
    uint64_t turned;                  /* whose turn it was: the ones below are set */
    int64_t current[MOST_MEMBERS];
    int32_t effective[MOST_MEMBERS];
} Survey;

/* The peer of a member; NULL when it has left the board. */
static inline PeerEntry *peer_of(const GroupView *view, int member) {
    PeerEntry *peer = &view->at.peers[view->peer[member]];
    return is_current(&peer->serial, view->peer_serial[member]) ? peer : NULL;
}

static inline int members_of(uint64_t set) {
    return __builtin_popcountll(set);
}

static inline int first_of(uint64_t set) {
    return __builtin_ctzll(set);
}

/* Who may be chosen. Marks from traffic prefer one member to another; they never leave a group with nobody: when
   every circuit is open, circuits don't count. Whom a reload has taken out is for need alone: a worker that is not yet
   replaced may have nobody else. */
static void survey(const GroupView *view, int repeatable, Survey *found) {
    uint64_t standing = 0, closed = 0, removed = 0;
    found->trials = 0;
    found->turned = 0;
    found->now = 0;
    for (int member = 0; member < view->size; member++) {
        PeerEntry *peer = peer_of(view, member);
        found->factor[member] = FULL;
        if (!peer || !is_standing(peer)) continue;
        standing |= BIT(member);
        if (LOAD(peer->removed)) removed |= BIT(member);
        int open = !is_closed(peer), slow = LOAD(peer->slow) != 0;
        if ((open || slow) && !found->now) found->now = board_now(view->at.board);
        if (slow) found->factor[member] = factor_of(view->at.board, peer, found->now);
        if (!open) closed |= BIT(member);
        else if (trial_due(peer, found->now, repeatable)) found->trials |= BIT(member);
    }
    if (!closed) found->trials = 0;
    found->able = closed ? closed | found->trials : standing;
    if (found->able & ~removed) found->able &= ~removed;
}

/* nginx's smooth weighted round robin: everybody gains its weight, the richest pays for all. */
static int take_turns(const GroupView *view, uint64_t set, Survey *found) {
    int best = -1;
    int64_t total = 0;
    found->turned = set;
    for (; set; set &= set - 1) {
        int member = first_of(set), weight = view->weight[member];
        int64_t current = LOAD(view->members[member].current), share;
        int32_t effective = LOAD(view->members[member].effective);
        if (current > FURTHEST || current < -FURTHEST) current = 0;
        if (effective < 0 || effective > weight) effective = weight;
        share = (int64_t)effective * found->factor[member];
        total += share;
        found->current[member] = current + share;
        found->effective[member] = effective < weight ? effective + 1 : effective;
        if (best < 0 || found->current[member] > found->current[best]) best = member;
    }
    found->current[best] -= total;
    return best;
}

static int64_t active_on(const Places *at, int peer) {
    int64_t used = LOAD(at->board->used), active = 0;
    if (used > at->slots) used = at->slots;
    for (int64_t slot = 0; slot < used; slot++) {
        int32_t here = LOAD(at->cells[slot * at->peer_count + peer].active);
        active += here > 0 ? here : 0;
    }
    return active;
}

/* The fewest active requests for the weight; who ties takes turns. Fractions are compared without dividing. */
static int least_busy(const GroupView *view, uint64_t set, Survey *found) {
    int64_t fewest = 0, share = 1;
    uint64_t tied = 0;
    for (; set; set &= set - 1) {
        int member = first_of(set);
        int64_t active = active_on(&view->at, view->peer[member]);
        int64_t weight = (int64_t)view->weight[member] * found->factor[member];
        if (!tied || active * share < fewest * weight) {
            fewest = active, share = weight, tied = BIT(member);
        } else if (active * share == fewest * weight) {
            tied |= BIT(member);
        }
    }
    return members_of(tied) == 1 ? first_of(tied) : take_turns(view, tied, found);
}

/* The finaliser of SplitMix64: every bit of the result depends on every bit of the word. */
static inline uint64_t mix(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
}

/* Weighted rendezvous hashing: each peer draws a lot for each client, by its own key, so that a peer that leaves
   takes nobody's lot along but its own. -weight / ln(u) makes the chance to win proportional to the weight. */
static int draw_lots(const GroupView *view, uint64_t set, uint64_t hash, const Survey *found) {
    int best = -1;
    double highest = 0;
    uint64_t client = mix(hash + 0x9E3779B97F4A7C15u);
    for (; set; set &= set - 1) {
        int member = first_of(set);
        uint64_t lot = mix(client ^ LOAD(view->at.peers[view->peer[member]].seed));
        double u = ((double)(lot >> 11) + 0.5) * 0x1p-53;
        double score = (double)view->weight[member] * found->factor[member] / -log(u);
        if (best < 0 || score > highest) best = member, highest = score;
    }
    return best;
}

static int choose(const GroupView *view, uint64_t set, uint64_t hash, Survey *found) {
    found->turned = 0;
    if (view->algorithm == IP_HASH) return draw_lots(view, set, hash, found);
    return view->algorithm == LEAST_CONN ? least_busy(view, set, found) : take_turns(view, set, found);
}

/* Choose, and be the one that sends the trial where that is needed; -1 = nobody is left. */
static int choose_and_claim(const GroupView *view, uint64_t set, uint64_t hash, Survey *found) {
    while (set) {
        int best = choose(view, set, hash, found);
        if (!(found->trials & BIT(best))) return best;
        PeerEntry *peer = peer_of(view, best);
        if (peer && claim_trial(peer, found->now)) return best;
        set &= ~BIT(best);
    }
    return -1;
}

static inline void write_back(const GroupView *view, const Survey *found) {
    for (uint64_t set = found->turned; set; set &= set - 1) {
        int member = first_of(set);
        STORE(view->members[member].current, found->current[member]);
        if (LOAD(view->members[member].effective) != found->effective[member])
            STORE(view->members[member].effective, found->effective[member]);
    }
}

/* The member that gets the next request, none of `tried`; -1 = nobody is usable. */
static int group_pick(const GroupView *view, uint64_t tried, uint64_t hash, int repeatable) {
    Survey found;
    int best;
    if (!is_current(&view->group->serial, view->serial)) return -1;
    survey(view, repeatable, &found);
    uint64_t set = found.able & ~tried;
    if (!set) return -1;
    if (view->size == 1) return 0;
    if (view->algorithm == IP_HASH) return choose_and_claim(view, set, hash, &found);
    for (int attempt = 0;; attempt++) {
        uint64_t ticket = lock_take(&view->group->lock);
        best = choose_and_claim(view, set, hash, &found);
        if (best < 0 || lock_held(&view->group->lock, ticket) || attempt == 2) {
            if (best >= 0) write_back(view, &found);
            lock_drop(&view->group->lock, ticket);
            return best;
        }
        if (found.trials & BIT(best)) STORE(view->at.peers[view->peer[best]].trial, 0);
    }
}

/* Whether a request may go to this member, were it chosen; a trial that is due counts. */
static int group_usable(const GroupView *view, int member) {
    Survey found;
    if (!is_current(&view->group->serial, view->serial)) return 0;
    survey(view, 1, &found);
    return (found.able & BIT(member)) != 0;
}

/* A failed request: the member loses part of its turns, as in nginx, and its peer's circuit may open. */
static int group_failed(const GroupView *view, int member, int64_t took, int connecting) {
    PeerEntry *peer = peer_of(view, member);
    int spare = 0;
    if (!peer || !is_current(&view->group->serial, view->serial)) return 0;
    ADD(peer->failures, 1);
    if (connecting) ADD(peer->connect_errors, 1);
    for (int other = 0; other < view->size && !spare; other++) {
        PeerEntry *candidate = other == member ? NULL : peer_of(view, other);
        spare = candidate && candidate != peer && is_standing(candidate) && is_closed(candidate);
    }
    int unhealthy = LOAD(peer->unhealthy), weight = view->weight[member];
    int loss = unhealthy > 0 && weight / unhealthy > 1 ? weight / unhealthy : 1;
    uint64_t ticket = lock_take(&view->group->lock);
    int32_t effective = LOAD(view->members[member].effective);
    STORE(view->members[member].effective, effective > loss ? effective - loss : 0);
    lock_drop(&view->group->lock, ticket);
    return mark_failure(view->at.board, peer, took, connecting, spare);
}

static inline Cell *cell_of(const GroupView *view, int member, int slot) {
    return &view->at.cells[(int64_t)slot * view->at.peer_count + view->peer[member]];
}

static inline void group_begin(const GroupView *view, int member, int slot) {
    PeerEntry *peer = peer_of(view, member);
    int64_t used = LOAD(view->at.board->used);
    if (!peer) return;
    while (used <= slot && !__atomic_compare_exchange_n(&view->at.board->used, &used, slot + 1, 0,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    ADD(cell_of(view, member, slot)->active, 1);
    ADD(peer->requests, 1);
}

/* One less is active; one that began before the entry was cleared doesn't count twice. */
static inline PeerEntry *group_leave(const GroupView *view, int member, int slot) {
    PeerEntry *peer = peer_of(view, member);
    if (!peer) return NULL;
    Cell *cell = cell_of(view, member, slot);
    if (LOAD(cell->active) > 0) ADD(cell->active, -1);
    return peer;
}

/* The end of one without: its client went away. What was a trial may be tried by another. */
static inline void group_abandon(const GroupView *view, int member, int slot, int64_t took) {
    PeerEntry *peer = slot < 0 ? peer_of(view, member) : group_leave(view, member, slot);
    if (!peer || is_closed(peer)) return;
    if (board_now(view->at.board) - took >= LOAD(peer->opened)) STORE(peer->trial, 0);
}

/* What has become of a request, which may go on: a stream, a tunnel. Returns whether that opened the circuit. */
static inline int group_judge(const GroupView *view, int member, int ok, int64_t took, int connecting) {
    PeerEntry *peer = peer_of(view, member);
    if (!peer) return 0;
    if (took < 0) took = 0;
    /* How long a refusal takes says nothing about responses. */
    if (!connecting) note_latency(peer, took);
    if (!ok) return group_failed(view, member, took, connecting);
    mark_success(view->at.board, peer, took);
    return 0;
}

/* The end of a request with a verdict; returns whether it opened the circuit. */
static inline int group_end(const GroupView *view, int member, int slot, int ok, int64_t took, int connecting) {
    return group_leave(view, member, slot) ? group_judge(view, member, ok, took, connecting) : 0;
}

#endif
