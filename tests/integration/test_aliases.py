"""Aliases, "ip:port" names of endpoints, through Ray: found, refused, freed by a death, learnt again."""

from __future__ import annotations

import os
import select
import signal

import pytest
import ray

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import AliasTaken, NotLinked
from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import desc

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Listener:
    def __init__(self, fabric: str, cluster_id: int, alias: str) -> None:
        self.manager = Fabric.connect(fabric).join(cluster_id)
        self.manager.listen(alias)

    def pid(self) -> int:
        return os.getpid()


def test_an_endpoint_is_found_under_its_alias_until_it_gives_it_up(fabric) -> None:
    deadline = Deadline.after(30)
    with fabric.join(1) as one, fabric.join(2) as two:
        one.listen("10.0.0.1:26000")
        assert two.find_alias("10.0.0.1:26000", deadline) == one.endpoint
        assert two.find_alias("0.0.0.0:26000", deadline).alias == "10.0.0.1:26000"
        with pytest.raises(AliasTaken, match=r"alias 10\.0\.0\.1:26000 belongs to the live endpoint 1"):
            two.listen("0.0.0.0:26000")
        one.listen("")
        two.listen("0.0.0.0:26000")
        assert one.find_alias("10.0.0.1:26000", deadline).cluster_id == 2


def kill_and_wait(pid: int) -> None:
    """Until the process has ended: it dies some time after the signal was sent."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_the_alias_of_an_endpoint_that_died_is_free_at_once(fabric, ray_cluster) -> None:
    dying = Listener.remote(fabric.name, 1, "10.0.0.1:26000")
    pid = ray.get(dying.pid.remote(), timeout=60)
    with fabric.join(2) as manager:
        with pytest.raises(AliasTaken):
            manager.listen("10.0.0.1:26000")
        kill_and_wait(pid)
        manager.listen("10.0.0.1:26000")
        assert [member.endpoint.cluster_id for member in fabric.members()] == [2]


def test_an_actor_keeps_its_calls_after_it_was_refused_an_alias(fabric) -> None:
    [worker] = fabric.add_workers(1)
    ref = fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
    with fabric.join(2) as manager:
        manager.listen("10.0.0.1:26000")
        # workers have no verb for it: a subclass would call its manager
        refusal = worker.__ray_call__.remote(lambda self: self.manager.listen("10.0.0.1:26000"))
        with pytest.raises(AliasTaken):
            ray.get(refusal, timeout=30)
        manager.allocate_blocks_cache(desc(), BlocksCacheKey(2))
        fabric.push_blocks(BlocksCacheKey(2), ref, [0], [0])


def test_a_restarted_scheduler_learns_the_aliases_again(fabric) -> None:
    with fabric.join(1) as one, fabric.join(2) as two:
        one.listen("10.0.0.1:26000")
        os.kill(fabric.status()["scheduler"]["pid"], signal.SIGKILL)
        assert two.find_alias("10.0.0.1:26000", Deadline.after(30)) == one.endpoint
        one.listen("10.0.0.1:26001")
        with pytest.raises(NotLinked):
            two.find_alias("10.0.0.1:26000", Deadline.after(30))
