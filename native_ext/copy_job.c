#define _GNU_SOURCE
#include "copy_job.h"

#include <stdlib.h>
#include <time.h>

#include "copy_pool.h"
#include "crc32c.h"

/* Small enough that a thread which the system puts aside leaves little undone, large enough that claims and
   seams between threads do not show. */
enum { UNIT_NBYTES = 1 << 20, LEAST_UNIT_NBYTES = 4096, UNITS_PER_THREAD = 4 };

struct stop_word *stop_word_new(void)
{
    struct stop_word *word = aligned_alloc(sizeof *word, sizeof *word);
    if (word)
        atomic_init(&word->set, 0);
    return word;
}

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int limits_status(const struct copy_limits *limits)
{
    if (limits->stop && stop_word_is_set(limits->stop))
        return COPY_STOPPED;
    if (limits->deadline_ns && monotonic_ns() >= limits->deadline_ns)
        return COPY_TIMED_OUT;
    return COPY_DONE;
}

/* The first reason to end is the job's; other threads see it before their next step. */
static void end_job(struct copy_job *job, int status)
{
    int done = COPY_DONE;
    atomic_compare_exchange_strong(&job->status, &done, status);
}

static bool may_go_on(struct copy_job *job)
{
    if (atomic_load_explicit(&job->status, memory_order_relaxed) != COPY_DONE)
        return false;
    int status = limits_status(&job->limits);
    if (status != COPY_DONE)
        end_job(job, status);
    return status == COPY_DONE;
}

static int64_t unit_nbytes_for(int64_t nbytes, int threads)
{
    int64_t share = nbytes / ((int64_t)threads * UNITS_PER_THREAD);
    share -= share % LEAST_UNIT_NBYTES;
    if (share < LEAST_UNIT_NBYTES)
        return LEAST_UNIT_NBYTES;
    return share < UNIT_NBYTES ? share : UNIT_NBYTES;
}

void copy_job_divide(struct copy_job *job, int threads)
{
    const struct copy_plan *plan = job->plan;
    job->threads = 1;
    job->unit_nbytes = plan->nbytes;
    job->unit_count = plan->nbytes > 0;
    if (threads < 2 || plan->nbytes == 0 || plan_repeats_regions(plan))
        return;
    job->threads = threads;
    if (plan_repeats_blocks(plan)) {
        job->unit_nbytes = 0;
        job->unit_count = plan->region_count;
        return;
    }
    job->unit_nbytes = unit_nbytes_for(plan->nbytes, threads);
    job->unit_count = (plan->nbytes - 1) / job->unit_nbytes + 1;
}

/* Places the cursor at the unit's beginning and returns its length. */
static int64_t enter_unit(const struct copy_job *job, int64_t unit, struct cursor *cursor, int64_t *begin)
{
    if (job->unit_nbytes == 0) {
        cursor_seek_region(job->plan, cursor, unit);
        *begin = cursor->region_begin;
        return plan_region_nbytes(job->plan, unit);
    }
    *begin = unit * job->unit_nbytes;
    cursor_seek(job->plan, cursor, *begin);
    int64_t left = job->plan->nbytes - *begin;
    return left < job->unit_nbytes ? left : job->unit_nbytes;
}

/* Returns the bytes moved: fewer than the unit's when the job was ended. */
static int64_t move_unit(struct copy_job *job, struct cursor *cursor, int64_t nbytes, uint32_t *crc)
{
    int64_t moved = 0;
    while (moved < nbytes && may_go_on(job)) {
        int64_t left = nbytes - moved;
        int64_t limit = left < COPY_STEP_NBYTES ? left : COPY_STEP_NBYTES;
        int64_t step = job->step(job, cursor, limit, crc);
        moved += step;
        if (step < limit)
            end_job(job, COPY_FAILED);
    }
    return moved;
}

/* What each thread does. CRC is linear: units come in any order, each shifted by the bytes behind it. */
static void take_units(void *argument)
{
    struct copy_job *job = argument;
    struct cursor cursor = {0};
    int64_t nbytes = 0;
    uint32_t crc = 0;
    int64_t unit, begin;
    while ((unit = atomic_fetch_add_explicit(&job->next_unit, 1, memory_order_relaxed)) < job->unit_count) {
        int64_t unit_nbytes = enter_unit(job, unit, &cursor, &begin);
        uint32_t unit_crc = 0;
        int64_t moved = move_unit(job, &cursor, unit_nbytes, &unit_crc);
        nbytes += moved;
        if (moved < unit_nbytes)
            break;
        crc ^= crc32c_shift(unit_crc, (uint64_t)(job->plan->nbytes - begin - unit_nbytes));
    }
    copy_loop_fence();
    atomic_fetch_add(&job->nbytes, nbytes);
    atomic_fetch_xor(&job->crc, crc);
}

struct copy_result copy_job_run(struct copy_job *job)
{
    copy_pool_run(take_units, job, job->threads);
    struct copy_result result = {.status = job->status, .nbytes = job->nbytes, .error = job->error};
    if (job->digest && result.status == COPY_DONE)
        result.digest = crc32c_finish(job->crc, (uint64_t)job->plan->nbytes);
    return result;
}
