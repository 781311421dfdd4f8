"""Grants through the front door: given at one worker, used at another, and ended by whatever happens to either."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.errors import (
    EndpointDraining,
    GrantForged,
    GrantIncomplete,
    GrantRevoked,
    LLMException,
    PeerLost,
    StaleIncarnation,
    TransferTimeout,
)
from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import desc, eventually, pair, read

pytestmark = pytest.mark.ray


def grants_of(fabric: Fabric, cluster_id: int) -> dict[str, int]:
    endpoint = fabric.status()["endpoints"][cluster_id]  # type: ignore[index]
    return endpoint["grants"]  # type: ignore[no-any-return]


def pid_of(fabric: Fabric, cluster_id: int) -> int:
    return next(each.endpoint.pid for each in fabric.members() if each.endpoint.cluster_id == cluster_id)


def test_a_grant_travels_through_the_driver_and_comes_back_as_a_receipt(fabric: Fabric) -> None:
    source, target = pair(fabric)
    grant = fabric.grant_blocks(target, [9, 4], request_id="r", verify="crc32c")
    with pytest.raises(GrantForged):
        fabric.push_granted(replace(grant, blocks=(1, 2)), source, [1, 2])
    fabric.push_granted(grant, source, [1, 2])
    receipt = fabric.wait_granted(grant)
    assert (receipt.request_id, receipt.source_cluster_ids, receipt.verified) == ("r", (1,), "crc32c")
    np.testing.assert_array_equal(read(fabric, target, [9, 4]), read(fabric, source, [1, 2]))
    assert grants_of(fabric, 2)["blocks"] == 0


def test_errors_of_the_other_side_arrive_as_they_are(fabric: Fabric) -> None:
    source, target = pair(fabric)
    gap = fabric.grant_blocks(target, [1, 2])
    fabric.push_granted(gap, source, [1])
    with pytest.raises(GrantIncomplete, match="block 2"):
        fabric.wait_granted(gap)
    revoked = fabric.grant_blocks(target, [1, 2])
    fabric.revoke_grant(revoked)
    with pytest.raises(GrantRevoked):
        fabric.push_granted(revoked, source, [1, 2])
    with pytest.raises(TransferTimeout):
        fabric.wait_granted(fabric.grant_blocks(target, [1]), timeout_s=0.2)


def test_a_writers_death_reaches_the_receiver_at_once_and_frees_its_blocks(fabric: Fabric) -> None:
    """One had begun, and one was only named; nobody waits for the third."""
    source, target = pair(fabric)
    begun = fabric.grant_blocks(target, [1, 2], ttl_s=60)
    named = fabric.grant_blocks(target, [3], ttl_s=60, sources=[1])
    fabric.grant_blocks(target, [4], ttl_s=60, sources=[1])
    fabric.push_granted(begun, source, [1], seal=False)
    threading.Timer(0.5, os.kill, (pid_of(fabric, 1), signal.SIGKILL)).start()
    started = time.monotonic()
    for grant in (begun, named):
        with pytest.raises(PeerLost, match="endpoint 1"):
            fabric.wait_granted(grant, timeout_s=30)
    eventually(lambda: grants_of(fabric, 2)["blocks"] == 0, 5, "all granted blocks are free")
    assert time.monotonic() - started < 20


def test_a_grant_of_a_former_life_names_both_incarnations(fabric: Fabric) -> None:
    source, target = pair(fabric)
    grant = fabric.grant_blocks(target, [1])
    os.kill(pid_of(fabric, 2), signal.SIGKILL)
    eventually(lambda: len(fabric.members()) == 1, 10, "the dead worker is forgotten")
    with pytest.raises(LLMException):
        fabric.push_granted(grant, source, [1])
    fabric.add_workers(2)
    again = fabric.allocate_blocks_cache(2, desc(), BlocksCacheKey(2))
    with pytest.raises(StaleIncarnation, match=f"{grant.incarnation:016x}.*{again.incarnation:016x}"):
        fabric.push_granted(grant, source, [1])
    with pytest.raises(StaleIncarnation):
        fabric.wait_granted(grant)
    with pytest.raises(StaleIncarnation):
        fabric.grant_blocks(target, [1])  # its handle is of the former life, too
    fresh = fabric.grant_blocks(again, [1])
    fabric.push_granted(fresh, source, [1])
    assert fabric.wait_granted(fresh).num_blocks == 1


def test_a_drained_worker_can_be_taken_away(fabric: Fabric) -> None:
    source, target = pair(fabric)
    fabric.push_blocks(BlocksCacheKey(2), source, [1], [1])
    grant = fabric.grant_blocks(target, [5], ttl_s=30)
    drained = threading.Thread(target=fabric.drain, args=(2, 20.0))
    drained.start()
    eventually(lambda: _refuses(fabric), 10, "the endpoint takes nothing new")
    assert drained.is_alive()  # the grant still stands
    fabric.push_granted(grant, source, [2])
    drained.join(20)
    assert not drained.is_alive()
    status = fabric.status()["endpoints"][2]  # type: ignore[index]
    assert (status["is_draining"], status["links"], status["grants"]["blocks"]) == (True, [], 0)
    with pytest.raises(EndpointDraining):
        fabric.grant_blocks(target, [6])


def _refuses(fabric: Fabric) -> bool:
    source = next(ref for ref in fabric.caches() if ref.cluster_id == 1)
    try:
        fabric.push_blocks(BlocksCacheKey(2), source, [1], [1])
    except EndpointDraining:
        return True
    return False
