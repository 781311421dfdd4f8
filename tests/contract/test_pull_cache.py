"""pull_cache: a row of the peer's continuous cache into a row of one's own (contract 12.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid, wrong_ints
from tests.contract.moves import (
    BOTH_MODES,
    FAR,
    NEAR,
    UNSET,
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
from tests.contract.world import Ends, content, describe, fill

INVALID = "LLM_PARAM_INVALID"


@BOTH_MODES
class TestBytes:
    @pytest.mark.parametrize(("source_row", "target_row"), [(0, 0), (2, 7), (2, 0), (0, True)])
    def test_a_row_by_its_number(self, ends: Ends, one_sided: bool, source_row: int, target_row: int) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 16)), rows_at(near, 2)
        with moves(target, source) as expected:
            expected[:, int(target_row)] = content(source)[:, source_row]
            assert near.pull_cache(row(source, source_row), target, target_row) is None

    def test_a_shorter_row_takes_the_beginning_of_a_longer_one(self, ends: Ends, one_sided: bool) -> None:
        assert deviates("row_that_the_key_names")
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 40)), rows_at(near, 2, shape=(8, 16))
        with moves(target, source) as expected:
            expected[:, 4] = content(source)[:, 2, :16]
            near.pull_cache(row(source, 2), target, 4)

    @pytest.mark.parametrize("size", [1, 15, 16, True])
    def test_a_size_takes_the_beginning_of_a_row(self, ends: Ends, one_sided: bool, size: int) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 40)), rows_at(near, 2, shape=(8, 16))
        with moves(target, source) as expected:
            expected[:, 4, :size] = content(source)[:, 1, :size]
            near.pull_cache(row(source, 1), target, 4, size)

    @pytest.mark.parametrize(("shape", "size"), [((3, 12), -1), ((3, 12), 13), ((3, 40), 17)])
    def test_more_bytes_than_either_row_has_are_refused(
        self, ends: Ends, one_sided: bool, shape: tuple[int, ...], size: int
    ) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=shape), rows_at(near, 2)
        with stays(target), invalid("bytes"):
            near.pull_cache(row(source), target, 0, size)

    def test_a_size_makes_a_shorter_source_row_enough(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 12)), rows_at(near, 2)
        with moves(target) as expected:
            expected[:, 0, :12] = content(source)[:, 2]
            near.pull_cache(row(source, 2), target, size=12)

    @pytest.mark.parametrize(
        ("source_layers", "target_layers", "per_layer", "tensors", "onto"),
        [
            (range(1, 3), range(2), 2, slice(2, 6), slice(0, 4)),
            (range(5, 6), range(3, 4), 1, slice(5, 6), slice(3, 4)),
            (range(3), None, 2, slice(0, 6), slice(0, 6)),
            (None, range(5, 2), 7, slice(0, 6), slice(0, 6)),
        ],
    )
    def test_layers_by_the_lax_rule(
        self,
        ends: Ends,
        one_sided: bool,
        source_layers: Any,
        target_layers: Any,
        per_layer: int,
        tensors: Any,
        onto: Any,
    ) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, num_tensors=6), rows_at(near, 2, num_tensors=6)
        with moves(target, source) as expected:
            expected[onto, 4] = content(source)[tensors, 3]
            near.pull_cache(
                row(source, 3), target, 4, src_layer_range=source_layers, dst_layer_range=target_layers,
                tensor_num_per_layer=per_layer,
            )  # fmt: skip

    def test_a_row_beyond_the_peer_s(self, ends: Ends, one_sided: bool) -> None:
        assert deviates("pulls_stay_inside")
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 16)), rows_at(near, 2)
        with stays(target), fails(INVALID if one_sided else "LLM_KV_CACHE_NOT_EXIST", "batch_index is 3"):
            near.pull_cache(row(source, 3), target)

    def test_a_row_beyond_one_s_own(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1), rows_at(near, 2)
        with stays(target), invalid("batch_index is 8"):
            near.pull_cache(row(source), target, 8)

    @pytest.mark.parametrize("cache_id", [0, -1])
    def test_an_id_of_0_or_less_stands_for_the_blocks_cache_of_model_0(
        self, ends: Ends, one_sided: bool, cache_id: int
    ) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(far, 1), rows_at(near, 2)
        key = CacheKeyByIdAndIndex(FAR, cache_id)
        if not one_sided:
            with stays(target), invalid():
                near.pull_cache(key, target)
            return
        with moves(target) as expected:
            expected[:, 6] = content(source)[:, 0]
            near.pull_cache(key, target, 6)

    def test_keys_of_requests_and_prefixes(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source = far.allocate_cache(describe(), [CacheKey(0, 4), CacheKey(0, 5, 3), CacheKey(0, UNSET, 0, 7)])
        fill(source, 1)
        target = rows_at(near, 2)
        for at, key in enumerate((CacheKey(FAR, 4), CacheKey(FAR, 5, 3), CacheKey(FAR, UNSET, 0, 7))):
            if ends.face == "drop_in" and one_sided:
                with stays(target), answers(TypeError, "cache_key"):
                    near.pull_cache(key, target)
                continue
            assert deviates("pull_cache_takes_every_key")
            with moves(target) as expected:
                expected[:, 5] = content(source)[:, at]
                near.pull_cache(key, target, 5)

    def test_what_is_missing(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1), rows_at(near, 2)
        with fails("LLM_NOT_YET_LINK"):
            near.pull_cache(row(source, cluster_id=99), target)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_cache(CacheKeyByIdAndIndex(FAR, 99), target)
        with invalid("endpoint itself"):
            near.pull_cache(row(target, cluster_id=NEAR), target)
        far.deallocate_cache(source)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_cache(row(source), target)
        near.deallocate_cache(target)
        with fails("LLM_KV_CACHE_NOT_EXIST", "this endpoint"):
            near.pull_cache(row(source, cluster_id=99), target)

    def test_tensor_counts_and_element_widths(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        target = rows_at(near, 2)
        for form in ({"num_tensors": 2}, {"num_tensors": 6}, {"shape": (8, 8), "kind": "DT_FLOAT16"}):
            with stays(target), invalid("differ"):
                near.pull_cache(row(rows_at(far, 1, **form)), target)

    def test_accessibility_counts_in_one_sided_mode_only(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        here, there = memory_of(describe(), 1), memory_of(describe(), 2)
        source = far.register_cache(describe(), addresses(there), remote_accessible=False)
        target = near.register_cache(describe(), addresses(here), remote_accessible=False)
        if one_sided:
            for key, cache in ((row(rows_at(far, 3)), target), (row(source), rows_at(near, 4))):
                with stays(cache), invalid("remote_accessible=False"):
                    near.pull_cache(key, cache)
            return
        with moves(target) as expected:
            expected[:, 1] = content(source)[:, 0]
            near.pull_cache(row(source), target, 1)


@BOTH_MODES
class TestArguments:
    @pytest.mark.parametrize("key", [None, 1, BlocksCacheKey(FAR, 0)])
    def test_the_key_names_a_row(self, ends: Ends, one_sided: bool, key: Any) -> None:
        near, _ = linked(ends, one_sided=one_sided)
        with answers(TypeError, "cache_key"):
            near.pull_cache(key, rows_at(near, 1))

    @pytest.mark.parametrize(("cache", "refusal"), [(None, AttributeError), (1, TypeError)])
    def test_the_target_is_a_cache(self, ends: Ends, one_sided: bool, cache: Any, refusal: Refusal) -> None:
        near, _ = linked(ends, one_sided=one_sided)
        with answers(refusal, "cache"):
            near.pull_cache(CacheKeyByIdAndIndex(FAR, 1), cache)

    def test_a_blocks_cache_is_no_target(self, ends: Ends, one_sided: bool) -> None:
        near, _ = linked(ends, one_sided=one_sided)
        desc = describe(placement="HOST")
        for cache in (blocks_at(near, 1), Cache.create_cpu_cache(desc, addresses(memory_of(desc)))):
            with invalid("is a blocks cache"):
                near.pull_cache(CacheKeyByIdAndIndex(FAR, 1), cache)

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            *(({"batch_index": value}, kind) for value, kind in wrong_ints("uint32")),
            *(({"size": value}, kind) for value, kind in wrong_ints("int64")),
            *(({"size": value}, INVALID) for value in (0, -2, False)),
            ({"tensor_num_per_layer": None}, TypeError),
            ({"tensor_num_per_layer": np.int64(1)}, TypeError),
            ({"tensor_num_per_layer": 2**32}, ValueError),
            ({"tensor_num_per_layer": 0}, INVALID),
            ({"src_layer_range": [0]}, TypeError),
            ({"dst_layer_range": range(-1, 1)}, INVALID),
            ({"src_layer_range": range(2**32, 2**32 + 1)}, ValueError),
            ({"src_layer_range": range(1)}, INVALID),
            ({"dst_layer_range": range(2, 3)}, INVALID),
            ({"dst_layer_range": range(1), "tensor_num_per_layer": 3}, INVALID),
        ],
        ids=repr,
    )
    def test_numbers_and_layers(self, ends: Ends, one_sided: bool, changes: Any, refusal: Refusal) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1), rows_at(near, 2)
        with stays(target), answers(refusal):
            near.pull_cache(row(source), target, **changes)

    @pytest.mark.parametrize("key", [CacheKey(FAR, UNSET), CacheKey(FAR, 1, 0, 2)])
    def test_a_cache_key_has_either_a_request_or_a_prefix(self, ends: Ends, one_sided: bool, key: CacheKey) -> None:
        near, _ = linked(ends, one_sided=one_sided)
        with answers(TypeError if ends.face == "drop_in" and one_sided else INVALID):
            near.pull_cache(key, rows_at(near, 1))

    STEPS: tuple[tuple[dict[str, Any], Refusal, str], ...] = (
        ({"cache_key": 1}, TypeError, "cache_key"),
        ({"cache": 1}, TypeError, "cache"),
        ({"cache": "blocks"}, INVALID, "is a blocks cache"),
        ({"batch_index": -1}, ValueError, "batch_index"),
        ({"size": None}, TypeError, "size"),
        ({"tensor_num_per_layer": -1}, ValueError, "tensor_num_per_layer"),
        ({"src_layer_range": 1}, TypeError, "src_layer_range"),
    )

    @pytest.mark.parametrize("first", range(len(STEPS) - 1))
    def test_an_earlier_check_speaks(self, ends: Ends, one_sided: bool, first: int) -> None:
        near, _ = linked(ends, one_sided=one_sided)
        given = {"cache_key": CacheKeyByIdAndIndex(FAR, 1), "cache": rows_at(near, 1)}
        changes, refusal, says = self.STEPS[first]
        for others, _, _ in self.STEPS[first + 1 :]:
            asked = {**given, **others, **changes}
            if asked["cache"] == "blocks":
                asked["cache"] = blocks_at(near, 3, model_id=None)
            with answers(refusal, says):
                near.pull_cache(**asked)

    def test_other_keywords(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1), rows_at(near, 2)
        if ends.face == "native":
            with answers(TypeError, "src_cache_offset"):
                near.pull_cache(row(source), target, src_cache_offset=-1)
            return
        with moves(target) as expected:
            expected[:, 0] = content(source)[:, 0]
            near.pull_cache(row(source), target, src_cache_offset=-1, anything=None)
