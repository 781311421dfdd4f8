"""The process's one LLMDataDist and the engines it links to, all in one world."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ray_kvfabric import BlocksCacheKey
from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.integrations.llm_datadist._engine import Engine
from ray_kvfabric.integrations.llm_datadist._engine_options import parse_options
from ray_kvfabric.integrations.llm_datadist.v2.cache_manager import CacheManager
from tests.contract.world import POOL, MemoryWorld, describe

OK = LLMStatusCode.LLM_SUCCESS
PATIENCE_S = 10.0


def texts(port: int | None = None, **more: str) -> dict[str, str]:
    """Init options: one-sided mode, both pools; a dot in a key is written as two underscores."""
    named = {
        "llm.EnableCacheManager": "1",
        "llm.EnableRemoteCacheAccessible": "1",
        "llm.MemPoolConfig": POOL,
        "llm.HostMemPoolConfig": POOL,
        "llm.SyncKvCacheWaitTime": "10000",
        "llm.LinkTotalTime": "5",
        **({} if port is None else {"llm.listenIpInfo": f"127.0.0.1:{port}"}),
    }
    return named | {key.replace("__", "."): value for key, value in more.items()}


class Instances:
    """Cluster 1 is an LLMDataDist; the others are engines, for a process has one LLMDataDist only."""

    def __init__(self, package: ModuleType | Any, world: MemoryWorld) -> None:
        self.package: Any = package
        self.world = world
        self._engines: list[Engine] = []

    def make(self, cluster_id: int = 1) -> Any:
        """An LLMDataDist that was not initialised."""
        return self.package.LLMDataDist(self.package.LLMRole.MIX, cluster_id)

    def open(self, port: int | None = 26001, cluster_id: int = 1, **more: str) -> Any:
        made = self.make(cluster_id)
        made.init(texts(port, **more))
        return made

    def engine(self, cluster_id: int = 2, port: int | None = 26002, **more: str) -> Engine:
        engine = Engine(cluster_id, "MIX", parse_options(texts(port, **more)))
        self._engines.append(engine)
        return engine

    def info(self, cluster_id: int = 2, port: int = 26002) -> Any:
        """How a cluster that listens there is named to link_clusters."""
        info = self.package.LLMClusterInfo()
        info.remote_cluster_id = cluster_id
        info.append_local_ip_info("127.0.0.1", 26001)
        info.append_remote_ip_info("127.0.0.1", port)
        return info

    def close(self) -> None:
        instance = self.package.LLMDataDist.llm_engine_instance
        if instance is not None:
            instance.finalize()
        for engine in self._engines:
            engine.finalize()


@contextmanager
def instances(package: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    made = Instances(package, world)
    try:
        yield made
    finally:
        made.close()


def manager_of(end: Any) -> Any:
    """The cache manager of an LLMDataDist or of an engine."""
    return CacheManager(end) if isinstance(end, Engine) else end.cache_manager


def offer(end: Any, model_id: int = 0) -> Any:
    """A blocks cache that keys reach."""
    return manager_of(end).allocate_blocks_cache(describe(), BlocksCacheKey(0, model_id))


def reaches(end: Any, cluster_id: int, model_id: int = 0) -> bool:
    """Whether a push from here to the cache that `offer` made there goes through, or finds no link."""
    manager = manager_of(end)
    cache = manager.allocate_blocks_cache(describe())
    try:
        manager.push_blocks(BlocksCacheKey(cluster_id, model_id), cache, [0], [1])
    except LLMException as error:
        if error.status_code is LLMStatusCode.LLM_NOT_YET_LINK:
            return False
        raise
    finally:
        manager.deallocate_blocks_cache(cache)
    return True


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: list[tuple[Any, BaseException | None]] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((self._call(), None))
        except BaseException as error:
            self._outcome.append((None, error))

    def lasts(self, seconds: float) -> bool:
        """Whether it is still under way after that time."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def result(self) -> Any:
        assert not self.lasts(PATIENCE_S)
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value


class Hold:
    """Keeps the first transfer to each peer inside its engine, where it asks the directory, until `release`."""

    def __init__(self, world: MemoryWorld, cluster_id: int = 2) -> None:
        self.came = threading.Event()
        self._go = threading.Event()
        self._world = world
        self._resolve = world.directory.resolve
        self._cluster_id = cluster_id
        world.directory.resolve = self._held  # type: ignore[method-assign]

    def _held(self, cluster_id: int, *arguments: Any) -> Any:
        if cluster_id == self._cluster_id:
            self.came.set()
            assert self._go.wait(PATIENCE_S)
        return self._resolve(cluster_id, *arguments)

    def release(self) -> None:
        self._go.set()
        self._world.directory.resolve = self._resolve  # type: ignore[method-assign]
