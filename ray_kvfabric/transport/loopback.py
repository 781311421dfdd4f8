"""Loopback: both endpoints live in this process. The simplest transport, and the oracle of the others."""

from __future__ import annotations

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.memory.foreign import check_mapped
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route
from ray_kvfabric.transport.base import Capabilities, Link, LocalEnd, Order, RemoteCache, Step, Transport
from ray_kvfabric.transport.host_link import HostLink, Outcome, same_host_refusal


class LoopbackLink(HostLink):
    transport = "loopback"
    reaches_memory = True

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        """The cache at its own addresses; its owner does not free it while a transfer is inside."""
        if not cache.segments:
            what = f"a tensor of cache {cache.cache_id} of {self.peer}"
            check_mapped(what, [(region.base, region.extent) for region in cache.regions])
        table = self.local.copier.RegionTable(cache.regions)
        return self._whole(cache, table)

    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        span = plan.span
        status, nbytes, _ = self.local.copier.copy_blocks(
            source,
            target,
            span.source_first,
            span.target_first,
            span.num_regions,
            plan.source_blocks,
            plan.target_blocks,
            deadline_ns=order.deadline_ns,
            stop=order.stop,
            fence=step.fence,
            give_way=step.give_way,
            begin=step.begin,
            digests=step.digests,
        )
        return status, nbytes, 0

    _read = _write


class LoopbackTransport(Transport):
    name = "loopback"
    capabilities = Capabilities(one_sided=True, same_host_only=True, foreign_memory=True)

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        elsewhere = same_host_refusal(local, route.endpoint)
        if elsewhere is None and route.endpoint.pid != local.pid:
            return f"another process (pid {route.endpoint.pid}, here {local.pid})"
        return elsewhere

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        return LoopbackLink(local, peer)
