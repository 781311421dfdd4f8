# cython: boundscheck=False, wraparound=False
"""The copy kernel's skin: check with the GIL held, copy without it, return. See README.md of this folder."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import numpy as np

from copy_kernel cimport (
    COPY_STEP_NBYTES,
    COPY_THREADS_LIMIT,
    STATUS_DONE,
    STATUS_FAILED,
    STATUS_FENCED,
    STATUS_GAVE_WAY,
    STATUS_STOPPED,
    STATUS_TIMED_OUT,
    copy_blocks_bare,
    copy_fan,
    copy_limits,
    copy_loop,
    copy_loop_at,
    copy_loop_best,
    copy_loop_count,
    copy_loop_named,
    copy_nothing_but_digests,
    copy_plan,
    copy_pool_set_threads,
    copy_pool_threads,
    copy_process_wishes,
    copy_result,
    copy_split_nbytes,
    copy_stream_nbytes,
    copy_turn,
    copy_wishes,
    crc32c_best_way,
    fan_target,
    fan_targets_meet,
    fan_wishes,
    piece,
    plan_measure,
    plan_overlaps,
    plan_pieces,
    plan_repeats_blocks,
    plan_repeats_regions,
    region,
    run_copy,
    run_copy_process,
)
from ray_kvfabric.memory cimport _copy_arguments as given

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory._copy_arguments import BlockList, Fence, RegionTable, StopWord, WayWord


cdef extern from "unistd.h" nogil:
    int getpid()


COPY_DONE = STATUS_DONE
COPY_TIMED_OUT = STATUS_TIMED_OUT
COPY_STOPPED = STATUS_STOPPED
COPY_FAILED = STATUS_FAILED
COPY_FENCED = STATUS_FENCED
COPY_GAVE_WAY = STATUS_GAVE_WAY


cdef int check_lengths(given.BlockList source, given.BlockList target) except -1:
    if source.list.count != target.list.count:
        raise ParamInvalid(
            f"{source.name} has {source.list.count} entries, {target.name} has {target.list.count}")
    return 0


def runs(given.BlockList source not None, given.BlockList target not None):
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

cdef int check_range(str side, given.RegionTable table, int64_t first, int64_t count) except -1:
    if first < 0 or count < 0 or first > table.count - count:
        raise ParamInvalid(
            f"{side}_first {first} and count {count} do not fit the {side} table of {table.count} regions")
    return 0


cdef int check_pair(
        given.RegionTable source, given.RegionTable target, int64_t i, int64_t j, given.BlockList source_blocks,
        given.BlockList target_blocks) except -1:
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
        copy_plan *plan, given.RegionTable source, given.RegionTable target, int64_t source_first, int64_t target_first,
        int64_t count, given.BlockList source_blocks, given.BlockList target_blocks) except -1:
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


cdef int set_limits(
        copy_limits *limits, int64_t deadline_ns, given.StopWord stop, given.Fence fence) except -1:
    if deadline_ns < 0:
        raise ValueError(f"deadline_ns must not be negative, got {deadline_ns}")
    limits.deadline_ns = deadline_ns
    limits.stop = NULL if stop is None else stop.word
    limits.fence.word = NULL if fence is None else fence.one.word
    limits.fence.value = 0 if fence is None else fence.one.value
    return 0


cdef int set_turn(copy_turn *turn, given.WayWord give_way, int64_t begin, const copy_plan *plan) except -1:
    if not 0 <= begin <= plan.nbytes:
        raise ValueError(f"begin must be in [0, {plan.nbytes}], as the copy has {plan.nbytes} bytes; got {begin}")
    turn.give_way = NULL if give_way is None else give_way.word
    turn.begin = begin
    return 0


cdef int check_digest(bint digest, object give_way, int64_t begin, object digests) except -1:
    if digest and (give_way is not None or begin > 0):
        raise ValueError("digest is of a whole copy: it goes with neither give_way nor begin")
    if digest and digests is not None:
        raise ValueError("digest and digests exclude each other")
    return 0


cdef object checked_digests(object digests, int64_t least, str name):
    array = digests if isinstance(digests, np.ndarray) else np.asarray(memoryview(digests))
    flags = array.flags
    if array.dtype != np.uint32 or not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise ValueError(f"{name} must be a writable C-contiguous buffer of uint32, got {array.dtype}, "
                         f"{'writable' if flags.writeable else 'read-only'}, strides {array.strides}")
    if array.size < least:
        raise ValueError(f"{name} has {array.size} entries, the blocks are {least}")
    return array


cdef uint32_t *digests_at(object digests, const copy_plan *plan, str name) except? NULL:
    """The caller keeps `digests`, and with it the memory."""
    if digests is None:
        return NULL
    array = checked_digests(digests, plan.region_count * plan.source_blocks.count, name)
    return <uint32_t *> <uint64_t> array.ctypes.data


cdef const copy_loop *loop_named(str name) except? NULL:
    if name == "auto":
        return NULL
    cdef const copy_loop *loop = copy_loop_named(name.encode())
    if loop == NULL:
        raise ValueError(f"loop must be one of {', '.join(['auto', *loops()])}; got {name!r}")
    return loop


# ---- the verbs ----

def copy_blocks(
        given.RegionTable source not None, given.RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, given.BlockList source_blocks not None,
        given.BlockList target_blocks not None, *, int64_t deadline_ns=0, given.StopWord stop=None,
        bint digest=False, str loop not None="auto", int threads=0, given.Fence fence=None,
        given.WayWord give_way=None, int64_t begin=0, object digests=None):
    """(status, bytes copied, CRC-32C of them or 0): as if pair by pair, each as memmove would."""
    cdef copy_plan plan
    cdef copy_limits limits
    cdef copy_wishes wishes
    cdef copy_result result
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    set_limits(&limits, deadline_ns, stop, fence)
    check_threads(threads, 0)
    wishes.loop = loop_named(loop)
    wishes.threads = threads
    set_turn(&wishes.turn, give_way, begin, &plan)
    check_digest(digest, give_way, begin, digests)
    wishes.digest = digest
    wishes.digests = NULL if digests is None else digests_at(digests, &plan, "digests")
    with nogil:
        result = run_copy(&plan, &limits, &wishes)
    return result.status, result.nbytes, result.digest


cdef tuple move_process(const copy_plan *plan, const copy_limits *limits, const copy_process_wishes *other):
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
        int pid, given.RegionTable source not None, given.RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, given.BlockList source_blocks not None,
        given.BlockList target_blocks not None, *, int64_t deadline_ns=0, given.StopWord stop=None, int threads=0,
        given.Fence fence=None, given.WayWord give_way=None, int64_t begin=0):
    """(status, bytes copied, errno): as copy_blocks, the target addresses being process `pid`'s."""
    cdef copy_plan plan
    cdef copy_limits limits
    cdef copy_process_wishes other
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    set_limits(&limits, deadline_ns, stop, fence)
    other.pid, other.writes, other.threads = pid, True, threads
    set_turn(&other.turn, give_way, begin, &plan)
    return move_process(&plan, &limits, &other)


