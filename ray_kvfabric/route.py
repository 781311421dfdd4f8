"""What endpoints tell each other about themselves: pure data, cheap to pickle, no handles.

EndpointInfo   who: cluster_id, incarnation, process, host
CacheInfo      what: one cache's layout, its slot in the endpoint's shared page, offers by transport
Route          both, as the scheduler hands them to a source
Receipt        what a landed transfer leaves at both ends
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.cache.layout import Region


class HostId(NamedTuple):
    """Two processes may share memory only where all three agree."""

    boot_id: str
    pid_namespace: int
    uid: int

    @classmethod
    def here(cls) -> HostId:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read().strip()
        return cls(boot_id, os.stat("/proc/self/ns/pid").st_ino, os.getuid())


class Segment(NamedTuple):
    """Part of a cache's memory that lies in a memfd of its owner: `fd` is the owner's descriptor.

    `inode` proves that what a peer opened is this memory and not a later one under the same descriptor.
    """

    address: int
    nbytes: int
    fd: int
    inode: int


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """One process's share of the fabric."""

    cluster_id: int
    incarnation: int
    pid: int
    host: HostId
    page_fd: int
    page_inode: int
    transports: tuple[str, ...]
    node: str = ""
    role: str = "MIX"

    def __str__(self) -> str:
        return f"endpoint {self.cluster_id} (incarnation {self.incarnation:016x}, pid {self.pid})"


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """One blocks cache as its endpoint announces it.

    `slot` and `generation` name its word in the endpoint's shared page: while the word holds the generation,
    this description is good. `segments` is empty for memory that the fabric did not allocate.
    """

    cache_id: int
    model_id: int | None
    data_type: str
    placement: str
    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    slot: int
    generation: int
    remote_accessible: bool
    memory: str
    segments: tuple[Segment, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(region.num_blocks * region.block_nbytes for region in self.regions)


@dataclass(frozen=True, slots=True)
class Route:
    """A target as the scheduler knows it: endpoint and cache."""

    endpoint: EndpointInfo
    cache: CacheInfo


@dataclass(frozen=True, slots=True)
class CacheRef:
    """A cache named from outside its endpoint."""

    cluster_id: int
    cache_id: int


class Receipt(NamedTuple):
    """What a landed transfer leaves at both ends. Times are CLOCK_MONOTONIC nanoseconds of the one host."""

    transfer_id: str
    source_cluster_id: int
    target_cluster_id: int
    cache_id: int
    first_layer: int
    num_layers: int
    num_blocks: int
    nbytes: int
    transport: str
    started_ns: int
    landed_ns: int
    digest: int | None = None

    @property
    def seconds(self) -> float:
        return (self.landed_ns - self.started_ns) / 1e9

    @property
    def gbps(self) -> float:
        """10^9 bytes a second."""
        return self.nbytes / max(self.landed_ns - self.started_ns, 1)
