# cython: boundscheck=False, wraparound=False
"""The copy kernel's skin: check with the GIL held, copy without it, return. See README.md of this folder."""

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

import numpy as np

from ray_kvfabric.errors import ParamInvalid


cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object list_or_tuple)


cdef extern from "copy_plan.h" nogil:
    struct region:
        uint64_t base
        int64_t num_blocks
        int64_t block_nbytes
        int64_t block_stride

    struct block_list:
        const int64_t *at
        int64_t count
        int64_t minimum
        int64_t maximum

    struct copy_plan:
        const region *source
        const region *target
        int64_t region_count
        block_list source_blocks
        block_list target_blocks
        int64_t nbytes

    struct piece:
        uint64_t source
        uint64_t target
        int64_t nbytes

    block_list block_list_of(const int64_t *at, int64_t count)
    int64_t plan_pieces(const copy_plan *plan, bint merged, piece *into)
    bint plan_measure(copy_plan *plan)
    bint plan_overlaps(const copy_plan *plan)


cdef extern from "copy_loops.h" nogil:
    struct copy_loop:
        const char *name

    int copy_loop_count()
    const copy_loop *copy_loop_at(int index)
    const copy_loop *copy_loop_named(const char *name)
    const copy_loop *copy_loop_best()


cdef extern from "copy_job.h" nogil:
    enum: STATUS_DONE "COPY_DONE"
    enum: STATUS_TIMED_OUT "COPY_TIMED_OUT"
    enum: STATUS_STOPPED "COPY_STOPPED"
    enum: STATUS_FAILED "COPY_FAILED"
    enum: COPY_STEP_NBYTES

    struct stop_word:
        pass

    struct copy_limits:
        int64_t deadline_ns
        stop_word *stop

    struct copy_result:
        int status
        int64_t nbytes
        uint32_t digest
        int error

    stop_word *stop_word_new()
    void stop_word_set(stop_word *word)
    bint stop_word_is_set(stop_word *word)


cdef extern from "copy_blocks.h" nogil:
    struct copy_wishes:
        const copy_loop *loop
        int threads
        bint digest

    const int64_t copy_stream_nbytes
    const int64_t copy_split_nbytes
    copy_result run_copy "copy_blocks"(const copy_plan *plan, copy_limits limits, copy_wishes wishes)
    int64_t copy_blocks_bare(const copy_plan *plan)


cdef extern from "copy_process.h" nogil:
    struct copy_process_wishes "copy_process":
        int pid
        bint writes
        int threads

    copy_result run_copy_process "copy_process"(
        const copy_plan *plan, copy_limits limits, copy_process_wishes other)


cdef extern from "copy_pool.h" nogil:
    enum: COPY_THREADS_LIMIT
    int copy_pool_threads()
    void copy_pool_set_threads(int threads)


cdef extern from "crc32c.h" nogil:
    struct crc32c_way:
        const char *name

    const crc32c_way *crc32c_best_way()


cdef extern from "unistd.h" nogil:
    int getpid()


COPY_DONE = STATUS_DONE
COPY_TIMED_OUT = STATUS_TIMED_OUT
COPY_STOPPED = STATUS_STOPPED
COPY_FAILED = STATUS_FAILED


# ---- what is copied ----

cdef int64_t field_of(object region_like, Py_ssize_t index, int position, str field, int64_t least) except -1:
    cdef object value = region_like[position]
    cdef int overflow = 0
    if not isinstance(value, int):
        raise TypeError(f"regions[{index}].{field} must be an int, got {type(value).__name__}")
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or number < least:
        raise ValueError(f"regions[{index}].{field} must be in [{least}, 2**63), got {value}")
    return number


