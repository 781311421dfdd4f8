/* Copies and checksums in one pass over the source. */
#ifndef KVFABRIC_COPY_DIGEST_H
#define KVFABRIC_COPY_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "copy_loops.h"

/* Copies a piece with `loop` and returns the checksum register behind it. */
uint32_t copy_and_digest(const struct copy_loop *loop, char *target, const char *source, size_t nbytes,
                         uint32_t crc);

#endif
