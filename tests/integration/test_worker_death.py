"""SIGKILL of a worker: a typed error for who pushes, nothing left behind, and the others go on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from ray.util import list_named_actors

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.errors import NotLinked, PeerLost
from tests.integration.conftest import BLOCKS, desc, eventually, pair, read, shm_names

pytestmark = pytest.mark.ray


@pytest.fixture
def trio(fabric):
    """Source 1, targets 2 and 3, all linked."""
    source, target = pair(fabric)
    fabric.add_workers(3)
    other = fabric.allocate_blocks_cache(3, desc(), BlocksCacheKey(3))
    for cluster_id in (2, 3):
        fabric.push_blocks(BlocksCacheKey(cluster_id), source, [0], [0])
    return source, target, other


def pid_of(fabric, cluster_id: int) -> int:
    return next(each.endpoint.pid for each in fabric.members() if each.endpoint.cluster_id == cluster_id)


def mapped_memfds() -> int:
    return sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_dead_target_is_a_typed_error_and_leaves_nothing(fabric, trio) -> None:
    source, _, other = trio
    in_shm, target_pid = shm_names(), pid_of(fabric, 2)
    os.kill(target_pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(target_pid), 10, "the process is gone")

    with pytest.raises((PeerLost, NotLinked)):
        fabric.push_blocks(BlocksCacheKey(2), source, [0], [0])
    eventually(lambda: [each.endpoint.cluster_id for each in fabric.members()] == [1, 3], 5, "2 is forgotten")
    with pytest.raises(NotLinked, match="cluster_id 2; known: 1, 3"):
        fabric.push_blocks(BlocksCacheKey(2), source, [0], [0])
    eventually(lambda: f"kvfabric:{fabric.name}:worker:2" not in list_named_actors(), 5, "its name is free")
    assert shm_names() == in_shm

    fabric.push_blocks(BlocksCacheKey(3), source, [1, 2], [3, 4])
    assert np.array_equal(read(fabric, other, [3, 4]), read(fabric, source, [1, 2]))


def test_a_target_that_dies_under_fire_fails_the_next_push_from_inside(fabric, trio) -> None:
    with fabric.join(7) as here:
        cache = here.allocate_blocks_cache(desc(), BlocksCacheKey(7))
        everything = list(range(BLOCKS))
        here.push_blocks(BlocksCacheKey(2), cache, everything, everything)
        linked = mapped_memfds()
        killer = threading.Timer(0.1, os.kill, (pid_of(fabric, 2), signal.SIGKILL))
        killer.start()
        with pytest.raises((PeerLost, NotLinked)):
            push_for_ever(here, cache)
        killer.join()
        assert mapped_memfds() < linked
        here.push_blocks(BlocksCacheKey(3), cache, everything, everything)


def push_for_ever(manager, cache) -> None:
    everything = list(range(BLOCKS))
    while True:
        manager.push_blocks(BlocksCacheKey(2), cache, everything, everything)


def test_a_dead_source_is_lost_to_who_waits_for_it_and_its_name_can_be_taken(fabric, trio) -> None:
    source, target, _ = trio
    source_pid = pid_of(fabric, 1)
    os.kill(source_pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(source_pid), 10, "the process is gone")
    with pytest.raises((PeerLost, NotLinked)):
        fabric.push_blocks(BlocksCacheKey(2), source, [0], [0])
    eventually(lambda: [each.endpoint.cluster_id for each in fabric.members()] == [2, 3], 5, "1 is forgotten")
    fabric.add_workers(1)
    again = fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
    fabric.push_blocks(BlocksCacheKey(1), target, [0], [0])
    assert np.array_equal(read(fabric, again, [0]), read(fabric, target, [0]))


def test_a_restarted_worker_is_another_incarnation_that_neighbours_reach(fabric) -> None:
    fabric.add_workers(1, max_restarts=1)
    before = fabric.members()[0].endpoint
    os.kill(before.pid, signal.SIGKILL)
    eventually(
        lambda: [each.endpoint.incarnation for each in fabric.members()] not in ([], [before.incarnation]),
        20,
        "the next incarnation is announced",
    )
    now = fabric.members()[0].endpoint.incarnation
    eventually(lambda: answer(fabric.worker(1)) == now, 20, "calls reach the next incarnation")


def answer(worker) -> int | None:
    """The incarnation that answers; None while Ray still looks for the restarted actor."""
    try:
        return ray.get(worker.ping.remote(), timeout=10)
    except RayActorError:
        return None
