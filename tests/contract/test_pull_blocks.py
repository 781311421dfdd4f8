"""pull_blocks: from blocks, and from rows cut into blocks, in both modes (contract 12.3)."""

from __future__ import annotations

from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    BOTH_MODES,
    FAR,
    KEY,
    NEAR,
    UNSET,
    addresses,
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


@BOTH_MODES
class TestFromBlocks:
    @pytest.mark.parametrize(
        ("sources", "targets"),
        [([0], [7]), ((0, 1, 2, 5), (4, 5, 6, 0)), ([2, 1, 0], [0, 1, 2]), ([3, 3], [0, 1]), ([0, 1], [4, 4])],
    )
    def test_each_block_lands_in_the_block_at_its_position(
        self, ends: Ends, one_sided: bool, sources: Any, targets: Any
    ) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(far, 1), blocks_at(near, 2, model_id=None)
        with moves(target, source) as expected:
            for there, here in zip(sources, targets, strict=True):
                expected[:, here] = content(source)[:, there]
            assert near.pull_blocks(KEY, target, sources, targets) is None

    @pytest.mark.parametrize(
        ("source_layers", "target_layers", "per_layer", "tensors", "onto"),
        [
            (range(1, 2), range(2), 2, None, None),  # lengths differ
            (range(1, 3), range(2), 2, slice(2, 6), slice(0, 4)),
            (range(5, 6), range(3, 4), 1, slice(5, 6), slice(3, 4)),
            (None, range(1), 2, None, None),  # six tensors for two
            (range(3), None, 2, slice(0, 6), slice(0, 6)),
            (range(2), None, 2, None, None),
            (range(0), range(4, 1), 2, slice(0, 6), slice(0, 6)),  # empty: not given
            (range(0, 0, 2), None, 9, slice(0, 6), slice(0, 6)),
            (range(1), range(1), 4, None, None),  # 6 tensors are no number of such layers
            (range(1, 2), range(3, 4), 2, None, None),
            (range(3, 4), range(1), 2, None, None),
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
        source, target = blocks_at(far, 1, num_tensors=6), blocks_at(near, 2, num_tensors=6)
        asked = {
            "src_layer_range": source_layers, "dst_layer_range": target_layers, "tensor_num_per_layer": per_layer
        }  # fmt: skip
        if tensors is None:
            with stays(target), invalid():
                near.pull_blocks(KEY, target, [3], [4], **asked)
            return
        with moves(target, source) as expected:
            expected[onto, 4] = content(source)[tensors, 3]
            near.pull_blocks(KEY, target, [3], [4], **asked)

    def test_a_side_without_a_range_is_all_of_it(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(far, 1, num_tensors=2), blocks_at(near, 2, num_tensors=6)
        with stays(target), invalid("num_tensors differ"):
            near.pull_blocks(KEY, target, [0], [0])
        with moves(target) as expected:
            expected[4:, 1] = content(source)[:, 0]
            near.pull_blocks(KEY, target, [0], [1], dst_layer_range=range(2, 3))
        larger = blocks_at(far, 3, model_id=1, num_tensors=8)
        with moves(target) as expected:
            expected[:, 1] = content(larger)[2:, 0]
            near.pull_blocks(BlocksCacheKey(FAR, 1), target, [0], [1], src_layer_range=range(1, 4))

    @pytest.mark.parametrize("form", [{"shape": (8, 17)}, {"shape": (8, 15)}, {"shape": (8, 8), "kind": "DT_FLOAT16"}])
    def test_caches_of_other_blocks_or_elements_are_refused(self, ends: Ends, one_sided: bool, form: Any) -> None:
        assert deviates("equal_block_sizes")
        assert deviates("equal_element_widths")
        near, far = linked(ends, one_sided=one_sided)
        target = blocks_at(near, 2)
        blocks_at(far, 1, **form)
        with stays(target), invalid("differ"):
            near.pull_blocks(KEY, target, [0], [0])

    @pytest.mark.parametrize(
        ("sources", "targets"), [([8], [0]), ([0], [8]), ([0, 1], [0]), ([0], [0, 1]), ([2**40], [0])]
    )
    def test_blocks_are_as_many_and_lie_inside(
        self, ends: Ends, one_sided: bool, sources: list[int], targets: list[int]
    ) -> None:
        assert deviates("pulls_stay_inside")
        near, far = linked(ends, one_sided=one_sided)
        target = blocks_at(near, 2)
        blocks_at(far, 1)
        with stays(target), invalid():
            near.pull_blocks(KEY, target, sources, targets)

    def test_what_is_missing(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        target, source = blocks_at(near, 2), blocks_at(far, 1)
        with fails("LLM_NOT_YET_LINK"):
            near.pull_blocks(BlocksCacheKey(99, 0), target, [0], [0])
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_blocks(BlocksCacheKey(FAR, 1), target, [0], [0])
        far.deallocate_blocks_cache(source)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_blocks(KEY, target, [0], [0])
        near.deallocate_blocks_cache(target)
        with fails("LLM_KV_CACHE_NOT_EXIST", "this endpoint"):
            near.pull_blocks(BlocksCacheKey(99, 0), target, [0], [0])

    def test_one_s_own_blocks_are_refused(self, ends: Ends, one_sided: bool) -> None:
        end = ends.open(NEAR, one_sided=one_sided)
        ends.link(end, end)
        cache = blocks_at(end.manager, 1)
        with stays(cache), invalid("endpoint itself"):
            end.manager.pull_blocks(BlocksCacheKey(NEAR, 0), cache, [0], [1])
        with stays(cache), invalid("endpoint itself"):
            end.manager.pull_blocks(CacheKeyByIdAndIndex(NEAR, 1), cache, [], [1])

    def test_a_blocks_key_is_not_used_up(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(far, 1), blocks_at(near, 2)
        near.pull_blocks(KEY, target, [0], [0])
        fill(source, 3)
        with moves(target) as expected:
            expected[:, 0] = content(source)[:, 0]
            near.pull_blocks(KEY, target, [0], [0])


@BOTH_MODES
class TestFromARow:
    """A row of 40 bytes and blocks of 16: two whole pieces, and one of 8."""

    @pytest.mark.parametrize("named", ["request", "id"])
    @pytest.mark.parametrize("targets", [[5], [7, 0], [2, 1, 6], (0, 1, 2)])
    def test_pieces_of_the_named_row_land_in_listed_blocks(
        self, ends: Ends, one_sided: bool, named: str, targets: Any
    ) -> None:
        assert deviates("row_that_the_key_names")
        assert deviates("remainder_of_the_row")
        near, far = linked(ends, one_sided=one_sided)
        source = rows_at(far, 1, req_ids=[11, 12, 13], shape=(3, 40))
        target = blocks_at(near, 2, model_id=None)
        key = CacheKey(FAR, 12) if named == "request" else row(source, 1)
        with moves(target, source) as expected:
            for piece, block in enumerate(targets):
                part = content(source)[:, 1, piece * 16 : (piece + 1) * 16]
                expected[:, block, : part.shape[1]] = part
            near.pull_blocks(key, target, dst_blocks=targets)

    def test_layers_of_a_row(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source = rows_at(far, 1, shape=(3, 32), num_tensors=6)
        target = blocks_at(near, 2, num_tensors=4)
        with moves(target, source) as expected:
            expected[2:, 3] = content(source)[4:, 2, :16]
            near.pull_blocks(row(source, 2), target, [], [3], src_layer_range=range(2, 3), dst_layer_range=range(1, 2))

    @pytest.mark.parametrize("targets", [[0, 1, 2, 3], [8], [0, 8]])
    def test_blocks_beyond_the_row_or_the_cache_are_refused(
        self, ends: Ends, one_sided: bool, targets: list[int]
    ) -> None:
        assert deviates("pulls_stay_inside")
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, shape=(3, 40)), blocks_at(near, 2)
        with stays(target), invalid("dst_blocks"):
            near.pull_blocks(row(source), target, (), targets)

    def test_a_row_beyond_the_cache(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1), blocks_at(near, 2)
        with stays(target), fails("LLM_PARAM_INVALID" if one_sided else "LLM_KV_CACHE_NOT_EXIST", "batch_index is 8"):
            near.pull_blocks(row(source, 8), target, [], [0])

    def test_what_is_missing(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = rows_at(far, 1, req_ids=[5]), blocks_at(near, 2)
        with fails("LLM_NOT_YET_LINK"):
            near.pull_blocks(CacheKey(99, 5), target, [], [0])
        for key in (CacheKey(FAR, 6), CacheKey(FAR, 5, 1), CacheKeyByIdAndIndex(FAR, 99)):
            with fails("LLM_KV_CACHE_NOT_EXIST"):
                near.pull_blocks(key, target, [], [0])
        far.unregister_cache(source.cache_id)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_blocks(row(source), target, [], [0])

    def test_a_blocks_cache_by_its_id_is_one_row(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(far, 1, model_id=None, shape=(4, 24)), blocks_at(near, 2)
        if not one_sided:
            with stays(target), invalid("is a blocks cache"):
                near.pull_blocks(row(source), target, [], [0])
            return
        with moves(target, source) as expected:
            whole = content(source).reshape(4, 96)
            for piece in range(6):
                expected[:, 7 - piece] = whole[:, piece * 16 : (piece + 1) * 16]
            near.pull_blocks(row(source), target, [], [7, 6, 5, 4, 3, 2])

    @pytest.mark.parametrize("cache_id", [0, -1, -7])
    def test_an_id_of_0_or_less_stands_for_the_blocks_cache_of_model_0(
        self, ends: Ends, one_sided: bool, cache_id: int
    ) -> None:
        """The fall-through of contract 10.3."""
        near, far = linked(ends, one_sided=one_sided)
        target, key = blocks_at(near, 2), CacheKeyByIdAndIndex(FAR, cache_id)
        if cache_id < 0 and not one_sided:
            assert deviates("negative_cache_id")
            with invalid("cache_id"):
                near.pull_blocks(key, target, [], [0])
            return
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_blocks(key, target, [], [0])
        source = blocks_at(far, 1)
        if not one_sided:
            with stays(target), invalid("is a blocks cache"):
                near.pull_blocks(key, target, [], [0])
            return
        with moves(target) as expected:
            expected[:, [3, 4]] = content(source)[:, [0, 1]]
            near.pull_blocks(key, target, [], [3, 4])

    def test_a_prefix_names_a_row(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source = far.allocate_cache(describe(shape=(3, 32)), [CacheKey(0, 4), CacheKey(0, UNSET, 0, 7)])
        fill(source, 1)
        target, key = blocks_at(near, 2), CacheKey(FAR, UNSET, 0, 7)
        if ends.face == "drop_in" and one_sided:
            with stays(target), fails("LLM_KV_CACHE_NOT_EXIST"):
                near.pull_blocks(key, target, [], [0])
            return
        assert deviates("pull_cache_takes_every_key")
        with moves(target) as expected:
            expected[:, [2, 5]] = content(source)[:, 1].reshape(4, 2, 16)
            near.pull_blocks(key, target, [], [2, 5])

    def test_accessibility_counts_in_one_sided_mode_only(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        kept = memory_of(describe())
        source = far.register_cache(describe(), addresses(kept), remote_accessible=False)
        target = blocks_at(near, 2)
        if one_sided:
            with stays(target), invalid("remote_accessible=False"):
                near.pull_blocks(row(source), target, [], [0])
            return
        with moves(target) as expected:
            expected[:, 1] = content(source)[:, 0]
            near.pull_blocks(row(source), target, [], [1])
