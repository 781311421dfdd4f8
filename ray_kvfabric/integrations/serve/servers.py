"""Serve LLM's two servers, as a fabric needs them: a replica that goes lets its transfers end first, and a prefill that
is lost does not cost the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayError
from ray.llm._internal.serve.serving_patterns.prefill_decode.pd_server import (
    DPPDDecodeServer,
    DPPDPrefillServer,
    PDDecodeServer,
    PDPrefillServer,
)

from ray_kvfabric.errors import FabricError
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.integrations.vllm.seat import cluster_id_of

logger = logging.getLogger(__name__)

DRAIN_S = 20.0


class _Drains:
    """Before Serve ends the engine of a replica, whose requests have ended by then, its endpoints are drained."""

    async def __del__(self) -> None:
        backend = getattr(getattr(self, "_llm_config", None), "kv_connector_backend", None)
        if backend is not None:
            await asyncio.get_running_loop().run_in_executor(None, _drain, backend)
        await super().__del__()  # type: ignore[misc]


def _drain(backend: Any) -> None:
    kwargs = backend.llm_config.engine_kwargs
    ranks = kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1)
    with Fabric.connect(backend.settings.fabric) as fabric:
        for rank in range(ranks):
            _drain_worker(fabric, backend.engine_id, rank)


def _drain_worker(fabric: Fabric, engine_id: str, rank: int) -> None:
    try:
        fabric.drain(cluster_id_of(engine_id, rank), DRAIN_S)
    except FabricError as error:
        logger.warning("worker %d of engine %s was not drained: %s", rank, engine_id, error)


class _Forgives:
    """A prefill replica that dies costs its share of the work: the decode engine is told by the fabric and computes it.

    With `kv_load_failure_policy: fail` the request ends with the engine's error instead.
    """

    async def _concurrent_decode(
        self, method: str, decode_request: Any, prefill_resp: Any, raw_request_info: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        decoded = super()._concurrent_decode(  # type: ignore[misc]
            method, decode_request, _without_losses(prefill_resp), raw_request_info, **options
        )
        async for chunk in decoded:
            yield chunk


async def _without_losses(prefill_response: Any) -> AsyncGenerator[Any, None]:
    try:
        async for chunk in prefill_response:
            yield chunk
    except RayError as error:
        logger.warning("a prefill replica was lost: %s", error)


class KVFabricPrefillServer(_Drains, PDPrefillServer):  # type: ignore[misc]
    pass


class KVFabricDecodeServer(_Drains, _Forgives, PDDecodeServer):  # type: ignore[misc]
    pass


class KVFabricDPPrefillServer(_Drains, DPPDPrefillServer):  # type: ignore[misc]
    pass


class KVFabricDPDecodeServer(_Drains, _Forgives, DPPDDecodeServer):  # type: ignore[misc]
    pass
