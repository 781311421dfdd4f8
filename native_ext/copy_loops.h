/* The innermost loops: one contiguous piece from source to target, which do not overlap. */
#ifndef KVFABRIC_COPY_LOOPS_H
#define KVFABRIC_COPY_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes up to the target's next cache line, where streaming may begin. */
static inline size_t copy_head_nbytes(const char *target, size_t nbytes)
{
    size_t gap = -(uintptr_t)target & 63;
    return gap < nbytes ? gap : nbytes;
}

typedef void copy_function(char *target, const char *source, size_t nbytes);

struct copy_loop {
    const char *name;
    copy_function *copy;
    bool (*runs_here)(void);
};

/* Slowest first; "plain" is number 0 and runs everywhere. A loop that this build lacks is not listed. */
int copy_loop_count(void);
const struct copy_loop *copy_loop_at(int index);

/* Runnable loop of that name, or NULL. */
const struct copy_loop *copy_loop_named(const char *name);

/* The fastest loop for copies that outgrow the cache. */
const struct copy_loop *copy_loop_best(void);

/* Streaming stores are not ordered by a release store (x86): to be called by each thread that copied, before
   it reports. */
void copy_loop_fence(void);

#endif
