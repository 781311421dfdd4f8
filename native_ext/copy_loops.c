#include "copy_loops.h"

#include <stdatomic.h>
#include <string.h>

static bool runs_everywhere(void)
{
    return true;
}

static void copy_plain(char *target, const char *source, size_t nbytes)
{
    memcpy(target, source, nbytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Pages are read side by side, 128 bytes of each in turn: the processor prefetches a page at a time, so more
   pages are under way. Against one stream with software prefetch, measured on Sapphire Rapids: 2-25 % faster
   with 8 lanes, which need no software prefetch. */
enum { LINE = 64, STEP = 2 * LINE, PAGE = 4096 };

#define AVX512 __attribute__((target("avx512f")))
#define AVX2 __attribute__((target("avx2")))

AVX512 static inline void stream_step_avx512(char *target, const char *source)
{
    __m512i first = _mm512_loadu_si512(source);
    __m512i second = _mm512_loadu_si512(source + LINE);
    _mm512_stream_si512((void *)target, first);
    _mm512_stream_si512((void *)(target + LINE), second);
}

AVX2 static inline void stream_step_avx2(char *target, const char *source)
{
    const __m256i *from = (const __m256i *)source;
    __m256i *to = (__m256i *)target;
    __m256i part0 = _mm256_loadu_si256(from), part1 = _mm256_loadu_si256(from + 1);
    __m256i part2 = _mm256_loadu_si256(from + 2), part3 = _mm256_loadu_si256(from + 3);
    _mm256_stream_si256(to, part0);
    _mm256_stream_si256(to + 1, part1);
    _mm256_stream_si256(to + 2, part2);
    _mm256_stream_si256(to + 3, part3);
}

/* The two loops are one text, for two sets of registers. Windows of 8 pages, then of 2, then single steps. */
#define DEFINE_STREAMING_COPY(TARGET, SET)                                                            \
    TARGET static inline size_t stream_windows_##SET(char *target, const char *source, size_t nbytes, \
                                                     size_t done, size_t window)                      \
    {                                                                                                 \
        for (; nbytes - done >= window; done += window)                                               \
            for (size_t byte = 0; byte < PAGE; byte += STEP)                                          \
                for (size_t place = done + byte; place < done + window; place += PAGE)                \
                    stream_step_##SET(target + place, source + place);                                \
        return done;                                                                                  \
    }                                                                                                 \
                                                                                                      \
    TARGET static void copy_##SET(char *target, const char *source, size_t nbytes)                    \
    {                                                                                                 \
        size_t done = copy_head_nbytes(target, nbytes);                                               \
        memcpy(target, source, done);                                                                 \
        done = stream_windows_##SET(target, source, nbytes, done, 8 * PAGE);                          \
        done = stream_windows_##SET(target, source, nbytes, done, 2 * PAGE);                          \
        for (; nbytes - done >= STEP; done += STEP)                                                   \
            stream_step_##SET(target + done, source + done);                                          \
        memcpy(target + done, source + done, nbytes - done);                                          \
    }

DEFINE_STREAMING_COPY(AVX512, avx512)
DEFINE_STREAMING_COPY(AVX2, avx2)

static bool runs_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}

static bool runs_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static const struct copy_loop loops[] = {
    {"plain", copy_plain, runs_everywhere},
    {"avx2", copy_avx2, runs_avx2},
    {"avx512", copy_avx512, runs_avx512},
};

void copy_loop_fence(void)
{
    _mm_sfence();
}

#else

#if defined(__aarch64__)
/* Pairs of 16-byte registers with the no-allocate hint; the hint is all that tells this from memcpy. */
static void copy_neon(char *target, const char *source, size_t nbytes)
{
    size_t done = copy_head_nbytes(target, nbytes);
    memcpy(target, source, done);
    for (; nbytes - done >= 64; done += 64)
        __asm__ volatile("ldnp q0, q1, [%1]\n\t"
                         "ldnp q2, q3, [%1, #32]\n\t"
                         "stnp q0, q1, [%0]\n\t"
                         "stnp q2, q3, [%0, #32]"
                         :
                         : "r"(target + done), "r"(source + done)
                         : "v0", "v1", "v2", "v3", "memory");
    memcpy(target + done, source + done, nbytes - done);
}
#endif

static const struct copy_loop loops[] = {
    {"plain", copy_plain, runs_everywhere},
#if defined(__aarch64__)
    {"neon", copy_neon, runs_everywhere},
#endif
};

void copy_loop_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

#endif

int copy_loop_count(void)
{
    return (int)(sizeof loops / sizeof loops[0]);
}

const struct copy_loop *copy_loop_at(int index)
{
    return &loops[index];
}

const struct copy_loop *copy_loop_named(const char *name)
{
    for (int i = 0; i < copy_loop_count(); i++)
        if (strcmp(loops[i].name, name) == 0 && loops[i].runs_here())
            return &loops[i];
    return NULL;
}

const struct copy_loop *copy_loop_best(void)
{
    int best = copy_loop_count() - 1;
    while (!loops[best].runs_here())
        best--;
    return &loops[best];
}
