"""Directory: who is in the fabric, until when, and what each endpoint holds.

cluster_id -> Member: endpoint with its incarnation, lease, caches by cache_id
(cluster_id, model_id) -> the newest cache published under that model_id; older ones lost the key
alias -> at most one Member; "0.0.0.0:port" is every ip of that port
(cluster_id, incarnation) that left -> remembered for a while: an announcement that comes late lets nobody in again
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.errors import (
    AliasTaken,
    CacheNotFound,
    ClusterIdTaken,
    EndpointDraining,
    NotLinked,
    StaleIncarnation,
)
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route

EVERY_IP = "0.0.0.0"
LEFT_KEPT = 1024
Mark = tuple[int, int]


@dataclass(slots=True)
class Member:
    """`actor_id` is None for an endpoint that only a long poll reaches; `serial` is of the newest it told of itself."""

    endpoint: EndpointInfo
    actor_id: str | None
    lease_until: float
    serial: int = 0
    caches: dict[int, CacheInfo] = field(default_factory=dict)

    def route(self, name: CacheName) -> Route:
        """To the newest cache of that name. Raises CacheNotFound that names the model_ids the endpoint has.

        Raises EndpointDraining for keys: who drains takes no new work. A cache by its id is found, since grants and
        transfers that were begun name it so; plain pushes are refused at the endpoint.
        """
        refuse_draining(self.endpoint, name)
        found = [cache for cache in self.caches.values() if cache.is_named(name)]
        if not found:
            raise CacheNotFound(f"{self.endpoint} has no {name}{self._held() if name.kind == 'model' else ''}")
        keeps_first = name.kind in ("request", "prefix")  # a later holder does not take these over
        return Route(self.endpoint, found[0 if keeps_first else -1])

    def _held(self) -> str:
        held = sorted({cache.model_id for cache in self.caches.values() if cache.model_id is not None})
        return f"; it has: {', '.join(f'model_id={key}' for key in held) or 'none'}"


def mark(endpoint: EndpointInfo) -> Mark:
    """One incarnation, whatever else it tells of itself."""
    return endpoint.cluster_id, endpoint.incarnation


def replaced(incarnation: int, present: EndpointInfo) -> StaleIncarnation:
    """For whoever asked for `incarnation` where `present` is now."""
    return StaleIncarnation(
        f"incarnation {incarnation:016x} of endpoint {present.cluster_id} was replaced by {present}"
    )


def refuse_draining(endpoint: EndpointInfo, name: CacheName) -> None:
    if endpoint.is_draining and name.kind != "id":
        raise EndpointDraining(f"{endpoint} is draining and takes no new work")


def meet(one: str, other: str) -> bool:
    """Whether two aliases share an ip and a port; "" shares nothing."""
    ip, _, port = one.rpartition(":")
    other_ip, _, other_port = other.rpartition(":")
    return bool(one and other) and port == other_port and (ip == other_ip or EVERY_IP in (ip, other_ip))


def exclude(one: EndpointInfo, other: EndpointInfo) -> bool:
    """Whether the two cannot both be in the fabric."""
    if one.cluster_id == other.cluster_id:
        return one.incarnation != other.incarnation
    return meet(one.alias, other.alias)


def taken(holder: EndpointInfo, refused: EndpointInfo) -> ClusterIdTaken | AliasTaken:
    if holder.cluster_id == refused.cluster_id:
        return ClusterIdTaken(f"cluster_id {holder.cluster_id} belongs to the live {holder}; refused: {refused}")
    return AliasTaken(f"alias {holder.alias} belongs to the live {holder}; refused: {refused.alias} of {refused}")


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
    _left: dict[Mark, None] = field(default_factory=dict)  # the oldest first

    def rivals(self, endpoint: EndpointInfo) -> list[Member]:
        """Who has its cluster_id as another incarnation, or its alias."""
        return [member for member in self._members.values() if exclude(member.endpoint, endpoint)]

    def holds(self, endpoint: EndpointInfo) -> bool:
        """Whether this very incarnation is entered."""
        return self.has(mark(endpoint))

    def has(self, incarnation: Mark) -> bool:
        member = self._members.get(incarnation[0])
        return member is not None and mark(member.endpoint) == incarnation

    def is_told(self, endpoint: EndpointInfo, serial: int) -> bool:
        """Whether this incarnation told that already, or something newer."""
        return self.holds(endpoint) and serial <= self._members[endpoint.cluster_id].serial

    def announce(
        self, endpoint: EndpointInfo, actor_id: str | None, caches: tuple[CacheInfo, ...], serial: int, now: float
    ) -> None:
        """Enters the endpoint or renews it; `caches` are all that it has. Raises ClusterIdTaken, AliasTaken."""
        for rival in self.rivals(endpoint):
            raise taken(rival.endpoint, endpoint)
        member = self._members[endpoint.cluster_id] = Member(endpoint, actor_id, now + self.lease_s, serial)
        for cache in caches:
            enter(member.caches, cache)

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, serial: int) -> None:
        """Raises NotLinked or StaleIncarnation when the endpoint is not, or no longer, entered."""
        member = self.member(endpoint)
        if serial > member.serial:
            enter(member.caches, cache)
            member.serial = serial

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, serial: int) -> None:
        if self.holds(endpoint) and not self.is_told(endpoint, serial):
            member = self._members[endpoint.cluster_id]
            member.caches.pop(cache_id, None)
            member.serial = serial

    def leave(self, endpoint: EndpointInfo) -> None:
        """Notes that this incarnation will not come back; `remove` takes it out."""
        self._left[mark(endpoint)] = None
        if len(self._left) > LEFT_KEPT:
            del self._left[next(iter(self._left))]

    def refuse_left(self, endpoint: EndpointInfo) -> None:
        if mark(endpoint) in self._left:
            raise NotLinked(f"{endpoint} has left the fabric")

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

    def listening(self, alias: str) -> Member:
        """Raises NotLinked for an alias that nobody has."""
        for member in self._members.values():
            if meet(member.endpoint.alias, alias):
                return member
        known = ", ".join(sorted(filter(None, (member.endpoint.alias for member in self.members())))) or "none"
        raise NotLinked(f"no endpoint has alias {alias}; known: {known}")

    def addressed(self, cluster_id: int, incarnation: int | None) -> Member:
        """Whoever carries `cluster_id`. Raises NotLinked, and StaleIncarnation where it is not `incarnation`."""
        member = self.at(cluster_id)
        if incarnation not in (None, member.endpoint.incarnation):
            raise replaced(incarnation, member.endpoint)
        return member

    def members(self) -> list[Member]:
        return [self._members[cluster_id] for cluster_id in sorted(self._members)]

    def expiries(self) -> list[float]:
        return [member.lease_until for member in self._members.values()]
