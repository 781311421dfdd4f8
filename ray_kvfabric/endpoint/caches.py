"""CacheTable: the caches of one endpoint, their memory, and the words of the shared page that stand for them.

registered or allocated -> live: slot word = generation -> retired: slot word 0, writers drained -> memory freed
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.layout import Region, regions_of, tensor_nbytes
from ray_kvfabric.cache.types import CacheDesc, Placement
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import CacheNotFound, LLMException, LLMStatusCode, ParamInvalid, TransferTimeout
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.memory.foreign import Borrowed, borrow, unmapped
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.route import CacheInfo, Segment
from ray_kvfabric.transport import _shared_page as shared_page


@dataclass(slots=True)
class CacheEntry:
    """One live cache. `is_probed` says that its bare addresses were found mapped."""

    info: CacheInfo
    cache: Cache
    table: RegionTable
    memory: HostMemory | None
    borrowed: tuple[Borrowed, ...]
    is_probed: bool


class CacheTable:
    """Ids start at 1 and are never used again. Threads may share it."""

    def __init__(self, pool: HostPool, page: shared_page.SharedPage, copier: Copier, *, emulates_device: bool) -> None:
        self._pool = pool
        self._emulates_device = emulates_device
        self._page = page
        self._copier = copier
        self._lock = threading.RLock()
        self._ids = count(1)
        self._entries: dict[int, CacheEntry] = {}

    def allocate(self, desc: CacheDesc, model_id: int | None) -> CacheEntry:
        """A blocks cache in memory of its own, within the pool's budget."""
        if self._memory_kind(desc.placement) != "host":
            raise ParamInvalid("cache_desc.placement is DEVICE, and this endpoint has no device pool to allocate from")
        with self._lock:
            if model_id is not None and self._holder(model_id) is not None:
                raise ParamInvalid(f"model_id {model_id} already names cache {self._holder(model_id)}")
            cache_id = next(self._ids)
            regions_of(desc, [1] * desc.num_tensors)  # refuses a shape before it costs memory
            memory, addresses = self._pool.allocate(f"kvfabric-cache-{cache_id}", desc.num_tensors, tensor_nbytes(desc))
            try:
                return self._add(cache_id, desc, addresses, (), memory, model_id, remote_accessible=True)
            except BaseException:
                self._pool.free(memory)
                raise

    def register(
        self, desc: CacheDesc, tensors: list[object], model_id: int | None, remote_accessible: bool
    ) -> CacheEntry:
        """A blocks cache over memory of others; its `model_id` takes the key over from an older cache."""
        nbytes = tensor_nbytes(desc)
        borrowed = tuple(borrow(tensor, nbytes, f"addrs[{index}]") for index, tensor in enumerate(tensors))
        with self._lock:
            cache_id = next(self._ids)
            addresses = [each.address for each in borrowed]
            entry = self._add(cache_id, desc, addresses, borrowed, None, model_id, remote_accessible)
            self._take_key_over(model_id, entry)
            return entry

    def _add(
        self,
        cache_id: int,
        desc: CacheDesc,
        addresses: list[int],
        borrowed: tuple[Borrowed, ...],
        memory: HostMemory | None,
        model_id: int | None,
        remote_accessible: bool,
    ) -> CacheEntry:
        regions = regions_of(desc, addresses)
        slot, generation = self._publish_slot()
        info = CacheInfo(
            cache_id=cache_id,
            model_id=model_id,
            data_type=desc.data_type.name,
            placement=desc.placement.name,
            shape=tuple(desc.shape),
            regions=regions,
            slot=slot,
            generation=generation,
            remote_accessible=remote_accessible,
            memory=self._memory_kind(desc.placement),
            segments=self._segments(regions, memory),
        )
        table = self._copier.RegionTable(regions, owner=(memory, borrowed))
        cache = Cache(cache_id, desc, addresses, True, _opener(regions, memory, borrowed))
        is_probed = memory is not None or all(each.owner is not None for each in borrowed)
        self._entries[cache_id] = CacheEntry(info, cache, table, memory, borrowed, is_probed)
        return self._entries[cache_id]

    def _memory_kind(self, placement: Placement) -> str:
        return "host" if placement is Placement.HOST or self._emulates_device else "device"

    def _publish_slot(self) -> tuple[int, int]:
        published = self._page.publish_slot()
        if published is None:
            raise LLMException(
                f"all {shared_page.SLOTS} cache slots of this endpoint are taken",
                status_code=LLMStatusCode.LLM_FAILED,
            )
        return published

    def _segments(self, regions: Iterable[Region], memory: HostMemory | None) -> tuple[Segment, ...]:
        """The memfds that the regions lie in; none when one region lies elsewhere."""
        found: dict[int, HostMemory] = {}
        for region in regions:
            holder = memory or self._pool.find(region.base, region.extent)
            if holder is None or not holder.holds(region.base, region.extent):
                return ()
            found[holder.inode] = holder
        return tuple(Segment(each.address, each.nbytes, each.fd, each.inode) for each in found.values())

    def _holder(self, model_id: int) -> int | None:
        return next((key for key, entry in self._entries.items() if entry.info.model_id == model_id), None)

    def _take_key_over(self, model_id: int | None, new: CacheEntry) -> None:
        """The older cache lives on without its key; routes to it by that key become stale."""
        for entry in self._entries.values():
            if entry is not new and model_id is not None and entry.info.model_id == model_id:
                generation = self._page.renew_slot(entry.info.slot)
                entry.info = replace(entry.info, model_id=None, generation=generation)

    def find(self, cache_id: int) -> CacheEntry:
        """Raises LLMException (LLM_KV_CACHE_NOT_EXIST) for an unknown or freed id."""
        try:
            return self._entries[cache_id]
        except KeyError:
            raise CacheNotFound(f"this endpoint has no cache {cache_id}; it was freed or never existed") from None

    def find_mapped(self, cache_id: int) -> CacheEntry:
        """As `find`, and the first time looks whether bare addresses of the cache are mapped."""
        entry = self.find(cache_id)
        if not entry.is_probed and entry.info.memory == "host":
            hole = unmapped([(region.base, region.extent) for region in entry.info.regions])
            if hole is not None:
                raise ParamInvalid(
                    f"cache {cache_id} was registered at address {hole[0]:#x}, of which this process has not "
                    f"{hole[1]} bytes mapped readable and writable"
                )
            entry.is_probed = True
        return entry

    def remove(self, cache_id: int, deadline: Deadline) -> CacheEntry | None:
        """Fences the cache off, waits for writers inside it, frees it. None for an unknown id.

        Raises TransferTimeout while a live writer does not leave: its memory is then kept.
        """
        with self._lock:
            entry = self._entries.pop(cache_id, None)
        if entry is None:
            return None
        self._page.retire_slot(entry.info.slot)
        if entry.memory is None and not self._page.drain_slot(entry.info.slot, deadline.at_ns):
            raise TransferTimeout(f"cache {cache_id} is still being written by a peer; its memory must not be reused")
        if entry.memory is not None:
            self._pool.free(entry.memory)
        return entry

    def all(self) -> list[CacheEntry]:
        with self._lock:
            return list(self._entries.values())


def _opener(
    regions: tuple[Region, ...], memory: HostMemory | None, borrowed: tuple[Borrowed, ...]
) -> Callable[[int], memoryview]:
    def open_tensor(index: int) -> memoryview:
        region = regions[index]
        if memory is not None:
            return memory.view(region.base, region.extent)
        return _raw_view(region, borrowed[index].owner)

    return open_tensor


def _raw_view(region: Region, owner: object) -> memoryview:
    array = (ctypes.c_ubyte * region.extent).from_address(region.base)
    array.owner = owner  # type: ignore[attr-defined]  # lives as long as a view of the array
    return memoryview(array).cast("B")
