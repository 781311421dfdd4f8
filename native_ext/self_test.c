/* Drives the C layer against a naive loop, without Python: random shapes, loops, threads, limits, forks.
   Usage: self_test [rounds [seed]]. The last line says how it went. */
#define _GNU_SOURCE
#include "self_test.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "copy_pool.h"
#include "copy_process.h"
#include "crc32c.h"

/* ---- random numbers: xorshift ---- */

static uint64_t random_state = 88172645463325252u;

uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

void fill_random(unsigned char *at, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        at[i] = (unsigned char)random_below(256);
}

/* ---- what the parts share ---- */

uint32_t naive_crc(uint32_t crc, const unsigned char *at, int64_t nbytes)
{
    for (int64_t i = 0; i < nbytes; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return crc;
}

static const int64_t first_block[1] = {0};

struct large *large_new(void)
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

void large_free(struct large *large)
{
    free(large->source);
    free(large->target);
    free(large);
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

/* ---- several callers, forks, another process ---- */

static void *copy_often(void *unused)
{
    struct large *large = large_new();
    large->plan.nbytes = large->from.block_nbytes = large->to.block_nbytes = 3 << 20;
    for (int i = 0; i < 20; i++) {
        memset(large->target, 0, LARGE);
        copy_blocks(&large->plan, &(struct copy_limits){0},
                    &(struct copy_wishes){.loop = copy_loop_best(), .threads = 3});
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
        struct copy_process self = {.pid = getpid(), .writes = writes, .threads = 2};
        struct copy_result result = copy_process(&large->plan, &(struct copy_limits){0}, &self);
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
    test_fans(rounds);
    test_limits();
    test_several_callers();
    test_fork();
    test_process();
    printf("self_test: all well; loop %s, checksum %s, %d threads, %d random cases\n", copy_loop_best()->name,
           crc32c_best_way()->name, copy_pool_threads(), rounds);
    return 0;
}
