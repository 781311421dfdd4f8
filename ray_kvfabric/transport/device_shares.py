"""The owner's side of device_ipc: which processes map which of this endpoint's device memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from ray_kvfabric.errors import ParamInvalid, PeerLost
from ray_kvfabric.memory.device import Device, Share
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import LocalCache, Serving

SHARE, UNMAPPED = "device_ipc_share", "device_ipc_unmapped"


class _Holder(NamedTuple):
    """A process that maps a cache."""

    incarnation: int
    cache_id: int
    generation: int


class ShareDesk:
    """Torch keeps a freed tensor's memory aside while its counter is not zero; this counts down, and nobody else."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._given: dict[_Holder, list[Share]] = {}
        self._processes: dict[int, int] = {}  # incarnation -> pidfd

    def share(self, arguments: dict[str, Any]) -> list[tuple[object, ...]]:
        """Shares of the storages under a cache; asked again by the same endpoint, the same shares."""
        holder = _holder(arguments)
        with self._serving.visit(holder.cache_id, holder.generation) as cache, self._lock:
            if holder not in self._given:
                self._watch(holder.incarnation, arguments["pid"])
                device = self._serving.local.devices.open(f"cache {holder.cache_id}")
                self._given[holder] = list(_shares(device, cache))
            return [tuple(share) for share in self._given[holder]]

    def _watch(self, incarnation: int, pid: int) -> None:
        if incarnation not in self._processes:
            try:
                self._processes[incarnation] = os.pidfd_open(pid)
            except ProcessLookupError:
                raise PeerLost(f"process {pid} has died") from None

    def unmapped(self, arguments: dict[str, Any]) -> bool:
        with self._lock:
            self._take_back(_holder(arguments))
        return True

    def sweep(self) -> None:
        """Takes back what dead processes had mapped."""
        with self._lock:
            dead = {each for each, pidfd in self._processes.items() if shared_page.has_ended(pidfd)}
            for holder in [holder for holder in self._given if holder.incarnation in dead]:
                self._take_back(holder)
            for incarnation in dead:
                os.close(self._processes.pop(incarnation))

    def _take_back(self, holder: _Holder) -> None:
        device = self._serving.local.devices.device
        shares = self._given.pop(holder, [])
        if device is None or not shares:
            return
        for share in shares:
            device.release_share(share)
        device.collect()

    def describe(self) -> dict[str, object]:
        with self._lock:
            return {"caches_mapped_by_peers": len(self._given)} if self._given else {}

    def close(self) -> None:
        with self._lock:
            for holder in [*self._given]:
                self._take_back(holder)
            for pidfd in self._processes.values():
                os.close(pidfd)
            self._processes.clear()


def _holder(arguments: dict[str, Any]) -> _Holder:
    return _Holder(arguments["incarnation"], arguments["cache_id"], arguments["generation"])


def _shares(device: Device, cache: LocalCache) -> Iterator[Share]:
    """One for each storage."""
    seen: set[int] = set()
    for stretch in cache.stretches():
        tensor = stretch.owner
        if not hasattr(tensor, "untyped_storage"):
            tensor = device.adopt(stretch.address, stretch.nbytes)
        if tensor.untyped_storage().data_ptr() in seen:
            continue
        seen.add(tensor.untyped_storage().data_ptr())
        try:
            yield device.share(tensor)
        except RuntimeError as error:
            raise ParamInvalid(
                f"cache {cache.info.cache_id} at {stretch.address:#x} cannot be shared with other processes: {error}"
            ) from None
