#define _GNU_SOURCE
#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define DRAIN_NAP_NS (20 * 1000000LL) /* drain looks this often for writers that died */

int64_t kvf_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

/* A descriptor below 0 stands for the process itself, which has not ended. */
int kvf_has_ended(int pidfd) {
    struct pollfd poll_for = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&poll_for, 1, 0) > 0;
}

void kvf_page_init(kvf_page *page, uint64_t incarnation, uint64_t cluster_id, int64_t pid) {
    page->magic = KVF_PAGE_MAGIC;
    page->version = KVF_PAGE_VERSION;
    page->incarnation = incarnation;
    page->cluster_id = cluster_id;
    page->pid = pid;
}

/* ---- links ---------------------------------------------------------------------------------------- */

/* In clock ticks since the host's boot: field 22 of /proc/PID/stat, whose second field may hold anything but ends
 * with the last bracket. 0 where there is no such process. */
static uint64_t start_of(int64_t pid) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    char *field = strrchr(text, ')');
    for (int number = 2; field != NULL && number < 22; number++)
        field = strchr(field + 1, ' ');
    return field == NULL ? 0 : strtoull(field, NULL, 10);
}

uint64_t kvf_process(int64_t pid) { return pid <= 0 ? 0 : (uint64_t)pid | start_of(pid) << KVF_PID_BITS; }

int64_t kvf_pid(uint64_t process) { return (int64_t)(process & ((1u << KVF_PID_BITS) - 1)); }

/* A killed process counts as gone before its parent has reaped it, which kill(pid, 0) would not tell. */
int kvf_is_gone(uint64_t process) {
    int64_t pid = kvf_pid(process);
    if (pid == 0)
        return 0;
    int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (pidfd < 0) /* EINVAL, ENOENT: the number is a thread's by now */
        return errno == ESRCH || errno == EINVAL || errno == ENOENT;
    int gone = kvf_has_ended(pidfd);
    close(pidfd);
    uint64_t start = process >> KVF_PID_BITS, now = start_of(pid); /* what cannot be read proves nothing */
    return gone || (start != 0 && now != 0 && now != start);
}

static void clear_link(kvf_link *link) {
    atomic_store(&link->eye, 0);
    for (int cell = 0; cell < KVF_CELLS; cell++)
        atomic_store(&link->cells[cell], 0);
}

/* A free link, or one whose writer's process is gone. `process` is the lock: whoever swaps it has the link, so that no
 * two claim the same dead one. `posted` goes on, so readers never see it fall. */
int kvf_claim_link(kvf_page *page, uint64_t owner, int64_t pid) {
    uint64_t process = kvf_process(pid);
    for (int index = 0; index < KVF_LINKS; index++) {
        kvf_link *link = &page->links[index];
        uint64_t held = atomic_load(&link->process);
        if (held != 0 && !kvf_is_gone(held))
            continue;
        if (atomic_compare_exchange_strong(&link->process, &held, process)) {
            clear_link(link);
            atomic_store(&link->owner, owner);
            return index;
        }
    }
    return KVF_BUSY;
}

int kvf_is_idle(kvf_page *page, int index) {
    for (int cell = 0; cell < KVF_CELLS; cell++)
        if (atomic_load(&page->links[index].cells[cell]) != 0)
            return 0;
    return 1;
}

void kvf_release_link(kvf_page *page, int index, uint64_t owner) {
    kvf_link *link = &page->links[index];
    uint64_t held = owner;
    if (!atomic_compare_exchange_strong(&link->owner, &held, 0))
        return;
    clear_link(link);
    atomic_store(&link->process, 0); /* last: from here on it may be claimed */
}

int kvf_sweep_links(kvf_page *page) {
    int freed = 0;
    uint64_t self = kvf_process(page->pid);
    for (int index = 0; index < KVF_LINKS; index++) {
        kvf_link *link = &page->links[index];
        uint64_t held = atomic_load(&link->process);
        if (held == 0 || !kvf_is_gone(held))
            continue;
        if (!atomic_compare_exchange_strong(&link->process, &held, self))
            continue; /* somebody has claimed it meanwhile */
        clear_link(link);
        atomic_store(&link->owner, 0);
        atomic_store(&link->process, 0);
        freed++;
    }
    return freed;
}

/* ---- generation words ------------------------------------------------------------------------------ */

int kvf_is_current(kvf_page *page, uint32_t slot, uint64_t generation) {
    return atomic_load(&page->slots[slot]) == generation;
}

/* A plain push stays out of an endpoint that drains: as with the generation, the cell is stored first. */
int kvf_enter_to_push(kvf_page *page, int index, uint32_t slot, uint64_t generation) {
    int cell = kvf_enter(page, index, slot, generation);
    if (cell < 0 || atomic_load(&page->draining) == 0)
        return cell;
    kvf_leave(page, index, cell);
    return KVF_DRAINING;
}

void kvf_set_draining(kvf_page *page) { atomic_store(&page->draining, 1); }

