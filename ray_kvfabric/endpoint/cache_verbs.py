"""The verbs that make and end caches (contract 11.1 to 11.7)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import UNSET_ID, BlocksCacheKey, CacheKey
from ray_kvfabric.cache.layer_transfer import MemInfo, Memtype
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.endpoint.cache_entry import CacheEntry, Wanted
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.errors import FabricError, FeatureNotEnabled, NotLinked, ParamInvalid
from ray_kvfabric.route import CacheInfo


class CacheVerbs(EndpointCore):
    """Each verb that changes what peers may know has told the directory when it returns."""

    # ---- making ----------------------------------------------------------------------------------

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None, *, grants_only: bool = False
    ) -> Cache:
        """A blocks cache from the pool of its placement, zeroed, its pages touched, visible to peers at once.

        `grants_only`: peers push into it under grants only.
        Raises LLMException: LLM_PARAM_INVALID (no pool, no tensors, bad shape, model_id taken),
        LLM_OUT_OF_MEMORY (the budget or the host).
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        model_id = _model_id(blocks_cache_key)
        return self._allocate(Wanted(cache_desc, is_blocks=True, model_id=model_id, grants_only=grants_only))

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """A continuous cache from the pool of its placement; `cache_keys[i]` names row i.

        Raises as `allocate_blocks_cache`, and LLM_PARAM_INVALID for more keys than rows, or one bound already.
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        return self._allocate(Wanted(cache_desc, is_blocks=False, keys=_checked_keys(cache_keys)))

    def _allocate(self, wanted: Wanted) -> Cache:
        if wanted.desc.num_tensors == 0:
            raise ParamInvalid("cache_desc.num_tensors must be at least 1, got 0")
        return self._publish(self._caches.allocate(wanted))

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[object],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
        *,
        grants_only: bool = False,
    ) -> Cache:
        """A blocks cache over memory that somebody else owns: one address or buffer or DLPack tensor a tensor.

        Objects are kept alive while registered. `remote_accessible` None means True. A `model_id` that is in use
        moves to the new cache. `grants_only`: peers push into it under grants only.
        Raises LLMException (LLM_PARAM_INVALID), TypeError.
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        check_type(addrs, list, "addrs")
        model_id = _model_id(blocks_cache_key)
        is_accessible = _accessible(remote_accessible)
        return self._register(Wanted(cache_desc, True, model_id, (), is_accessible, grants_only), addrs)

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[object],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A continuous cache over memory that somebody else owns, as `register_blocks_cache`.

        `cache_keys[i]` names row i; a key that another cache holds stays with that one.
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        check_type(addrs, list, "addrs")
        keys = _checked_keys(cache_keys)
        is_accessible = _accessible(remote_accessible)
        return self._register(Wanted(cache_desc, False, None, keys, is_accessible), addrs)

    def _register(self, wanted: Wanted, addrs: list[object]) -> Cache:
        if not addrs:
            raise ParamInvalid("addrs is empty")
        entry, older = self._caches.register(wanted, addrs)
        try:
            cache = self._publish(entry)
        except BaseException:
            if older is not None and wanted.model_id is not None:
                self._caches.give_back_model(older, wanted.model_id)
                with suppress(FabricError):
                    self._tell(older)
            raise
        if older is not None:
            self._tell(older)
        return cache

    def _publish(self, entry: CacheEntry) -> Cache:
        """Makes the cache known; one that the directory does not take, or may have taken, is taken back."""
        try:
            self._tell(entry)
        except BaseException:
            with suppress(FabricError):
                self._directory.withdraw(self.endpoint, entry.info.cache_id, self._control_deadline())
            self._caches.remove(entry.info.cache_id, self._control_deadline())
            raise
        return entry.cache

    def _tell(self, entry: CacheEntry) -> None:
        """One after another, so that the directory hears of each cache what it is last, or that it is gone."""
        with self._telling:
            if self._caches.holds(entry):
                self._directory.publish(self.endpoint, entry.info, self._control_deadline())

    # ---- ending ----------------------------------------------------------------------------------

    def unregister_cache(self, cache_id: int) -> None:
        """Forgets a cache with its keys, registered or allocated; an unknown id is no error.

        Its grants are revoked first. Returns when no transfer uses it any more, a peer's or this endpoint's. Raises
        TransferTimeout while one does.
        """
        check_int(cache_id, "int64", "cache_id")
        if cache_id not in self._caches.all_ids():
            return
        with self._telling:  # where the directory fails nothing was changed here: it may be called again
            self._directory.withdraw(self.endpoint, cache_id, self._control_deadline())
            self._caches.fence(cache_id)
        self._forget_cache(cache_id)
        entry = self._caches.remove(cache_id, self._control_deadline())
        if entry is not None:
            entry.end_cache()

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Frees an allocated blocks cache; a freed or registered one is no error. `cache.tensor_addrs` empties."""
        check_type(cache, Cache, "cache")
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"cache {cache.cache_id} is not a blocks cache")
        self._check_pools("there is nothing to deallocate from")
        if self._allocated(cache.cache_id) is not None:
            self.unregister_cache(cache.cache_id)
        cache.forget_addresses()

    def deallocate_cache(self, cache: Cache) -> None:
        """As `deallocate_blocks_cache`, of a continuous cache. One that keys still name goes with the last of them."""
        check_type(cache, Cache, "cache")
        if cache.is_blocks_cache:
            raise ParamInvalid(f"cache {cache.cache_id} is a blocks cache")
        self._check_pools("there is nothing to deallocate from")
        entry = self._allocated(cache.cache_id)
        if entry is not None:
            entry.is_doomed = True
            self._free_if_done(entry)
        cache.forget_addresses()

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Takes a key from an allocated cache; an unknown key, or a registered cache's, is no error."""
        check_type(cache_key, CacheKey, "cache_key")
        self._check_pools("no allocated cache has keys")
        for kind, number in (("request", cache_key.req_id), ("prefix", cache_key.prefix_id)):
            if number != UNSET_ID:
                self._remove_key(kind, number, cache_key.model_id)

    def _remove_key(self, kind: str, number: int, model_id: int) -> None:
        entry = self._caches.remove_key(kind, number, model_id)
        if entry is not None and not self._free_if_done(entry):
            self._tell(entry)

    def _free_if_done(self, entry: CacheEntry) -> bool:
        is_done = entry.is_doomed and not entry.info.keys
        if is_done:
            self.unregister_cache(entry.info.cache_id)
        return is_done

    def _note_pull_here(self, arguments: dict[str, Any]) -> bool:
        """A peer has pulled tensors of a row: keys that are used up by that go, and with the last one the cache."""
        tensors = range(arguments["first"], arguments["stop"])
        for key in self._caches.note_pull(arguments["cache_id"], arguments["row"], tensors):
            self._remove_key(*key[:3])
        return True

    def _check_pools(self, consequence: str) -> None:
        if all(pool.budget is None for pool in self._pools.values()):
            raise FeatureNotEnabled(f"neither mem_pool nor device_pool is configured, so {consequence}")

    def _allocated(self, cache_id: int) -> CacheEntry | None:
        found = (entry for entry in self._caches.all() if entry.info.cache_id == cache_id and entry.info.is_allocated)
        return next(found, None)

    def remap_registered_memory(self, mem_infos: MemInfo | list[MemInfo]) -> None:
        """Checks its arguments as LLM-DataDist does, which reserves it; memory of ours needs no mapping again.

        Raises LLMException: LLM_PARAM_INVALID for any wrong argument, LLM_NOT_YET_LINK without a link.
        """
        self._check_open()
        check_mem_infos(mem_infos)
        if not self._links.links():
            raise NotLinked(f"endpoint {self.endpoint.cluster_id} has no link")

    # ---- looking in ------------------------------------------------------------------------------

    def cache(self, cache_id: int) -> Cache:
        """The live cache of this id. Raises LLMException (LLM_KV_CACHE_NOT_EXIST)."""
        return self._caches.find(cache_id).cache

    def caches(self) -> list[CacheInfo]:
        """What this endpoint holds, as it is announced."""
        return [entry.info for entry in self._caches.all()]


