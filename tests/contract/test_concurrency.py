"""Transfers beside each other and beside freeing (contract 10.3, 10.4, 10.6, 12.3)."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid
from tests.contract.instances import Background, Hold
from tests.contract.moves import FAR, KEY, NEAR, addresses, blocks_at, fails, linked, memory_of, moves, row, rows_at
from tests.contract.world import Ends, MemoryWorld, content, describe


@pytest.mark.parametrize("verb", ["push_blocks", "pull_blocks", "push_cache", "pull_cache"])
@pytest.mark.parametrize("one_sided", [True, False])
def test_the_time_limit_is_the_call_s(ends: Ends, world: MemoryWorld, verb: str, one_sided: bool) -> None:
    assert deviates("limit_of_the_whole_call")
    if verb.startswith("push") and not one_sided:
        return
    near, far = linked(ends, one_sided=one_sided, **{"llm.SyncKvCacheWaitTime": "50"})
    blocks, rows = blocks_at(near, 1, None), rows_at(near, 1)
    blocks_at(far, 2)
    there = rows_at(far, 2)
    resolve = world.directory.resolve

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return resolve(*arguments)

    world.directory.resolve = slow  # type: ignore[method-assign]
    calls = {
        "push_blocks": lambda: near.push_blocks(KEY, blocks, [0], [0]),
        "pull_blocks": lambda: near.pull_blocks(KEY, blocks, [0], [0]),
        "push_cache": lambda: near.push_cache(row(there), rows),
        "pull_cache": lambda: near.pull_cache(row(there), rows),
    }
    with fails("LLM_TIMEOUT"):
        calls[verb]()


@pytest.mark.parametrize("is_push", [True, False])
@pytest.mark.parametrize("kind", ["blocks", "rows"])
def test_memory_is_given_back_after_the_transfers_of_its_own_endpoint(
    ends: Ends, world: MemoryWorld, is_push: bool, kind: str
) -> None:
    near, far = linked(ends, **{"llm.SyncKvCacheWaitTime": "20000"})
    memory = memory_of(describe())
    if kind == "blocks":
        local = near.register_blocks_cache(describe(), addresses(memory), None, True)
        there = blocks_at(far, 2)
        verb = near.push_blocks if is_push else near.pull_blocks
        call = partial(verb, KEY, local, [0], [1])
    else:
        local = near.register_cache(describe(), addresses(memory), (), True)
        there = rows_at(far, 2)
        verb = near.push_cache if is_push else near.pull_cache
        call = partial(verb, row(there, 1), local)
    hold = Hold(world)
    moving = Background(call)
    assert hold.came.wait(5)
    freeing = Background(lambda: near.unregister_cache(local.cache_id))
    assert freeing.lasts(0.1)
    hold.release()
    moving.result()
    freeing.result()
    with fails("LLM_KV_CACHE_NOT_EXIST"):
        call()


@pytest.mark.parametrize("is_push", [True, False])
def test_a_peer_s_memory_that_is_not_mapped_is_no_end_of_the_process(ends: Ends, is_push: bool) -> None:
    assert deviates("unmapped_addresses")
    near, far = linked(ends)
    far.register_blocks_cache(describe(), [1, 4096, 8192, 12288], BlocksCacheKey(0), True)
    local = blocks_at(near, 1, None)
    with invalid("address 0x1"):
        (near.push_blocks if is_push else near.pull_blocks)(KEY, local, [0], [0])


@pytest.mark.parametrize("is_freed", [True, False])
def test_keys_that_are_used_up_at_once_are_all_gone(ends: Ends, world: MemoryWorld, is_freed: bool) -> None:
    near, far = linked(ends, one_sided=False, **{"llm.SyncKvCacheWaitTime": "20000"})
    source, targets = rows_at(far, 1, [5, 6]), [rows_at(near, seed) for seed in (2, 3)]
    if is_freed:
        far.deallocate_cache(source)
    publish, inside, go = world.directory.publish, threading.Event(), threading.Event()

    def hold_first(*arguments: Any) -> None:
        if not inside.is_set():
            inside.set()
            assert go.wait(10)
        publish(*arguments)

    world.directory.publish = hold_first  # type: ignore[method-assign]
    first = Background(lambda: near.pull_cache(CacheKey(FAR, 5), targets[0]))
    assert inside.wait(5)
    second = Background(lambda: near.pull_cache(CacheKey(FAR, 6), targets[1]))
    assert second.lasts(0.1)
    go.set()
    first.result()
    second.result()
    for number in (5, 6):
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            near.pull_cache(CacheKey(FAR, number), targets[0])
    newer = rows_at(far, 4, [6])
    with moves(targets[0]) as expected:
        expected[:, 0] = content(newer)[:, 0]
        near.pull_cache(CacheKey(FAR, 6), targets[0])


def test_layers_that_threads_pull_side_by_side_use_a_key_up_together(ends: Ends) -> None:
    assert deviates("pulls_side_by_side")
    near, far = linked(ends, one_sided=False, **{"llm.SyncKvCacheWaitTime": "20000"})
    for number in range(20):
        _pull_layers(near, far, number)


def _pull_layers(near: Any, far: Any, number: int) -> None:
    source, target = rows_at(far, number + 1, [number], num_tensors=6), rows_at(near, 99, num_tensors=6)
    key = CacheKey(FAR, number)
    layers = [{"src_layer_range": range(each, each + 1), "dst_layer_range": range(each, each + 1)} for each in range(3)]
    with moves(target, source) as expected:
        expected[:, 2] = content(source)[:, 0]
        for call in [Background(lambda given=given: near.pull_cache(key, target, 2, **given)) for given in layers]:
            call.result()
    with fails("LLM_KV_CACHE_NOT_EXIST"):
        near.pull_cache(key, target)
    far.deallocate_cache(source)
    near.deallocate_cache(target)


def test_of_several_mistakes_the_one_of_the_peer_is_said(ends: Ends) -> None:
    assert deviates("local_checks_with_the_peer_s")
    near, far = linked(ends)
    closed = near.register_blocks_cache(describe(), addresses(memory := memory_of(describe())), None, False)
    rows_at(far, 2)
    with fails("LLM_KV_CACHE_NOT_EXIST"):
        near.push_blocks(BlocksCacheKey(FAR, 9), closed, [0], [0])
    with fails("LLM_NOT_YET_LINK"):
        near.pull_cache(CacheKeyByIdAndIndex(99, 1), rows_at(near, 1), 99)
    assert memory


def test_layers_beyond_the_local_cache_are_said_before_the_link(ends: Ends) -> None:
    near = ends.open(NEAR).manager
    with invalid("dst_layer_range"):
        near.pull_blocks(BlocksCacheKey(99), blocks_at(near, 1), [0], [0], dst_layer_range=range(9, 10))


@pytest.mark.parametrize("cache_id", [0, -1])
def test_the_fall_through_of_a_pull_by_id_has_no_other_rows(ends: Ends, cache_id: int) -> None:
    """It names the blocks cache of model 0, which is one row (contract 10.3)."""
    near, far = linked(ends)
    source, target = blocks_at(far, 1, shape=(2, 8)), rows_at(near, 2, shape=(4, 8))
    with moves(target) as expected:
        expected[:, 0] = content(source)[:, 0]
        near.pull_cache(CacheKeyByIdAndIndex(FAR, cache_id), target, 0)
    with invalid("batch_index is 1"):
        near.pull_cache(CacheKeyByIdAndIndex(FAR, cache_id, 1), target, 0)


@pytest.mark.parametrize("verb", ["push_blocks", "pull_blocks"])
def test_the_largest_index_is_out_of_range_and_no_wrong_type(ends: Ends, verb: str) -> None:
    near, far = linked(ends)
    local = blocks_at(near, 1, None)
    blocks_at(far, 2)
    for sources, targets in (([2**64 - 1], [0]), ([0], [2**63])):
        with invalid("blocks [0, 8)"):
            getattr(near, verb)(KEY, local, sources, targets)
