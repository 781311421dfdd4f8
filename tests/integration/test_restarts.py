"""A worker that Ray restarts comes back under its cluster_id; its neighbours go on, and stale handles are refused."""

from __future__ import annotations

import os
import signal
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import ActorUnavailableError

from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.errors import StaleIncarnation
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import CacheRef, EndpointInfo
from tests.integration.conftest import BLOCKS, config, desc, eventually, read, scramble

pytestmark = pytest.mark.ray

RESTARTED, NEIGHBOUR = 1, 2
RESTARTS = 3
LAYOUT = {"num_tensors": 4, "shape": [BLOCKS, 256], "data_type": "DT_FLOAT"}  # as `desc` has it


class Neighbour(CacheWorker):
    """Pushes from inside, as a model server does."""

    def push(self, cache_id: int, block: int) -> None:
        self.manager.push_blocks(BlocksCacheKey(RESTARTED), self.manager.cache(cache_id), [block], [block])


class Stage(NamedTuple):
    fabric: Fabric
    source: CacheRef  # of the neighbour

    def target(self) -> CacheRef:
        """The cache that the restarted worker has now."""
        return next(ref for ref in self.fabric.caches() if ref.cluster_id == RESTARTED)

    def restarted(self) -> EndpointInfo:
        return next(each.endpoint for each in self.fabric.members() if each.endpoint.cluster_id == RESTARTED)

    def kill_and_await(self) -> EndpointInfo:
        """The next incarnation, once it is announced with its cache."""
        before = self.restarted()
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda: self._is_back(before), 30, "the next incarnation has its cache")
        return self.restarted()

    def _is_back(self, before: EndpointInfo) -> bool:
        incarnations = {ref.incarnation for ref in self.fabric.caches() if ref.cluster_id == RESTARTED}
        return bool(incarnations) and before.incarnation not in incarnations

    def await_calls(self) -> None:
        """Until calls of this process reach the next incarnation: Ray learns of it later than the fabric."""
        eventually(lambda: _answers(self.fabric.worker(RESTARTED)), 10, "the next incarnation answers")

    def push_from_inside(self, block: int) -> None:
        ray.get(self.fabric.worker(NEIGHBOUR).push.remote(self.source.cache_id, block), timeout=30)


@pytest.fixture
def stage(fabric: Fabric) -> Stage:
    """Worker 1 allocates its cache by itself at each start; worker 2 is never restarted."""
    group = {"name": "restarted", "first_cluster_id": RESTARTED, "num_cpus": 0, "caches": [LAYOUT]}
    fabric.add_workers(*config(groups=[group]).groups, max_restarts=-1)
    fabric.add_workers(NEIGHBOUR, worker_class=Neighbour)
    source = fabric.allocate_blocks_cache(NEIGHBOUR, desc(), BlocksCacheKey(NEIGHBOUR))
    scramble(fabric, source)
    return Stage(fabric, source)


class Footprint(NamedTuple):
    descriptors: int
    rss: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        process = psutil.Process(pid)
        return cls(process.num_fds(), process.memory_info().rss)


def restart_and_push(stage: Stage, number: int) -> None:
    """The first push after each restart succeeds, from inside and from outside."""
    inside, outside = 2 * number % BLOCKS, (2 * number + 1) % BLOCKS
    stage.kill_and_await()
    stage.push_from_inside(inside)
    stage.fabric.push_blocks(BlocksCacheKey(RESTARTED), stage.source, [outside], [outside])
    stage.await_calls()
    there, here = (read(stage.fabric, ref, [inside, outside]) for ref in (stage.target(), stage.source))
    assert np.array_equal(there, here)


def check_footprint(pid: int, before: Footprint, restarts: int) -> None:
    """Ray itself lets go of a connection to a dead worker only after a while."""
    now = Footprint.of(pid)
    print(f"{restarts} restarts: {before} -> {now}")
    assert now.descriptors <= before.descriptors + 12
    assert now.rss <= before.rss + (16 << 20)


def test_neighbours_go_on_through_restarts_and_grow_nothing(stage: Stage) -> None:
    neighbour = next(each.endpoint for each in stage.fabric.members() if each.endpoint.cluster_id == NEIGHBOUR)
    restart_and_push(stage, 0)
    before = Footprint.of(neighbour.pid)
    incarnations = {stage.restarted().incarnation}
    for number in range(1, 1 + RESTARTS):
        restart_and_push(stage, number)
        incarnations.add(stage.restarted().incarnation)
    assert len(incarnations) == 1 + RESTARTS
    assert neighbour in [each.endpoint for each in stage.fabric.members()]  # the same process, never restarted
    check_footprint(neighbour.pid, before, RESTARTS)


def test_a_stale_handle_is_refused_with_both_incarnations(stage: Stage) -> None:
    stale = stage.target()
    assert stage.fabric.caches()[stale].cache_id == stale.cache_id
    stage.fabric.push_blocks(BlocksCacheKey(NEIGHBOUR), stale, [0], [0])
    now = stage.kill_and_await()
    both = rf"incarnation {stale.incarnation:016x} of endpoint 1 was replaced by .*incarnation {now.incarnation:016x}"
    with pytest.raises(StaleIncarnation, match=both):
        stage.fabric.push_blocks(BlocksCacheKey(NEIGHBOUR), stale, [0], [0])
    with pytest.raises(StaleIncarnation, match=both):
        stage.fabric.deallocate_blocks_cache(stale)
    stage.await_calls()
    at_the_desk = stage.fabric.worker(RESTARTED).result.remote("a push of before", 1.0, stale.incarnation)
    with pytest.raises(StaleIncarnation, match=both):  # whatever a scheduler lets pass
        ray.get(at_the_desk, timeout=10)
    assert stale not in stage.fabric.caches()
    fresh = stage.target()
    assert (fresh.cluster_id, fresh.cache_id) == (stale.cluster_id, stale.cache_id)
    stage.fabric.push_blocks(BlocksCacheKey(NEIGHBOUR), fresh, [0], [0])
    stage.fabric.push_blocks(BlocksCacheKey(NEIGHBOUR), CacheRef(RESTARTED, fresh.cache_id), [0], [0])
    stage.fabric.deallocate_blocks_cache(fresh)


def _answers(worker: Any) -> bool:
    try:
        return ray.get(worker.ping.remote(), timeout=10) > 0
    except ActorUnavailableError:
        return False
