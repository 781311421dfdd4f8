"""A program with a Ray of its own, where a share of all actor calls and replies is lost: what took effect, counted.

`python -m tests.integration.rpc_loss` prints a line of JSON; RAY_testing_rpc_failure in its environment sets the loss.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import ray

from ray_kvfabric.actors import edge
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import CacheRef

CACHES = 20
QUESTIONS = 16
PAIRS = 12
ROUNDS = 9
DESC = CacheDesc(1, [2 * PAIRS, 64], DataType.DT_FLOAT, Placement.HOST)
COUNT = "count"


class Counting(CacheWorker):
    """Answers a peer's question with how often it was asked."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        self.asked = 0
        self.manager.answers(COUNT, self._count)

    def _count(self, arguments: dict[str, Any]) -> int:
        self.asked += 1
        return self.asked

    def cache_ids(self) -> list[int]:
        return sorted(cache.cache_id for cache in self.manager.caches())


class Losses:
    """Counts the calls of this process that were lost."""

    def __init__(self) -> None:
        self.seen = 0
        self._fetch = edge.fetch
        edge.fetch = self._counted

    def _counted(self, *arguments: Any) -> Any:
        try:
            return self._fetch(*arguments)
        except edge.LOST:
            self.seen += 1
            raise


def look(fabric: Fabric, cluster_id: int, method: str, *arguments: object) -> Any:
    """A call that changes nothing, until it is answered."""
    call = getattr(fabric.worker(cluster_id), method)
    return edge.repeated(lambda: call.remote(*arguments), Deadline.after(60), method)


def caches(fabric: Fabric) -> dict[str, object]:
    """CACHES are allocated and every second one is deallocated: what is left at the worker and in the directory."""
    refs = [fabric.allocate_blocks_cache(1, DESC, BlocksCacheKey(1, number)) for number in range(CACHES)]
    allocated = look(fabric, 1, "cache_ids")
    for ref in refs[::2]:
        fabric.deallocate_blocks_cache(ref)
    left = look(fabric, 1, "cache_ids")
    return {
        "allocated": len(allocated),
        "handles": len(set(refs)),
        "left_as_asked": left == sorted(ref.cache_id for ref in refs[1::2]),
        "published_as_asked": {ref for ref in fabric.caches() if ref.cluster_id == 1} == set(refs[1::2]),
    }


def directory(fabric: Fabric, manager: CacheManager) -> dict[str, object]:
    """Announcements, publications and withdrawals of an endpoint, one after the other."""
    kept: list[Any] = []
    for number in range(ROUNDS):
        manager.listen(f"10.0.0.{number}:5" if number % 2 else "")
        kept.append(manager.allocate_blocks_cache(DESC, BlocksCacheKey(3, number)))
        if number % 3 == 2:
            manager.deallocate_blocks_cache(kept.pop(0))
    [member] = [each for each in fabric.members() if each.endpoint.cluster_id == 3]
    return {
        "alias_as_asked": member.endpoint == manager.endpoint,
        "published_as_kept": sorted(member.caches) == sorted(cache.cache_id for cache in kept),
    }


def questions(fabric: Fabric, manager: CacheManager) -> dict[str, object]:
    peer = manager.find_endpoint(2, Deadline.after(60))
    answers = [manager.ask(peer, COUNT, {}, Deadline.after(60)) for _ in range(QUESTIONS)]
    return {"answers_in_order": answers == list(range(1, QUESTIONS + 1))}


def pushes(fabric: Fabric) -> dict[str, object]:
    """Two pushes to each block, each from a block of its own: the second's payload has to stay."""
    source, target = (fabric.allocate_blocks_cache(each, DESC, BlocksCacheKey(each, 99)) for each in (1, 2))
    payloads = np.random.default_rng(1).random((2 * PAIRS, 64), dtype=np.float32)
    look(fabric, 1, "write_blocks", source.cache_id, 0, list(range(2 * PAIRS)), payloads)
    receipts = [push(fabric, source, 2 * pair + turn, pair) for pair in range(PAIRS) for turn in (0, 1)]
    time.sleep(1.0)  # for whatever may come late
    arrived = look(fabric, 2, "read_blocks", target.cache_id, 0, list(range(PAIRS)))
    return {"receipts": len(set(receipts)), "last_payloads_stay": bool(np.array_equal(arrived, payloads[1::2]))}


def push(fabric: Fabric, source: CacheRef, src_block: int, dst_block: int) -> str:
    return fabric.push_blocks(BlocksCacheKey(2, 99), source, [src_block], [dst_block], timeout_s=30).transfer_id


def main() -> None:
    ray.init(
        "local", num_cpus=4, include_dashboard=False, namespace="kvfabric", logging_level="ERROR", log_to_driver=False
    )
    losses = Losses()
    with Fabric.start(FabricConfig(name="lossy")) as fabric:
        fabric.timeout_s = 60.0
        fabric.add_workers(1, 2, worker_class=Counting)
        found = {**caches(fabric), **pushes(fabric)}
        with fabric.join(3) as manager:
            found |= {**directory(fabric, manager), **questions(fabric, manager)}
        found["members"] = [member.endpoint.cluster_id for member in fabric.members()]
    found["lost"] = losses.seen
    print(json.dumps(found), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
