"""The contenders of a run. Each prepares a call for given block lists; the call does one copy and says its time.

push          CacheManager.push_blocks, as a Python caller sees it, completion record included
granted       push_granted under a grant of all blocks of the target, which is not sealed
verified      the same, with a digest of each block as it was read
one_to_many   push_blocks_to to several endpoints of another process
singles       push_blocks to each of these, one after the other
bare_c        the native plain copy, block by block, into the peer's mapped pages
limit         one loop of the copy kernel with a number of threads, within one process
memcpy        one thread's memcpy of the C library
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from ray_kvfabric.bench.cases import Case, Lists
from ray_kvfabric.bench.contents import GrantedLedger, Ledger
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.errors import LLMException
from ray_kvfabric.grant import Grant
from ray_kvfabric.memory.copy import BlockList, Copier, RegionTable
from ray_kvfabric.memory.memfd import HostMemory

Call = Callable[[], int]  # does it once; nanoseconds


class LaneKey(NamedTuple):
    """Names a lane in results; `detail` tells variants of one contender apart."""

    contender: str
    transport: str | None = None
    detail: str = ""


class Lane(Protocol):
    """`ledger` is what the target must hold; lanes that share a target share it. None: no blocks."""

    @property
    def key(self) -> LaneKey: ...
    @property
    def ledger(self) -> Ledger | None: ...
    def prepare(self, lists: Lists) -> Call: ...


class Push(NamedTuple):
    key: LaneKey
    ledger: Ledger
    manager: CacheManager
    cache: Cache
    target: BlocksCacheKey

    def prepare(self, lists: Lists) -> Call:
        push, target, cache = self.manager.push_blocks, self.target, self.cache
        source_blocks, target_blocks = lists
        clock = time.perf_counter_ns

        def call() -> int:
            started = clock()
            push(target, cache, source_blocks, target_blocks)
            return clock() - started

        return call


class GrantedPush(NamedTuple):
    key: LaneKey
    ledger: GrantedLedger
    manager: CacheManager
    cache: Cache
    grant: Grant

    def prepare(self, lists: Lists) -> Call:
        push, grant, cache, source_blocks = self.manager.push_granted, self.grant, self.cache, lists[0]
        at, clock = self.ledger.at(lists), time.perf_counter_ns

        def call() -> int:
            started = clock()
            push(grant, cache, source_blocks, at=at, seal=False)
            return clock() - started

        return call

    def seal(self) -> None:
        """Writes every granted block a last time."""
        blocks = list(range(len(self.grant.blocks)))
        self.manager.push_granted(self.grant, self.cache, blocks)
        self.ledger.write((blocks, blocks))


class OneToMany(NamedTuple):
    key: LaneKey
    ledger: Ledger
    manager: CacheManager
    cache: Cache
    targets: tuple[BlocksCacheKey, ...]

    def prepare(self, lists: Lists) -> Call:
        push, cache, clock = self.manager.push_blocks_to, self.cache, time.perf_counter_ns
        source_blocks, target_blocks = lists
        targets = [(each, target_blocks) for each in self.targets]

        def call() -> int:
            started = clock()
            outcomes = push(targets, cache, source_blocks)
            taken = clock() - started
            for outcome in outcomes:
                if isinstance(outcome, LLMException):
                    raise outcome
            return taken

        return call


class Singles(NamedTuple):
    key: LaneKey
    ledger: Ledger
    manager: CacheManager
    cache: Cache
    targets: tuple[BlocksCacheKey, ...]

    def prepare(self, lists: Lists) -> Call:
        push, targets, cache, clock = self.manager.push_blocks, self.targets, self.cache, time.perf_counter_ns
        source_blocks, target_blocks = lists

        def call() -> int:
            started = clock()
            for target in targets:
                push(target, cache, source_blocks, target_blocks)
            return clock() - started

        return call


class Tables(NamedTuple):
    """Both sides of a copy that uses the kernel without an endpoint."""

    copier: Copier
    source: RegionTable
    target: RegionTable

    def block_lists(self, lists: Lists) -> tuple[BlockList, BlockList]:
        return self.copier.BlockList(lists[0], "source"), self.copier.BlockList(lists[1], "target")


class BareCopy(NamedTuple):
    key: LaneKey
    ledger: Ledger
    tables: Tables

    def prepare(self, lists: Lists) -> Call:
        copier, source, target = self.tables
        blocks = self.tables.block_lists(lists)
        return lambda: copier.time_bare_copy(source, target, 0, 0, len(source), *blocks)


class Loop(NamedTuple):
    key: LaneKey
    ledger: Ledger
    tables: Tables
    loop: str
    threads: int

    def prepare(self, lists: Lists) -> Call:
        (copier, source, target), count = self.tables, len(self.tables.source)
        blocks, loop, threads = self.tables.block_lists(lists), self.loop, self.threads
        clock = time.perf_counter_ns

        def call() -> int:
            started = clock()
            copier.copy_blocks(source, target, 0, 0, count, *blocks, loop=loop, threads=threads)
            return clock() - started

        return call


class Memcpy:
    """`nbytes` a call, at an offset that changes with the block lists where the areas are larger."""

    key = LaneKey("memcpy")
    ledger = None

    def __init__(self, nbytes: int, area_nbytes: int) -> None:
        self.nbytes = nbytes
        self._places = area_nbytes // nbytes
        self._copied: set[int] = set()
        self._source = HostMemory.create("kvfabric-bench-source", area_nbytes)
        self._target = HostMemory.create("kvfabric-bench-target", area_nbytes)
        self._array(self._source).view(np.uint64)[:] = np.arange(area_nbytes // 8, dtype=np.uint64) + np.uint64(1)
        self._memcpy = ctypes.CDLL(None).memcpy
        self._memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._memcpy.restype = ctypes.c_void_p

    def prepare(self, lists: Lists) -> Call:
        offset = lists[0][0] % self._places * self.nbytes
        self._copied.add(offset)
        target, source = self._target.address + offset, self._source.address + offset
        memcpy, nbytes, clock = self._memcpy, self.nbytes, time.perf_counter_ns

        def call() -> int:
            started = clock()
            memcpy(target, source, nbytes)
            return clock() - started

        return call

    def is_right(self) -> bool:
        source, target = self._array(self._source), self._array(self._target)
        return all(
            np.array_equal(source[start : start + self.nbytes], target[start : start + self.nbytes])
            for start in self._copied
        )

    def close(self) -> None:
        self._source.close()
        self._target.close()

    def _array(self, memory: HostMemory) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.frombuffer(memory.view(memory.address, memory.nbytes), np.uint8)


def loops(copier: Copier, ledger: Ledger, tables: Tables) -> list[Loop]:
    """Every loop of the kernel with 1, 2, 4, ... threads."""
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= copier.copy_threads()]
    return [
        Loop(LaneKey("limit", detail=f"{loop} x {threads}"), ledger, tables, loop, threads)
        for loop in copier.loops()
        for threads in counts
    ]


def yardstick(case: Case, nbytes: int) -> Memcpy:
    """memcpy of `nbytes`; of the case's own bytes, as scattered as its blocks, for a small case."""
    return Memcpy(case.nbytes, case.cache_nbytes) if case.is_small else Memcpy(nbytes, nbytes)
