"""What a copy must do, said with index arithmetic on one numpy array; shares no code with the kernels.

Source and target regions lie anywhere in one arena, so that overlap is a shape like any other and every byte
outside the listed blocks is a guard byte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_kvfabric.memory import copy

Bytes = NDArray[np.uint8]
KERNELS: dict[str, Any] = {name: copy.load(name) for name in copy.available()}


class Shape(NamedTuple):
    """One region inside the arena; `offset` instead of an address."""

    offset: int
    num_blocks: int
    block_nbytes: int
    block_stride: int

    @property
    def end(self) -> int:
        return self.offset + (self.num_blocks - 1) * self.block_stride + self.block_nbytes

    def block(self, index: int) -> slice:
        begin = self.offset + index * self.block_stride
        return slice(begin, begin + self.block_nbytes)


class Case(NamedTuple):
    sources: list[Shape]
    targets: list[Shape]
    source_blocks: list[int]
    target_blocks: list[int]
    source_first: int
    target_first: int
    count: int

    @property
    def arena_nbytes(self) -> int:
        return max(shape.end for shape in self.sources + self.targets) + 64

    @property
    def nbytes(self) -> int:
        chosen = self.sources[self.source_first : self.source_first + self.count]
        return sum(shape.block_nbytes for shape in chosen) * len(self.source_blocks)


@cache
def _random_pool() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, 32 << 20, dtype=np.uint8)


def random_bytes(nbytes: int, seed: int = 0) -> Bytes:
    """Equal for equal arguments; `seed` below 100."""
    return _random_pool()[seed * 1000 :][:nbytes].copy()


def copied(arena: Bytes, case: Case) -> tuple[Bytes, bytes]:
    """The arena afterwards, and the bytes copied in plan order."""
    after, moved = arena.copy(), bytearray()
    for place in range(case.count):
        source, target = case.sources[case.source_first + place], case.targets[case.target_first + place]
        for i, j in zip(case.source_blocks, case.target_blocks, strict=True):
            block = after[source.block(i)].copy()
            after[target.block(j)] = block
            moved += block.tobytes()
    return after, bytes(moved)


def copied_front(arena: Bytes, case: Case, nbytes: int) -> Bytes:
    """The arena after the first `nbytes` in plan order; a pair that moves up onto itself goes from its end."""
    after = arena.copy()
    for place in range(case.count):
        source, target = case.sources[case.source_first + place], case.targets[case.target_first + place]
        for i, j in zip(case.source_blocks, case.target_blocks, strict=True):
            here, there = source.block(i), target.block(j)
            taken = min(nbytes, source.block_nbytes)
            skipped = source.block_nbytes - taken if here.start < there.start < here.stop else 0
            block = after[here].copy()
            after[there][skipped : skipped + taken] = block[skipped : skipped + taken]
            nbytes -= taken
    return after


def pairs_moved(case: Case, moved: bytes) -> list[bytes]:
    """What `copied` says of the bytes, cut into the pairs of blocks."""
    chosen = case.sources[case.source_first : case.source_first + case.count]
    sizes = [shape.block_nbytes for shape in chosen for _ in case.source_blocks]
    ends = [*accumulate(sizes)]
    return [moved[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def bitwise_crc32c(message: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in message:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 * (register & 1))
    return register ^ 0xFFFFFFFF


def one_pair(sources: Shape, targets: Shape, source_blocks: list[int], target_blocks: list[int]) -> Case:
    return Case([sources], [targets], source_blocks, target_blocks, 0, 0, 1)


def large(nbytes: int) -> Case:
    """One block of `nbytes`, neither end of it on a cache line."""
    return one_pair(Shape(3, 1, nbytes, nbytes), Shape(nbytes + 77, 1, nbytes, nbytes), [0], [0])


def arguments(kernel: Any, case: Case, arena: Bytes) -> tuple[Any, ...]:
    """The positional arguments of `copy_blocks` for this case in this arena."""

    def table(shapes: list[Shape]) -> Any:
        base = arena.ctypes.data
        return kernel.RegionTable([(base + shape.offset, *shape[1:]) for shape in shapes], owner=arena)

    return (
        table(case.sources),
        table(case.targets),
        case.source_first,
        case.target_first,
        case.count,
        kernel.BlockList(case.source_blocks, "source_blocks"),
        kernel.BlockList(case.target_blocks, "target_blocks"),
    )


@st.composite
def shapes(draw: st.DrawFn, block_nbytes: int, num_blocks: int, begin: int) -> Shape:
    gap = draw(st.sampled_from([0, 0, 1, 7, 64, block_nbytes]))
    offset = begin + draw(st.integers(1, 200))
    return Shape(offset, num_blocks, block_nbytes, block_nbytes + gap)


@st.composite
def cases(draw: st.DrawFn, largest_block: int = 300) -> Case:
    """Regions one behind the other, or thrown together so that they overlap; lists with repeats and runs."""
    source_first, target_first = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    count = draw(st.integers(0, 3))
    num_blocks = draw(st.integers(1, 8))
    spread = draw(st.sampled_from([0, 0, 1])) == 0
    sizes = draw(st.lists(st.integers(1, largest_block), min_size=count, max_size=count))

    def side(first: int, begin: int) -> list[Shape]:
        found: list[Shape] = []
        for block_nbytes in [9] * first + sizes + [5]:
            found.append(draw(shapes(block_nbytes, num_blocks, begin)))
            begin = found[-1].end if spread else begin
        return found

    sources = side(source_first, 0)
    targets = side(target_first, sources[-1].end if spread else 0)
    pairs = draw(block_pairs(num_blocks))
    source_blocks, target_blocks = [i for i, _ in pairs], [j for _, j in pairs]
    return Case(sources, targets, source_blocks, target_blocks, source_first, target_first, count)


@st.composite
def block_pairs(draw: st.DrawFn, num_blocks: int) -> list[tuple[int, int]]:
    """Pieces of one to four neighbours, so that runs occur; repeats are not avoided."""
    block = st.integers(0, num_blocks - 1)
    pairs: list[tuple[int, int]] = []
    for i, j, length in draw(st.lists(st.tuples(block, block, st.integers(1, 4)), max_size=5)):
        pairs += [(i + k, j + k) for k in range(length) if max(i, j) + k < num_blocks]
    return pairs


def every_text(act: Callable[[Any], object], error: type[Exception]) -> str:
    """What all kernels say alike when they refuse."""
    texts = set()
    for kernel in KERNELS.values():
        with pytest.raises(error) as caught:
            act(kernel)
        assert type(caught.value) is error
        texts.add(str(caught.value))
    assert len(texts) == 1, texts
    return texts.pop()


def waited(child: int, seconds: float = 10) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
