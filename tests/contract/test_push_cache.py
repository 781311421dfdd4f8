"""push_cache: a row of a continuous cache into a row of the peer's (contract 12.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid, wrong_ints
from tests.contract.moves import (
    FAR,
    Refusal,
    addresses,
    answers,
    blocks_at,
    fails,
    linked,
    memory_of,
    moves,
    row,
    rows_at,
    stays,
)
from tests.contract.world import Ends, content, describe

INVALID = "LLM_PARAM_INVALID"


class TestBytes:
    @pytest.mark.parametrize(("source_row", "target_row"), [(0, 0), (0, 3), (7, 0), (7, 7), (True, 2)])
    def test_a_row_lands_in_the_row_of_the_key(self, ends: Ends, source_row: int, target_row: int) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1), rows_at(far, 2)
        with moves(target, source) as expected:
            expected[:, target_row] = content(source)[:, int(source_row)]
            assert near.push_cache(row(target, target_row), source, source_row) is None

    def test_a_shorter_row_fills_the_beginning_of_a_longer_one(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, shape=(4, 8)), rows_at(far, 2, shape=(3, 16))
        with moves(target, source) as expected:
            expected[:, 2, :8] = content(source)[:, 3]
            near.push_cache(row(target, 2), source, 3)

    def test_a_longer_row_is_refused(self, ends: Ends) -> None:
        assert deviates("longer_row_refused")
        near, far = linked(ends)
        source, target = rows_at(near, 1, shape=(4, 17)), rows_at(far, 2)
        with stays(source, target), invalid("17 bytes"):
            near.push_cache(row(target), source)

    @pytest.mark.parametrize(
        ("source_layers", "target_layers", "per_layer"),
        [
            (range(3), range(3), 2),
            (range(1), range(2, 3), 2),
            (range(5, 6), range(1), True),
            (range(1, 2), range(1), 3),
        ],
    )
    def test_layers_may_start_apart(
        self, ends: Ends, source_layers: range, target_layers: range, per_layer: int
    ) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, num_tensors=6), rows_at(far, 2, num_tensors=6)
        with moves(target, source) as expected:
            for here, there in zip(source_layers, target_layers, strict=True):
                tensors, onto = (slice(layer * per_layer, (layer + 1) * per_layer) for layer in (here, there))
                expected[onto, 5] = content(source)[tensors, 1]
            near.push_cache(row(target, 5), source, 1, source_layers, target_layers, -1, per_layer)

    def test_a_blocks_cache_is_one_row_that_begins_with_block_0(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1), blocks_at(far, 2)
        with moves(target, source) as expected:
            expected[:, 0] = content(source)[:, 4]
            near.push_cache(row(target), source, 4)
        with stays(target), invalid("rows [0, 1)"):
            near.push_cache(row(target, 1), source, 4)

    def test_id_0_stands_for_the_cache_of_request_0(self, ends: Ends) -> None:
        """The fall-through of contract 10.3; the row is the key's own."""
        near, far = linked(ends)
        source, other = rows_at(near, 1), blocks_at(far, 3)
        with stays(other), fails("LLM_KV_CACHE_NOT_EXIST"):
            near.push_cache(CacheKeyByIdAndIndex(FAR, 0, 6), source)
        target = rows_at(far, 2, req_ids=[9, 0])
        with moves(target, other) as expected:
            expected[:, 6] = content(source)[:, 0]
            near.push_cache(CacheKeyByIdAndIndex(FAR, 0, 6), source)

    def test_a_larger_number_of_tensors_there(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, num_tensors=2), rows_at(far, 2, num_tensors=6)
        with moves(target) as expected:
            expected[4:, 1] = content(source)[:, 0]
            near.push_cache(row(target, 1), source, 0, range(1), range(2, 3))
        if ends.face == "native":
            with stays(target), invalid("num_tensors differ"):
                near.push_cache(row(target, 1), source)
            return
        with moves(target) as expected:
            expected[:2, 1] = content(source)[:, 0]
            near.push_cache(row(target, 1), source)

    def test_a_push_of_no_layer_at_all(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, num_tensors=1), rows_at(far, 2, num_tensors=1)
        if ends.face == "native":
            with moves(target) as expected:
                expected[:, 0] = content(source)[:, 0]
                near.push_cache(row(target), source)
            return
        with stays(target):
            near.push_cache(row(target), source)
            near.push_cache(CacheKeyByIdAndIndex(99, -1), source, 99, tensor_num_per_layer=2)
        with invalid("size"):
            near.push_cache(row(target), source, size=16)
        with invalid("blocks cache"):
            near.push_cache(row(target), blocks_at(near, 1, num_tensors=1))
        with pytest.raises(ValueError, match="src_batch_index"):
            near.push_cache(row(target), source, -1)

    def test_keys_of_the_target_are_not_used_up(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1), rows_at(far, 2, req_ids=[0])
        near.push_cache(row(target), source)
        near.push_cache(CacheKeyByIdAndIndex(FAR, 0), source)


