/* One plan carried out by one or several threads: cut into units, units claimed, limits looked at in between.
 */
#ifndef KVFABRIC_COPY_JOB_H
#define KVFABRIC_COPY_JOB_H

#include <stdatomic.h>
#include <stdint.h>

#include "copy_loops.h"
#include "copy_plan.h"

enum copy_status { COPY_DONE = 0, COPY_TIMED_OUT = 1, COPY_STOPPED = 2, COPY_FAILED = 3 };

/* The deadline and the stop word are looked at before each step of at most this many bytes. */
enum { COPY_STEP_NBYTES = 4 << 20 };

/* In a cache line of its own: the threads that copy poll it. Any thread may set it. */
struct stop_word {
    _Alignas(64) _Atomic uint32_t set;
};

struct copy_limits {
    int64_t deadline_ns;    /* CLOCK_MONOTONIC; 0: none */
    struct stop_word *stop; /* NULL: none */
};

struct copy_result {
    int status;
    int64_t nbytes;
    uint32_t digest; /* 0 unless asked for and done */
    int error;       /* errno when COPY_FAILED */
};

/* Not set; NULL without memory. Goes with free(). */
struct stop_word *stop_word_new(void);

static inline void stop_word_set(struct stop_word *word)
{
    atomic_store_explicit(&word->set, 1, memory_order_relaxed);
}

static inline bool stop_word_is_set(struct stop_word *word)
{
    return atomic_load_explicit(&word->set, memory_order_relaxed) != 0;
}

struct copy_job;

/* Moves up to `limit` bytes at the cursor, which it leaves behind them; folds them into *crc when
   job->digest. Returns how many, fewer only after setting job->error. */
typedef int64_t copy_step(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc);

struct copy_job {
    const struct copy_plan *plan;
    struct copy_limits limits;
    copy_step *step;
    const struct copy_loop *loop;
    int pid;     /* of the other process, if there is one */
    bool writes; /* into it */
    bool digest;
    int threads;
    int64_t unit_nbytes; /* 0: each region is a unit */
    int64_t unit_count;
    /* shared by the threads */
    _Atomic int64_t next_unit;
    _Atomic int64_t nbytes;
    _Atomic int status;
    _Atomic int error;
    _Atomic uint32_t crc;
};

/* Chooses units so that no two threads write the same byte; `threads` is what the caller would like. */
void copy_job_divide(struct copy_job *job, int threads);

struct copy_result copy_job_run(struct copy_job *job);

#endif
