"""The copy kernel in plain Python: same surface and same errors as `_block_copy`, slower.

It copies pair by pair with memmove, which is the definition that the native kernel is held to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy_python_arguments import BlockList, Fence, RegionTable, StopWord, WayWord
from ray_kvfabric.memory.copy_python_plan import (
    Plan,
    check_lengths,
    plan_of,
    shares_bytes,
    targets_meet,
    writes_twice,
)
from ray_kvfabric.memory.crc32c import crc32c
from ray_kvfabric.plan import merge_runs

__all__ = ["BlockList", "Fence", "RegionTable", "StopWord", "WayWord"]  # and the verbs

COPY_DONE, COPY_TIMED_OUT, COPY_STOPPED, COPY_FAILED, COPY_FENCED, COPY_GAVE_WAY = range(6)
STEP_NBYTES = 4 << 20
UNIT_NBYTES = 1 << 20  # of a copy that may give way
FAN_NBYTES = 128 << 10  # as is written to one target after the other
THREADS_LIMIT = 64

_threads = [1]  # as chosen; this twin copies on the caller's thread whatever it says


def runs(source: BlockList, target: BlockList) -> list[tuple[int, int, int]]:
    """(source_start, target_start, count) of neighbours where both rise by one, in list order."""
    check_lengths(source, target)
    return [(run.source_start, run.target_start, run.num_blocks) for run in merge_runs(source, target)]


# ---- limits ----


class _Limits(NamedTuple):
    deadline_ns: int
    stop: StopWord | None
    fence: Fence | None = None

    def reached(self) -> int:
        if self.stop is not None and self.stop.is_set:
            return COPY_STOPPED
        if self.fence is not None and not self.fence.holds:
            return COPY_FENCED
        if self.deadline_ns and time.monotonic_ns() >= self.deadline_ns:
            return COPY_TIMED_OUT
        return COPY_DONE


class _Turn(NamedTuple):
    """A copy that may be broken off and gone on with at plan byte `begin`."""

    give_way: WayWord | None = None
    begin: int = 0

    @property
    def is_over(self) -> bool:
        return self.give_way is not None and self.give_way.is_raised


def _check_wishes(deadline_ns: int, threads: int) -> None:
    if deadline_ns < 0:
        raise ValueError(f"deadline_ns must not be negative, got {deadline_ns}")
    if not 0 <= threads <= THREADS_LIMIT:
        raise ValueError(f"threads must be in [0, {THREADS_LIMIT}], got {threads}")


def _turn(give_way: WayWord | None, begin: int, plan: Plan) -> _Turn:
    nbytes = plan.nbytes
    if not 0 <= begin <= nbytes:
        raise ValueError(f"begin must be in [0, {nbytes}], as the copy has {nbytes} bytes; got {begin}")
    return _Turn(give_way, begin)


def _check_digest(digest: bool, turn: _Turn, digests: object) -> None:
    if digest and (turn.give_way is not None or turn.begin > 0):
        raise ValueError("digest is of a whole copy: it goes with neither give_way nor begin")
    if digest and digests is not None:
        raise ValueError("digest and digests exclude each other")


def _checked_digests(digests: NDArray[np.uint32] | memoryview, least: int, name: str) -> NDArray[np.uint32]:
    array = digests if isinstance(digests, np.ndarray) else np.asarray(memoryview(digests))
    flags = array.flags
    if array.dtype != np.uint32 or not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise ValueError(
            f"{name} must be a writable C-contiguous buffer of uint32, got {array.dtype}, "
            f"{'writable' if flags.writeable else 'read-only'}, strides {array.strides}"
        )
    if array.size < least:
        raise ValueError(f"{name} has {array.size} entries, the blocks are {least}")
    return array.reshape(-1)


# ---- the verbs ----


_Move = Callable[[int, int, int], int]  # (source, target, nbytes) -> errno, 0 when all of it was moved
_Completed = Callable[[int, bytes], None]  # (pair, what its target holds now)


class _Outcome(NamedTuple):
    status: int
    nbytes: int
    errno: int = 0


def _carry_out(plan: Plan, move: _Move, limits: _Limits, turn: _Turn, completed: _Completed | None) -> _Outcome:
    nbytes = 0
    for part in plan.slices(turn.begin, STEP_NBYTES if turn.give_way is None else UNIT_NBYTES):
        if nbytes and turn.is_over:
            return _Outcome(COPY_GAVE_WAY, nbytes)
        if status := limits.reached():
            return _Outcome(status, nbytes)
        if error := move(part.source, part.target, part.nbytes):
            return _Outcome(COPY_FAILED, nbytes, error)
        nbytes += part.nbytes
        if completed is not None and part.completes is not None:
            _, target, pair_nbytes = part.completes
            completed(part.pair, ctypes.string_at(target, pair_nbytes))
    return _Outcome(COPY_DONE, nbytes)


def _move_here(source: int, target: int, nbytes: int) -> int:
    ctypes.memmove(target, source, nbytes)
    return 0


def copy_blocks(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    digest: bool = False,
    loop: str = "auto",
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
    digests: NDArray[np.uint32] | memoryview | None = None,
) -> tuple[int, int, int]:
    """(status, bytes copied, CRC-32C of them or 0): pair by pair, each as memmove would."""
    plan = plan_of(source, target, source_first, target_first, count, source_blocks, target_blocks)
    _check_wishes(deadline_ns, threads)
    if loop not in ("auto", *loops()):
        raise ValueError(f"loop must be one of {', '.join(['auto', *loops()])}; got {loop!r}")
    turn = _turn(give_way, begin, plan)
    _check_digest(digest, turn, digests)
    completed, whole = None, [0]

    def extend(pair: int, read: bytes) -> None:
        whole[0] = crc32c(read, whole[0])

    if digests is not None:
        completed = _into(_checked_digests(digests, len(plan.regions) * len(plan.blocks), "digests"))
    elif digest:
        completed = extend
    outcome = _carry_out(plan, _move_here, _Limits(deadline_ns, stop, fence), turn, completed)
    return outcome.status, outcome.nbytes, whole[0] if outcome.status == COPY_DONE else 0


def _into(digests: NDArray[np.uint32]) -> _Completed:
    def completed(pair: int, read: bytes) -> None:
        digests[pair] = crc32c(read)

    return completed


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


def _process_move(pid: int, writes: bool) -> _Move:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.process_vm_writev if writes else libc.process_vm_readv
    call.restype = ctypes.c_ssize_t
    call.argtypes = (ctypes.c_int, *(ctypes.POINTER(_Iovec), ctypes.c_ulong) * 2, ctypes.c_ulong)

    def move(source: int, target: int, nbytes: int) -> int:
        here, there = (source, target) if writes else (target, source)
        moved = 0
        while moved < nbytes:
            mine, theirs = (_Iovec(base + moved, nbytes - moved) for base in (here, there))
            count: int = call(pid, mine, 1, theirs, 1, 0)
            if count <= 0:
                return ctypes.get_errno() if count < 0 else errno.EIO
            moved += count
        return 0

    return move


def _move_process(pid: int, writes: bool, plan: Plan, limits: _Limits, turn: _Turn) -> tuple[int, int, int]:
    if pid < 1:
        raise ValueError(f"pid must be at least 1, got {pid}")
    if pid == os.getpid() and shares_bytes(plan):
        raise ParamInvalid(f"pid {pid} is this process, and source and target share bytes")
    outcome = _carry_out(plan, _process_move(pid, writes), limits, turn, None)
    return outcome.status, outcome.nbytes, outcome.errno


def write_process(
    pid: int,
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
) -> tuple[int, int, int]:
    """(status, bytes copied, errno): as copy_blocks, the target addresses being process `pid`'s."""
    plan = plan_of(source, target, source_first, target_first, count, source_blocks, target_blocks)
    _check_wishes(deadline_ns, threads)
    return _move_process(pid, True, plan, _Limits(deadline_ns, stop, fence), _turn(give_way, begin, plan))


