"""CacheWorker: an actor that holds one endpoint. Subclass it to let it sit beside a model.

Calls of six groups do not wait for each other: `control` (short), `answers` (what peers ask), `parts` (what they ask
that takes as long as a transfer), `transfer` (one thread a moving push), `waiting` (who waits for an outcome) and
`endings` (revoke, drain); everything else, also a subclass's methods, is in the default group.
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
from ray_kvfabric.actors.endpoint import Seat, open_endpoint
from ray_kvfabric.actors.grant_desk import GrantDesk
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import CacheRef, EndpointInfo, Receipt

CONCURRENCY_GROUPS = {"control": 2, "answers": 8, "parts": 8, "transfer": 4, "waiting": 16, "endings": 4, "watch": 1}


class CacheWorker:
    """One endpoint of a fabric. `self.manager` is its CacheManager, for the code that runs in this actor."""

    def __init__(self, seat: Seat) -> None:
        context = ray.get_runtime_context()
        self.chip = device_chip_name()
        if self.chip is not None:
            log_chip(describe_chip(self.chip), seat.cluster_id)
        self._released = threading.Event()
        self.manager = open_endpoint(seat, context.current_actor, tracer_pid=os.getppid())
        self._desk = GrantDesk(self.manager)

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
    def answer(self, question_id: str, question: str, packed: bytes) -> object:
        """What a peer asked through its PeerCalls; the same question_id is the same question."""
        return self._desk.answer(question_id, question, packed)

    @ray.method(concurrency_group="parts")
    def take_part(self, question_id: str, question: str, packed: bytes) -> object:
        """As `answer`, for questions whose answer is a part in a transfer and waits for other answers."""
        return self._desk.answer(question_id, question, packed)

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
    def result(self, transfer_id: str, timeout_s: float, incarnation: int | None = None) -> Receipt:
        """The outcome of a push that was started here. Raises TransferUnknown for an id never seen.

        Raises StaleIncarnation when it was started at another `incarnation`.
        """
        return self._desk.result(transfer_id, timeout_s, incarnation)

    @ray.method(concurrency_group="waiting")
    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        """Waits, without a call to anybody, until this push from a peer has landed here."""
        return self.manager.wait_received(transfer_id, timeout_s)

    # -- grants: `GrantDesk` says what each does

    @ray.method(concurrency_group="control")
    def grant_blocks(self, **order: Any) -> Grant:
        return self._desk.grant_blocks(**order)

    @ray.method(concurrency_group="waiting")
    def wait_granted(self, grant_id: str, timeout_s: float, given_by: int) -> GrantReceipt:
        return self._desk.wait_granted(grant_id, timeout_s, given_by)

    @ray.method(concurrency_group="endings")
    def revoke_grant(self, grant_id: str, timeout_s: float, given_by: int) -> None:
        self._desk.revoke_grant(grant_id, timeout_s, given_by)

    @ray.method(concurrency_group="transfer")
    def push_granted(self, **order: Any) -> Receipt:
        return self._desk.push_granted(**order)

    @ray.method(concurrency_group="control")
    def fail_granted(self, grant: Grant, reason: str) -> None:
        self._desk.fail_granted(grant, reason)

    @ray.method(concurrency_group="endings")
    def drain(self, timeout_s: float) -> None:
        """Before this actor is killed: returns when its endpoint holds nothing any more."""
        self._desk.drain(timeout_s)

    # -- caches; a call whose answer was lost is made again under the same call_id, and takes effect once

    def allocate_blocks_cache(
        self,
        cache_desc: CacheDesc,
        key: BlocksCacheKey | None = None,
        *,
        grants_only: bool = False,
        call_id: str | None = None,
    ) -> CacheRef:
        return self._desk.allocate_blocks_cache(cache_desc, key, call_id, grants_only=grants_only)

    def deallocate_blocks_cache(
        self, cache_id: int, *, incarnation: int | None = None, call_id: str | None = None
    ) -> None:
        """Raises StaleIncarnation when the cache is one of another `incarnation`."""
        self._desk.deallocate_blocks_cache(cache_id, incarnation, call_id)

    def read_blocks(self, cache_id: int, tensor_index: int, blocks: list[int]) -> NDArray[np.generic]:
        """A copy of these blocks of a tensor; for tests and notebooks, not for serving."""
        return self.manager.cache(cache_id).read(tensor_index, blocks)

    def write_blocks(
        self,
        cache_id: int,
        tensor_index: int,
        blocks: list[int],
        values: NDArray[np.generic],
        *,
        call_id: str | None = None,
    ) -> None:
        """Sets these blocks of a tensor; for tests and notebooks, not for serving."""
        self._desk.once(call_id, lambda: self.manager.cache(cache_id).write(tensor_index, values, blocks))
