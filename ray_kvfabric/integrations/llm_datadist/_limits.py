"""Limits that come from LLM-DataDist's messages and tables (contract section 5): pure arithmetic.

Nothing here needs them; programs that rely on a refusal get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import UNSET_ID, CacheKey
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.plan import merge_runs
from ray_kvfabric.route import CacheInfo

TABLE_NBYTES = 1 << 20
ONE_SIDED_ENTRIES = 131_064
REQUEST_ENTRIES = 7160
REQUEST_TENSORS = 2043
REQUEST_HOST_BLOCKS = 7158


def check_table(caches: Iterable[CacheInfo], num_tensors: int, keys: int) -> None:
    """Whether one more cache with so many keys still fits into the table that peers read in one-sided mode."""
    used = 24 + sum(64 + 8 * len(cache.regions) + 24 * _held_keys(cache) for cache in caches)
    needed = used + 64 + 8 * num_tensors + 24 * keys
    if needed > TABLE_NBYTES:
        raise ParamInvalid(f"the cache table would have {needed} bytes, it has room for {TABLE_NBYTES}")


def num_keys(keys: Sequence[CacheKey]) -> int:
    """Those that the table has: neither placeholders nor prefixes are seen in one-sided mode (contract 10.2)."""
    return sum(key.req_id != UNSET_ID for key in keys)


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
