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

from ray_kvfabric.cache.html_table import Cell, html_table, mebibytes
from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.cache.layout import Region

CACHE_HEADINGS = ("cache", "model_id", "tensors", "shape", "type", "memory", "MiB")


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


class DeviceId(NamedTuple):
    """The accelerator that device memory lies on: "npu" or "cuda", as its own process counts it."""

    kind: str
    number: int
    chip: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.number} ({self.chip})"


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
    alias: str = ""  # "ip:port" by which programs written for LLM-DataDist know it; nothing listens there
    has_device_pool: bool = False
    staging_nbytes: int = 0  # of one of its two staging buffers; 0: it has none
    is_draining: bool = False  # it finishes what it has and takes no new work

    def __str__(self) -> str:
        return f"endpoint {self.cluster_id} (incarnation {self.incarnation:016x}, pid {self.pid})"


class RowKey(NamedTuple):
    """A request or a prefix that names one row of a continuous cache."""

    kind: str  # "request" or "prefix"
    number: int
    model_id: int
    row: int


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """One cache as its endpoint announces it. A region's blocks are the rows of a continuous cache.

    `slot` and `generation` name its word in the endpoint's shared page: while the word holds the generation,
    this description is good. `memory` is "host" or "device". `segments` is empty for memory that the fabric did
    not allocate, and for device memory.
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
    is_blocks: bool = True
    is_allocated: bool = False
    keys: tuple[RowKey, ...] = ()  # of a continuous cache
    device: DeviceId | None = None  # of device memory, where its owner knows the device
    grants_only: bool = False  # pushes need a grant

    def is_named(self, name: CacheName) -> bool:
        if name.kind == "model":
            return self.model_id == name.model_id
        if name.kind == "id":
            return self.cache_id == name.number
        if name.kind == "address":
            return any(region.base <= name.number < region.base + region.extent for region in self.regions)
        return self.row_of(name) is not None

    def row_of(self, name: CacheName) -> int | None:
        """The row that a request or prefix names here."""
        wanted = (name.kind, name.number, name.model_id)
        return next((key.row for key in self.keys if key[:3] == wanted), None)

    @property
    def nbytes(self) -> int:
        return sum(region.num_blocks * region.block_nbytes for region in self.regions)

    @property
    def shown(self) -> tuple[Cell, ...]:
        """Its cells under CACHE_HEADINGS."""
        where = self.memory if self.device is None else str(self.device)
        shape, mib = str(list(self.shape)), mebibytes(self.nbytes)
        return (self.cache_id, self.model_id, len(self.regions), shape, self.data_type, where, mib)

    def _repr_html_(self) -> str:
        return html_table(f"cache {self.cache_id}", CACHE_HEADINGS, [self.shown])


@dataclass(frozen=True, slots=True)
class Route:
    """A target as the scheduler knows it: endpoint and cache."""

    endpoint: EndpointInfo
    cache: CacheInfo


@dataclass(frozen=True, slots=True)
class CacheRef:
    """A cache named from outside its endpoint.

    With `incarnation` it is that cache alone, and stale once its endpoint was replaced; without, whichever has that
    cache_id now.
    """

    cluster_id: int
    cache_id: int
    incarnation: int | None = None


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

    @property
    def seconds(self) -> float:
        return (self.landed_ns - self.started_ns) / 1e9

    @property
    def gbps(self) -> float:
        """10^9 bytes a second."""
        return self.nbytes / max(self.landed_ns - self.started_ns, 1)

    def _repr_html_(self) -> str:
        headings = ("from", "to", "cache", "layers", "blocks", "bytes", "ms", "GB/s", "transport")
        layers = f"{self.first_layer} to {self.first_layer + self.num_layers - 1}"
        speed = round(self.seconds * 1e3, 3), round(self.gbps, 2)
        row = (self.source_cluster_id, self.target_cluster_id, self.cache_id, layers, self.num_blocks, self.nbytes)
        return html_table(f"transfer {self.transfer_id}: landed", headings, [(*row, *speed, self.transport)])
