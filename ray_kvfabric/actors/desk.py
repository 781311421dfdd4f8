"""Desk: what an endpoint does for callers outside its process; CacheWorker and the long poll both call it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from ray_kvfabric.actors.answers import Answers
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.control.directory import replaced
from ray_kvfabric.control.errands import METHODS, Errand, Outcome
from ray_kvfabric.errors import FabricError, LLMException, LLMStatusCode, ParamInvalid, TransferUnknown
from ray_kvfabric.route import CacheRef, Receipt


class Desk:
    """Each method is idempotent: a push of a known transfer_id, a known question or call_id is not made again.

    `incarnation` is the one that the caller means; with another one here it raises StaleIncarnation.
    """

    def __init__(self, manager: CacheManager) -> None:
        self.manager = manager
        self._answers = Answers()
        self._calls = Answers()

    def once(self, call_id: str | None, call: Callable[[], object]) -> Any:
        """`call()`, made once for a call_id; a caller without one must not repeat itself."""
        return call() if call_id is None else self._calls.once(call_id, call)

    def _check_is_meant(self, incarnation: int | None) -> None:
        endpoint = self.manager.endpoint
        if incarnation not in (None, endpoint.incarnation):
            raise replaced(incarnation, endpoint)

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, key: BlocksCacheKey | None, call_id: str | None, *, grants_only: bool = False
    ) -> CacheRef:
        ref: CacheRef = self.once(call_id, lambda: self._allocate(cache_desc, key, grants_only))
        return ref

    def _allocate(self, cache_desc: CacheDesc, key: BlocksCacheKey | None, grants_only: bool) -> CacheRef:
        cache = self.manager.allocate_blocks_cache(cache_desc, key, grants_only=grants_only)
        endpoint = self.manager.endpoint
        return CacheRef(endpoint.cluster_id, cache.cache_id, endpoint.incarnation)

    def deallocate_blocks_cache(self, cache_id: int, incarnation: int | None, call_id: str | None) -> None:
        self._check_is_meant(incarnation)
        self.once(call_id, lambda: self.manager.deallocate_blocks_cache(self.manager.cache(cache_id)))

    def push_blocks(
        self,
        transfer_id: str,
        cache_id: int,
        dst_cache_key: BlocksCacheKey,
        src_blocks: tuple[int, ...] | list[int],
        dst_blocks: tuple[int, ...] | list[int],
        src_layer_range: range | None,
        dst_layer_range: range | None,
        tensor_num_per_layer: int,
        timeout_s: float | None,
        incarnation: int | None = None,
    ) -> Receipt:
        self._check_is_meant(incarnation)
        transfer = self.manager.start_push(
            dst_cache_key,
            self.manager.cache(cache_id),
            src_blocks,
            dst_blocks,
            src_layer_range,
            dst_layer_range,
            tensor_num_per_layer,
            transfer_id=transfer_id,
            timeout_s=timeout_s,
        )
        return transfer.wait()

    def result(self, transfer_id: str, timeout_s: float, incarnation: int | None = None) -> Receipt:
        self._check_is_meant(incarnation)
        return self.manager.result(transfer_id, timeout_s)

    def cancel(self, transfer_id: str) -> bool:
        """False also for a transfer that never came here."""
        try:
            return self.manager.cancel(transfer_id)
        except TransferUnknown:
            return False

    def answer(self, question_id: str, question: str, packed: bytes) -> object:
        """`packed` are the arguments, as `RayPeers.ask` has pickled them."""
        return self._answers.once(question_id, lambda: self.manager.answer(question, pickle.loads(packed)))

    take_part = answer  # by another name, so that actors let long answers wait in threads of their own

    def status(self) -> dict[str, object]:
        return self.manager.status()

    def run(self, errand: Errand) -> Outcome:
        """The errand's outcome; nothing is raised."""
        try:
            if errand.method not in METHODS:
                raise ParamInvalid(f"an endpoint has no method {errand.method!r}, only {', '.join(METHODS)}")
            return Outcome(getattr(self, errand.method)(**errand.arguments))
        except (FabricError, TypeError, ValueError) as error:
            return Outcome(error=error)
        except Exception as error:
            text = f"{errand.method} failed: {type(error).__name__}: {error}"
            return Outcome(error=LLMException(text, status_code=LLMStatusCode.LLM_FAILED))
