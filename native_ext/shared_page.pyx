# cython: boundscheck=False, wraparound=False
"""SharedPage: the page of `page.h`, as the owner and the writers use it from Python.

Calls that may sleep release the GIL. `begin` and `finish` hold it: they take less than a microsecond, and the
GIL is what serialises the records of one link.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset


cdef extern from "page.h" nogil:
    ctypedef struct kvf_page:
        uint64_t magic
        uint64_t version
        uint64_t incarnation
        uint64_t cluster_id
        int64_t pid

    ctypedef struct kvf_record:
        unsigned char transfer_id[16]
        uint64_t source_cluster_id
        int64_t cache_id
        uint32_t first_layer
        uint32_t num_layers
        uint64_t num_blocks
        uint64_t nbytes
        int64_t started_ns
        int64_t landed_ns
        uint32_t transport

    enum: KVF_PAGE_MAGIC
    enum: KVF_PAGE_VERSION
    enum: KVF_SLOTS
    enum: KVF_LINKS
    enum: KVF_RECORDS
    enum: KVF_BOARDS_NBYTES
    enum: KVF_OK
    enum: KVF_STALE
    enum: KVF_PEER_DEAD
    enum: KVF_BUSY
    enum: KVF_NOT_YET
    enum: KVF_OVERWRITTEN
    enum: KVF_TIMED_OUT
    enum: KVF_DRAINING

    void kvf_page_init(kvf_page *page, uint64_t incarnation, uint64_t cluster_id, int64_t pid)
    int64_t kvf_monotonic_ns()
    int kvf_has_ended(int pidfd)
    uint64_t kvf_process(int64_t pid)
    int64_t kvf_pid(uint64_t process)
    int kvf_is_gone(uint64_t process)
    int kvf_claim_link(kvf_page *page, uint64_t owner, int64_t pid)
    int kvf_is_idle(kvf_page *page, int link)
    void kvf_release_link(kvf_page *page, int link, uint64_t owner)
    int kvf_sweep_links(kvf_page *page)
    int kvf_count_writers(kvf_page *page)
    int kvf_enter_to_push(kvf_page *page, int link, uint32_t slot, uint64_t generation)
    void kvf_set_draining(kvf_page *page)
    int kvf_enter(kvf_page *page, int link, uint32_t slot, uint64_t generation)
    int kvf_is_current(kvf_page *page, uint32_t slot, uint64_t generation)
    void kvf_leave(kvf_page *page, int link, int cell)
    void kvf_retire(kvf_page *page, uint32_t slot)
    int kvf_drain(kvf_page *page, uint32_t slot, int64_t deadline_ns)
    void kvf_post(kvf_page *page, int link, const kvf_record *record)
    int kvf_read(kvf_page *page, int link, uint64_t sequence, kvf_record *record)
    uint32_t kvf_bell(kvf_page *page)
    void kvf_ring(kvf_page *page)
    int kvf_sleep(kvf_page *page, uint32_t seen, int64_t deadline_ns)

cdef extern from "board.h" nogil:
    ctypedef struct kvf_writer:
        uint64_t owner
        uint64_t process
        uint32_t state
        uint32_t transport
        uint64_t cluster_id
        uint64_t nbytes
        uint64_t transfers
        int64_t seen_ns
        int64_t code
        char text[416]

    ctypedef struct kvf_board:
        unsigned char seal[16]
        int64_t deadline_ns
        uint64_t fence
        uint32_t slot
        uint32_t writers
        uint32_t tensors
        uint32_t blocks
        uint32_t has_digests

    ctypedef struct kvf_bearer:
        uint64_t owner
        uint64_t process
        uint64_t cluster_id
        uint32_t writer
        uint32_t transport

    ctypedef struct kvf_share:
        uint32_t first_tensor
        uint32_t tensors
        uint32_t first_block
        uint32_t blocks

    ctypedef struct kvf_wish:
        uint64_t at
        uint64_t fence
        kvf_share share
        int wants_seals

    enum: KVF_WAITED_FOR
    enum: KVF_MOVING
    enum: KVF_SEALED
    enum: KVF_FAILED
    enum: KVF_FORGED
    enum: KVF_EXPIRED
    enum: KVF_REPLAYED
    enum: KVF_SPENT
    enum: KVF_LACKING

    uint64_t kvf_board_nbytes(uint32_t writers, uint32_t tensors, uint32_t blocks, int has_digests)
    void kvf_board_init(kvf_page *page, uint64_t at, const kvf_board *head)
    int kvf_board_bind(kvf_page *page, uint64_t at, const unsigned char *seal, const kvf_bearer *bearer)
    void kvf_board_cover(
        kvf_page *page, uint64_t at, uint32_t writer, const kvf_share *share, const uint32_t *digests,
        uint64_t nbytes)
    void kvf_board_seal(kvf_page *page, uint64_t at, uint32_t writer)
    void kvf_board_fail(kvf_page *page, uint64_t at, uint32_t writer, int64_t code, const char *text)
    int kvf_board_look(kvf_page *page, const kvf_wish *wish, uint32_t *writer)
    int kvf_board_await(kvf_page *page, const kvf_wish *wish, int64_t deadline_ns, uint32_t *writer)
    uint64_t kvf_board_covered(kvf_page *page, uint64_t at, const kvf_share *share)
    kvf_writer *kvf_board_writer(kvf_page *page, uint64_t at, uint32_t writer)
    uint32_t *kvf_board_digests(kvf_page *page, uint64_t at, uint32_t tensor)
    void kvf_board_ring(kvf_page *page, uint64_t at)
    void kvf_board_ring_written(kvf_page *page, uint64_t at)

cdef extern from "notice.h" nogil:
    enum: KVF_NOTICES
    enum: KVF_NOTICE_NBYTES
    enum: KVF_OPEN
    enum: KVF_TAKEN
    enum: KVF_DECLINED
    enum: KVF_AWAY
    enum: KVF_LOOKS
    enum: KVF_WAITS

    uint64_t kvf_show(kvf_page *page, uint64_t to, const void *text, uint32_t nbytes)
    void kvf_withdraw(kvf_page *page, uint64_t sequence)
    int kvf_verdict(kvf_page *page, uint64_t sequence)
    int kvf_eye(kvf_page *page, uint64_t owner)
    void kvf_set_eye(kvf_page *page, int link, uint32_t eye)
    uint64_t kvf_shown(kvf_page *page)
    int64_t kvf_read_notice(kvf_page *page, uint64_t sequence, uint64_t to, void *text)
    void kvf_judge(kvf_page *page, uint64_t sequence, int verdict)

cdef extern from *:
    """
    static _Atomic uint64_t *kvf_slot_word(kvf_page *page, uint32_t slot) { return &page->slots[slot]; }
    static uint64_t kvf_load(_Atomic uint64_t *word) { return atomic_load(word); }
    static void kvf_set_slot(kvf_page *page, uint32_t slot, uint64_t generation) {
        atomic_store(kvf_slot_word(page, slot), generation);
    }
    static uint64_t kvf_posted(kvf_page *page, int link) { return kvf_load(&page->links[link].posted); }
    static uint64_t kvf_owner(kvf_page *page, int link) { return kvf_load(&page->links[link].owner); }
    static uint64_t kvf_owner_process(kvf_page *page, int link) { return atomic_load(&page->links[link].process); }
    static kvf_writer kvf_writer_as_seen(kvf_page *page, uint64_t at, uint32_t writer) {
        kvf_writer seen = {0}, *place = kvf_board_writer(page, at, writer);
        seen.state = atomic_load(&place->state); /* first: what it shows was written before it */
        seen.owner = atomic_load(&place->owner);
        seen.process = atomic_load(&place->process);
        seen.cluster_id = atomic_load(&place->cluster_id);
        seen.nbytes = atomic_load(&place->nbytes);
        seen.transfers = atomic_load(&place->transfers);
        seen.seen_ns = atomic_load(&place->seen_ns);
        seen.transport = place->transport;
        seen.code = place->code;
        memcpy(seen.text, place->text, KVF_TEXT);
        return seen;
    }
    """
    kvf_writer kvf_writer_as_seen(kvf_page *page, uint64_t at, uint32_t writer) nogil
    void kvf_set_slot(kvf_page *page, uint32_t slot, uint64_t generation) nogil
    void *kvf_slot_word(kvf_page *page, uint32_t slot) nogil
    uint64_t kvf_posted(kvf_page *page, int link) nogil
    uint64_t kvf_owner(kvf_page *page, int link) nogil
    uint64_t kvf_owner_process(kvf_page *page, int link) nogil

OK = KVF_OK
STALE = KVF_STALE
PEER_DEAD = KVF_PEER_DEAD
BUSY = KVF_BUSY
NOT_YET = KVF_NOT_YET
TIMED_OUT = KVF_TIMED_OUT
DRAINING = KVF_DRAINING
FORGED = KVF_FORGED
EXPIRED = KVF_EXPIRED
REPLAYED = KVF_REPLAYED
SPENT = KVF_SPENT
LACKING = KVF_LACKING
WAITED_FOR = KVF_WAITED_FOR
MOVING = KVF_MOVING
SEALED = KVF_SEALED
FAILED = KVF_FAILED
OPEN = KVF_OPEN
TAKEN = KVF_TAKEN
DECLINED = KVF_DECLINED
AWAY = KVF_AWAY
LOOKS = KVF_LOOKS
WAITS = KVF_WAITS
BOARDS_NBYTES = KVF_BOARDS_NBYTES
NOTICES = KVF_NOTICES
NOTICE_NBYTES = KVF_NOTICE_NBYTES
SLOTS = KVF_SLOTS
LINKS = KVF_LINKS
RECORDS = KVF_RECORDS
PAGE_NBYTES = sizeof(kvf_page)


def has_ended(int pidfd):
    """Whether the process behind `pidfd` has ended; below 0 stands for this process."""
    return bool(kvf_has_ended(pidfd))


def is_gone(int64_t pid):
    """Whether no such process runs, also before its parent has reaped it."""
    return bool(kvf_is_gone(pid if pid > 0 else 0))


def board_nbytes(uint32_t writers, uint32_t tensors, uint32_t blocks, bint has_digests):
    return kvf_board_nbytes(writers, tensors, blocks, has_digests)


cdef kvf_wish wish_for(uint64_t at, uint64_t fence, tuple share, bint wants_seals) except *:
    return kvf_wish(at, fence, kvf_share(share[0], share[1], share[2], share[3]), wants_seals)


cdef class SharedPage:
    cdef kvf_page *page
    cdef uint32_t next_slot  # where to look for a free one: a slot that was just freed is used again late
    cdef unsigned char open_links[KVF_LINKS]  # claimed through this object, and not retracted
    cdef set taken_slots  # of the owner: those that are published, and those retired ones that a writer may be inside
    cdef object memory  # keeps the mapping alive
    cdef uint64_t next_generation
    # what this writer moved through this page; the GIL keeps the sums whole
    cdef readonly uint64_t nbytes_pushed
    cdef readonly uint64_t nbytes_pulled
    cdef readonly uint64_t num_landed

    def __cinit__(self, unsigned char[::1] memory not None):
        if memory.shape[0] < <Py_ssize_t>sizeof(kvf_page):
            raise ValueError(f"a shared page has {sizeof(kvf_page)} bytes, got {memory.shape[0]}")
        self.memory = memory
        self.page = <kvf_page *>&memory[0]
        self.next_generation = 1
        self.taken_slots = set()
        memset(self.open_links, 0, sizeof(self.open_links))

    # ---- the owner -------------------------------------------------------------------------------

    def initialise(self, uint64_t incarnation, uint64_t cluster_id, int64_t pid):
        kvf_page_init(self.page, incarnation, cluster_id, pid)

    def publish_slot(self):
        """(slot, generation) of a newly live cache, or None when all slots are taken."""
        reserved = self.reserve_slot()
        if reserved is not None:
            kvf_set_slot(self.page, reserved[0], reserved[1])
        return reserved

    def reserve_slot(self):
        """As `publish_slot`, but nobody can enter until `open_slot`. One thread at a time makes slots."""
        cdef uint32_t tried, slot
        for tried in range(<uint32_t>KVF_SLOTS):
            slot = (self.next_slot + tried) % <uint32_t>KVF_SLOTS
            if slot not in self.taken_slots:
                self.taken_slots.add(slot)
                self.next_slot = slot + 1
                self.next_generation += 1
                return slot, self.next_generation - 1
        return None

    def open_slot(self, uint32_t slot, uint64_t generation):
        kvf_set_slot(self.page, slot, generation)

    def slot_address(self, uint32_t slot):
        """Where the slot's word lies in this process."""
        return <uint64_t>kvf_slot_word(self.page, slot)

    def renew_slot(self, uint32_t slot):
        """A new generation for a cache that stays: routes by the old one are stale from now on."""
        generation = self.next_generation
        self.next_generation += 1
        kvf_set_slot(self.page, slot, generation)
        return generation

    def retire_slot(self, uint32_t slot):
        """Nobody enters any more; the slot is another's to have once it was drained and freed."""
        kvf_retire(self.page, slot)

    def free_slot(self, uint32_t slot):
        self.taken_slots.discard(slot)

    def drain_slot(self, uint32_t slot, int64_t deadline_ns):
        """Waits until no live writer is inside the retired slot; False when the deadline passed first."""
        cdef int outcome
        with nogil:
            outcome = kvf_drain(self.page, slot, deadline_ns)
        return outcome == KVF_OK

    # ---- writers ---------------------------------------------------------------------------------

    @property
    def is_valid(self):
        return self.page.magic == KVF_PAGE_MAGIC and self.page.version == KVF_PAGE_VERSION

    @property
    def incarnation(self):
        return self.page.incarnation

    @property
    def cluster_id(self):
        return self.page.cluster_id

    def claim_link(self, uint64_t owner, int64_t pid):
        """Index of a link for this writer, or BUSY."""
        cdef int link = kvf_claim_link(self.page, owner, pid)
        if link >= 0:
            self.open_links[link] = 1
        return link

    def retract_link(self, int link):
        """Nothing begins on it any more, so that who waits until it is idle may release it.

        The GIL orders this and `begin`: a place in the page that may be another's is never touched.
        """
        self.open_links[link] = 0

    def is_idle(self, int link):
        """Whether no transfer of this link is under way."""
        return kvf_is_idle(self.page, link) != 0

    def release_link(self, int link, uint64_t owner):
        self.open_links[link] = 0
        kvf_release_link(self.page, link, owner)

    def begin(self, int link, uint32_t slot, uint64_t generation, int pidfd, bint is_push=False):
        """A cell (0 or more) that holds the slot open, or PEER_DEAD, STALE (also for a released link, -1), BUSY.

        `is_push`: also DRAINING, where the endpoint takes no more pushes.
        """
        if link < 0 or not self.open_links[link]:
            return KVF_STALE
        if kvf_has_ended(pidfd):
            return KVF_PEER_DEAD
        if is_push:
            return kvf_enter_to_push(self.page, link, slot, generation)
        return kvf_enter(self.page, link, slot, generation)

    def begin_granted(self, int link, uint64_t at, uint32_t slot, uint64_t generation, int pidfd, bytes seal,
                      uint32_t writer, uint64_t cluster_id, uint32_t transport):
        """As `begin`, of the slot of the grant whose board lies at `at`; also FORGED, EXPIRED, REPLAYED, SPENT."""
        cdef kvf_bearer bearer
        cdef int cell, status
        if slot >= <uint32_t>KVF_SLOTS or len(seal) != 16:
            return KVF_FORGED
        cell = self.begin(link, slot, generation, pidfd)
        if cell < 0:
            return cell
        bearer.owner = kvf_owner(self.page, link)
        bearer.process = kvf_owner_process(self.page, link)
        bearer.cluster_id = cluster_id
        bearer.writer = writer
        bearer.transport = transport
        status = kvf_board_bind(self.page, at, <const unsigned char *>(<const char *>seal), &bearer)
        if status != KVF_OK:
            kvf_leave(self.page, link, cell)
            return status
        return cell

    def leave(self, int link, int cell):
        kvf_leave(self.page, link, cell)

    def finish(self, int link, int cell, uint32_t slot, uint64_t generation, int pidfd, bytes transfer_id,
               uint64_t source_cluster_id, int64_t cache_id, uint32_t first_layer, uint32_t num_layers,
               uint64_t num_blocks, uint64_t nbytes, int64_t started_ns, uint32_t transport, tuple granted=None):
        """Posts the record and leaves the cell. Returns landed_ns, or PEER_DEAD or STALE (nothing posted).

        `granted`, under a grant, is (board, writer, share, digests, whether it seals), as `cover` takes them.
        """
        cdef kvf_record record
        cdef int status = KVF_OK
        if kvf_has_ended(pidfd):
            status = KVF_PEER_DEAD
        elif not kvf_is_current(self.page, slot, generation):
            status = KVF_STALE
        if status == KVF_OK:
            memset(&record, 0, sizeof(record))
            memcpy(record.transfer_id, <const char *>transfer_id, 16)
            record.source_cluster_id = source_cluster_id
            record.cache_id = cache_id
            record.first_layer = first_layer
            record.num_layers = num_layers
            record.num_blocks = num_blocks
            record.nbytes = nbytes
            record.started_ns = started_ns
            record.landed_ns = kvf_monotonic_ns()
            record.transport = transport
        if granted is not None and status == KVF_OK:  # inside the cell: the board may be another's after it
            self.cover(granted[0], granted[1], granted[2], granted[3], nbytes, granted[4])
        kvf_leave(self.page, link, cell)
        if status != KVF_OK:
            return status
        kvf_post(self.page, link, &record)
        self.nbytes_pushed += nbytes
        self.num_landed += 1
        return record.landed_ns

    def cover(self, uint64_t at, uint32_t writer, tuple share, const uint32_t[::1] digests, uint64_t nbytes,
              bint seals):
        """What a writer has written, `share` being (first tensor, tensors, first block, blocks) of the grant.

        Inside a cell of the grant, or of a local user's. Wakes who waits for it.
        """
        cdef kvf_share covered = kvf_share(share[0], share[1], share[2], share[3])
        cdef const uint32_t *told = NULL
        if digests is not None and digests.shape[0] < share[1] * share[3]:
            raise ValueError(f"{digests.shape[0]} digests for {share[1]} tensors of {share[3]} blocks")
        if digests is not None:
            told = &digests[0]
        kvf_board_cover(self.page, at, writer, &covered, told, nbytes)
        if seals:
            kvf_board_seal(self.page, at, writer)
            kvf_board_ring(self.page, at)
        else:
            kvf_board_ring_written(self.page, at)

    def bind(self, uint64_t at, bytes seal, uint32_t writer, uint64_t owner, int64_t pid, uint64_t cluster_id,
             uint32_t transport):
        """The owner itself lets a writer in whose bytes it takes. OK, FORGED, EXPIRED, REPLAYED or SPENT."""
        cdef kvf_bearer bearer = kvf_bearer(owner, kvf_process(pid), cluster_id, writer, transport)
        if len(seal) != 16:
            return KVF_FORGED
        return kvf_board_bind(self.page, at, <const unsigned char *>(<const char *>seal), &bearer)

    def seal_writer(self, uint64_t at, uint32_t writer):
        kvf_board_seal(self.page, at, writer)
        kvf_board_ring(self.page, at)

    def fail_writer(self, uint64_t at, uint32_t writer, int64_t code, bytes text):
        kvf_board_fail(self.page, at, writer, code, text)

    def count_pull(self, uint64_t nbytes):
        self.nbytes_pulled += nbytes
        self.num_landed += 1

    # ---- boards, by their owner ------------------------------------------------------------------

    def init_board(self, uint64_t at, bytes seal, int64_t deadline_ns, uint32_t slot, uint64_t fence,
                   uint32_t writers, uint32_t tensors, uint32_t blocks, bint has_digests):
        cdef kvf_board head
        if at + kvf_board_nbytes(writers, tensors, blocks, has_digests) > <uint64_t>KVF_BOARDS_NBYTES:
            raise ValueError(f"a board at {at} ends outside the {KVF_BOARDS_NBYTES} bytes of boards")
        memset(&head, 0, sizeof(head))
        memcpy(head.seal, <const char *>seal, 16)
        head.deadline_ns = deadline_ns
        head.slot = slot
        head.fence = fence
        head.writers = writers
        head.tensors = tensors
        head.blocks = blocks
        head.has_digests = has_digests
        kvf_board_init(self.page, at, &head)

    def look(self, uint64_t at, uint64_t fence, tuple share, bint wants_seals):
        """(status, writer): OK, LACKING, NOT_YET, STALE, or SPENT of a writer that failed."""
        cdef kvf_wish wish = wish_for(at, fence, share, wants_seals)
        cdef uint32_t writer = 0
        status = kvf_board_look(self.page, &wish, &writer)
        return status, writer

    def await_board(self, uint64_t at, uint64_t fence, tuple share, bint wants_seals, int64_t deadline_ns):
        """As `look`, sleeping while it is NOT_YET; also TIMED_OUT, and PEER_DEAD of a writer that died."""
        cdef kvf_wish wish = wish_for(at, fence, share, wants_seals)
        cdef uint32_t writer = 0
        cdef int status
        with nogil:
            status = kvf_board_await(self.page, &wish, deadline_ns, &writer)
        return status, writer

    def ring_board(self, uint64_t at):
        kvf_board_ring(self.page, at)

    def covered(self, uint64_t at, tuple share):
        """How many pairs of tensor and block of `share` were written."""
        cdef kvf_share wanted = kvf_share(share[0], share[1], share[2], share[3])
        return kvf_board_covered(self.page, at, &wanted)

    def writer(self, uint64_t at, uint32_t writer):
        """(state, incarnation, pid, cluster_id, bytes, transfers, seen_ns, transport, code, text)."""
        cdef kvf_writer seen = kvf_writer_as_seen(self.page, at, writer)
        text = (<const char *>seen.text).decode(errors="replace")
        return (
            seen.state, seen.owner, kvf_pid(seen.process), seen.cluster_id, seen.nbytes, seen.transfers, seen.seen_ns,
            seen.transport, seen.code, text,
        )

    def digests(self, uint64_t at, uint32_t tensor, uint32_t blocks):
        """The digests that writers left of one tensor: 4 bytes a block."""
        return (<const char *>kvf_board_digests(self.page, at, tensor))[:blocks * 4]

    # ---- notices -----------------------------------------------------------------------------------

    def eye(self, uint64_t owner):
        """What the writer of this incarnation does about notices: AWAY, LOOKS, WAITS, or STALE where it has no link."""
        return kvf_eye(self.page, owner)

    def show(self, uint64_t to, const unsigned char[::1] text not None):
        """Shows it to the writer of this incarnation. Returns its sequence. The GIL serialises the owner's threads."""
        if not 0 < text.shape[0] <= KVF_NOTICE_NBYTES:
            raise ValueError(f"a notice has up to {KVF_NOTICE_NBYTES} bytes, got {text.shape[0]}")
        return kvf_show(self.page, to, &text[0], <uint32_t>text.shape[0])

    def verdict(self, uint64_t sequence):
        """OPEN, TAKEN, or DECLINED, as also one is that was withdrawn or overwritten before it was judged."""
        return kvf_verdict(self.page, sequence)

    def withdraw(self, uint64_t sequence):
        """A writer that has just read it may still take it."""
        kvf_withdraw(self.page, sequence)

    @property
    def shown(self):
        """The sequence of the newest notice; 0 before the first."""
        return kvf_shown(self.page)

    def set_eye(self, int link, uint32_t eye):
        """Says what this writer does about notices from now on; nothing on a link that was closed."""
        if link >= 0 and self.open_links[link]:
            kvf_set_eye(self.page, link, eye)

    def notice(self, uint64_t sequence, uint64_t to):
        """What is shown to this incarnation; None for one that is another's, was withdrawn or overwritten."""
        cdef unsigned char text[KVF_NOTICE_NBYTES]
        cdef int64_t nbytes = kvf_read_notice(self.page, sequence, to, text)
        return None if nbytes < 0 else (<const char *>text)[:nbytes]

    def judge(self, uint64_t sequence, int verdict):
        """TAKEN, or DECLINED: the owner asks by a call."""
        kvf_judge(self.page, sequence, verdict)

    # ---- the owner looks after writers -----------------------------------------------------------------

    def sweep_links(self):
        """Frees the links of writers that died. How many."""
        return kvf_sweep_links(self.page)

    def set_draining(self):
        kvf_set_draining(self.page)

    def count_writers(self):
        """Transfers of live writers that are inside this page's caches and grants."""
        return kvf_count_writers(self.page)

    # ---- readers ---------------------------------------------------------------------------------

    def links(self):
        """(index, owner incarnation, owner pid, records posted) of the links in use."""
        return [
            (link, kvf_owner(self.page, link), kvf_pid(kvf_owner_process(self.page, link)), kvf_posted(self.page, link))
            for link in range(KVF_LINKS)
            if kvf_owner(self.page, link) != 0
        ]

    def posted(self):
        """For each link, the sequence of its newest record; 0 where none was ever posted."""
        return [kvf_posted(self.page, link) for link in range(KVF_LINKS)]

    def read(self, int link, uint64_t sequence):
        """The record as a tuple in the order of `finish`, or None when it was overwritten or is not there yet."""
        cdef kvf_record record
        if kvf_read(self.page, link, sequence, &record) != KVF_OK:
            return None
        return (
            (<const char *>record.transfer_id)[:16], record.source_cluster_id, record.cache_id, record.first_layer,
            record.num_layers, record.num_blocks, record.nbytes, record.started_ns, record.landed_ns,
            record.transport,
        )

    @property
    def bell(self):
        return kvf_bell(self.page)

    def ring(self):
        """Wakes whoever sleeps on the bell: there is something to look at that no record says."""
        kvf_ring(self.page)

    def is_current(self, uint32_t slot, uint64_t generation):
        """Whether the slot still holds this generation."""
        return bool(kvf_is_current(self.page, slot, generation))

    def sleep(self, uint32_t seen, int64_t deadline_ns):
        """Sleeps until the bell differs from `seen`; False when the deadline passed first."""
        cdef int outcome
        with nogil:
            outcome = kvf_sleep(self.page, seen, deadline_ns)
        return outcome == KVF_OK
