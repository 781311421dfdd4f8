"""DictDirectory: the Directory port as a dictionary of one process, which counts what it is asked.

Nobody dies here: whoever announced itself lives until it leaves.
"""

from __future__ import annotations

from collections import Counter

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.control.directory import exclude, meet, refuse_draining, taken
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import CacheNotFound, NotLinked
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route


class DictDirectory:
    """Shared by the managers of one test."""

    def __init__(self) -> None:
        self.endpoints: dict[int, EndpointInfo] = {}
        self.held: dict[int, dict[int, CacheInfo]] = {}
        self.calls: Counter[str] = Counter()

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        self.calls["announce"] += 1
        for known in self.endpoints.values():
            if exclude(known, endpoint):
                raise taken(known, endpoint)
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
        known = self.endpoints.get(endpoint.cluster_id)
        if known is not None and known.incarnation == endpoint.incarnation:
            del self.endpoints[endpoint.cluster_id], self.held[endpoint.cluster_id]

    def resolve(self, cluster_id: int, name: CacheName, deadline: Deadline) -> Route:
        """The newest cache of that name; a request or prefix stays with the first that had it."""
        self.calls["resolve"] += 1
        endpoint = self._at(cluster_id)
        refuse_draining(endpoint, name)
        found = [cache for cache in self.held[cluster_id].values() if cache.is_named(name)]
        if not found:
            what = f"blocks cache of model_id {name.model_id}" if name.kind == "model" else str(name)
            raise CacheNotFound(f"endpoint {cluster_id} has no {what}")
        return Route(endpoint, found[0 if name.kind in ("request", "prefix") else -1])

    def endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        self.calls["endpoint"] += 1
        return self._at(cluster_id)

    def endpoint_at(self, alias: str, deadline: Deadline) -> EndpointInfo:
        self.calls["endpoint_at"] += 1
        for endpoint in self.endpoints.values():
            if meet(endpoint.alias, alias):
                return endpoint
        raise NotLinked(f"no endpoint has alias {alias}")

    def _at(self, cluster_id: int) -> EndpointInfo:
        if cluster_id not in self.endpoints:
            raise NotLinked(f"no endpoint has cluster_id {cluster_id}")
        return self.endpoints[cluster_id]
