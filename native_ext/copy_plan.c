#include "copy_plan.h"

#include <stdlib.h>

struct block_list block_list_of(const int64_t *at, int64_t count)
{
    struct block_list list = {at, count, count ? at[0] : 0, count ? at[0] : -1, true};
    for (int64_t i = 1; i < count; i++) {
        list.rising &= at[i] > at[i - 1];
        list.minimum = at[i] < list.minimum ? at[i] : list.minimum;
        list.maximum = at[i] > list.maximum ? at[i] : list.maximum;
    }
    return list;
}

int64_t plan_region_nbytes(const struct copy_plan *plan, int64_t region)
{
    return plan->source[region].block_nbytes * plan->source_blocks.count;
}

bool plan_measure(struct copy_plan *plan)
{
    plan->nbytes = 0;
    for (int64_t i = 0; i < plan->region_count; i++) {
        int64_t nbytes;
        if (__builtin_mul_overflow(plan->source[i].block_nbytes, plan->source_blocks.count, &nbytes) ||
            __builtin_add_overflow(plan->nbytes, nbytes, &plan->nbytes))
            return false;
    }
    return true;
}

/* ---- the walk ---- */

static void enter_next_region(const struct copy_plan *plan, struct cursor *cursor)
{
    cursor->region_begin += plan_region_nbytes(plan, cursor->region);
    cursor->region++;
    cursor->pair = 0;
    cursor->byte = 0;
}

void cursor_seek_region(const struct copy_plan *plan, struct cursor *cursor, int64_t region)
{
    if (region < cursor->region)
        *cursor = (struct cursor){0};
    while (cursor->region < region)
        enter_next_region(plan, cursor);
    cursor->pair = 0;
    cursor->byte = 0;
}

void cursor_seek(const struct copy_plan *plan, struct cursor *cursor, int64_t plan_byte)
{
    if (plan_byte < cursor->region_begin)
        *cursor = (struct cursor){0};
    while (plan_byte >= cursor->region_begin + plan_region_nbytes(plan, cursor->region))
        enter_next_region(plan, cursor);
    int64_t block_nbytes = plan->source[cursor->region].block_nbytes;
    cursor->pair = (plan_byte - cursor->region_begin) / block_nbytes;
    cursor->byte = (plan_byte - cursor->region_begin) % block_nbytes;
}

static void cursor_advance(const struct copy_plan *plan, struct cursor *cursor, int64_t nbytes)
{
    int64_t block_nbytes = plan->source[cursor->region].block_nbytes;
    cursor->byte += nbytes;
    cursor->pair += cursor->byte / block_nbytes;
    cursor->byte %= block_nbytes;
    if (cursor->pair == plan->source_blocks.count)
        enter_next_region(plan, cursor);
}

static bool is_dense(const struct region *region)
{
    return region->block_stride == region->block_nbytes;
}

struct piece plan_next(const struct copy_plan *plan, struct cursor *cursor, int64_t limit)
{
    const struct region *source = &plan->source[cursor->region];
    const struct region *target = &plan->target[cursor->region];
    const int64_t *from = plan->source_blocks.at + cursor->pair;
    const int64_t *to = plan->target_blocks.at + cursor->pair;
    struct piece piece = {
        source->base + (uint64_t)(from[0] * source->block_stride + cursor->byte),
        target->base + (uint64_t)(to[0] * target->block_stride + cursor->byte),
        source->block_nbytes - cursor->byte,
    };
    if (is_dense(source) && is_dense(target)) {
        int64_t left = plan->source_blocks.count - cursor->pair;
        for (int64_t i = 1; i < left && piece.nbytes < limit; i++) {
            if (from[i] != from[0] + i || to[i] != to[0] + i)
                break;
            piece.nbytes += source->block_nbytes;
        }
    }
    if (piece.nbytes > limit)
        piece.nbytes = limit;
    cursor_advance(plan, cursor, piece.nbytes);
    return piece;
}

int64_t plan_pieces(const struct copy_plan *plan, bool merged, struct piece *into)
{
    struct cursor cursor = {0};
    int64_t count = 0;
    if (plan->source_blocks.count == 0)
        return 0;
    while (cursor.region < plan->region_count) {
        int64_t limit = merged ? INT64_MAX : plan->source[cursor.region].block_nbytes;
        struct piece piece = plan_next(plan, &cursor, limit);
        if (into != NULL)
            into[count] = piece;
        count++;
    }
    return count;
}

