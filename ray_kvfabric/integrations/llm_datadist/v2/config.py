"""The cluster configuration of the deprecated v1 engine, kept for programs that reach or patch it (section 18)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray_kvfabric.cache.types import LLMRole
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.integrations.llm_datadist.v2.llm_utils import parse_listen_ip_info

_CLUSTER_INFO = "llm.ClusterInfo"
_LISTEN_IP_INFO = "llm.listenIpInfo"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`cluster_config` is the decoded `llm.ClusterInfo`, empty without one."""

    is_prompt: bool
    cluster_config: dict[str, Any]

    @classmethod
    def from_engine_options(cls, is_prompt: bool, options: dict[str, str]) -> EngineConfig:
        """Raises LLMException (LLM_PARAM_INVALID) when `llm.ClusterInfo` is no JSON object."""
        try:
            cluster_config = json.loads(options.get(_CLUSTER_INFO, "{}"))
        except json.JSONDecodeError as error:
            raise ParamInvalid(f"{_CLUSTER_INFO} is not JSON: {error}") from error
        if not isinstance(cluster_config, dict):
            raise ParamInvalid(f"{_CLUSTER_INFO} must be a JSON object, got {type(cluster_config).__name__}")
        return cls(is_prompt, cluster_config)

    @staticmethod
    def gen_cluster_info_if_not_exist(cluster_id: int, role: LLMRole, options: dict[str, str]) -> None:
        """Writes `llm.ClusterInfo` into `options` where it is absent; a prompt's has its listen address."""
        if _CLUSTER_INFO in options:
            return
        info: dict[str, Any] = {"cluster_id": cluster_id}
        if role is LLMRole.PROMPT and _LISTEN_IP_INFO in options:
            ip, port = parse_listen_ip_info(options[_LISTEN_IP_INFO])
            info["listen_ip_info"] = [{"ip": ip, "port": port}]
        options[_CLUSTER_INFO] = json.dumps(info)
