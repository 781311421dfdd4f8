"""device_ipc: the peer's device memory is mapped here by torch's IPC, and written by one batch of device copies.

    open a cache   its owner is asked once for shares of its storages; they stay mapped while the way to it does
    push           as over every link of one host (`host_link.py`): enter, copy, record. The peer runs no code
    unmap          the owner is told; until then, or until this process died, it does not hand the memory out again
Only the owner counts who maps a share: a process that dies could not count down.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ray_kvfabric.cache.layout import Region
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, FeatureNotEnabled, LinkFailed
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.memory.device import Device, Share, Tensor
from ray_kvfabric.memory.npu import NpuDevice
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt, Route
from ray_kvfabric.transport.base import (
    ANY_WITH_DEVICE,
    Answerer,
    Capabilities,
    Link,
    LocalEnd,
    Order,
    RemoteCache,
    Serving,
    Step,
    Transport,
)
from ray_kvfabric.transport.delegation import Delegate
from ray_kvfabric.transport.device_copy import carry_out, pieces_of
from ray_kvfabric.transport.device_shares import SHARE, UNMAPPED, ShareDesk
from ray_kvfabric.transport.host_link import HostLink, Outcome, same_host_refusal
from ray_kvfabric.transport.questions import ask

TELL_S = 5.0
_numbers = count(1)  # of mappings, never used twice in a process


class Mapping(NamedTuple):
    """One opening of a peer's cache, which ends by itself."""

    cache_id: int
    generation: int
    number: int


class Mapped:
    """A peer's cache is mapped while this lives: the owner of its table."""


