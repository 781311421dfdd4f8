"""LinkTable: the opened ways to other endpoints' caches. A hit costs one dictionary look-up and no call.

    memory of the local cache, (cluster_id, CacheName) -> Way: link, the opened cache, which local caches fit it
A way that turns out stale is dropped; the next use resolves it anew.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_kvfabric.cache.keys import CacheName, WayName
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import NotLinked, ParamInvalid, TransferTimeout
from ray_kvfabric.plan import Fit, LayerRequest
from ray_kvfabric.ports import Directory, PeerCalls
from ray_kvfabric.route import CacheInfo, Route
from ray_kvfabric.telemetry import Counters
from ray_kvfabric.transport.base import Link, LocalEnd, RemoteCache, Transport
from ray_kvfabric.transport.registry import FASTER, Verdict, choose, judge, why_slow

FitKey = tuple[int, bool, LayerRequest]  # local cache id, is it the target, layers asked for


@dataclass(slots=True)
class Way:
    """A peer's cache, ready to be written or read."""

    route: Route
    link: Link
    remote: RemoteCache
    fits: dict[FitKey, Fit] = field(default_factory=dict)  # what was checked before


Admit = Callable[[int], int]  # the cluster_id of a key to the endpoint that serves it; raises NotLinked


class LinkTable:
    """Threads may share it; a way is opened by one of them while the others wait."""

    def __init__(
        self,
        local: LocalEnd,
        transports: tuple[Transport, ...],
        directory: Directory,
        peers: PeerCalls | None,
        counters: Counters,
    ) -> None:
        self._local = local
        self._transports = transports
        self._directory = directory
        self._peers = peers
        self._counters = counters
        self._ways: dict[str, dict[WayName, Way]] = {"host": {}, "device": {}}
        self._links: dict[tuple[int, str], Link] = {}  # (incarnation, transport)
        self._opening = threading.RLock()  # held while peers are asked
        self._keeping = threading.Lock()  # of _ways, for the moment of a change
        self._forgotten = 0  # how often ways were forgotten: one that was looked for before is not kept
        self._admit: Admit = as_named
        self.on_link: Callable[[], None] = nothing_to_do  # called when one was opened
        self.is_ending = False  # whoever only has something to say opens no way for it any more
        self._is_closed = False

    def way(self, name: WayName, memory: str, deadline: Deadline, *, is_asked: bool = False) -> Way:
        """From a local cache in `memory`. `is_asked`: for a transfer that the peer itself has asked for.

        Raises NotLinked, CacheNotFound, LinkFailed, PeerLost, StaleIncarnation, TransferTimeout, and ParamInvalid where
        host and device memory do not meet.
        """
        found = self._ways[memory].get(name)
        return found if found is not None else self._open(name, memory, deadline, is_asked)

    def open(self, name: WayName, deadline: Deadline) -> Way:
        """The way from memory of the kind that is there, if this endpoint has such."""
        memory = self._resolve(name, deadline).cache.memory
        has_device = self._local.devices.find() is not None
        return self.way(name, memory if has_device else "host", deadline)

    def is_open(self, name: WayName) -> bool:
        return any(name in ways for ways in self._ways.values())

    def found_way(self, name: WayName) -> Way | None:
        """One that is open, from memory of either kind."""
        return next((ways[name] for ways in self._ways.values() if name in ways), None)

    def any_way(self, name: WayName, deadline: Deadline) -> Way:
        """One that is open, from memory of either kind; else as `open`."""
        found = self.found_way(name)
        if found is None and self.is_ending:
            raise NotLinked(f"endpoint {self._local.endpoint.cluster_id} is being closed: it opens no link any more")
        return found or self.open(name, deadline)

    def way_of_row(self, name: WayName, memory: str, deadline: Deadline) -> tuple[Way, CacheInfo]:
        """The way to a cache that a request, a prefix or an address names, and what it is now.

        Such names come and go without a trace in the shared page, so the directory is asked each time.
        """
        with self._holding(name[0], deadline):
            forgotten = self._forgotten
            route = self._resolve(name, deadline)
            return self._way_to(name[0], route, memory, forgotten, deadline), route.cache

    def forget(self, way: Way) -> None:
        """Drops a stale way, and its link when the peer is gone."""
        with self._opening:
            self._drop(lambda _, each: each is way)
            if not way.link.is_alive:
                self._close_dead(way.link)

    def sweep(self) -> None:
        """Closes the links of peers that died, and with them the mappings of their memory; drops stale ways.

        Not while another thread opens one: that may wait for the very thread that would wait here.
        """
        if not self._opening.acquire(blocking=False):
            return
        try:
            self._drop(lambda _, way: way.link.is_current(way.remote) is False)
            for transport in self._transports:
                transport.sweep()
            for link in self.links():
                if not link.is_alive:
                    self._close_dead(link)
        finally:
            self._opening.release()

    def drop_peer(self, incarnation: int) -> None:
        """The peer has ended: closes its links, and takes back what transports gave to it. What moves ends first."""
        for link in self.links():
            if link.peer.incarnation == incarnation:
                link.peer_ended()
        with self._opening:
            self._drop(lambda _, way: way.link.peer.incarnation == incarnation)
            dropped = [link for key, link in self._links.items() if key[0] == incarnation]
            self._links = {key: link for key, link in self._links.items() if key[0] != incarnation}
        for link in dropped:
            self._end(link)
        for transport in self._transports:
            transport.peer_ended(incarnation)

    def tidy(self) -> None:
        """Tells peers what they wait for. It may wait for them, so nothing is held meanwhile."""
        for link in self.links():
            if link.is_alive:
                link.tidy()

    def forget_cluster(self, cluster_id: int) -> None:
        """Drops every way to an endpoint, also those that are just being opened: who uses them next asks anew.

        What moves on one goes on. Never waits.
        """
        self._drop(lambda name, _: name[0] == cluster_id, forgets=True)

    def gate(self, admit: Admit) -> None:
        """Lets the caller decide which endpoints may be reached; it is asked when a way is opened, not later."""
        self._admit = admit

    def explain(self, name: WayName, deadline: Deadline) -> tuple[Route, list[Verdict]]:
        """Which transports could serve this name from a cache in memory of the same kind, and why others could not."""
        route = self._resolve(name, deadline)
        return route, judge(self._transports, self._local.endpoint, route, route.cache.memory)

    def _open(self, name: WayName, memory: str, deadline: Deadline, is_asked: bool) -> Way:
        with self._holding(name[0], deadline):
            found = self._ways[memory].get(name)
            if found is not None:
                return found
            self.sweep()
            forgotten = self._forgotten
            way = self._way_to(name[0], self._resolve(name, deadline, is_asked), memory, forgotten, deadline)
            self._keep(name, memory, way, forgotten)
            return way

    def _resolve(self, name: WayName, deadline: Deadline, is_asked: bool = False) -> Route:
        """The gate is for what this endpoint begins: who asks for a transfer has let it in already."""
        return self._directory.resolve(name[0] if is_asked else self._admit(name[0]), name[1], deadline)

    def _way_to(self, cluster_id: int, route: Route, memory: str, forgotten: int, deadline: Deadline) -> Way:
        """The one way to this cache as it is now, opened if it is not yet.

        It is kept under the id that was asked for, unless ways were forgotten since the gate let that id pass.
        """
        name = (cluster_id, CacheName("id", route.cache.cache_id))
        known = self._ways[memory].get(name)
        if known is not None and _is_same(known.route, route):
            return known
        link = self._link(route, memory, deadline)
        way = Way(route, link, link.open_cache(route.cache, deadline))
        self._keep(name, memory, way, forgotten)
        return way

    def _keep(self, name: WayName, memory: str, way: Way, forgotten: int) -> None:
        with self._keeping:
            if forgotten == self._forgotten:
                self._ways[memory][name] = way

    def _drop(self, is_dropped: Callable[[WayName, Way], bool], *, forgets: bool = False) -> None:
        with self._keeping:
            self._forgotten += forgets
            self._ways = {
                memory: {name: way for name, way in ways.items() if not is_dropped(name, way)}
                for memory, ways in self._ways.items()
            }

    @contextmanager
    def _holding(self, cluster_id: int, deadline: Deadline) -> Iterator[None]:
        if not self._opening.acquire(timeout=deadline.remaining_s):
            raise TransferTimeout(f"another thread is still opening a link; none to endpoint {cluster_id} in time")
        try:
            if self._is_closed:
                raise ParamInvalid(f"endpoint {self._local.endpoint.cluster_id} is closed")
            yield
        finally:
            self._opening.release()

    def _link(self, route: Route, memory: str, deadline: Deadline) -> Link:
        """The best transport's link to this incarnation, opened if it is not yet."""
        check_memories(self._local, route, memory)
        transport = choose(self._transports, self._local.endpoint, route, memory)
        self._warn_if_slow(transport, route, memory)
        key = (route.endpoint.incarnation, transport.name)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = transport.open_link(self._local, route.endpoint, self._peers, deadline)
            self.on_link()
        return link

    def _warn_if_slow(self, transport: Transport, route: Route, memory: str) -> None:
        reason = why_slow(transport, self._transports, self._local.endpoint, route, memory)
        if reason is not None:
            self._counters.warn_once(
                f"slow_path/{transport.name}",
                f"cache {route.cache.cache_id} of {route.endpoint} is reached by {transport.name}, at about half the "
                f"speed of {FASTER[transport.name]} or less: {reason}",
            )

    def _close_dead(self, link: Link) -> None:
        self._drop(lambda _, way: way.link is link)
        self._links = {key: each for key, each in self._links.items() if each is not link}
        self._end(link)

    def _end(self, link: Link) -> None:
        """Closes a link; what it moved stays counted."""
        for name, amount in link.totals().items():
            self._counters.add(name, amount)
        link.close()

    def describe_transports(self) -> dict[str, dict[str, object]]:
        """What transports hold besides links, by name."""
        told = {transport.name: transport.describe() for transport in self._transports}
        return {name: what for name, what in told.items() if what}

    def close_transports(self) -> None:
        """Once no cache is left that a peer could write into."""
        for transport in self._transports:
            transport.close()

    def totals(self) -> dict[str, int]:
        """What all links moved since the endpoint's start, closed ones too."""
        totals = Counter(self._counters.snapshot())
        for link in self.links():
            totals.update(link.totals())
        return dict(totals)

    def links(self) -> list[Link]:
        return list(self._links.values())

    def close(self, deadline: Deadline) -> None:
        """Waits for the transfers that are under way; none can begin any more.

        Raises TransferTimeout while another thread is still opening a link.
        """
        self._is_closed = True
        self.close_all(deadline)

    def close_all(self, deadline: Deadline) -> None:
        """Raises as `close`; who needs a link later opens another."""
        if not self._opening.acquire(timeout=deadline.remaining_s):
            raise TransferTimeout("another thread is still opening a link")
        try:
            self._drop(lambda *_: True)
            for link in self._links.values():
                self._end(link)
            self._links = {}
        finally:
            self._opening.release()


