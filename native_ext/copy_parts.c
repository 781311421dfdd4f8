#include "copy_parts.h"

#include <string.h>

#include "copy_blocks.h"
#include "crc32c.h"

struct part part_next(const struct copy_plan *plan, struct cursor *cursor, int64_t limit)
{
    struct part part = {
        .pair = cursor->region * plan->source_blocks.count + cursor->pair,
        .offset = cursor->byte,
    };
    int64_t left = plan->source[cursor->region].block_nbytes - cursor->byte;
    part.piece = plan_next(plan, cursor, left < limit ? left : limit);
    part.behind = left - part.piece.nbytes;
    return part;
}

/* The checksum inverts the register at both ends; the first part does it for all. */

uint32_t part_start(const struct part *part)
{
    return part->offset ? 0 : UINT32_MAX;
}

void part_add(const struct part *part, uint32_t crc, _Atomic uint32_t *digests)
{
    crc = crc32c_shift(crc, (uint64_t)part->behind);
    atomic_fetch_xor_explicit(&digests[part->pair], part->offset ? crc : ~crc, memory_order_relaxed);
}

void digests_begin(const struct copy_plan *plan, int64_t begin, uint32_t *digests)
{
    if (digests && begin == 0)
        memset(digests, 0, (size_t)(plan->region_count * plan->source_blocks.count) * sizeof *digests);
}

static int64_t step_digests(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    (void)crc;
    for (int64_t moved = 0; moved < limit;) {
        struct part part = part_next(job->plan, cursor, limit - moved);
        const char *source = (const char *)part.piece.source;
        part_add(&part, crc32c_extend(part_start(&part), source, (size_t)part.piece.nbytes), job->digests);
        moved += part.piece.nbytes;
    }
    return limit;
}

struct copy_result copy_nothing_but_digests(const struct copy_plan *plan, const struct copy_limits *limits,
                                            int threads, uint32_t *digests)
{
    struct copy_job job = {
        .plan = plan,
        .limits = limits,
        .step = step_digests,
        .digests = (_Atomic uint32_t *)digests,
    };
    digests_begin(plan, 0, digests);
    copy_job_share(&job, copy_threads_for(plan->nbytes, threads), COPY_STEP_NBYTES);
    return copy_job_run(&job);
}
