"""The digest of each block, copied or not, on both copy kernels; each test is named after what would be wrong."""

from __future__ import annotations

import threading
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_kvfabric.memory.crc32c import crc32c
from tests.unit.copy_oracle import (
    KERNELS,
    Bytes,
    Case,
    Shape,
    arguments,
    bitwise_crc32c,
    cases,
    copied,
    every_text,
    large,
    one_pair,
    pairs_moved,
    random_bytes,
)

MIB = 1 << 20


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


def unset(case: Case) -> Any:
    """Entries that no digest is, but by chance, with one more than needed."""
    return np.full(case.count * len(case.source_blocks) + 1, 0xDEADBEEF, np.uint32)


def check(kernel: Any, case: Case, crc: Any = crc32c, **wishes: Any) -> None:
    arena, digests = random_bytes(case.arena_nbytes), unset(case)
    expected, moved = copied(arena, case)
    result = kernel.copy_blocks(*arguments(kernel, case, arena), digests=digests, **wishes)
    assert result == (kernel.COPY_DONE, case.nbytes, 0)
    assert np.array_equal(arena, expected)
    assert digests.tolist() == [*map(crc, pairs_moved(case, moved)), 0xDEADBEEF]


@settings(max_examples=80, deadline=None)
@given(case=cases(), threads=st.integers(0, 4), data=st.data())
def test_a_digest_is_of_other_bytes(kernel: Any, case: Case, threads: int, data: st.DataObject) -> None:
    loop = data.draw(st.sampled_from(["auto", *kernel.loops()]))
    check(kernel, case, bitwise_crc32c, threads=threads, loop=loop)


@settings(max_examples=15, deadline=None)
@given(case=cases(largest_block=100_000), threads=st.integers(1, 4), data=st.data())
def test_a_digest_of_many_pages_loses_some(kernel: Any, case: Case, threads: int, data: st.DataObject) -> None:
    check(kernel, case, threads=threads, loop=data.draw(st.sampled_from(kernel.loops())))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("shift", [None, -4097, 63])
def test_a_digest_of_several_units_loses_its_seams(kernel: Any, threads: int, shift: int | None) -> None:
    """`shift`: the block moves onto itself."""
    nbytes = 3 * MIB + 13
    block = Shape(MIB, 1, nbytes, nbytes)
    case = large(nbytes) if shift is None else one_pair(block, block._replace(offset=MIB + shift), [0], [0])
    check(kernel, case, threads=threads)


@settings(max_examples=30, deadline=None)
@given(case=cases(largest_block=20_000), threads=st.integers(0, 4))
def test_a_digest_does_not_outlive_giving_way(kernel: Any, case: Case, threads: int) -> None:
    arena, digests, word, begin = random_bytes(case.arena_nbytes), unset(case), kernel.WayWord(), 0
    _, moved = copied(arena, case)
    word.raise_()
    status, plan = kernel.COPY_GAVE_WAY, arguments(kernel, case, arena)
    while status == kernel.COPY_GAVE_WAY:
        status, nbytes, _ = kernel.copy_blocks(*plan, give_way=word, begin=begin, digests=digests, threads=threads)
        begin += nbytes
    assert status == kernel.COPY_DONE
    assert digests.tolist() == [*map(crc32c, pairs_moved(case, moved)), 0xDEADBEEF]


PAIR = one_pair(Shape(1, 3, 500, 510), Shape(2000, 3, 500, 500), [0, 2], [1, 0])


@pytest.mark.parametrize(
    "digests",
    [
        np.zeros((1, 2), np.uint32),
        memoryview(array("I", [0, 0])),
        memoryview(bytearray(12)).cast("I"),
    ],
    ids=["two dimensions", "array", "bytearray"],
)
def test_a_buffer_of_another_make_is_refused(kernel: Any, digests: Any) -> None:
    arena = random_bytes(PAIR.arena_nbytes)
    _, moved = copied(arena, PAIR)
    kernel.copy_blocks(*arguments(kernel, PAIR, arena), digests=digests)
    assert np.asarray(digests).reshape(-1)[:2].tolist() == [*map(crc32c, pairs_moved(PAIR, moved))]


