"""Both copy kernels against the oracle of `copy_oracle`; each test is named after what would be wrong."""

from __future__ import annotations

import gc
import mmap
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_kvfabric.errors import ConfigError, ParamInvalid
from ray_kvfabric.memory import copy
from tests.unit.copy_oracle import (
    Bytes,
    Case,
    Shape,
    arguments,
    bitwise_crc32c,
    block_pairs,
    cases,
    copied,
    random_bytes,
)

MIB = 1 << 20
KERNELS = {name: copy.load(name) for name in copy.available()}
few = settings(max_examples=150, deadline=None)


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


@pytest.fixture(scope="module")
def native() -> Any:
    return KERNELS.get("native") or pytest.skip("the native kernel is not built")


def one_pair(sources: Shape, targets: Shape, source_blocks: list[int], target_blocks: list[int]) -> Case:
    return Case([sources], [targets], source_blocks, target_blocks, 0, 0, 1)


def large(nbytes: int) -> Case:
    """One block of `nbytes`, neither end of it on a cache line."""
    return one_pair(Shape(3, 1, nbytes, nbytes), Shape(nbytes + 77, 1, nbytes, nbytes), [0], [0])


def check(kernel: Any, case: Case, **wishes: Any) -> None:
    arena = random_bytes(case.arena_nbytes)
    expected, moved = copied(arena, case)
    status, nbytes, digest = kernel.copy_blocks(*arguments(kernel, case, arena), **wishes)
    assert (status, nbytes) == (kernel.COPY_DONE, case.nbytes)
    np.testing.assert_array_equal(arena, expected)
    if wishes.get("digest"):
        assert digest == bitwise_crc32c(moved)
    else:
        assert digest == 0


# ---- the copy ----


@few
@given(case=cases(), threads=st.integers(0, 4), data=st.data())
def test_bytes_differ_from_pair_by_pair(kernel: Any, case: Case, threads: int, data: st.DataObject) -> None:
    loop = data.draw(st.sampled_from(["auto", *kernel.loops()]))
    check(kernel, case, threads=threads, loop=loop)


@settings(max_examples=60, deadline=None)
@given(case=cases(), threads=st.integers(0, 4))
def test_digest_is_of_other_bytes(kernel: Any, case: Case, threads: int) -> None:
    check(kernel, case, threads=threads, digest=True)


@settings(max_examples=25, deadline=None)
@given(case=cases(largest_block=150_000), threads=st.integers(1, 4), data=st.data())
def test_bytes_differ_in_blocks_of_many_pages(kernel: Any, case: Case, threads: int, data: st.DataObject) -> None:
    loop = data.draw(st.sampled_from(kernel.loops()))
    check(kernel, case, threads=threads, loop=loop)


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_a_copy_of_several_steps_loses_its_seams(kernel: Any, threads: int) -> None:
    for loop in kernel.loops():
        check(kernel, large(9 * MIB + 13), threads=threads, loop=loop)


def test_kernels_disagree_about_the_digest_of_a_large_copy() -> None:
    num_blocks, nbytes = 37, 40_001
    sources, targets = Shape(5, 37, nbytes, nbytes), Shape(2 * MIB, num_blocks, nbytes, nbytes + 100)
    order = list(range(num_blocks))
    case = one_pair(sources, targets, order[::-1], order)
    found = set()
    for kernel in KERNELS.values():
        for threads in (1, 3):
            arena = random_bytes(case.arena_nbytes)
            found.add(kernel.copy_blocks(*arguments(kernel, case, arena), digest=True, threads=threads))
    assert len(found) == 1


def test_the_published_check_value_is_missed(kernel: Any) -> None:
    arena = np.frombuffer(bytearray(b"123456789" + bytes(9)), np.uint8)
    case = one_pair(Shape(0, 1, 9, 9), Shape(9, 1, 9, 9), [0], [0])
    assert kernel.copy_blocks(*arguments(kernel, case, arena), digest=True)[2] == 0xE3069283


@pytest.mark.parametrize("shift", [-5 * MIB, -4097, -1, 0, 1, 63, 4096, 5 * MIB])
def test_a_block_moved_onto_itself_is_smeared(kernel: Any, shift: int) -> None:
    nbytes = 9 * MIB + 5  # more than two steps
    check(kernel, one_pair(Shape(6 * MIB, 1, nbytes, nbytes), Shape(6 * MIB + shift, 1, nbytes, nbytes), [0], [0]))


