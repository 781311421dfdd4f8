"""Limits that come from LLM-DataDist's messages and tables (contract section 5): pure arithmetic.

Nothing here needs them; programs that rely on a refusal get it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import UNSET_ID, BlocksCacheKey, CacheKey
from ray_kvfabric.cache.types import CacheDesc, Placement
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.plan import merge_runs
from ray_kvfabric.route import CacheInfo

TABLE_NBYTES = 1 << 20
ONE_SIDED_ENTRIES = 131_064
REQUEST_ENTRIES = 7160
REQUEST_TENSORS = 2043
REQUEST_HOST_BLOCKS = 7158


def check_table(caches: Sequence[CacheInfo], desc: CacheDesc, keys: Sequence[CacheKey] | BlocksCacheKey | None) -> None:
    """Whether one more cache with those keys still fits into the table that peers read in one-sided mode."""
    used = 24 + sum(64 + 8 * len(cache.regions) + 24 * _held_keys(cache) for cache in caches)
    needed = used + 64 + 8 * desc.num_tensors + 24 * _new_keys(caches, desc, keys)
    if needed > TABLE_NBYTES:
        raise ParamInvalid(f"the cache table would have {needed} bytes, it has room for {TABLE_NBYTES}")


def _new_keys(caches: Sequence[CacheInfo], desc: CacheDesc, keys: Sequence[CacheKey] | BlocksCacheKey | None) -> int:
    """Those that the table gets: no placeholder, no prefix, none that it has already (contract 10.2)."""
    if keys is None:
        return 0
    if isinstance(keys, BlocksCacheKey):
        return int(all(cache.model_id != keys.model_id for cache in caches))
    held = {(key.number, key.model_id) for cache in caches for key in cache.keys if key.kind == "request"}
    rows = max(desc.shape[0], 0)
    return len({(key.req_id, key.model_id) for key in keys[:rows] if key.req_id != UNSET_ID} - held)


def _held_keys(cache: CacheInfo) -> int:
    return sum(key.kind == "request" for key in cache.keys) + (cache.model_id is not None)


def check_pull(cache: Cache, num_tensors: int, sources: Sequence[int], targets: Sequence[int], one_sided: bool) -> None:
    """Whether the request of a pull fits into one message. `sources` is empty for a row cut into blocks."""
    to_host = not one_sided and cache.cache_desc.placement is Placement.HOST
    if to_host:
        _check(len(targets), REQUEST_HOST_BLOCKS, "blocks of a pull into host memory")
        return
    if not one_sided:
        _check(num_tensors, REQUEST_TENSORS, "tensors of a pull")
    limit = ONE_SIDED_ENTRIES if one_sided else REQUEST_ENTRIES
    if num_tensors + 2 * len(targets) > limit:  # else the runs are few enough, however they merge
        _check(num_tensors + 2 * _num_runs(sources, targets), limit, "tensors and twice the runs of a pull")


def _num_runs(sources: Sequence[int], targets: Sequence[int]) -> int:
    return len(merge_runs(sources, targets)) if len(sources) == len(targets) else len(targets)


def _check(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ParamInvalid(f"{what} are {count}, at most {limit} fit into a request")
