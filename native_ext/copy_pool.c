#define _GNU_SOURCE
#include "copy_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { DEFAULT_THREADS_LIMIT = 4 };

/* All of it is guarded by `lock`. A job is open while `seats` > 0: a thread that wakes after its caller took
   the seats away finds none and sleeps on, so a slow start never holds a caller up. */
static struct {
    bool busy; /* one caller owns the pool; others copy alone */
    int started;
    int seats;
    int inside;
    int caller_cpu;
    void (*work)(void *);
    void *argument;
} pool;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;
static pthread_cond_t all_left = PTHREAD_COND_INITIALIZER;
static pthread_once_t fork_watched = PTHREAD_ONCE_INIT;
static atomic_int chosen_threads; /* 0: not chosen yet */

static int default_threads(void)
{
    cpu_set_t usable;
    int count = sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable) : 1;
    return count < DEFAULT_THREADS_LIMIT ? count : DEFAULT_THREADS_LIMIT;
}

int copy_pool_threads(void)
{
    int threads = atomic_load_explicit(&chosen_threads, memory_order_relaxed);
    if (threads == 0) {
        threads = default_threads();
        atomic_store_explicit(&chosen_threads, threads, memory_order_relaxed);
    }
    return threads;
}

void copy_pool_set_threads(int threads)
{
    atomic_store_explicit(&chosen_threads, threads, memory_order_relaxed);
}

/* A thread that the system wakes on its caller's processor would only take turns with it, for as long as the
   system takes to notice. Returns whether `allowed` is to be restored. */
static bool step_aside(int caller_cpu, cpu_set_t *allowed)
{
    if (sched_getcpu() != caller_cpu || sched_getaffinity(0, sizeof *allowed, allowed) != 0)
        return false;
    cpu_set_t others = *allowed;
    CPU_CLR(caller_cpu, &others);
    return CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0;
}

static void work_aside(void (*work)(void *), void *argument, int caller_cpu)
{
    cpu_set_t allowed;
    bool moved = step_aside(caller_cpu, &allowed);
    work(argument);
    if (moved)
        sched_setaffinity(0, sizeof allowed, &allowed);
}

static void *serve(void *unused)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        while (pool.seats == 0)
            pthread_cond_wait(&opened, &lock);
        pool.seats--;
        pool.inside++;
        void (*work)(void *) = pool.work;
        void *argument = pool.argument;
        int caller_cpu = pool.caller_cpu;
        pthread_mutex_unlock(&lock);
        work_aside(work, argument, caller_cpu);
        pthread_mutex_lock(&lock);
        if (--pool.inside == 0)
            pthread_cond_signal(&all_left);
    }
    return unused;
}

/* The child has none of the threads, and may have been forked while one of them held the lock. */
static void forget_threads(void)
{
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    opened = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    all_left = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pool.busy = false;
    pool.started = pool.seats = pool.inside = 0;
}

static void watch_fork(void)
{
    pthread_atfork(NULL, NULL, forget_threads);
}

/* Signals stay with the interpreter's threads. */
static bool start_one(void)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed)
        pthread_detach(thread);
    return !failed;
}

static void open_job(void (*work)(void *), void *argument, int helpers)
{
    while (pool.started < helpers && start_one())
        pool.started++;
    pool.work = work;
    pool.argument = argument;
    pool.caller_cpu = sched_getcpu();
    pool.seats = helpers < pool.started ? helpers : pool.started;
    for (int i = 0; i < pool.seats; i++)
        pthread_cond_signal(&opened);
}

static void close_job(void)
{
    pool.seats = 0;
    while (pool.inside > 0)
        pthread_cond_wait(&all_left, &lock);
    pool.busy = false;
}

static bool take_pool(void)
{
    pthread_once(&fork_watched, watch_fork);
    pthread_mutex_lock(&lock);
    bool taken = !pool.busy;
    pool.busy = true;
    if (!taken)
        pthread_mutex_unlock(&lock);
    return taken;
}

void copy_pool_run(void (*work)(void *), void *argument, int threads)
{
    if (threads < 2 || !take_pool()) {
        work(argument);
        return;
    }
    open_job(work, argument, (threads < COPY_THREADS_LIMIT ? threads : COPY_THREADS_LIMIT) - 1);
    pthread_mutex_unlock(&lock);
    work(argument);
    pthread_mutex_lock(&lock);
    close_job();
    pthread_mutex_unlock(&lock);
}
