"""The demo's driver: a Ray, a fabric of two workers, a prompt split over them, and the single process beside it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

from ray_kvfabric.actors.edge import fetch, peer_errors
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.config import FabricConfig, WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.demo.place import Place
from ray_kvfabric.demo.ray_session import ray_session
from ray_kvfabric.demo.request import (
    AloneRun,
    LayerReceived,
    ModelChoice,
    PrefillRun,
    Request,
    Reserved,
    TokenWritten,
)
from ray_kvfabric.demo.split import DecodeWorker, ModelWorker, PrefillWorker
from ray_kvfabric.errors import TransferTimeout
from ray_kvfabric.fabric import Fabric

PREFILL_ID, DECODE_ID = 1, 2
_ON_CPU = Place()


class Audience(Protocol):
    """Who watches a run."""

    def step(self, text: str) -> AbstractContextManager[None]: ...

    def received(self, event: LayerReceived, num_layers: int) -> None: ...

    def written(self, event: TokenWritten) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one run of the demo has shown. `memories`: where the prefill's and the decoder's cache lay."""

    request: Request
    memories: tuple[str, str]
    prefill: PrefillRun
    received: tuple[LayerReceived, ...]
    written: tuple[TokenWritten, ...]
    alone: AloneRun

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.written]


def run(
    model: ModelChoice, request: Request, audience: Audience, address: str | None = None, place: Place = _ON_CPU
) -> Outcome:
    """Raises FabricError for whatever went wrong; nothing that was started here stays behind."""
    session = ray_session(address, place, audience.step("starting Ray"))
    with session, Fabric.connect(config=_fabric_config()) as fabric:
        with audience.step("starting a prefill and a decode worker"):
            prefill, decode = _start_workers(fabric, model, place, request.timeout_s)
        with peer_errors("a worker of the demo"):
            return _split_and_compare(prefill, decode, request, audience)


def _fabric_config() -> FabricConfig:
    return FabricConfig(name=f"demo-{uuid.uuid4().hex[:12]}", lifetime="job")


def _start_workers(
    fabric: Fabric, model: ModelChoice, place: Place, timeout_s: float
) -> tuple[ActorHandle[Any], ActorHandle[Any]]:
    """Both at once: most of a start is the import of Python modules."""

    def start(cluster_id: int, role: str, worker_class: type[ModelWorker]) -> ActorHandle[Any]:
        group = _group(cluster_id, role, place, timeout_s)
        [worker] = fabric.add_workers(group, worker_class=worker_class, timeout_s=timeout_s, model=model)
        return worker

    with ThreadPoolExecutor(2) as threads:
        prefill = threads.submit(start, PREFILL_ID, "PROMPT", PrefillWorker)
        decode = threads.submit(start, DECODE_ID, "DECODER", DecodeWorker)
    return prefill.result(), decode.result()


def _group(cluster_id: int, role: str, place: Place, timeout_s: float) -> WorkerGroup:
    """No CPU is reserved, so a machine with one core runs the demo; Ray then gives each worker one BLAS thread."""
    return WorkerGroup.model_validate(
        {
            "name": role.lower(),
            "first_cluster_id": cluster_id,
            "role": role,
            "num_cpus": 0,
            "resources": {place.resource: 1} if place.resource else {},
            "endpoint": place.settings(timeout_s),
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
    source: Reserved
    target: Reserved
    source, target = fetch(reserved, deadline, "the reservation of blocks")
    num_layers = fetch(decode.num_layers.remote(), deadline, "the model")
    events = decode.decode.options(num_returns="streaming").remote(request)
    pushed = prefill.prefill.remote(request, BlocksCacheKey(DECODE_ID), target.blocks)
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
    return Outcome(request, (source.memory, target.memory), prefilled, tuple(received), tuple(written), alone)


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
