"""What the manager and the transports ask of the world above them: Ray actors, or a test's dictionary."""

from __future__ import annotations

from typing import Any, Protocol

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route


class Directory(Protocol):
    """Who is in the fabric and what they hold. Every call is bounded by its deadline and idempotent."""

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Makes this endpoint known, or renews what is known of it.

        Raises ClusterIdTaken or AliasTaken when another live one carries its cluster_id or its alias.
        """

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        """Makes a cache known; one with the same model_id takes the key over."""

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        """Forgets a cache; an unknown one is no error."""

    def resolve(self, cluster_id: int, name: CacheName, deadline: Deadline) -> Route:
        """The cache of that name at `cluster_id`. Raises NotLinked, CacheNotFound, TransferTimeout."""

    def endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        """Whoever carries `cluster_id`. Raises NotLinked, TransferTimeout."""

    def endpoint_at(self, alias: str, deadline: Deadline) -> EndpointInfo:
        """Whoever listens under `alias`; "0.0.0.0:port" stands for every ip. Raises NotLinked, TransferTimeout."""

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Forgets the endpoint and its caches; an unknown one is no error."""


class PeerCalls(Protocol):
    """Control messages to another endpoint, for the few things that shared memory cannot say."""

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """The peer's `CacheManager.answer(question, arguments)`."""
