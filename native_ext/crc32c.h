/* CRC-32C (Castagnoli) on its bare register: no inversion at either end, so that parts add up by XOR. */
#ifndef KVFABRIC_CRC32C_H
#define KVFABRIC_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The register after `nbytes` of data. */
uint32_t crc32c_extend(uint32_t crc, const void *data, size_t nbytes);

/* The register after `nbytes` zero bytes: extend(c, AB) == shift(extend(c, A), len B) ^ extend(0, B). */
uint32_t crc32c_shift(uint32_t crc, uint64_t nbytes);

/* The published checksum of a message of `nbytes` whose register, begun at 0, ended at `crc`. */
uint32_t crc32c_finish(uint32_t crc, uint64_t nbytes);

/* What computes it here: "vpclmulqdq", "sse4.2", "armv8" or "table". */
const char *crc32c_name(void);

/* The portable way, for comparison in tests. */
uint32_t crc32c_extend_table(uint32_t crc, const void *data, size_t nbytes);

#endif