def _model_id(key: BlocksCacheKey | None) -> int | None:
    """A key's cluster_id is ignored at registration (contract 8.2)."""
    if key is None:
        return None
    model_id = check_type(key, BlocksCacheKey, "blocks_cache_key").model_id
    if not 0 <= model_id < 2**64:
        raise TypeError(f"blocks_cache_key.model_id must be a uint64, got {model_id}")
    return model_id


def _checked_keys(keys: Sequence[CacheKey]) -> Sequence[CacheKey]:
    if not isinstance(keys, list | tuple):
        raise TypeError(f"cache_keys must be a list or tuple, got {type(keys).__name__}")
    for position, key in enumerate(keys):
        check_type(key, CacheKey, f"cache_keys[{position}]")
    return keys


def _accessible(remote_accessible: bool | None) -> bool:
    if remote_accessible is not None:
        check_type(remote_accessible, bool, "remote_accessible")
    return remote_accessible is not False


def check_mem_infos(mem_infos: object) -> None:
    """Every mistake is LLM_PARAM_INVALID, a wrong type too (contract 11.7)."""
    infos = [mem_infos] if isinstance(mem_infos, MemInfo) else mem_infos
    if not isinstance(infos, list) or not infos:
        raise ParamInvalid(f"mem_infos must be a MemInfo or a non-empty list, got {type(mem_infos).__name__}")
    for position, info in enumerate(infos):
        _check_mem_info(info, f"mem_infos[{position}]")


def _check_mem_info(info: object, field: str) -> None:
    if not isinstance(info, MemInfo):
        raise ParamInvalid(f"{field} must be a MemInfo, got {type(info).__name__}")
    if info.mem_type is not Memtype.MEM_TYPE_DEVICE:
        raise ParamInvalid(f"{field}.mem_type must be MEM_TYPE_DEVICE, got {info.mem_type}")
    if info.addr is None or not 0 < info.addr < 2**64:
        raise ParamInvalid(f"{field}.addr must be in (0, 2**64), got {info.addr}")
    if info.size is None or not 0 < info.size < 2**64:
        raise ParamInvalid(f"{field}.size must be in (0, 2**64), got {info.size}")
