"""Serve LLM's two servers, as a fabric needs them: a replica that goes lets its transfers end first, and a prefill that
is lost does not cost the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.llm._internal.serve.serving_patterns.prefill_decode.pd_server import (
    DPPDDecodeServer,
    DPPDPrefillServer,
    PDDecodeServer,
    PDPrefillServer,
)
from ray.serve.exceptions import ReplicaUnavailableError
from vllm.v1.engine.exceptions import EngineDeadError

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.integrations.vllm.seat import cluster_id_of

logger = logging.getLogger(__name__)

DRAIN_S = 15.0  # of the 20 s that Serve gives a replica, unless its deployment says more
LAST_S = 1.0
LOOK_S = 0.1


class _Drains:
    """Before Serve ends the engine of a replica, whose requests have ended by then, its endpoints are drained: what it
    has promised is granted and sent, and what was granted to it has landed.
    """

    async def __del__(self) -> None:
        try:
            backend = getattr(getattr(self, "_llm_config", None), "kv_connector_backend", None)
            if backend is not None:
                await _drain(backend)
        finally:
            await super().__del__()  # type: ignore[misc]


async def _drain(backend: Any) -> None:
    kwargs = backend.llm_config.engine_kwargs
    ranks = kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1)
    deadline = Deadline.after(DRAIN_S)
    try:
        fabric = await asyncio.to_thread(Fabric.connect, backend.settings.fabric)
        workers = [cluster_id_of(backend.engine_id, rank) for rank in range(ranks)]
        try:
            await asyncio.gather(*(asyncio.to_thread(_drain_worker, fabric, worker, deadline) for worker in workers))
        finally:
            await asyncio.to_thread(fabric.close)
    except FabricError as error:
        logger.warning("engine %s was not drained: %s", backend.engine_id, error)


def _drain_worker(fabric: Fabric, worker: int, deadline: Deadline) -> None:
    """A consumer could not find an endpoint that drains already, so what is promised comes first."""
    while any(fabric.look(worker).status["uses"].get("vllm", {}).values()) and not deadline.passed:
        time.sleep(LOOK_S)
    fabric.drain(worker, max(deadline.remaining_s, LAST_S))


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
    except (RayActorError, ReplicaUnavailableError) as error:
        logger.warning("a prefill replica was lost: %s", error)
    except RayTaskError as error:
        if not isinstance(error.cause, EngineDeadError):
            raise
        logger.warning("a prefill engine was lost: %s", error)


class KVFabricPrefillServer(_Drains, PDPrefillServer):  # type: ignore[misc]
    pass


class KVFabricDecodeServer(_Drains, _Forgives, PDDecodeServer):  # type: ignore[misc]
    pass


class KVFabricDPPrefillServer(_Drains, DPPDPrefillServer):  # type: ignore[misc]
    pass


class KVFabricDPDecodeServer(_Drains, _Forgives, DPPDDecodeServer):  # type: ignore[misc]
    pass
