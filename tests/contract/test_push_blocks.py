"""push_blocks: which bytes it moves, and what it needs of both ends (contract 12.1, native stage, and 13)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.integrations.llm_datadist.utils import log
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import FAR, KEY, NEAR, addresses, blocks_at, fails, linked, memory_of, moves, rows_at, stays
from tests.contract.world import Ends, MemoryWorld, content, describe


class TestBytes:
    @pytest.mark.parametrize(
        ("sources", "targets"),
        [
            ([0], [0]),
            ((7,), (0,)),
            ([0, 1, 2, 5, 6], [3, 4, 5, 0, 1]),  # two runs
            ([5, 4, 3], [0, 1, 2]),
            ([0, 1, 2], [7, 6, 5]),
            ([3, 3, 3], [0, 4, 1]),
            ([0, 1, 2], [4, 4, 4]),  # the last one listed wins
            (list(range(8)), list(range(8))),
            ([True, False], [False, True]),
        ],
    )
    def test_each_block_lands_in_the_block_at_its_position(self, ends: Ends, sources: Any, targets: Any) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2)
        with moves(target, source) as expected:
            for here, there in zip(sources, targets, strict=True):
                expected[:, int(there)] = content(source)[:, int(here)]
            assert near.push_blocks(KEY, source, sources, targets) is None

    @pytest.mark.parametrize(
        ("source_layers", "target_layers", "per_layer"),
        [
            (range(3), range(3), 2),
            (range(1), range(2, 3), 2),
            (range(1, 3), range(2), 2),
            (range(2, 3), range(5, 6), 1),
            (range(1, 2), range(1), 3),
            (range(1), range(1), 6),
            (range(4, 6), range(2), True),
        ],
    )
    def test_ranges_of_equal_length_may_start_apart(
        self, ends: Ends, source_layers: range, target_layers: range, per_layer: int
    ) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=6), blocks_at(far, 2, num_tensors=6)
        with moves(target, source) as expected:
            for here, there in zip(source_layers, target_layers, strict=True):
                tensors, onto = (slice(layer * per_layer, (layer + 1) * per_layer) for layer in (here, there))
                expected[onto, [6, 7]] = content(source)[tensors, [1, 2]]
            near.push_blocks(KEY, source, [1, 2], [6, 7], source_layers, target_layers, per_layer)

    def test_a_range_that_is_left_out_counts_the_source_s_layers_from_0(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=4), blocks_at(far, 2, num_tensors=8)
        with moves(target, source) as expected:
            expected[4:, 0] = content(source)[:, 3]
            near.push_blocks(KEY, source, [3], [0], dst_layer_range=range(2, 4))
        with moves(target) as expected:
            expected[:4, 0] = content(source)[:, 3]
            near.push_blocks(KEY, source, [3], [0], src_layer_range=range(2))
        with stays(target), invalid():
            near.push_blocks(KEY, source, [3], [0], src_layer_range=range(1, 2))

    def test_shapes_and_numbers_of_blocks_may_differ_where_block_bytes_do_not(self, ends: Ends) -> None:
        near, far = linked(ends)
        source = blocks_at(near, 1, shape=(3, 16), kind="DT_FLOAT16")
        target = blocks_at(far, 2, shape=(9, 4, 4), kind="DT_BF16")
        with moves(target, source) as expected:
            expected[:, 8] = content(source)[:, 2]
            near.push_blocks(KEY, source, [2], [8])

    def test_a_push_into_oneself_copies_pair_by_pair(self, ends: Ends) -> None:
        end = ends.open(NEAR)
        ends.link(end, end)
        cache = blocks_at(end.manager, 1)
        with moves(cache) as expected:
            for here, there in ((0, 1), (1, 2), (2, 3), (7, 6)):
                expected[:, there] = expected[:, here]
            end.manager.push_blocks(BlocksCacheKey(NEAR), cache, [0, 1, 2, 7], [1, 2, 3, 6])

    def test_a_push_repeated_gives_the_same_and_uses_nothing_up(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2)
        near.push_blocks(KEY, source, [0], [1])
        with stays(source, target):
            near.push_blocks(KEY, source, [0], [1])


class TestDefaultLayers:
    def test_the_drop_in_takes_the_source_s_layers_of_a_larger_target(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=4), blocks_at(far, 2, num_tensors=6)
        if ends.face == "native":
            assert deviates("every_tensor_by_default")
            with stays(target), invalid("num_tensors differ"):
                near.push_blocks(KEY, source, [0], [1])
            return
        with moves(target) as expected:
            expected[:4, 1] = content(source)[:, 0]
            near.push_blocks(KEY, source, [0], [1])

    def test_tensors_that_fill_no_layer(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=3), blocks_at(far, 2, num_tensors=3)
        if ends.face == "native":
            with moves(target) as expected:
                expected[:, 1] = content(source)[:, 0]
                near.push_blocks(KEY, source, [0], [1])
            return
        with stays(target), invalid("does not divide"):
            near.push_blocks(KEY, source, [0], [1])

    def test_a_push_of_no_layer_at_all(self, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
        """One tensor, two a layer: the reference's programs rely on a success that moves and checks nothing."""
        said: list[str] = []
        monkeypatch.setattr(log, "warning", lambda text, *args: said.append(text % args))
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=1), blocks_at(far, 2, num_tensors=1)
        if ends.face == "native":
            with moves(target) as expected:
                expected[:, 1] = content(source)[:, 0]
                near.push_blocks(KEY, source, [0], [1])
            with stays(target), invalid("tensor_num_per_layer"):
                near.push_blocks(KEY, source, [0], [1], tensor_num_per_layer=3)
            return
        assert deviates("push_of_no_layer_is_logged")
        with stays(target):
            near.push_blocks(KEY, source, [0], [1])
            near.push_blocks(BlocksCacheKey(99, 5), source, None, [-1], tensor_num_per_layer=3)
        assert len(said) == 2
        assert "nothing was pushed: cache 1 has 1 tensors" in said[0]
        with invalid("dst_blocks is empty"):
            near.push_blocks(KEY, source)
        with invalid("not a blocks cache"):
            near.push_blocks(KEY, rows_at(near, 1, num_tensors=1), [0], [0])
        with pytest.raises(TypeError):
            near.push_blocks(CacheKeyByIdAndIndex(FAR, 1), source, [0], [0])


