/* Carry-less folding of CRC-32C (x86): a line stands for all bytes before it, and moves over those that
   follow. Folding by n bytes multiplies by x^(8n + 32) and x^(8n - 32), each shifted left by one as the
   product of bit-reflected factors needs. */
#ifndef KVFABRIC_CRC32C_FOLD_H
#define KVFABRIC_CRC32C_FOLD_H

#include <immintrin.h>

#define FOLD_TARGET __attribute__((target("avx512f,avx512vl,vpclmulqdq,sse4.2")))

#define FOLD_BY_128 0x0d3b6092, 0x6992cea2
#define FOLD_BY_256 0xb9e02b86, 0xdcb17aa4
#define FOLD_BY_4096 0x18714ea86, 0xc2a5b65e

/* The arguments are one of FOLD_BY_*. */
FOLD_TARGET static inline __m512i fold_factors(long long high, long long low)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x(high, low));
}

FOLD_TARGET static inline __m512i fold_line(__m512i line, __m512i factors, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(line, factors, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(line, factors, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

#endif
