"""Both copy kernels against the oracle of `copy_oracle`; each test is named after what would be wrong."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.memory import copy
from tests.unit.copy_oracle import (
    KERNELS,
    Case,
    Shape,
    arguments,
    bitwise_crc32c,
    block_pairs,
    cases,
    copied,
    large,
    one_pair,
    random_bytes,
    waited,
)

MIB = 1 << 20
few = settings(max_examples=100, deadline=None)


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


@pytest.fixture(scope="module")
def native() -> Any:
    return KERNELS.get("native") or pytest.skip("the native kernel is not built")


def check(kernel: Any, case: Case, **wishes: Any) -> None:
    arena = random_bytes(case.arena_nbytes)
    expected, moved = copied(arena, case)
    status, nbytes, digest = kernel.copy_blocks(*arguments(kernel, case, arena), **wishes)
    assert (status, nbytes) == (kernel.COPY_DONE, case.nbytes)
    assert np.array_equal(arena, expected)
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


def test_the_last_of_many_regions_over_the_same_bytes_does_not_win(kernel: Any) -> None:
    nbytes = 200_000
    sources = [Shape(i * nbytes, 1, nbytes, nbytes) for i in range(64)]
    targets = [Shape(64 * nbytes + i % 3, 1, nbytes, nbytes) for i in range(64)]
    for _ in range(6):
        check(kernel, Case(sources, targets, [0], [0], 0, 0, 64), threads=4)


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
    assert np.array_equal(arena, expected)


@few
@given(pairs=block_pairs(50))
def test_runs_split_or_join_wrongly(kernel: Any, pairs: list[tuple[int, int]]) -> None:
    lists = [kernel.BlockList([pair[side] for pair in pairs], "blocks") for side in (0, 1)]
    found = kernel.runs(*lists)
    assert [(i + k, j + k) for i, j, count in found for k in range(count)] == pairs
    for (i, j, count), following in pairwise(found):
        assert following[:2] != (i + count, j + count)


# ---- limits ----


def test_a_byte_moves_after_the_deadline(kernel: Any) -> None:
    case = large(2 * MIB)
    for threads in (1, 2):
        arena = random_bytes(case.arena_nbytes)
        before = arena.copy()
        past = time.monotonic_ns() - 1
        result = kernel.copy_blocks(*arguments(kernel, case, arena), deadline_ns=past, digest=True, threads=threads)
        assert result == (kernel.COPY_TIMED_OUT, 0, 0)
        assert np.array_equal(arena, before)


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
        assert np.array_equal(arena, before)


@pytest.mark.parametrize("limit", ["stop", "deadline"])
def test_a_long_copy_cannot_be_ended(kernel: Any, limit: str) -> None:
    """One block over and over: seconds of copying, ended after a tenth of one."""
    block = Shape(0, 1, 8 * MIB, 8 * MIB)
    case = one_pair(block, block._replace(offset=8 * MIB), [0] * 4000, [0] * 4000)
    plan = arguments(kernel, case, random_bytes(case.arena_nbytes))
    stop = kernel.StopWord()
    timer = threading.Timer(0.1, stop.set)
    deadline_ns = 0
    if limit == "stop":
        timer.start()
    else:
        deadline_ns = time.monotonic_ns() + 100_000_000
    status, nbytes, _ = kernel.copy_blocks(*plan, deadline_ns=deadline_ns, stop=stop)
    assert status == (kernel.COPY_STOPPED if limit == "stop" else kernel.COPY_TIMED_OUT)
    assert 0 < nbytes < case.nbytes


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
            if kernel is KERNELS.get("native"):
                assert len(os.listdir("/proc/self/task")) == 3  # a pool of its own
            status = 0
        finally:
            os._exit(status)
    assert waited(child) == 0


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
        assert [name for name in public if not hasattr(kernel, name)] == []
        statuses = [name for name in vars(copy) if name.startswith("COPY_")]
        assert len(statuses) == 6
        assert [getattr(kernel, name) for name in statuses] == [getattr(copy, name) for name in statuses]


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
