"""A drop-in for Huawei's package `llm_datadist`: the same names over the fabric (contract sections 2 and 18).

After `install()` a program that says `import llm_datadist` gets this package. Importing it starts nothing; what
needs an engine is imported when it is first used. `deviations.py` says where it differs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ray_kvfabric.integrations.llm_datadist._install import install as install
from ray_kvfabric.integrations.llm_datadist._install import uninstall as uninstall
from ray_kvfabric.integrations.llm_datadist._lazy import lazy_submodules
from ray_kvfabric.integrations.llm_datadist.configs import LLMClusterInfo, LLMConfig, LlmConfig, LLMRole
from ray_kvfabric.integrations.llm_datadist.data_type import DataType
from ray_kvfabric.integrations.llm_datadist.status import LLMException, LLMStatusCode, Status
from ray_kvfabric.integrations.llm_datadist.v2.llm_types import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    KvCache,
    LayerSynchronizer,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

if TYPE_CHECKING:
    from ray_kvfabric.integrations.llm_datadist.v2.llm_datadist import LLMDataDist

__all__ = [  # noqa: RUF022 the order is part of the contract
    "LLMClusterInfo",
    "LLMStatusCode",
    "LLMException",
    "LLMRole",
    "LlmConfig",
    "LLMConfig",
    "DataType",
    "Status",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "KvCache",
    "Cache",
    "BlocksCacheKey",
    "LLMDataDist",
    "Placement",
    "RegisterMemStatus",
    "LayerSynchronizer",
    "TransferConfig",
    "CacheTask",
    "TransferWithCacheKeyConfig",
    "Memtype",
    "MemInfo",
    "TensorDesc",
    "Tensor",
    "KvCacheManager",
]
_V1_NAMES = ("TensorDesc", "Tensor", "KvCacheManager")  # of the package llm_datadist_v1, which is not ours
v2_list = [name for name in __all__ if name not in _V1_NAMES]

_submodule = lazy_submodules(__name__, "llm_datadist_wrapper", "metadef_wrapper", "utils")


def __getattr__(name: str) -> object:
    if name in _V1_NAMES:
        return getattr(import_module("llm_datadist_v1"), name)
    if name == "LLMDataDist":
        return getattr(import_module(f"{__name__}.v2.llm_datadist"), name)
    return _submodule(name)
