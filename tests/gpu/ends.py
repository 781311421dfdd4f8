"""The two processes of a measured push over device_ipc: managers over caches on one GPU, without Ray.

Source   the process that measures: pushes, and copies the same pieces inside its own memory
Target   its child, which is written into and answers the questions of the source's link
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

from ray_kvfabric.bench.cases import CASES, KIB, Case, Lists
from ray_kvfabric.bench.endpoints import POOL_NBYTES, Roads
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings, endpoint_settings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.memory.copy import load
from ray_kvfabric.memory.device import Pieces
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route

SOURCE_ID, TARGET_ID = 1, 2
SAMPLED = 256  # blocks that are compared after a case

_LLAMA = CASES["llama_rand"]
GPU_CASES = {**CASES, "scattered": replace(_LLAMA, name="scattered", blocks_per_call=2048, num_blocks=4096)}  # 4 GiB
assert GPU_CASES["small"].nbytes == 64 * KIB

Places = list[tuple[int, int]]  # tensor and block


def gpu_settings() -> EndpointSettings:
    return endpoint_settings(
        transports=("device_ipc",),
        device="cuda",
        mem_pool={"memory_size": "64MiB"},
        device_pool={"memory_size": POOL_NBYTES},
        sync_kv_timeout_ms=60_000,
    )


def allocate(manager: CacheManager, case: Case, key: BlocksCacheKey | None) -> Cache:
    desc = CacheDesc(case.num_tensors, (case.num_blocks, case.block_nbytes), DataType.DT_UINT8, Placement.DEVICE)
    return manager.allocate_blocks_cache(desc, key)


def info(manager: CacheManager, cache: Cache) -> CacheInfo:
    return next(each for each in manager.caches() if each.cache_id == cache.cache_id)


class Target:
    def __init__(self) -> None:
        self.manager = CacheManager(TARGET_ID, directory=Roads(), settings=gpu_settings())
        self._cache: Cache | None = None

    def open_cache(self, case: Case) -> Route:
        self._cache = allocate(self.manager, case, BlocksCacheKey(TARGET_ID, 0))
        return Route(self.manager.endpoint, info(self.manager, self._cache))

    def answer(self, question: str, arguments: dict[str, Any]) -> object:
        return self.manager.answer(question, arguments)

    def read(self, places: Places) -> list[bytes]:
        assert self._cache is not None
        return read(self._cache, places)

    def close(self) -> None:
        self.manager.close()


def read(cache: Cache, places: Places) -> list[bytes]:
    return [cache.torch(tensor)[block].cpu().numpy().tobytes() for tensor, block in places]


@dataclass
class ToTarget:
    """The PeerCalls port over the child's pipe."""

    worker: Spawned

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        return self.worker.call("answer", question, arguments)


class Source:
    """One case: a cache of random bytes, its twin at the target, and another twin here."""

    def __init__(self, case: Case, target: Spawned) -> None:
        self.case = case
        self._target = target
        roads = Roads()
        self.manager = CacheManager(SOURCE_ID, directory=roads, peers=ToTarget(target), settings=gpu_settings())
        self._copier = load(self.manager.settings.copy_kernel)
        self.cache = allocate(self.manager, case, None)
        self.twin = allocate(self.manager, case, None)
        for tensor in range(case.num_tensors):
            self.cache.torch(tensor).random_(0, 256)
        torch.cuda.synchronize()
        roads.put(target.call("open_cache", case))
        self._key = BlocksCacheKey(TARGET_ID, 0)
        self.device: Any = self.manager._devices.open("measuring")

    def push(self, lists: Lists) -> None:
        self.manager.push_blocks(self._key, self.cache, *lists)

    def pieces(self, lists: Lists) -> Pieces:
        """What a push of these lists moves, with the twin here as its target."""
        table, twin = (self._copier.RegionTable(info(self.manager, each).regions) for each in (self.cache, self.twin))
        sources, targets = (self._copier.BlockList(blocks, "blocks") for blocks in lists)
        return self._copier.pieces(table, twin, 0, 0, self.case.num_tensors, sources, targets)

    def num_launches(self) -> int:
        """Of the streams that pushes have used so far."""
        return sum(queue.num_launches for queue in self.device._idle)

    def check(self, lists: Lists) -> None:
        """Some of the blocks that this push moved are the same at both ends."""
        random = Random(0)
        chosen = [
            (random.randrange(self.case.num_tensors), random.randrange(len(lists[0])))
            for _ in range(min(SAMPLED, self.case.num_tensors * len(lists[0])))
        ]
        here = read(self.cache, [(tensor, lists[0][index]) for tensor, index in chosen])
        there = self._target.call("read", [(tensor, lists[1][index]) for tensor, index in chosen])
        if here != there:
            raise AssertionError(f"{self.case.name}: the target holds other bytes than were pushed")

    def close(self) -> None:
        self.manager.close()
