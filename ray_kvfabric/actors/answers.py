"""Answers: what an endpoint answered to its callers, so that a question that comes twice is answered once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from copy import copy

from ray_kvfabric.control.errands import Outcome
from ray_kvfabric.errors import TransferTimeout

KEPT = 4096
PATIENCE_S = 60.0  # who asks again while the first answer is made waits for it so long


class Answers:
    """The newest answers by question_id. A call is repeated when its reply, or a scheduler, was lost."""

    def __init__(self, kept: int = KEPT, patience_s: float = PATIENCE_S) -> None:
        self._limit = kept
        self._patience_s = patience_s
        self._kept: dict[str, Future[Outcome]] = {}
        self._lock = threading.Lock()

    def once(self, question_id: str, answer: Callable[[], object]) -> object:
        """`answer()`, or what it returned or raised when this question came first. Raises TransferTimeout."""
        with self._lock:
            is_new = question_id not in self._kept
            kept = self._kept.setdefault(question_id, Future())
            if len(self._kept) > self._limit:
                self._forget_one()
        if is_new:
            _fulfil(kept, answer)
        return self._read(kept, question_id)

    def _forget_one(self) -> None:
        """The oldest that was made: one that is just being made would be made twice."""
        made = next((each for each, future in self._kept.items() if future.done()), None)
        if made is not None:
            del self._kept[made]

    def _read(self, kept: Future[Outcome], question_id: str) -> object:
        try:
            outcome = kept.result(self._patience_s)
        except FutureTimeout:
            text = f"call {question_id} came again, and its first answer was not made in {self._patience_s:g} s"
            raise TransferTimeout(text) from None
        if outcome.error is not None:
            raise copy(outcome.error)  # what is raised collects frames, and with them caches and mappings
        return outcome.value


def _fulfil(future: Future[Outcome], answer: Callable[[], object]) -> None:
    """An Outcome always: who waits for one that never came would wait in vain."""
    try:
        future.set_result(Outcome(answer()))
    except BaseException as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None  # the answer is kept for long
        kept = error if isinstance(error, Exception) else TransferTimeout(f"the answer was broken off: {error!r}")
        future.set_result(Outcome(error=kept))
        if kept is not error:
            raise
