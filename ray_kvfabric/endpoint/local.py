"""copy_blocks and swap_blocks: copies between caches of one endpoint (contract sections 11.9 and 11.10)."""

from __future__ import annotations

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.layout import regions_of
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.endpoint.caches import CacheEntry
from ray_kvfabric.errors import FeatureNotEnabled, ParamInvalid
from ray_kvfabric.memory.copy import Copier, RegionTable


def check_pairs_of_lists(info: object) -> tuple[list[int], list[int]]:
    """{source: [targets]} as two lists. TypeError for other types."""
    if not isinstance(info, dict):
        raise TypeError(f"copy_block_info must be a dict, got {type(info).__name__}")
    sources: list[int] = []
    targets: list[int] = []
    for source, listed in info.items():
        if not isinstance(listed, list):
            raise TypeError(f"copy_block_info[{source!r}] must be a list, got {type(listed).__name__}")
        sources += [source] * len(listed)
        targets += listed
    return sources, targets


def copy_inside(copier: Copier, entry: CacheEntry, sources: list[int], targets: list[int]) -> None:
    """Pairs in order, all tensors; a chain such as {0: [1], 1: [2]} carries block 0 on to 2."""
    source_list = copier.BlockList(sources, "copy_block_info")
    target_list = copier.BlockList(targets, "copy_block_info")
    limit = entry.info.shape[0]
    for blocks in (source_list, target_list):
        if blocks.maximum >= limit:
            raise ParamInvalid(
                f"copy_block_info has index {blocks.maximum}, cache {entry.info.cache_id} has blocks [0, {limit})"
            )
    if sources:
        copier.copy_blocks(entry.table, entry.table, 0, 0, len(entry.info.regions), source_list, target_list)


def swap(copier: Copier, source: Cache, target: Cache, src_to_dst: object, *, emulates_device: bool) -> None:
    """A one-way copy between a host and a device blocks cache; nothing flows back, as in LLM-DataDist."""
    if not isinstance(src_to_dst, dict):
        raise TypeError(f"src_to_dst must be a dict, got {type(src_to_dst).__name__}")
    sources = copier.BlockList(list(src_to_dst), "src_to_dst")
    targets = copier.BlockList(list(src_to_dst.values()), "src_to_dst")
    _check_swap(source, target)
    for side, cache, blocks in (("src", source, sources), ("dst", target, targets)):
        if blocks.maximum >= cache.cache_desc.shape[0]:
            raise ParamInvalid(
                f"src_to_dst has {side} index {blocks.maximum}, {side}_cache {cache.cache_id} has blocks "
                f"[0, {cache.cache_desc.shape[0]})"
            )
    if not emulates_device:
        raise FeatureNotEnabled(
            "swap_blocks needs device memory; emulated_device=host lets DEVICE caches lie on the host"
        )
    if src_to_dst:
        tables = _table(copier, source), _table(copier, target)
        copier.copy_blocks(*tables, 0, 0, len(tables[0]), sources, targets)


def _check_swap(source: Cache, target: Cache) -> None:
    for field, cache in (("src_cache", source), ("dst_cache", target)):
        if not isinstance(cache, Cache):
            raise TypeError(f"{field} must be a Cache, got {type(cache).__name__}")
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"{field} {cache.cache_id} is not a blocks cache")
        if not cache.tensor_addrs:
            raise ParamInvalid(f"{field} {cache.cache_id} has no addresses: it was deallocated")
    here, there = source.cache_desc, target.cache_desc
    if here.num_tensors != there.num_tensors:
        raise ParamInvalid(f"num_tensors differ: src_cache has {here.num_tensors}, dst_cache {there.num_tensors}")
    if here.size // here.batch_size != there.size // there.batch_size:
        raise ParamInvalid(
            f"block sizes differ: src_cache has {here.size // here.batch_size} bytes a block, "
            f"dst_cache {there.size // there.batch_size}"
        )
    if {here.placement, there.placement} != {Placement.HOST, Placement.DEVICE}:
        raise ParamInvalid(
            f"one cache must be HOST and the other DEVICE: src_cache is {here.placement}, dst_cache {there.placement}"
        )


def _table(copier: Copier, cache: Cache) -> RegionTable:
    return copier.RegionTable(regions_of(cache.cache_desc, cache.tensor_addrs), owner=cache)
