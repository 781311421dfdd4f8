"""Checks and logging under the names that programs written for LLM-DataDist know (contract section 18)."""

from ray_kvfabric.integrations.llm_datadist._lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__, "log", "utils")
