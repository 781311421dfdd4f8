/* Drives the C layer against a naive loop, without Python: random shapes, loops, threads, limits, forks.
   Usage: self_test [rounds [seed]]. The last line says how it went. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "copy_blocks.h"
#include "copy_pool.h"
#include "copy_process.h"
#include "crc32c.h"

enum { ARENA = 1 << 20, REGIONS = 5, BLOCKS = 24, LARGE = 64 << 20 };

#define CHECK(condition, ...)                                      \
    do {                                                           \
        if (!(condition)) {                                        \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                   \
            printf("\n");                                          \
            exit(1);                                               \
        }                                                          \
    } while (0)

/* ---- random numbers: xorshift ---- */

static uint64_t random_state = 88172645463325252u;

static uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void fill_random(unsigned char *at, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        at[i] = (unsigned char)random_below(256);
}

/* ---- a random case ---- */

struct arena {
    unsigned char source[ARENA];
    unsigned char target[ARENA];
};

struct test_case {
    struct arena *arena;
    struct region source[REGIONS];
    struct region target[REGIONS];
    int64_t source_blocks[BLOCKS];
    int64_t target_blocks[BLOCKS];
    struct copy_plan plan;
};

/* Anywhere in [at, at + ARENA): aligned or not, dense or not. */
static struct region random_region(const unsigned char *at, int64_t num_blocks, int64_t block_nbytes)
{
    int64_t gap = random_below(2) ? 0 : (int64_t)random_below((uint64_t)block_nbytes + 100);
    int64_t extent = (num_blocks - 1) * (block_nbytes + gap) + block_nbytes;
    uint64_t offset = random_below((uint64_t)(ARENA - extent));
    if (random_below(2))
        offset -= offset % 64;
    return (struct region){(uint64_t)(uintptr_t)at + offset, num_blocks, block_nbytes, block_nbytes + gap};
}

static void random_blocks(int64_t *blocks, int64_t count, int64_t num_blocks)
{
    int64_t next = (int64_t)random_below((uint64_t)num_blocks);
    for (int64_t i = 0; i < count; i++) {
        blocks[i] = next % num_blocks;
        next = random_below(3) ? next + 1 : (int64_t)random_below((uint64_t)num_blocks);
    }
}

/* One region behind the other, as caches lie; the other cases let them fall anywhere. */
static void lay_out(struct region *regions, int64_t count, const unsigned char *at)
{
    uint64_t next = (uint64_t)(uintptr_t)at;
    for (int64_t i = 0; i < count; i++) {
        regions[i].base = next;
        next += (uint64_t)(regions[i].num_blocks * regions[i].block_stride);
    }
}

/* Layers that may lie between each other's blocks. */
static void equal_strides(struct test_case *one, int64_t count)
{
    int64_t stride = 1 + (int64_t)random_below(300);
    for (int64_t i = 0; i < count; i++) {
        int64_t block_nbytes = 1 + (int64_t)random_below((uint64_t)stride);
        uint64_t near = (uint64_t)(uintptr_t)one->arena->source + 10000;
        one->source[i] = (struct region){near + random_below(600), 12, block_nbytes, stride};
        one->target[i] = (struct region){near + random_below(600), 12, block_nbytes, stride};
    }
}

static void random_case(struct test_case *one, struct arena *arena)
{
    int64_t region_count = 1 + (int64_t)random_below(REGIONS);
    int64_t block_count = (int64_t)random_below(BLOCKS + 1);
    int64_t num_blocks = 1 + (int64_t)random_below(12);
    bool overlap = random_below(3) == 0;
    bool tidy = random_below(2) == 0;
    one->arena = arena;
    for (int64_t i = 0; i < region_count; i++) {
        int64_t block_nbytes = 1 + (int64_t)random_below((uint64_t)1 << (1 + random_below(13)));
        one->source[i] = random_region(arena->source, num_blocks, block_nbytes);
        one->target[i] = random_region(overlap ? arena->source : arena->target, num_blocks, block_nbytes);
    }
    if (tidy && !overlap)
        lay_out(one->target, region_count, arena->target);
    if (random_below(4) == 0) {
        num_blocks = 12;
        equal_strides(one, region_count);
    }
    random_blocks(one->source_blocks, block_count, num_blocks);
    random_blocks(one->target_blocks, block_count, num_blocks);
    one->plan = (struct copy_plan){
        .source = one->source,
        .target = one->target,
        .region_count = region_count,
        .source_blocks = block_list_of(one->source_blocks, block_count),
        .target_blocks = block_list_of(one->target_blocks, block_count),
    };
    CHECK(plan_measure(&one->plan), "plan too large");
}

/* ---- what it is compared with ---- */

