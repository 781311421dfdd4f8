/* CRC-32C (Castagnoli) on its bare register: no inversion at either end, so that parts add up by XOR. */
#ifndef KVFABRIC_CRC32C_H
#define KVFABRIC_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The register after `nbytes` of data. */
uint32_t crc32c_extend(uint32_t crc, const void *data, size_t nbytes);

/* The register after `nbytes` zero bytes: extend(c, AB) == shift(extend(c, A), len B) ^ extend(0, B). */
uint32_t crc32c_shift(uint32_t crc, uint64_t nbytes);

/* The word whose four bytes, read from register 0, leave the register at `crc`. */
uint32_t crc32c_unshift_word(uint32_t crc);

/* The published checksum of a message of `nbytes` whose register, begun at 0, ended at `crc`. */
uint32_t crc32c_finish(uint32_t crc, uint64_t nbytes);

/* The ways to compute it, fastest first; the last, "table", runs everywhere. */
struct crc32c_way {
    const char *name; /* "vpclmulqdq", "sse4.2", "armv8" or "table" */
    bool (*runs_here)(void);
    uint32_t (*extend)(uint32_t crc, const unsigned char *at, size_t nbytes);
};

int crc32c_way_count(void);
const struct crc32c_way *crc32c_way_at(int index);

/* The first that runs here; crc32c_extend() uses it. */
const struct crc32c_way *crc32c_best_way(void);

#endif
