"""LocalUsers: transfers of peers that this process itself carries out under its own grants (two-sided transports)."""

from __future__ import annotations

import threading
from collections import Counter

from ray_kvfabric.deadline import Deadline


class LocalUsers:
    """How many are inside each grant. Threads may share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[str] = Counter()

    def enter(self, grant_id: str) -> None:
        with self._changed:
            self._inside[grant_id] += 1

    def leave(self, grant_id: str) -> None:
        with self._changed:
            self._inside[grant_id] -= 1
            if not self._inside[grant_id]:
                del self._inside[grant_id]
            self._changed.notify_all()

    def drain(self, grant_id: str, deadline: Deadline) -> bool:
        """Whether all have left in time. Nobody enters a fenced grant any more."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside[grant_id], deadline.remaining_s)