static uint32_t naive_crc(uint32_t crc, const unsigned char *at, int64_t nbytes)
{
    for (int64_t i = 0; i < nbytes; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return crc;
}

static uint32_t naive_copy(const struct copy_plan *plan)
{
    uint32_t crc = UINT32_MAX;
    for (int64_t i = 0; i < plan->region_count; i++)
        for (int64_t pair = 0; pair < plan->source_blocks.count; pair++) {
            const struct region *from = &plan->source[i], *to = &plan->target[i];
            int64_t source_byte = plan->source_blocks.at[pair] * from->block_stride;
            int64_t target_byte = plan->target_blocks.at[pair] * to->block_stride;
            memmove((char *)to->base + target_byte, (char *)from->base + source_byte,
                    (size_t)from->block_nbytes);
            crc = naive_crc(crc, (unsigned char *)to->base + target_byte, from->block_nbytes);
        }
    return ~crc;
}

/* Marks what the plan reads and writes, byte by byte, and compares with what copy_plan says of it. */
static void check_aliasing(const struct test_case *one)
{
    static unsigned char read[sizeof(struct arena)], written[sizeof(struct arena)];
    const struct copy_plan *plan = &one->plan;
    uint64_t base = (uint64_t)(uintptr_t)one->arena;
    bool overlaps = false, repeats_blocks = false, repeats_regions = false;
    memset(read, 0, sizeof read);
    memset(written, 0, sizeof written);
    for (int64_t i = 0; i < plan->region_count; i++)
        for (int64_t pair = 0; pair < plan->source_blocks.count; pair++) {
            const struct region *from = &plan->source[i], *to = &plan->target[i];
            uint64_t source =
                from->base - base + (uint64_t)(plan->source_blocks.at[pair] * from->block_stride);
            uint64_t target = to->base - base + (uint64_t)(plan->target_blocks.at[pair] * to->block_stride);
            for (int64_t byte = 0; byte < from->block_nbytes; byte++) {
                read[source + (uint64_t)byte] = 1;
                repeats_blocks |= written[target + (uint64_t)byte] == i + 1;
                repeats_regions |=
                    written[target + (uint64_t)byte] && written[target + (uint64_t)byte] != i + 1;
                written[target + (uint64_t)byte] = (unsigned char)(i + 1);
            }
        }
    for (size_t byte = 0; byte < sizeof read; byte++)
        overlaps |= read[byte] && written[byte];
    CHECK(plan_overlaps(plan) || !overlaps, "overlap not noticed");
    CHECK(plan->nbytes == 0 || plan_repeats_regions(plan) || !repeats_regions, "regions meet unnoticed");
    CHECK(plan->nbytes == 0 || repeats_regions || plan_repeats_blocks(plan) == repeats_blocks, "repeats");
}

static const struct copy_loop *random_loop(void)
{
    const struct copy_loop *loop = copy_loop_at((int)random_below((uint64_t)copy_loop_count()));
    return random_below(4) && loop->runs_here() ? loop : NULL;
}

static void check_case(struct test_case *one, const struct arena *before, struct arena *expected)
{
    memcpy(one->arena, before, sizeof *before);
    uint32_t crc = naive_copy(&one->plan);
    memcpy(expected, one->arena, sizeof *expected);
    for (int threads = 0; threads < 5; threads++) {
        memcpy(one->arena, before, sizeof *before);
        struct copy_wishes wishes = {random_loop(), threads, random_below(2)};
        struct copy_result result = copy_blocks(&one->plan, (struct copy_limits){0}, wishes);
        CHECK(result.status == COPY_DONE, "status %d", result.status);
        CHECK(result.nbytes == one->plan.nbytes, "%lld bytes", (long long)result.nbytes);
        CHECK(result.digest == (wishes.digest ? crc : 0), "digest %08x, not %08x", result.digest, crc);
        CHECK(memcmp(one->arena, expected, sizeof *expected) == 0, "%d threads: bytes differ", threads);
    }
}

static void test_random_cases(int rounds)
{
    struct arena *arena = malloc(sizeof *arena);
    struct arena *before = malloc(sizeof *before);
    struct arena *expected = malloc(sizeof *expected);
    fill_random((unsigned char *)before, sizeof *before);
    for (int i = 0; i < rounds; i++) {
        struct test_case one;
        random_case(&one, arena);
        check_aliasing(&one);
        check_case(&one, before, expected);
    }
    free(arena);
    free(before);
    free(expected);
}

/* ---- checksums ---- */

/* Every way that runs here, whole and in two parts joined by the shift. */
static void check_crc32c(uint32_t crc, const unsigned char *at, size_t nbytes)
{
    uint32_t expected = naive_crc(crc, at, (int64_t)nbytes);
    for (int i = 0; i < crc32c_way_count(); i++) {
        const struct crc32c_way *way = crc32c_way_at(i);
        if (!way->runs_here())
            continue;
        CHECK(way->extend(crc, at, nbytes) == expected, "%s: %zu bytes", way->name, nbytes);
        size_t cut = random_below(nbytes + 1);
        uint32_t front = way->extend(crc, at, cut);
        uint32_t back = way->extend(0, at + cut, nbytes - cut);
        CHECK((crc32c_shift(front, nbytes - cut) ^ back) == expected, "%s: cut at %zu", way->name, cut);
    }
}

static void test_crc32c(void)
{
    enum { LENGTH = 40000 };
    unsigned char *data = malloc(LENGTH);
    fill_random(data, LENGTH);
    uint32_t word = crc32c_unshift_word(0x12345678);
    CHECK(crc32c_extend(0, &word, sizeof word) == 0x12345678, "word %08x", word);
    CHECK(crc32c_finish(crc32c_extend(0, "123456789", 9), 9) == 0xe3069283u, "check value");
    for (int i = 0; i < 400; i++) {
        size_t begin = random_below(100);
        size_t nbytes = random_below(i % 2 ? LENGTH - 100 : 1500);
        check_crc32c((uint32_t)random_below(UINT32_MAX), data + begin, nbytes);
    }
    free(data);
}

/* ---- limits, on one block of LARGE bytes ---- */

struct large {
    unsigned char *source;
    unsigned char *target;
    struct region from;
    struct region to;
    struct copy_plan plan;
};

static const int64_t first_block[1] = {0};

static struct large *large_new(void)
{
    struct large *large = malloc(sizeof *large);
    large->source = malloc(LARGE);
    large->target = calloc(LARGE, 1);
    memset(large->source, 7, LARGE);
    large->from = (struct region){(uint64_t)(uintptr_t)large->source, 1, LARGE, LARGE};
    large->to = (struct region){(uint64_t)(uintptr_t)large->target, 1, LARGE, LARGE};
    struct block_list list = block_list_of(first_block, 1);
    large->plan = (struct copy_plan){&large->from, &large->to, 1, list, list, LARGE};
    return large;
}

static void large_free(struct large *large)
{
    free(large->source);
    free(large->target);
    free(large);
}

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
        result =
            copy_blocks(&large->plan, (struct copy_limits){0, stop}, (struct copy_wishes){NULL, 2, true});
    } while (result.status == COPY_DONE);
    pthread_join(setter, NULL);
    CHECK(result.status == COPY_STOPPED && result.digest == 0, "status %d", result.status);
    CHECK(result.nbytes < LARGE, "%lld bytes", (long long)result.nbytes);
    free(stop);
}

