"""Allocation, registration and freeing: budget, views, keys, and memory of others."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from ray_kvfabric import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheManager,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.directory import DictDirectory
from tests.unit.conftest import KEY, Two, content, desc, fill

INVALID = LLMStatusCode.LLM_PARAM_INVALID


def open_memfds() -> int:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum("kvfabric-cache" in os.readlink(link) for link in links if os.path.islink(link))


def test_ids_start_at_one_and_are_never_used_again(manager: CacheManager) -> None:
    first, second = (manager.allocate_blocks_cache(desc()) for _ in range(2))
    manager.deallocate_blocks_cache(first)
    assert [first.cache_id, second.cache_id, manager.allocate_blocks_cache(desc()).cache_id] == [1, 2, 3]


def test_the_budget_is_kept_and_given_back(manager: CacheManager) -> None:
    big = desc(1, (48, 1 << 20), "DT_INT8")
    cache = manager.allocate_blocks_cache(big)
    with pytest.raises(LLMException, match=r"mem_pool.memory_size is 67108864 with 50331648 in use") as caught:
        manager.allocate_blocks_cache(big)
    assert caught.value.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
    manager.deallocate_blocks_cache(cache)
    manager.allocate_blocks_cache(big)


def test_a_freed_cache_leaves_no_descriptor_and_no_address(manager: CacheManager) -> None:
    before = open_memfds()
    cache = manager.allocate_blocks_cache(desc())
    assert open_memfds() > before
    manager.deallocate_blocks_cache(cache)
    manager.deallocate_blocks_cache(cache)
    assert open_memfds() == before
    assert cache.tensor_addrs == []
    with pytest.raises(LLMException, match="deallocated"):
        cache.numpy(0)


def test_a_view_outlives_its_cache_as_an_orphan(manager: CacheManager) -> None:
    cache = manager.allocate_blocks_cache(desc())
    view = cache.numpy(0)
    view[:] = 3
    manager.deallocate_blocks_cache(cache)
    gc.collect()
    assert (view == 3).all()


def test_numpy_and_torch_see_the_same_bytes(manager: CacheManager) -> None:
    cache = manager.allocate_blocks_cache(desc(kind="DT_BF16"))
    tensor = cache.torch(1)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.bfloat16, (8, 16))
    tensor[2, 3] = 1.5
    assert cache.numpy(1)[2, 3] == 0x3FC0
    assert tensor.data_ptr() == cache.tensor_addrs[1]


def test_tensors_do_not_overlap_and_start_on_pool_pages(manager: CacheManager) -> None:
    cache = manager.allocate_blocks_cache(desc(5, (3, 7), "DT_INT8"))
    assert all(address % 4096 == 0 for address in cache.tensor_addrs)
    fill(cache, 4)
    seen = content(cache)
    assert len({seen[index].tobytes() for index in range(5)}) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((8, 16), np.float16),
        lambda: bytearray(256),
        lambda: torch.zeros(8, 16, dtype=torch.bfloat16),
        lambda: torch.zeros(8, 16, dtype=torch.float16)[0:8],
    ],
    ids=["numpy", "bytearray", "torch bfloat16", "torch view"],
)
def test_memory_of_others_is_registered_in_place_and_kept_alive(two: Two, make: Any) -> None:
    owners = [make() for _ in range(2)]
    target = two.target.register_blocks_cache(desc(2), list(owners), BlocksCacheKey(0, 0))
    source = two.source.allocate_blocks_cache(desc(2))
    fill(source, 3)
    two.source.push_blocks(KEY, source, [1], [7])
    np.testing.assert_array_equal(content(target)[:, 7], content(source)[:, 1])
    if isinstance(owners[0], np.ndarray):
        np.testing.assert_array_equal(owners[1].view(np.uint8)[7], content(source)[1, 1])


def test_a_registered_owner_is_kept_until_it_is_unregistered(manager: CacheManager) -> None:
    class Owner(np.ndarray[Any, Any]):
        pass

    array = np.zeros(128, np.float16).view(Owner)
    watch = weakref.ref(array)
    cache = manager.register_blocks_cache(desc(1), [array])
    del array
    gc.collect()
    assert watch() is not None
    manager.unregister_cache(cache.cache_id)
    del cache
    gc.collect()
    assert watch() is None


READ_ONLY = np.zeros(128, np.float16)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("tensor", "kind", "words"),
    [
        (np.zeros(127, np.float16), LLMException, r"addrs\[0\] holds 254 bytes, cache_desc needs 256"),
        (np.zeros(256, np.float16)[::2], LLMException, r"addrs\[0\] is not contiguous"),
        (torch.zeros(16, 8, dtype=torch.float16).t(), LLMException, r"addrs\[0\] is not contiguous"),
        (bytes(256), LLMException, r"addrs\[0\] is read-only"),
        (READ_ONLY, LLMException, r"addrs\[0\]"),
        ("text", TypeError, r"addrs\[0\]"),
        (None, TypeError, r"addrs\[0\]"),
        (-1, TypeError, r"addrs\[0\]"),
        (0, LLMException, r"addrs\[0\] is 0"),
    ],
)
def test_memory_that_cannot_serve_is_refused_by_position(
    manager: CacheManager, tensor: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        manager.register_blocks_cache(desc(1), [tensor])
    assert manager.caches() == []


def test_a_false_address_is_accepted_and_refused_before_it_is_touched(two: Two) -> None:
    two.target.allocate_blocks_cache(desc(1), BlocksCacheKey(0, 0))
    cache = two.source.register_blocks_cache(desc(1), [1])
    with pytest.raises(LLMException, match="address 0x1") as caught:
        two.source.push_blocks(KEY, cache, [0], [0])
    assert caught.value.status_code is INVALID


def test_a_later_registration_takes_the_key_over(two: Two) -> None:
    source = two.source.allocate_blocks_cache(desc(1))
    fill(source, 2)
    old = two.target.register_blocks_cache(desc(1), [np.zeros(128, np.float16)], BlocksCacheKey(0, 0))
    two.source.push_blocks(KEY, source, [0], [0])
    new = two.target.register_blocks_cache(desc(1), [np.zeros(128, np.float16)], BlocksCacheKey(0, 0))
    two.source.push_blocks(KEY, source, [0], [1])
    assert not content(old)[:, 1].any()
    np.testing.assert_array_equal(content(new)[:, 1], content(source)[:, 0])


def test_allocating_under_a_taken_key_is_refused(manager: CacheManager) -> None:
    manager.allocate_blocks_cache(desc(), BlocksCacheKey(0, 3))
    with pytest.raises(LLMException, match="model_id 3 already names cache 1") as caught:
        manager.allocate_blocks_cache(desc(), BlocksCacheKey(0, 3))
    assert caught.value.status_code is INVALID


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (CacheDesc(0, (8, 16), DataType.DT_INT8, Placement.HOST), "num_tensors"),
        (CacheDesc(1, (0, 16), DataType.DT_INT8, Placement.HOST), "dimension"),
        (CacheDesc(1, (1,) * 32, DataType.DT_INT8, Placement.HOST), "31 dimensions"),
        (CacheDesc(1, (2**40, 2**40), DataType.DT_INT8, Placement.HOST), "int64"),
        (CacheDesc(1, (8, 16), DataType.DT_INT8), "device_pool"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(manager: CacheManager, made: CacheDesc, words: str) -> None:
    with pytest.raises(LLMException, match=words) as caught:
        manager.allocate_blocks_cache(made)
    assert caught.value.status_code is INVALID


def test_without_a_pool_nothing_is_allocated_or_freed() -> None:
    settings = EndpointSettings(mem_pool=None)
    with CacheManager(1, directory=DictDirectory(), settings=settings) as manager:
        with pytest.raises(LLMException, match="mem_pool") as caught:
            manager.allocate_blocks_cache(desc())
        assert caught.value.status_code is INVALID
        cache = manager.register_blocks_cache(desc(1), [np.zeros(128, np.float16)])
        with pytest.raises(LLMException, match="mem_pool") as caught:
            manager.deallocate_blocks_cache(cache)
        assert caught.value.status_code is LLMStatusCode.LLM_FEATURE_NOT_ENABLED


def test_copy_blocks_copies_each_source_to_each_listed_block(manager: CacheManager) -> None:
    cache = manager.allocate_blocks_cache(desc())
    fill(cache, 6)
    expected = content(cache)
    expected[:, [3, 4]] = expected[:, [0]]
    expected[:, 5] = expected[:, 1]
    manager.copy_blocks(cache, {0: [3, 4], 1: [5]})
    np.testing.assert_array_equal(content(cache), expected)
    manager.copy_blocks(cache, {})


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        (None, TypeError),
        ({0: (1,)}, TypeError),
        ({0: [-1]}, TypeError),
        ({0: [8]}, LLMException),
        ({8: [0]}, LLMException),
    ],
)
def test_copy_blocks_refuses_what_is_outside(manager: CacheManager, info: Any, kind: type[Exception]) -> None:
    cache = manager.allocate_blocks_cache(desc())
    with pytest.raises(kind):
        manager.copy_blocks(cache, info)


@pytest.fixture
def emulating() -> Any:
    pool = {"memory_size": "64MiB"}
    settings = EndpointSettings.model_validate({"emulated_device": "host", "mem_pool": pool, "device_pool": pool})
    with CacheManager(1, directory=DictDirectory(), settings=settings) as manager:
        yield manager


def test_swap_blocks_copies_one_way_between_host_and_device(emulating: CacheManager) -> None:
    host = emulating.allocate_blocks_cache(desc())
    device = emulating.allocate_blocks_cache(CacheDesc(4, (8, 16), DataType.DT_FLOAT16))
    fill(host, 1)
    fill(device, 2)
    before, expected = content(host), content(device)
    expected[:, [7, 6]] = before[:, [0, 1]]
    emulating.swap_blocks(host, device, {0: 7, 1: 6})
    np.testing.assert_array_equal(content(device), expected)
    np.testing.assert_array_equal(content(host), before)


def test_swap_blocks_takes_cpu_caches_and_refuses_two_hosts(emulating: CacheManager) -> None:
    device = emulating.allocate_blocks_cache(CacheDesc(1, (8, 16), DataType.DT_FLOAT16))
    fill(device, 2)
    array = np.zeros((8, 16), np.float16)
    cpu = Cache.create_cpu_cache(desc(1), [array.ctypes.data])
    emulating.swap_blocks(device, cpu, {3: 0})
    np.testing.assert_array_equal(array.view(np.uint8)[0], content(device)[0, 3])
    with pytest.raises(LLMException, match="one cache must be HOST") as caught:
        emulating.swap_blocks(cpu, cpu, {0: 1})
    assert caught.value.status_code is INVALID


def test_status_lists_what_there_is(two: Two) -> None:
    source = two.source.allocate_blocks_cache(desc())
    two.target.allocate_blocks_cache(desc(), BlocksCacheKey(0, 0))
    two.source.push_blocks(KEY, source, [0], [1])
    status: Any = two.source.status()
    assert status["links"][0] | {"alive": True} == {
        "to": 2, "transport": "loopback", "alive": True, "bytes_pushed": 128, "bytes_pulled": 0,
        "device_bytes": 0,
    }  # fmt: skip
    assert status["counters"] == {"bytes_pushed/loopback": 128, "transfers_landed": 1}
    assert status["caches"][0]["fabric_memory"] is True
    assert repr(two.source) == "<CacheManager 1 open: 1 caches, 1 links>"
