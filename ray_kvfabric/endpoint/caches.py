"""CacheTable: the caches of one endpoint, their memory, and the words of the shared page that stand for them.

registered or allocated -> live: slot word = generation -> retired: slot word 0, writers drained -> memory freed
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.layout import Region, regions_of, tensor_nbytes
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.cache_entry import CacheEntry, Wanted, check_shape, tensor_opener
from ray_kvfabric.endpoint.key_index import bound_keys, keys_to_allocate, keys_to_register
from ray_kvfabric.errors import (
    CacheNotFound,
    LLMException,
    LLMStatusCode,
    ParamInvalid,
    StaleRoute,
    StillMoving,
    TransferTimeout,
)
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.memory.device import Devices
from ray_kvfabric.memory.device_pool import DeviceMemory, DevicePool
from ray_kvfabric.memory.foreign import Borrowed, borrow, check_mapped
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.route import CacheInfo, DeviceId, RowKey, Segment
from ray_kvfabric.transport import _shared_page as shared_page

Pools = dict[Placement, HostPool | DevicePool]
_REACH = 2**63


class CacheTable:
    """Ids start at 1 and are never used again. Threads may share it."""

    def __init__(
        self,
        pools: Pools,
        page: shared_page.SharedPage,
        copier: Copier,
        devices: Devices,
        *,
        emulates_device: bool,
    ) -> None:
        self._pools = pools
        self._devices = devices
        self._emulates_device = emulates_device
        self._page = page
        self._copier = copier
        self._lock = threading.RLock()
        self._ids = count(1)
        self._visits = count(1)
        self._entries: dict[int, CacheEntry] = {}
        self._leaving: dict[int, CacheEntry] = {}  # fenced off, a writer may still be inside

    # ---- making ----------------------------------------------------------------------------------

    def allocate(self, wanted: Wanted) -> CacheEntry:
        """A cache in memory of its own, within the budget of its placement's pool."""
        desc = wanted.desc
        check_shape(desc)  # before it costs memory
        with self._lock:
            bound = bound_keys(entry.info for entry in self._entries.values())
            keys = keys_to_allocate(wanted.keys, desc.shape[0], bound)
            self._check_model_is_free(wanted.model_id)
            cache_id = next(self._ids)
            memory, addresses = self._pools[desc.placement].allocate(
                f"kvfabric-cache-{cache_id}", desc.num_tensors, tensor_nbytes(desc)
            )
            try:
                return self._add(cache_id, wanted, keys, addresses, (), memory)
            except BaseException:
                self._free(desc.placement, memory)
                raise

    def register(self, wanted: Wanted, tensors: list[object]) -> tuple[CacheEntry, CacheEntry | None]:
        """A cache over memory of others, and the older one that lost its `model_id` to it, if any."""
        nbytes = tensor_nbytes(wanted.desc)
        borrowed = tuple(borrow(tensor, nbytes, f"addrs[{index}]") for index, tensor in enumerate(tensors))
        addresses = [each.address for each in borrowed]
        _check_reach(regions_of(wanted.desc, addresses))
        with self._lock:
            bound = bound_keys(entry.info for entry in self._entries.values())
            keys = keys_to_register(wanted.keys, wanted.desc.shape[0], bound)
            entry = self._add(next(self._ids), wanted, keys, addresses, borrowed, None)
            return entry, self._take_model_over(entry)

    def _add(
        self,
        cache_id: int,
        wanted: Wanted,
        keys: tuple[RowKey, ...],
        addresses: list[int],
        borrowed: tuple[Borrowed, ...],
        memory: HostMemory | DeviceMemory | None,
    ) -> CacheEntry:
        desc = wanted.desc
        regions = regions_of(desc, addresses)
        kind = self._memory_kind(desc.placement)
        device = self._device_of(kind, memory, borrowed)
        table = self._copier.RegionTable(regions, owner=(memory, borrowed))
        slot, generation = self._publish_slot()
        info = CacheInfo(
            cache_id=cache_id,
            model_id=wanted.model_id,
            data_type=desc.data_type.name,
            placement=desc.placement.name,
            shape=tuple(desc.shape),
            regions=regions,
            slot=slot,
            generation=generation,
            remote_accessible=wanted.remote_accessible,
            memory=kind,
            segments=self._segments(regions, memory) if kind == "host" else (),
            is_blocks=wanted.is_blocks,
            is_allocated=memory is not None,
            keys=keys,
            device=device,
            grants_only=wanted.grants_only,
        )
        is_shown = kind == "host" or memory is not None or all(each.device is not None for each in borrowed)
        opener = tensor_opener(regions, memory, borrowed, kind) if is_shown else None
        cache = Cache(cache_id, desc, addresses, wanted.is_blocks, opener)
        is_probed = memory is not None or all(each.owner is not None for each in borrowed)
        self._entries[cache_id] = CacheEntry(info, cache, table, memory, borrowed, is_probed)
        return self._entries[cache_id]

    def _memory_kind(self, placement: Placement) -> str:
        return "host" if placement is Placement.HOST or self._emulates_device else "device"

    def _device_of(
        self, kind: str, memory: HostMemory | DeviceMemory | None, borrowed: tuple[Borrowed, ...]
    ) -> DeviceId | None:
        """Where device memory lies. None for host memory, and for bare addresses where torch knows no device.

        Raises LLMException (LLM_PARAM_INVALID) for tensors that lie elsewhere.
        """
        on_device = any(each.device is not None for each in borrowed)
        device = None
        if kind == "device":
            device = self._devices.open("a cache of device tensors") if memory or on_device else self._devices.find()
        for index, each in enumerate(borrowed):
            is_right = device.has(each.device) if device is not None else each.device is None
            if each.owner is not None and not is_right:
                raise ParamInvalid(
                    f"addrs[{index}] lies on {each.device or 'the host'}, the cache is to lie "
                    f"{'in HOST memory' if device is None else f'on {device.id}'}"
                )
        return None if device is None else device.id

    def _publish_slot(self) -> tuple[int, int]:
        published = self._page.publish_slot()
        if published is None:
            raise LLMException(
                f"all {shared_page.SLOTS} cache slots of this endpoint are taken",
                status_code=LLMStatusCode.LLM_FAILED,
            )
        return published

    def _segments(self, regions: Iterable[Region], memory: HostMemory | DeviceMemory | None) -> tuple[Segment, ...]:
        """The memfds that the regions lie in; none when one region lies elsewhere."""
        found: dict[int, HostMemory] = {}
        for region in regions:
            holder = memory or self._pool_memory(region)
            if not isinstance(holder, HostMemory) or not holder.holds(region.base, region.extent):
                return ()
            found[holder.inode] = holder
        return tuple(Segment(each.address, each.nbytes, each.fd, each.inode) for each in found.values())

    def _pool_memory(self, region: Region) -> HostMemory | DeviceMemory | None:
        found = (pool.find(region.base, region.extent) for pool in self._pools.values())
        return next((memory for memory in found if memory is not None), None)

    # ---- keys ------------------------------------------------------------------------------------

    def _check_model_is_free(self, model_id: int | None) -> None:
        for entry in self._entries.values():
            if model_id is not None and entry.info.model_id == model_id:
                raise ParamInvalid(f"model_id {model_id} already names cache {entry.info.cache_id}")

    def _take_model_over(self, new: CacheEntry) -> CacheEntry | None:
        """The older cache lives on without its key; routes to it become stale."""
        for entry in self._entries.values():
            if entry is not new and new.info.model_id is not None and entry.info.model_id == new.info.model_id:
                generation = self._page.renew_slot(entry.info.slot)
                entry.info = replace(entry.info, model_id=None, generation=generation)
                return entry
        return None

    def give_back_model(self, entry: CacheEntry, model_id: int) -> None:
        """Undoes `register`'s taking over; the cache has a new generation all the same."""
        with self._lock:
            entry.info = replace(entry.info, model_id=model_id)

    def note_pull(self, cache_id: int, row: int, tensors: range) -> list[RowKey]:
        """A peer has pulled these tensors of a row. The keys that it has used up by that (contract 12.3)."""
        with self._lock:
            entry = self._entries.get(cache_id)
            if entry is None or not entry.info.is_allocated:
                return []
            used_up = []
            for key in entry.info.keys:
                if key.row == row and key.kind == "request":
                    pulled = entry.pulled.setdefault(key[:3], set())
                    pulled.update(tensors)
                    if len(pulled) >= len(entry.info.regions):
                        used_up.append(key)
            return used_up

    def remove_key(self, kind: str, number: int, model_id: int) -> CacheEntry | None:
        """The allocated cache that held this key and lost it now; None when there is none."""
        wanted = (kind, number, model_id)
        with self._lock:
            for entry in self._entries.values():
                left = tuple(key for key in entry.info.keys if key[:3] != wanted)
                if entry.info.is_allocated and len(left) < len(entry.info.keys):
                    entry.info = replace(entry.info, keys=left)
                    entry.pulled.pop(wanted, None)
                    return entry
        return None

    # ---- finding and ending ----------------------------------------------------------------------

    def find(self, cache_id: int) -> CacheEntry:
        """Raises LLMException (LLM_KV_CACHE_NOT_EXIST) for an unknown or freed id."""
        try:
            return self._entries[cache_id]
        except KeyError:
            raise CacheNotFound(f"this endpoint has no cache {cache_id}; it was freed or never existed") from None

    def look_up(self, cache_id: int) -> CacheEntry | None:
        return self._entries.get(cache_id)

    def table_of(self, cache_id: int) -> RegionTable:
        """Also of a cache that is being removed."""
        entry = self._leaving.get(cache_id)
        return (entry or self.find(cache_id)).table

    def find_mapped(self, cache_id: int) -> CacheEntry:
        """As `find`, and the first time looks whether bare addresses of the cache are mapped."""
        entry = self.find(cache_id)
        if not entry.is_probed and entry.info.device is not None:
            for region in entry.info.regions:
                self._devices.open(f"cache {cache_id}").probe(region.base)
            entry.is_probed = True
        if not entry.is_probed and entry.info.memory == "host":
            check_mapped(f"a tensor of cache {cache_id}", [(each.base, each.extent) for each in entry.info.regions])
            entry.is_probed = True
        return entry

    def enter(self, cache_id: int, number: int) -> CacheEntry:
        """As `find_mapped`; the memory stays until `leave` of the entry was called with that number."""
        entry = self.find_mapped(cache_id)
        entry.inside.add(number)
        if not self.holds(entry):  # fenced off in between: who waits there may not have seen us
            entry.leave(number)
            self.find(cache_id)
        return entry

    @contextmanager
    def visit(self, cache_id: int, generation: int) -> Iterator[CacheEntry]:
        """For a peer that was told of this generation: the memory stays inside. Raises StaleRoute when it is gone."""
        number = -next(self._visits)
        gone = f"cache {cache_id} of this endpoint is not what it was when the link opened it"
        try:
            entry = self.enter(cache_id, number)
        except CacheNotFound:
            raise StaleRoute(gone) from None
        try:
            if entry.info.generation != generation:
                raise StaleRoute(gone)
            yield entry
        except StillMoving:  # it stays in use
            raise
        except BaseException:
            entry.leave(number)
            raise
        entry.leave(number)

    def find_here(self, cache_id: int) -> CacheEntry:
        """As `find_mapped`, for a copy inside this process. LLM_PARAM_INVALID for device memory without a device."""
        entry = self.find_mapped(cache_id)
        if entry.info.memory != "host" and entry.info.device is None:
            raise ParamInvalid(
                f"cache {cache_id} lies in device memory, and there is no device; emulated_device=host says that "
                "DEVICE caches lie in host memory"
            )
        return entry

    def holder(self, cache: Cache, extent: int) -> object:
        """What keeps `extent` bytes of each tensor of a handle alive, as far as that is known here.

        The handle may be of no cache of this endpoint. Raises LLMException (LLM_PARAM_INVALID) for bytes that are
        not mapped.
        """
        entry = self._entries.get(cache.cache_id)
        if entry is not None and entry.cache is cache and extent <= entry.info.regions[0].extent:
            return self.find_mapped(cache.cache_id).table
        check_mapped(f"a tensor of cache {cache.cache_id}", [(address, extent) for address in cache.tensor_addrs])
        return cache

    def holds(self, entry: CacheEntry) -> bool:
        return self._entries.get(entry.info.cache_id) is entry

    def fence(self, cache_id: int) -> CacheEntry | None:
        """From now on nobody finds the cache, and no writer enters it. None for an unknown id."""
        with self._lock:
            entry = self._entries.pop(cache_id, None) or self._leaving.get(cache_id)
            if entry is not None:
                self._leaving[cache_id] = entry
                self._page.retire_slot(entry.info.slot)
            return entry

    def remove(self, cache_id: int, deadline: Deadline) -> CacheEntry | None:
        """Fences the cache off, waits for transfers inside it, frees it. None for an unknown id.

        Raises TransferTimeout while one does not end: the memory is then kept, and another call waits again.
        """
        entry = self.fence(cache_id)
        if entry is None:
            return None
        if not self._page.drain_slot(entry.info.slot, deadline.at_ns):
            raise TransferTimeout(f"cache {cache_id} is still being used by a peer; its memory must not be reused")
        if not entry.await_local_users(deadline):
            raise TransferTimeout(f"cache {cache_id} is still being used by a transfer of this endpoint")
        with self._lock:
            if self._leaving.pop(cache_id, None) is None:  # another call was faster
                return None
            self._page.free_slot(entry.info.slot)
        if entry.memory is not None:
            self._free(Placement[entry.info.placement], entry.memory)
        return entry

    def _free(self, placement: Placement, memory: HostMemory | DeviceMemory) -> None:
        pool: Any = self._pools[placement]
        pool.free(memory)

    def all(self) -> list[CacheEntry]:
        with self._lock:
            return list(self._entries.values())

    def all_ids(self) -> list[int]:
        """With those that are being removed."""
        with self._lock:
            return [*self._entries, *self._leaving]


def _check_reach(regions: Iterable[Region]) -> None:
    """No process has bytes beyond 2**63; the kernel counts with signed numbers."""
    for index, region in enumerate(regions):
        if region.base + region.extent >= _REACH:
            raise ParamInvalid(f"addrs[{index}] is {region.base:#x}: no process has memory up to there")
