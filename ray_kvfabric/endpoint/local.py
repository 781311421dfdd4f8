"""copy_blocks, copy_cache and swap_blocks: copies between caches of one endpoint (contract 11.8 to 11.10)."""

from __future__ import annotations

from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.layout import tensor_nbytes
from ray_kvfabric.cache.types import CacheDesc, Placement
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.caches import CacheTable
from ray_kvfabric.endpoint.local_copier import LocalCopier
from ray_kvfabric.endpoint.rules import check_row
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import Copier, RegionTable


def check_pairs_of_lists(info: object) -> tuple[list[int], list[int]]:
    """{source: [targets]} as two lists. TypeError for other types."""
    pairs = check_type(info, dict, "copy_block_info")
    for source in pairs:
        if not isinstance(source, int):
            raise TypeError(f"copy_block_info has the source {source!r}, which must be an int")
    sources: list[int] = []
    targets: list[int] = []
    for source, listed in pairs.items():
        if not isinstance(listed, list):
            raise TypeError(f"copy_block_info[{source!r}] must be a list, got {type(listed).__name__}")
        sources += [source] * len(listed)
        targets += listed
    return sources, targets


def copy_inside(copies: LocalCopier, caches: CacheTable, cache_id: int, sources: list[int], targets: list[int]) -> None:
    """Pairs in order, all tensors; a chain such as {0: [1], 1: [2]} carries block 0 on to 2."""
    source_list = copies.copier.BlockList(sources, "copy_block_info")
    target_list = copies.copier.BlockList(targets, "copy_block_info")
    entry = caches.find_here(cache_id)
    limit = entry.info.shape[0]
    for blocks in (source_list, target_list):
        if blocks.maximum >= limit:
            raise ParamInvalid(
                f"copy_block_info has index {blocks.maximum}, cache {entry.info.cache_id} has blocks [0, {limit})"
            )
    if sources:
        memory = entry.info.memory
        copies.copy(entry.table, entry.table, (memory, memory), (source_list, target_list))


def copy_rows(
    copies: LocalCopier, source: CacheEntry, target: CacheEntry, rows: tuple[int, int], offset: int, size: int
) -> None:
    """Bytes [offset, offset + size) of row `rows[0]` of each tensor into row `rows[1]`; -1: to the source row's end."""
    here, there = source.info, target.info
    if len(here.regions) != len(there.regions):
        raise ParamInvalid(f"num_tensors differ: src has {len(here.regions)}, dst {len(there.regions)}")
    check_row(rows[0], here, "src_batch_index", f"cache {here.cache_id}")
    check_row(rows[1], there, "dst_batch_index", f"cache {there.cache_id}")
    nbytes = here.regions[0].block_nbytes - offset if size == -1 else size
    for field, info in (("src", here), ("dst", there)):
        stride = info.regions[0].block_nbytes
        if offset >= stride or offset + nbytes > stride:
            raise ParamInvalid(
                f"bytes [{offset}, {offset + nbytes}) are wanted, a row of {field} {info.cache_id} has {stride}"
            )
    copier = copies.copier
    first = copier.BlockList([0], "row")
    tables = _row_table(copier, source, rows[0], offset, nbytes), _row_table(copier, target, rows[1], offset, nbytes)
    copies.copy(*tables, (here.memory, there.memory), (first, first))


def _row_table(copier: Copier, entry: CacheEntry, row: int, offset: int, nbytes: int) -> RegionTable:
    regions = [(each.base + row * each.block_stride + offset, 1, nbytes, nbytes) for each in entry.info.regions]
    return copier.RegionTable(regions, owner=entry.table)


def swap(
    copies: LocalCopier, caches: CacheTable, source: Cache, target: Cache, src_to_dst: object, *, emulates_device: bool
) -> None:
    """A one-way copy between a host and a device blocks cache; nothing flows back, as in LLM-DataDist.

    It goes by the handles alone: caches of create_cpu_cache, which no manager knows, may take part.
    """
    check_type(source, Cache, "src_cache")
    check_type(target, Cache, "dst_cache")
    pairs = check_type(src_to_dst, dict, "src_to_dst")
    sources, targets = _indices(list(pairs)), _indices(list(pairs.values()))
    _check_swap(source, target)
    for side, cache, indices in (("src", source, sources), ("dst", target, targets)):
        limit = cache.cache_desc.batch_size
        outside = next((index for index in indices if not 0 <= index < limit), None)
        if outside is not None:
            raise ParamInvalid(
                f"src_to_dst has {side} index {outside}, {side}_cache {cache.cache_id} has blocks [0, {limit})"
            )
    if pairs:
        copies.check_device("swap_blocks", emulates_device=emulates_device)
        blocks = copies.copier.BlockList(sources, "src_to_dst"), copies.copier.BlockList(targets, "src_to_dst")
        here, there = (_memory(cache, emulates_device) for cache in (source, target))
        tables = _table(copies.copier, caches, source, here), _table(copies.copier, caches, target, there)
        copies.copy(*tables, (here, there), blocks)


def _memory(cache: Cache, emulates_device: bool) -> str:
    return "host" if emulates_device or cache.cache_desc.placement is Placement.HOST else "device"


def _indices(indices: list[object]) -> list[int]:
    for index in indices:
        if not isinstance(index, int):
            raise TypeError(f"src_to_dst must have int indices, got {type(index).__name__}")
    return [int(index) for index in indices if isinstance(index, int)]


def _check_swap(source: Cache, target: Cache) -> None:
    for field, cache in (("src_cache", source), ("dst_cache", target)):
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"{field} {cache.cache_id} is not a blocks cache")
        if not cache.tensor_addrs:
            raise ParamInvalid(f"{field} {cache.cache_id} has no addresses: it was deallocated")
    here, there = source.cache_desc, target.cache_desc
    if here.num_tensors != there.num_tensors:
        raise ParamInvalid(f"num_tensors differ: src_cache has {here.num_tensors}, dst_cache {there.num_tensors}")
    if _block_nbytes(here) != _block_nbytes(there):
        raise ParamInvalid(
            f"block sizes differ: src_cache has {_block_nbytes(here)} bytes a block, dst_cache {_block_nbytes(there)}"
        )
    if {here.placement, there.placement} != {Placement.HOST, Placement.DEVICE}:
        raise ParamInvalid(
            f"one cache must be HOST and the other DEVICE: src_cache is {here.placement}, dst_cache {there.placement}"
        )


def _block_nbytes(desc: CacheDesc) -> int:
    return tensor_nbytes(desc) // desc.batch_size


def _table(copier: Copier, caches: CacheTable, cache: Cache, memory: str) -> RegionTable:
    """Blocks as the handle counts them, in its batch dimension."""
    num_blocks, nbytes = cache.cache_desc.batch_size, _block_nbytes(cache.cache_desc)
    is_here = memory == "host"
    owner = caches.holder(cache, num_blocks * nbytes) if is_here else caches.find_here(cache.cache_id).table
    return copier.RegionTable([(each, num_blocks, nbytes, nbytes) for each in cache.tensor_addrs], owner=owner)
