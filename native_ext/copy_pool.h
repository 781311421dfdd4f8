/* Kept copy threads. They sleep until a large copy comes, and are started by the first one. */
#ifndef KVFABRIC_COPY_POOL_H
#define KVFABRIC_COPY_POOL_H

enum { COPY_THREADS_LIMIT = 64 };

/* How many threads share a large copy, the caller among them. */
int copy_pool_threads(void);
void copy_pool_set_threads(int threads);

/* Runs work(argument) on the calling thread and, when the pool is free, on up to `threads` - 1 others at
   once; returns when all of them have left it. A fork()ed child gets a fresh pool. */
void copy_pool_run(void (*work)(void *), void *argument, int threads);

#endif
