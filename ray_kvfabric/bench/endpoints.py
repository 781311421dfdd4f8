"""The ends of a measured push: managers whose directory is a dictionary filled by hand, no Ray.

Target    a process's endpoint that is written into; it fills and verifies its own caches
Targets   several of them in one process
"""

from __future__ import annotations

import os
import time

import numpy as np

from ray_kvfabric.bench.cases import Case
from ray_kvfabric.bench.contents import Held, fill_target, first_wrong
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings, PoolSettings, endpoint_settings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.errors import CacheNotFound, LLMException, NotLinked
from ray_kvfabric.grant import Grant
from ray_kvfabric.memory.copy import load
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route

POOL_NBYTES = 1 << 40  # the host's free memory is the limit that counts
CALL_TIMEOUT_MS = 60_000
GRANT_S = 3600.0


class Roads:
    """The Directory port: routes that were put in by hand."""

    def __init__(self) -> None:
        self._routes: dict[tuple[int, int], Route] = {}

    def put(self, route: Route) -> None:
        self._routes[route.endpoint.cluster_id, route.cache.model_id or 0] = route

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Nobody listens."""

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        """Nobody listens."""

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        """Nobody listens."""

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Nobody listens."""

    def resolve(self, cluster_id: int, name: CacheName, deadline: Deadline) -> Route:
        self.endpoint(cluster_id, deadline)
        for (known, _), route in self._routes.items():
            if known == cluster_id and route.cache.is_named(name):
                return route
        raise CacheNotFound(f"endpoint {cluster_id} has no {name}")

    def endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        for (known, _), route in self._routes.items():
            if known == cluster_id:
                return route.endpoint
        raise NotLinked(f"no endpoint has cluster_id {cluster_id}")

    def endpoint_at(self, alias: str, deadline: Deadline) -> EndpointInfo:
        raise NotLinked(f"nobody listens under {alias}")


def settings(transports: tuple[str, ...] | None = None) -> EndpointSettings:
    """What a measured endpoint may use; the copy kernel is the environment's."""
    return endpoint_settings(
        mem_pool=PoolSettings(memory_size=POOL_NBYTES), sync_kv_timeout_ms=CALL_TIMEOUT_MS, transports=transports
    )


def describe(case: Case) -> CacheDesc:
    shape = (case.num_blocks, case.block_nbytes)
    return CacheDesc(case.num_tensors, shape, DataType.DT_UINT8, Placement.HOST)


class Target:
    """An endpoint that is written into. Its process admits writers that descend from its parent."""

    def __init__(self, cluster_id: int) -> None:
        self.manager = CacheManager(cluster_id, directory=Roads(), settings=settings(), tracer_pid=os.getppid())
        self._opened: dict[int, tuple[Cache, Case]] = {}
        self._granted: dict[int, IssuedGrant] = {}

    def open_cache(self, case: Case, model_id: int, foreign: bool = False) -> Route:
        """A filled cache: allocated by the fabric, or over memory that numpy allocated."""
        key = BlocksCacheKey(self.manager.endpoint.cluster_id, model_id)
        if foreign:
            arrays: list[object] = [
                np.empty(case.num_blocks * case.block_nbytes, np.uint8) for _ in range(case.num_tensors)
            ]
            cache = self.manager.register_blocks_cache(describe(case), arrays, key)
        else:
            cache = self.manager.allocate_blocks_cache(describe(case), key)
        fill_target(cache, case)
        self._opened[model_id] = cache, case
        return Route(self.manager.endpoint, self.info(cache))

    def grant(self, model_id: int, blocks: list[int], verify: str | None) -> Grant:
        """All of these blocks, for as long as a measurement may take."""
        cache = self._opened[model_id][0]
        issued = self._granted[model_id] = self.manager.grant_blocks(cache, blocks, ttl_s=GRANT_S, verify=verify)
        return issued.grant

    def land(self, model_id: int) -> str | None:
        """What is wrong with a grant that was sealed; its digests are compared here."""
        try:
            self._granted[model_id].wait(CALL_TIMEOUT_MS / 1000)
        except LLMException as error:
            return str(error)
        return None

    def time_checks(self, model_id: int, lists: list[list[int]]) -> list[int]:
        """Nanoseconds of the digests of these blocks of all tensors, as a receiver works them out."""
        cache, case = self._opened[model_id]
        copier = load(self.manager.settings.copy_kernel)
        table = copier.RegionTable(self.info(cache).regions)
        found = np.zeros(case.num_tensors * case.blocks_per_call, np.uint32)
        taken = []
        for blocks in [copier.BlockList(each, "blocks") for each in lists]:
            started = time.perf_counter_ns()
            copier.block_digests(table, 0, case.num_tensors, blocks, found)
            taken.append(time.perf_counter_ns() - started)
        return taken

    def info(self, cache: Cache) -> CacheInfo:
        return next(each for each in self.manager.caches() if each.cache_id == cache.cache_id)

    def first_wrong(self, model_id: int, held: Held) -> str | None:
        cache, case = self._opened[model_id]
        return first_wrong(cache, case, held)

    def close(self) -> None:
        self.manager.close()


class Targets:
    """Several endpoints of one process, each with caches of the same case."""

    def __init__(self, cluster_ids: tuple[int, ...]) -> None:
        self._targets = [Target(each) for each in cluster_ids]

    def open_caches(self, case: Case, model_id: int) -> list[Route]:
        return [each.open_cache(case, model_id) for each in self._targets]

    def first_wrong(self, model_id: int, held: Held) -> str | None:
        """All of them were written alike."""
        found = [each.first_wrong(model_id, held) for each in self._targets]
        return next((wrong for wrong in found if wrong is not None), None)

    def close(self) -> None:
        for each in self._targets:
            each.close()
