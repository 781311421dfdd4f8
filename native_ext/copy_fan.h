/* Copies one source to several targets and reads each of its bytes from memory once. */
#ifndef KVFABRIC_COPY_FAN_H
#define KVFABRIC_COPY_FAN_H

#include "copy_job.h"

struct fan_target {
    struct copy_plan plan;
    struct fence fence;
    _Atomic bool is_fenced; /* left out from then on */
};

struct fan_wishes {
    int threads;       /* as in copy_wishes */
    uint32_t *digests; /* likewise */
};

/* Is there a byte that both targets write? Exact up to the hulls of the used blocks. */
bool fan_targets_meet(const struct fan_target *a, const struct fan_target *b);

/* At least one target; their plans differ in the target side only, and no byte is both read and written or
   written twice. COPY_FENCED: all of them are. */
struct copy_result copy_fan(struct fan_target *targets, int count, const struct copy_limits *limits,
                            struct fan_wishes wishes);

#endif
