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

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.plan import LayerSpan, Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route
from ray_kvfabric.transport.base import Capabilities, Link, LocalEnd, Order, RemoteCache, Step, Transport
from ray_kvfabric.transport.host_link import HostLink, Outcome, same_host_refusal

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
        table = self.local.copier.RegionTable(cache.regions)
        return self._whole(cache, table)

    def _probe(self, cache: CacheInfo) -> int:
        """The errno of reading one byte of the cache; 0 when that works."""
        copier = self.local.copier
        byte = bytearray(1)
        here = copier.RegionTable([(ctypes.addressof(ctypes.c_char.from_buffer(byte)), 1, 1, 1)], owner=byte)
        there = copier.RegionTable([(cache.regions[0].base, 1, 1, 1)])
        first = copier.BlockList([0], "probe")
        plan = Plan(LayerSpan(0, 0, 1, 0, 1), first, first)
        status, _, problem = self._read(there, here, plan, Order("", 0), Step())
        return problem if status else 0

    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        if step.digests is not None and step.begin == 0:  # the kernel copies, so the bytes are read once more
            self._digest(source, plan, order, step.digests)
        return self._cross(self.local.copier.write_process, source, target, plan, order, step)

    def _digest(self, source: RegionTable, plan: Plan, order: Order, digests: NDArray[np.uint32]) -> None:
        span = plan.span
        self.local.copier.block_digests(
            source, span.source_first, span.num_regions, plan.source_blocks, digests,
            deadline_ns=order.deadline_ns, stop=order.stop,
        )  # fmt: skip

    def _read(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        return self._cross(self.local.copier.read_process, source, target, plan, order, step)

    def _cross(
        self, copy: ProcessCopy, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step
    ) -> Outcome:
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
            begin=step.begin,
            fence=step.fence,
            give_way=step.give_way,
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
