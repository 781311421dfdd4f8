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
        uint64_t digest
        uint32_t transport
        uint32_t has_digest

    enum: KVF_PAGE_MAGIC
    enum: KVF_PAGE_VERSION
    enum: KVF_SLOTS
    enum: KVF_LINKS
    enum: KVF_RECORDS
    enum: KVF_OK
    enum: KVF_STALE
    enum: KVF_PEER_DEAD
    enum: KVF_BUSY
    enum: KVF_NOT_YET
    enum: KVF_OVERWRITTEN
    enum: KVF_TIMED_OUT

    void kvf_page_init(kvf_page *page, uint64_t incarnation, uint64_t cluster_id, int64_t pid)
    int64_t kvf_monotonic_ns()
    int kvf_has_ended(int pidfd)
    int kvf_claim_link(kvf_page *page, uint64_t owner, int64_t pid)
    int kvf_is_idle(kvf_page *page, int link)
    void kvf_release_link(kvf_page *page, int link, uint64_t owner)
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

cdef extern from *:
    """
    static _Atomic uint64_t *kvf_slot_word(kvf_page *page, uint32_t slot) { return &page->slots[slot]; }
    static uint64_t kvf_load(_Atomic uint64_t *word) { return atomic_load(word); }
    static void kvf_set_slot(kvf_page *page, uint32_t slot, uint64_t generation) {
        atomic_store(kvf_slot_word(page, slot), generation);
    }
    static uint64_t kvf_get_slot(kvf_page *page, uint32_t slot) { return kvf_load(kvf_slot_word(page, slot)); }
    static uint64_t kvf_posted(kvf_page *page, int link) { return kvf_load(&page->links[link].posted); }
    static uint64_t kvf_owner(kvf_page *page, int link) { return kvf_load(&page->links[link].owner); }
    static int64_t kvf_owner_pid(kvf_page *page, int link) { return atomic_load(&page->links[link].pid); }
    """
    void kvf_set_slot(kvf_page *page, uint32_t slot, uint64_t generation) nogil
    uint64_t kvf_get_slot(kvf_page *page, uint32_t slot) nogil
    uint64_t kvf_posted(kvf_page *page, int link) nogil
    uint64_t kvf_owner(kvf_page *page, int link) nogil
    int64_t kvf_owner_pid(kvf_page *page, int link) nogil

OK = KVF_OK
STALE = KVF_STALE
PEER_DEAD = KVF_PEER_DEAD
BUSY = KVF_BUSY
SLOTS = KVF_SLOTS
LINKS = KVF_LINKS
RECORDS = KVF_RECORDS
PAGE_NBYTES = sizeof(kvf_page)


def has_ended(int pidfd):
    """Whether the process behind `pidfd` has ended; below 0 stands for this process."""
    return bool(kvf_has_ended(pidfd))


cdef class SharedPage:
    cdef kvf_page *page
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

    # ---- the owner -------------------------------------------------------------------------------

    def initialise(self, uint64_t incarnation, uint64_t cluster_id, int64_t pid):
        kvf_page_init(self.page, incarnation, cluster_id, pid)

    def publish_slot(self):
        """(slot, generation) of a newly live cache, or None when all slots are taken."""
        cdef uint32_t slot
        for slot in range(<uint32_t>KVF_SLOTS):
            if kvf_get_slot(self.page, slot) == 0:
                generation = self.next_generation
                self.next_generation += 1
                kvf_set_slot(self.page, slot, generation)
                return slot, generation
        return None

    def renew_slot(self, uint32_t slot):
        """A new generation for a cache that stays: routes by the old one are stale from now on."""
        generation = self.next_generation
        self.next_generation += 1
        kvf_set_slot(self.page, slot, generation)
        return generation

    def retire_slot(self, uint32_t slot):
        kvf_retire(self.page, slot)

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
        return kvf_claim_link(self.page, owner, pid)

    def is_idle(self, int link):
        """Whether no transfer of this link is under way."""
        return kvf_is_idle(self.page, link) != 0

    def release_link(self, int link, uint64_t owner):
        kvf_release_link(self.page, link, owner)

    def begin(self, int link, uint32_t slot, uint64_t generation, int pidfd):
        """A cell (0 or more) that holds the slot open, or PEER_DEAD, STALE (also for a released link, -1), BUSY."""
        if link < 0:
            return KVF_STALE
        if kvf_has_ended(pidfd):
            return KVF_PEER_DEAD
        return kvf_enter(self.page, link, slot, generation)

    def leave(self, int link, int cell):
        kvf_leave(self.page, link, cell)

    def finish(self, int link, int cell, uint32_t slot, uint64_t generation, int pidfd, bytes transfer_id,
               uint64_t source_cluster_id, int64_t cache_id, uint32_t first_layer, uint32_t num_layers,
               uint64_t num_blocks, uint64_t nbytes, int64_t started_ns, object digest, uint32_t transport):
        """Posts the record and leaves the cell. Returns landed_ns, or PEER_DEAD or STALE (nothing posted)."""
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
            if digest is not None:
                record.has_digest = 1
                record.digest = digest
        kvf_leave(self.page, link, cell)
        if status != KVF_OK:
            return status
        kvf_post(self.page, link, &record)
        self.nbytes_pushed += nbytes
        self.num_landed += 1
        return record.landed_ns

    def count_pull(self, uint64_t nbytes):
        self.nbytes_pulled += nbytes
        self.num_landed += 1

    # ---- readers ---------------------------------------------------------------------------------

    def links(self):
        """(index, owner incarnation, owner pid, records posted) of the links in use."""
        return [
            (link, kvf_owner(self.page, link), kvf_owner_pid(self.page, link), kvf_posted(self.page, link))
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
            record.digest if record.has_digest else None, record.transport,
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
