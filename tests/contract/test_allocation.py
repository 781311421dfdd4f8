"""allocate_* and deallocate_*: pools, budgets, what a freed cache leaves (contract 6, 11.4 and 11.5)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheKey, DataType
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    KEY,
    NEAR,
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

BOTH_VERBS = pytest.mark.parametrize("verb", ["allocate_cache", "allocate_blocks_cache"])
FREE = {"allocate_cache": "deallocate_cache", "allocate_blocks_cache": "deallocate_blocks_cache"}


def pool(pages: int, page_shift: int | None = None) -> str:
    """A pool of so many pages; 64 KiB are the default."""
    given = {} if page_shift is None else {"page_shift": page_shift}
    return json.dumps({"memory_size": pages << (page_shift or 16), **given})


def open_with(ends: Ends, device: str | None = None, host: str | None = None) -> Any:
    texts = {"llm.MemPoolConfig": device, "llm.HostMemPoolConfig": host}
    given = {key: text for key, text in texts.items() if text is not None}
    return ends.open(NEAR, device_pool=False, host_pool=False, **given).manager


class TestFirstDimension:
    """It counts blocks and rows whatever batch_dim_index says; that is for batch_size alone (contract 8.1)."""

    DESC = (2, (4, 8), DataType.DT_INT8)

    def test_of_a_blocks_cache(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        cache = manager.allocate_blocks_cache(CacheDesc(*self.DESC, batch_dim_index=1))
        fill(cache, 1)
        assert cache.cache_desc.batch_size == 8
        with moves(cache) as expected:
            expected[:, 3] = expected[:, 0]
            manager.copy_blocks(cache, {0: [3]})
        with stays(cache), invalid("index 7"):
            manager.copy_blocks(cache, {0: [7]})

    def test_of_a_continuous_cache(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        manager.allocate_cache(CacheDesc(*self.DESC, batch_dim_index=1), [CacheKey(0, number) for number in range(4)])
        with invalid("cache_keys has 5 entries"):
            manager.allocate_cache(
                CacheDesc(*self.DESC, batch_dim_index=1), [CacheKey(1, number, 1) for number in range(5)]
            )


@BOTH_VERBS
class TestAllocated:
    def test_the_cache_has_zeroed_memory_of_its_own(self, ends: Ends, verb: str) -> None:
        assert deviates("zeroed_memory")
        manager = ends.open(NEAR).manager
        cache = getattr(manager, verb)(describe(kind="DT_FLOAT16"))
        assert (cache.cache_id, len(cache.tensor_addrs)) == (1, 4)
        assert cache.is_blocks_cache == (verb == "allocate_blocks_cache")
        assert content(cache).shape == (4, 8, 32)
        assert not content(cache).any()
        for index in range(4):
            cache.numpy(index)[:] = index + 1
        assert [int(cache.numpy(index).min()) for index in range(4)] == [1, 2, 3, 4]

    @pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
    def test_peers_reach_it_whatever_its_placement(self, ends: Ends, verb: str, placement: str) -> None:
        near, far = linked(ends)
        here, there = (getattr(manager, verb)(describe(placement=placement)) for manager in (near, far))
        fill(there, 1)
        with moves(here, there) as expected:
            expected[:, 3] = content(there)[:, 0]
            if verb == "allocate_cache":
                near.pull_cache(row(there), here, 3)
            else:
                near.pull_blocks(row(there), here, [], [3])

    @pytest.mark.parametrize(("desc", "refusal"), [(None, AttributeError), (1, TypeError), ("desc", TypeError)])
    def test_the_description_is_a_cache_desc(self, ends: Ends, verb: str, desc: Any, refusal: Refusal) -> None:
        with answers(refusal, "cache_desc"):
            getattr(ends.open(NEAR).manager, verb)(desc)

    def test_the_key_has_the_verb_s_class(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR).manager
        keys = [None, 1, [KEY], {}, [None]] if verb == "allocate_cache" else [1, CacheKey(0, 1), [KEY]]
        for key in keys:
            with answers(TypeError, "cache_key"):
                getattr(manager, verb)(describe(), key)
        assert getattr(manager, verb)(describe()).cache_id == 1

    @pytest.mark.parametrize(
        "desc",
        [
            describe(0),
            CacheDesc(1, (0, 16), DataType.DT_INT8),
            CacheDesc(1, (8, -1), DataType.DT_INT8),
            CacheDesc(1, (1,) * 32, DataType.DT_INT8),
            CacheDesc(1, (2**40, 2**40), DataType.DT_INT8),
        ],
    )
    def test_tensors_and_dimensions_are_positive(self, ends: Ends, verb: str, desc: CacheDesc) -> None:
        with invalid():
            getattr(ends.open(NEAR).manager, verb)(desc)

    @pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
    def test_each_placement_needs_its_own_pool(self, ends: Ends, verb: str, placement: str) -> None:
        other = {"device": pool(64)} if placement == "HOST" else {"host": pool(64)}
        manager = open_with(ends, **other)
        with invalid("not configured"):
            getattr(manager, verb)(describe(placement=placement))
        getattr(manager, verb)(describe(placement="HOST" if placement == "DEVICE" else "DEVICE"))

    def test_a_number_of_tensors_that_no_pool_holds_costs_no_memory(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR, one_sided=False).manager
        with fails("LLM_OUT_OF_MEMORY"):
            getattr(manager, verb)(CacheDesc(2**32 - 1, (1, 1), DataType.DT_INT8))


@BOTH_VERBS
class TestPools:
    @pytest.mark.parametrize("page_shift", [None, 10, 20])
    def test_a_tensor_takes_whole_pages(self, ends: Ends, verb: str, page_shift: int | None) -> None:
        manager = open_with(ends, pool(4, page_shift))
        page = 1 << (page_shift or 16)
        allocate, free = getattr(manager, verb), getattr(manager, FREE[verb])
        first = allocate(describe(3, (1, 1)))
        with fails("LLM_OUT_OF_MEMORY"):
            allocate(describe(1, (1, page + 1)))
        second = allocate(describe(1, (1, page)))
        with fails("LLM_OUT_OF_MEMORY"):
            allocate(describe(1, (1, 1)))
        free(second)
        free(first)
        assert not content(allocate(describe(4, (1, page)))).any()

    def test_pools_do_not_share(self, ends: Ends, verb: str) -> None:
        manager = open_with(ends, pool(1), pool(1))
        for placement in ("DEVICE", "HOST"):
            getattr(manager, verb)(describe(1, placement=placement))
            with fails("LLM_OUT_OF_MEMORY"):
                getattr(manager, verb)(describe(1, placement=placement))

    def test_registered_memory_costs_nothing(self, ends: Ends, verb: str) -> None:
        manager = open_with(ends, pool(1))
        kept = memory_of(describe(8))
        manager.register_cache(describe(8), addresses(kept))
        getattr(manager, verb)(describe(1))

    def test_a_refused_cache_leaves_the_budget(self, ends: Ends, verb: str) -> None:
        manager = open_with(ends, pool(1))
        kept = memory_of(describe(1))
        manager.register_blocks_cache(describe(1), addresses(kept), BlocksCacheKey(0, 3))
        key = BlocksCacheKey(0, 3) if verb == "allocate_blocks_cache" else [CacheKey(0, 1), CacheKey(0, 1)]
        with invalid():
            getattr(manager, verb)(describe(1), key)
        getattr(manager, verb)(describe(1))


@pytest.mark.parametrize("option", ["llm.MemPoolConfig", "llm.HostMemPoolConfig"])
class TestPoolOptions:
    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "1", "null", "{", "memory_size", '{"page_shift": 16}', '{"memory_size": "1048576"}',
            '{"memory_size": 1048576.0}', '{"memory_size": -1}', '{"memory_size": true}', '{"memory_size": null}',
            '[{"memory_size": 1048576}]', '{"memory_size": 0}', '{"memory_size": 65535}',
            '{"memory_size": 1048576, "page_shift": 9}', '{"memory_size": 4294967296, "page_shift": 31}',
            '{"memory_size": 1048576, "page_shift": "16"}', '{"memory_size": 1048576, "page_shift": -1}',
            '{"memory_size": 1048576, "page_shift": 21}', '{"memory_size": 4398046510080, "page_shift": 10}',
        ],
    )  # fmt: skip
    def test_what_is_no_pool_is_refused(self, ends: Ends, option: str, text: str) -> None:
        with invalid(option):
            ends.open(NEAR, device_pool=False, host_pool=False, **{option: text})

    @pytest.mark.parametrize(
        "text",
        [
            '{"memory_size": 65536}',
            '{"memory_size": 1024, "page_shift": 10}',
            '{"memory_size": 1073741824, "page_shift": 30}',
            '{"memory_size": 102428800, "other": 1}',
            '{"memory_size": 4398046509056, "page_shift": 10}',
        ],
    )
    def test_what_is_a_pool_is_taken(self, ends: Ends, option: str, text: str) -> None:
        ends.open(NEAR, device_pool=False, host_pool=False, **{option: text})


class TestDeallocate:
    @pytest.mark.parametrize("verb", FREE.values())
    @pytest.mark.parametrize(("cache", "refusal"), [(None, AttributeError), (1, TypeError), ("cache", TypeError)])
    def test_only_caches_are_freed(self, ends: Ends, verb: str, cache: Any, refusal: Refusal) -> None:
        with answers(refusal, "cache"):
            getattr(ends.open(NEAR).manager, verb)(cache)

    def test_each_kind_has_its_verb(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        rows, blocks = rows_at(manager, 1), blocks_at(manager, 2)
        with stays(rows, blocks), invalid("is not a blocks cache"):
            manager.deallocate_blocks_cache(rows)
        with stays(rows, blocks), invalid("is a blocks cache"):
            manager.deallocate_cache(blocks)

    @BOTH_VERBS
    def test_a_freed_cache_has_no_addresses_and_may_be_freed_again(self, ends: Ends, verb: str) -> None:
        near, far = linked(ends)
        cache = getattr(far, verb)(describe())
        for _ in range(2):
            assert getattr(far, FREE[verb])(cache) is None
            assert cache.tensor_addrs == []
            assert cache.cache_id == 1
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_blocks(row(cache), blocks_at(near, 1), [], [0])

    @pytest.mark.parametrize("kind", ["cache", "blocks_cache"])
    def test_a_registered_cache_only_loses_its_addresses(self, ends: Ends, kind: str) -> None:
        near, far = linked(ends)
        kept = memory_of(describe())
        cache = getattr(far, f"register_{kind}")(describe(), addresses(kept))
        getattr(far, f"deallocate_{kind}")(cache)
        assert cache.tensor_addrs == []
        target = blocks_at(near, 1)
        near.pull_blocks(row(cache), target, [], [5])
        np.testing.assert_array_equal(content(target)[:, 5], np.stack(kept)[:, :16])

    @pytest.mark.parametrize("kind", ["cache", "blocks_cache"])
    def test_without_any_pool_nothing_was_allocated(self, ends: Ends, kind: str) -> None:
        manager = open_with(ends)
        kept = memory_of(describe())
        cache = getattr(manager, f"register_{kind}")(describe(), addresses(kept))
        with fails("LLM_FEATURE_NOT_ENABLED"):
            getattr(manager, f"deallocate_{kind}")(cache)
        assert cache.tensor_addrs == addresses(kept)
        with pytest.raises(TypeError):
            getattr(manager, f"deallocate_{kind}")(None)
        with invalid():
            getattr(manager, "deallocate_cache" if kind == "blocks_cache" else "deallocate_blocks_cache")(cache)

    @pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
    def test_one_pool_of_either_placement_is_enough(self, ends: Ends, placement: str) -> None:
        manager = open_with(ends, **{placement.lower(): pool(8)})
        manager.deallocate_cache(rows_at(manager, 1, placement=placement))
