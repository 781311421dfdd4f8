#define _GNU_SOURCE
#include "copy_process.h"

#include <errno.h>
#include <stddef.h>
#include <sys/uio.h>

#include "copy_blocks.h"

enum { IOVECS = 1024 }; /* IOV_MAX of Linux */

/* One kernel call's worth: piece i goes from or to here[i] to or from there[i]. */
struct batch {
    struct iovec here[IOVECS];
    struct iovec there[IOVECS];
    int begin; /* pieces before it are done */
    int end;
    int64_t nbytes;
};

static void fill(struct batch *batch, const struct copy_job *job, struct cursor *cursor, int64_t limit)
{
    batch->begin = batch->end = 0;
    batch->nbytes = 0;
    while (batch->nbytes < limit && batch->end < IOVECS) {
        struct piece piece = plan_next(job->plan, cursor, limit - batch->nbytes);
        uint64_t here = job->writes ? piece.source : piece.target;
        uint64_t there = job->writes ? piece.target : piece.source;
        batch->here[batch->end] = (struct iovec){(void *)here, (size_t)piece.nbytes};
        batch->there[batch->end] = (struct iovec){(void *)there, (size_t)piece.nbytes};
        batch->end++;
        batch->nbytes += piece.nbytes;
    }
}

static void drop_front(struct iovec *piece, size_t nbytes)
{
    piece->iov_base = (char *)piece->iov_base + nbytes;
    piece->iov_len -= nbytes;
}

static void drop_done(struct batch *batch, size_t nbytes)
{
    while (batch->begin < batch->end && nbytes >= batch->here[batch->begin].iov_len)
        nbytes -= batch->here[batch->begin++].iov_len;
    if (nbytes) {
        drop_front(&batch->here[batch->begin], nbytes);
        drop_front(&batch->there[batch->begin], nbytes);
    }
}

static ssize_t call_kernel(const struct copy_job *job, const struct batch *batch)
{
    const struct iovec *here = batch->here + batch->begin, *there = batch->there + batch->begin;
    unsigned long count = (unsigned long)(batch->end - batch->begin);
    return job->writes ? process_vm_writev(job->pid, here, count, there, count, 0)
                       : process_vm_readv(job->pid, here, count, there, count, 0);
}

/* A transfer that the kernel cut short goes on behind the last byte moved; the next call says why, if
 * anything. */
static int64_t move_batch(struct copy_job *job, struct batch *batch)
{
    int64_t moved = 0;
    while (batch->begin < batch->end) {
        ssize_t nbytes = call_kernel(job, batch);
        if (nbytes <= 0) {
            atomic_store(&job->error, nbytes < 0 ? errno : EIO);
            break;
        }
        drop_done(batch, (size_t)nbytes);
        moved += nbytes;
    }
    return moved;
}

static int64_t step_process(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    (void)crc;
    struct batch batch; /* 32 KiB */
    int64_t moved = 0;
    while (moved < limit) {
        fill(&batch, job, cursor, limit - moved);
        int64_t nbytes = move_batch(job, &batch);
        moved += nbytes;
        if (nbytes < batch.nbytes)
            break;
    }
    return moved;
}

struct copy_result copy_process(const struct copy_plan *plan, const struct copy_limits *limits,
                                const struct copy_process *other)
{
    struct copy_job job = {
        .plan = plan,
        .limits = limits,
        .turn = other->turn,
        .step = step_process,
        .pid = other->pid,
        .writes = other->writes,
    };
    copy_job_divide(&job, copy_threads_for(plan->nbytes, other->threads));
    return copy_job_run(&job);
}