static void test_limits(void)
{
    struct large *large = large_new();
    struct copy_limits past = {1, NULL};
    for (int threads = 1; threads < 4; threads++) {
        struct copy_result result =
            copy_blocks(&large->plan, past, (struct copy_wishes){NULL, threads, true});
        CHECK(result.status == COPY_TIMED_OUT && result.nbytes == 0, "status %d", result.status);
        CHECK(large->target[0] == 0, "a byte moved after the deadline");
    }
    test_stop_during(large);
    large_free(large);
}

/* ---- several callers, forks, another process ---- */

static void *copy_often(void *unused)
{
    struct large *large = large_new();
    large->plan.nbytes = large->from.block_nbytes = large->to.block_nbytes = 3 << 20;
    for (int i = 0; i < 20; i++) {
        memset(large->target, 0, LARGE);
        copy_blocks(&large->plan, (struct copy_limits){0}, (struct copy_wishes){copy_loop_best(), 3, false});
        CHECK(memcmp(large->source, large->target, 3 << 20) == 0, "round %d", i);
        CHECK(large->target[3 << 20] == 0, "round %d: past the end", i);
    }
    large_free(large);
    return unused;
}

static void test_several_callers(void)
{
    pthread_t callers[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&callers[i], NULL, copy_often, NULL);
    for (int i = 0; i < 3; i++)
        pthread_join(callers[i], NULL);
}

/* Not where the emulator (qemu-user, for Arm) or the thread sanitizer cannot start threads after a fork. */
static void test_fork(void)
{
#if !defined(__aarch64__) && !defined(__SANITIZE_THREAD__)
    pid_t child = fork();
    if (child == 0) {
        copy_often(NULL);
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "the child ended with %d", status);
#endif
}

static void test_process(void)
{
    struct large *large = large_new();
    for (int writes = 0; writes < 2; writes++) {
        memset(large->target, 0, LARGE);
        struct copy_process self = {getpid(), writes, 2};
        struct copy_result result = copy_process(&large->plan, (struct copy_limits){0}, self);
        if (result.status == COPY_FAILED && result.error == ENOSYS) {
            printf("process_vm: not on this kernel\n");
            break;
        }
        CHECK(result.status == COPY_DONE && result.nbytes == LARGE, "errno %d", result.error);
        CHECK(memcmp(large->source, large->target, LARGE) == 0, "bytes differ");
    }
    large_free(large);
}

int main(int count, char **arguments)
{
    int rounds = count > 1 ? atoi(arguments[1]) : 300;
    random_state ^= count > 2 ? strtoull(arguments[2], NULL, 10) * 0x9e3779b97f4a7c15u : 0;
    test_crc32c();
    test_random_cases(rounds);
    test_limits();
    test_several_callers();
    test_fork();
    test_process();
    printf("self_test: all well; loop %s, checksum %s, %d threads, %d random cases\n", copy_loop_best()->name,
           crc32c_best_way()->name, copy_pool_threads(), rounds);
    return 0;
}