def read_process(
        int pid, given.RegionTable source not None, given.RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, given.BlockList source_blocks not None,
        given.BlockList target_blocks not None, *, int64_t deadline_ns=0, given.StopWord stop=None, int threads=0,
        given.Fence fence=None, given.WayWord give_way=None, int64_t begin=0):
    """(status, bytes copied, errno): as copy_blocks, the source addresses being process `pid`'s."""
    cdef copy_plan plan
    cdef copy_limits limits
    cdef copy_process_wishes other
    make_plan(&plan, source, target, source_first, target_first, count, source_blocks, target_blocks)
    set_limits(&limits, deadline_ns, stop, fence)
    other.pid, other.writes, other.threads = pid, False, threads
    set_turn(&other.turn, give_way, begin, &plan)
    return move_process(&plan, &limits, &other)


def block_digests(
        given.RegionTable table not None, int64_t first, int64_t count, given.BlockList blocks not None,
        object into not None, *, int64_t deadline_ns=0, given.StopWord stop=None, int threads=0):
    """Status; entry [i * len(blocks) + j] of `into` becomes the CRC-32C of block blocks[j] of region first + i."""
    cdef copy_plan plan
    cdef copy_limits limits
    cdef copy_result result
    make_plan(&plan, table, table, first, first, count, blocks, blocks)
    set_limits(&limits, deadline_ns, stop, None)
    check_threads(threads, 0)
    cdef uint32_t *digests = digests_at(into, &plan, "into")
    with nogil:
        result = copy_nothing_but_digests(&plan, &limits, threads, digests)
    return result.status


