#include "copy_digest.h"

#include <string.h>

#include "crc32c.h"

/* Copied first, by the loop that is best at waiting for memory, then checksummed out of the cache. */
enum { PIECE_NBYTES = 32 << 10 };

static uint32_t copy_then_digest(copy_function *copy, char *target, const char *source, size_t nbytes,
                                 uint32_t crc)
{
    for (size_t done = 0; done < nbytes; done += PIECE_NBYTES) {
        size_t piece = nbytes - done < PIECE_NBYTES ? nbytes - done : PIECE_NBYTES;
        copy(target + done, source + done, piece);
        crc = crc32c_extend(crc, source + done, piece);
    }
    return crc;
}

#if defined(__x86_64__)
#include "crc32c_fold.h"

/* The streaming loop of copy_loops.c with a fold beside each store: the multiplications run while memory is
   awaited. Each page lane folds for itself, and the lanes are folded into one at the window's end. */
enum { LINE = 64, STEP = 2 * LINE, PAGE = 4096, MOST_LANES = 8 };

struct fold {
    __m512i first;
    __m512i second;
};

FOLD_TARGET static inline struct fold stream_step(char *target, const char *source, struct fold fold,
                                                  __m512i factors)
{
    __m512i first = _mm512_loadu_si512(source);
    __m512i second = _mm512_loadu_si512(source + LINE);
    _mm512_stream_si512((void *)target, first);
    _mm512_stream_si512((void *)(target + LINE), second);
    return (struct fold){fold_line(fold.first, factors, first), fold_line(fold.second, factors, second)};
}

/* Written for constant `lanes`: unrolled, the folds stay in registers. */
FOLD_TARGET static inline __attribute__((always_inline)) struct fold stream_window(char *target,
                                                                                   const char *source,
                                                                                   struct fold fold,
                                                                                   int lanes)
{
    const __m512i by_step = fold_factors(FOLD_BY_128), by_page = fold_factors(FOLD_BY_4096);
    struct fold of_lane[MOST_LANES] = {fold};
#pragma GCC unroll 8
    for (int lane = 1; lane < lanes; lane++)
        of_lane[lane].first = of_lane[lane].second = _mm512_setzero_si512();
    for (int byte = 0; byte < PAGE; byte += STEP)
#pragma GCC unroll 8
        for (int lane = 0; lane < lanes; lane++) {
            int place = lane * PAGE + byte;
            of_lane[lane] = stream_step(target + place, source + place, of_lane[lane], by_step);
        }
    fold = of_lane[0];
#pragma GCC unroll 8
    for (int lane = 1; lane < lanes; lane++) {
        fold.first = fold_line(fold.first, by_page, of_lane[lane].first);
        fold.second = fold_line(fold.second, by_page, of_lane[lane].second);
    }
    return fold;
}

/* Lines that leave the register at `crc`: zeros that end in crc / x^32. */
FOLD_TARGET static struct fold fold_begin(uint32_t crc)
{
    int last = (int)crc32c_unshift_word(crc);
    return (struct fold){_mm512_setzero_si512(), _mm512_maskz_set1_epi32(1 << 15, last)};
}

FOLD_TARGET static uint32_t fold_end(struct fold fold)
{
    char lines[STEP];
    _mm512_storeu_si512(lines, fold.first);
    _mm512_storeu_si512(lines + LINE, fold.second);
    return crc32c_extend(0, lines, STEP);
}

/* `target` is aligned to a line and `nbytes` a multiple of STEP. */
FOLD_TARGET static uint32_t stream_and_fold(char *target, const char *source, size_t nbytes, uint32_t crc)
{
    struct fold fold = fold_begin(crc);
    size_t done = 0;
    for (; nbytes - done >= 8 * PAGE; done += 8 * PAGE)
        fold = stream_window(target + done, source + done, fold, 8);
    for (; nbytes - done >= 2 * PAGE; done += 2 * PAGE)
        fold = stream_window(target + done, source + done, fold, 2);
    for (; done < nbytes; done += STEP)
        fold = stream_step(target + done, source + done, fold, fold_factors(FOLD_BY_128));
    return fold_end(fold);
}

static uint32_t copy_edge(char *target, const char *source, size_t nbytes, uint32_t crc)
{
    memcpy(target, source, nbytes);
    return crc32c_extend(crc, source, nbytes);
}

static uint32_t stream_and_digest(char *target, const char *source, size_t nbytes, uint32_t crc)
{
    size_t head = copy_head_nbytes(target, nbytes);
    size_t body = (nbytes - head) - (nbytes - head) % STEP;
    crc = copy_edge(target, source, head, crc);
    if (body)
        crc = stream_and_fold(target + head, source + head, body, crc);
    return copy_edge(target + head + body, source + head + body, nbytes - head - body, crc);
}

static bool streams_and_folds(const struct copy_loop *loop)
{
    return strcmp(loop->name, "avx512") == 0 && strcmp(crc32c_best_way()->name, "vpclmulqdq") == 0;
}
#endif

uint32_t copy_and_digest(const struct copy_loop *loop, char *target, const char *source, size_t nbytes,
                         uint32_t crc)
{
#if defined(__x86_64__)
    if (streams_and_folds(loop))
        return stream_and_digest(target, source, nbytes, crc);
#endif
    return copy_then_digest(loop->copy, target, source, nbytes, crc);
}
