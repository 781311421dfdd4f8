"""A death, seen by Ray or not, reaches who has a link to the dead at once; who only seems dead is left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import SchedulerSettings
from ray_kvfabric.control.directory import Mark, mark
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import EndpointInfo, HostId
from tests.integration.conftest import config, desc, eventually

pytestmark = pytest.mark.ray

PROCESS_S = 2.0
NODE_S = 10.0
NEVER = 60.0


@pytest.fixture
def patient(ray_cluster: str) -> Iterator[Fabric]:
    """A fabric whose polls and leases are longer than any of these tests: what they see was told, not asked for."""
    settings = SchedulerSettings(lease_s=3 * NEVER, poll_s=NEVER)
    with Fabric.connect(config=config(scheduler=settings)) as opened:
        yield opened


class Told:
    """What a manager is told of the end of peers, and when."""

    def __init__(self, manager: CacheManager) -> None:
        self.at: dict[Mark, float] = {}
        self.reasons: dict[Mark, str] = {}
        self._end = manager.peer_ended
        manager.peer_ended = self._note  # type: ignore[method-assign]

    def _note(self, cluster_id: int, incarnation: int, reason: str) -> None:
        self._end(cluster_id, incarnation, reason)
        self.at.setdefault((cluster_id, incarnation), time.monotonic())
        self.reasons[cluster_id, incarnation] = reason


@contextmanager
def survivor(fabric: Fabric, cluster_id: int, *targets: int) -> Iterator[tuple[CacheManager, Told]]:
    """This process as an endpoint with a link to each target."""
    with fabric.join(cluster_id) as manager:
        told = Told(manager)
        cache = manager.allocate_blocks_cache(desc(), BlocksCacheKey(cluster_id))
        for target in targets:
            manager.push_blocks(BlocksCacheKey(target), cache, [0], [0])
        yield manager, told


def worker_with_cache(fabric: Fabric, cluster_id: int, **options: Any) -> EndpointInfo:
    fabric.add_workers(cluster_id, **options)
    fabric.allocate_blocks_cache(cluster_id, desc(), BlocksCacheKey(cluster_id))
    return endpoint_of(fabric, cluster_id)


def endpoint_of(fabric: Fabric, cluster_id: int) -> EndpointInfo:
    return next(each.endpoint for each in fabric.members() if each.endpoint.cluster_id == cluster_id)


def sigkill(fabric: Fabric, victim: EndpointInfo) -> None:
    os.kill(victim.pid, signal.SIGKILL)


def ray_kill(fabric: Fabric, victim: EndpointInfo) -> None:
    ray.kill(fabric.worker(victim.cluster_id))


@pytest.mark.parametrize("kill", [sigkill, ray_kill])
def test_the_death_of_a_worker_reaches_its_peers_at_once(patient: Fabric, kill: Callable[..., None]) -> None:
    victim, other = worker_with_cache(patient, 1), worker_with_cache(patient, 2)
    with survivor(patient, 3, 1, 2) as (manager, told):
        start = time.monotonic()
        kill(patient, victim)
        eventually(lambda: mark(victim) in told.at, PROCESS_S, "the survivor is told")
        print(f"told {told.at[mark(victim)] - start:.3f} s after {kill.__name__}")
        assert "died" in told.reasons[mark(victim)]
        eventually(lambda: mark(victim) not in manager.peers_in_use(), PROCESS_S, "its links are gone")
        assert set(told.at) == {mark(victim)}
        assert mark(other) in manager.peers_in_use()


def test_who_leaves_is_told_of_as_well(patient: Fabric) -> None:
    with survivor(patient, 3) as (_, told):
        with patient.join(4) as leaver:
            gone = mark(leaver.endpoint)
        eventually(lambda: gone in told.at, PROCESS_S, "the survivor is told")
        assert "left" in told.reasons[gone]


@pytest.mark.slow
def test_a_death_while_there_is_no_scheduler_is_told_by_the_next(fabric: Fabric) -> None:
    victim, other = worker_with_cache(fabric, 1), worker_with_cache(fabric, 2)
    with survivor(fabric, 3) as (manager, told):
        manager.peers_in_use = lambda: (mark(victim), mark(other))  # type: ignore[method-assign]  # as after a grant
        os.kill(int(fabric.status()["scheduler"]["pid"]), signal.SIGKILL)  # type: ignore[index]
        os.kill(victim.pid, signal.SIGKILL)
        eventually(lambda: mark(victim) in told.at, 15, "the survivor is told")
        assert mark(other) not in told.at


def test_a_worker_that_stands_still_is_not_told_dead(fabric: Fabric) -> None:
    sleeper = worker_with_cache(fabric, 1)
    with survivor(fabric, 3, 1) as (_, told):
        os.kill(sleeper.pid, signal.SIGSTOP)
        time.sleep(1.5)  # half a lease
        os.kill(sleeper.pid, signal.SIGCONT)
        time.sleep(1.0)
        assert not told.at
        assert mark(endpoint_of(fabric, 1)) == mark(sleeper)


class Far(CacheWorker):
    """Announced as one of another host: nobody here can look at its process."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        far = replace(self.manager.endpoint, host=HostId("another boot", 1, 0))
        self.manager._directory.announce(far, Deadline.after(20))


@dataclass(frozen=True)
class DoomedNode:
    """One more Ray node, with a resource that no other has."""

    resource: str
    raylet: psutil.Process


@pytest.fixture
def doomed(ray_cluster: str) -> Iterator[DoomedNode]:
    resource = f"doomed-{uuid.uuid4().hex}"
    command = [Path(sysconfig.get_path("scripts")) / "ray", "start", f"--address={ray_cluster}", "--block"]
    limits = ["--num-cpus=1", "--object-store-memory=100000000", f"--resources={json.dumps({resource: 1})}"]
    starter = subprocess.Popen([*command, *limits], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    try:
        eventually(lambda: resource in ray.cluster_resources(), 30, "the node is there")
        children = psutil.Process(starter.pid).children(recursive=True)
        yield DoomedNode(resource, next(each for each in children if each.name() == "raylet"))
    finally:
        starter.kill()
        starter.wait(10)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("worker_class", [CacheWorker, Far])
def test_the_death_of_a_node_reaches_its_peers(
    patient: Fabric, doomed: DoomedNode, worker_class: type[CacheWorker]
) -> None:
    group = {"name": "doomed", "first_cluster_id": 1, "num_cpus": 0, "resources": {doomed.resource: 1}}
    patient.add_workers(*config(groups=[group]).groups, worker_class=worker_class)
    victim = endpoint_of(patient, 1)
    with survivor(patient, 3) as (_, told):
        start = time.monotonic()
        doomed.raylet.kill()
        eventually(lambda: mark(victim) in told.at, NODE_S, "the survivor is told")
        print(f"told {told.at[mark(victim)] - start:.3f} s after the raylet of {worker_class.__name__} was killed")
        assert [each.endpoint.cluster_id for each in patient.members()] == [3]
