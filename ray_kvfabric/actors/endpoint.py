"""Opening an endpoint in this process: its manager, wired to the scheduler of one fabric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_kvfabric.actors.clients import RayDirectory, RayPeers, SchedulerClient
from ray_kvfabric.actors.grant_desk import GrantDesk
from ray_kvfabric.actors.membership import Agent
from ray_kvfabric.actors.pinning import pinned_index
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, LLMRole, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import CacheSettings, EndpointSettings
from ray_kvfabric.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in a fabric, as a worker gets it: everything that `open_endpoint` needs."""

    fabric: str
    cluster_id: int
    settings: EndpointSettings
    role: str = "MIX"
    caches: tuple[CacheSettings, ...] = ()


def open_endpoint(seat: Seat, actor: ActorHandle[Any] | None = None, tracer_pid: int | None = None) -> CacheManager:
    """A manager that is announced and keeps itself so until its `close`. Raises ClusterIdTaken."""
    client = SchedulerClient(seat.fabric)
    directory = RayDirectory(client, actor)
    manager = CacheManager(
        seat.cluster_id,
        directory=directory,
        peers=RayPeers(client),
        settings=seat.settings,
        role=LLMRole[seat.role],
        node=ray.get_runtime_context().get_node_id(),
        tracer_pid=tracer_pid,
        device_index=pinned_index(),
    )
    Agent(directory, GrantDesk(manager))
    for settings in seat.caches:
        manager.allocate_blocks_cache(described(settings), BlocksCacheKey(seat.cluster_id, settings.model_id))
    return manager


def described(settings: CacheSettings) -> CacheDesc:
    """The cache that a configuration asks for. Raises ConfigError for an unknown data type."""
    if settings.data_type not in DataType.__members__:
        raise ConfigError(f"data_type {settings.data_type!r} is none of {', '.join(DataType.__members__)}")
    return CacheDesc(
        settings.num_tensors,
        list(settings.shape),
        DataType[settings.data_type],
        Placement[settings.placement],
    )
