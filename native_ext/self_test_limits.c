/* Deadlines, stop words, fences and way words, on one large block. */
#define _GNU_SOURCE
#include "self_test.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

static void *set_later(void *word)
{
    usleep(2000);
    stop_word_set(word);
    return NULL;
}

/* Copies again and again until the word ends one of them midway. */
static void test_stop_during(struct large *large)
{
    struct stop_word *stop = stop_word_new();
    pthread_t setter;
    pthread_create(&setter, NULL, set_later, stop);
    struct copy_result result;
    do {
        result = copy_blocks(&large->plan, &(struct copy_limits){.stop = stop},
                             &(struct copy_wishes){.threads = 2, .digest = true});
    } while (result.status == COPY_DONE);
    pthread_join(setter, NULL);
    CHECK(result.status == COPY_STOPPED && result.digest == 0, "status %d", result.status);
    CHECK(result.nbytes < LARGE, "%lld bytes", (long long)result.nbytes);
    free(stop);
}

static void *change_later(void *word)
{
    usleep(2000);
    atomic_store((_Atomic uint64_t *)word, 8);
    return NULL;
}

static void test_fence_during(struct large *large)
{
    _Atomic uint64_t word = 7;
    struct copy_limits limits = {.fence = {&word, 7}};
    pthread_t changer;
    pthread_create(&changer, NULL, change_later, &word);
    struct copy_result result;
    do {
        result = copy_blocks(&large->plan, &limits, &(struct copy_wishes){.threads = 2});
    } while (result.status == COPY_DONE);
    pthread_join(changer, NULL);
    CHECK(result.status == COPY_FENCED && result.nbytes < LARGE, "status %d", result.status);
}

static void *raise_later(void *word)
{
    usleep((useconds_t)random_below(3000));
    way_word_raise(word);
    return NULL;
}

/* What moved is exactly the front, whenever the word was raised. */
static void test_way_during(struct large *large, int threads)
{
    struct way_word *word = way_word_new();
    struct copy_wishes wishes = {.threads = threads, .turn = {.give_way = word}};
    pthread_t raiser;
    memset(large->target, 0, LARGE);
    pthread_create(&raiser, NULL, raise_later, word);
    struct copy_result result = copy_blocks(&large->plan, &(struct copy_limits){0}, &wishes);
    pthread_join(raiser, NULL);
    CHECK(result.status == (result.nbytes < LARGE ? COPY_GAVE_WAY : COPY_DONE), "status %d", result.status);
    CHECK(memcmp(large->target, large->source, (size_t)result.nbytes) == 0, "a hole in what moved");
    for (int64_t byte = result.nbytes; byte < LARGE; byte++)
        CHECK(large->target[byte] == 0, "byte %lld moved", (long long)byte);
    way_word_lower(word);
    wishes.turn.begin = result.nbytes;
    result = copy_blocks(&large->plan, &(struct copy_limits){0}, &wishes);
    CHECK(result.status == COPY_DONE && wishes.turn.begin + result.nbytes == LARGE, "the rest");
    CHECK(memcmp(large->target, large->source, LARGE) == 0, "bytes differ");
    free(word);
}

/* ---- how much moves once a word is raised ---- */

static struct way_word *counted_word;
static _Atomic int64_t counted, counted_when_raised;

/* Counts where a step would move bytes, and raises the word at some moment in between. */
static int64_t step_counting(struct copy_job *job, struct cursor *cursor, int64_t limit, uint32_t *crc)
{
    (void)crc;
    usleep(50);
    int64_t before = atomic_fetch_add(&counted, limit);
    if (before <= LARGE / 3 && before + limit > LARGE / 3) {
        way_word_raise(counted_word);
        atomic_store(&counted_when_raised, atomic_load(&counted));
    }
    for (int64_t moved = 0; moved < limit;)
        moved += plan_next(job->plan, cursor, limit - moved).nbytes;
    return limit;
}

static void test_way_bound(struct large *large)
{
    for (int threads = 1; threads < 12; threads++) {
        counted_word = way_word_new();
        counted = counted_when_raised = 0;
        struct copy_limits none = {0};
        struct copy_job job = {
            .plan = &large->plan, .limits = &none, .turn = {.give_way = counted_word}, .step = step_counting};
        copy_job_divide(&job, threads);
        struct copy_result result = copy_job_run(&job);
        int64_t after = counted - counted_when_raised;
        CHECK(result.status == COPY_GAVE_WAY && result.nbytes == counted, "status %d", result.status);
        CHECK(after <= COPY_STEP_NBYTES, "%d threads: %lld bytes more", threads, (long long)after);
        free(counted_word);
    }
}

void test_limits(void)
{
    struct large *large = large_new();
    struct copy_limits past = {.deadline_ns = 1};
    for (int threads = 1; threads < 4; threads++) {
        struct copy_result result =
            copy_blocks(&large->plan, &past, &(struct copy_wishes){.threads = threads, .digest = true});
        CHECK(result.status == COPY_TIMED_OUT && result.nbytes == 0, "status %d", result.status);
        CHECK(large->target[0] == 0, "a byte moved after the deadline");
    }
    test_stop_during(large);
    test_fence_during(large);
    for (int threads = 1; threads < 6; threads++)
        test_way_during(large, threads);
    test_way_bound(large);
    large_free(large);
}
