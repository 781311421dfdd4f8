"""The copy kernel in plain Python: same surface and same errors as `_block_copy`, slower.

It copies pair by pair with memmove, which is the definition that the native kernel is held to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.crc32c import crc32c
from ray_kvfabric.plan import merge_runs

COPY_DONE, COPY_TIMED_OUT, COPY_STOPPED, COPY_FAILED = range(4)
STEP_NBYTES = 4 << 20
THREADS_LIMIT = 64

_FIELDS = ("base", "num_blocks", "block_nbytes", "block_stride")
_threads = [1]  # as chosen; this twin copies on the caller's thread whatever it says


class RegionTable:
    """Regions, immutable; keeps `owner`, whose memory they describe, alive."""

    __slots__ = ("_regions", "owner")

    def __init__(self, regions: Sequence[tuple[int, int, int, int]], owner: object = None) -> None:
        self._regions = tuple(_checked_region(region, index) for index, region in enumerate(regions))
        self.owner = owner

    def __len__(self) -> int:
        return len(self._regions)

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"region {index} of {len(self)}")
        return self._regions[index]

    def __repr__(self) -> str:
        return f"<RegionTable: {len(self)} regions>"


def _checked_region(region: object, index: int) -> tuple[int, int, int, int]:
    if not isinstance(region, (tuple, list)) or len(region) != len(_FIELDS):
        raise TypeError(f"regions[{index}] must be (base, num_blocks, block_nbytes, block_stride), got {region!r}")
    for field, value in zip(_FIELDS, region, strict=True):
        if not isinstance(value, int):
            raise TypeError(f"regions[{index}].{field} must be an int, got {type(value).__name__}")
        if not 1 <= value < 2**63:
            raise ValueError(f"regions[{index}].{field} must be in [1, 2**63), got {value}")
    base, num_blocks, block_nbytes, block_stride = map(int, region)
    if block_stride < block_nbytes:
        raise ValueError(f"regions[{index}].block_stride is {block_stride}, less than block_nbytes {block_nbytes}")
    end = base + (num_blocks - 1) * block_stride + block_nbytes
    if end >= 2**63:
        raise ValueError(f"regions[{index}].base is {base}: the region would end at {end}, not below 2**63")
    return base, num_blocks, block_nbytes, block_stride


class BlockList:
    """Block indices, checked once. `name` is what errors call it."""

    __slots__ = ("_blocks", "maximum", "name")

    def __init__(self, blocks: list[int] | tuple[int, ...], name: str) -> None:
        if not isinstance(blocks, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple of int, got {type(blocks).__name__}")
        for position, block in enumerate(blocks):
            if not isinstance(block, int):
                raise TypeError(f"{name}[{position}] must be an int, got {type(block).__name__}")
            if not 0 <= block < 2**64:
                raise TypeError(f"{name}[{position}] must be in [0, 2**64), got {block}")
        self.name = name
        self._blocks = tuple(min(int(block), 2**63 - 1) for block in blocks)  # of no cache, like the native twin's
        self.maximum = max(self._blocks, default=-1)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        return f"<BlockList {self.name}: {len(self)} blocks, maximum {self.maximum}>"


class StopWord:
    """Ends copies early: set() it from any thread, and each copy that was given it ends within 4 MiB."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    @property
    def is_set(self) -> bool:
        return self._is_set

    def __repr__(self) -> str:
        return f"<StopWord: {'set' if self._is_set else 'not set'}>"


def runs(source: BlockList, target: BlockList) -> list[tuple[int, int, int]]:
    """(source_start, target_start, count) of neighbours where both rise by one, in list order."""
    _check_lengths(source, target)
    return [(run.source_start, run.target_start, run.num_blocks) for run in merge_runs(source, target)]


# ---- checks, in the order of the native kernel ----


class _Plan(NamedTuple):
    """Region pairs to be carried out one after the other, for each the same block pairs."""

    regions: list[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]
    blocks: list[tuple[int, int]]

    def pairs(self) -> Iterator[tuple[int, int, int]]:
        """(source address, target address, nbytes) in plan order."""
        for source, target in self.regions:
            for i, j in self.blocks:
                yield source[0] + i * source[3], target[0] + j * target[3], source[2]


def _check_lengths(source: BlockList, target: BlockList) -> None:
    if len(source) != len(target):
        raise ParamInvalid(f"{source.name} has {len(source)} entries, {target.name} has {len(target)}")


def _check_range(side: str, table: RegionTable, first: int, count: int) -> None:
    if first < 0 or count < 0 or first + count > len(table):
        raise ParamInvalid(
            f"{side}_first {first} and count {count} do not fit the {side} table of {len(table)} regions"
        )