def check_memories(here: LocalEnd, route: Route, memory: str) -> None:
    """Host and device memory meet in a staging buffer of the host's side (the third constraint of push_blocks).

    Raises LLMException (LLM_PARAM_INVALID) where that side has no device pool to take it from, or this one no device.
    """
    local = here.endpoint
    if memory == "device" and here.devices.device is None:
        raise ParamInvalid(
            f"a cache of endpoint {local.cluster_id} lies in device memory, and there is no device; "
            "emulated_device=host says that DEVICE caches lie in host memory"
        )
    if memory == route.cache.memory or (memory == "host" and route.cache.device is None):
        return
    there = f"cache {route.cache.cache_id} of {route.endpoint}"
    if memory == "host" and not local.staging_nbytes:
        raise ParamInvalid(
            f"{there} is DEVICE: from HOST it is reached with a device_pool of endpoint {local.cluster_id}"
        )
    if memory == "device" and not route.endpoint.staging_nbytes:
        raise ParamInvalid(f"{there} is HOST: from DEVICE it is reached with a device_pool of that endpoint")


def nothing_to_do() -> None:
    """Where nobody waits to hear of links."""


def as_named(cluster_id: int) -> int:
    return cluster_id


def _is_same(known: Route, now: Route) -> bool:
    return (known.endpoint.incarnation, known.cache.generation) == (now.endpoint.incarnation, now.cache.generation)
