/* Copies a plan inside this address space. */
#ifndef KVFABRIC_COPY_BLOCKS_H
#define KVFABRIC_COPY_BLOCKS_H

#include "copy_job.h"

struct copy_wishes {
    const struct copy_loop *loop; /* NULL: by size */
    int threads;                  /* 0: by size; else at most so many, however small the copy */
    bool digest;                  /* of the whole; not with a turn */
    uint32_t *digests;            /* of each pair of blocks, in plan order; NULL: none */
    struct copy_turn turn;
};

extern const int64_t copy_stream_nbytes; /* from here on copies stream past the cache */
extern const int64_t copy_split_nbytes;  /* from here on several threads share a copy */

/* What the size asks for, unless the caller does. */
int copy_threads_for(int64_t nbytes, int wished);
const struct copy_loop *copy_loop_for(int64_t nbytes);

/* The next `nbytes` at the cursor, source and target sharing none of them; copy_parts() adds each part of a
   block to its block's digest. */
void copy_pieces(const struct copy_loop *loop, const struct copy_plan *plan, struct cursor *cursor,
                 int64_t nbytes);
void copy_parts(const struct copy_loop *loop, const struct copy_plan *plan, struct cursor *cursor,
                int64_t nbytes, _Atomic uint32_t *digests);

/* The result equals copying pair by pair in plan order, each pair as memmove() would. */
struct copy_result copy_blocks(const struct copy_plan *plan, const struct copy_limits *limits,
                               const struct copy_wishes *wishes);

/* The yardstick: one thread, one memcpy a block, nothing else. Returns nanoseconds. */
int64_t copy_blocks_bare(const struct copy_plan *plan);

#endif