class TestBothEnds:
    def test_a_cluster_that_is_not_linked(self, ends: Ends) -> None:
        near = ends.open(NEAR).manager
        source = blocks_at(near, 1)
        with fails("LLM_NOT_YET_LINK"):
            near.push_blocks(KEY, source, [0], [0])
        target = blocks_at(ends.open(FAR).manager, 2)
        if ends.face == "native":
            assert deviates("links_open_by_themselves")
            near.push_blocks(KEY, source, [0], [0])
            return
        with stays(target), fails("LLM_NOT_YET_LINK"):
            near.push_blocks(KEY, source, [0], [0])

    def test_a_freed_source_comes_before_the_missing_link(self, ends: Ends) -> None:
        near = ends.open(NEAR).manager
        source = blocks_at(near, 1)
        near.deallocate_blocks_cache(source)
        with fails("LLM_KV_CACHE_NOT_EXIST", "no cache 1"):
            near.push_blocks(KEY, source, [0], [0])

    def test_a_missing_link_comes_before_the_blocks(self, ends: Ends) -> None:
        near = ends.open(NEAR).manager
        with fails("LLM_NOT_YET_LINK"):
            near.push_blocks(KEY, blocks_at(near, 1), [99], [0])

    def test_a_missing_cache_comes_before_the_blocks(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2, model_id=3)
        with stays(target), fails("LLM_KV_CACHE_NOT_EXIST", "model"):
            near.push_blocks(BlocksCacheKey(FAR, 4), source, [99], [0])

    def test_caches_are_seen_and_gone_at_once(self, ends: Ends) -> None:
        assert deviates("no_snapshot")
        near, far = linked(ends)
        source, first = blocks_at(near, 1), blocks_at(far, 2)
        near.push_blocks(KEY, source, [0], [0])
        later = blocks_at(far, 3, model_id=1)
        with moves(later, first) as expected:
            expected[:, 5] = content(source)[:, 0]
            near.push_blocks(BlocksCacheKey(FAR, 1), source, [0], [5])
        far.deallocate_blocks_cache(first)
        with stays(later), fails("LLM_KV_CACHE_NOT_EXIST"):
            near.push_blocks(KEY, source, [0], [0])

    @pytest.mark.parametrize("closed", ["source", "target"])
    def test_both_caches_must_be_remote_accessible(self, ends: Ends, closed: str) -> None:
        managers = dict(zip(("source", "target"), linked(ends), strict=True))
        caches, kept = {}, []
        for side, manager in managers.items():
            kept.append(memory_of(describe()))
            caches[side] = manager.register_blocks_cache(
                describe(), addresses(kept[-1]), BlocksCacheKey(0), remote_accessible=side != closed
            )
        with stays(*caches.values()), invalid("remote_accessible=False"):
            managers["source"].push_blocks(KEY, caches["source"], [0], [0])

    @pytest.mark.parametrize("nbytes", [15, 17])
    def test_blocks_of_another_size_are_refused(self, ends: Ends, nbytes: int) -> None:
        assert deviates("equal_block_sizes")
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2, shape=(8, nbytes))
        with stays(source, target), invalid("block sizes differ"):
            near.push_blocks(KEY, source, [0], [0])

    def test_elements_of_another_width_are_refused(self, ends: Ends) -> None:
        assert deviates("equal_element_widths")
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2, shape=(8, 4), kind="DT_FLOAT")
        with stays(source, target), invalid("element widths differ"):
            near.push_blocks(KEY, source, [0], [0])

    def test_a_refused_layer_leaves_the_earlier_ones_unwritten(self, ends: Ends) -> None:
        assert deviates("refused_push_moves_nothing")
        near, far = linked(ends)
        source, target = blocks_at(near, 1, num_tensors=6), blocks_at(far, 2, num_tensors=4)
        with stays(source, target), invalid("dst_layer_range"):
            near.push_blocks(KEY, source, [0], [1], range(3), range(3))

    def test_the_limit_is_for_the_whole_call(
        self, ends: Ends, world: MemoryWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert deviates("limit_of_the_whole_call")
        near, far = linked(ends, **{"llm.SyncKvCacheWaitTime": "100"})
        source, target = blocks_at(near, 1), blocks_at(far, 2)
        resolve = world.directory.resolve

        def slowly(*arguments: Any) -> Any:
            time.sleep(0.15)
            return resolve(*arguments)

        monkeypatch.setattr(world.directory, "resolve", slowly)
        with stays(source, target), fails("LLM_TIMEOUT"):
            near.push_blocks(KEY, source, [0], [0])
        near.push_blocks(KEY, source, [0], [0])  # the way is open now
        np.testing.assert_array_equal(content(target)[:, 0], content(source)[:, 0])

    def test_a_limit_left_out_is_1000_ms(self, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
        near, far = linked(ends)
        source, _ = blocks_at(near, 1), blocks_at(far, 2)
        seconds: list[float] = []
        after = Deadline.after
        monkeypatch.setattr(Deadline, "after", lambda each: (seconds.append(each), after(each))[1])
        near.push_blocks(KEY, source, [0], [0])
        assert seconds == [1.0]
