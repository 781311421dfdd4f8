/* Random plans, overlapping or not, whole, in turns and fanned out, against a naive loop. */
#include "self_test.h"

#include <string.h>

#include "copy_fan.h"
#include "copy_parts.h"

enum { ARENA = 1 << 20, REGIONS = 5, BLOCKS = 24, FAN = 3 };

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

/* Returns the checksum of all bytes; those of the pairs of blocks go into `digests`. */
static uint32_t naive_copy(const struct copy_plan *plan, uint32_t *digests)
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
            *digests++ =
                ~naive_crc(UINT32_MAX, (unsigned char *)to->base + target_byte, from->block_nbytes);
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

static size_t pairs_nbytes(const struct copy_plan *plan)
{
    return (size_t)(plan->region_count * plan->source_blocks.count) * sizeof(uint32_t);
}

static void check_whole(struct test_case *one, const struct arena *expected, uint32_t crc,
                        const uint32_t *block_crcs, int threads)
{
    uint32_t digests[REGIONS * BLOCKS];
    bool each = random_below(2);
    struct copy_wishes wishes = {.loop = random_loop(), .threads = threads};
    wishes.digest = !each && random_below(2);
    wishes.digests = each ? digests : NULL;
    struct copy_result result = copy_blocks(&one->plan, &(struct copy_limits){0}, &wishes);
    CHECK(result.status == COPY_DONE, "status %d", result.status);
    CHECK(result.nbytes == one->plan.nbytes, "%lld bytes", (long long)result.nbytes);
    CHECK(result.digest == (wishes.digest ? crc : 0), "digest %08x, not %08x", result.digest, crc);
    CHECK(memcmp(one->arena, expected, sizeof *expected) == 0, "%d threads: bytes differ", threads);
    CHECK(!each || memcmp(digests, block_crcs, pairs_nbytes(&one->plan)) == 0, "digests differ");
}

/* A word that stays raised: a unit each call, and at last all of it. */
static void check_in_turns(struct test_case *one, const struct arena *expected, const uint32_t *block_crcs,
                           int threads)
{
    uint32_t digests[REGIONS * BLOCKS];
    struct way_word *word = way_word_new();
    struct copy_wishes wishes = {.loop = random_loop(), .threads = threads, .digests = digests};
    struct copy_result result;
    way_word_raise(word);
    wishes.turn.give_way = word;
    do {
        result = copy_blocks(&one->plan, &(struct copy_limits){0}, &wishes);
        CHECK(result.nbytes > 0 || one->plan.nbytes == 0, "no progress");
        wishes.turn.begin += result.nbytes;
    } while (result.status == COPY_GAVE_WAY);
    CHECK(result.status == COPY_DONE && wishes.turn.begin == one->plan.nbytes, "status %d", result.status);
    CHECK(memcmp(one->arena, expected, sizeof *expected) == 0, "%d threads, in turns: bytes differ", threads);
    CHECK(memcmp(digests, block_crcs, pairs_nbytes(&one->plan)) == 0, "digests in turns differ");
    free(word);
}

static void check_digests(const struct copy_plan *plan, int threads)
{
    uint32_t digests[REGIONS * BLOCKS], *next = digests;
    struct copy_result result = copy_nothing_but_digests(plan, &(struct copy_limits){0}, threads, digests);
    CHECK(result.status == COPY_DONE && result.nbytes == plan->nbytes, "status %d", result.status);
    for (int64_t i = 0; i < plan->region_count; i++)
        for (int64_t pair = 0; pair < plan->source_blocks.count; pair++) {
            const struct region *from = &plan->source[i];
            int64_t byte = plan->source_blocks.at[pair] * from->block_stride;
            uint32_t crc = ~naive_crc(UINT32_MAX, (unsigned char *)from->base + byte, from->block_nbytes);
            CHECK(*next++ == crc, "block %lld of region %lld", (long long)pair, (long long)i);
        }
}

