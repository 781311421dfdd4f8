"""KvCache, the handle of the deprecated v1 interface (contract section 8.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.handle import CPU_CACHE_ID, Cache
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.errors import ParamInvalid


class KvCacheOwner(Protocol):
    """What a KvCache needs of the manager in llm_datadist_v1."""

    def deallocate_cache(self, cache: KvCache) -> None: ...


class KvCache:
    """One list of tensor addresses for each device. Its manager's memory goes with it, as v1 has it."""

    _manager: KvCacheOwner | None = None  # also of one whose construction failed

    def __init__(
        self,
        cache_id: int,
        cache_desc: CacheDesc,
        per_device_tensor_addrs: list[list[int]],
        kv_cache_manager: KvCacheOwner | None = None,
    ) -> None:
        self._manager = kv_cache_manager
        self._cache_id = cache_id
        self._cache_desc = cache_desc
        self._per_device_tensor_addrs = per_device_tensor_addrs

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: list[int] | list[list[int]]) -> KvCache:
        """Host memory that no manager knows; `addrs` are one device's addresses, or equally many of each device.

        Refused as Cache.create_cpu_cache refuses: TypeError, LLMException (LLM_PARAM_INVALID).
        """
        per_device = _per_device(check_type(addrs, list, "addrs"))
        for device_addrs in per_device:
            Cache.create_cpu_cache(cache_desc, device_addrs)
        return cls(CPU_CACHE_ID, cache_desc, per_device)

    @property
    def cache_id(self) -> int:
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        return self._cache_desc

    @property
    def per_device_tensor_addrs(self) -> list[list[int]]:
        return self._per_device_tensor_addrs

    def __del__(self) -> None:
        if self._manager is not None:
            self._manager.deallocate_cache(self)

    def __reduce__(self) -> tuple[object, ...]:
        """Without the manager: what is unpickled frees nothing."""
        return type(self), (self._cache_id, self._cache_desc, self._per_device_tensor_addrs)

    def __repr__(self) -> str:
        return f"KvCache(cache_id = {self._cache_id}, num_devices = {len(self._per_device_tensor_addrs)})"


def _per_device(addrs: Sequence[int | list[int]]) -> list[list[int]]:
    of_devices = [each for each in addrs if isinstance(each, list)]
    if not of_devices:
        return [[each for each in addrs if not isinstance(each, list)]]
    if len(of_devices) != len(addrs):
        raise ParamInvalid("the type of the internal element of addrs should be consistent")
    if len({len(each) for each in of_devices}) != 1:
        raise ParamInvalid(f"addrs has lists of unequal lengths {[len(each) for each in of_devices]}")
    return of_devices