cdef int fill_region(region *at, object region_like, Py_ssize_t index) except -1:
    if not isinstance(region_like, (tuple, list)) or len(region_like) != 4:
        raise TypeError(
            f"regions[{index}] must be (base, num_blocks, block_nbytes, block_stride), got {region_like!r}")
    at.base = <uint64_t> field_of(region_like, index, 0, "base", 1)
    at.num_blocks = field_of(region_like, index, 1, "num_blocks", 1)
    at.block_nbytes = field_of(region_like, index, 2, "block_nbytes", 1)
    at.block_stride = field_of(region_like, index, 3, "block_stride", 1)
    if at.block_stride < at.block_nbytes:
        raise ValueError(
            f"regions[{index}].block_stride is {at.block_stride}, less than block_nbytes {at.block_nbytes}")
    cdef object end = int(at.base) + (int(at.num_blocks) - 1) * int(at.block_stride) + int(at.block_nbytes)
    if end >= 1 << 63:
        raise ValueError(
            f"regions[{index}].base is {at.base}: the region would end at {end}, not below 2**63")
    return 0


cdef class RegionTable:
    """Regions as a C array, immutable; keeps `owner`, whose memory they describe, alive."""

    cdef region *at
    cdef Py_ssize_t count
    cdef readonly object owner

    def __cinit__(self, regions, owner=None):
        cdef Py_ssize_t index
        regions = list(regions)
        self.owner = owner
        self.at = <region *> calloc(max(1, len(regions)), sizeof(region))
        if self.at == NULL:
            raise MemoryError
        for index in range(len(regions)):
            fill_region(&self.at[index], regions[index], index)
        self.count = len(regions)

    def __dealloc__(self):
        free(self.at)

    def __len__(self):
        return self.count

    def __getitem__(self, Py_ssize_t index):
        cdef Py_ssize_t place = index + self.count if index < 0 else index
        if not 0 <= place < self.count:
            raise IndexError(f"region {index} of {self.count}")
        cdef region *one = &self.at[place]
        return one.base, one.num_blocks, one.block_nbytes, one.block_stride

    def __repr__(self):
        return f"<RegionTable: {self.count} regions>"


cdef int64_t block_of(object value, str name, Py_ssize_t position) except -1:
    cdef int overflow = 0
    if not isinstance(value, int):
        raise TypeError(f"{name}[{position}] must be an int, got {type(value).__name__}")
    cdef int64_t block = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow > 0 and value < 2**64:
        return INT64_MAX  # of no cache: whoever compares it with a limit refuses it
    if overflow or block < 0:
        raise TypeError(f"{name}[{position}] must be in [0, 2**64), got {value}")
    return block


cdef class BlockList:
    """Block indices as a C array, checked once. `name` is what errors call it."""

    cdef int64_t *at
    cdef block_list list
    cdef readonly str name

    def __cinit__(self, blocks, str name not None):
        if not isinstance(blocks, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple of int, got {type(blocks).__name__}")
        cdef Py_ssize_t position, count = len(blocks)
        self.name = name
        self.at = <int64_t *> malloc(max(1, count) * sizeof(int64_t))
        if self.at == NULL:
            raise MemoryError
        cdef PyObject **items = PySequence_Fast_ITEMS(blocks)
        for position in range(count):
            self.at[position] = block_of(<object> items[position], name, position)
        self.list = block_list_of(self.at, count)

    def __dealloc__(self):
        free(self.at)

    def __len__(self):
        return self.list.count

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.list.count):
            yield self.at[i]

    @property
    def maximum(self):
        return self.list.maximum

    def __repr__(self):
        return f"<BlockList {self.name}: {self.list.count} blocks, maximum {self.list.maximum}>"


cdef int check_lengths(BlockList source, BlockList target) except -1:
    if source.list.count != target.list.count:
        raise ParamInvalid(
            f"{source.name} has {source.list.count} entries, {target.name} has {target.list.count}")
    return 0


def runs(BlockList source not None, BlockList target not None):
    """(source_start, target_start, count) of neighbours where both rise by one, in list order."""
    check_lengths(source, target)
    cdef list found = []
    cdef Py_ssize_t begin = 0, i, count = source.list.count
    for i in range(1, count + 1):
        if i < count and source.at[i] == source.at[i - 1] + 1 and target.at[i] == target.at[i - 1] + 1:
            continue
        found.append((source.at[begin], target.at[begin], i - begin))
        begin = i
    return found