def read_only() -> Any:
    entries = np.zeros(2, np.uint32)
    entries.flags.writeable = False
    return entries


@pytest.mark.parametrize(
    ("digests", "words"),
    [
        (np.zeros(2, np.int32), "must be a writable C-contiguous buffer of uint32, got int32, writable, strides (4,)"),
        (np.zeros(2, np.uint64), "got uint64"),
        (np.zeros(4, np.uint32)[::2], "got uint32, writable, strides (8,)"),
        (np.zeros(9, np.uint8)[1:].view(np.uint32), "must be a writable C-contiguous buffer of uint32"),
        (read_only(), "got uint32, read-only"),
        (memoryview(bytes(8)).cast("I"), "got uint32, read-only"),
        (np.zeros(1, np.uint32), "has 1 entries, the blocks are 2"),
    ],
)
def test_digests_that_do_not_fit_are_written(digests: Any, words: str) -> None:
    arena = random_bytes(PAIR.arena_nbytes)
    before = arena.copy()
    text = every_text(lambda kernel: kernel.copy_blocks(*arguments(kernel, PAIR, arena), digests=digests), ValueError)
    assert text.startswith("digests ")
    assert words in text
    assert np.array_equal(arena, before)

    def digest_blocks(kernel: Any) -> None:
        table, _, first, _, count, blocks, _ = arguments(kernel, PAIR, arena)
        kernel.block_digests(table, first, count, blocks, digests)

    assert every_text(digest_blocks, ValueError) == text.replace("digests", "into", 1)


def test_both_kinds_of_digests_are_given() -> None:
    arena, digests = random_bytes(PAIR.arena_nbytes), unset(PAIR)
    text = every_text(
        lambda kernel: kernel.copy_blocks(*arguments(kernel, PAIR, arena), digests=digests, digest=True), ValueError
    )
    assert text == "digest and digests exclude each other"
    with pytest.raises(TypeError):
        KERNELS["python"].copy_blocks(*arguments(KERNELS["python"], PAIR, arena), digests=[0, 0])


# ---- without a copy ----


def digested(kernel: Any, case: Case, arena: Bytes, **wishes: Any) -> list[int]:
    table, _, first, _, count, blocks, _ = arguments(kernel, case, arena)
    into = unset(case)
    assert kernel.block_digests(table, first, count, blocks, into, **wishes) == kernel.COPY_DONE
    assert into[-1] == 0xDEADBEEF
    found: list[int] = into[:-1].tolist()
    return found


@settings(max_examples=60, deadline=None)
@given(case=cases(largest_block=3000), threads=st.integers(0, 4))
def test_the_digests_of_a_table_are_of_other_bytes(kernel: Any, case: Case, threads: int) -> None:
    arena = random_bytes(case.arena_nbytes)
    before = arena.copy()
    regions = case.sources[case.source_first : case.source_first + case.count]
    expected = [crc32c(arena[region.block(i)].tobytes()) for region in regions for i in case.source_blocks]
    assert digested(kernel, case, arena, threads=threads) == expected
    assert np.array_equal(arena, before)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_digest_of_a_large_block_loses_its_seams(kernel: Any, threads: int) -> None:
    case = large(5 * MIB + 3)
    arena = random_bytes(case.arena_nbytes)
    assert digested(kernel, case, arena, threads=threads) == [crc32c(arena[case.sources[0].block(0)].tobytes())]


def test_digests_cannot_be_ended(kernel: Any) -> None:
    case = one_pair(Shape(0, 1, MIB, MIB), Shape(MIB, 1, MIB, MIB), [0] * 40_000, [0] * 40_000)
    table, _, first, _, count, blocks, _ = arguments(kernel, case, random_bytes(case.arena_nbytes))
    into, stop = unset(case), kernel.StopWord()
    assert kernel.block_digests(table, first, count, blocks, into, deadline_ns=1) == kernel.COPY_TIMED_OUT
    threading.Timer(0.05, stop.set).start()
    assert kernel.block_digests(table, first, count, blocks, into, stop=stop, threads=2) == kernel.COPY_STOPPED
    assert kernel.block_digests(table, first, count, blocks, into, stop=stop) == kernel.COPY_STOPPED
