"""CacheManager with LLM-DataDist's surface: the fabric's own, behind the gates of an LLMDataDist (contract 11, 12).

Every method is `ray_kvfabric.CacheManager`'s; what is added here is what programs can see of the reference: the
option gate before all other checks, links that must exist, placement defaults, limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import UNSET_ID, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import (
    LayerConfig,
    LayerSynchronizer,
    MemInfo,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from ray_kvfabric.cache.types import CacheDesc, Placement
from ray_kvfabric.endpoint.cache_verbs import check_mem_infos
from ray_kvfabric.endpoint.jobs import Job
from ray_kvfabric.endpoint.layer_requests import check_layer_transfer
from ray_kvfabric.endpoint.layer_task import CacheTask
from ray_kvfabric.endpoint.row_requests import check_pushed_row, check_whole_row
from ray_kvfabric.errors import CacheNotFound, LLMStatusCode, NotLinked, ParamInvalid
from ray_kvfabric.integrations.llm_datadist._engine import Engine
from ray_kvfabric.integrations.llm_datadist._limits import check_pull, check_table
from ray_kvfabric.integrations.llm_datadist.utils import log
from ray_kvfabric.integrations.llm_datadist.utils.utils import check_isinstance
from ray_kvfabric.plan import TENSORS_PER_LAYER, LayerRequest

Blocks = tuple[int, ...] | list[int]
_REGISTERING = LLMStatusCode.LLM_FAILED  # what register_* and unregister_cache give after finalize (contract 9.3)


class CacheManager:
    """Reached through `LLMDataDist.cache_manager`; threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._manager = engine.manager
        self._one_sided = engine.options.one_sided

    # ---- caches ------------------------------------------------------------------------------------

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A continuous cache over memory at `addrs` (contract 11.1)."""
        with self._engine.calls.enter(refusal=_REGISTERING):
            given = _checked_addresses(cache_desc, addrs)
            check_isinstance("cache_keys", cache_keys, (list, tuple), CacheKey, allow_none=False)
            is_accessible = self._accessible(cache_desc, remote_accessible)
            self._check_table(cache_desc, cache_keys)
            return self._manager.register_cache(cache_desc, given, cache_keys, is_accessible)

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A blocks cache over memory at `addrs` (contract 11.2)."""
        with self._engine.calls.enter(refusal=_REGISTERING):
            given = _checked_addresses(cache_desc, addrs)
            check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
            is_accessible = self._accessible(cache_desc, remote_accessible)
            self._check_table(cache_desc, blocks_cache_key)
            return self._manager.register_blocks_cache(cache_desc, given, blocks_cache_key, is_accessible)

    def _accessible(self, cache_desc: CacheDesc, remote_accessible: bool | None) -> bool:
        """By default device memory that was registered before `link`."""
        check_isinstance("remote_accessible", remote_accessible, bool)
        has_linked = self._engine.has_called_link
        if remote_accessible and has_linked:
            raise ParamInvalid("remote_accessible must not be True after link was called")
        if remote_accessible is None:
            return cache_desc.placement is Placement.DEVICE and not has_linked
        return remote_accessible

    def unregister_cache(self, cache_id: int) -> None:
        with self._engine.calls.enter(refusal=_REGISTERING):
            self._manager.unregister_cache(cache_id)

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """A continuous cache from the pool of its placement (contract 11.4)."""
        with self._engine.calls.enter():
            check_isinstance("cache_keys", cache_keys, (list, tuple), CacheKey, allow_none=False)
            self._check_table(cache_desc, cache_keys)
            return self._manager.allocate_cache(cache_desc, cache_keys)

    def allocate_blocks_cache(self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None) -> Cache:
        """A blocks cache from the pool of its placement (contract 11.4)."""
        with self._engine.calls.enter():
            check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
            self._check_table(cache_desc, blocks_cache_key)
            return self._manager.allocate_blocks_cache(cache_desc, blocks_cache_key)

    def _check_table(self, cache_desc: CacheDesc, keys: Sequence[CacheKey] | BlocksCacheKey | None) -> None:
        desc = check_type(cache_desc, CacheDesc, "cache_desc")
        if self._one_sided:
            check_table(self._manager.caches(), desc, keys)

    def deallocate_cache(self, cache: Cache) -> None:
        with self._engine.calls.enter():
            self._manager.deallocate_cache(cache)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        with self._engine.calls.enter():
            self._manager.deallocate_blocks_cache(cache)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        with self._engine.calls.enter():
            self._manager.remove_cache_key(cache_key)

    def remap_registered_memory(self, mem_infos: MemInfo | list[MemInfo]) -> None:
        """Checks only: nothing here has to be mapped again (contract 11.7)."""
        with self._engine.calls.enter():
            check_mem_infos(mem_infos)
            if not self._engine.links.linked():
                raise NotLinked(f"cluster {self._engine.cluster_id} has no link")

    # ---- inside this process -----------------------------------------------------------------------

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        with self._engine.calls.enter():
            self._manager.copy_cache(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        with self._engine.calls.enter():
            self._manager.copy_blocks(cache, copy_block_info)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        with self._engine.calls.enter():
            self._manager.swap_blocks(src_cache, dst_cache, src_to_dst)

    # ---- transfers ---------------------------------------------------------------------------------

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Blocks | None = (),
        dst_blocks: Blocks = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """One-sided mode only (contract 12.1)."""
        self._check_one_sided("push_blocks")
        ranges = _default_ranges(src_cache, src_layer_range, dst_layer_range, tensor_num_per_layer)
        with self._engine.calls.enter(_cluster_of(dst_cache_key)):
            if ranges is None:
                _check_push_of_nothing(dst_cache_key, src_cache, src_blocks, dst_blocks)
                return
            self._manager.push_blocks(dst_cache_key, src_cache, src_blocks, dst_blocks, *ranges, tensor_num_per_layer)

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """One-sided mode only (contract 12.2)."""
        self._check_one_sided("push_cache")
        ranges = _default_ranges(src_cache, src_layer_range, dst_layer_range, tensor_num_per_layer)
        with self._engine.calls.enter(_cluster_of(dst_cache_key)):
            if ranges is None:
                check_pushed_row(dst_cache_key, src_cache, src_batch_index)
                check_whole_row(size)
                warn_of_nothing(src_cache)
                return
            self._manager.push_cache(dst_cache_key, src_cache, src_batch_index, *ranges, size, tensor_num_per_layer)

    def pull_blocks(
        self,
        src_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        dst_cache: Cache,
        src_blocks: Blocks = (),
        dst_blocks: Blocks = (),
        **kwargs: Any,
    ) -> None:
        """Both modes (contract 12.3). kwargs: src_layer_range, dst_layer_range, tensor_num_per_layer; others pass."""
        with self._engine.calls.enter(_cluster_of(src_cache_key)):
            job = self._manager.blocks_pull(src_cache_key, dst_cache, src_blocks, dst_blocks, *_layers_of(kwargs))
            self._check_seen(src_cache_key)
            self._check_pull(job, dst_cache, src_blocks, dst_blocks)
            job.run()

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        **kwargs: Any,
    ) -> None:
        """Both modes; one-sided mode takes no CacheKey (contract 12.4). kwargs as in pull_blocks."""
        if self._one_sided:
            check_isinstance("cache_key", cache_key, CacheKeyByIdAndIndex, allow_none=False)
        with self._engine.calls.enter(_cluster_of(cache_key)):
            job = self._manager.row_pull(cache_key, cache, batch_index, size, *_layers_of(kwargs))
            self._check_pull(job, cache, (0,), (0,))
            job.run()

    def _check_pull(self, job: Job, cache: Cache, sources: Blocks, targets: Blocks) -> None:
        """Whether the request fits into LLM-DataDist's message, where a link would take it (contract 5)."""
        try:
            check_pull(cache, _num_tensors(job.layers, cache), sources, targets, self._one_sided)
        except ParamInvalid:
            self._engine.links.admit(job.way_name[0])
            raise

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[LayerConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """TransferWithCacheKeyConfig in one-sided mode, TransferConfig in request mode (contract 12.5)."""
        kind = TransferWithCacheKeyConfig if self._one_sided else TransferConfig
        with self._engine.calls.enter():
            order = check_layer_transfer(
                src_cache, layer_synchronizer, transfer_configs, src_block_indices, dst_block_indices,
                dst_block_memory_size, (kind,),
            )  # fmt: skip
            return self._manager.run_layer_order(order, self._engine.calls.enter)

    def _check_one_sided(self, verb: str) -> None:
        if not self._one_sided:
            raise ParamInvalid(f"{verb} needs enable_remote_cache_accessible")

    def _check_seen(self, key: object) -> None:
        """Prefixes are not in the table that peers read in one-sided mode (contract 10.2)."""
        if self._one_sided and isinstance(key, CacheKey) and key.req_id == UNSET_ID:
            self._engine.links.admit(key.cluster_id)
            raise CacheNotFound(f"prefix keys are not seen in one-sided mode: {key}")


def _cluster_of(key: object) -> int | None:
    """Where a transfer goes; its key was not checked yet."""
    return getattr(key, "cluster_id", None)


def _layers_of(kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The keyword arguments of a pull; unknown ones are ignored, as in LLM-DataDist."""
    per_layer = kwargs.get("tensor_num_per_layer", TENSORS_PER_LAYER)
    return kwargs.get("src_layer_range"), kwargs.get("dst_layer_range"), per_layer


def _num_tensors(layers: LayerRequest, cache: Cache) -> int:
    """How many tensors of `cache` are asked for."""
    given = layers.source if layers.target is None else layers.target
    return cache.cache_desc.num_tensors if given is None else len(given) * layers.tensors_per_layer


def _checked_addresses(cache_desc: CacheDesc, addrs: list[int]) -> list[object]:
    check_type(cache_desc, CacheDesc, "cache_desc")
    check_isinstance("addrs", addrs, list, int, allow_none=False)
    return list(addrs)


def _default_ranges(
    cache: Cache, source: range | None, target: range | None, per_layer: int
) -> tuple[range | None, range | None] | None:
    """Ranges as LLM-DataDist fills them in: from the source cache. None: no layer at all, and nothing to move.

    That happens with one tensor and the default of two a layer; programs rely on its success (contract 12.1).
    """
    if source is not None or target is not None or not isinstance(cache, Cache):
        return source, target
    if not isinstance(per_layer, int) or not 0 < per_layer < 2**32:
        return None, None
    layers = range(cache.cache_desc.num_tensors // per_layer)
    return (layers, layers) if layers else None


def _check_push_of_nothing(key: object, cache: Cache, src_blocks: object, dst_blocks: Blocks) -> None:
    check_isinstance("dst_cache_key", key, BlocksCacheKey)
    check_isinstance("src_blocks", src_blocks, (list, tuple), int)
    check_isinstance("dst_blocks", dst_blocks, (list, tuple), int, allow_none=False)
    if not cache.is_blocks_cache:
        raise ParamInvalid(f"src_cache {cache.cache_id} is not a blocks cache")
    if not dst_blocks:
        raise ParamInvalid("dst_blocks is empty")
    warn_of_nothing(cache)


def warn_of_nothing(cache: Cache) -> None:
    log.warning(
        "nothing was pushed: cache %d has %d tensors, fewer than tensor_num_per_layer",
        cache.cache_id,
        cache.cache_desc.num_tensors,
    )
