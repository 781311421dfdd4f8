"""The demo's driver: a Ray, a fabric of two workers, a prompt split over them, and the single process beside it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

from ray_kvfabric.actors.edge import fetch, peer_errors
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.config import NAMESPACE, EndpointSettings, FabricConfig, PoolSettings, WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.demo.request import (
    AloneRun,
    LayerReceived,
    ModelChoice,
    PrefillRun,
    Request,
    TokenWritten,
)
from ray_kvfabric.demo.split import DecodeWorker, ModelWorker, PrefillWorker
from ray_kvfabric.errors import FabricError, TransferTimeout
from ray_kvfabric.fabric import Fabric

PREFILL_ID, DECODE_ID = 1, 2
_OBJECT_STORE_NBYTES = 100 * 2**20
_POOL_NBYTES = 64 * 2**30  # a limit, nothing is reserved


class Audience(Protocol):
    """Who watches a run."""

    def step(self, text: str) -> AbstractContextManager[None]: ...

    def received(self, event: LayerReceived, num_layers: int) -> None: ...

    def written(self, event: TokenWritten) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one run of the demo has shown."""

    request: Request
    prefill: PrefillRun
    received: tuple[LayerReceived, ...]
    written: tuple[TokenWritten, ...]
    alone: AloneRun

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.written]


def run(model: ModelChoice, request: Request, audience: Audience, address: str | None = None) -> Outcome:
    """Raises FabricError for whatever went wrong; nothing that was started here stays behind."""
    with ray_session(address, audience), Fabric.connect(config=_fabric_config()) as fabric:
        with audience.step("starting a prefill and a decode worker"):
            prefill, decode = _start_workers(fabric, model, request.timeout_s)
        with peer_errors("a worker of the demo"):
            return _split_and_compare(prefill, decode, request, audience)


@contextmanager
def ray_session(address: str | None, audience: Audience) -> Iterator[None]:
    """The Ray of this process, else the one at `address` or on this host, else a new one that ends with it."""
    if ray.is_initialized():
        yield
        return
    try:
        with audience.step("starting Ray"):
            _init_ray(address)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FabricError(f"Ray does not start: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _init_ray(address: str | None) -> None:
    quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
            return
        except ConnectionError:
            if address is not None:
                raise
    ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_NBYTES, **quiet)


def _fabric_config() -> FabricConfig:
    return FabricConfig(name=f"demo-{uuid.uuid4().hex[:12]}", lifetime="job")


def _start_workers(fabric: Fabric, model: ModelChoice, timeout_s: float) -> tuple[ActorHandle[Any], ActorHandle[Any]]:
    """Both at once: most of a start is the import of Python modules."""

    def start(cluster_id: int, role: str, worker_class: type[ModelWorker]) -> ActorHandle[Any]:
        group = _group(cluster_id, role, timeout_s)
        [worker] = fabric.add_workers(group, worker_class=worker_class, timeout_s=timeout_s, model=model)
        return worker

    with ThreadPoolExecutor(2) as threads:
        prefill = threads.submit(start, PREFILL_ID, "PROMPT", PrefillWorker)
        decode = threads.submit(start, DECODE_ID, "DECODER", DecodeWorker)
    return prefill.result(), decode.result()


def _group(cluster_id: int, role: str, timeout_s: float) -> WorkerGroup:
    """No CPU is reserved, so a machine with one core runs the demo; Ray then gives each worker one BLAS thread."""
    settings = EndpointSettings(
        mem_pool=PoolSettings(memory_size=_POOL_NBYTES), sync_kv_timeout_ms=int(timeout_s * 1000)
    )
    return WorkerGroup.model_validate(
        {
            "name": role.lower(),
            "first_cluster_id": cluster_id,
            "role": role,
            "num_cpus": 0,
            "endpoint": settings,
        }
    )


def _split_and_compare(
    prefill: ActorHandle[Any], decode: ActorHandle[Any], request: Request, audience: Audience
) -> Outcome:
    deadline = Deadline.after(request.timeout_s)
    reserved = [
        worker.reserve.remote(tokens, request.block_tokens)
        for worker, tokens in ((prefill, len(request.tokens) - 1), (decode, request.capacity_tokens))
    ]
    _, target_blocks = fetch(reserved, deadline, "the reservation of blocks")
    num_layers = fetch(decode.num_layers.remote(), deadline, "the model")
    events = decode.decode.options(num_returns="streaming").remote(request)
    pushed = prefill.prefill.remote(request, BlocksCacheKey(DECODE_ID), target_blocks)
    received, written = [], []
    for event in _events(events, pushed, deadline):
        if isinstance(event, LayerReceived):
            received.append(event)
            audience.received(event, num_layers)
        else:
            written.append(event)
            audience.written(event)
    prefilled: PrefillRun = fetch(pushed, deadline, "the prefill")
    with audience.step("writing the same text in a single process"):
        alone: AloneRun = fetch(
            prefill.write_alone.remote(request), Deadline.after(request.timeout_s), "the single process"
        )
    return Outcome(request, prefilled, tuple(received), tuple(written), alone)


def _events(stream: Any, pushed: Any, deadline: Deadline) -> Iterator[LayerReceived | TokenWritten]:
    """What the decode worker yields; a prefill that fails is raised at once, not after the decoder's patience."""
    pending = [stream, pushed]
    while True:
        ready, _ = ray.wait(pending, timeout=deadline.remaining_s)
        if not ready:
            raise TransferTimeout("the demo did not end in time")
        if pushed in ready:
            fetch(pushed, deadline, "the prefill")
            pending.remove(pushed)
            continue
        try:
            event = next(stream)
        except StopIteration:
            return
        yield fetch(event, deadline, "the next token")
