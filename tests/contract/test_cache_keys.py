"""Which key names which row, who keeps it, and when it is used up (contract 10.2, 11.6 and 12.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    BOTH_MODES,
    FAR,
    KEY,
    NEAR,
    UNSET,
    addresses,
    answers,
    blocks_at,
    fails,
    linked,
    memory_of,
    row,
    rows_at,
)
from tests.contract.world import Ends, content, describe, fill

MISSING = "LLM_KV_CACHE_NOT_EXIST"


class Pulls:
    """What the keys of `far` give: pulled into blocks, which takes every key in both modes."""

    def __init__(self, ends: Ends, *, one_sided: bool = False) -> None:
        self.near, self.far = linked(ends, one_sided=one_sided)
        self.target = blocks_at(self.near, 9, model_id=None)

    def allocate(self, *keys: CacheKey, **form: Any) -> Cache:
        cache: Cache = self.far.allocate_cache(describe(**form), list(keys))
        fill(cache, 1)
        return cache

    def register(self, kept: list[Any], seed: int, *keys: CacheKey) -> Cache:
        kept.append(memory_of(describe(), seed))
        cache: Cache = self.far.register_cache(describe(), addresses(kept[-1]), list(keys))
        return cache

    def gives(self, key: Any, source: Cache, at: int = 0) -> None:
        """The key names row `at` of `source`."""
        fill(self.target, 10)
        self.near.pull_blocks(key, self.target, [], [3])
        np.testing.assert_array_equal(content(self.target)[:, 3], content(source)[:, at])

    def misses(self, key: Any) -> None:
        with fails(MISSING):
            self.near.pull_blocks(key, self.target, [], [3])


class TestNames:
    @BOTH_MODES
    def test_key_i_names_row_i_whatever_its_cluster_is(self, ends: Ends, one_sided: bool) -> None:
        pulls = Pulls(ends, one_sided=one_sided)
        source = pulls.allocate(CacheKey(77, 5), CacheKey(FAR, 6, 2), CacheKey(0, 5, 1))
        pulls.gives(CacheKey(FAR, 5), source, 0)
        pulls.gives(CacheKey(FAR, 6, 2), source, 1)
        pulls.gives(CacheKey(FAR, 5, 1), source, 2)
        for key in (CacheKey(FAR, 6), CacheKey(FAR, 7), CacheKey(FAR, 6, 1)):
            pulls.misses(key)

    def test_a_placeholder_takes_its_row_and_names_nothing(self, ends: Ends) -> None:
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, UNSET), CacheKey(0, 5))
        pulls.gives(CacheKey(FAR, 5), source, 1)

    def test_prefixes_and_requests_do_not_meet(self, ends: Ends) -> None:
        assert deviates("prefix_is_no_placeholder")
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, UNSET, 0, 5), CacheKey(0, 5), CacheKey(0, UNSET, 0, 6))
        pulls.gives(CacheKey(FAR, UNSET, 0, 5), source, 0)
        pulls.gives(CacheKey(FAR, UNSET, 0, 6), source, 2)
        pulls.gives(CacheKey(FAR, 5), source, 1)

    def test_of_registered_caches_the_first_holder_keeps_a_key(self, ends: Ends) -> None:
        pulls, kept = Pulls(ends), list[Any]()
        first = pulls.register(kept, 1, CacheKey(0, 5), CacheKey(0, 5), CacheKey(0, 6))
        second = pulls.register(kept, 2, CacheKey(0, 7), CacheKey(0, 6), CacheKey(0, 5))
        pulls.gives(CacheKey(FAR, 5), first, 0)
        pulls.gives(CacheKey(FAR, 6), first, 2)
        pulls.gives(CacheKey(FAR, 7), second, 0)
        assert deviates("second_cache_by_id")
        pulls.gives(row(second, 2), second, 2)
        pulls.far.unregister_cache(first.cache_id)
        pulls.misses(CacheKey(FAR, 5))

    def test_a_registered_cache_may_have_more_keys_than_rows(self, ends: Ends) -> None:
        pulls, kept = Pulls(ends), list[Any]()
        source = pulls.register(kept, 1, *(CacheKey(0, number) for number in range(10)))
        pulls.gives(CacheKey(FAR, 7), source, 7)
        pulls.misses(CacheKey(FAR, 8))

    def test_a_registered_blocks_cache_takes_its_model_over(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, first = blocks_at(near, 1), blocks_at(far, 2)
        near.push_blocks(KEY, source, [0], [0])
        kept = memory_of(describe())
        second = far.register_blocks_cache(describe(), addresses(kept), BlocksCacheKey(0, 0))
        near.push_blocks(KEY, source, [1], [0])
        np.testing.assert_array_equal(content(second)[:, 0], content(source)[:, 1])
        np.testing.assert_array_equal(content(first)[:, 0], content(source)[:, 0])
        far.unregister_cache(second.cache_id)
        with fails(MISSING):
            near.push_blocks(KEY, source, [1], [0])


class TestAllocating:
    @pytest.mark.parametrize(
        "keys",
        [
            [CacheKey(0, 5), CacheKey(0, 5)],
            [CacheKey(0, 1)],  # bound by the allocated cache
            [CacheKey(0, 3), CacheKey(9, 2)],  # by the registered one
            [CacheKey(0, UNSET, 0, 4), CacheKey(0, UNSET, 0, 4)],
            [CacheKey(0, UNSET), CacheKey(0, UNSET)],  # one placeholder a model
            [CacheKey(0, UNSET, 7)],  # a blocks cache has that model
            [CacheKey(0, number) for number in range(10, 19)],  # nine for eight rows
        ],
    )
    def test_bound_listed_twice_or_too_many(self, ends: Ends, keys: list[CacheKey]) -> None:
        far = ends.open(FAR).manager
        rows_at(far, 1, req_ids=[1])
        kept = memory_of(describe())
        far.register_cache(describe(), addresses(kept), [CacheKey(0, 2)])
        blocks_at(far, 1, model_id=7)
        with invalid("cache_keys"):
            far.allocate_cache(describe(), keys)
        assert len(far.allocate_cache(describe(), [CacheKey(0, 5)]).tensor_addrs) == 4  # nothing was kept of it

    def test_one_placeholder_for_each_model_and_call(self, ends: Ends) -> None:
        far = ends.open(FAR).manager
        for _ in range(2):
            far.allocate_cache(describe(), [CacheKey(0, UNSET, 1), CacheKey(0, UNSET, 2)])

    def test_a_bound_model_is_refused(self, ends: Ends) -> None:
        far = ends.open(FAR).manager
        blocks_at(far, 1, model_id=3)
        kept = memory_of(describe())
        far.register_blocks_cache(describe(), addresses(kept), BlocksCacheKey(0, 4))
        for model_id in (3, 4):
            with invalid(f"model_id {model_id}"):
                far.allocate_blocks_cache(describe(), BlocksCacheKey(99, model_id))

    def test_a_freed_cache_leaves_its_keys(self, ends: Ends) -> None:
        far = ends.open(FAR).manager
        far.deallocate_blocks_cache(blocks_at(far, 1, model_id=3))
        blocks_at(far, 1, model_id=3)
        far.unregister_cache(rows_at(far, 1, req_ids=[1, 2]).cache_id)
        rows_at(far, 1, req_ids=[2, 1])


class TestConsumption:
    """In request mode a pull uses the key of an allocated row up; nothing else does."""

    @pytest.mark.parametrize("by", ["request", "id"])
    def test_a_request_is_used_up_by_pulling_its_row(self, ends: Ends, by: str) -> None:
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, 5), CacheKey(0, 6))
        pulls.gives(CacheKey(FAR, 5) if by == "request" else row(source, 0), source, 0)
        pulls.misses(CacheKey(FAR, 5))
        pulls.gives(row(source, 0), source, 0)  # the row is still there
        pulls.gives(CacheKey(FAR, 6), source, 1)
        rows_at(pulls.far, 2, req_ids=[5])

    def test_pull_cache_uses_up_as_well(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        source, target = rows_at(far, 1, req_ids=[5]), rows_at(near, 2)
        near.pull_cache(CacheKey(FAR, 5), target, 0, 4)
        np.testing.assert_array_equal(content(target)[:, 0, :4], content(source)[:, 0, :4])
        with fails(MISSING):
            near.pull_cache(CacheKey(FAR, 5), target)

    def test_with_layer_ranges_after_all_tensors(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        rows_at(far, 1, req_ids=[5], num_tensors=6)
        target, key = rows_at(near, 2, num_tensors=6), CacheKey(FAR, 5)
        for layer in (2, 0, 0, 1):
            layers = range(layer, layer + 1)
            near.pull_cache(key, target, src_layer_range=layers, dst_layer_range=layers)
        with fails(MISSING):
            near.pull_cache(key, target)

    def test_a_refused_pull_uses_nothing_up(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        rows_at(far, 1, req_ids=[5])
        target, key = rows_at(near, 2), CacheKey(FAR, 5)
        with invalid():
            near.pull_cache(key, target, 99)
        near.pull_cache(key, target)

    @pytest.mark.parametrize("kind", ["one_sided", "prefix", "registered", "other row"])
    def test_what_uses_no_key_up(self, ends: Ends, kind: str) -> None:
        pulls, kept = Pulls(ends, one_sided=kind == "one_sided"), list[Any]()
        keys = [CacheKey(0, 5, 0, 8 if kind == "prefix" else UNSET), CacheKey(0, 6)]
        source = pulls.register(kept, 1, *keys) if kind == "registered" else pulls.allocate(*keys)
        key, at = {
            "prefix": (CacheKey(FAR, UNSET, 0, 8), 0),
            "other row": (row(source, 2), 2),
        }.get(kind, (CacheKey(FAR, 5), 0))
        for _ in range(2):
            pulls.gives(key, source, at)
        pulls.gives(CacheKey(FAR, 5), source)


class TestEnds:
    """A deallocated cache whose keys are left goes with the last of them (contract 11.5 and 11.6)."""

    def test_it_stays_until_its_last_key_is_pulled(self, ends: Ends) -> None:
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, 5), CacheKey(0, 6))
        before = content(source)
        pulls.far.deallocate_cache(source)
        assert source.tensor_addrs == []
        for at, req_id in enumerate((5, 6)):
            pulls.near.pull_blocks(CacheKey(FAR, req_id), pulls.target, [], [3])
            np.testing.assert_array_equal(content(pulls.target)[:, 3], before[:, at])
        pulls.misses(row(source, 0))
        with fails(MISSING):
            pulls.far.copy_cache(source, source)

    def test_it_stays_until_its_last_key_is_removed(self, ends: Ends) -> None:
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, 5), CacheKey(0, UNSET, 0, 8))
        pulls.far.deallocate_cache(source)
        pulls.far.remove_cache_key(CacheKey(0, 5))
        pulls.near.pull_blocks(CacheKey(FAR, UNSET, 0, 8), pulls.target, [], [3])
        pulls.far.remove_cache_key(CacheKey(0, UNSET, 0, 8))
        pulls.misses(row(source, 0))

    def test_without_keys_it_goes_at_once(self, ends: Ends) -> None:
        pulls = Pulls(ends)
        source = pulls.allocate(CacheKey(0, 5))
        pulls.far.remove_cache_key(CacheKey(99, 5))
        pulls.misses(CacheKey(FAR, 5))
        pulls.gives(row(source), source)
        pulls.far.deallocate_cache(source)
        pulls.misses(row(source))

    def test_removing_what_is_not_there_or_registered_does_nothing(self, ends: Ends) -> None:
        pulls, kept = Pulls(ends), list[Any]()
        source, other = pulls.register(kept, 1, CacheKey(0, 5)), pulls.allocate(CacheKey(0, 6))
        for key in (CacheKey(0, 5), CacheKey(0, 6, 1), CacheKey(0, 7), CacheKey(0, UNSET), CacheKey(0, UNSET, 0, 6)):
            assert pulls.far.remove_cache_key(key) is None
        pulls.gives(CacheKey(FAR, 5), source)
        pulls.gives(CacheKey(FAR, 6), other)

    @pytest.mark.parametrize(
        ("key", "kind"),
        [(None, AttributeError), (1, TypeError), (KEY, TypeError), (CacheKeyByIdAndIndex(FAR, 1), TypeError)],
    )
    def test_only_cache_keys_are_removed(self, ends: Ends, key: Any, kind: type[Exception]) -> None:
        manager = ends.open(NEAR).manager
        with answers(kind, "cache_key"):
            manager.remove_cache_key(key)

    def test_without_a_pool_there_is_no_key_to_remove(self, ends: Ends) -> None:
        manager = ends.open(NEAR, device_pool=False, host_pool=False).manager
        with fails("LLM_FEATURE_NOT_ENABLED"):
            manager.remove_cache_key(CacheKey(0, 5))