def test_a_chain_of_blocks_is_not_carried_on(kernel: Any) -> None:
    cache = Shape(0, 6, 70_000, 70_000)
    check(kernel, one_pair(cache, cache, [0, 1, 2, 5], [1, 2, 3, 5]), threads=4)


@pytest.mark.parametrize("num_regions", [1, 4])
def test_the_last_of_two_writes_to_a_block_does_not_win(kernel: Any, num_regions: int) -> None:
    nbytes, num_blocks = 30_000, 16
    region = nbytes * num_blocks
    sources = [Shape(i * region, num_blocks, nbytes, nbytes) for i in range(num_regions)]
    targets = [Shape((num_regions + i) * region, num_blocks, nbytes, nbytes) for i in range(num_regions)]
    for _ in range(5):
        check(kernel, Case(sources, targets, list(range(16)), [3, 4] * 8, 0, 0, num_regions), threads=4)


def test_the_last_of_two_regions_over_the_same_bytes_does_not_win(kernel: Any) -> None:
    nbytes = 200_000
    sources = [Shape(i * 4 * nbytes, 4, nbytes, nbytes) for i in range(4)]
    targets = [Shape(20 * nbytes + i * 100, 4, nbytes, nbytes) for i in range(4)]
    for _ in range(5):
        check(kernel, Case(sources, targets, [0, 1, 2, 3], [0, 1, 2, 3], 0, 0, 4), threads=4)


def test_interleaved_layers_are_mixed_up(kernel: Any) -> None:
    """Four layers in one storage, a block of each in turn; the target is an equal storage behind it."""
    nbytes, num_blocks = 3000, 12
    stride = 4 * nbytes
    sources = [Shape(i * nbytes, num_blocks, nbytes, stride) for i in range(4)]
    targets = [Shape(num_blocks * stride + i * nbytes, num_blocks, nbytes, stride) for i in range(4)]
    check(kernel, Case(sources, targets, [7, 8, 9, 0], [1, 2, 3, 11], 0, 0, 4), threads=3)
    check(kernel, Case(sources[:2], sources[2:], [7, 8, 9, 0], [7, 2, 3, 11], 0, 0, 2), threads=3)


def test_the_yardstick_copies_something_else(kernel: Any) -> None:
    case = one_pair(Shape(0, 5, 1000, 1100), Shape(8000, 5, 1000, 1000), [4, 0, 1], [0, 3, 2])
    arena = random_bytes(case.arena_nbytes)
    expected, _ = copied(arena, case)
    assert kernel.time_bare_copy(*arguments(kernel, case, arena)) > 0
    np.testing.assert_array_equal(arena, expected)


@few
@given(pairs=block_pairs(50))
def test_runs_split_or_join_wrongly(kernel: Any, pairs: list[tuple[int, int]]) -> None:
    lists = [kernel.BlockList([pair[side] for pair in pairs], "blocks") for side in (0, 1)]
    found = kernel.runs(*lists)
    assert [(i + k, j + k) for i, j, count in found for k in range(count)] == pairs
    for (i, j, count), following in zip(found, found[1:], strict=False):
        assert following[:2] != (i + count, j + count)


# ---- refusals ----

GOOD = (4096, 4, 16, 32)
NOT_INTS = [None, 1.0, "1", np.int64(1)]


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


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [0, -1, 2**63, 2**64, *NOT_INTS], ids=repr)
def test_a_bad_region_gets_into_a_table(position: int, value: Any) -> None:
    bad = (*GOOD[:position], value, *GOOD[position + 1 :])
    error = ValueError if type(value) is int else TypeError
    text = every_text(lambda kernel: kernel.RegionTable([GOOD, bad]), error)
    field = ("base", "num_blocks", "block_nbytes", "block_stride")[position]
    assert text.startswith(f"regions[1].{field} ")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((4096, 4, 33, 32), "block_stride is 32, less than block_nbytes 33"),
        ((2**63 - 64, 3, 16, 32), "base is 9223372036854775744: the region would end at"),
        ((1, 2**62, 16, 2**62), "the region would end at"),
    ],
)
def test_an_impossible_region_gets_into_a_table(bad: Any, words: str) -> None:
    assert words in every_text(lambda kernel: kernel.RegionTable([bad]), ValueError)


