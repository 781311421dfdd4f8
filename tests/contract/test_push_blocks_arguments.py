"""push_blocks: what each argument may be, and in which order that is looked at (contract 12.1, Python stage)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    FAR,
    KEY,
    NO_BLOCK_LISTS,
    Refusal,
    addresses,
    answers,
    blocks_at,
    linked,
    memory_of,
    moves,
    rows_at,
    stays,
)
from tests.contract.world import Ends, content, describe

INVALID = "LLM_PARAM_INVALID"
KEYS: list[tuple[Any, Refusal]] = [
    (None, AttributeError),
    (CacheKeyByIdAndIndex(FAR, 1), TypeError),
    (CacheKey(FAR, 1), TypeError),
    (2, TypeError),
    (BlocksCacheKey(FAR, -1), TypeError),
    (BlocksCacheKey(FAR, 2**64), TypeError),
    (BlocksCacheKey(-1, 0), TypeError),
    (BlocksCacheKey(2**64, 0), TypeError),
]
PER_LAYER: list[tuple[Any, Refusal]] = [
    *((value, TypeError) for value in (None, 1.0, "2", [2], np.int64(2))),
    (-1, ValueError),
    (2**32, ValueError),
    (0, INVALID),
    (False, INVALID),
]
RANGES: list[tuple[Any, Refusal]] = [
    *((value, TypeError) for value in ([0, 1], (0, 1), 1, slice(0, 2), "01")),
    *(
        (value, INVALID)
        for value in (range(0), range(1, 1), range(2, 1), range(-1, 1), range(0, 2, 2), range(1, 0, -1))
    ),
    (range(3), INVALID),  # the two lengths differ
]


@dataclass
class Push:
    """A push that is right but for what a test changes."""

    ends: Ends
    near: Any
    source: Cache
    target: Cache

    def __call__(self, **changes: Any) -> None:
        given = {"dst_cache_key": KEY, "src_cache": self.source, "src_blocks": [0, 1], "dst_blocks": [6, 7]}
        self.near.push_blocks(**{**given, **changes})


@pytest.fixture
def push(ends: Ends) -> Iterator[Push]:
    """Nothing may be written in these tests."""
    near, far = linked(ends)
    made = Push(ends, near, blocks_at(near, 1), blocks_at(far, 2))
    with stays(made.target, made.source):
        yield made


class TestTypes:
    @pytest.mark.parametrize(("key", "refusal"), KEYS)
    def test_the_key_is_a_blocks_cache_key_of_uint64s(self, push: Push, key: Any, refusal: Refusal) -> None:
        with answers(refusal, "dst_cache_key"):
            push(dst_cache_key=key)

    @pytest.mark.parametrize(("cache", "refusal"), [(None, AttributeError), (1, TypeError), ("cache", TypeError)])
    def test_the_source_is_a_cache(self, push: Push, cache: Any, refusal: Refusal) -> None:
        with answers(refusal, "src_cache"):
            push(src_cache=cache)

    def test_a_cpu_cache_is_no_source(self, push: Push) -> None:
        desc = describe(placement="HOST")
        with answers(TypeError, "src_cache has cache_id -1"):
            push(src_cache=Cache.create_cpu_cache(desc, addresses(memory_of(desc))))

    def test_a_continuous_cache_is_no_source(self, push: Push) -> None:
        with invalid("not a blocks cache"):
            push(src_cache=rows_at(push.near, 1))

    @pytest.mark.parametrize("field", ["src_blocks", "dst_blocks"])
    @pytest.mark.parametrize("blocks", NO_BLOCK_LISTS, ids=repr)
    def test_blocks_are_lists_or_tuples_of_unsigned_ints(self, push: Push, field: str, blocks: Any) -> None:
        with answers(TypeError, field):
            push(**{field: blocks})

    @pytest.mark.parametrize(
        ("blocks", "refusal"),
        [
            ({"src_blocks": None}, INVALID),
            ({"src_blocks": ()}, INVALID),
            ({"dst_blocks": None}, TypeError),
            ({"dst_blocks": []}, INVALID),
            ({"src_blocks": (), "dst_blocks": ()}, INVALID),
            ({"src_blocks": [0]}, INVALID),
            ({"dst_blocks": [0, 1, 2]}, INVALID),
            ({"src_blocks": [0, 8]}, INVALID),
            ({"dst_blocks": [8, 0]}, INVALID),
            ({"dst_blocks": [2**63 - 1, 0]}, INVALID),
        ],
    )
    def test_blocks_are_as_many_and_lie_inside(self, push: Push, blocks: Any, refusal: Refusal) -> None:
        with answers(refusal):
            push(**blocks)

    def test_a_call_with_defaults_names_the_missing_blocks(self, push: Push) -> None:
        with invalid("dst_blocks is empty"):
            push.near.push_blocks(KEY, push.source)

    @pytest.mark.parametrize(("per_layer", "refusal"), PER_LAYER)
    def test_tensors_per_layer_are_a_positive_uint32(self, push: Push, per_layer: Any, refusal: Refusal) -> None:
        for ranges in ({}, {"src_layer_range": range(1), "dst_layer_range": range(1)}):
            with answers(refusal, "tensor_num_per_layer"):
                push(tensor_num_per_layer=per_layer, **ranges)

    @pytest.mark.parametrize("field", ["src_layer_range", "dst_layer_range"])
    @pytest.mark.parametrize(("layers", "refusal"), RANGES, ids=repr)
    def test_a_layer_range_rises_by_one_from_0_or_later(
        self, push: Push, field: str, layers: Any, refusal: Refusal
    ) -> None:
        with answers(refusal, field):
            push(**{field: layers})

    @pytest.mark.parametrize(
        ("ranges", "per_layer", "says"),
        [
            ((range(1, 3), range(2)), 2, "src_layer_range"),
            ((range(2), range(1, 3)), 2, "dst_layer_range"),
            ((range(1), range(1)), 3, "does not divide"),
            ((range(1), range(1)), 5, "does not divide"),
            ((range(2**40, 2**40 + 1), range(1)), 2, "src_layer_range"),
        ],
    )
    def test_layers_lie_inside_both_caches(self, push: Push, ranges: Any, per_layer: int, says: str) -> None:
        with invalid(says):
            push(src_layer_range=ranges[0], dst_layer_range=ranges[1], tensor_num_per_layer=per_layer)

    def test_no_other_keyword_is_taken(self, push: Push) -> None:
        with pytest.raises(TypeError):
            push(layer=1)

    @pytest.mark.parametrize("field", ["dst_cache_key", "src_cache"])
    def test_none_is_both_a_type_error_and_an_attribute_error(self, push: Push, field: str) -> None:
        assert deviates("none_is_a_type_error")
        for kind in (TypeError, AttributeError):
            with answers(kind, field):
                push(**{field: None})


class TestOrder:
    """Each wrong value together with the next one: the first is what the answer is about."""

    STEPS: tuple[tuple[dict[str, Any], Refusal, str], ...] = (
        ({"dst_cache_key": 1}, TypeError, "dst_cache_key"),
        ({"src_cache": 1}, TypeError, "src_cache"),
        ({"src_blocks": "0"}, TypeError, "src_blocks"),
        ({"dst_blocks": [None]}, TypeError, "dst_blocks"),
        ({"dst_blocks": []}, INVALID, "dst_blocks is empty"),
        ({"tensor_num_per_layer": -1}, ValueError, "tensor_num_per_layer"),
        ({"src_layer_range": [0]}, TypeError, "src_layer_range"),
        ({"dst_layer_range": range(0)}, INVALID, "dst_layer_range"),
    )

    @pytest.mark.parametrize("first", range(len(STEPS) - 1))
    def test_an_earlier_check_speaks(self, push: Push, first: int) -> None:
        for later in range(first + 1, len(self.STEPS)):
            (changes, refusal, says), (others, _, _) = self.STEPS[first], self.STEPS[later]
            with answers(refusal, says):
                push(**{**others, **changes})

    def test_a_continuous_source_comes_before_missing_blocks(self, push: Push) -> None:
        with invalid("not a blocks cache"):
            push(src_cache=rows_at(push.near, 1), dst_blocks=(), tensor_num_per_layer=None)

    def test_ranges_come_before_their_lengths(self, push: Push) -> None:
        with answers(TypeError, "dst_layer_range"):
            push(src_layer_range=range(1), dst_layer_range=[0, 1])

    def test_values_of_the_native_stage_come_with_the_types(self, push: Push) -> None:
        assert deviates("values_checked_with_types")
        for changes in ({"src_blocks": [-1, 0]}, {"dst_cache_key": BlocksCacheKey(FAR, -1)}):
            with answers(TypeError):
                push(tensor_num_per_layer=0, **changes)

    def test_division_into_layers_comes_before_the_link(self, push: Push) -> None:
        assert deviates("local_checks_first")
        with invalid("does not divide"):
            push(
                dst_cache_key=BlocksCacheKey(99, 0), src_layer_range=range(1), dst_layer_range=range(1),
                tensor_num_per_layer=3,
            )  # fmt: skip


def test_without_one_sided_mode_nothing_else_is_looked_at(ends: Ends) -> None:
    near, far = linked(ends, one_sided=False)
    source, target = blocks_at(near, 1), blocks_at(far, 2)
    if ends.face == "native":
        assert deviates("no_option_gate")
        with moves(target) as expected:
            expected[:, 1] = content(source)[:, 0]
            near.push_blocks(KEY, source, [0], [1])
        return
    with stays(target), invalid("enable_remote_cache_accessible"):
        near.push_blocks(KEY, source, [0], [1])
    for arguments in ((1, "2", 3), (None, None, None, None), (KEY, source)):
        with invalid("enable_remote_cache_accessible"):
            near.push_blocks(*arguments)


def test_positions_are_key_cache_blocks_ranges_and_tensors(ends: Ends) -> None:
    near, far = linked(ends)
    source, target = blocks_at(near, 1), blocks_at(far, 2)
    with moves(target) as expected:
        expected[2, 7] = content(source)[1, 6]
        near.push_blocks(BlocksCacheKey(FAR, 0), source, [6], [7], range(1, 2), range(2, 3), 1)
