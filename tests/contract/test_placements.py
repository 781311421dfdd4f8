"""Which placements meet in a pull of request mode, and what pools that takes (contract 10.7)."""

from __future__ import annotations

from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import FAR, KEY, NEAR, blocks_at, fails, moves, row, rows_at, stays
from tests.contract.world import Ends, content


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
