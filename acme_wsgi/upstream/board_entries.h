/* The entries of the board: found by their keys, taken and freed.

   Law: one writer, the arbiter; everybody else looks up. An entry is in use while its serial number is odd, and
   is filled before that becomes so. */

#ifndef ACME_BOARD_ENTRIES_H
#define ACME_BOARD_ENTRIES_H

#include <string.h>

#include "board_health.h"
#include "board_pick.h"

static inline int is_used(const uint32_t *serial) {
    return __atomic_load_n(serial, __ATOMIC_ACQUIRE) & 1;
}

/* From free to used, or back: every handle on what it was is stale. */
static inline void turn_serial(uint32_t *serial) {
    __atomic_fetch_add(serial, 1, __ATOMIC_RELEASE);
}

static int find_peer(const Places *at, const unsigned char *key) {
    for (int index = 0; index < at->peer_count; index++)
        if (is_used(&at->peers[index].serial) && !memcmp(at->peers[index].key, key, KEY_SIZE)) return index;
    return -1;
}

static int find_group(const Places *at, const unsigned char *key) {
    for (int index = 0; index < at->group_count; index++)
        if (is_used(&at->groups[index].serial) && !memcmp(at->groups[index].key, key, KEY_SIZE)) return index;
    return -1;
}

/* A free entry, filled and put to use; -1 = none. The search goes on where the last one ended, so that no entry is
   used again soon after it was freed, while somebody may still be in the middle of a write. */
static int take_peer(const Places *at, uint32_t *cursor, const unsigned char *key) {
    for (int tried = 0; tried < at->peer_count; tried++) {
        int index = (int)((*cursor + (uint32_t)tried) % (uint32_t)at->peer_count);
        PeerEntry *peer = &at->peers[index];
        uint32_t serial = peer->serial;
        uint64_t halves[2];
        if (serial & 1) continue;
        *cursor = (uint32_t)index + 1;
        memset(peer, 0, sizeof(*peer));
        for (int slot = 0; slot < at->slots; slot++)
            memset(&at->cells[(int64_t)slot * at->peer_count + index], 0, sizeof(Cell));
        memcpy(peer->key, key, KEY_SIZE);
        memcpy(halves, key, KEY_SIZE);
        peer->seed = mix(halves[0] ^ mix(halves[1]));
        peer->since = board_now(at->board);
        peer->serial = serial;
        turn_serial(&peer->serial);
        return index;
    }
    return -1;
}

/* A free entry for a group, not yet in use; -1 = none. */
static int free_group(const Places *at, uint32_t *cursor) {
    for (int tried = 0; tried < at->group_count; tried++) {
        int index = (int)((*cursor + (uint32_t)tried) % (uint32_t)at->group_count);
        if (at->groups[index].serial & 1) continue;
        *cursor = (uint32_t)index + 1;
        return index;
    }
    return -1;
}

#endif
