"""Regions as they are told to a peer: plain tuples, checked by whoever writes or reads there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_kvfabric.cache.layout import Region
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.route import CacheInfo
from ray_kvfabric.transport.base import RemoteCache


def told(table: RegionTable) -> list[tuple[int, int, int, int]]:
    return [table[index] for index in range(len(table))]


def inside(cache: CacheInfo, regions: Iterable[Sequence[int]]) -> list[Region]:
    """Regions that a peer has named, which must lie in tensors of this cache. Raises ParamInvalid."""
    named = [Region(*region) for region in regions]
    for region in named:
        _holder(cache, region)
    return named


def reached(remote: RemoteCache, regions: Iterable[Sequence[int]]) -> list[Region]:
    """Regions in the owner's addresses, in those at which the opened cache is reached here. Raises ParamInvalid."""
    moved = []
    for region in (Region(*each) for each in regions):
        index = _holder(remote.info, region)
        shift = remote.table[index][0] - remote.info.regions[index].base
        moved.append(region._replace(base=region.base + shift))
    return moved


def _holder(cache: CacheInfo, region: Region) -> int:
    """Which tensor of the cache the region lies in."""
    for index, whole in enumerate(cache.regions):
        if whole.base <= region.base and region.base + region.extent <= whole.base + whole.extent:
            return index
    raise ParamInvalid(f"bytes at {region.base:#x} are named, which lie in no tensor of cache {cache.cache_id}")
