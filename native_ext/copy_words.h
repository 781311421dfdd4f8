/* The words that running copies look at. They are set by other threads, the fence by other processes too. */
#ifndef KVFABRIC_COPY_WORDS_H
#define KVFABRIC_COPY_WORDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ends copies. In a cache line of its own: the threads that copy poll it. */
struct stop_word {
    _Alignas(64) _Atomic uint32_t set;
};

/* Makes copies give way while it was raised more often than lowered. In a cache line of its own, likewise. */
struct way_word {
    _Alignas(64) _Atomic int64_t raised;
};

/* Ends copies once *word differs from `value`. The word lies in memory of whoever owns the target. */
struct fence {
    _Atomic uint64_t *word; /* NULL: no fence */
    uint64_t value;
};

/* Not set, not raised; NULL without memory. Both go with free(). */
struct stop_word *stop_word_new(void);
struct way_word *way_word_new(void);

static inline void stop_word_set(struct stop_word *word)
{
    atomic_store_explicit(&word->set, 1, memory_order_relaxed);
}

static inline bool stop_word_is_set(struct stop_word *word)
{
    return atomic_load_explicit(&word->set, memory_order_relaxed) != 0;
}

static inline void way_word_raise(struct way_word *word)
{
    atomic_fetch_add_explicit(&word->raised, 1, memory_order_relaxed);
}

static inline void way_word_lower(struct way_word *word)
{
    atomic_fetch_sub_explicit(&word->raised, 1, memory_order_relaxed);
}

static inline bool way_word_is_raised(struct way_word *word)
{
    return atomic_load_explicit(&word->raised, memory_order_relaxed) > 0;
}

/* Acquire: no byte of a step is written before the word was read. Sequentially consistent besides, so that
   the word is not read before what the copier announced, just as consistently, in front of the call: the owner
   changes the word and then looks for announcements, and one of the two sees the other. */
static inline bool fence_holds(struct fence fence)
{
    return fence.word == NULL || atomic_load_explicit(fence.word, memory_order_seq_cst) == fence.value;
}

#endif
