"""The CacheManager mode of LLM-DataDist, "v2"."""

from ray_kvfabric.integrations.llm_datadist._lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__, "cache_manager", "config", "llm_datadist", "llm_types", "llm_utils")
