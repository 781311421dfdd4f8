/* What is to be copied, and the walk over it. Pure arithmetic: nothing here reads or writes a cache. */
#ifndef KVFABRIC_COPY_PLAN_H
#define KVFABRIC_COPY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

/* Block i starts at base + i * block_stride; sizes in bytes. */
struct region {
    uint64_t base;
    int64_t num_blocks;
    int64_t block_nbytes;
    int64_t block_stride;
};

struct block_list {
    const int64_t *at;
    int64_t count;
    int64_t minimum;
    int64_t maximum; /* -1 when empty */
    bool rising;     /* strictly: so no index occurs twice */
};

/* Region i of source pairs with region i of target; both have block_nbytes in common.
   Plan order: regions in order, in each the block pairs in list order, in each block its bytes. */
struct copy_plan {
    const struct region *source;
    const struct region *target;
    int64_t region_count;
    struct block_list source_blocks;
    struct block_list target_blocks;
    int64_t nbytes;
};

/* A place in plan order. Zero is the beginning. */
struct cursor {
    int64_t region;
    int64_t region_begin; /* plan bytes before this region */
    int64_t pair;
    int64_t byte; /* inside the block */
};

struct piece {
    uint64_t source;
    uint64_t target;
    int64_t nbytes;
};

struct block_list block_list_of(const int64_t *at, int64_t count);

/* Fills plan->nbytes; false when it does not fit in 63 bits. */
bool plan_measure(struct copy_plan *plan);

int64_t plan_region_nbytes(const struct copy_plan *plan, int64_t region);

void cursor_seek(const struct copy_plan *plan, struct cursor *cursor, int64_t plan_byte);
void cursor_seek_region(const struct copy_plan *plan, struct cursor *cursor, int64_t region);

/* The longest contiguous piece at the cursor, `limit` bytes at most; the cursor moves behind it. */
struct piece plan_next(const struct copy_plan *plan, struct cursor *cursor, int64_t limit);

/* How many pieces the plan has: contiguous ones if `merged`, else the pairs of blocks. They are written to `into`
   unless it is NULL. */
int64_t plan_pieces(const struct copy_plan *plan, bool merged, struct piece *into);

/* May a byte be both read and written? Exact up to the hulls of the used blocks. */
bool plan_overlaps(const struct copy_plan *plan);

/* Is a byte written twice: by one region, because a target block is listed twice, or by two regions? */
bool plan_repeats_blocks(const struct copy_plan *plan);
bool plan_repeats_regions(const struct copy_plan *plan);

#endif
