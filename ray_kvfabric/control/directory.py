"""Directory: who is in the fabric, until when, and what each endpoint holds.

cluster_id -> Member: endpoint with its incarnation, lease, caches by cache_id
(cluster_id, model_id) -> the newest cache published under that model_id; older ones lost the key
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ray_kvfabric.errors import CacheNotFound, ClusterIdTaken, NotLinked, StaleIncarnation
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route


@dataclass(slots=True)
class Member:
    """`actor_id` is None for an endpoint that only a long poll reaches."""

    endpoint: EndpointInfo
    actor_id: str | None
    lease_until: float
    caches: dict[int, CacheInfo] = field(default_factory=dict)

    def keyed(self, model_id: int) -> CacheInfo | None:
        return next((cache for cache in self.caches.values() if cache.model_id == model_id), None)


def taken(holder: EndpointInfo, refused: EndpointInfo) -> ClusterIdTaken:
    return ClusterIdTaken(f"cluster_id {holder.cluster_id} belongs to the live {holder}; refused: {refused}")


def enter(caches: dict[int, CacheInfo], cache: CacheInfo) -> None:
    """Adds or renews a cache; it takes its model_id away from any other that had it."""
    for other in list(caches.values()):
        if cache.model_id is not None and other.model_id == cache.model_id:
            caches[other.cache_id] = replace(other, model_id=None)
    caches[cache.cache_id] = cache


@dataclass(slots=True)
class MemberDirectory:
    """Plain bookkeeping; each method says what it refuses."""

    lease_s: float
    _members: dict[int, Member] = field(default_factory=dict)

    def rival(self, endpoint: EndpointInfo) -> Member | None:
        """Another incarnation under the same cluster_id."""
        member = self._members.get(endpoint.cluster_id)
        return None if member is None or self.holds(endpoint) else member

    def holds(self, endpoint: EndpointInfo) -> bool:
        """Whether this very incarnation is entered."""
        member = self._members.get(endpoint.cluster_id)
        return member is not None and member.endpoint.incarnation == endpoint.incarnation

    def announce(self, endpoint: EndpointInfo, actor_id: str | None, caches: tuple[CacheInfo, ...], now: float) -> None:
        """Enters the endpoint or renews it; `caches` are all that it has. Raises ClusterIdTaken."""
        rival = self.rival(endpoint)
        if rival is not None:
            raise taken(rival.endpoint, endpoint)
        self._members[endpoint.cluster_id] = Member(endpoint, actor_id, now + self.lease_s)
        for cache in caches:
            self.publish(endpoint, cache)

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo) -> None:
        """Raises NotLinked or StaleIncarnation when the endpoint is not, or no longer, entered."""
        enter(self.member(endpoint).caches, cache)

    def withdraw(self, endpoint: EndpointInfo, cache_id: int) -> None:
        if self.holds(endpoint):
            self._members[endpoint.cluster_id].caches.pop(cache_id, None)

    def renew(self, endpoint: EndpointInfo, now: float) -> bool:
        """Whether the endpoint is known, and now for another lease."""
        known = self.holds(endpoint)
        if known:
            self._members[endpoint.cluster_id].lease_until = now + self.lease_s
        return known

    def remove(self, endpoint: EndpointInfo) -> bool:
        """Whether this incarnation was there."""
        known = self.holds(endpoint)
        if known:
            del self._members[endpoint.cluster_id]
        return known

    def expired(self, now: float) -> list[EndpointInfo]:
        return [member.endpoint for member in self._members.values() if member.lease_until <= now]

    def member(self, endpoint: EndpointInfo) -> Member:
        """Raises NotLinked for an unknown cluster_id, StaleIncarnation for another incarnation."""
        member = self.at(endpoint.cluster_id)
        if not self.holds(endpoint):
            raise StaleIncarnation(f"{endpoint} was replaced by {member.endpoint}")
        return member

    def at(self, cluster_id: int) -> Member:
        try:
            return self._members[cluster_id]
        except KeyError:
            known = ", ".join(map(str, sorted(self._members))) or "none"
            raise NotLinked(f"no endpoint has cluster_id {cluster_id}; known: {known}") from None

    def route(self, cluster_id: int, model_id: int) -> Route:
        """Raises NotLinked, or CacheNotFound that names the keys the endpoint has."""
        member = self.at(cluster_id)
        cache = member.keyed(model_id)
        if cache is None:
            held = sorted({cache.model_id for cache in member.caches.values() if cache.model_id is not None})
            keys = ", ".join(f"model_id={key}" for key in held) or "none"
            raise CacheNotFound(f"{member.endpoint} has no blocks cache of model_id={model_id}; it has: {keys}")
        return Route(member.endpoint, cache)

    def members(self) -> list[Member]:
        return [self._members[cluster_id] for cluster_id in sorted(self._members)]

    def expiries(self) -> list[float]:
        return [member.lease_until for member in self._members.values()]
