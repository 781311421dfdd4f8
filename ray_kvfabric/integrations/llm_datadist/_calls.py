"""Calls: who is inside the engine. `finalize` and `unlink` wait for them, as LLM-DataDist's locks do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, LLMStatusCode, TransferTimeout


class Calls:
    """Open until `close`; a call is entered at any time before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = 0
        self._inside: set[int] = set()  # a number for each call
        self._is_closed = False

    @contextmanager
    def enter(self, refusal: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID) -> Iterator[None]:
        """Raises LLMException with the code `refusal` after the engine was finalized (contract 9.3)."""
        with self._changed:
            self.check(refusal)
            self._newest = number = self._newest + 1
            self._inside.add(number)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(number)
                self._changed.notify_all()

    def check(self, refusal: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID) -> None:
        if self._is_closed:
            raise LLMException("the LLMDataDist of this cache manager was finalized", status_code=refusal)

    def close(self, deadline: Deadline) -> None:
        """No call enters any more; returns when the last one left. Raises TransferTimeout."""
        with self._changed:
            self._is_closed = True
            self._wait(deadline)

    def drain(self, deadline: Deadline) -> None:
        """Returns when the calls that are inside now have left, whoever comes after. Raises TransferTimeout."""
        with self._changed:
            self._wait(deadline)

    def _wait(self, deadline: Deadline) -> None:
        earlier = set(self._inside)
        if not self._changed.wait_for(lambda: earlier.isdisjoint(self._inside), deadline.remaining_s):
            raise TransferTimeout(f"{len(earlier & self._inside)} calls are still inside the engine")
