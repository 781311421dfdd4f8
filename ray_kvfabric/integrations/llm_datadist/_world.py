"""The fabric that an LLMDataDist joins: by default that of the Ray cluster, shared by all programs on it."""

from __future__ import annotations

import logging
from typing import Protocol

from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import NAMESPACE, EndpointSettings, FabricConfig
from ray_kvfabric.errors import NotLinked

FABRIC = "llm_datadist"


class Seat(Protocol):
    """A joined endpoint, and how it leaves."""

    manager: CacheManager

    def leave(self) -> None: ...


class World(Protocol):
    def join(self, cluster_id: int, settings: EndpointSettings, role: str) -> Seat:
        """Raises ClusterIdTaken, or what keeps the fabric from starting."""


class RayWorld:
    """A detached fabric of one well-known name: it starts with its first member and ends with its last."""

    def join(self, cluster_id: int, settings: EndpointSettings, role: str) -> Seat:
        _ensure_ray()
        try:
            return _RaySeat(cluster_id, settings, role)
        except NotLinked:  # the last member left while we came: there is a new fabric to start
            return _RaySeat(cluster_id, settings, role)


def _ensure_ray() -> None:
    """A program that does not know Ray gets none of its messages between its own."""
    import ray

    if not ray.is_initialized():
        ray.init(namespace=NAMESPACE, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)


class _RaySeat:
    def __init__(self, cluster_id: int, settings: EndpointSettings, role: str) -> None:
        from ray_kvfabric.fabric import Fabric

        self._fabric = Fabric.connect(FABRIC, config=FabricConfig(name=FABRIC, lifetime="detached"))
        try:
            self.manager = self._fabric.join(cluster_id, settings=settings, role=role)
        except BaseException:
            self._end()
            raise

    def leave(self) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self._fabric.close()
        finally:
            self._fabric.retire()


_world: World = RayWorld()


def current() -> World:
    return _world


def use(world: World) -> World:
    """Replaces the world, for tests without Ray; gives back the one before."""
    global _world
    before, _world = _world, world
    return before
