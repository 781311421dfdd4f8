"""Both faces of a manager in one process, without Ray: endpoints that share a directory and a post."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_kvfabric import Cache, CacheDesc, CacheManager, DataType, LLMRole, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.integrations.llm_datadist import _options, _world
from ray_kvfabric.integrations.llm_datadist._engine import Engine
from ray_kvfabric.integrations.llm_datadist._engine_options import parse_options
from ray_kvfabric.integrations.llm_datadist.v2.cache_manager import CacheManager as DropInManager
from ray_kvfabric.testing.dict_peers import DictPeers
from ray_kvfabric.testing.directory import DictDirectory

POOL = '{"memory_size": 16777216}'
EMULATED = _options.Options(emulated_device="host")


class MemoryWorld:
    """What the drop-in joins instead of Ray's fabric."""

    def __init__(self) -> None:
        self.directory = DictDirectory()
        self.peers = DictPeers()

    def join(self, cluster_id: int, settings: EndpointSettings, role: str) -> MemorySeat:
        manager = CacheManager(
            cluster_id, directory=self.directory, peers=self.peers, settings=settings, role=LLMRole[role]
        )
        self.peers.register(manager)
        return MemorySeat(manager)


@dataclass
class MemorySeat:
    manager: CacheManager

    def leave(self) -> None:
        self.manager.close()


@contextmanager
def memory_world(options: _options.Options = EMULATED) -> Iterator[MemoryWorld]:
    """The drop-in's engines find each other in this process; device memory is emulated."""
    world = MemoryWorld()
    before, chosen = _world.use(world), _options.current()
    _options.choose(options)
    try:
        yield world
    finally:
        _options.choose(chosen)
        _world.use(before)


@dataclass
class End:
    """One cluster: `manager` has the verbs of the face that is tested."""

    cluster_id: int
    manager: Any
    engine: Engine | None


class Ends:
    """Makes ends of one face and links them. `face` is "native" or "drop_in"."""

    def __init__(self, face: str, world: MemoryWorld) -> None:
        self.face = face
        self._world = world
        self._ends: list[End] = []

    def open(
        self,
        cluster_id: int,
        *,
        one_sided: bool = True,
        device_pool: bool = True,
        host_pool: bool = True,
        **options: str,
    ) -> End:
        """`options` are LLM-DataDist's, such as `**{"llm.SyncKvCacheWaitTime": "50"}`."""
        texts = {"llm.EnableRemoteCacheAccessible": "1" if one_sided else "0", **options}
        texts |= {"llm.MemPoolConfig": POOL} if device_pool else {}
        texts |= {"llm.HostMemPoolConfig": POOL} if host_pool else {}
        parsed = parse_options(texts)
        if self.face == "native":
            manager = self._world.join(cluster_id, parsed.settings, "MIX").manager
            end = End(cluster_id, manager, None)
        else:
            engine = Engine(cluster_id, "MIX", parsed)
            end = End(cluster_id, DropInManager(engine), engine)
        self._ends.append(end)
        return end

    def link(self, one: End, other: End) -> None:
        """Both may transfer; native links open by themselves."""
        for near, far in ((one, other), (other, one)):
            if near.engine is not None:
                near.engine.links.add(far.cluster_id)

    def close(self) -> None:
        for end in self._ends:
            if end.engine is not None:
                end.engine.finalize()
            else:
                end.manager.close()


def describe(
    num_tensors: int = 4, shape: tuple[int, ...] = (8, 16), kind: str = "DT_INT8", placement: str = "DEVICE"
) -> CacheDesc:
    return CacheDesc(num_tensors, shape, DataType[kind], Placement[placement])


def fill(cache: Cache, seed: int) -> None:
    random = np.random.default_rng(seed)
    for index in range(cache.cache_desc.num_tensors):
        flat = cache.numpy(index).reshape(-1).view(np.uint8)
        flat[:] = random.integers(1, 256, flat.size)


def content(cache: Cache) -> np.ndarray[Any, Any]:
    """All tensors' bytes, [tensor, block or row, byte]."""
    tensors = [cache.numpy(index).copy().reshape(-1).view(np.uint8) for index in range(cache.cache_desc.num_tensors)]
    return np.stack(tensors).reshape(len(tensors), cache.cache_desc.shape[0], -1)