@pytest.mark.parametrize("bad", [None, 5, (1, 2, 3), "4096"])
def test_something_else_than_a_region_gets_into_a_table(bad: Any) -> None:
    assert "regions[0] must be (base" in every_text(lambda kernel: kernel.RegionTable([bad]), TypeError)


def test_a_table_forgets_its_regions_or_its_owner(kernel: Any) -> None:
    owner = random_bytes(8)
    gone = weakref.ref(owner)
    table = kernel.RegionTable([GOOD, (9, True, 1, 1)], owner)
    del owner
    gc.collect()
    assert gone() is table.owner
    assert (len(table), table[0], table[-1]) == (2, GOOD, (9, 1, 1, 1))
    assert repr(table) == "<RegionTable: 2 regions>"
    with pytest.raises(IndexError):
        table[2]
    del table
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("value", [-1, 2**63, -(2**70), *NOT_INTS, np.bool_(True)], ids=repr)
def test_a_bad_index_gets_into_a_list(value: Any) -> None:
    text = every_text(lambda kernel: kernel.BlockList([0, 1, value], "dst_blocks"), TypeError)
    assert text.startswith("dst_blocks[2] must be ")


@pytest.mark.parametrize("blocks", [None, 3, {1: 2}, range(3), np.arange(3), "12"], ids=repr)
def test_something_else_than_a_list_becomes_a_list(blocks: Any) -> None:
    text = every_text(lambda kernel: kernel.BlockList(blocks, "src_blocks"), TypeError)
    assert text.startswith("src_blocks must be a list or tuple of int, got ")


def test_a_list_forgets_its_blocks(kernel: Any) -> None:
    blocks = [5, 0, True, 2**63 - 1]
    held = kernel.BlockList(tuple(blocks), "blocks")
    assert (list(held), len(held), held.maximum, held.name) == (blocks, 4, 2**63 - 1, "blocks")
    assert kernel.BlockList([], "blocks").maximum == -1
    assert repr(kernel.BlockList([4, 2], "src_blocks")) == "<BlockList src_blocks: 2 blocks, maximum 4>"


TWO = [(4096, 4, 16, 32), (8192, 6, 16, 16)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source_blocks": [0, 1]}, "source_blocks has 2 entries, target_blocks has 1"),
        ({"source_first": -1}, "source_first -1 and count 2 do not fit the source table of 2 regions"),
        ({"source_first": 1}, "source_first 1 and count 2 do not fit the source table of 2 regions"),
        ({"target_first": 2}, "target_first 2 and count 2 do not fit the target table of 2 regions"),
        ({"count": -1}, "source_first 0 and count -1 do not fit"),
        ({"count": 2**63 - 1, "source_first": 1}, "and count 9223372036854775807 do not fit"),
        (
            {"source_blocks": [4]},
            "source_blocks holds block 4, source region 0 has num_blocks 4 (target region 0 has 4)",
        ),
        (
            {"target_blocks": [5], "target_first": 1, "count": 1, "source_first": 0},
            None,  # region 1 has six blocks: this one fits
        ),
        (
            {"target_blocks": [6], "target_first": 1, "count": 1},
            "target_blocks holds block 6, target region 1 has num_blocks 6 (source region 0 has 4)",
        ),
        (
            {"target": [TWO[0], (8192, 6, 17, 17)]},
            "block_nbytes differs: source region 1 has 16, target region 1 has 17",
        ),
    ],
)
def test_a_plan_that_does_not_fit_moves_a_byte(changes: dict[str, Any], words: str | None) -> None:
    memory = {side: random_bytes(10_000, seed) for seed, side in enumerate(("source", "target"))}
    before = {side: array.copy() for side, array in memory.items()}

    def act(kernel: Any) -> None:
        given = {"source": TWO, "target": TWO, "source_first": 0, "target_first": 0, "count": 2}
        given |= {"source_blocks": [1], "target_blocks": [1]} | changes
        for side, array in memory.items():
            shifted = [(array.ctypes.data + region[0] - 4096, *region[1:]) for region in given[side]]
            given[side] = kernel.RegionTable(shifted, array)
            given[f"{side}_blocks"] = kernel.BlockList(given[f"{side}_blocks"], f"{side}_blocks")
        kernel.copy_blocks(**given)

    if words is None:
        for kernel in KERNELS.values():
            act(kernel)
        return
    assert words in every_text(act, ParamInvalid)
    for side, array in memory.items():
        np.testing.assert_array_equal(array, before[side])


