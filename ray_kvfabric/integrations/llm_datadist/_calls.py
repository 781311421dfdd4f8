"""Calls: who is inside the engine. `finalize` waits for all of them, unlinking for the transfers to that cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, LLMStatusCode, TransferTimeout


class Calls:
    """Open until `close`; a call is entered at any time before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = 0
        self._inside: dict[int, int | None] = {}  # a number for each call -> the cluster that it transfers to
        self._is_closed = False

    @contextmanager
    def enter(
        self, cluster_id: int | None = None, refusal: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID
    ) -> Iterator[None]:
        """`cluster_id` is the one that a transfer goes to.

        Raises LLMException with the code `refusal` after the engine was finalized (contract 9.3).
        """
        with self._changed:
            self.check(refusal)
            self._newest = number = self._newest + 1
            self._inside[number] = cluster_id
        try:
            yield
        finally:
            with self._changed:
                del self._inside[number]
                self._changed.notify_all()

    def check(self, refusal: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID) -> None:
        if self._is_closed:
            raise LLMException("the LLMDataDist of this cache manager was finalized", status_code=refusal)

    def close(self, deadline: Deadline) -> None:
        """No call enters any more; returns when the last one left. Raises TransferTimeout."""
        with self._changed:
            self._is_closed = True
            self._wait(set(self._inside), deadline)

    def drain(self, cluster_ids: Iterable[int], deadline: Deadline) -> None:
        """Returns when the transfers to these clusters that are inside now have left. Raises TransferTimeout."""
        wanted = set(cluster_ids)
        with self._changed:
            self._wait({number for number, cluster_id in self._inside.items() if cluster_id in wanted}, deadline)

    def _wait(self, earlier: set[int], deadline: Deadline) -> None:
        if not self._changed.wait_for(lambda: earlier.isdisjoint(self._inside), deadline.remaining_s):
            raise TransferTimeout(f"{len(earlier & set(self._inside))} calls are still inside the engine")
