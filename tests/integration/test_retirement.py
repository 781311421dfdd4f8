"""Detached fabrics that end with their last member, however joining and leaving meet."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.util import list_named_actors

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import config, desc, eventually

pytestmark = pytest.mark.ray


def connect(settings: FabricConfig) -> Fabric:
    return Fabric.connect(settings.name, config=settings)


def actors_of(fabric: Fabric) -> list[str]:
    named = list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["name"].startswith(f"kvfabric:{fabric.name}:")]


@pytest.fixture
def detached(ray_cluster) -> FabricConfig:
    return config(lifetime="detached")


def test_the_last_member_takes_the_fabric_with_it(detached) -> None:
    fabric = connect(detached)
    manager = fabric.join(1)
    assert fabric.retire() is False
    manager.close()
    assert fabric.retire() is True
    assert actors_of(fabric) == []
    assert fabric.retire() is False  # there is none


def test_while_a_member_is_left_the_fabric_goes_on(detached) -> None:
    fabric, other = connect(detached), connect(detached)
    leaving, staying = fabric.join(1), other.join(2)
    leaving.close()
    assert fabric.retire() is False
    cache = staying.allocate_blocks_cache(desc(), BlocksCacheKey(2))
    with fabric.join(3) as late:
        source = late.allocate_blocks_cache(desc())
        source.numpy(0)[1] = 7
        late.push_blocks(BlocksCacheKey(2), source, [1], [2])
    assert (cache.numpy(0)[2] == 7).all()
    other.close()
    assert other.retire() is True


def test_joining_a_retired_fabric_starts_it_anew(detached) -> None:
    fabric, other = connect(detached), connect(detached)
    assert fabric.retire() is True
    for each, cluster_id in ((other, 1), (fabric, 2)):
        each.join(cluster_id)
    assert [member.endpoint.cluster_id for member in fabric.members()] == [1, 2]
    fabric.close()
    other.close()
    assert fabric.retire() is True
    assert actors_of(fabric) == []


def test_a_fabric_whose_retirer_dies_ends_all_the_same(detached) -> None:
    fabric = connect(detached)
    scheduler = ray.get_actor(f"kvfabric:{fabric.name}:scheduler")
    assert ray.get(scheduler.retire.remote(), timeout=30) is True  # and nothing else is done about it
    with fabric.join(1):
        assert len(fabric.members()) == 1
    eventually(lambda: fabric.retire() or not actors_of(fabric), 10, "the second one ends too")
    assert actors_of(fabric) == []


def test_a_restarted_scheduler_does_not_retire_under_members_that_come_back(detached) -> None:
    fabric = connect(detached)
    with fabric.join(1):
        os.kill(fabric.status()["scheduler"]["pid"], signal.SIGKILL)
        assert fabric.retire() is False
        assert len(fabric.members()) == 1
    assert fabric.retire() is True


def test_whoever_comes_and_goes_always_finds_a_fabric_and_the_last_ends_it(detached) -> None:
    def visit(cluster_id: int) -> int:
        fabric = connect(detached)
        for _ in range(6):
            with fabric.join(cluster_id) as manager:
                manager.allocate_blocks_cache(desc(), BlocksCacheKey(cluster_id))
                assert manager.find_endpoint(cluster_id, Deadline.after(20)) == manager.endpoint
            fabric.retire()
        return cluster_id

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(visit, range(3))) == [0, 1, 2]
    fabric = Fabric(detached)
    assert actors_of(fabric) == []
