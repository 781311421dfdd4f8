"""The owner's side of device_ipc: which endpoints map which of this endpoint's device memory.

shared   one counter of torch's stands at 1; a cache that is freed then keeps its memory until it is 0
nobody   the last endpoint has unmapped it, or died: the counter goes to 0, and torch may hand the memory out again
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_kvfabric.errors import ParamInvalid, StaleRoute
from ray_kvfabric.memory.device import Device, Share
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import LocalCache, Serving
from ray_kvfabric.transport.host_link import pidfd_of

SHARE, UNMAPPED = "device_ipc_share", "device_ipc_unmapped"


Holder = tuple[int, int]  # a peer's incarnation, and its number for the mapping


@dataclass(slots=True)
class _Shared:
    """One generation of a cache."""

    shares: list[Share]
    holders: set[Holder] = field(default_factory=set)


class ShareDesk:
    """Threads may share it. Only it counts: a process that dies could not."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._shared: dict[tuple[int, int], _Shared] = {}  # by cache_id and generation
        self._processes: dict[int, int] = {}  # incarnation -> pidfd
        self._is_closed = False

    def share(self, arguments: dict[str, Any]) -> list[tuple[object, ...]]:
        """Shares of the storages under a cache."""
        cache_id, generation, number = arguments["mapping"]
        key = cache_id, generation
        with self._serving.visit(*key) as cache, self._lock:
            if self._is_closed:
                raise StaleRoute("this endpoint is closed")
            self._watch(arguments["incarnation"], arguments["pid"])
            if key not in self._shared:
                device = self._serving.local.devices.open(f"cache {key[0]}")
                self._shared[key] = _Shared(_all_shares(device, cache))
            self._shared[key].holders.add((arguments["incarnation"], number))
            return [tuple(share) for share in self._shared[key].shares]

    def _watch(self, incarnation: int, pid: int) -> None:
        if incarnation not in self._processes:
            self._processes[incarnation] = pidfd_of(pid, f"process {pid}")

    def unmapped(self, arguments: dict[str, Any]) -> bool:
        with self._lock:
            for cache_id, generation, number in arguments["mappings"]:
                self._drop((cache_id, generation), {(arguments["incarnation"], number)})
        return True

    def sweep(self) -> None:
        """Counts down for processes that died."""
        with self._lock:
            dead = {each for each, pidfd in self._processes.items() if shared_page.has_ended(pidfd)}
            for key, shared in [*self._shared.items()] if dead else ():
                self._drop(key, {holder for holder in shared.holders if holder[0] in dead})
            for incarnation in dead:
                os.close(self._processes.pop(incarnation))

    def _drop(self, key: tuple[int, int], holders: set[Holder]) -> None:
        shared, device = self._shared.get(key), self._serving.local.devices.device
        if shared is None or device is None:
            return
        shared.holders -= holders
        if not shared.holders:
            del self._shared[key]
            for share in shared.shares:
                device.release_share(share)
            device.collect()

    def describe(self) -> dict[str, object]:
        with self._lock:
            return {"caches_mapped_by_peers": len(self._shared)} if self._shared else {}

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for key, shared in [*self._shared.items()]:
                self._drop(key, set(shared.holders))
            for pidfd in self._processes.values():
                os.close(pidfd)
            self._processes.clear()


def _all_shares(device: Device, cache: LocalCache) -> list[Share]:
    """Or none: what was shared before an error is taken back."""
    found: list[Share] = []
    try:
        for share in _shares(device, cache):
            found.append(share)  # noqa: PERF402  # one by one: those before an error are taken back
    except BaseException:
        for share in found:
            device.release_share(share)
        raise
    return found


def _shares(device: Device, cache: LocalCache) -> Iterator[Share]:
    """One for each storage."""
    covered: list[tuple[int, int]] = []
    for stretch in cache.stretches():
        if any(start <= stretch.address < stop for start, stop in covered):
            continue
        tensor: Any = stretch.owner
        if not hasattr(tensor, "untyped_storage"):
            tensor = device.block_around(stretch.address)
        storage = tensor.untyped_storage()
        covered.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        try:
            yield device.share(tensor)
        except RuntimeError as error:
            raise ParamInvalid(
                f"cache {cache.info.cache_id} at {stretch.address:#x} cannot be shared with other processes: {error}"
            ) from None
