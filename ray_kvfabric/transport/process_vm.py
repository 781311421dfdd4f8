"""process_vm: the kernel copies into or out of the peer's own address space (process_vm_writev, _readv).

For memory that somebody else allocated, such as a torch CPU tensor. Linux asks whether the caller may trace the
peer: same user, and under Yama the peer must have named a tracer. Where it has not, it is asked to, once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FeatureNotEnabled, LinkFailed
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.plan import LayerSpan, Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route
from ray_kvfabric.transport.base import Capabilities, Link, LocalEnd, Order, RemoteCache, Transport
from ray_kvfabric.transport.host_link import HostLink, same_host_refusal

ProcessCopy = Callable[..., tuple[int, int, int]]  # the kernel's write_process or read_process
ADMIT_WRITER = "admit_writer"  # the question to a peer that has named no tracer


class ProcessVmLink(HostLink):
    transport = "process_vm"

    def __init__(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None) -> None:
        super().__init__(local, peer)
        self._peers = peers

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        problem = self._probe(cache)
        if problem == errno.EPERM and self._peers is not None:
            self._peers.ask(self.peer, ADMIT_WRITER, {"pid": os.getpid()}, deadline)
            problem = self._probe(cache)
        if problem:
            raise LinkFailed(
                f"cache {cache.cache_id} of {self.peer} cannot be reached by process_vm: {os.strerror(problem)}"
            )
        return RemoteCache(cache, self.local.copier.RegionTable(cache.regions))

    def _probe(self, cache: CacheInfo) -> int:
        """The errno of reading one byte of the cache; 0 when that works."""
        copier = self.local.copier
        byte = bytearray(1)
        here = copier.RegionTable([(ctypes.addressof(ctypes.c_char.from_buffer(byte)), 1, 1, 1)], owner=byte)
        there = copier.RegionTable([(cache.regions[0].base, 1, 1, 1)])
        first = copier.BlockList([0], "probe")
        plan = Plan(LayerSpan(0, 0, 1, 0, 1), first, first)
        status, _, problem = self._read(there, here, plan, Order("", 0))
        return problem if status else 0

    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order) -> tuple[int, int, int]:
        return self._cross(self.local.copier.write_process, source, target, plan, order)

    def _read(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order) -> tuple[int, int, int]:
        return self._cross(self.local.copier.read_process, source, target, plan, order)

    def _cross(
        self, copy: ProcessCopy, source: RegionTable, target: RegionTable, plan: Plan, order: Order
    ) -> tuple[int, int, int]:
        if order.digest:
            raise FeatureNotEnabled("process_vm computes no digest: the bytes pass through the kernel only")
        span = plan.span
        return copy(
            self.peer.pid,
            source,
            target,
            span.source_first,
            span.target_first,
            span.num_regions,
            plan.source_blocks,
            plan.target_blocks,
            deadline_ns=order.deadline_ns,
            stop=order.stop,
        )


class ProcessVmTransport(Transport):
    name = "process_vm"
    capabilities = Capabilities(one_sided=True, same_host_only=True, foreign_memory=True)

    def missing(self) -> str | None:
        return None if platform.system() == "Linux" else "process_vm_writev exists on Linux only"

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        return same_host_refusal(local, route.endpoint)

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        return ProcessVmLink(local, peer, peers)
