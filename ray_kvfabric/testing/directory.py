"""DictDirectory: the Directory port as a dictionary of one process, which counts what it is asked."""

from __future__ import annotations

from collections import Counter

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import CacheNotFound, ClusterIdTaken, NotLinked
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route


class DictDirectory:
    """Shared by the managers of one test."""

    def __init__(self) -> None:
        self.endpoints: dict[int, EndpointInfo] = {}
        self.held: dict[int, dict[int, CacheInfo]] = {}
        self.calls: Counter[str] = Counter()

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        self.calls["announce"] += 1
        known = self.endpoints.get(endpoint.cluster_id)
        if known is not None and known.incarnation != endpoint.incarnation:
            raise ClusterIdTaken(f"cluster_id {endpoint.cluster_id} belongs to {known}")
        self.endpoints[endpoint.cluster_id] = endpoint
        self.held.setdefault(endpoint.cluster_id, {})

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        self.calls["publish"] += 1
        self.held[endpoint.cluster_id][cache.cache_id] = cache

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        self.calls["withdraw"] += 1
        self.held[endpoint.cluster_id].pop(cache_id, None)

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        self.calls["leave"] += 1
        self.endpoints.pop(endpoint.cluster_id, None)
        self.held.pop(endpoint.cluster_id, None)

    def resolve(self, cluster_id: int, model_id: int, deadline: Deadline) -> Route:
        """The newest cache of this model, as a later registration takes the key over."""
        self.calls["resolve"] += 1
        endpoint = self.endpoints.get(cluster_id)
        if endpoint is None:
            raise NotLinked(f"no endpoint has cluster_id {cluster_id}")
        found = [cache for cache in self.held[cluster_id].values() if cache.model_id == model_id]
        if not found:
            raise CacheNotFound(f"endpoint {cluster_id} has no blocks cache of model_id {model_id}")
        return Route(endpoint, found[-1])
