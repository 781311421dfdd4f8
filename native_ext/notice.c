#include "notice.h"

#include <string.h>

#define VERDICT_BITS 2

static kvf_notice *place_of(kvf_page *page, uint64_t sequence) { return &page->notices[sequence % KVF_NOTICES]; }

/* Calls are serialised by the caller. Returns the notice's sequence. */
uint64_t kvf_show(kvf_page *page, uint64_t to, const void *text, uint32_t nbytes) {
    uint64_t sequence = atomic_load(&page->shown) + 1;
    kvf_notice *place = place_of(page, sequence);
    atomic_store(&place->sequence, 0);
    atomic_thread_fence(memory_order_release); /* what follows is not seen under the old number */
    place->to = to;
    place->nbytes = nbytes;
    memcpy(place->text, text, nbytes);
    atomic_store(&place->verdict, 0);
    atomic_store(&place->sequence, sequence);
    atomic_store(&page->shown, sequence);
    return sequence;
}

void kvf_withdraw(kvf_page *page, uint64_t sequence) {
    atomic_compare_exchange_strong(&place_of(page, sequence)->sequence, &sequence, 0);
}

/* One that was withdrawn or overwritten without a verdict counts as declined. */
int kvf_verdict(kvf_page *page, uint64_t sequence) {
    kvf_notice *place = place_of(page, sequence);
    uint64_t verdict = atomic_load(&place->verdict);
    if (verdict >> VERDICT_BITS == sequence)
        return (int)(verdict & ((1 << VERDICT_BITS) - 1));
    return atomic_load(&place->sequence) == sequence ? KVF_OPEN : KVF_DECLINED;
}

/* What the writer of this incarnation does, on whichever of its links; KVF_STALE where it has none. */
int kvf_eye(kvf_page *page, uint64_t owner) {
    int eye = KVF_STALE;
    for (int index = 0; index < KVF_LINKS; index++)
        if (atomic_load(&page->links[index].owner) == owner) {
            int its = (int)atomic_load(&page->links[index].eye);
            eye = its > eye ? its : eye;
        }
    return eye;
}

void kvf_set_eye(kvf_page *page, int link, uint32_t eye) { atomic_store(&page->links[link].eye, eye); }

uint64_t kvf_shown(kvf_page *page) { return atomic_load(&page->shown); }

/* Its length, or KVF_OVERWRITTEN, also when it is meant for another. `text` has room for KVF_NOTICE_NBYTES. */
int64_t kvf_read_notice(kvf_page *page, uint64_t sequence, uint64_t to, void *text) {
    kvf_notice *place = place_of(page, sequence);
    if (atomic_load(&place->sequence) != sequence || place->to != to)
        return KVF_OVERWRITTEN;
    uint32_t nbytes = place->nbytes;
    if (nbytes > KVF_NOTICE_NBYTES)
        return KVF_OVERWRITTEN;
    memcpy(text, place->text, nbytes);
    atomic_thread_fence(memory_order_acquire);
    return atomic_load(&place->sequence) == sequence ? (int64_t)nbytes : KVF_OVERWRITTEN;
}

void kvf_judge(kvf_page *page, uint64_t sequence, int verdict) {
    atomic_store(&place_of(page, sequence)->verdict, sequence << VERDICT_BITS | (uint64_t)verdict);
}
