"""What the copy kernels refuse, in the same words, before a byte moves."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.errors import ParamInvalid
from tests.unit.copy_oracle import KERNELS, arguments, every_text, large, random_bytes


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Any:
    return KERNELS[request.param]


GOOD = (4096, 4, 16, 32)
NOT_INTS = [None, 1.0, "1", np.int64(1)]


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


@pytest.mark.parametrize("value", [-1, 2**64, -(2**70), *NOT_INTS, np.bool_(True)], ids=repr)
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
    for verb in ("write_process", "read_process"):

        def move(kernel: Any, verb: str = verb) -> object:
            return getattr(kernel, verb)(1, *arguments(kernel, case, arena), **wishes)

        assert every_text(move, ValueError) == words


def test_an_unknown_loop_is_taken(kernel: Any) -> None:
    case = large(10)
    with pytest.raises(ValueError, match=r"loop must be one of auto, plain.*; got 'fast'"):
        kernel.copy_blocks(*arguments(kernel, case, random_bytes(case.arena_nbytes)), loop="fast")
