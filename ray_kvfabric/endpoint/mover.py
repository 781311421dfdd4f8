"""Mover: what a job needs of its endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.endpoint.caches import CacheTable
from ray_kvfabric.endpoint.gate import Gate
from ray_kvfabric.endpoint.links import LinkTable
from ray_kvfabric.memory.copy import Copier
from ray_kvfabric.memory.device import Devices, Mark
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.telemetry import Counters

NotePull = Callable[[EndpointInfo, int, int, range], None]  # the owner, its cache_id, row, tensors


def tell_nobody(owner: EndpointInfo, cache_id: int, row: int, tensors: range) -> None:
    """The NotePull of an endpoint that was closed."""


@dataclass(slots=True)
class Mover:
    """`note_pull` tells the owner of a row that it was pulled (contract 12.3: keys are used up by that)."""

    cluster_id: int
    mode: str  # "one_sided" or "request"
    has_device_pool: bool
    caches: CacheTable
    links: LinkTable
    counters: Counters
    copier: Copier
    devices: Devices
    note_pull: NotePull
    gate: Gate
    boot_id: str

    def mark(self, cache: Cache) -> Mark | None:
        """What the calling thread's current stream still has to do before a device cache may be read or written."""
        device = self.devices.device
        if device is None or cache.cache_desc.placement is not Placement.DEVICE:
            return None
        return device.mark()
