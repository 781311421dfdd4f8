"""Shared memory: the peer's cache lies in memfds of the fabric, which this process maps through /proc.

No name in the file system and no socket: what dies, takes its memory with it.
"""

from __future__ import annotations

from ray_kvfabric.cache.layout import Region
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed, PeerLost, StaleRoute
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route, Segment
from ray_kvfabric.transport.base import Capabilities, Link, LocalEnd, RemoteCache, Transport
from ray_kvfabric.transport.host_link import same_host_refusal
from ray_kvfabric.transport.loopback import LoopbackLink


class SharedMemoryLink(LoopbackLink):
    """The loopback copy, on addresses at which the peer's memory is mapped here."""

    transport = "shared_memory"

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        memories = [(segment, self._open(segment, cache)) for segment in cache.segments]
        regions = [self._mapped(region, memories) for region in cache.regions]
        table = self.local.copier.RegionTable(regions, owner=memories)
        return self._whole(cache, table)

    def _open(self, segment: Segment, cache: CacheInfo) -> HostMemory:
        try:
            return HostMemory.open_peer(self.peer.pid, segment.fd, segment.inode)
        except PeerLost:
            if not self.is_alive:
                raise
            raise StaleRoute(f"cache {cache.cache_id} of {self.peer} was freed before it was opened here") from None

    def _mapped(self, region: Region, memories: list[tuple[Segment, HostMemory]]) -> Region:
        for segment, memory in memories:
            offset = region.base - segment.address
            if offset >= 0 and offset + region.extent <= memory.nbytes:
                return region._replace(base=memory.address + offset)
        raise LinkFailed(f"{self.peer} announced a tensor at {region.base:#x} outside the memory that it shares")


class SharedMemoryTransport(Transport):
    name = "shared_memory"
    capabilities = Capabilities(one_sided=True, same_host_only=True, foreign_memory=False)

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        if not route.cache.segments:
            return f"cache {route.cache.cache_id} lies in memory that the fabric did not allocate"
        return same_host_refusal(local, route.endpoint)

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        return SharedMemoryLink(local, peer)
