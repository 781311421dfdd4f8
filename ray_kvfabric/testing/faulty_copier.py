"""FaultyCopier: the copies of one push or pull, with what its occasion says. Reaches the points inside a cell.

    whole     enter -> all bytes -> copied
    HALFWAY   enter -> first half -> the point -> second half -> copied
    TRUNCATE  enter -> a prefix, and all bytes are claimed -> copied
    FLIP      enter -> all bytes -> one bit of them -> copied
A split copy gives way to nobody, and its digests are read from the source before it begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ray_kvfabric.memory.copy import COPY_DONE, BlockList, Copier, RegionTable
from ray_kvfabric.testing.fault_plan import FaultKind, Point
from ray_kvfabric.testing.occasion import Occasion

Outcome = tuple[int, int, int]
Call = Callable[..., Outcome]


class Ways(NamedTuple):
    """The kernel's copy that was asked for, and copies from and to where its target lies."""

    copy: Call
    read_target: Call
    write_target: Call


class Pairs(NamedTuple):
    """What a copy kernel is given: regions source_first.. pair with target_first.., entry i with entry i."""

    source: RegionTable
    target: RegionTable
    source_first: int
    target_first: int
    num_regions: int
    source_blocks: BlockList
    target_blocks: BlockList

    @property
    def nbytes(self) -> int:
        sizes = (self.source[self.source_first + index][2] for index in range(self.num_regions))
        return sum(sizes) * len(self.source_blocks)

    def at(self, nbytes: int) -> tuple[int, int, int]:
        """Region, pair and byte of it where that many bytes have been passed, in the order of the copy."""
        for region in range(self.num_regions):
            block = self.source[self.source_first + region][2]
            if nbytes < block * len(self.source_blocks):
                return region, *divmod(nbytes, block)
            nbytes -= block * len(self.source_blocks)
        return self.num_regions, 0, 0

    def target_address(self, nbytes: int) -> int:
        region, pair, byte = self.at(nbytes)
        base, _, _, stride = self.target[self.target_first + region]
        return base + list(self.target_blocks)[pair] * stride + byte


class FaultyCopier:
    """A `memory.copy.Copier`; what it does not wrap is the inner kernel's own."""

    def __init__(self, inner: Copier) -> None:
        self._inner = inner
        self._here = threading.local()  # a transfer copies in the thread that calls its link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def on(self, occasion: Occasion) -> Iterator[None]:
        """Copies of this thread are this occasion's."""
        self._here.occasion = occasion
        try:
            yield
        finally:
            self._here.occasion = None

    def copy_blocks(self, *pairs: Any, **options: Any) -> Outcome:
        kernel = self._inner.copy_blocks
        return self._copy(Ways(kernel, kernel, kernel), Pairs(*pairs), options)

    def write_process(self, pid: int, *pairs: Any, **options: Any) -> Outcome:
        write, read = partial(self._inner.write_process, pid), partial(self._inner.read_process, pid)
        return self._copy(Ways(write, read, write), Pairs(*pairs), options)

    def read_process(self, pid: int, *pairs: Any, **options: Any) -> Outcome:
        kernel = self._inner.copy_blocks
        return self._copy(Ways(partial(self._inner.read_process, pid), kernel, kernel), Pairs(*pairs), options)

    def _copy(self, ways: Ways, pairs: Pairs, options: dict[str, Any]) -> Outcome:
        occasion: Occasion | None = getattr(self._here, "occasion", None)
        if occasion is None or options.get("begin"):  # what goes on after it gave way was hit when it began
            return ways.copy(*pairs, **options)
        occasion.reach(Point.ENTERED)
        outcome = self._moved(ways.copy, pairs, options, occasion)
        if outcome[0] != COPY_DONE:
            return outcome
        if occasion.takes(FaultKind.FLIP):
            self._flip(ways, pairs, occasion.share)
        occasion.reach(Point.COPIED)
        return outcome

    def _moved(self, call: Call, pairs: Pairs, options: dict[str, Any], occasion: Occasion) -> Outcome:
        if occasion.takes(FaultKind.TRUNCATE):
            status, moved, problem = self._prefix(call, pairs, options, int(pairs.nbytes * occasion.share))
            return status, pairs.nbytes if status == COPY_DONE else moved, problem
        if not occasion.awaits(Point.HALFWAY):
            return call(*pairs, **options)
        half = pairs.nbytes // 2
        status, moved, problem = self._prefix(call, pairs, options, half)
        if status != COPY_DONE:
            return status, moved, problem
        occasion.reach(Point.HALFWAY)
        status, rest, problem = call(*pairs, **(_undigested(options) | {"begin": half}))
        return status, moved + rest, problem

    def _prefix(self, call: Call, pairs: Pairs, options: dict[str, Any], nbytes: int) -> Outcome:
        """The first `nbytes` bytes of a copy; the digests of all of it."""
        if options.get("digests") is not None:
            first, count, blocks = pairs.source_first, pairs.num_regions, pairs.source_blocks
            self._inner.block_digests(pairs.source, first, count, blocks, options["digests"])
        moved = 0
        for part in self._parts(pairs, nbytes):
            status, done, problem = call(*part, **_undigested(options))
            moved += done
            if status != COPY_DONE:
                return status, moved, problem
        return COPY_DONE, moved, 0

    def _parts(self, pairs: Pairs, nbytes: int) -> Iterator[Pairs]:
        """Whole regions, then whole pairs of the next one, then bytes of the next pair."""
        region, pair, byte = pairs.at(nbytes)
        if region:
            yield pairs._replace(num_regions=region)
        if not (pair or byte):
            return
        one = pairs._replace(
            source_first=pairs.source_first + region, target_first=pairs.target_first + region, num_regions=1
        )
        if pair:
            yield self._listed(one, slice(pair))
        if byte:
            cut = one._replace(source=self._cut(pairs.source, byte), target=self._cut(pairs.target, byte))
            yield self._listed(cut, slice(pair, pair + 1))

    def _listed(self, pairs: Pairs, which: slice) -> Pairs:
        lists = (self._inner.BlockList(list(each)[which], each.name) for each in pairs[-2:])
        return Pairs(*pairs[:-2], *lists)

    def _cut(self, table: RegionTable, nbytes: int) -> RegionTable:
        """The same blocks, of which only the first bytes are seen."""
        regions = [table[index] for index in range(len(table))]
        return self._inner.RegionTable([(base, num, nbytes, stride) for base, num, _, stride in regions], owner=table)

    def _flip(self, ways: Ways, pairs: Pairs, share: float) -> None:
        byte, bit = divmod(int(pairs.nbytes * 8 * share), 8)
        value = np.zeros(1, np.uint8)
        here, there = self._byte(value.ctypes.data), self._byte(pairs.target_address(byte))
        first = self._inner.BlockList([0], "flip")
        ways.read_target(*Pairs(there, here, 0, 0, 1, first, first))
        value ^= np.uint8(1 << bit)
        ways.write_target(*Pairs(here, there, 0, 0, 1, first, first))

    def _byte(self, address: int) -> RegionTable:
        return self._inner.RegionTable([(address, 1, 1, 1)])


def _undigested(options: dict[str, Any]) -> dict[str, Any]:
    """Of a part of a copy."""
    return {name: value for name, value in options.items() if name not in ("digests", "give_way")}