/* ---- what may not be reordered ---- */

struct hull {
    uint64_t begin;
    uint64_t end;
};

static struct hull hull_of(const struct region *region, const struct block_list *blocks)
{
    uint64_t stride = (uint64_t)region->block_stride;
    return (struct hull){
        region->base + (uint64_t)blocks->minimum * stride,
        region->base + (uint64_t)blocks->maximum * stride + (uint64_t)region->block_nbytes,
    };
}

static bool hulls_meet(struct hull a, struct hull b)
{
    return a.begin < b.end && b.begin < a.end;
}

/* Layers interleaved in one storage: equal strides, the blocks of one between the blocks of the other. */
static bool are_interleaved(const struct region *a, const struct region *b)
{
    if (a->base > b->base)
        return are_interleaved(b, a);
    if (a->block_stride != b->block_stride)
        return false;
    int64_t shift = (int64_t)((b->base - a->base) % (uint64_t)a->block_stride);
    return shift >= a->block_nbytes && a->block_stride - shift >= b->block_nbytes;
}

static bool regions_meet(const struct region *a, const struct block_list *a_blocks, const struct region *b,
                         const struct block_list *b_blocks)
{
    return hulls_meet(hull_of(a, a_blocks), hull_of(b, b_blocks)) && !are_interleaved(a, b);
}

static struct hull hull_of_all(const struct region *regions, int64_t count, const struct block_list *blocks)
{
    struct hull all = hull_of(&regions[0], blocks);
    for (int64_t i = 1; i < count; i++) {
        struct hull one = hull_of(&regions[i], blocks);
        all.begin = one.begin < all.begin ? one.begin : all.begin;
        all.end = one.end > all.end ? one.end : all.end;
    }
    return all;
}

bool plan_overlaps(const struct copy_plan *plan)
{
    if (plan->nbytes == 0)
        return false;
    struct hull read = hull_of_all(plan->source, plan->region_count, &plan->source_blocks);
    struct hull written = hull_of_all(plan->target, plan->region_count, &plan->target_blocks);
    if (!hulls_meet(read, written))
        return false;
    for (int64_t i = 0; i < plan->region_count; i++)
        for (int64_t j = 0; j < plan->region_count; j++)
            if (regions_meet(&plan->source[i], &plan->source_blocks, &plan->target[j], &plan->target_blocks))
                return true;
    return false;
}

bool plan_repeats_regions(const struct copy_plan *plan)
{
    const struct region *target = plan->target;
    const struct block_list *blocks = &plan->target_blocks;
    bool rising = true;
    for (int64_t i = 1; i < plan->region_count; i++)
        rising &= hull_of(&target[i - 1], blocks).end <= hull_of(&target[i], blocks).begin;
    if (rising)
        return false;
    for (int64_t i = 0; i < plan->region_count; i++)
        for (int64_t j = 0; j < i; j++)
            if (regions_meet(&target[i], blocks, &target[j], blocks))
                return true;
    return false;
}

/* A list that spreads wider than this many indices is taken to repeat rather than given a larger bitmap. */
#define BITMAP_LIMIT ((int64_t)1 << 29)

static bool repeats_in_bitmap(const struct block_list *list, uint64_t *seen)
{
    for (int64_t i = 0; i < list->count; i++) {
        uint64_t index = (uint64_t)(list->at[i] - list->minimum);
        uint64_t bit = (uint64_t)1 << (index % 64);
        if (seen[index / 64] & bit)
            return true;
        seen[index / 64] |= bit;
    }
    return false;
}

bool plan_repeats_blocks(const struct copy_plan *plan)
{
    const struct block_list *list = &plan->target_blocks;
    if (list->rising)
        return false;
    int64_t spread = list->maximum - list->minimum;
    if (spread >= BITMAP_LIMIT)
        return true;
    uint64_t *seen = calloc((size_t)spread / 64 + 1, sizeof *seen);
    bool repeats = seen == NULL || repeats_in_bitmap(list, seen);
    free(seen);
    return repeats;
}
