#define _GNU_SOURCE
#include "board.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define WATCH_NAP_NS (50 * 1000000LL) /* a waiting receiver looks this often for writers that died */

static kvf_board *board_at(kvf_page *page, uint64_t at) { return (kvf_board *)(page->boards + at); }

static uint64_t row_words(uint32_t blocks) { return (blocks + 63) / 64; }

static uint64_t bits_offset(uint32_t writers) { return sizeof(kvf_board) + writers * sizeof(kvf_writer); }

static _Atomic uint64_t *row_of(kvf_page *page, uint64_t at, uint32_t tensor) {
    const kvf_board *board = board_at(page, at);
    _Atomic uint64_t *bits = (_Atomic uint64_t *)(page->boards + at + bits_offset(board->writers));
    return bits + tensor * row_words(board->blocks);
}

uint32_t *kvf_board_digests(kvf_page *page, uint64_t at, uint32_t tensor) {
    const kvf_board *board = board_at(page, at);
    uint32_t *digests = (uint32_t *)row_of(page, at, board->tensors);
    return digests + (uint64_t)tensor * board->blocks;
}

uint64_t kvf_board_nbytes(uint32_t writers, uint32_t tensors, uint32_t blocks, int has_digests) {
    uint64_t digests = has_digests ? (uint64_t)tensors * blocks * sizeof(uint32_t) : 0;
    return bits_offset(writers) + tensors * row_words(blocks) * sizeof(uint64_t) + digests;
}

/* Before the slot is published, so no writer sees it half made. */
void kvf_board_init(kvf_page *page, uint64_t at, const kvf_board *head) {
    memset(page->boards + at, 0,
           kvf_board_nbytes(head->writers, head->tensors, head->blocks, (int)head->has_digests));
    memcpy(page->boards + at, head, offsetof(kvf_board, bell));
}

kvf_writer *kvf_board_writer(kvf_page *page, uint64_t at, uint32_t writer) {
    return (kvf_writer *)(page->boards + at + sizeof(kvf_board)) + writer;
}

enum { FOR_SEALS = 1, FOR_WRITES = 2 }; /* futex bit sets */

static void ring(kvf_board *board, const _Atomic uint32_t *sleepers, uint32_t whom) {
    atomic_fetch_add(&board->bell, 1);
    if (atomic_load(sleepers) != 0)
        syscall(SYS_futex, &board->bell, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL, whom);
}

void kvf_board_ring(kvf_page *page, uint64_t at) {
    kvf_board *board = board_at(page, at);
    ring(board, &board->sleepers, FUTEX_BITSET_MATCH_ANY);
}

/* Who waits for seals sleeps on: a receiver that every push wakes takes a core from those who compute. */
void kvf_board_ring_written(kvf_page *page, uint64_t at) {
    kvf_board *board = board_at(page, at);
    ring(board, &board->followers, FOR_WRITES);
}

/* ---- writers, inside a cell of the grant's slot ------------------------------------------------------- */

static int is_board_of(const kvf_page *page, uint64_t at) {
    return at % 64 == 0 && at <= KVF_BOARDS_NBYTES - sizeof(kvf_board);
}

static int bind_owner(kvf_writer *writer, const kvf_bearer *bearer) {
    uint64_t nobody = 0;
    if (!atomic_compare_exchange_strong(&writer->owner, &nobody, bearer->owner))
        return nobody == bearer->owner ? KVF_OK : KVF_REPLAYED;
    atomic_store(&writer->process, bearer->process);
    atomic_store(&writer->cluster_id, bearer->cluster_id);
    return KVF_OK;
}