static void check_case(struct test_case *one, const struct arena *before, struct arena *expected)
{
    uint32_t digests[REGIONS * BLOCKS];
    memcpy(one->arena, before, sizeof *before);
    uint32_t crc = naive_copy(&one->plan, digests);
    memcpy(expected, one->arena, sizeof *expected);
    for (int threads = 0; threads < 5; threads++) {
        memcpy(one->arena, before, sizeof *before);
        check_whole(one, expected, crc, digests, threads);
        memcpy(one->arena, before, sizeof *before);
        check_in_turns(one, expected, digests, threads);
    }
    memcpy(one->arena, before, sizeof *before);
    check_digests(&one->plan, (int)random_below(4));
}

void test_random_cases(int rounds)
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

/* ---- one source, several targets ---- */

struct fan_case {
    struct region regions[FAN][REGIONS];
    unsigned char *memory[FAN];
    struct fan_target targets[FAN];
};

/* The case's target, and copies of it in memory of their own. */
static void fan_out_case(struct fan_case *fan, const struct test_case *one)
{
    for (int k = 0; k < FAN; k++) {
        fan->memory[k] = calloc(1, sizeof(struct arena));
        for (int64_t i = 0; i < one->plan.region_count; i++) {
            fan->regions[k][i] = one->target[i];
            fan->regions[k][i].base += (uint64_t)(uintptr_t)fan->memory[k] - (uint64_t)(uintptr_t)one->arena;
        }
        fan->targets[k] = (struct fan_target){.plan = one->plan};
        fan->targets[k].plan.target = fan->regions[k];
    }
}

static bool may_fan_out(const struct fan_case *fan)
{
    const struct copy_plan *plan = &fan->targets[0].plan;
    CHECK(!fan_targets_meet(&fan->targets[0], &fan->targets[1]), "targets apart are said to meet");
    CHECK(plan->nbytes == 0 || fan_targets_meet(&fan->targets[0], &fan->targets[0]), "equal ones are not");
    return plan->nbytes && !plan_repeats_blocks(plan) && !plan_repeats_regions(plan);
}

static void check_fan(struct fan_case *fan, const struct test_case *one, unsigned char *expected)
{
    uint32_t digests[REGIONS * BLOCKS], block_crcs[REGIONS * BLOCKS];
    struct region regions[REGIONS];
    struct copy_plan naive = one->plan;
    memset(expected, 0, sizeof(struct arena));
    naive.target = regions;
    for (int64_t i = 0; i < naive.region_count; i++) {
        regions[i] = one->target[i];
        regions[i].base += (uint64_t)(uintptr_t)expected - (uint64_t)(uintptr_t)one->arena;
    }
    naive_copy(&naive, block_crcs);
    _Atomic uint64_t word = 5;
    fan->targets[1].fence = (struct fence){&word, random_below(2) ? 5 : 6};
    bool fenced = fan->targets[1].fence.value == 6;
    struct fan_wishes wishes = {.threads = (int)random_below(4), .digests = digests};
    struct copy_result result = copy_fan(fan->targets, FAN, &(struct copy_limits){0}, wishes);
    CHECK(result.status == COPY_DONE && result.nbytes == naive.nbytes, "status %d", result.status);
    CHECK(memcmp(digests, block_crcs, pairs_nbytes(&naive)) == 0, "digests of a fan differ");
    for (int k = 0; k < FAN; k++) {
        bool left_out = k == 1 && fenced;
        CHECK(fan->targets[k].is_fenced == left_out, "target %d is fenced or is not", k);
        CHECK(left_out || memcmp(fan->memory[k], expected, sizeof(struct arena)) == 0, "target %d", k);
    }
}

void test_fans(int rounds)
{
    struct arena *arena = malloc(sizeof *arena);
    unsigned char *expected = malloc(sizeof *arena);
    fill_random((unsigned char *)arena, sizeof *arena);
    for (int i = 0; i < rounds; i++) {
        struct test_case one;
        struct fan_case fan;
        random_case(&one, arena);
        fan_out_case(&fan, &one);
        if (may_fan_out(&fan))
            check_fan(&fan, &one, expected);
        for (int k = 0; k < FAN; k++)
            free(fan.memory[k]);
    }
    free(arena);
    free(expected);
}
