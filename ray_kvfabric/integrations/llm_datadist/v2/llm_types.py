"""The value classes of the v2 interface under one roof (contract sections 4.2 and 8)."""

from __future__ import annotations

from enum import Enum

from ray_kvfabric.cache.handle import Cache as Cache
from ray_kvfabric.cache.keys import BlocksCacheKey as BlocksCacheKey
from ray_kvfabric.cache.keys import CacheKey as CacheKey
from ray_kvfabric.cache.keys import CacheKeyByIdAndIndex as CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer as LayerSynchronizer
from ray_kvfabric.cache.layer_transfer import MemInfo as MemInfo
from ray_kvfabric.cache.layer_transfer import Memtype as Memtype
from ray_kvfabric.cache.layer_transfer import TransferConfig as TransferConfig
from ray_kvfabric.cache.layer_transfer import TransferWithCacheKeyConfig as TransferWithCacheKeyConfig
from ray_kvfabric.cache.types import CacheDesc as CacheDesc
from ray_kvfabric.cache.types import Placement as Placement
from ray_kvfabric.endpoint.layer_task import CacheTask as CacheTask
from ray_kvfabric.integrations.llm_datadist.v2.kv_cache import KvCache as KvCache


class RegisterMemStatus(Enum):
    """How far a communicator's exchange of memory is."""

    OK = 0
    PREPARING = 1
    FAILED = 2


def int_to_mem_status(value: int) -> RegisterMemStatus:
    """FAILED for a number that means nothing."""
    try:
        return RegisterMemStatus(value)
    except ValueError:
        return RegisterMemStatus.FAILED


class PushType(Enum):
    """By what a transfer names its destination; internal to LLM-DataDist, kept for programs that import it."""

    NO_CACHE_KEY = 0
    BLOCKS_CACHE_KEY = 1
    CACHE_KEY_BY_ID = 2
