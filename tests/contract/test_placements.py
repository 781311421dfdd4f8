"""Which placements meet in a pull of request mode, and what pools that takes (contract 10.7)."""

from __future__ import annotations

from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey
from ray_kvfabric.integrations.llm_datadist import _options
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    FAR,
    KEY,
    NEAR,
    addresses,
    blocks_at,
    fails,
    memory_of,
    moves,
    row,
    rows_at,
    stays,
)
from tests.contract.world import Ends, content, describe


def pair(ends: Ends, *, one_sided: bool = False, near_pool: bool = True, far_pool: bool = True) -> tuple[Any, Any]:
    near = ends.open(NEAR, one_sided=one_sided, device_pool=near_pool)
    far = ends.open(FAR, one_sided=one_sided, device_pool=far_pool)
    ends.link(near, far)
    return near.manager, far.manager


@pytest.mark.parametrize("kind", ["blocks", "rows"])
@pytest.mark.parametrize("placements", [("DEVICE", "DEVICE"), ("DEVICE", "HOST"), ("HOST", "DEVICE")])
def test_they_meet_with_pools_on_both_sides(ends: Ends, placements: tuple[str, str], kind: str) -> None:
    near, far = pair(ends)
    make = blocks_at if kind == "blocks" else rows_at
    source, target = make(far, 1, placement=placements[0]), make(near, 2, placement=placements[1])
    with moves(target, source) as expected:
        if kind == "blocks":
            expected[:, 1] = content(source)[:, 0]
            near.pull_blocks(BlocksCacheKey(FAR), target, [0], [1])
        else:
            expected[:, 0] = content(source)[:, 0]
            near.pull_cache(row(source), target)


@pytest.mark.parametrize("placements", [("DEVICE", "HOST"), ("HOST", "DEVICE"), ("HOST", "HOST")])
@pytest.mark.parametrize("kind", ["blocks", "rows"])
def test_a_push_asks_for_no_pool_of_the_other_placement(ends: Ends, placements: tuple[str, str], kind: str) -> None:
    here, there = placements
    near, far = pair(ends, one_sided=True, near_pool=here == "DEVICE", far_pool=there == "DEVICE")
    make = blocks_at if kind == "blocks" else rows_at
    source, target = make(near, 1, placement=here), make(far, 2, placement=there)
    with moves(target, source) as expected:
        if kind == "blocks":
            expected[:, 1] = content(source)[:, 0]
            near.push_blocks(KEY, source, [0], [1])
        else:
            expected[:, 3] = content(source)[:, 0]
            near.push_cache(row(target, 3), source)


@pytest.mark.parametrize("is_push", [True, False])
def test_a_peer_s_device_memory_is_not_reached_without_a_device(ends: Ends, is_push: bool) -> None:
    assert deviates("device_caches_need_a_device")
    _options.choose(_options.Options())
    near, far = pair(ends, one_sided=True, near_pool=False, far_pool=False)
    kept = memory_of(describe())
    far.register_blocks_cache(describe(), addresses(kept), BlocksCacheKey(0))
    local = blocks_at(near, 1, None, placement="HOST")
    with stays(local), fails("LLM_LINK_FAILED"):
        (near.push_blocks if is_push else near.pull_blocks)(KEY, local, [0], [0])


def test_request_mode_serves_blocks_that_are_not_remote_accessible(ends: Ends) -> None:
    near, far = pair(ends)
    kept = memory_of(describe())
    source = far.register_blocks_cache(describe(), addresses(kept), BlocksCacheKey(0), False)
    target = near.register_blocks_cache(describe(), addresses(memory := memory_of(describe(), 2)), None, False)
    with moves(target, source) as expected:
        expected[:, 1] = content(source)[:, 0]
        near.pull_blocks(KEY, target, [0], [1])
    assert memory


def test_two_hosts_do_not_meet(ends: Ends) -> None:
    near, far = pair(ends)
    blocks_at(far, 1, placement="HOST")
    target = blocks_at(near, 2, placement="HOST")
    with stays(target), fails("LLM_FEATURE_NOT_ENABLED"):
        near.pull_blocks(KEY, target, [0], [1])


def test_from_device_to_host_takes_a_device_pool_of_the_puller(ends: Ends) -> None:
    near, far = pair(ends, near_pool=False)
    blocks_at(far, 1)
    target = blocks_at(near, 2, placement="HOST")
    with stays(target), invalid("needs a device_pool here"):
        near.pull_blocks(KEY, target, [0], [1])


def test_from_host_to_device_takes_a_device_pool_of_the_owner(ends: Ends) -> None:
    near, far = pair(ends, far_pool=False)
    blocks_at(far, 1, placement="HOST")
    target = blocks_at(near, 2)
    with stays(target), invalid("needs a device_pool there"):
        near.pull_blocks(KEY, target, [0], [1])


def test_from_host_to_device_both_are_blocks_or_neither(ends: Ends) -> None:
    near, far = pair(ends)
    rows_at(far, 1, [5], placement="HOST")
    target = blocks_at(near, 2)
    with stays(target), invalid("the layouts must be equal"):
        near.pull_blocks(CacheKey(FAR, 5), target, [], [1])


def test_from_device_to_host_a_row_becomes_blocks(ends: Ends) -> None:
    near, far = pair(ends)
    source, target = rows_at(far, 1, [5]), blocks_at(near, 2, placement="HOST")
    with moves(target, source) as expected:
        expected[:, 1] = content(source)[:, 0]
        near.pull_blocks(CacheKey(FAR, 5), target, [], [1])


@pytest.mark.parametrize("placements", [("DEVICE", "HOST"), ("HOST", "DEVICE"), ("HOST", "HOST")])
def test_one_sided_mode_asks_for_no_pool(ends: Ends, placements: tuple[str, str]) -> None:
    near, far = pair(ends, one_sided=True, near_pool=placements[1] == "DEVICE", far_pool=placements[0] == "DEVICE")
    source, target = blocks_at(far, 1, placement=placements[0]), blocks_at(near, 2, placement=placements[1])
    with moves(target, source) as expected:
        expected[:, 1] = content(source)[:, 0]
        near.pull_blocks(KEY, target, [0], [1])


def test_a_pool_of_any_size_will_do(ends: Ends) -> None:
    assert deviates("no_staging")
    near = ends.open(NEAR, one_sided=False, device_pool=False, **{"llm.MemPoolConfig": '{"memory_size": 65536}'})
    far = ends.open(FAR, one_sided=False)
    ends.link(near, far)
    source = blocks_at(far.manager, 1, shape=(8, 1 << 16))
    target = blocks_at(near.manager, 2, shape=(8, 1 << 16), placement="HOST")
    with moves(target, source) as expected:
        expected[:, 1:3] = content(source)[:, :2]
        near.manager.pull_blocks(KEY, target, [0, 1], [1, 2])