def test_a_plan_of_too_many_bytes_wraps_around() -> None:
    def act(kernel: Any) -> None:
        table = kernel.RegionTable([(1, 1, 2**61, 2**61)])
        blocks = kernel.BlockList([0] * 4, "src_blocks")
        kernel.copy_blocks(table, table, 0, 0, 1, blocks, blocks)

    assert every_text(act, ParamInvalid) == "src_blocks names 2**63 bytes or more in the 1 regions"


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"threads": -1}, "threads must be in [0, 64], got -1"),
        ({"threads": 65}, "threads must be in [0, 64], got 65"),
        ({"deadline_ns": -1}, "deadline_ns must not be negative, got -1"),
    ],
)
def test_a_bad_wish_is_honoured(wishes: dict[str, int], words: str) -> None:
    case = large(10)
    arena = random_bytes(case.arena_nbytes)
    assert every_text(lambda kernel: kernel.copy_blocks(*arguments(kernel, case, arena), **wishes), ValueError) == words
    for pid, verb in [(1, "write_process"), (1, "read_process")]:
        act = lambda kernel, verb=verb: getattr(kernel, verb)(pid, *arguments(kernel, case, arena), **wishes)  # noqa: B023
        assert every_text(act, ValueError) == words


def test_an_unknown_loop_is_taken(kernel: Any) -> None:
    case = large(10)
    with pytest.raises(ValueError, match=r"loop must be one of auto, plain.*; got 'fast'"):
        kernel.copy_blocks(*arguments(kernel, case, random_bytes(case.arena_nbytes)), loop="fast")


# ---- limits ----


def test_a_byte_moves_after_the_deadline(kernel: Any) -> None:
    case = large(2 * MIB)
    for threads in (1, 2):
        arena = random_bytes(case.arena_nbytes)
        before = arena.copy()
        past = time.monotonic_ns() - 1
        result = kernel.copy_blocks(*arguments(kernel, case, arena), deadline_ns=past, digest=True, threads=threads)
        assert result == (kernel.COPY_TIMED_OUT, 0, 0)
        np.testing.assert_array_equal(arena, before)


def test_a_deadline_far_away_ends_a_copy(kernel: Any) -> None:
    check(kernel, large(MIB), deadline_ns=time.monotonic_ns() + 3600 * 10**9, stop=kernel.StopWord())


def test_a_byte_moves_after_the_stop(kernel: Any) -> None:
    case = large(2 * MIB)
    stop = kernel.StopWord()
    assert not stop.is_set
    stop.set()
    assert stop.is_set
    for threads in (1, 2):
        arena = random_bytes(case.arena_nbytes)
        before = arena.copy()
        result = kernel.copy_blocks(*arguments(kernel, case, arena), stop=stop, digest=True, threads=threads)
        assert result == (kernel.COPY_STOPPED, 0, 0)
        np.testing.assert_array_equal(arena, before)


@pytest.mark.parametrize("limit", ["stop", "deadline"])
def test_a_long_copy_cannot_be_ended(kernel: Any, limit: str) -> None:
    """One block over and over: seconds of copying, ended after a few milliseconds."""
    case = one_pair(Shape(0, 1, 8 * MIB, 8 * MIB), Shape(8 * MIB, 1, 8 * MIB, 8 * MIB), [0] * 4000, [0] * 4000)
    stop = kernel.StopWord()
    plan = arguments(kernel, case, random_bytes(case.arena_nbytes))
    timer = threading.Timer(0.02, stop.set) if limit == "stop" else threading.Timer(0, lambda: None)
    timer.start()
    begin = time.monotonic()
    deadline_ns = time.monotonic_ns() + 20_000_000 if limit == "deadline" else 0
    status, nbytes, _ = kernel.copy_blocks(*plan, deadline_ns=deadline_ns, stop=stop)
    timer.join()
    assert status == (kernel.COPY_STOPPED if limit == "stop" else kernel.COPY_TIMED_OUT)
    assert 0 < nbytes < case.nbytes
    assert time.monotonic() - begin < 1


# ---- threads and forks ----


def test_callers_disturb_each_other(kernel: Any) -> None:
    failures: list[BaseException] = []

    def caller(seed: int) -> None:
        try:
            for _ in range(6):
                check(kernel, large(2 * MIB + 1000 * seed), threads=seed % 3 + 1)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


