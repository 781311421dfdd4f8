"""write_process and read_process of both copy kernels, against a child and against broken peers."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.errors import ParamInvalid
from tests.unit.copy_oracle import (
    KERNELS,
    Bytes,
    Case,
    Shape,
    arguments,
    every_text,
    large,
    one_pair,
    random_bytes,
    waited,
)

MIB = 1 << 20


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


@pytest.fixture
def child_arena() -> Iterator[tuple[int, Bytes]]:
    """A child and an arena at the same address in both, of which each process has its own pages."""
    arena = np.frombuffer(mmap.mmap(-1, 20 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    arena[:] = random_bytes(arena.size)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        arena[:] = arena[::-1].copy()  # the child's bytes now differ
        os.write(ready[1], b"!")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    yield child, arena
    os.write(done[1], b"!")
    assert waited(child) == 0
    for end in (*ready, *done):
        os.close(end)


def whole(nbytes: int) -> Case:
    return one_pair(Shape(0, 1, nbytes, nbytes), Shape(0, 1, nbytes, nbytes), [0], [0])


def fetched(kernel: Any, pid: int, arena: Bytes) -> Bytes:
    """The child's arena, read in one piece."""
    mine = np.empty_like(arena)
    case = whole(arena.size)
    there, here = arguments(kernel, case, arena), arguments(kernel, case, mine)
    status = kernel.read_process(pid, there[0], here[1], *there[2:])
    assert status == (kernel.COPY_DONE, arena.size, 0)
    return mine


# Three thousand pieces: several calls of the kernel, which takes 1024 at a time.
SCATTERED = Case(
    [Shape(100 + i * 500_000, 1200, 300, 400) for i in range(5)],
    [Shape(9 * MIB + i * 500_000, 1200, 300, 350) for i in range(5)],
    [*range(0, 1200, 2), *range(1199, -1, -3)],
    [*range(600, 1200), *range(400)],
    1,
    2,
    3,
)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("case", [SCATTERED, large(9 * MIB + 1)], ids=["scattered", "large"])
def test_another_process_gets_other_bytes(
    kernel: Any, case: Case, threads: int, child_arena: tuple[int, Bytes]
) -> None:
    pid, arena = child_arena
    theirs, mine = arena[::-1].copy(), arena.copy()
    plan = arguments(kernel, case, arena)
    assert kernel.write_process(pid, *plan, threads=threads) == (kernel.COPY_DONE, case.nbytes, 0)
    expected = theirs.copy()
    for place in range(case.count):
        source, target = case.sources[case.source_first + place], case.targets[case.target_first + place]
        for i, j in zip(case.source_blocks, case.target_blocks, strict=True):
            expected[target.block(j)] = mine[source.block(i)]
    assert np.array_equal(fetched(kernel, pid, arena), expected)
    assert np.array_equal(arena, mine)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [0, 3])
def test_other_bytes_are_read_from_another_process(kernel: Any, threads: int, child_arena: tuple[int, Bytes]) -> None:
    pid, arena = child_arena
    theirs, expected = arena[::-1].copy(), arena.copy()
    plan = arguments(kernel, SCATTERED, arena)
    assert kernel.read_process(pid, *plan, threads=threads) == (kernel.COPY_DONE, SCATTERED.nbytes, 0)
    for place in range(SCATTERED.count):
        source, target = SCATTERED.sources[1 + place], SCATTERED.targets[2 + place]
        for i, j in zip(SCATTERED.source_blocks, SCATTERED.target_blocks, strict=True):
            expected[target.block(j)] = theirs[source.block(i)]
    assert np.array_equal(arena, expected)


def half_mapped() -> tuple[mmap.mmap, int]:
    """Pages of which the upper half is gone again, and their address."""
    pages = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = np.frombuffer(pages, np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + 32 * 4096), ctypes.c_size_t(32 * 4096), 0) == 0
    return pages, address


@pytest.mark.parametrize("verb", ["write_process", "read_process"])
def test_an_unmapped_page_of_the_other_process_is_not_noticed(kernel: Any, verb: str) -> None:
    pages, there = half_mapped()
    mine = random_bytes(64 * 4096)
    far = kernel.RegionTable([(there, 64, 4096, 4096)], pages)
    near = kernel.RegionTable([(mine.ctypes.data, 64, 4096, 4096)], mine)
    blocks = kernel.BlockList(list(range(64)), "blocks")
    sides = (near, far) if verb == "write_process" else (far, near)
    status, nbytes, problem = getattr(kernel, verb)(os.getpid(), *sides, 0, 0, 1, blocks, blocks)
    assert (status, problem) == (kernel.COPY_FAILED, 14)  # EFAULT
    assert nbytes == 32 * 4096


@pytest.mark.parametrize("verb", ["write_process", "read_process"])
def test_a_process_that_is_gone_is_not_noticed(kernel: Any, verb: str) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    case = large(10)
    result = getattr(kernel, verb)(child, *arguments(kernel, case, random_bytes(case.arena_nbytes)))
    assert result == (kernel.COPY_FAILED, 0, 3)  # ESRCH


@pytest.mark.parametrize("verb", ["write_process", "read_process"])
def test_process_copies_ignore_their_limits(kernel: Any, verb: str) -> None:
    case = large(100)
    arena = random_bytes(case.arena_nbytes)
    before = arena.copy()
    stop = kernel.StopWord()
    stop.set()
    move = getattr(kernel, verb)
    plan = arguments(kernel, case, arena)
    assert move(os.getpid(), *plan, stop=stop) == (kernel.COPY_STOPPED, 0, 0)
    assert move(os.getpid(), *plan, deadline_ns=1) == (kernel.COPY_TIMED_OUT, 0, 0)
    assert np.array_equal(arena, before)


@pytest.mark.parametrize("verb", ["write_process", "read_process"])
def test_a_process_is_let_smear_its_own_blocks(verb: str) -> None:
    case = one_pair(Shape(0, 1, 100, 100), Shape(50, 1, 100, 100), [0], [0])
    arena = random_bytes(case.arena_nbytes)
    pid = os.getpid()
    text = every_text(lambda kernel: getattr(kernel, verb)(pid, *arguments(kernel, case, arena)), ParamInvalid)
    assert text == f"pid {pid} is this process, and source and target share bytes"
    text = every_text(lambda kernel: getattr(kernel, verb)(0, *arguments(kernel, case, arena)), ValueError)
    assert text == "pid must be at least 1, got 0"
