#define _GNU_SOURCE
#include "copy_blocks.h"

#include <string.h>
#include <time.h>

#include "copy_digest.h"
#include "copy_pool.h"
#include "crc32c.h"

/* Measured on Sapphire Rapids (2 MiB of second-level cache a core), blocks of 16 KiB, another core reading
   them afterwards. Into blocks that no cache holds, streaming is 1.5 times as fast at every size, 1.2 times
   with the reading. Into the same blocks over and over, plain copies win, 2 : 1 at 128-512 KiB and 9 : 8 at
   2 MiB, and lose from 4 MiB on. A pool of KV blocks is mostly cold; small pushes may well repeat. */
const int64_t copy_stream_nbytes = 1 << 20;

/* Waking a thread takes 5-70 us; one thread streams 1 MiB in 65-130 us. */
const int64_t copy_split_nbytes = 1 << 20;

static int64_t step_apart(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    for (int64_t moved = 0; moved < limit;) {
        struct piece piece = plan_next(job->plan, cursor, limit - moved);
        char *target = (char *)piece.target;
        const char *source = (const char *)piece.source;
        if (job->digest)
            *crc = copy_and_digest(job->loop, target, source, (size_t)piece.nbytes, *crc);
        else
            job->loop->copy(target, source, (size_t)piece.nbytes);
        moved += piece.nbytes;
    }
    return limit;
}

static struct copy_job job_of(const struct copy_plan *plan, struct copy_limits limits,
                              struct copy_wishes wishes)
{
    bool large = plan->nbytes >= copy_stream_nbytes;
    const struct copy_loop *by_size = large ? copy_loop_best() : copy_loop_at(0);
    return (struct copy_job){
        .plan = plan,
        .limits = limits,
        .step = step_apart,
        .loop = wishes.loop ? wishes.loop : by_size,
        .digest = wishes.digest,
    };
}

static int threads_for(int64_t nbytes, int wished)
{
    if (wished)
        return wished;
    return nbytes < copy_split_nbytes ? 1 : copy_pool_threads();
}

/* ---- source and target share bytes ---- */

/* memmove() of one pair in slices, from the end when the target lies above the source: the slice at byte `b`
   of the walk is then the one that ends `b` bytes before the pair's end. */
static int64_t step_overlapping(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    for (int64_t moved = 0; moved < limit;) {
        int64_t walked = cursor->byte;
        int64_t block = job->plan->source[cursor->region].block_nbytes;
        int64_t left = block - walked;
        struct piece piece = plan_next(job->plan, cursor, left < limit - moved ? left : limit - moved);
        int64_t behind = left - piece.nbytes;
        if (piece.target > piece.source) {
            piece.source += (uint64_t)(behind - walked);
            piece.target += (uint64_t)(behind - walked);
            behind = walked;
        }
        if (job->digest) {
            uint32_t slice = crc32c_extend(0, (const char *)piece.source, (size_t)piece.nbytes);
            *crc =
                (walked ? *crc : crc32c_shift(*crc, (uint64_t)block)) ^ crc32c_shift(slice, (uint64_t)behind);
        }
        memmove((char *)piece.target, (const char *)piece.source, (size_t)piece.nbytes);
        moved += piece.nbytes;
    }
    return limit;
}

struct copy_result copy_blocks(const struct copy_plan *plan, struct copy_limits limits,
                               struct copy_wishes wishes)
{
    struct copy_job job = job_of(plan, limits, wishes);
    bool overlaps = plan_overlaps(plan);
    if (overlaps)
        job.step = step_overlapping;
    copy_job_divide(&job, overlaps ? 1 : threads_for(plan->nbytes, wishes.threads));
    return copy_job_run(&job);
}

/* ---- the yardstick ---- */

static const char *block_at(const struct region *region, int64_t block)
{
    return (const char *)(region->base + (uint64_t)(block * region->block_stride));
}

int64_t copy_blocks_bare(const struct copy_plan *plan)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int64_t i = 0; i < plan->region_count; i++) {
        const struct region *source = &plan->source[i], *target = &plan->target[i];
        for (int64_t pair = 0; pair < plan->source_blocks.count; pair++)
            memcpy((char *)block_at(target, plan->target_blocks.at[pair]),
                   block_at(source, plan->source_blocks.at[pair]), (size_t)source->block_nbytes);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + (end.tv_nsec - begin.tv_nsec);
}