/* Cells that are in use, those of dead writers left out. */
int kvf_count_writers(kvf_page *page) {
    int count = 0;
    for (int index = 0; index < KVF_LINKS; index++) {
        kvf_link *link = &page->links[index];
        if (atomic_load(&link->owner) == 0 || kvf_is_idle(page, index) || kvf_is_gone(atomic_load(&link->process)))
            continue;
        for (int cell = 0; cell < KVF_CELLS; cell++)
            count += atomic_load(&link->cells[cell]) != 0;
    }
    return count;
}

int kvf_enter(kvf_page *page, int index, uint32_t slot, uint64_t generation) {
    kvf_link *link = &page->links[index];
    for (int cell = 0; cell < KVF_CELLS; cell++) {
        uint64_t empty = 0;
        if (!atomic_compare_exchange_strong(&link->cells[cell], &empty, (uint64_t)slot + 1))
            continue;
        if (kvf_is_current(page, slot, generation))
            return cell;
        kvf_leave(page, index, cell);
        return KVF_STALE;
    }
    return KVF_BUSY;
}

void kvf_ring(kvf_page *page) {
    atomic_fetch_add(&page->bell, 1);
    if (atomic_load(&page->sleepers) != 0)
        syscall(SYS_futex, &page->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void kvf_leave(kvf_page *page, int index, int cell) {
    atomic_store(&page->links[index].cells[cell], 0);
    if (atomic_load(&page->sleepers) != 0)
        kvf_ring(page);
}

void kvf_retire(kvf_page *page, uint32_t slot) { atomic_store(&page->slots[slot], 0); }

static int is_being_written(kvf_page *page, uint32_t slot) {
    for (int index = 0; index < KVF_LINKS; index++) {
        kvf_link *link = &page->links[index];
        if (atomic_load(&link->owner) == 0)
            continue;
        for (int cell = 0; cell < KVF_CELLS; cell++)
            if (atomic_load(&link->cells[cell]) == (uint64_t)slot + 1)
                if (!kvf_is_gone(atomic_load(&link->process)))
                    return 1;
    }
    return 0;
}

int kvf_drain(kvf_page *page, uint32_t slot, int64_t deadline_ns) {
    for (;;) {
        uint32_t seen = kvf_bell(page);
        if (!is_being_written(page, slot))
            return KVF_OK;
        int64_t now = kvf_monotonic_ns();
        if (now >= deadline_ns)
            return KVF_TIMED_OUT;
        int64_t nap = now + DRAIN_NAP_NS;
        kvf_sleep(page, seen, nap < deadline_ns ? nap : deadline_ns);
    }
}

/* ---- completion records ----------------------------------------------------------------------------- */

/* Calls for one link are serialised by the caller. The copy threads have fenced their streaming stores. */
void kvf_post(kvf_page *page, int index, const kvf_record *record) {
    kvf_link *link = &page->links[index];
    uint64_t sequence = atomic_load_explicit(&link->posted, memory_order_relaxed) + 1;
    kvf_record *place = &page->records[index][sequence % KVF_RECORDS];
    size_t head = sizeof place->sequence;
    atomic_store(&place->sequence, 0);
    atomic_thread_fence(memory_order_release); /* what follows is not seen under the old number */
    memcpy((char *)place + head, (const char *)record + head, sizeof *record - head);
    atomic_store(&place->sequence, sequence);
    atomic_store(&link->posted, sequence);
    kvf_ring(page);
}

/* A seqlock read: the copy counts only if the sequence stood before and after it. */
int kvf_read(kvf_page *page, int index, uint64_t sequence, kvf_record *record) {
    const kvf_record *place = &page->records[index][sequence % KVF_RECORDS];
    if (sequence > atomic_load(&page->links[index].posted))
        return KVF_NOT_YET;
    uint64_t before = atomic_load(&((kvf_record *)place)->sequence);
    memcpy((void *)record, (const void *)place, sizeof *record);
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t after = atomic_load(&((kvf_record *)place)->sequence);
    return before == sequence && after == sequence ? KVF_OK : KVF_OVERWRITTEN;
}

uint32_t kvf_bell(kvf_page *page) { return atomic_load(&page->bell); }

/* Sleeps until the bell is no longer `seen`, or the deadline. Returns KVF_OK or KVF_TIMED_OUT. */
int kvf_sleep(kvf_page *page, uint32_t seen, int64_t deadline_ns) {
    struct timespec until = {.tv_sec = deadline_ns / NS, .tv_nsec = deadline_ns % NS};
    atomic_fetch_add(&page->sleepers, 1);
    long outcome = 0;
    if (kvf_bell(page) == seen)
        outcome = syscall(SYS_futex, &page->bell, FUTEX_WAIT_BITSET, seen, &until, NULL, FUTEX_BITSET_MATCH_ANY);
    int timed_out = outcome == -1 && errno == ETIMEDOUT;
    atomic_fetch_sub(&page->sleepers, 1);
    return timed_out ? KVF_TIMED_OUT : KVF_OK;
}
