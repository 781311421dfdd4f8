#include "copy_fan.h"

#include "copy_blocks.h"
#include "copy_parts.h"

/* A slice is read from memory for the first target and from the cache for the others. */
enum { SLICE_NBYTES = 128 << 10 };

struct fan_job {
    struct copy_job job; /* first: a step is given its address */
    struct fan_target *targets;
    int count;
};

bool fan_targets_meet(const struct fan_target *a, const struct fan_target *b)
{
    struct copy_plan both = {
        .source = a->plan.target,
        .target = b->plan.target,
        .region_count = a->plan.region_count,
        .source_blocks = a->plan.target_blocks,
        .target_blocks = b->plan.target_blocks,
        .nbytes = a->plan.nbytes,
    };
    return plan_overlaps(&both);
}

static bool is_open(struct fan_target *target)
{
    if (!fence_holds(target->fence))
        atomic_store_explicit(&target->is_fenced, true, memory_order_relaxed);
    return !atomic_load_explicit(&target->is_fenced, memory_order_relaxed);
}

static void copy_to(const struct fan_job *fan, const struct fan_target *target, struct cursor *cursor,
                    int64_t nbytes, bool digests)
{
    if (digests && fan->job.digests)
        copy_parts(fan->job.loop, &target->plan, cursor, nbytes, fan->job.digests);
    else
        copy_pieces(fan->job.loop, &target->plan, cursor, nbytes);
}

/* The cursor fits every target's plan, as a place follows from the source side alone. The digests are made on
   the way to the first open target. Returns how many took the slice. */
static int copy_slice(const struct fan_job *fan, struct cursor *cursor, int64_t nbytes)
{
    const struct cursor begin = *cursor;
    int taken = 0;
    for (int i = 0; i < fan->count; i++) {
        if (!is_open(&fan->targets[i]))
            continue;
        *cursor = begin;
        copy_to(fan, &fan->targets[i], cursor, nbytes, taken++ == 0);
    }
    return taken;
}

static int64_t step_fan(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    (void)crc;
    int64_t moved = 0;
    while (moved < limit) {
        int64_t slice = limit - moved < SLICE_NBYTES ? limit - moved : SLICE_NBYTES;
        if (copy_slice((const struct fan_job *)job, cursor, slice) == 0) {
            copy_job_end(job, COPY_FENCED);
            break;
        }
        moved += slice;
    }
    return moved;
}

struct copy_result copy_fan(struct fan_target *targets, int count, const struct copy_limits *limits,
                            struct fan_wishes wishes)
{
    const struct copy_plan *plan = &targets[0].plan;
    struct fan_job fan = {.targets = targets, .count = count};
    int64_t written = plan->nbytes > INT64_MAX / count ? INT64_MAX : plan->nbytes * count;
    fan.job = (struct copy_job){
        .plan = plan,
        .limits = limits,
        .step = step_fan,
        .loop = copy_loop_for(written),
        .digests = (_Atomic uint32_t *)wishes.digests,
    };
    digests_begin(plan, 0, wishes.digests);
    copy_job_share(&fan.job, copy_threads_for(written, wishes.threads), COPY_STEP_NBYTES / count);
    return copy_job_run(&fan.job);
}
