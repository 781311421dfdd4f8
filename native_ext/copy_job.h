/* One plan carried out by one or several threads: cut into units, units claimed, limits looked at in between.
 */
#ifndef KVFABRIC_COPY_JOB_H
#define KVFABRIC_COPY_JOB_H

#include <stdatomic.h>
#include <stdint.h>

#include "copy_loops.h"
#include "copy_plan.h"
#include "copy_words.h"

enum copy_status {
    COPY_DONE = 0,
    COPY_TIMED_OUT = 1,
    COPY_STOPPED = 2,
    COPY_FAILED = 3,
    COPY_FENCED = 4,
    COPY_GAVE_WAY = 5,
};

/* The limits are looked at before each step of at most this many bytes. As many at most move, of all threads
   together, after a copy was asked to give way. */
enum { COPY_STEP_NBYTES = 4 << 20 };

struct copy_limits {
    int64_t deadline_ns;    /* CLOCK_MONOTONIC; 0: none */
    struct stop_word *stop; /* NULL: none */
    struct fence fence;
};

/* A copy that may be broken off and gone on with. */
struct copy_turn {
    struct way_word *give_way; /* NULL: never */
    int64_t begin;             /* plan bytes before it are done */
};

struct copy_result {
    int status;
    int64_t nbytes;
    uint32_t digest; /* 0 unless asked for and done */
    int error;       /* errno when COPY_FAILED */
};

struct copy_job;

/* Moves up to `limit` bytes at the cursor, which it leaves behind them; folds them into *crc when
   job->digest. Returns how many, fewer only after setting job->error or ending the job. */
typedef int64_t copy_step(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc);

struct copy_job {
    const struct copy_plan *plan;
    const struct copy_limits *limits;
    struct copy_turn turn;
    copy_step *step;
    const struct copy_loop *loop;
    int pid;     /* of the other process, if there is one */
    bool writes; /* into it */
    bool digest;
    _Atomic uint32_t *digests; /* one of each pair of blocks, in plan order; NULL: none */
    int threads;
    int64_t unit_nbytes; /* 0: each region is a unit */
    int64_t unit_count;
    /* shared by the threads */
    _Atomic int64_t next_unit;
    _Atomic int64_t nbytes;
    _Atomic int status;
    _Atomic int error;
    _Atomic uint32_t crc;
    _Atomic bool gives_way;
};

/* Chooses units so that no two threads write the same byte; `threads` is what the caller would like. */
void copy_job_divide(struct copy_job *job, int threads);

/* Units of `most_nbytes` at most, for threads that cannot be in each other's way. */
void copy_job_share(struct copy_job *job, int threads, int64_t most_nbytes);

/* The first reason to end is the job's; other threads see it before their next step. */
void copy_job_end(struct copy_job *job, int status);

/* After COPY_GAVE_WAY exactly the first `nbytes` behind turn.begin are done. */
struct copy_result copy_job_run(struct copy_job *job);

#endif
