"""Counters and one-time warnings of an endpoint; no exporter. Whoever exports reads `Counters.snapshot()`."""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger(__name__)


class Counters:
    """Named totals since the endpoint's start, such as `bytes_pushed/shared_memory`. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._warned: set[str] = set()

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._totals[name] += amount

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._totals)

    def warn_once(self, topic: str, message: str) -> None:
        """Counts `topic` always and logs `message` the first time."""
        self.add(topic)
        with self._lock:
            is_new = topic not in self._warned
            self._warned.add(topic)
        if is_new:
            logger.warning("%s", message)
