/* A lock in shared memory that nobody can take to the grave, and the clock.

   Law: knows a word and processes, nothing of what the lock is over.

   The word holds the process id of the holder (lower half, 0 = free) and the number of times it was taken (upper
   half), which tells a holder that stands still from one that comes back often. A holder that is gone, or that keeps
   it over PATIENCE (stopped, or preempted for so long), loses it to whoever waits. So the lock makes collisions
   rare, not impossible: what it guards must be sound, if perhaps not exact, when two write at once. Who must know
   asks `lock_held` before it writes. */

#ifndef ACME_BOARD_LOCK_H
#define ACME_BOARD_LOCK_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define LOAD(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
#define STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELAXED)
#define ADD(place, value) __atomic_fetch_add(&(place), (value), __ATOMIC_RELAXED)

enum {
    SPINS = 128,                  /* looks before the processor is given away */
    YIELDS_PER_PROBE = 16,        /* looks between two questions whether the holder lives */
    PATIENCE = 5 * 1000 * 1000,   /* ns with one holder */
    LONGEST_WAIT = 20 * PATIENCE  /* ns in all, however lively the others are */
};

static inline int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* getpid() is a system call; a lock taken for each request can't afford it. */
static uint32_t own_pid;

static void forget_own_pid(void) {
    own_pid = 0;
}

static int watch_forks(void) {
    return pthread_atfork(NULL, NULL, forget_own_pid);
}

static inline uint32_t my_pid(void) {
    if (!own_pid) own_pid = (uint32_t)getpid();
    return own_pid;
}

static inline int is_gone(int64_t pid) {
    return kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Make the lock ours if the word still is what we saw; the ticket, or 0. */
static inline uint64_t lock_claim(uint64_t *word, uint64_t seen) {
    uint64_t ticket = ((seen >> 32) + 1) << 32 | my_pid();
    return __atomic_compare_exchange_n(word, &seen, ticket, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED) ? ticket : 0;
}

static __attribute__((noinline)) uint64_t lock_wait(uint64_t *word) {
    uint64_t ticket, seen, watched = 0;
    int64_t now, began = 0, since = 0;
    for (unsigned turn = 0;; turn++) {
        seen = __atomic_load_n(word, __ATOMIC_RELAXED);
        uint32_t holder = (uint32_t)seen;
        /* Our own id can only be left over: we are here once, and hold nothing. */
        int ours = holder == 0 || holder == my_pid();
        if (!ours && turn < SPINS) {
            relax();
            continue;
        }
        if (!ours) {
            now = clock_ns();
            if (!began) began = now;
            if (seen != watched) watched = seen, since = now;
            ours = now - since > PATIENCE || now - began > LONGEST_WAIT ||
                   (turn % YIELDS_PER_PROBE == 0 && is_gone(holder));
        }
        if (ours) {
            if ((ticket = lock_claim(word, seen))) return ticket;
            continue;
        }
        sched_yield();
    }
}

/* Take the lock; returns the ticket that `lock_held` and `lock_drop` want. */
static inline uint64_t lock_take(uint64_t *word) {
    uint64_t seen = __atomic_load_n(word, __ATOMIC_RELAXED), ticket;
    if ((uint32_t)seen == 0 && (ticket = lock_claim(word, seen))) return ticket;
    return lock_wait(word);
}

static inline int lock_held(uint64_t *word, uint64_t ticket) {
    return __atomic_load_n(word, __ATOMIC_RELAXED) == ticket;
}

/* Give it back, unless somebody has lost patience and taken it. */
static inline void lock_drop(uint64_t *word, uint64_t ticket) {
    uint64_t free = ticket >> 32 << 32;
    __atomic_compare_exchange_n(word, &ticket, free, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

#endif
