"""One source copied to several targets, on both copy kernels; each test is named after what would be wrong."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.crc32c import crc32c
from tests.unit.copy_oracle import (
    KERNELS,
    Bytes,
    Case,
    Shape,
    arguments,
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


def writes_once(case: Case) -> Case:
    """Its regions one behind the other, the last of the pairs with the same target block."""
    last = dict(zip(case.target_blocks, case.source_blocks, strict=True))
    return case._replace(source_blocks=[*last.values()], target_blocks=[*last])


def lies_apart(case: Case) -> bool:
    return all(before.end <= after.offset for before, after in pairwise([*case.sources, *case.targets]))


fans = cases(largest_block=20_000).filter(lies_apart).map(writes_once)


class Fan:
    """A case whose target side lies in `count` arenas of their own, each of other bytes."""

    def __init__(self, kernel: Any, case: Case, count: int) -> None:
        self.kernel, self.case = kernel, case
        self.source = random_bytes(case.arena_nbytes)
        self.targets = [random_bytes(case.arena_nbytes, 1 + index) for index in range(count)]
        self.before = [target.copy() for target in self.targets]
        self.fences: list[Any] = [None] * count

    def copy(self, **wishes: Any) -> tuple[int, int, list[int]]:
        table, _, source_first, target_first, count, source_blocks, blocks = arguments(
            self.kernel, self.case, self.source
        )
        sides = [arguments(self.kernel, self.case, target)[1] for target in self.targets]
        targets = [(side, target_first, blocks, fence) for side, fence in zip(sides, self.fences, strict=True)]
        found: tuple[int, int, list[int]] = self.kernel.copy_blocks_to(
            table, source_first, count, source_blocks, targets, **wishes
        )
        return found

    def fence(self, index: int, value: int) -> Any:
        """A fence for target `index`, and the word 5 that it looks at."""
        word = np.full(1, 5, np.uint64)
        self.fences[index] = self.kernel.Fence(word.ctypes.data, value, word)
        return word

    def expected(self, index: int) -> Bytes:
        case, after = self.case, self.before[index].copy()
        for place in range(case.count):
            source, target = case.sources[case.source_first + place], case.targets[case.target_first + place]
            for i, j in zip(case.source_blocks, case.target_blocks, strict=True):
                after[target.block(j)] = self.source[source.block(i)]
        return after

    def is_done(self, index: int) -> bool:
        return np.array_equal(self.targets[index], self.expected(index))

    def is_untouched(self, index: int) -> bool:
        return np.array_equal(self.targets[index], self.before[index])


@settings(max_examples=60, deadline=None)
@given(case=fans, count=st.integers(1, 4), threads=st.integers(0, 4), digested=st.booleans())
def test_a_target_gets_other_bytes(kernel: Any, case: Case, count: int, threads: int, digested: bool) -> None:
    fan = Fan(kernel, case, count)
    digests = np.zeros(case.count * len(case.source_blocks), np.uint32) if digested else None
    assert fan.copy(threads=threads, digests=digests) == (kernel.COPY_DONE, case.nbytes, [kernel.COPY_DONE] * count)
    assert all(fan.is_done(index) for index in range(count))
    if digests is not None:
        assert digests.tolist() == [*map(crc32c, pairs_moved(case, copied(fan.source, case)[1]))]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fan_of_several_slices_loses_its_seams(kernel: Any, threads: int) -> None:
    fan = Fan(kernel, large(5 * MIB + 13), 3)
    digests = np.zeros(1, np.uint32)
    assert fan.copy(threads=threads, digests=digests)[:2] == (kernel.COPY_DONE, fan.case.nbytes)
    assert all(fan.is_done(index) for index in range(3))
    assert digests.tolist() == [crc32c(fan.source[fan.case.sources[0].block(0)].tobytes())]


@pytest.mark.parametrize("fenced", [0, 1, 2])
def test_a_fenced_target_takes_others_along(kernel: Any, fenced: int) -> None:
    """The digests are made on the way to the first target that is open."""
    fan = Fan(kernel, large(MIB + 13), 3)
    for index in range(3):
        fan.fence(index, 6 if index == fenced else 5)
    digests = np.zeros(1, np.uint32)
    status, nbytes, statuses = fan.copy(digests=digests)
    assert (status, nbytes) == (kernel.COPY_DONE, fan.case.nbytes)
    assert statuses == [kernel.COPY_FENCED if index == fenced else kernel.COPY_DONE for index in range(3)]
    assert [fan.is_untouched(index) for index in range(3)] == [index == fenced for index in range(3)]
    assert all(fan.is_done(index) for index in range(3) if index != fenced)
    assert digests.tolist() == [crc32c(fan.source[fan.case.sources[0].block(0)].tobytes())]


def test_a_copy_to_no_open_target_goes_on(kernel: Any) -> None:
    fan = Fan(kernel, large(MIB), 2)
    fan.fence(0, 6)
    fan.fence(1, 7)
    assert fan.copy() == (kernel.COPY_FENCED, 0, [kernel.COPY_FENCED] * 2)
    assert fan.is_untouched(0)
    assert fan.is_untouched(1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fence_that_falls_midway_stops_all_targets_or_none(kernel: Any, threads: int) -> None:
    """Many copies of 4 MiB into blocks of their own, until the word falls during one of them."""
    fan = Fan(kernel, large(10 * MIB), 2)
    word = fan.fence(0, 5)
    timer = threading.Timer(0.02, lambda: word.fill(6))
    timer.start()
    deadline = time.monotonic() + 20
    statuses = [kernel.COPY_DONE] * 2
    while statuses[0] == kernel.COPY_DONE and time.monotonic() < deadline:
        fan.targets[0][:], fan.targets[1][:] = fan.before
        status, nbytes, statuses = fan.copy(threads=threads)
        assert (status, nbytes, statuses[1]) == (kernel.COPY_DONE, fan.case.nbytes, kernel.COPY_DONE)
        assert fan.is_done(1)
        assert fan.is_done(0) or statuses[0] == kernel.COPY_FENCED
    timer.join()
    assert statuses == [kernel.COPY_FENCED, kernel.COPY_DONE]
    taken = fan.targets[0] != fan.before[0]
    assert np.array_equal(fan.targets[0][taken], fan.expected(0)[taken])


def test_a_fan_ignores_its_limits(kernel: Any) -> None:
    fan = Fan(kernel, large(MIB), 2)
    fan.fence(1, 6)
    stop = kernel.StopWord()
    stop.set()
    for wishes, status in (({"stop": stop}, kernel.COPY_STOPPED), ({"deadline_ns": 1}, kernel.COPY_TIMED_OUT)):
        found, nbytes, statuses = fan.copy(**wishes)
        assert (found, nbytes, statuses[0]) == (status, 0, status)
        assert fan.is_untouched(0)
        assert fan.is_untouched(1)


def test_a_long_fan_cannot_be_stopped(kernel: Any) -> None:
    block = Shape(0, 1, MIB, MIB)
    case = one_pair(block, Shape(MIB, 1, MIB, MIB), [0], [0])
    many = case._replace(source_blocks=[0] * 15, target_blocks=[*range(15)])
    many = many._replace(targets=[Shape(MIB, 15, MIB, MIB)])
    fan, stop = Fan(kernel, many, 2), kernel.StopWord()
    threading.Timer(0.02, stop.set).start()
    deadline, status, nbytes = time.monotonic() + 20, kernel.COPY_DONE, 0
    while status == kernel.COPY_DONE and time.monotonic() < deadline:
        status, nbytes, statuses = fan.copy(stop=stop, threads=2)
    assert (status, statuses) == (kernel.COPY_STOPPED, [kernel.COPY_STOPPED] * 2)
    assert nbytes < many.nbytes


# ---- refusals ----

NEAR = one_pair(Shape(0, 4, 100, 100), Shape(1000, 4, 100, 100), [0, 1], [2, 3])
FAR = NEAR._replace(targets=[Shape(2000, 4, 100, 100)])


def given_to(kernel: Any, arena: Bytes, *targets: Case) -> Any:
    table, _, source_first, _, count, source_blocks, _ = arguments(kernel, NEAR, arena)
    sides = [arguments(kernel, case, arena) for case in targets]
    return table, source_first, count, source_blocks, [(side[1], side[3], side[6], None) for side in sides]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            (FAR, NEAR._replace(targets=[Shape(50, 4, 100, 100)], target_blocks=[0, 1])),
            "targets[1] shares bytes with the source",
        ),
        ((NEAR, FAR, NEAR._replace(target_blocks=[3, 0])), "targets[2] shares bytes with targets[0]"),
        (
            (NEAR, FAR._replace(target_blocks=[1, 1])),
            "targets[1] writes a byte twice: target_blocks lists a block twice, or two regions meet",
        ),
        ((NEAR, FAR._replace(target_blocks=[1])), "source_blocks has 2 entries, target_blocks has 1"),
        ((NEAR, FAR._replace(target_first=1)), "target_first 1 and count 1 do not fit the target table of 1 regions"),
    ],
    ids=["the source", "another target", "a block twice", "lengths", "range"],
)
def test_targets_that_meet_are_written(targets: tuple[Case, ...], words: str) -> None:
    arena = random_bytes(4000)
    before = arena.copy()
    text = every_text(lambda kernel: kernel.copy_blocks_to(*given_to(kernel, arena, *targets)), ParamInvalid)
    assert text == words
    assert np.array_equal(arena, before)


def test_two_regions_of_a_target_that_meet_are_written() -> None:
    source = [Shape(0, 2, 100, 100), Shape(300, 2, 100, 100)]
    case = Case(source, [Shape(1000, 2, 100, 100), Shape(1150, 2, 100, 100)], [0, 1], [0, 1], 0, 0, 2)
    arena = random_bytes(2000)

    def act(kernel: Any) -> None:
        table, target, _, _, count, source_blocks, blocks = arguments(kernel, case, arena)
        kernel.copy_blocks_to(table, 0, count, source_blocks, [(target, 0, blocks, None)])

    assert every_text(act, ParamInvalid).startswith("targets[0] writes a byte twice: ")


def test_something_else_than_targets_is_taken() -> None:
    arena = random_bytes(4000)

    def with_targets(kernel: Any, targets: Any) -> None:
        kernel.copy_blocks_to(*given_to(kernel, arena)[:4], targets)

    assert every_text(lambda kernel: with_targets(kernel, []), ValueError) == "targets must not be empty"
    text = every_text(lambda kernel: with_targets(kernel, [(1, 2)]), TypeError)
    assert text == "targets[0] must be (RegionTable, target_first, BlockList, Fence or None), got (1, 2)"