# ---- one source, several targets ----

cdef int make_target(
        fan_target *at, given.RegionTable source, int64_t source_first, int64_t count, given.BlockList source_blocks,
        object target, Py_ssize_t index) except -1:
    if not isinstance(target, (tuple, list)) or len(target) != 4:
        raise TypeError(
            f"targets[{index}] must be (RegionTable, target_first, BlockList, Fence or None), got {target!r}")
    cdef given.RegionTable table = target[0]
    cdef given.BlockList blocks = target[2]
    cdef given.Fence fence = target[3]
    make_plan(&at.plan, source, table, source_first, target[1], count, source_blocks, blocks)
    at.fence.word = NULL if fence is None else fence.one.word
    at.fence.value = 0 if fence is None else fence.one.value
    if plan_overlaps(&at.plan):
        raise ParamInvalid(f"targets[{index}] shares bytes with the source")
    if at.plan.nbytes and (plan_repeats_blocks(&at.plan) or plan_repeats_regions(&at.plan)):
        raise ParamInvalid(
            f"targets[{index}] writes a byte twice: {blocks.name} lists a block twice, or two regions meet")
    return 0


cdef int check_apart(const fan_target *at, Py_ssize_t count) except -1:
    cdef Py_ssize_t i, j
    for j in range(count):
        for i in range(j):
            if fan_targets_meet(&at[i], &at[j]):
                raise ParamInvalid(f"targets[{j}] shares bytes with targets[{i}]")
    return 0


cdef tuple run_fan(fan_target *at, Py_ssize_t count, const copy_limits *limits, fan_wishes wishes):
    cdef copy_result result
    with nogil:
        result = copy_fan(at, <int> count, limits, wishes)
    statuses = [STATUS_FENCED if at[i].is_fenced else result.status for i in range(count)]
    return result.status, result.nbytes, statuses


def copy_blocks_to(
        given.RegionTable source not None, int64_t source_first, int64_t count, given.BlockList source_blocks not None,
        list targets not None, *, int64_t deadline_ns=0, given.StopWord stop=None, object digests=None, int threads=0):
    """(status, bytes copied to each target, status of each): targets are (table, first, blocks, fence or None)."""
    cdef copy_limits limits
    cdef fan_wishes wishes
    cdef Py_ssize_t i, found = len(targets)
    if found == 0:
        raise ValueError("targets must not be empty")
    set_limits(&limits, deadline_ns, stop, None)
    check_threads(threads, 0)
    cdef fan_target *at = <fan_target *> calloc(found, sizeof(fan_target))
    if at == NULL:
        raise MemoryError
    try:
        for i in range(found):
            make_target(&at[i], source, source_first, count, source_blocks, targets[i], i)
        check_apart(at, found)
        wishes.threads = threads
        wishes.digests = digests_at(digests, &at[0].plan, "digests")
        return run_fan(at, found, &limits, wishes)
    finally:
        free(at)


def pieces(
        given.RegionTable source not None, given.RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, given.BlockList source_blocks not None,
        given.BlockList target_blocks not None, *, bint apart=False):
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
        given.RegionTable source not None, given.RegionTable target not None, int64_t source_first,
        int64_t target_first, int64_t count, given.BlockList source_blocks not None,
        given.BlockList target_blocks not None):
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
