"""Fences and way words, on both copy kernels; each test is named after what would be wrong."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.copy_oracle import (
    KERNELS,
    Bytes,
    Case,
    Shape,
    arguments,
    cases,
    copied,
    copied_front,
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


@pytest.fixture(params=["copy_blocks", "write_process", "read_process"])
def move(request: pytest.FixtureRequest, kernel: Any) -> Any:
    """A copy verb, the other process being this one."""
    verb = getattr(kernel, request.param)
    return verb if request.param == "copy_blocks" else lambda *plan, **wishes: verb(os.getpid(), *plan, **wishes)


def word_of(value: int) -> Any:
    return np.full(1, value, np.uint64)


def fence_on(kernel: Any, word: Any, value: int) -> Any:
    return kernel.Fence(word.ctypes.data, value, word)


def over_and_over() -> Case:
    """One block 4000 times: seconds of copying."""
    block = Shape(0, 1, 8 * MIB, 8 * MIB)
    return one_pair(block, block._replace(offset=8 * MIB), [0] * 4000, [0] * 4000)


# ---- fences ----


@pytest.mark.parametrize("value", [0, 1, 2**63, 2**64 - 1])
def test_a_fence_that_holds_ends_a_copy(move: Any, kernel: Any, value: int) -> None:
    case = large(2 * MIB)
    arena = random_bytes(case.arena_nbytes)
    expected, _ = copied(arena, case)
    fence = fence_on(kernel, word_of(value), value)
    assert fence.holds
    result = move(*arguments(kernel, case, arena), fence=fence, threads=2)
    assert result == (kernel.COPY_DONE, case.nbytes, 0)
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_byte_moves_behind_a_fence(move: Any, kernel: Any, threads: int) -> None:
    case = large(2 * MIB)
    arena = random_bytes(case.arena_nbytes)
    before, word = arena.copy(), word_of(7)
    fence = fence_on(kernel, word, 7)
    word[0] = 7 + 2**32  # the upper half counts
    assert not fence.holds
    result = move(*arguments(kernel, case, arena), fence=fence, threads=threads)
    assert result == (kernel.COPY_FENCED, 0, 0)
    assert np.array_equal(arena, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_copy_runs_through_a_fence(move: Any, kernel: Any, threads: int) -> None:
    case, word = over_and_over(), word_of(7)
    plan = arguments(kernel, case, random_bytes(case.arena_nbytes))
    timer = threading.Timer(0.05, lambda: word.fill(8))
    timer.start()
    status, nbytes, _ = move(*plan, fence=fence_on(kernel, word, 7), threads=threads)
    assert status == kernel.COPY_FENCED
    assert 0 < nbytes < case.nbytes


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fence_of_another_process_is_not_seen(kernel: Any) -> None:
    word = np.frombuffer(mmap.mmap(-1, 4096), np.uint64)
    case = over_and_over()
    plan = arguments(kernel, case, random_bytes(case.arena_nbytes))
    child = os.fork()
    if child == 0:
        time.sleep(0.05)
        word[0] = 1
        os._exit(0)
    status, nbytes, _ = kernel.copy_blocks(*plan, fence=fence_on(kernel, word, 0))
    assert waited(child) == 0
    assert status == kernel.COPY_FENCED
    assert 0 < nbytes < case.nbytes


def test_a_fence_lets_go_of_its_memory(kernel: Any) -> None:
    word = word_of(3)
    gone = weakref.ref(word)
    fence = fence_on(kernel, word, 3)
    assert (fence.address, fence.value, fence.owner is word) == (word.ctypes.data, 3, True)
    assert repr(fence) == f"<Fence {word.ctypes.data:#x}: holds 3>"
    word[0] = 4
    assert repr(fence) == f"<Fence {word.ctypes.data:#x}: no longer 3>"
    del word
    gc.collect()
    assert gone() is not None
    del fence
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("address", "value", "error", "words"),
    [
        (0, 1, ValueError, "address must be that of an aligned 64-bit word, got 0"),
        (4097, 1, ValueError, "address must be that of an aligned 64-bit word, got 4097"),
        (-8, 1, ValueError, "address must be in [0, 2**64), got -8"),
        (None, 1, TypeError, "address must be an int, got NoneType"),
        (4096, -1, ValueError, "value must be in [0, 2**64), got -1"),
        (4096, 2**64, ValueError, "value must be in [0, 2**64), got 18446744073709551616"),
        (4096, 1.0, TypeError, "value must be an int, got float"),
    ],
)
def test_a_fence_that_cannot_be_is_made(address: Any, value: Any, error: type[Exception], words: str) -> None:
    assert every_text(lambda kernel: kernel.Fence(address, value), error) == words


# ---- giving way ----

SELF = Shape(6 * MIB, 1, 9 * MIB + 5, 9 * MIB + 5)
APART = large(9 * MIB + 13)
UP = one_pair(SELF, SELF._replace(offset=6 * MIB + 4097), [0], [0])
DOWN = one_pair(SELF, SELF._replace(offset=6 * MIB - 63), [0], [0])
CHAIN = one_pair(Shape(0, 3, 3 * MIB, 3 * MIB), Shape(0, 3, 3 * MIB, 3 * MIB), [0, 1], [1, 2])
TWICE = Case(
    [Shape(i * MIB, 4, 200_000, 200_000) for i in range(3)],
    [Shape((4 + i) * MIB, 4, 200_000, 200_000) for i in range(3)],
    [0, 1, 2, 3],
    [2, 1, 2, 0],
    0,
    0,
    3,
)


def test_a_way_word_does_not_count(kernel: Any) -> None:
    word = kernel.WayWord()
    seen = [word.is_raised]
    for act in (word.raise_, word.raise_, word.lower, word.lower, word.lower, word.raise_, word.raise_):
        act()
        seen.append(word.is_raised)
    assert seen == [False, True, True, True, False, False, False, True]
    assert repr(word) == "<WayWord: raised>"
    raisers = [threading.Thread(target=lambda: [word.raise_() for _ in range(1000)]) for _ in range(4)]
    for thread in raisers:
        thread.start()
    for thread in raisers:
        thread.join()
    for _ in range(4000):
        word.lower()
    assert word.is_raised
    word.lower()
    assert not word.is_raised


def in_turns(kernel: Any, move: Any, case: Case, arena: Bytes, threads: int, **wishes: Any) -> list[int]:
    """Bytes of each call under a word that stays raised; after each, exactly the front is done."""
    before, word, begin, turns = arena.copy(), kernel.WayWord(), 0, []
    word.raise_()
    plan = arguments(kernel, case, arena)
    while True:
        status, nbytes, _ = move(*plan, give_way=word, begin=begin, threads=threads, **wishes)
        turns.append(nbytes)
        begin += nbytes
        assert np.array_equal(arena, copied_front(before, case, begin))
        if status == kernel.COPY_DONE:
            assert begin == case.nbytes
            return turns
        assert status == kernel.COPY_GAVE_WAY
        assert nbytes > 0


@settings(max_examples=60, deadline=None)
@given(case=cases(largest_block=20_000), threads=st.integers(0, 5))
def test_a_copy_goes_on_at_another_place(kernel: Any, case: Case, threads: int) -> None:
    arena = random_bytes(case.arena_nbytes)
    in_turns(kernel, kernel.copy_blocks, case, arena, threads)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(
    "case", [APART, UP, DOWN, CHAIN, TWICE], ids=["apart", "up onto itself", "down", "chain", "a block twice"]
)
def test_a_turn_moves_too_much(kernel: Any, case: Case, threads: int) -> None:
    """Each thread may be within a unit when the word is raised; these are 4 MiB at most."""
    turns = in_turns(kernel, kernel.copy_blocks, case, random_bytes(case.arena_nbytes), threads)
    assert len(turns) > 1
    together = threads if case == APART and kernel is KERNELS.get("native") else 1
    assert max(turns) * together <= 4 * MIB


@pytest.mark.parametrize("threads", [1, 3])
def test_a_process_copy_goes_on_at_another_place(move: Any, kernel: Any, threads: int) -> None:
    case = Case(
        [Shape(i * MIB, 9, 100_001, 100_003) for i in range(4)],
        [Shape((4 + i) * MIB, 9, 100_001, 100_001) for i in range(4)],
        [0, 1, 2, 8, 4],
        [3, 4, 5, 0, 1],
        0,
        0,
        4,
    )
    turns = in_turns(kernel, move, case, random_bytes(case.arena_nbytes), threads)
    assert len(turns) > 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_word_raised_at_some_moment_leaves_a_hole(kernel: Any, threads: int) -> None:
    case = large(15 * MIB + 5)
    before = random_bytes(case.arena_nbytes)
    for delay in (0, 0.0001, 0.0003, 0.001, 0.002):
        arena, word = before.copy(), kernel.WayWord()
        plan = arguments(kernel, case, arena)
        raiser = threading.Timer(delay, word.raise_)
        raiser.start()
        status, nbytes, _ = kernel.copy_blocks(*plan, give_way=word, threads=threads)
        raiser.join()
        assert np.array_equal(arena, copied_front(before, case, nbytes))
        assert status == (kernel.COPY_GAVE_WAY if nbytes < case.nbytes else kernel.COPY_DONE)
        word.lower()
        rest = kernel.copy_blocks(*plan, give_way=word, begin=nbytes, threads=threads)
        assert rest == (kernel.COPY_DONE, case.nbytes - nbytes, 0)
        assert np.array_equal(arena, copied_front(before, case, case.nbytes))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_copy_does_not_give_way(move: Any, kernel: Any, threads: int) -> None:
    case, word = over_and_over(), kernel.WayWord()
    plan = arguments(kernel, case, random_bytes(case.arena_nbytes))
    raiser = threading.Timer(0.05, word.raise_)
    raiser.start()
    status, nbytes, _ = move(*plan, give_way=word, threads=threads)
    assert status == kernel.COPY_GAVE_WAY
    assert 0 < nbytes < case.nbytes


def test_the_last_of_two_writes_does_not_win(kernel: Any) -> None:
    """What may be gone on with is done in order, by one thread where a block is listed twice."""
    sources, targets = Shape(0, 64, 200_000, 200_000), Shape(64 * 200_000, 2, 200_000, 200_000)
    case = one_pair(sources, targets, [*range(64)], [0, 1] * 32)
    for _ in range(6):
        arena = random_bytes(case.arena_nbytes)
        expected, _ = copied(arena, case)
        result = kernel.copy_blocks(*arguments(kernel, case, arena), give_way=kernel.WayWord(), threads=4)
        assert result == (kernel.COPY_DONE, case.nbytes, 0)
        assert np.array_equal(arena, expected)


def test_a_word_that_is_not_raised_ends_a_copy(move: Any, kernel: Any) -> None:
    case = large(9 * MIB)
    arena = random_bytes(case.arena_nbytes)
    expected, _ = copied(arena, case)
    result = move(*arguments(kernel, case, arena), give_way=kernel.WayWord(), threads=2)
    assert result == (kernel.COPY_DONE, case.nbytes, 0)
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize("begin", [0, 1, 4096, 2 * MIB, 3 * MIB + 6, 3 * MIB + 7])
def test_a_copy_begins_elsewhere(move: Any, kernel: Any, begin: int) -> None:
    case = large(3 * MIB + 7)
    arena = random_bytes(case.arena_nbytes)
    expected, (source, target) = arena.copy(), (case.sources[0].offset, case.targets[0].offset)
    expected[target + begin : target + case.nbytes] = arena[source + begin : source + case.nbytes]
    result = move(*arguments(kernel, case, arena), begin=begin, threads=2)
    assert result == (kernel.COPY_DONE, case.nbytes - begin, 0)
    assert np.array_equal(arena, expected)


def test_a_raised_word_outlasts_a_stop(kernel: Any) -> None:
    case = large(100)
    arena = random_bytes(case.arena_nbytes)
    before, word, stop = arena.copy(), kernel.WayWord(), kernel.StopWord()
    word.raise_()
    stop.set()
    result = kernel.copy_blocks(*arguments(kernel, case, arena), give_way=word, stop=stop)
    assert result == (kernel.COPY_STOPPED, 0, 0)
    assert np.array_equal(arena, before)


@pytest.mark.parametrize("begin", [-1, 101])
def test_a_copy_begins_outside_itself(begin: int) -> None:
    case = large(100)
    arena = random_bytes(case.arena_nbytes)
    words = f"begin must be in [0, 100], as the copy has 100 bytes; got {begin}"
    for verb, pid in (("copy_blocks", ()), ("write_process", (1,)), ("read_process", (1,))):
        text = every_text(
            lambda kernel, verb=verb, pid=pid: getattr(kernel, verb)(
                *pid, *arguments(kernel, case, arena), begin=begin
            ),
            ValueError,
        )
        assert text == words


def test_a_digest_of_half_a_copy_is_given() -> None:
    case = large(100)
    arena = random_bytes(case.arena_nbytes)
    for wishes in (lambda kernel: {"give_way": kernel.WayWord()}, lambda kernel: {"begin": 1}):
        text = every_text(
            lambda kernel, wishes=wishes: kernel.copy_blocks(
                *arguments(kernel, case, arena), digest=True, **wishes(kernel)
            ),
            ValueError,
        )
        assert text == "digest is of a whole copy: it goes with neither give_way nor begin"