@pytest.fixture
def kept_threads(kernel: Any) -> Iterator[None]:
    before = kernel.copy_threads()
    yield
    kernel.set_copy_threads(before)


@pytest.mark.usefixtures("kept_threads")
def test_the_number_of_threads_is_not_kept(kernel: Any) -> None:
    for threads in (1, 3, 64):
        kernel.set_copy_threads(threads)
        assert kernel.copy_threads() == threads
        check(kernel, large(3 * MIB))
    for threads in (0, 65):
        with pytest.raises(ValueError, match=rf"threads must be in \[1, 64\], got {threads}"):
            kernel.set_copy_threads(threads)
    assert kernel.copy_threads() == 64


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_waits_for_threads_it_does_not_have(kernel: Any) -> None:
    case = large(4 * MIB)
    check(kernel, case, threads=3)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check(kernel, case, threads=3)
            status = 0
        finally:
            os._exit(status)
    assert waited(child) == 0


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


# ---- another process ----


@pytest.fixture
def child_arena() -> Iterator[tuple[int, Bytes]]:
    """A child and an arena at the same address in both, of which each process has its own pages."""
    arena = np.frombuffer(mmap.mmap(-1, 24 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
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


SCATTERED = Case(
    [Shape(100 + i * 500_000, 300, 1000, 1500) for i in range(5)],
    [Shape(9 * MIB + i * 500_000, 300, 1000, 1200) for i in range(5)],
    [*range(0, 300, 2), *range(299, -1, -3)],
    [*range(150, 300), *range(100)],
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
    np.testing.assert_array_equal(fetched(kernel, pid, arena), expected)
    np.testing.assert_array_equal(arena, mine)


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
    np.testing.assert_array_equal(arena, expected)


def half_mapped() -> tuple[mmap.mmap, int]:
    """Pages of which the upper half is gone again, and their address."""
    import ctypes

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
    np.testing.assert_array_equal(arena, before)


@pytest.mark.parametrize("verb", ["write_process", "read_process"])
def test_a_process_is_let_smear_its_own_blocks(verb: str) -> None:
    case = one_pair(Shape(0, 1, 100, 100), Shape(50, 1, 100, 100), [0], [0])
    arena = random_bytes(case.arena_nbytes)
    pid = os.getpid()
    text = every_text(lambda kernel: getattr(kernel, verb)(pid, *arguments(kernel, case, arena)), ParamInvalid)
    assert text == f"pid {pid} is this process, and source and target share bytes"
    text = every_text(lambda kernel: getattr(kernel, verb)(0, *arguments(kernel, case, arena)), ValueError)
    assert text == "pid must be at least 1, got 0"


# ---- the choice ----


def test_a_kernel_that_is_not_there_is_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="copy must be one of native, python; got 'best'"):
        copy.load("best")
    monkeypatch.setitem(copy._MODULES, "native", "ray_kvfabric.memory._not_built")
    assert copy.available() == ["python"]
    with pytest.raises(ConfigError, match=re.escape("`python setup.py build_ext --inplace`")):
        copy.load("native")


def test_the_twins_have_different_surfaces() -> None:
    public = [name for name in vars(copy.Copier) if not name.startswith("_")]
    for kernel in KERNELS.values():
        assert [name for name in [*public, *copy.__annotations__] if not hasattr(kernel, name)] == []
        statuses = [kernel.COPY_DONE, kernel.COPY_TIMED_OUT, kernel.COPY_STOPPED, kernel.COPY_FAILED]
        assert statuses == [copy.COPY_DONE, copy.COPY_TIMED_OUT, copy.COPY_STOPPED, copy.COPY_FAILED]


def test_doctor_is_told_nothing(kernel: Any) -> None:
    features = kernel.cpu_features()
    assert features["loop"] in kernel.loops()
    assert {"implementation", "loop", "loops", "digest", "threads"} <= set(features)


def test_the_native_kernel_has_no_fast_loop_where_it_could(native: Any) -> None:
    with open("/proc/cpuinfo") as cpuinfo:
        flags = cpuinfo.read().split()
    expected = {"avx2": "avx2", "avx512": "avx512f"}
    assert native.loops()[0] == "plain"
    assert {name for name, flag in expected.items() if flag in flags} <= set(native.loops())
