/* The page that an endpoint shares with its writers: generation words, links, completion records, a bell, the boards
 * of its grants (board.h), and notices (notice.h).
 *
 *   owner (the endpoint)                       writers (other processes, or the endpoint itself)
 *   slot word = generation  while a cache or   enter: cell = slot + 1, then check the word
 *   a grant stands; 0 retires it, then drain   leave: cell = 0
 *   waits
 *   reads rings, sleeps on the bell            post: record, then bell, then wake if somebody sleeps
 *
 * Invariant (hazard pointer): enter stores its cell before it reads the word, retire stores the word before
 * drain reads the cells, all sequentially consistent. So either the writer sees 0 and stays away, or drain
 * sees the cell and waits. One process owns a link, and its calls on one link are serialised by the caller
 * where noted; different links never share a cache line that both write, but for the bell.
 */
#ifndef KVF_PAGE_H
#define KVF_PAGE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define KVF_PAGE_MAGIC 0x6b76666162726963ULL /* "kvfabric" */
#define KVF_PAGE_VERSION 4
#define KVF_SLOTS 16384
#define KVF_LINKS 256
#define KVF_CELLS 8
#define KVF_RECORDS 256 /* a ring; the oldest is overwritten */
#define KVF_BOARDS_NBYTES (64 << 20) /* sparse: what no grant uses takes no memory */
#define KVF_NOTICES 64 /* a ring */
#define KVF_NOTICE_NBYTES ((32 << 10) - 32)

typedef struct {
    _Atomic uint64_t sequence; /* 0 while being written; else 1, 2, ... */
    unsigned char transfer_id[16];
    uint64_t source_cluster_id;
    int64_t cache_id;
    uint32_t first_layer;
    uint32_t num_layers;
    uint64_t num_blocks;
    uint64_t nbytes;
    int64_t started_ns; /* CLOCK_MONOTONIC */
    int64_t landed_ns;
    uint32_t transport;
    unsigned char reserved[44];
} kvf_record;

_Static_assert(sizeof(kvf_record) == 128, "a record is two cache lines");

typedef struct {
    _Atomic uint64_t owner; /* the writer's incarnation; 0: nobody writes */
    _Atomic uint64_t process; /* the writer's; 0: free. Whoever swaps it has claimed the link */
    _Atomic uint64_t posted; /* sequence of the newest record */
    _Atomic uint32_t eye; /* what the writer does about notices: see notice.h */
    unsigned char pad[36];
    _Atomic uint64_t cells[KVF_CELLS]; /* slot + 1 of what is being written; 0: nothing */
} kvf_link;

_Static_assert(sizeof(kvf_link) == 128, "a link is two cache lines");

typedef struct {
    _Atomic uint64_t sequence; /* 0 while being written, and once withdrawn */
    _Atomic uint64_t verdict;  /* the reader's, on which sequence */
    uint64_t to;               /* the incarnation that it is meant for */
    uint32_t nbytes;
    uint32_t reserved;
    unsigned char text[KVF_NOTICE_NBYTES];
} kvf_notice;

_Static_assert(sizeof(kvf_notice) == 32 << 10, "a notice is eight pages of memory");

typedef struct {
    uint64_t magic;
    uint64_t version;
    uint64_t incarnation;
    uint64_t cluster_id;
    int64_t pid;
    unsigned char pad[24];
    _Atomic uint32_t bell; /* futex word, rises with every record and every leave that drain waits for */
    _Atomic uint32_t sleepers;
    _Atomic uint32_t draining; /* 1: no push enters any more but under a grant */
    unsigned char pad2[52];
    _Atomic uint64_t slots[KVF_SLOTS];
    kvf_link links[KVF_LINKS];
    kvf_record records[KVF_LINKS][KVF_RECORDS];
    _Atomic uint64_t shown; /* sequence of the newest notice */
    unsigned char pad3[56];
    kvf_notice notices[KVF_NOTICES];
    unsigned char boards[KVF_BOARDS_NBYTES];
} kvf_page;

_Static_assert(offsetof(kvf_page, boards) % 64 == 0, "boards begin on a cache line");

enum {
    KVF_OK = 0,
    KVF_STALE = -1,     /* the slot no longer holds the generation */
    KVF_PEER_DEAD = -2, /* the pidfd says that the process has ended */
    KVF_BUSY = -3,      /* all cells of the link, or all links, are taken */
    KVF_NOT_YET = -4,
    KVF_OVERWRITTEN = -5,
    KVF_TIMED_OUT = -6,
    KVF_DRAINING = -7,  /* the endpoint takes no more pushes */
};

void kvf_page_init(kvf_page *page, uint64_t incarnation, uint64_t cluster_id, int64_t pid);
int64_t kvf_monotonic_ns(void);
int kvf_has_ended(int pidfd);

/* A process by its number and when it started, since numbers are used again: pid | start << KVF_PID_BITS, in one word
 * so that it can be swapped. The start is 0 where /proc does not tell. 0 is nobody, who is never gone. */
#define KVF_PID_BITS 22
uint64_t kvf_process(int64_t pid);
int64_t kvf_pid(uint64_t process);
int kvf_is_gone(uint64_t process);

int kvf_claim_link(kvf_page *page, uint64_t owner, int64_t pid);
int kvf_is_idle(kvf_page *page, int link); /* whether no transfer of the link is under way */
void kvf_release_link(kvf_page *page, int link, uint64_t owner);
int kvf_sweep_links(kvf_page *page); /* frees the links of writers that died; how many */

int kvf_enter(kvf_page *page, int link, uint32_t slot, uint64_t generation);
int kvf_enter_to_push(kvf_page *page, int link, uint32_t slot, uint64_t generation);
void kvf_set_draining(kvf_page *page);
int kvf_count_writers(kvf_page *page);
int kvf_is_current(kvf_page *page, uint32_t slot, uint64_t generation);
void kvf_leave(kvf_page *page, int link, int cell);
void kvf_retire(kvf_page *page, uint32_t slot);
int kvf_drain(kvf_page *page, uint32_t slot, int64_t deadline_ns);

void kvf_post(kvf_page *page, int link, const kvf_record *record);
int kvf_read(kvf_page *page, int link, uint64_t sequence, kvf_record *record);
uint32_t kvf_bell(kvf_page *page);
void kvf_ring(kvf_page *page);
int kvf_sleep(kvf_page *page, uint32_t seen, int64_t deadline_ns);

#endif
