/* What the parts of self_test share. */
#ifndef KVFABRIC_SELF_TEST_H
#define KVFABRIC_SELF_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "copy_blocks.h"

#define CHECK(condition, ...)                                      \
    do {                                                           \
        if (!(condition)) {                                        \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                   \
            printf("\n");                                          \
            exit(1);                                               \
        }                                                          \
    } while (0)

uint64_t random_below(uint64_t limit);
void fill_random(unsigned char *at, size_t nbytes);

/* A bit at a time, on the bare register. */
uint32_t naive_crc(uint32_t crc, const unsigned char *at, int64_t nbytes);

/* One block of LARGE bytes, all 7, to be copied to one of zeros. */
enum { LARGE = 64 << 20 };

struct large {
    unsigned char *source;
    unsigned char *target;
    struct region from;
    struct region to;
    struct copy_plan plan;
};

struct large *large_new(void);
void large_free(struct large *large);

/* self_test_cases.c: random plans against a naive loop. self_test_limits.c: what ends copies midway. */
void test_random_cases(int rounds);
void test_fans(int rounds);
void test_limits(void);

#endif
