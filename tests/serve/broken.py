"""The negative control: a connector that pushes memory in which no layer ever writes."""

from __future__ import annotations

from typing import Any

import torch

from ray_kvfabric.integrations.vllm import connector


class KVFabricConnector(connector.KVFabricConnector):
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._untouched = {layer: torch.zeros_like(tensor) for layer, tensor in kv_caches.items()}
        super().register_kv_caches(self._untouched)