class TestArguments:
    @pytest.mark.parametrize("key", [None, 1, BlocksCacheKey(FAR, 0), CacheKey(FAR, 0)])
    def test_the_key_is_an_id_and_a_row(self, ends: Ends, key: Any) -> None:
        near, _ = linked(ends)
        with answers(TypeError, "dst_cache_key"):
            near.push_cache(key, rows_at(near, 1))

    def test_a_negative_id_is_no_field_of_a_message(self, ends: Ends) -> None:
        near, far = linked(ends)
        with stays(rows_at(far, 2, req_ids=[0])), answers(TypeError, "cache_id"):
            near.push_cache(CacheKeyByIdAndIndex(FAR, -1), rows_at(near, 1))

    @pytest.mark.parametrize("cache", [None, 1, "cache"])
    def test_the_source_is_a_cache(self, ends: Ends, cache: Any) -> None:
        near, _ = linked(ends)
        with answers(TypeError, "src_cache"):
            near.push_cache(CacheKeyByIdAndIndex(FAR, 1), cache)

    def test_a_blocks_cache_is_no_source(self, ends: Ends) -> None:
        near, _ = linked(ends)
        desc = describe(placement="HOST")
        for cache in (blocks_at(near, 1), Cache.create_cpu_cache(desc, addresses(memory_of(desc)))):
            with invalid("is a blocks cache"):
                near.push_cache(CacheKeyByIdAndIndex(FAR, 1), cache)

    @pytest.mark.parametrize(("index", "kind"), wrong_ints("uint32"))
    def test_the_source_row_is_a_uint32(self, ends: Ends, index: Any, kind: type[Exception]) -> None:
        near, _ = linked(ends)
        with answers(kind, "src_batch_index"):
            near.push_cache(CacheKeyByIdAndIndex(FAR, 1), rows_at(near, 1), index)

    @pytest.mark.parametrize(
        ("size", "refusal"), [*wrong_ints("int64"), *((size, INVALID) for size in (0, 1, 16, -2, False))]
    )
    def test_the_size_is_a_whole_row_s(self, ends: Ends, size: Any, refusal: Refusal) -> None:
        near, far = linked(ends)
        target = rows_at(far, 2)
        with stays(target), answers(refusal, "size"):
            near.push_cache(row(target), rows_at(near, 1), size=size)

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            ({"tensor_num_per_layer": None}, TypeError),
            ({"tensor_num_per_layer": np.int64(2)}, TypeError),
            ({"tensor_num_per_layer": -1}, ValueError),
            ({"tensor_num_per_layer": 2**32}, ValueError),
            ({"tensor_num_per_layer": 0}, INVALID),
            ({"src_layer_range": [0, 1]}, TypeError),
            ({"dst_layer_range": 1}, TypeError),
            ({"src_layer_range": range(0)}, INVALID),
            ({"dst_layer_range": range(0, 2, 2)}, INVALID),
            ({"src_layer_range": range(1)}, INVALID),
            ({"src_layer_range": range(1, 3), "dst_layer_range": range(2)}, INVALID),
            ({"src_layer_range": range(2), "dst_layer_range": range(1, 3)}, INVALID),
            ({"src_layer_range": range(1), "dst_layer_range": range(1), "tensor_num_per_layer": 3}, INVALID),
        ],
    )
    def test_layers_are_asked_for_as_of_push_blocks(self, ends: Ends, changes: Any, refusal: Refusal) -> None:
        near, far = linked(ends)
        target = rows_at(far, 2)
        with stays(target), answers(refusal):
            near.push_cache(row(target), rows_at(near, 1), **changes)

    STEPS: tuple[tuple[dict[str, Any], Refusal, str], ...] = (
        ({"dst_cache_key": None}, TypeError, "dst_cache_key"),
        ({"src_cache": 1}, TypeError, "src_cache"),
        ({"src_batch_index": -1}, ValueError, "src_batch_index"),
        ({"src_cache": "blocks"}, INVALID, "is a blocks cache"),
        ({"tensor_num_per_layer": None}, TypeError, "tensor_num_per_layer"),
        ({"src_layer_range": 1}, TypeError, "src_layer_range"),
        ({"dst_layer_range": range(0)}, INVALID, "dst_layer_range"),
        ({"size": 3}, INVALID, "size"),
    )

    @pytest.mark.parametrize("first", range(len(STEPS) - 1))
    def test_an_earlier_check_speaks(self, ends: Ends, first: int) -> None:
        near, _ = linked(ends)
        given = {"dst_cache_key": CacheKeyByIdAndIndex(FAR, 1), "src_cache": rows_at(near, 1)}
        changes, refusal, says = self.STEPS[first]
        for others, _, _ in self.STEPS[first + 1 :]:
            asked = {**given, **others, **changes}
            if asked["src_cache"] == "blocks":
                asked["src_cache"] = blocks_at(near, 3, model_id=None)
            with answers(refusal, says):
                near.push_cache(**asked)

    def test_without_one_sided_mode_nothing_else_is_looked_at(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        source, target = rows_at(near, 1), rows_at(far, 2)
        if ends.face == "native":
            with moves(target) as expected:
                expected[:, 0] = content(source)[:, 0]
                near.push_cache(row(target), source)
            return
        for arguments in ((row(target), source), (None, None), (1, 2, "3")):
            with stays(target), invalid("enable_remote_cache_accessible"):
                near.push_cache(*arguments)


class TestBothEnds:
    def test_what_is_missing(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1), rows_at(far, 2)
        with fails("LLM_NOT_YET_LINK"):
            near.push_cache(row(target, cluster_id=99), source)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.push_cache(CacheKeyByIdAndIndex(FAR, 77), source, 99)
        far.deallocate_cache(target)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.push_cache(row(target), source)
        near.deallocate_cache(source)
        with fails("LLM_KV_CACHE_NOT_EXIST", "this endpoint"):
            near.push_cache(row(target, cluster_id=99), source)

    @pytest.mark.parametrize(
        ("source_row", "target_row", "says"), [(8, 0, "src_batch_index is 8"), (0, 8, "batch_index is 8")]
    )
    def test_rows_lie_inside_both_caches(self, ends: Ends, source_row: int, target_row: int, says: str) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1), rows_at(far, 2)
        with stays(source, target), invalid(says):
            near.push_cache(row(target, target_row), source, source_row)

    @pytest.mark.parametrize("closed", ["source", "target"])
    def test_both_caches_must_be_remote_accessible(self, ends: Ends, closed: str) -> None:
        near, far = linked(ends)
        here, there = memory_of(describe()), memory_of(describe())
        source = near.register_cache(describe(), addresses(here), remote_accessible=closed != "source")
        target = far.register_cache(describe(), addresses(there), remote_accessible=closed != "target")
        with stays(source, target), invalid("remote_accessible=False"):
            near.push_cache(row(target), source)

    def test_elements_of_another_width_are_refused(self, ends: Ends) -> None:
        assert deviates("equal_element_widths")
        near, far = linked(ends)
        target = rows_at(far, 2, shape=(8, 4), kind="DT_FLOAT")
        with stays(target), invalid("element widths differ"):
            near.push_cache(row(target), rows_at(near, 1))