def read_process(
    pid: int,
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
) -> tuple[int, int, int]:
    """(status, bytes copied, errno): as copy_blocks, the source addresses being process `pid`'s."""
    plan = plan_of(source, target, source_first, target_first, count, source_blocks, target_blocks)
    _check_wishes(deadline_ns, threads)
    return _move_process(pid, False, plan, _Limits(deadline_ns, stop, fence), _turn(give_way, begin, plan))


def block_digests(
    table: RegionTable,
    first: int,
    count: int,
    blocks: BlockList,
    into: NDArray[np.uint32] | memoryview,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
) -> int:
    """Status; entry [i * len(blocks) + j] of `into` becomes the CRC-32C of block blocks[j] of region first + i."""
    plan = plan_of(table, table, first, first, count, blocks, blocks)
    _check_wishes(deadline_ns, threads)
    digests = _checked_digests(into, len(plan.regions) * len(plan.blocks), "into")
    limits, crc = _Limits(deadline_ns, stop), 0
    for part in plan.slices(0, STEP_NBYTES):
        if status := limits.reached():
            return status
        crc = crc32c(ctypes.string_at(part.source, part.nbytes), crc)
        if part.completes is not None:
            digests[part.pair], crc = crc, 0
    return COPY_DONE


# ---- one source, several targets ----


class _Target(NamedTuple):
    plan: Plan
    fence: Fence | None


_Given = tuple[RegionTable, int, BlockList, Fence | None]


