/* A plan walked in parts that lie within one block each, and the checksums of blocks made of them. */
#ifndef KVFABRIC_COPY_PARTS_H
#define KVFABRIC_COPY_PARTS_H

#include "copy_job.h"

struct part {
    struct piece piece;
    int64_t pair;   /* of blocks, counted through all regions */
    int64_t offset; /* bytes of the block before the part */
    int64_t behind; /* bytes of the block after it */
};

/* The part at the cursor, `limit` bytes at most; the cursor moves behind it. */
struct part part_next(const struct copy_plan *plan, struct cursor *cursor, int64_t limit);

/* The digest of a block is its CRC-32C as published. It begins at 0 and is XORed together from the block's
   parts, each of which starts from the register part_start() and ends in `crc`; any thread adds, in any
   order. */
uint32_t part_start(const struct part *part);
void part_add(const struct part *part, uint32_t crc, _Atomic uint32_t *digests);

/* Digests begin anew unless the copy goes on with an earlier one's. */
void digests_begin(const struct copy_plan *plan, int64_t begin, uint32_t *digests);

/* The digest of each listed block of the plan's source regions; the target side is not looked at. `threads`
   as in copy_wishes. */
struct copy_result copy_nothing_but_digests(const struct copy_plan *plan, const struct copy_limits *limits,
                                            int threads, uint32_t *digests);

#endif
