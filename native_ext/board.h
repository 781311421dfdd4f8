/* The board of a grant, in the page of the endpoint that gave it: what its writers have done, for the receiver to see.
 *
 *   owner      kvf_board_init, then publishes the grant's slot; sleeps on the board's bell; frees the board when the
 *              slot was retired and drained
 *   writers    kvf_board_bind when they come, cover what they wrote, then seal or fail; all of it inside a cell of
 *              the grant's slot, so that no board is written that was given to another grant
 *
 * kvf_board | kvf_writer[writers] | covered: bits [tensor][block] | digests: uint32 [tensor][block], if it has them
 *
 * A bit is set after the bytes that it speaks of are visible (the copy threads have fenced), and read before them.
 * A writer is bound to one incarnation for good: WAITED_FOR -> MOVING -> SEALED | FAILED.
 */
#ifndef KVF_BOARD_H
#define KVF_BOARD_H

#include "page.h"

#define KVF_TEXT 416

enum { KVF_WAITED_FOR = 0, KVF_MOVING = 1, KVF_SEALED = 2, KVF_FAILED = 3 };

typedef struct {
    _Atomic uint64_t owner; /* the writer's incarnation; 0: it has not come yet */
    _Atomic uint64_t process; /* 0: on another host */
    _Atomic uint32_t state;
    uint32_t transport;
    _Atomic uint64_t cluster_id;
    _Atomic uint64_t nbytes;
    _Atomic uint64_t transfers;
    _Atomic int64_t seen_ns; /* when it last did something */
    int64_t code;            /* why it failed: a status code, and a text */
    char text[KVF_TEXT];
    unsigned char pad[32];
} kvf_writer;

_Static_assert(sizeof(kvf_writer) == 512, "a writer is eight cache lines");

typedef struct {
    unsigned char seal[16]; /* what a bearer's grant has to come to */
    int64_t deadline_ns;
    uint64_t fence; /* the generation of its slot: no two grants have the same */
    uint32_t slot;
    uint32_t writers;
    uint32_t tensors;
    uint32_t blocks;
    uint32_t has_digests;
    _Atomic uint32_t bell;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t followers; /* the sleepers that wait for writes, not for seals */
    unsigned char pad[64];
} kvf_board;

_Static_assert(sizeof(kvf_board) == 128, "a board's head is two cache lines");

enum {
    KVF_FORGED = -20,   /* not what was granted */
    KVF_EXPIRED = -21,  /* its deadline has passed */
    KVF_REPLAYED = -22, /* this writer has sealed already, or is bound to another endpoint */
    KVF_SPENT = -23,    /* this writer has failed before */
    KVF_LACKING = -24,  /* all writers have sealed, and not all was written */
};

typedef struct {
    uint64_t owner;
    uint64_t process;
    uint64_t cluster_id;
    uint32_t writer;
    uint32_t transport;
} kvf_bearer;

typedef struct {
    uint32_t first_tensor;
    uint32_t tensors;
    uint32_t first_block;
    uint32_t blocks;
} kvf_share; /* positions in the grant, not in the cache */

uint64_t kvf_board_nbytes(uint32_t writers, uint32_t tensors, uint32_t blocks, int has_digests);
void kvf_board_init(kvf_page *page, uint64_t at, const kvf_board *head);

int kvf_board_bind(kvf_page *page, uint64_t at, const unsigned char seal[16], const kvf_bearer *bearer);
void kvf_board_cover(kvf_page *page, uint64_t at, uint32_t writer, const kvf_share *share, const uint32_t *digests,
                     uint64_t nbytes);
void kvf_board_seal(kvf_page *page, uint64_t at, uint32_t writer);
void kvf_board_fail(kvf_page *page, uint64_t at, uint32_t writer, int64_t code, const char *text);

typedef struct {
    uint64_t at;
    uint64_t fence;
    kvf_share share;
    int wants_seals;
} kvf_wish; /* what a receiver waits for */

int kvf_board_look(kvf_page *page, const kvf_wish *wish, uint32_t *writer);
int kvf_board_await(kvf_page *page, const kvf_wish *wish, int64_t deadline_ns, uint32_t *writer);
uint64_t kvf_board_covered(kvf_page *page, uint64_t at, const kvf_share *share);
kvf_writer *kvf_board_writer(kvf_page *page, uint64_t at, uint32_t writer);
uint32_t *kvf_board_digests(kvf_page *page, uint64_t at, uint32_t tensor);
void kvf_board_ring(kvf_page *page, uint64_t at); /* something has ended: all who sleep */
void kvf_board_ring_written(kvf_page *page, uint64_t at);

#endif
