/* Copies a plan inside this address space. */
#ifndef KVFABRIC_COPY_BLOCKS_H
#define KVFABRIC_COPY_BLOCKS_H

#include "copy_job.h"

struct copy_wishes {
    const struct copy_loop *loop; /* NULL: by size */
    int threads;                  /* 0: by size; else at most so many, however small the copy */
    bool digest;
};

extern const int64_t copy_stream_nbytes; /* from here on copies stream past the cache */
extern const int64_t copy_split_nbytes;  /* from here on several threads share a copy */

/* The result equals copying pair by pair in plan order, each pair as memmove() would. */
struct copy_result copy_blocks(const struct copy_plan *plan, struct copy_limits limits,
                               struct copy_wishes wishes);

/* The yardstick: one thread, one memcpy a block, nothing else. Returns nanoseconds. */
int64_t copy_blocks_bare(const struct copy_plan *plan);

#endif
