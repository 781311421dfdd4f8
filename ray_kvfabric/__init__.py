"""A Ray actor-based fabric of paged KV caches. Importing this starts nothing and imports little.

The names below are the public API; each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "BlocksCacheKey": "cache.keys",
    "Cache": "cache.handle",
    "CacheDesc": "cache.types",
    "CacheKey": "cache.keys",
    "CacheKeyByIdAndIndex": "cache.keys",
    "CacheManager": "cache_manager",
    "CacheRef": "route",
    "CacheTask": "endpoint.layer_task",
    "CacheWorker": "actors.worker",
    "DataType": "cache.types",
    "EndpointSettings": "config",
    "Fabric": "fabric",
    "FabricConfig": "config",
    "Grant": "grant",
    "GrantReceipt": "grant",
    "IssuedGrant": "endpoint.issued",
    "LLMException": "errors",
    "LLMRole": "cache.types",
    "LLMStatusCode": "errors",
    "LayerSynchronizer": "cache.layer_transfer",
    "MemInfo": "cache.layer_transfer",
    "Memtype": "cache.layer_transfer",
    "Placement": "cache.types",
    "Priority": "control.ageing_queue",
    "Receipt": "route",
    "Transfer": "endpoint.transfers",
    "TransferConfig": "cache.layer_transfer",
    "TransferWithCacheKeyConfig": "cache.layer_transfer",
    "WorkerGroup": "config",
}

if TYPE_CHECKING:
    from ray_kvfabric.actors.worker import CacheWorker as CacheWorker
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
    from ray_kvfabric.cache.types import DataType as DataType
    from ray_kvfabric.cache.types import LLMRole as LLMRole
    from ray_kvfabric.cache.types import Placement as Placement
    from ray_kvfabric.cache_manager import CacheManager as CacheManager
    from ray_kvfabric.config import EndpointSettings as EndpointSettings
    from ray_kvfabric.config import FabricConfig as FabricConfig
    from ray_kvfabric.config import WorkerGroup as WorkerGroup
    from ray_kvfabric.control.ageing_queue import Priority as Priority
    from ray_kvfabric.endpoint.issued import IssuedGrant as IssuedGrant
    from ray_kvfabric.endpoint.layer_task import CacheTask as CacheTask
    from ray_kvfabric.endpoint.transfers import Transfer as Transfer
    from ray_kvfabric.errors import LLMException as LLMException
    from ray_kvfabric.errors import LLMStatusCode as LLMStatusCode
    from ray_kvfabric.fabric import Fabric as Fabric
    from ray_kvfabric.grant import Grant as Grant
    from ray_kvfabric.grant import GrantReceipt as GrantReceipt
    from ray_kvfabric.route import CacheRef as CacheRef
    from ray_kvfabric.route import Receipt as Receipt

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