int kvf_board_bind(kvf_page *page, uint64_t at, const unsigned char seal[16], const kvf_bearer *bearer) {
    if (!is_board_of(page, at))
        return KVF_FORGED;
    kvf_board *board = board_at(page, at);
    if (memcmp(board->seal, seal, sizeof board->seal) != 0 || bearer->writer >= board->writers)
        return KVF_FORGED;
    if (kvf_monotonic_ns() >= board->deadline_ns)
        return KVF_EXPIRED;
    kvf_writer *writer = kvf_board_writer(page, at, bearer->writer);
    if (bind_owner(writer, bearer) != KVF_OK)
        return KVF_REPLAYED;
    uint32_t waited_for = KVF_WAITED_FOR;
    atomic_compare_exchange_strong(&writer->state, &waited_for, KVF_MOVING);
    uint32_t state = atomic_load(&writer->state);
    if (state != KVF_MOVING)
        return state == KVF_SEALED ? KVF_REPLAYED : KVF_SPENT;
    writer->transport = bearer->transport;
    atomic_store(&writer->seen_ns, kvf_monotonic_ns());
    return KVF_OK;
}

static uint64_t mask_of(uint32_t begin, uint32_t end, uint64_t word) {
    uint64_t first = word * 64, mask = ~(uint64_t)0;
    if (begin > first)
        mask &= ~(uint64_t)0 << (begin - first);
    if (end < first + 64)
        mask &= ~(~(uint64_t)0 << (end - first));
    return mask;
}

static void cover_row(_Atomic uint64_t *row, uint32_t begin, uint32_t end) {
    for (uint64_t word = begin / 64; word * 64 < end; word++)
        atomic_fetch_or(&row[word], mask_of(begin, end, word));
}

void kvf_board_cover(kvf_page *page, uint64_t at, uint32_t index, const kvf_share *share, const uint32_t *digests,
                     uint64_t nbytes) {
    kvf_writer *writer = kvf_board_writer(page, at, index);
    for (uint32_t i = 0; i < share->tensors; i++) {
        uint32_t tensor = share->first_tensor + i;
        if (digests != NULL)
            memcpy(kvf_board_digests(page, at, tensor) + share->first_block, digests + (uint64_t)i * share->blocks,
                   share->blocks * sizeof *digests);
        cover_row(row_of(page, at, tensor), share->first_block, share->first_block + share->blocks);
    }
    atomic_fetch_add(&writer->nbytes, nbytes);
    atomic_fetch_add(&writer->transfers, 1);
    atomic_store(&writer->seen_ns, kvf_monotonic_ns());
}

static void end_writer(kvf_page *page, uint64_t at, uint32_t index, uint32_t state) {
    kvf_writer *writer = kvf_board_writer(page, at, index);
    uint32_t moving = KVF_MOVING;
    atomic_compare_exchange_strong(&writer->state, &moving, state);
    atomic_store(&writer->seen_ns, kvf_monotonic_ns());
}

void kvf_board_seal(kvf_page *page, uint64_t at, uint32_t index) { end_writer(page, at, index, KVF_SEALED); }

/* The first failure of a writer stays: the text is written before the state that shows it. */
void kvf_board_fail(kvf_page *page, uint64_t at, uint32_t index, int64_t code, const char *text) {
    kvf_writer *writer = kvf_board_writer(page, at, index);
    uint32_t state = atomic_load(&writer->state);
    if (state == KVF_SEALED || state == KVF_FAILED)
        return;
    writer->code = code;
    strncpy(writer->text, text, KVF_TEXT - 1);
    while (state != KVF_SEALED && state != KVF_FAILED)
        if (atomic_compare_exchange_weak(&writer->state, &state, KVF_FAILED))
            break;
    atomic_store(&writer->seen_ns, kvf_monotonic_ns());
    kvf_board_ring(page, at);
}

/* ---- the receiver ----------------------------------------------------------------------------------- */

static uint64_t covered_in_row(_Atomic uint64_t *row, uint32_t begin, uint32_t end) {
    uint64_t count = 0;
    for (uint64_t word = begin / 64; word * 64 < end; word++)
        count += (uint64_t)__builtin_popcountll(atomic_load(&row[word]) & mask_of(begin, end, word));
    return count;
}

