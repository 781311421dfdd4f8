/* Notices: what the owner of a page shows to one of its writers, to be found there without a call.
 *
 *   owner     shows, in the next place of a ring; sees that it was taken, or withdraws it and calls
 *   writer    AWAY | LOOKS: it comes by soon | WAITS: for a call. Reads what was shown since, takes or declines each
 *
 * Nobody is woken. Invariant: a writer stores that it looks no more before it reads for the last time, the owner stores
 * a notice before it reads what the writer does, all sequentially consistent. So either the writer finds the notice, or
 * the owner sees that it will not.
 */
#ifndef KVF_NOTICE_H
#define KVF_NOTICE_H

#include "page.h"

enum { KVF_OPEN = 0, KVF_TAKEN = 1, KVF_DECLINED = 2 }; /* verdicts */
enum { KVF_AWAY = 0, KVF_LOOKS = 1, KVF_WAITS = 2 };

uint64_t kvf_show(kvf_page *page, uint64_t to, const void *text, uint32_t nbytes);
void kvf_withdraw(kvf_page *page, uint64_t sequence);
int kvf_verdict(kvf_page *page, uint64_t sequence);
int kvf_eye(kvf_page *page, uint64_t owner);

void kvf_set_eye(kvf_page *page, int link, uint32_t eye);
uint64_t kvf_shown(kvf_page *page);
int64_t kvf_read_notice(kvf_page *page, uint64_t sequence, uint64_t to, void *text);
void kvf_judge(kvf_page *page, uint64_t sequence, int verdict);

#endif
