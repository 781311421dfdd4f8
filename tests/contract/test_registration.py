"""register_cache, register_blocks_cache, unregister_cache: memory of others (contract 10.1 and 11.1 to 11.3)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheKey, DataType
from tests.contract.conftest import deviates, invalid, wrong_ints
from tests.contract.moves import (
    FAR,
    KEY,
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
from tests.contract.world import Ends, content, describe

INVALID = "LLM_PARAM_INVALID"
BOTH_VERBS = pytest.mark.parametrize("verb", ["register_cache", "register_blocks_cache"])


def accessible(manager: Any) -> list[bool]:
    """Of the caches there, as they are announced."""
    native = manager if hasattr(manager, "caches") else manager._manager
    return [info.remote_accessible for info in native.caches()]


@BOTH_VERBS
class TestRegistered:
    def test_the_cache_is_the_memory_at_those_addresses(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR).manager
        desc, kept = describe(), memory_of(describe())
        cache = getattr(manager, verb)(desc, addresses(kept))
        assert isinstance(cache, Cache)
        assert (cache.cache_id, cache.cache_desc, cache.tensor_addrs) == (1, desc, addresses(kept))
        assert cache.is_blocks_cache == (verb == "register_blocks_cache")
        np.testing.assert_array_equal(content(cache).reshape(4, -1), np.stack(kept))

    def test_ids_rise_from_1_for_every_verb_and_are_never_used_again(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR).manager
        kept = memory_of(describe())
        ids = [rows_at(manager, 1).cache_id, getattr(manager, verb)(describe(), addresses(kept)).cache_id]
        manager.unregister_cache(2)
        with invalid():
            getattr(manager, verb)(describe(), [])
        ids += [getattr(manager, verb)(describe(), addresses(kept)).cache_id, blocks_at(manager, 1).cache_id]
        assert ids == sorted(set(ids))
        assert (ids[0], ids[1]) == (1, 2)

    def test_addresses_are_not_looked_at_before_they_are_used(self, ends: Ends, verb: str) -> None:
        assert deviates("unmapped_addresses")
        near, far = linked(ends)
        for placement in ("DEVICE", "HOST"):
            desc = describe(1, placement=placement)
            cache = getattr(near, verb)(desc, [1], remote_accessible=True)
            with invalid("address 0x1"):
                if verb == "register_cache":
                    near.push_cache(row(rows_at(far, 1, num_tensors=1)), cache, tensor_num_per_layer=1)
                else:
                    blocks_at(far, 1, num_tensors=1, model_id=cache.cache_id)
                    key = BlocksCacheKey(FAR, cache.cache_id)
                    near.push_blocks(key, cache, [0], [0], tensor_num_per_layer=1)

    @pytest.mark.parametrize(("desc", "refusal"), [(None, AttributeError), (1, TypeError), ("desc", TypeError)])
    def test_the_description_is_a_cache_desc(self, ends: Ends, verb: str, desc: Any, refusal: Refusal) -> None:
        with answers(refusal, "cache_desc"):
            getattr(ends.open(NEAR).manager, verb)(desc, [1])

    @pytest.mark.parametrize(
        "addrs", [None, 1, (1, 2, 3, 4), "1234", {1, 2, 3, 4}, [1, 2, 3, None], [1, 2, 3, "4"], [1, 2, 3, 4.0]]
    )
    def test_addresses_are_a_list_of_ints(self, ends: Ends, verb: str, addrs: Any) -> None:
        with answers(TypeError, "addrs"):
            getattr(ends.open(NEAR).manager, verb)(describe(), addrs)

    @pytest.mark.parametrize("address", [-1, 2**64])
    def test_an_address_is_a_uint64(self, ends: Ends, verb: str, address: int) -> None:
        with answers(TypeError, "addrs[3]"):
            getattr(ends.open(NEAR).manager, verb)(describe(), [1, 2, 3, address])

    def test_an_address_that_no_process_has_is_refused_and_costs_nothing(self, ends: Ends, verb: str) -> None:
        assert deviates("unmapped_addresses")
        manager = ends.open(NEAR).manager
        for _ in range(5000):  # an endpoint has 4096 slots for caches
            with invalid("addrs[0] is 0x8000000000000000"):
                getattr(manager, verb)(describe(1), [2**63])
        for address in (2**64 - 1, 2**63 - 128):
            with invalid("addrs[0]"):
                getattr(manager, verb)(describe(1), [address])
        getattr(manager, verb)(describe(1), [2**63 - 129])

    @pytest.mark.parametrize("addrs", [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 0]])
    def test_there_is_one_address_other_than_0_a_tensor(self, ends: Ends, verb: str, addrs: list[int]) -> None:
        register = getattr(ends.open(NEAR).manager, verb)
        for remote_accessible in (None, True, False):
            with invalid("addrs"):
                register(describe(), addrs, remote_accessible=remote_accessible)

    def test_no_tensors_are_no_cache(self, ends: Ends, verb: str) -> None:
        with invalid("addrs is empty"):
            getattr(ends.open(NEAR).manager, verb)(describe(0), [])

    @pytest.mark.parametrize("shape", [(0, 16), (8, -1), (1,) * 32, (2**40, 2**40)])
    def test_a_shape_has_1_to_31_positive_dimensions(self, ends: Ends, verb: str, shape: tuple[int, ...]) -> None:
        with invalid("shape"):
            getattr(ends.open(NEAR).manager, verb)(CacheDesc(1, shape, DataType.DT_INT8), [1])

    def test_31_dimensions_are_a_shape(self, ends: Ends, verb: str) -> None:
        desc = CacheDesc(1, (1,) * 31, DataType.DT_INT8)
        assert getattr(ends.open(NEAR).manager, verb)(desc, [1]).cache_id == 1

    @pytest.mark.parametrize("value", [1, 0, "yes", 1.0, np.bool_(True)])
    def test_remote_accessible_is_a_bool(self, ends: Ends, verb: str, value: Any) -> None:
        with answers(TypeError, "remote_accessible"):
            getattr(ends.open(NEAR).manager, verb)(describe(1), [1], remote_accessible=value)

    def test_by_default_device_memory_is_accessible(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR).manager
        for placement in ("DEVICE", "HOST"):
            getattr(manager, verb)(describe(1, placement=placement), [1])
        if ends.face == "native":
            assert deviates("host_is_accessible")
            assert accessible(manager) == [True, True]
        else:
            assert accessible(manager) == [True, False]

    def test_what_is_said_counts(self, ends: Ends, verb: str) -> None:
        manager = ends.open(NEAR).manager
        for placement in ("DEVICE", "HOST"):
            for value in (True, False):
                getattr(manager, verb)(describe(1, placement=placement), [1], remote_accessible=value)
        assert accessible(manager) == [True, False, True, False]

    def test_after_link_nothing_is_accessible_any_more(self, ends: Ends, verb: str) -> None:
        end = ends.open(NEAR)
        if end.engine is None:  # the native face has no such call
            return
        ends.link(end, ends.open(FAR))  # link_clusters does not count
        getattr(end.manager, verb)(describe(1), [1])
        end.engine.has_called_link = True
        for value in (None, False):
            for placement in ("DEVICE", "HOST"):
                getattr(end.manager, verb)(describe(1, placement=placement), [1], remote_accessible=value)
        with invalid("after link"):
            getattr(end.manager, verb)(describe(1), [1], remote_accessible=True)
        assert accessible(end.manager) == [True, False, False, False, False]
        rows_at(end.manager, 1)
        assert accessible(end.manager)[-1] is True


class TestKeys:
    @pytest.mark.parametrize("keys", [None, 1, "keys", {}, [KEY], [CacheKey(0, 1), None], range(0)])
    def test_a_continuous_cache_takes_a_list_or_tuple_of_cache_keys(self, ends: Ends, keys: Any) -> None:
        with answers(TypeError, "cache_keys"):
            ends.open(NEAR).manager.register_cache(describe(1), [1], keys)

    @pytest.mark.parametrize("keys", [[], (), [CacheKey(0, 1)], (CacheKey(0, 1), CacheKey(0, UNSET))])
    def test_keys_may_be_few(self, ends: Ends, keys: Any) -> None:
        assert ends.open(NEAR).manager.register_cache(describe(1), [1], keys).cache_id == 1

    @pytest.mark.parametrize("key", [1, "key", CacheKey(0, 1), [KEY]])
    def test_a_blocks_cache_takes_one_blocks_cache_key(self, ends: Ends, key: Any) -> None:
        with answers(TypeError, "blocks_cache_key"):
            ends.open(NEAR).manager.register_blocks_cache(describe(1), [1], key)

    @pytest.mark.parametrize("model_id", [-1, 2**64])
    def test_a_model_is_a_uint64(self, ends: Ends, model_id: int) -> None:
        manager = ends.open(NEAR).manager
        with answers(TypeError, "model_id"):
            manager.register_blocks_cache(describe(1), [1], BlocksCacheKey(0, model_id))
        with answers(TypeError, "model_id"):
            manager.allocate_blocks_cache(describe(1), BlocksCacheKey(0, model_id))

    def test_the_key_s_cluster_does_not_matter(self, ends: Ends) -> None:
        near, far = linked(ends)
        kept = memory_of(describe())
        target = far.register_blocks_cache(describe(), addresses(kept), BlocksCacheKey(-5, 7))
        source = blocks_at(near, 1)
        with moves(target) as expected:
            expected[:, 1] = content(source)[:, 0]
            near.push_blocks(BlocksCacheKey(FAR, 7), source, [0], [1])

    def test_without_a_key_a_cache_is_a_source_a_target_and_an_id(self, ends: Ends) -> None:
        near, far = linked(ends)
        here, there = memory_of(describe(), 1), memory_of(describe(), 2)
        source = near.register_blocks_cache(describe(), addresses(here))
        target = far.register_blocks_cache(describe(), addresses(there))
        with stays(target), fails("LLM_KV_CACHE_NOT_EXIST"):
            near.push_blocks(KEY, source, [0], [0])
        with moves(source) as expected:
            expected[:, 3] = content(target)[:, 0]
            near.pull_blocks(row(target), source, [], [3])


class TestOrder:
    @BOTH_VERBS
    def test_types_come_before_what_they_hold(self, ends: Ends, verb: str) -> None:
        call = getattr(ends.open(NEAR).manager, verb)
        wrong_keys = {"cache_keys": 1} if verb == "register_cache" else {"blocks_cache_key": 1}
        for arguments, keywords, says in (
            ((1, 1), {}, "cache_desc"),
            ((describe(0), 1), wrong_keys, "addrs"),
            ((describe(0), []), wrong_keys, next(iter(wrong_keys))),
            ((describe(0), []), {"remote_accessible": 1}, "remote_accessible"),
        ):
            with answers(TypeError, says):
                call(*arguments, **keywords)


class TestUnregister:
    @pytest.mark.parametrize(("cache_id", "kind"), wrong_ints("int64"))
    def test_an_id_is_an_int64(self, ends: Ends, cache_id: Any, kind: type[Exception]) -> None:
        with answers(kind, "cache_id"):
            ends.open(NEAR).manager.unregister_cache(cache_id)

    @pytest.mark.parametrize("cache_id", [0, -1, 77, 2**63 - 1])
    def test_an_unknown_id_is_no_error(self, ends: Ends, cache_id: int) -> None:
        assert ends.open(NEAR).manager.unregister_cache(cache_id) is None

    @pytest.mark.parametrize("is_allocated", [True, False])
    def test_the_cache_and_its_keys_are_gone(self, ends: Ends, is_allocated: bool) -> None:
        near, far = linked(ends, one_sided=False)
        kept = memory_of(describe())
        key, target = CacheKey(0, 5), rows_at(near, 1)
        make = (far.allocate_cache, describe()) if is_allocated else (far.register_cache, describe(), addresses(kept))
        cache = make[0](*make[1:], [key])
        assert far.unregister_cache(cache.cache_id) is None
        assert deviates("addresses_end_with_the_memory")
        assert cache.tensor_addrs == ([] if is_allocated else addresses(kept))
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            cache.numpy(0)
        for name in (CacheKey(FAR, 5), row(cache)):
            with fails("LLM_KV_CACHE_NOT_EXIST"):
                near.pull_cache(name, target)
        far.allocate_cache(describe(), [key])
        assert far.unregister_cache(cache.cache_id) is None


def test_native_caches_hold_buffers_and_keep_them(ends: Ends) -> None:
    manager = ends.open(NEAR).manager
    tensor = np.zeros((8, 16), np.uint8)
    if ends.face == "drop_in":
        with answers(TypeError, "addrs"):
            manager.register_cache(describe(1), [tensor])
        return
    assert deviates("buffers_are_registered")
    cache = manager.register_cache(describe(1), [tensor])
    assert cache.tensor_addrs == [tensor.ctypes.data]
    watch = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert watch() is not None
    manager.unregister_cache(cache.cache_id)
    gc.collect()
    assert watch() is None


def test_an_address_0_is_refused_whether_peers_may_reach_it_or_not(ends: Ends) -> None:
    assert deviates("null_address")
    with invalid("addrs[0] is 0"):
        ends.open(NEAR).manager.register_blocks_cache(describe(1), [0], remote_accessible=False)
