#include "crc32c.h"

#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* bit-reflected, as are all registers here: bit 31 is x^0 */

/* ---- portable ---- */

static const uint32_t of_nibble[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

static bool runs_everywhere(void)
{
    return true;
}

static uint32_t extend_table(uint32_t crc, const unsigned char *at, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++) {
        crc ^= at[i];
        crc = (crc >> 4) ^ of_nibble[crc & 15];
        crc = (crc >> 4) ^ of_nibble[crc & 15];
    }
    return crc;
}

/* x^(2^k); the sequence repeats after 31, as the polynomial is x + 1 times a primitive one of degree 31. */
static const uint32_t x_to_power_of_two[31] = {
    0x40000000, 0x20000000, 0x08000000, 0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18,
    0x510ac59a, 0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62,
    0x28461564, 0xbf455269, 0xe2ea32dc, 0xfe7740e6, 0xf946610b, 0x3c204f8f, 0x538586e3, 0x59726915,
    0x734d5309, 0xbc1ac763, 0x7d0722cc, 0xd289cabe, 0xe94ca9bc, 0x05b74f3f, 0xa51e1f42,
};

static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (; a; a <<= 1) {
        product ^= b & -(a >> 31);
        b = (b >> 1) ^ (POLYNOMIAL & -(b & 1));
    }
    return product;
}

uint32_t crc32c_shift(uint32_t crc, uint64_t nbytes)
{
    int power = 3; /* of two, in bits: a byte is 8 of them */
    for (; nbytes && crc; nbytes >>= 1, power = (power + 1) % 31)
        if (nbytes & 1)
            crc = multiply(x_to_power_of_two[power], crc);
    return crc;
}

#define X_TO_MINUS_32 0xd610d67eu

uint32_t crc32c_unshift_word(uint32_t crc)
{
    return multiply(X_TO_MINUS_32, crc);
}

uint32_t crc32c_finish(uint32_t crc, uint64_t nbytes)
{
    return ~(crc ^ crc32c_shift(UINT32_MAX, nbytes));
}

/* ---- the processor's own instruction ---- */

#if defined(__x86_64__)
#include <immintrin.h>
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_BYTE(crc, value) _mm_crc32_u8((crc), (value))
#define CRC_WORD(crc, value) ((uint32_t)_mm_crc32_u64((crc), (value)))
#define CRC_NAME "sse4.2"
static bool has_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__linux__)
#pragma GCC push_options
#pragma GCC target("+crc")
#include <arm_acle.h>
#pragma GCC pop_options
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define CRC_TARGET __attribute__((target("+crc")))
#define CRC_BYTE(crc, value) __crc32cb((crc), (value))
#define CRC_WORD(crc, value) __crc32cd((crc), (value))
#define CRC_NAME "armv8"
static bool has_instruction(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
#endif

#ifdef CRC_NAME
/* The instruction takes 3 cycles and starts every cycle, so three lanes run side by side. A lane is long
   enough to hide the two multiplications that join them. */
enum { LANE = 4096 };
#define X_TO_LANE 0x35d73a62u      /* x^(8 * LANE) */
#define X_TO_TWO_LANES 0x28461564u /* x^(16 * LANE) */

static inline uint64_t word_at(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

CRC_TARGET static uint32_t extend_three_lanes(uint32_t crc, const unsigned char *at)
{
    uint32_t second = 0, third = 0;
    for (size_t i = 0; i < LANE; i += 8) {
        crc = CRC_WORD(crc, word_at(at + i));
        second = CRC_WORD(second, word_at(at + LANE + i));
        third = CRC_WORD(third, word_at(at + 2 * LANE + i));
    }
    return multiply(X_TO_TWO_LANES, crc) ^ multiply(X_TO_LANE, second) ^ third;
}

CRC_TARGET static uint32_t extend_instruction(uint32_t crc, const unsigned char *at, size_t nbytes)
{
    for (; nbytes >= 3 * LANE; at += 3 * LANE, nbytes -= 3 * LANE)
        crc = extend_three_lanes(crc, at);
    for (; nbytes >= 8; at += 8, nbytes -= 8)
        crc = CRC_WORD(crc, word_at(at));
    for (; nbytes; at++, nbytes--)
        crc = CRC_BYTE(crc, *at);
    return crc;
}
#endif

/* ---- carry-less multiplication, 256 bytes at a time ---- */

#if defined(__x86_64__)
#include "crc32c_fold.h"

enum { FOLD = 256, FOLD_LINES = 4, LINE = 64, LEAST_TO_FOLD = 1024 };

static bool has_folding(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") && has_instruction();
}

/* Keeps 256 bytes whose register equals that of all bytes read so far. `nbytes` is a multiple of FOLD, not 0.
 */
FOLD_TARGET static uint32_t fold_all(uint32_t crc, const unsigned char *at, size_t nbytes)
{
    const __m512i factors = fold_factors(FOLD_BY_256);
    __m512i lines[FOLD_LINES];
    for (int i = 0; i < FOLD_LINES; i++)
        lines[i] = _mm512_loadu_si512(at + i * LINE);
    lines[0] = _mm512_xor_si512(lines[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (size_t done = FOLD; done < nbytes; done += FOLD)
        for (int i = 0; i < FOLD_LINES; i++)
            lines[i] = fold_line(lines[i], factors, _mm512_loadu_si512(at + done + (size_t)i * LINE));
    unsigned char folded[FOLD];
    for (int i = 0; i < FOLD_LINES; i++)
        _mm512_storeu_si512(folded + i * LINE, lines[i]);
    return extend_instruction(0, folded, FOLD);
}

static uint32_t extend_folding(uint32_t crc, const unsigned char *at, size_t nbytes)
{
    size_t folded = nbytes < LEAST_TO_FOLD ? 0 : nbytes - nbytes % FOLD;
    if (folded)
        crc = fold_all(crc, at, folded);
    return extend_instruction(crc, at + folded, nbytes - folded);
}
#endif

/* ---- the choice ---- */

static const struct crc32c_way ways[] = {
#if defined(__x86_64__)
    {"vpclmulqdq", has_folding, extend_folding},
#endif
#ifdef CRC_NAME
    {CRC_NAME, has_instruction, extend_instruction},
#endif
    {"table", runs_everywhere, extend_table},
};

int crc32c_way_count(void)
{
    return (int)(sizeof ways / sizeof ways[0]);
}

const struct crc32c_way *crc32c_way_at(int index)
{
    return &ways[index];
}

const struct crc32c_way *crc32c_best_way(void)
{
    int best = 0;
    while (!ways[best].runs_here())
        best++;
    return &ways[best];
}

uint32_t crc32c_extend(uint32_t crc, const void *data, size_t nbytes)
{
    return crc32c_best_way()->extend(crc, data, nbytes);
}
