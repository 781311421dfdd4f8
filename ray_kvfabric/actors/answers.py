"""Answers: what an endpoint answered to its peers, so that a question that comes twice is answered once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

KEPT = 1024
PATIENCE_S = 60.0  # who asks again while the first answer is made waits for it so long


class Answers:
    """The newest answers by question_id. A call is repeated when its reply, or a scheduler, was lost."""

    def __init__(self) -> None:
        self._kept: dict[str, Future[object]] = {}
        self._lock = threading.Lock()

    def once(self, question_id: str, answer: Callable[[], object]) -> object:
        """`answer()`, or what it returned or raised when this question came first."""
        with self._lock:
            is_new = question_id not in self._kept
            kept = self._kept.setdefault(question_id, Future())
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        if is_new:
            _fulfil(kept, answer)
        return kept.result(PATIENCE_S)


def _fulfil(future: Future[object], answer: Callable[[], object]) -> None:
    """The answer is kept for long, so its error must not hold frames, and with them caches and mappings."""
    try:
        future.set_result(answer())
    except Exception as error:
        error.__traceback__ = error.__context__ = None
        future.set_exception(error)
