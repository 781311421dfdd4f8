"""What the manager and the transports ask of the world above them: Ray actors, or a test's dictionary."""

from __future__ import annotations

from typing import Protocol

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route


class Directory(Protocol):
    """Who is in the fabric and what they hold. Every call is bounded by its deadline and idempotent."""

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Makes this endpoint known. Raises ClusterIdTaken when another live one carries its cluster_id."""

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        """Makes a cache known; one with the same model_id takes the key over."""

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        """Forgets a cache; an unknown one is no error."""

    def resolve(self, cluster_id: int, model_id: int, deadline: Deadline) -> Route:
        """The blocks cache of `model_id` at `cluster_id`. Raises NotLinked, CacheNotFound, TransferTimeout."""

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Forgets the endpoint and its caches; an unknown one is no error."""


class PeerCalls(Protocol):
    """Control messages to another endpoint, for the few things that shared memory cannot say."""

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, int], deadline: Deadline) -> object:
        """The peer's `CacheManager.answer(question, arguments)`."""
