"""The fabric that an LLMDataDist joins: by default that of the Ray cluster, shared by all programs on it."""

from __future__ import annotations

import logging
from typing import Protocol

from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import NAMESPACE, EndpointSettings, FabricConfig
from ray_kvfabric.errors import LLMException, LLMStatusCode, NotLinked
from ray_kvfabric.integrations.llm_datadist import _options


class Seat(Protocol):
    """A joined endpoint, and how it leaves."""

    manager: CacheManager

    def leave(self) -> None: ...


class World(Protocol):
    def join(self, cluster_id: int, settings: EndpointSettings, role: str) -> Seat:
        """Raises ClusterIdTaken, or what keeps the fabric from starting."""


class RayWorld:
    """A detached fabric of the name that `install` was given; it starts with its first member, ends with its last."""

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
        try:
            ray.init(namespace=NAMESPACE, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise LLMException(
                f"Ray could not be joined: {error}. A cluster of `ray start` wants a token from who names its address: "
                "set RAY_AUTH_MODE=token",
                status_code=LLMStatusCode.LLM_FAILED,
            ) from error


class _RaySeat:
    def __init__(self, cluster_id: int, settings: EndpointSettings, role: str) -> None:
        from ray_kvfabric.fabric import Fabric

        name = _options.current().fabric
        self._fabric = Fabric.connect(name, config=FabricConfig(name=name, lifetime="detached"))
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
