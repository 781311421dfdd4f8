"""Ray Serve LLM, split into prefill and decode by a fabric.

    applications:
      - import_path: ray_kvfabric.integrations.serve:build_kvfabric_pd_app
        args: {prefill_config: ..., decode_config: ...}      # LLMConfigs; kv_transfer_config may be left out

Importing this imports neither Serve LLM nor an engine: `ray.serve.llm` needs both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_kvfabric.integrations.vllm import CONNECTOR

if TYPE_CHECKING:
    from ray.serve.deployment import Application

BACKEND = "ray_kvfabric.integrations.serve.backend:KVFabricConnectorBackend"


def register() -> None:
    """Makes Serve LLM find the backend of KVFabricConnector, once for the whole Ray cluster; may be called again."""
    from ray.llm._internal.serve.engines.vllm.kv_transfer.factory import KVConnectorBackendFactory

    if not KVConnectorBackendFactory.is_registered(CONNECTOR):
        KVConnectorBackendFactory.register_backend(CONNECTOR, BACKEND)


def build_kvfabric_pd_app(args: dict[str, Any]) -> Application:
    """An OpenAI-compatible application whose prompts are computed by one deployment and answered by another.

    `args` are those of `ray.serve.llm.build_pd_openai_app`; where a side has no `kv_transfer_config` it gets one with
    KVFabricConnector. Raises ConfigError for another connector and for settings that cannot be served.
    """
    from ray_kvfabric.integrations.serve.builder import build

    return build(args)


__all__ = ["BACKEND", "build_kvfabric_pd_app", "register"]
