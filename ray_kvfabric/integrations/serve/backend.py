"""KVFabricConnectorBackend: what Serve LLM asks about KVFabricConnector.

    setup                   in each replica, before its engine starts: a name of its own, and the fabric's address
    replica_metadata        what decode replicas learn of a prefill replica before they send it a request
    prepare_*_request       both legs of one request name the same transfer, and each other's engine
Prefill and decode run at the same time: the decode side's grant reaches the prefill side while it computes.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray
from ray.llm._internal.serve.engines.vllm.kv_transfer.base import BaseConnectorBackend, clamp_request_to_single_token

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.vllm import CONNECTOR, MODULE
from ray_kvfabric.integrations.vllm.params import TRANSFER_ID, consumer_params, producer_params
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings

ENGINE_ID = "engine_id"


class KVFabricConnectorBackend(BaseConnectorBackend):  # type: ignore[misc]
    requires_peer_binding = True
    concurrent_handoff = True

    def setup(self) -> None:
        """Raises ConfigError for settings that the connector would refuse."""
        config = self.kv_transfer_config
        config[ENGINE_ID] = f"{config.get(ENGINE_ID) or config['kv_role']}-{uuid.uuid4().hex[:12]}"
        if config["kv_connector"] == CONNECTOR:
            config.setdefault("kv_connector_module_path", MODULE)
        extra = config["kv_connector_extra_config"] = config.get("kv_connector_extra_config") or {}
        extra.setdefault("address", ray.get_runtime_context().gcs_address)
        extra.setdefault("group", self.llm_config.model_id)
        ConnectorSettings.of(extra)

    @property
    def engine_id(self) -> str:
        """As the engine will call itself: vLLM adds the rank of a data-parallel one."""
        name: str = self.kv_transfer_config[ENGINE_ID]
        kwargs = self.llm_config.engine_kwargs
        if kwargs.get("data_parallel_size", 1) > 1:
            return f"{name}_dp{kwargs.get('data_parallel_rank', 0)}"
        return name

    @property
    def settings(self) -> ConnectorSettings:
        return ConnectorSettings.of(self.kv_transfer_config.get("kv_connector_extra_config"))

    def replica_metadata(self) -> dict[str, Any]:
        return {ENGINE_ID: self.engine_id}

    def prepare_prefill_request(self, *, request: Any, peer: dict[str, Any] | None) -> Any:
        """A copy that computes one token. Its transfer is noted on `request`, from which the decode leg is made.

        A request id would not do: callers choose it, and two may choose the same.
        """
        transfer_id = uuid.uuid4().hex
        request.kv_transfer_params = {TRANSFER_ID: transfer_id}
        prefill = request.model_copy(deep=True)
        prefill.kv_transfer_params = producer_params(transfer_id, self.engine_id)
        clamp_request_to_single_token(prefill)
        prefill.n = 1  # all answers to a prompt begin with the same KV
        if getattr(prefill, "min_tokens", 0):
            prefill.min_tokens = 0
        return prefill

    def prepare_decode_request(self, *, request: Any, peer: dict[str, Any] | None, prefill_response: Any) -> Any:
        """Raises ConfigError for a prefill replica that runs another connector."""
        producer = (peer or {}).get(ENGINE_ID)
        if producer is None:
            raise ConfigError(
                f"the prefill replica published no {ENGINE_ID}: its kv_connector must be {CONNECTOR}, too"
            )
        decode = request.model_copy(deep=True)
        decode.kv_transfer_params = consumer_params(request.kv_transfer_params[TRANSFER_ID], producer)
        return decode
