"""One layer of a transfer_cache_async for one of its configs: which job that is (contract 12.5)."""

from __future__ import annotations

from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName, WayName
from ray_kvfabric.cache.layer_transfer import DestinationKey, TransferConfig, TransferWithCacheKeyConfig
from ray_kvfabric.endpoint.jobs import Job
from ray_kvfabric.endpoint.layer_requests import LayerOrder, LayerPart
from ray_kvfabric.endpoint.requests import Requests, check_blocks_key
from ray_kvfabric.endpoint.row_cuts import (
    push_blocks_to_addresses,
    push_row,
    push_row_into_blocks,
    push_row_to_addresses,
)
from ray_kvfabric.endpoint.row_jobs import CutRows
from ray_kvfabric.endpoint.row_requests import RowRequests, pushed_name
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.plan import TENSORS_PER_LAYER, LayerRequest


class LayerMoves:
    """Turns the parts of one order into jobs."""

    def __init__(self, order: LayerOrder, blocks: Requests, rows: RowRequests) -> None:
        self._order = order
        self._blocks = blocks
        self._rows = rows

    def job(self, part: LayerPart) -> Job:
        """The layer's transfer, to be run; raises for what its arguments alone show to be wrong."""
        config = self._order.configs[part.position]
        if isinstance(config, TransferConfig):
            return self._to_addresses(part, config)
        return self._to_cache(part, config)

    def _to_cache(self, part: LayerPart, config: TransferWithCacheKeyConfig) -> Job:
        order, key = self._order, config.cache_key
        way = _way_of(key)
        target = part.target_layer or 0
        layers = LayerRequest(_one(part.source_layer), _one(target), TENSORS_PER_LAYER)
        if order.source_blocks is not None and order.target_blocks is not None:
            self._check_source_blocks()
            return self._blocks.push_layer(way, order.src_cache, layers, (order.source_blocks, order.target_blocks))
        if order.target_blocks is not None:
            cut = push_row_into_blocks(config.src_batch_index, order.target_blocks, order.piece_nbytes, is_raw=False)
        else:
            cut = push_row(config.src_batch_index, 0 if isinstance(key, BlocksCacheKey) else key.batch_index)
        return self._rows.job(way, order.src_cache, layers, cut)

    def _to_addresses(self, part: LayerPart, config: TransferConfig) -> Job:
        addresses = part.target_addresses or ()
        way = (config.dst_cluster_id, CacheName("address", addresses[0]))
        layers = LayerRequest(_one(part.source_layer), None, TENSORS_PER_LAYER)
        return self._rows.job(way, self._order.src_cache, layers, self._raw_cut(config), addresses=addresses)

    def _raw_cut(self, config: TransferConfig) -> CutRows:
        order = self._order
        if order.target_blocks is None:
            return push_row_to_addresses(config.src_batch_index)
        if order.source_blocks is None:
            return push_row_into_blocks(config.src_batch_index, order.target_blocks, order.piece_nbytes, is_raw=True)
        self._check_source_blocks()
        return push_blocks_to_addresses(order.source_blocks, order.target_blocks, order.piece_nbytes)

    def _check_source_blocks(self) -> None:
        """Blocks come from a blocks cache, and a size that is given is that of its blocks."""
        cache = self._order.src_cache
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"src_block_indices need a blocks cache, src_cache {cache.cache_id} is none")
        block_nbytes = self._blocks.block_nbytes(cache)
        if self._order.piece_nbytes not in (0, block_nbytes):
            raise ParamInvalid(
                f"dst_block_memory_size is {self._order.piece_nbytes}, a block of src_cache {cache.cache_id} has "
                f"{block_nbytes} bytes"
            )


def _way_of(key: DestinationKey) -> WayName:
    if isinstance(key, BlocksCacheKey):
        check_blocks_key(key, "cache_key")
        return key.way
    return pushed_name(key)


def _one(layer: int) -> range:
    return range(layer, layer + 1)
