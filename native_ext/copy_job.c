#define _GNU_SOURCE
#include "copy_job.h"

#include <time.h>

#include "copy_pool.h"
#include "crc32c.h"

/* Small enough that a thread which the system puts aside leaves little undone, large enough that claims and
   seams between threads do not show. */
enum { UNIT_NBYTES = 1 << 20, LEAST_UNIT_NBYTES = 4096, UNITS_PER_THREAD = 4 };

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
    if (!fence_holds(limits->fence))
        return COPY_FENCED;
    if (limits->deadline_ns && monotonic_ns() >= limits->deadline_ns)
        return COPY_TIMED_OUT;
    return COPY_DONE;
}

void copy_job_end(struct copy_job *job, int status)
{
    int done = COPY_DONE;
    atomic_compare_exchange_strong(&job->status, &done, status);
}

static bool may_go_on(struct copy_job *job)
{
    if (atomic_load_explicit(&job->status, memory_order_relaxed) != COPY_DONE)
        return false;
    int status = limits_status(job->limits);
    if (status != COPY_DONE)
        copy_job_end(job, status);
    return status == COPY_DONE;
}

static int64_t unit_nbytes_for(int64_t nbytes, int threads, int64_t most_nbytes)
{
    int64_t share = nbytes / ((int64_t)threads * UNITS_PER_THREAD);
    share = share < most_nbytes ? share : most_nbytes;
    share = share < UNIT_NBYTES ? share : UNIT_NBYTES;
    share -= share % LEAST_UNIT_NBYTES;
    return share ? share : LEAST_UNIT_NBYTES;
}

void copy_job_share(struct copy_job *job, int threads, int64_t most_nbytes)
{
    int64_t nbytes = job->plan->nbytes - job->turn.begin;
    job->threads = threads;
    job->unit_nbytes = unit_nbytes_for(nbytes, threads, most_nbytes);
    job->unit_count = nbytes ? (nbytes - 1) / job->unit_nbytes + 1 : 0;
}

void copy_job_divide(struct copy_job *job, int threads)
{
    const struct copy_plan *plan = job->plan;
    bool alone = threads < 2 || plan->nbytes == 0 || plan_repeats_regions(plan);
    bool by_region = !alone && plan_repeats_blocks(plan);
    if (job->turn.give_way || job->turn.begin) { /* what is done must be the first bytes of the plan */
        threads = alone || by_region ? 1 : threads;
        copy_job_share(job, threads, COPY_STEP_NBYTES / threads);
    } else if (alone) {
        job->threads = 1;
        job->unit_nbytes = plan->nbytes;
        job->unit_count = plan->nbytes > 0;
    } else if (by_region) {
        job->threads = threads;
        job->unit_count = plan->region_count;
    } else {
        copy_job_share(job, threads, UNIT_NBYTES);
    }
}

static bool gives_way(struct copy_job *job)
{
    if (way_word_is_raised(job->turn.give_way))
        atomic_store_explicit(&job->gives_way, true, memory_order_relaxed);
    return atomic_load_explicit(&job->gives_way, memory_order_relaxed);
}

/* A claimed unit is moved to its end, and units are claimed in order: so what moved is one piece of the plan.
   Who sees the word raised makes all threads leave, for the caller to return with all of them. The first unit
   is moved in any case: whoever calls again and again gets to the end. */
static int64_t claim_unit(struct copy_job *job)
{
    if (job->turn.give_way == NULL || !gives_way(job))
        return atomic_fetch_add_explicit(&job->next_unit, 1, memory_order_relaxed);
    int64_t first = 0;
    return atomic_compare_exchange_strong(&job->next_unit, &first, 1) ? first : job->unit_count;
}

/* Places the cursor at the unit's beginning and returns its length. */
static int64_t enter_unit(const struct copy_job *job, int64_t unit, struct cursor *cursor, int64_t *begin)
{
    if (job->unit_nbytes == 0) {
        cursor_seek_region(job->plan, cursor, unit);
        *begin = cursor->region_begin;
        return plan_region_nbytes(job->plan, unit);
    }
    *begin = job->turn.begin + unit * job->unit_nbytes;
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
            copy_job_end(job, COPY_FAILED);
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
    while ((unit = claim_unit(job)) < job->unit_count) {
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

/* Nothing ended the job, and yet units are left. */
static bool gave_way(const struct copy_job *job)
{
    return job->status == COPY_DONE && job->nbytes < job->plan->nbytes - job->turn.begin;
}

struct copy_result copy_job_run(struct copy_job *job)
{
    copy_pool_run(take_units, job, job->threads);
    int status = gave_way(job) ? COPY_GAVE_WAY : job->status;
    struct copy_result result = {.status = status, .nbytes = job->nbytes, .error = job->error};
    if (job->digest && result.status == COPY_DONE)
        result.digest = crc32c_finish(job->crc, (uint64_t)job->plan->nbytes);
    return result;
}