def _check_pair(
    source: RegionTable,
    target: RegionTable,
    i: int,
    j: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> None:
    _, source_num, source_nbytes, _ = source[i]
    _, target_num, target_nbytes, _ = target[j]
    if source_nbytes != target_nbytes:
        raise ParamInvalid(
            f"block_nbytes differs: source region {i} has {source_nbytes}, target region {j} has {target_nbytes}"
        )
    if source_blocks.maximum >= source_num:
        raise ParamInvalid(
            f"{source_blocks.name} holds block {source_blocks.maximum}, source region {i} has num_blocks "
            f"{source_num} (target region {j} has {target_num})"
        )
    if target_blocks.maximum >= target_num:
        raise ParamInvalid(
            f"{target_blocks.name} holds block {target_blocks.maximum}, target region {j} has num_blocks "
            f"{target_num} (source region {i} has {source_num})"
        )


def _plan(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> _Plan:
    _check_lengths(source_blocks, target_blocks)
    _check_range("source", source, source_first, count)
    _check_range("target", target, target_first, count)
    for i in range(count):
        _check_pair(source, target, source_first + i, target_first + i, source_blocks, target_blocks)
    regions = [(source[source_first + i], target[target_first + i]) for i in range(count)]
    if sum(pair[0][2] for pair in regions) * len(source_blocks) >= 2**63:
        raise ParamInvalid(f"{source_blocks.name} names 2**63 bytes or more in the {count} regions")
    return _Plan(regions, list(zip(source_blocks, target_blocks, strict=True)))


def _check_wishes(deadline_ns: int, threads: int) -> None:
    if deadline_ns < 0:
        raise ValueError(f"deadline_ns must not be negative, got {deadline_ns}")
    if not 0 <= threads <= THREADS_LIMIT:
        raise ValueError(f"threads must be in [0, {THREADS_LIMIT}], got {threads}")


# ---- the verbs ----


def _limit_reached(deadline_ns: int, stop: StopWord | None) -> int:
    if stop is not None and stop.is_set:
        return COPY_STOPPED
    if deadline_ns and time.monotonic_ns() >= deadline_ns:
        return COPY_TIMED_OUT
    return COPY_DONE


def _slices(source: int, target: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
    """One pair in slices of at most STEP_NBYTES, from the end when the target lies above the source."""
    offsets = range(0, nbytes, STEP_NBYTES)
    for offset in reversed(offsets) if target > source else offsets:
        yield source + offset, target + offset, min(STEP_NBYTES, nbytes - offset)


_Move = Callable[[int, int, int], int]  # (source, target, nbytes) -> errno, 0 when all of it was moved


class _Outcome(NamedTuple):
    status: int
    nbytes: int
    crc: int
    errno: int


def _carry_out(plan: _Plan, move: _Move, deadline_ns: int, stop: StopWord | None, digest: bool) -> _Outcome:
    nbytes, crc = 0, 0
    for source, target, pair_nbytes in plan.pairs():
        for source_slice, target_slice, slice_nbytes in _slices(source, target, pair_nbytes):
            if status := _limit_reached(deadline_ns, stop):
                return _Outcome(status, nbytes, 0, 0)
            if error := move(source_slice, target_slice, slice_nbytes):
                return _Outcome(COPY_FAILED, nbytes, 0, error)
            nbytes += slice_nbytes
        if digest:
            crc = crc32c(ctypes.string_at(target, pair_nbytes), crc)
    return _Outcome(COPY_DONE, nbytes, crc, 0)


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
) -> tuple[int, int, int]:
    """(status, bytes copied, CRC-32C of them or 0): pair by pair, each as memmove would."""
    plan = _plan(source, target, source_first, target_first, count, source_blocks, target_blocks)
    _check_wishes(deadline_ns, threads)
    if loop not in ("auto", *loops()):
        raise ValueError(f"loop must be one of {', '.join(['auto', *loops()])}; got {loop!r}")
    outcome = _carry_out(plan, _move_here, deadline_ns, stop, digest)
    return outcome.status, outcome.nbytes, outcome.crc


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


def _shares_bytes(plan: _Plan) -> bool:
    """Could a byte be both read and written? By the hulls of the used blocks."""
    hulls = [(source, target, source + nbytes, target + nbytes) for source, target, nbytes in plan.pairs()]
    return any(a[0] < b[3] and b[1] < a[2] for a in hulls for b in hulls)


def _move_process(
    pid: int, writes: bool, plan: _Plan, deadline_ns: int, stop: StopWord | None, threads: int
) -> tuple[int, int, int]:
    _check_wishes(deadline_ns, threads)
    if pid < 1:
        raise ValueError(f"pid must be at least 1, got {pid}")
    if pid == os.getpid() and _shares_bytes(plan):
        raise ParamInvalid(f"pid {pid} is this process, and source and target share bytes")
    outcome = _carry_out(plan, _process_move(pid, writes), deadline_ns, stop, False)
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
) -> tuple[int, int, int]:
    """(status, bytes copied, errno): as copy_blocks, the target addresses being process `pid`'s."""
    plan = _plan(source, target, source_first, target_first, count, source_blocks, target_blocks)
    return _move_process(pid, True, plan, deadline_ns, stop, threads)


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
) -> tuple[int, int, int]:
    """(status, bytes copied, errno): as copy_blocks, the source addresses being process `pid`'s."""
    plan = _plan(source, target, source_first, target_first, count, source_blocks, target_blocks)
    return _move_process(pid, False, plan, deadline_ns, stop, threads)


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
    plan = _plan(source, target, source_first, target_first, count, source_blocks, target_blocks)
    found: list[list[int]] = []
    is_shared = not apart and _shares_bytes(plan)
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
    plan = _plan(source, target, source_first, target_first, count, source_blocks, target_blocks)
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