# ---- checks ----

cdef int check_range(str side, RegionTable table, int64_t first, int64_t count) except -1:
    if first < 0 or count < 0 or first > table.count - count:
        raise ParamInvalid(
            f"{side}_first {first} and count {count} do not fit the {side} table of {table.count} regions")
    return 0


cdef int check_pair(
        RegionTable source, RegionTable target, int64_t i, int64_t j, BlockList source_blocks,
        BlockList target_blocks) except -1:
    cdef const region *a = &source.at[i]
    cdef const region *b = &target.at[j]
    if a.block_nbytes != b.block_nbytes:
        raise ParamInvalid(
            f"block_nbytes differs: source region {i} has {a.block_nbytes}, "
            f"target region {j} has {b.block_nbytes}")
    if source_blocks.list.maximum >= a.num_blocks:
        raise ParamInvalid(
            f"{source_blocks.name} holds block {source_blocks.list.maximum}, source region {i} has "
            f"num_blocks {a.num_blocks} (target region {j} has {b.num_blocks})")
    if target_blocks.list.maximum >= b.num_blocks:
        raise ParamInvalid(
            f"{target_blocks.name} holds block {target_blocks.list.maximum}, target region {j} has "
            f"num_blocks {b.num_blocks} (source region {i} has {a.num_blocks})")
    return 0


cdef int make_plan(
        copy_plan *plan, RegionTable source, RegionTable target, int64_t source_first, int64_t target_first,
        int64_t count, BlockList source_blocks, BlockList target_blocks) except -1:
    cdef int64_t i
    check_lengths(source_blocks, target_blocks)
    check_range("source", source, source_first, count)
    check_range("target", target, target_first, count)
    for i in range(count):
        check_pair(source, target, source_first + i, target_first + i, source_blocks, target_blocks)
    plan.source = source.at + source_first
    plan.target = target.at + target_first
    plan.region_count = count
    plan.source_blocks = source_blocks.list
    plan.target_blocks = target_blocks.list
    if not plan_measure(plan):
        raise ParamInvalid(f"{source_blocks.name} names 2**63 bytes or more in the {count} regions")
    return 0


cdef int check_threads(int threads, int least) except -1:
    if not least <= threads <= COPY_THREADS_LIMIT:
        raise ValueError(f"threads must be in [{least}, {COPY_THREADS_LIMIT}], got {threads}")
    return 0


cdef copy_limits limits_of(int64_t deadline_ns, StopWord stop) except *:
    cdef copy_limits limits
    if deadline_ns < 0:
        raise ValueError(f"deadline_ns must not be negative, got {deadline_ns}")
    limits.deadline_ns = deadline_ns
    limits.stop = NULL if stop is None else stop.word
    return limits


cdef const copy_loop *loop_named(str name) except? NULL:
    if name == "auto":
        return NULL
    cdef const copy_loop *loop = copy_loop_named(name.encode())
    if loop == NULL:
        raise ValueError(f"loop must be one of {', '.join(['auto', *loops()])}; got {name!r}")
    return loop


# ---- the verbs ----

cdef class StopWord:
    """Ends copies early: set() it from any thread, and each copy that has it ends within 4 MiB a thread."""

    cdef stop_word *word

    def __cinit__(self):
        self.word = stop_word_new()
        if self.word == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.word)

    def set(self):
        stop_word_set(self.word)

    @property
    def is_set(self):
        return bool(stop_word_is_set(self.word))

    def __repr__(self):
        return f"<StopWord: {'set' if self.is_set else 'not set'}>"


def copy_blocks(
        RegionTable source not None, RegionTable target not None, int64_t source_first, int64_t target_first,
        int64_t count, BlockList source_blocks not None, BlockList target_blocks not None, *,
        int64_t deadline_ns=0, StopWord stop=None, bint digest=False, str loop not None="auto",
        int threads=0):
    """(status, bytes copied, CRC-32C of them or 0): as if pair by pair, each as memmove would."""
    cdef copy_plan plan
    cdef copy_wishes wishes
    cdef copy_result result
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    cdef copy_limits limits = limits_of(deadline_ns, stop)
    check_threads(threads, 0)
    wishes.loop = loop_named(loop)
    wishes.threads = threads
    wishes.digest = digest
    with nogil:
        result = run_copy(&plan, limits, wishes)
    return result.status, result.nbytes, result.digest