class DeviceIpcLink(HostLink):
    transport = "device_ipc"

    def __init__(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None) -> None:
        self._peers = peers
        self._delegate = Delegate(self, peers)
        self._mappings: dict[Mapping, list[Share]] = {}  # of which the owner waits to be told that they ended
        self._ended: deque[Mapping] = deque()
        super().__init__(local, peer)  # which closes what it could not open

    # ---- mapping ---------------------------------------------------------------------------------

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        if cache.memory == "host" or self.peer.pid == os.getpid():
            return RemoteCache(cache, self.local.copier.RegionTable(cache.regions))
        mapping = Mapping(cache.cache_id, cache.generation, next(_numbers))
        mapped, tensors = Mapped(), list[Tensor]()
        weakref.finalize(mapped, self._ended.append, mapping).atexit = False
        shares = self._mappings[mapping] = self._ask_for_shares(mapping, deadline)
        device = self.local.devices.open(f"a link to {self.peer}")
        weakref.finalize(mapped, device.retired.append, tensors).atexit = False  # the later one runs first
        tensors += [_map(device, share) for share in shares]
        regions = [self._moved(region, shares, tensors) for region in cache.regions]
        return RemoteCache(cache, self.local.copier.RegionTable(regions, owner=mapped))

    def _ask_for_shares(self, mapping: Mapping, deadline: Deadline) -> list[Share]:
        question = {"mapping": tuple(mapping), "pid": os.getpid(), "incarnation": self.local.endpoint.incarnation}
        return [Share(*share) for share in ask(self._peers, self.peer, SHARE, question, deadline)]

    def _moved(self, region: Region, shares: list[Share], tensors: list[Tensor]) -> Region:
        for share, tensor in zip(shares, tensors, strict=True):
            offset = region.base - share.address
            if offset >= 0 and offset + region.extent <= share.nbytes:
                return region._replace(base=tensor.data_ptr() + offset)
        raise LinkFailed(f"{self.peer} announced a tensor at {region.base:#x} outside the memory that it shares")

    def tidy(self) -> None:
        """Unmaps what nobody uses here, and tells the owner; what it could not be told waits for the next time."""
        ended = []
        with suppress(IndexError):
            while True:
                ended.append(self._ended.popleft())
        self._unmap()  # what has ended so far was retired before
        if not ended or self._tell_unmapped(ended):
            for mapping in ended:
                self._mappings.pop(mapping, None)
        else:
            self._ended.extend(ended)

    def _unmap(self) -> None:
        device = self.local.devices.device
        if device is not None:
            device.unmap_retired()

    def _tell_unmapped(self, mappings: list[Mapping]) -> bool:
        question = {
            "mappings": [tuple(mapping) for mapping in mappings],
            "incarnation": self.local.endpoint.incarnation,
        }
        with suppress(FabricError):
            ask(self._peers, self.peer, UNMAPPED, question, Deadline.after(TELL_S))
            return True
        return False

    def close(self) -> None:
        was_alive = self.is_alive
        super().close()
        if was_alive:
            self.tidy()
            return
        self._unmap()
        for shares in self._mappings.values():
            for share in shares:
                _remove_counter(share)

    # ---- moving ----------------------------------------------------------------------------------

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        if target.info.memory == "host":
            return self._delegate.push(source, target, plan, order)
        return super().push(source, target, plan, order)

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        if source.info.memory == "host":
            return self._delegate.pull(source, target, plan, order)
        return super().pull(source, target, plan, order)

    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        if step.digests is not None:
            raise FeatureNotEnabled("device_ipc computes no digest: the bytes pass through the device only")
        return self._move(source, target, plan, order, is_pull=False)

    def _read(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        return self._move(source, target, plan, order, is_pull=True)

    def _move(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, *, is_pull: bool) -> Outcome:
        pieces = pieces_of(self.local, source, target, plan)
        device = self.local.devices.open(f"transfer {order.transfer_id}")
        return carry_out(device, self.local.staging, pieces, order, is_pull=is_pull)

    @property
    def nbytes_pushed(self) -> int:
        return super().nbytes_pushed + self._delegate.tally.nbytes_pushed

    @property
    def nbytes_pulled(self) -> int:
        return super().nbytes_pulled + self._delegate.tally.nbytes_pulled

    @property
    def num_landed(self) -> int:
        return super().num_landed + self._delegate.tally.num_landed


def _remove_counter(share: Share) -> None:
    """A process that was killed leaves torch's file of counters in /dev/shm."""
    name = share.counter_handle.decode(errors="replace").lstrip("/")
    with suppress(OSError):
        (Path("/dev/shm") / name).unlink()


def _map(device: Device, share: Share) -> Tensor:
    """Under a name of no file, so that only the owner counts."""
    return device.map_share(share._replace(counter_handle=b"/counted-by-its-owner"))


class DeviceIpcTransport(Transport):
    name = "device_ipc"
    capabilities = Capabilities(one_sided=True, same_host_only=True, foreign_memory=True, memories=ANY_WITH_DEVICE)

    def __init__(self) -> None:
        self._desk: ShareDesk | None = None

    def missing(self) -> str | None:
        return None if find_spec("torch") else "torch is not installed"

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        return same_host_refusal(local, route.endpoint) or _granule_refusal(route.cache)

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        return DeviceIpcLink(local, peer, peers)

    def serve(self, serving: Serving) -> dict[str, Answerer]:
        self._desk = ShareDesk(serving)
        return {SHARE: self._desk.share, UNMAPPED: self._desk.unmapped}

    def sweep(self) -> None:
        if self._desk is not None:
            self._desk.sweep()

    def describe(self) -> dict[str, object]:
        return {} if self._desk is None else self._desk.describe()

    def close(self) -> None:
        if self._desk is not None:
            self._desk.close()


def _granule_refusal(cache: CacheInfo) -> str | None:
    """aclrtMemcpyAsync between device addresses wants them aligned; other paths do not."""
    if cache.device is None or cache.device.kind != "npu":
        return None
    for region in cache.regions:
        if (region.base | region.block_nbytes | region.block_stride) % NpuDevice.granule:
            return (
                f"blocks of {region.block_nbytes} bytes at {region.base:#x} do not lie on multiples of "
                f"{NpuDevice.granule} bytes, as copies on an NPU want it"
            )
    return None