uint64_t kvf_board_covered(kvf_page *page, uint64_t at, const kvf_share *share) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < share->tensors; i++)
        count += covered_in_row(row_of(page, at, share->first_tensor + i), share->first_block,
                                share->first_block + share->blocks);
    return count;
}

static uint32_t writers_in(kvf_page *page, uint64_t at, uint32_t state, uint32_t *found) {
    const kvf_board *board = board_at(page, at);
    uint32_t count = 0;
    for (uint32_t index = 0; index < board->writers; index++)
        if (atomic_load(&kvf_board_writer(page, at, index)->state) == state) {
            *found = index;
            count++;
        }
    return count;
}

/* KVF_OK: all of the share is there, and if it is wanted every writer has sealed. Seals are counted before bits are:
 * a writer sets its bits first. KVF_STALE also when the board was given to another grant, or is just being. */
int kvf_board_look(kvf_page *page, const kvf_wish *wish, uint32_t *writer) {
    const kvf_board *board = board_at(page, wish->at);
    if (board->fence != wish->fence)
        return KVF_STALE;
    if (writers_in(page, wish->at, KVF_FAILED, writer) != 0)
        return KVF_SPENT;
    const kvf_share *share = &wish->share;
    int all_sealed = writers_in(page, wish->at, KVF_SEALED, writer) == board->writers;
    int all_there = kvf_board_covered(page, wish->at, share) == (uint64_t)share->tensors * share->blocks;
    if (all_there && (all_sealed || !wish->wants_seals))
        return KVF_OK;
    if (all_sealed)
        return KVF_LACKING;
    return kvf_is_current(page, board->slot, wish->fence) ? KVF_NOT_YET : KVF_STALE;
}

static int moving_writer_is_gone(kvf_page *page, uint64_t at, uint32_t *writer) {
    const kvf_board *board = board_at(page, at);
    for (uint32_t index = 0; index < board->writers; index++) {
        kvf_writer *each = kvf_board_writer(page, at, index);
        if (atomic_load(&each->state) == KVF_MOVING && kvf_is_gone(atomic_load(&each->process))) {
            *writer = index;
            return 1;
        }
    }
    return 0;
}

static void sleep_on_board(kvf_board *board, const kvf_wish *wish, uint32_t seen, int64_t until_ns) {
    struct timespec until = {.tv_sec = until_ns / NS, .tv_nsec = until_ns % NS};
    uint32_t follows = wish->wants_seals ? 0 : 1, which = follows ? FOR_WRITES : FOR_SEALS;
    atomic_fetch_add(&board->followers, follows);
    atomic_fetch_add(&board->sleepers, 1);
    if (atomic_load(&board->bell) == seen)
        syscall(SYS_futex, &board->bell, FUTEX_WAIT_BITSET, seen, &until, NULL, which);
    atomic_fetch_sub(&board->sleepers, 1);
    atomic_fetch_sub(&board->followers, follows);
}

/* As look, but never KVF_NOT_YET: it sleeps until there is more to say, a writer has died (KVF_PEER_DEAD) or the
 * deadline has passed. A writer that sealed before it died has not died for this. */
int kvf_board_await(kvf_page *page, const kvf_wish *wish, int64_t deadline_ns, uint32_t *writer) {
    kvf_board *board = board_at(page, wish->at);
    int64_t watched_ns = 0;
    for (;;) {
        uint32_t seen = atomic_load(&board->bell), other;
        int64_t now = kvf_monotonic_ns();
        int gone = 0;
        if (now - watched_ns >= WATCH_NAP_NS) { /* it reads /proc */
            gone = moving_writer_is_gone(page, wish->at, writer);
            watched_ns = now;
        }
        int status = kvf_board_look(page, wish, gone ? &other : writer);
        if (status != KVF_NOT_YET)
            return status;
        if (gone)
            return KVF_PEER_DEAD;
        if (now >= deadline_ns)
            return KVF_TIMED_OUT;
        int64_t nap = watched_ns + WATCH_NAP_NS;
        sleep_on_board(board, wish, seen, nap < deadline_ns ? nap : deadline_ns);
    }
}