cdef tuple move_process(const copy_plan *plan, copy_limits limits, copy_process_wishes other):
    cdef copy_result result
    if other.pid < 1:
        raise ValueError(f"pid must be at least 1, got {other.pid}")
    check_threads(other.threads, 0)
    if other.pid == getpid() and plan_overlaps(plan):
        raise ParamInvalid(f"pid {other.pid} is this process, and source and target share bytes")
    with nogil:
        result = run_copy_process(plan, limits, other)
    return result.status, result.nbytes, result.error


def write_process(
        int pid, RegionTable source not None, RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, BlockList source_blocks not None,
        BlockList target_blocks not None, *, int64_t deadline_ns=0, StopWord stop=None, int threads=0):
    """(status, bytes copied, errno): as copy_blocks, the target addresses being process `pid`'s."""
    cdef copy_plan plan
    cdef copy_process_wishes other = copy_process_wishes(pid, True, threads)
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    return move_process(&plan, limits_of(deadline_ns, stop), other)


def read_process(
        int pid, RegionTable source not None, RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, BlockList source_blocks not None,
        BlockList target_blocks not None, *, int64_t deadline_ns=0, StopWord stop=None, int threads=0):
    """(status, bytes copied, errno): as copy_blocks, the source addresses being process `pid`'s."""
    cdef copy_plan plan
    cdef copy_process_wishes other = copy_process_wishes(pid, False, threads)
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    return move_process(&plan, limits_of(deadline_ns, stop), other)


def pieces(
        RegionTable source not None, RegionTable target not None, int64_t source_first, int64_t target_first,
        int64_t count, BlockList source_blocks not None, BlockList target_blocks not None, *, bint apart=False):
    """uint64 [n, 3]: source address, target address and bytes of each contiguous piece, in plan order.

    Where source and target share bytes, pairs of blocks are not joined; `apart` says that they do not.
    """
    cdef copy_plan plan
    cdef int64_t found
    cdef bint merged
    cdef uint64_t[:, ::1] rows
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    with nogil:
        merged = apart or not plan_overlaps(&plan)
        found = plan_pieces(&plan, merged, NULL)
    listed = np.empty((found, 3), np.uint64)
    if found:
        rows = listed
        with nogil:
            plan_pieces(&plan, merged, <piece *> &rows[0, 0])
    return listed


def time_bare_copy(
        RegionTable source not None, RegionTable target not None, int64_t source_first, int64_t target_first,
        int64_t count, BlockList source_blocks not None, BlockList target_blocks not None):
    """Nanoseconds of one thread's plain memcpy, block by block: the yardstick of the benchmarks."""
    cdef copy_plan plan
    cdef int64_t nanoseconds
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    with nogil:
        nanoseconds = copy_blocks_bare(&plan)
    return nanoseconds


# ---- this machine ----

def loops():
    """Names of the loops that this processor runs, slowest first."""
    cdef int i
    names = [copy_loop_at(i).name.decode() for i in range(copy_loop_count())]
    return [name for name in names if copy_loop_named(name.encode()) != NULL]


def cpu_features():
    """What `doctor` prints."""
    return {
        "implementation": "native",
        "loop": copy_loop_best().name.decode(),
        "loops": loops(),
        "digest": crc32c_best_way().name.decode(),
        "threads": copy_pool_threads(),
        "stream_nbytes": copy_stream_nbytes,
        "split_nbytes": copy_split_nbytes,
        "step_nbytes": COPY_STEP_NBYTES,
    }


def set_copy_threads(int threads):
    """How many threads share a large copy, the caller among them."""
    check_threads(threads, 1)
    copy_pool_set_threads(threads)


def copy_threads():
    return copy_pool_threads()
