"""CacheWorker: an actor that holds one endpoint. Subclass it to let it sit beside a model.

Calls of five groups do not wait for each other: `control` (short), `answers` (what peers ask), `parts` (what they ask
that takes as long as a transfer), `transfer` (one thread a moving push), `waiting` (who waits for an outcome);
everything else, also a subclass's methods, is in the default group.
`watch` holds the scheduler's one parked call, whose failure tells it that this actor died.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from ray_kvfabric.actors.chip import describe_chip, device_chip_name, log_chip
from ray_kvfabric.actors.desk import Desk
from ray_kvfabric.actors.endpoint import Seat, open_endpoint
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.route import CacheRef, EndpointInfo, Receipt

CONCURRENCY_GROUPS = {"control": 2, "answers": 8, "parts": 8, "transfer": 4, "waiting": 4, "watch": 1}


class CacheWorker:
    """One endpoint of a fabric. `self.manager` is its CacheManager, for the code that runs in this actor."""

    def __init__(self, seat: Seat) -> None:
        context = ray.get_runtime_context()
        self.chip = device_chip_name()
        if self.chip is not None:
            log_chip(describe_chip(self.chip), seat.cluster_id)
        self._released = threading.Event()
        self.manager = open_endpoint(seat, context.current_actor, tracer_pid=os.getppid())
        self._desk = Desk(self.manager)

    # -- control

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """The endpoint's incarnation."""
        return self.manager.endpoint.incarnation

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, object]:
        return {**self._desk.status(), "chip": None if self.chip is None else str(describe_chip(self.chip))}

    @ray.method(concurrency_group="control")
    def cancel(self, transfer_id: str) -> bool:
        """Stops a push; False when it had ended or is not known."""
        return self._desk.cancel(transfer_id)

    @ray.method(concurrency_group="answers")
    def answer(self, question_id: str, question: str, arguments: dict[str, Any]) -> object:
        """What a peer asked through its PeerCalls; the same question_id is the same question."""
        return self._desk.answer(question_id, question, arguments)

    @ray.method(concurrency_group="parts")
    def take_part(self, question_id: str, question: str, arguments: dict[str, Any]) -> object:
        """As `answer`, for questions whose answer is a part in a transfer and waits for other answers."""
        return self._desk.answer(question_id, question, arguments)

    @ray.method(concurrency_group="control")
    def endpoint(self) -> EndpointInfo:
        return self.manager.endpoint

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """Leaves the fabric; the actor lives on until it is killed."""
        self._released.set()
        self.manager.close()

    @ray.method(concurrency_group="watch")
    def hold(self, timeout_s: float) -> bool:
        """Returns when the worker closes; a caller learns from the failure of this call that it died."""
        return self._released.wait(timeout_s)

    # -- transfers

    @ray.method(concurrency_group="transfer")
    def push_blocks(self, **order: Any) -> Receipt:
        """`Desk.push_blocks`: a repeated transfer_id waits for the transfer that it names."""
        return self._desk.push_blocks(**order)

    @ray.method(concurrency_group="waiting")
    def result(self, transfer_id: str, timeout_s: float) -> Receipt:
        """The outcome of a push that was started here. Raises TransferUnknown for an id never seen."""
        return self._desk.result(transfer_id, timeout_s)

    @ray.method(concurrency_group="waiting")
    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        """Waits, without a call to anybody, until this push from a peer has landed here."""
        return self.manager.wait_received(transfer_id, timeout_s)

    # -- caches

    def allocate_blocks_cache(self, cache_desc: CacheDesc, key: BlocksCacheKey | None = None) -> CacheRef:
        cache = self.manager.allocate_blocks_cache(cache_desc, key)
        return CacheRef(self.manager.endpoint.cluster_id, cache.cache_id)

    def deallocate_blocks_cache(self, cache_id: int) -> None:
        self.manager.deallocate_blocks_cache(self.manager.cache(cache_id))

    def read_blocks(self, cache_id: int, tensor_index: int, blocks: list[int]) -> NDArray[np.generic]:
        """A copy of these blocks of a tensor; for tests and notebooks, not for serving."""
        return self.manager.cache(cache_id).read(tensor_index, blocks)

    def write_blocks(self, cache_id: int, tensor_index: int, blocks: list[int], values: NDArray[np.generic]) -> None:
        """Sets these blocks of a tensor; for tests and notebooks, not for serving."""
        self.manager.cache(cache_id).write(tensor_index, values, blocks)