def _target(
    source: RegionTable, source_first: int, count: int, source_blocks: BlockList, given: _Given, index: int
) -> _Target:
    if not isinstance(given, (tuple, list)) or len(given) != 4:
        raise TypeError(
            f"targets[{index}] must be (RegionTable, target_first, BlockList, Fence or None), got {given!r}"
        )
    table, first, blocks, fence = given
    plan = plan_of(source, table, source_first, first, count, source_blocks, blocks)
    if shares_bytes(plan):
        raise ParamInvalid(f"targets[{index}] shares bytes with the source")
    if writes_twice(plan):
        raise ParamInvalid(
            f"targets[{index}] writes a byte twice: {blocks.name} lists a block twice, or two regions meet"
        )
    return _Target(plan, fence)


def _check_apart(targets: list[_Target]) -> None:
    for j, later in enumerate(targets):
        for i, earlier in enumerate(targets[:j]):
            if targets_meet(earlier.plan, later.plan):
                raise ParamInvalid(f"targets[{j}] shares bytes with targets[{i}]")


def _fan_out(targets: list[_Target], limits: _Limits, digests: NDArray[np.uint32] | None) -> tuple[int, int, list[int]]:
    statuses, nbytes = [COPY_DONE] * len(targets), 0
    for parts in zip(*(target.plan.slices(0, FAN_NBYTES) for target in targets), strict=True):
        status = limits.reached()
        for index, (target, part) in enumerate(zip(targets, parts, strict=True)):
            if target.fence is not None and not target.fence.holds:
                statuses[index] = COPY_FENCED
            if not status and statuses[index] == COPY_DONE:
                ctypes.memmove(part.target, part.source, part.nbytes)
        if not status and COPY_DONE not in statuses:
            status = COPY_FENCED
        if status:
            return status, nbytes, [each or status for each in statuses]
        nbytes += parts[0].nbytes
        if digests is not None and parts[0].completes is not None:
            digests[parts[0].pair] = crc32c(ctypes.string_at(parts[0].completes[0], parts[0].completes[2]))
    return COPY_DONE, nbytes, statuses


def copy_blocks_to(
    source: RegionTable,
    source_first: int,
    count: int,
    source_blocks: BlockList,
    targets: list[_Given],
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    digests: NDArray[np.uint32] | memoryview | None = None,
    threads: int = 0,
) -> tuple[int, int, list[int]]:
    """(status, bytes copied to each target, status of each): targets are (table, first, blocks, fence or None)."""
    if not targets:
        raise ValueError("targets must not be empty")
    _check_wishes(deadline_ns, threads)
    found = [_target(source, source_first, count, source_blocks, given, index) for index, given in enumerate(targets)]
    _check_apart(found)
    least = count * len(source_blocks)
    checked = None if digests is None else _checked_digests(digests, least, "digests")
    return _fan_out(found, _Limits(deadline_ns, stop), checked)


def pieces(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    apart: bool = False,
) -> NDArray[np.uint64]:
    """uint64 [n, 3]: source address, target address and bytes of each contiguous piece, in plan order.

    Where source and target share bytes, pairs of blocks are not joined; `apart` says that they do not.
    """
    plan = plan_of(source, target, source_first, target_first, count, source_blocks, target_blocks)
    found: list[list[int]] = []
    is_shared = not apart and shares_bytes(plan)
    for here, there in plan.regions:
        is_dense = here[2] == here[3] and there[2] == there[3] and not is_shared
        for position, (i, j) in enumerate(plan.blocks):
            before = plan.blocks[position - 1] if position and is_dense else None
            if before == (i - 1, j - 1):
                found[-1][2] += here[2]
            else:
                found.append([here[0] + i * here[3], there[0] + j * there[3], here[2]])
    return np.array(found, np.uint64).reshape(-1, 3)


def time_bare_copy(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> int:
    """Nanoseconds of a plain memmove of block after block: the yardstick of the benchmarks."""
    plan = plan_of(source, target, source_first, target_first, count, source_blocks, target_blocks)
    begin = time.monotonic_ns()
    for source_address, target_address, nbytes in plan.pairs():
        ctypes.memmove(target_address, source_address, nbytes)
    return time.monotonic_ns() - begin


# ---- this machine ----


def loops() -> list[str]:
    return ["plain"]


def cpu_features() -> dict[str, object]:
    """What `doctor` prints."""
    return {"implementation": "python", "loop": "plain", "loops": loops(), "digest": "table", "threads": 1}


def set_copy_threads(threads: int) -> None:
    """Checked and remembered; this twin copies on the caller's thread whatever it says."""
    if not 1 <= threads <= THREADS_LIMIT:
        raise ValueError(f"threads must be in [1, {THREADS_LIMIT}], got {threads}")
    _threads[0] = threads


def copy_threads() -> int:
    return _threads[0]
