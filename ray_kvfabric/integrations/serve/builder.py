"""The application: ingress -> decode servers -> prefill servers, as Serve LLM builds it, with our own servers."""

from __future__ import annotations

import copy
from importlib.resources import files
from typing import Any

from ray import serve
from ray.llm._internal.common.dict_utils import maybe_apply_llm_deployment_config_defaults
from ray.llm._internal.serve.constants import RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.llm._internal.serve.core.ingress.ingress import make_fastapi_ingress
from ray.llm._internal.serve.core.server.builder import build_llm_deployment
from ray.llm._internal.serve.serving_patterns.data_parallel.builder import build_dp_deployment
from ray.llm._internal.serve.serving_patterns.prefill_decode.builder import PDServingArgs
from ray.serve.deployment import Application

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.serve import register
from ray_kvfabric.integrations.serve.servers import (
    KVFabricDecodeServer,
    KVFabricDPDecodeServer,
    KVFabricDPPrefillServer,
    KVFabricPrefillServer,
)
from ray_kvfabric.integrations.vllm import CONNECTOR, MODULE

DEMO = "kvfabric-demo"
_SIDES = (("prefill_config", "kv_producer"), ("decode_config", "kv_consumer"))


def build(args: dict[str, Any]) -> Application:
    if RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING:
        raise ConfigError(
            "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING is set; build_kvfabric_pd_app serves through its ingress"
        )
    register()
    wanted = PDServingArgs.model_validate(with_connectors(args))
    prefill = _deployment(wanted.prefill_config, "Prefill:", (KVFabricPrefillServer, KVFabricDPPrefillServer), {})
    servers = (KVFabricDecodeServer, KVFabricDPDecodeServer)
    decode = _deployment(wanted.decode_config, "Decode:", servers, {"prefill_server": prefill})
    return _ingress(wanted, decode)


def _deployment(config: LLMConfig, prefix: str, servers: tuple[type, type], bound: dict[str, Any]) -> Application:
    is_parallel = config.engine_kwargs.get("data_parallel_size", 1) > 1
    builder = build_dp_deployment if is_parallel else build_llm_deployment
    return builder(config, name_prefix=prefix, bind_kwargs=bound, deployment_cls=servers[is_parallel])


def _ingress(wanted: PDServingArgs, decode: Application) -> Application:
    """Callers see the decode side as the model."""
    config, ingress = wanted.decode_config, wanted.ingress_cls_config
    defaults = ingress.ingress_cls.get_deployment_options([config])
    options = maybe_apply_llm_deployment_config_defaults(defaults, wanted.ingress_deployment_config)
    lora = config.lora_config
    return serve.deployment(make_fastapi_ingress(ingress.ingress_cls), **options).bind(
        llm_deployments={config.model_id: decode},
        model_cards={config.model_id: to_model_metadata(config.model_id, config)},
        lora_paths={} if lora is None else {config.model_id: lora.dynamic_lora_loading_path},
        **ingress.ingress_extra_kwargs,
    )


def with_connectors(args: dict[str, Any]) -> dict[str, Any]:
    """A copy in which both sides have a `kv_transfer_config`; what they have is kept. Raises ConfigError."""
    filled = dict(args)
    for side, role in _SIDES:
        if side not in filled:
            raise ConfigError(f"args has no {side}")
        filled[side] = _with_connector(filled[side], side, role)
    return filled


def _with_connector(config: Any, side: str, role: str) -> LLMConfig:
    if isinstance(config, str):
        config = LLMConfig.from_file(config)
    config = config.model_copy(deep=True) if isinstance(config, LLMConfig) else LLMConfig(**_with_model(config))
    given = config.engine_kwargs["kv_transfer_config"] = config.engine_kwargs.get("kv_transfer_config") or {}
    for name, value in (
        ("kv_connector", CONNECTOR),
        ("kv_connector_module_path", MODULE),
        ("kv_role", role),
        ("kv_load_failure_policy", "recompute"),
    ):
        given.setdefault(name, value)
    if given["kv_connector"] != CONNECTOR or given["kv_role"] not in (role, "kv_both"):
        raise ConfigError(
            f"{side}.engine_kwargs.kv_transfer_config has kv_connector {given['kv_connector']!r} and kv_role "
            f"{given['kv_role']!r}; {CONNECTOR!r} and {role!r}, or 'kv_both', are needed"
        )
    return config


def _with_model(config: dict[str, Any]) -> dict[str, Any]:
    """A copy; `model_source: kvfabric-demo` is the small model that ships with the package."""
    filled = copy.deepcopy(config)
    loading = filled.get("model_loading_config") or {}
    if loading.get("model_source") == DEMO:
        loading["model_source"] = str(files("ray_kvfabric") / "demo" / "model")
    return filled
