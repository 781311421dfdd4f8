"""Arguments of the continuous caches' verbs to a RowJob: the checks that need no peer (contract 12.2 to 12.4)."""

from __future__ import annotations

from typing import Any

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import UNSET_ID, CacheKey, CacheKeyByIdAndIndex, CacheName, WayName
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.endpoint.mover import Mover
from ray_kvfabric.endpoint.requests import (
    BlockArgument,
    Stamp,
    check_cache,
    check_is_blocks,
    check_not_own,
)
from ray_kvfabric.endpoint.row_cuts import Row, pull_row, pull_row_into_blocks, push_row
from ray_kvfabric.endpoint.row_jobs import CutRows, RowJob
from ray_kvfabric.errors import NoneGiven, ParamInvalid
from ray_kvfabric.plan import LayerRequest, request_layers, request_pulled_layers

RowKeys = CacheKey | CacheKeyByIdAndIndex


class RowRequests:
    """Makes the jobs that move rows."""

    def __init__(self, mover: Mover, stamp: Stamp) -> None:
        self._mover = mover
        self._stamp = stamp

    def push(
        self,
        key: CacheKeyByIdAndIndex,
        cache: Cache,
        src_batch_index: int,
        src_layers: range | None,
        dst_layers: range | None,
        size: int,
        tensors_per_layer: int,
    ) -> RowJob:
        check_pushed_row(key, cache, src_batch_index)
        layers = request_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        check_whole_row(size)
        return self.job(pushed_name(key), cache, layers, push_row(src_batch_index, key.batch_index))

    def pull(
        self,
        key: RowKeys,
        cache: Cache,
        batch_index: int,
        size: int,
        src_layers: range | None,
        dst_layers: range | None,
        tensors_per_layer: int,
    ) -> RowJob:
        _check_row_key(key, "cache_key")
        check_cache(cache, "cache")
        _check_continuous(cache, "cache")
        check_int(batch_index, "uint32", "batch_index")
        if check_int(size, "int64", "size") != -1 and size <= 0:
            raise ParamInvalid(f"size must be -1 or positive, got {size}")
        layers = request_pulled_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        name, row = self._pulled(key)
        cut = pull_row(row, batch_index, size, is_requested=self._is_requested)
        return self.job((key.cluster_id, name), cache, layers, cut, is_pull=True)

    def pull_into_blocks(
        self,
        key: RowKeys,
        cache: Cache,
        src_blocks: BlockArgument,
        dst_blocks: BlockArgument,
        src_layers: range | None,
        dst_layers: range | None,
        tensors_per_layer: int,
    ) -> RowJob:
        _check_row_key(key, "src_cache_key")
        check_cache(cache, "dst_cache")
        sources = self._mover.copier.BlockList(src_blocks, "src_blocks")
        targets = self._mover.copier.BlockList(dst_blocks, "dst_blocks")
        check_is_blocks(cache, "dst_cache", targets)
        layers = request_pulled_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        if len(sources):
            raise ParamInvalid(f"src_blocks has {len(sources)} entries, which need a BlocksCacheKey as src_cache_key")
        name, row = self._pulled(key)
        cut = pull_row_into_blocks(row, tuple(targets), is_requested=self._is_requested)
        return self.job((key.cluster_id, name), cache, layers, cut, is_pull=True)

    def job(
        self,
        way: WayName,
        cache: Cache,
        layers: LayerRequest,
        cut: CutRows,
        *,
        is_pull: bool = False,
        addresses: tuple[int, ...] | None = None,
    ) -> RowJob:
        return RowJob(
            self._mover,
            way,
            cache.cache_id,
            layers,
            self._stamp.transfer_id(),
            self._stamp.deadline(),
            is_pull,
            self._mover.mark(cache),
            Priority.NORMAL,
            cut,
            addresses,
            is_pull and self._is_requested and way[1].kind != "prefix",  # prefixes stay (contract 10.2)
        )

    @property
    def _is_requested(self) -> bool:
        return self._mover.mode == "request"

    def _pulled(self, key: RowKeys) -> tuple[CacheName, Row]:
        """The cache to ask for, and its row. An id of 0 or less stands for the blocks cache of model 0 (10.3)."""
        check_not_own(key.cluster_id, self._mover.cluster_id)
        if isinstance(key, CacheKey):
            name = _request_name(key)
            return name, name
        if key.cache_id > 0:
            return CacheName("id", key.cache_id), key.batch_index
        if key.cache_id < 0 and self._is_requested:
            raise ParamInvalid(f"cache_id must not be negative, got {key.cache_id}")
        return CacheName("model", 0, 0), key.batch_index


def check_pushed_row(key: object, cache: object, src_batch_index: object) -> None:
    """The first checks of push_cache (contract 12.2)."""
    if not isinstance(key, CacheKeyByIdAndIndex):
        raise TypeError(f"dst_cache_key must be a CacheKeyByIdAndIndex, got {type(key).__name__}")
    checked = check_type(cache, Cache, "src_cache")
    check_int(src_batch_index, "uint32", "src_batch_index")
    _check_continuous(checked, "src_cache")


def check_whole_row(size: object) -> None:
    if check_int(size, "int64", "size") != -1:
        raise ParamInvalid(f"size must be -1, a whole row, got {size}")


def pushed_name(key: CacheKeyByIdAndIndex) -> WayName:
    """Where a push by id goes: an id of 0 stands for the row of request 0, model 0 (10.3)."""
    if key.cache_id < 0:
        raise TypeError(f"dst_cache_key.cache_id must be a uint64, got {key.cache_id}")
    name = CacheName("id", key.cache_id) if key.cache_id else CacheName("request", 0, 0)
    return key.cluster_id, name


def _request_name(key: CacheKey) -> CacheName:
    has_request, has_prefix = key.req_id != UNSET_ID, key.prefix_id != UNSET_ID
    if has_request == has_prefix:
        raise ParamInvalid(f"exactly one of req_id and prefix_id must be set, got {key}")
    if has_request:
        return CacheName("request", key.req_id, key.model_id)
    return CacheName("prefix", key.prefix_id, key.model_id)


def _check_row_key(key: Any, field: str) -> None:
    if key is None:
        raise NoneGiven(f"{field} must be a CacheKey or a CacheKeyByIdAndIndex, got None")
    if not isinstance(key, CacheKey | CacheKeyByIdAndIndex):
        raise TypeError(f"{field} must be a CacheKey or a CacheKeyByIdAndIndex, got {type(key).__name__}")


def _check_continuous(cache: Cache, field: str) -> None:
    if cache.is_blocks_cache:
        raise ParamInvalid(f"{field} {cache.cache_id} is a blocks cache")
