/* Copies a plan whose source or target addresses belong to another process. */
#ifndef KVFABRIC_COPY_PROCESS_H
#define KVFABRIC_COPY_PROCESS_H

#include "copy_job.h"

struct copy_process {
    int pid;
    bool writes; /* the target addresses are the other's; else the source addresses */
    int threads; /* 0: by size */
    struct copy_turn turn;
};

/* As copy_blocks(), through the kernel. Bytes that the plan both reads and writes are not looked for. */
struct copy_result copy_process(const struct copy_plan *plan, const struct copy_limits *limits,
                                const struct copy_process *other);

#endif
