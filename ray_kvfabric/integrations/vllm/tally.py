"""Tally: what a connector counts between two looks of its engine. Threads may share it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

Number = int | float

PUSHES, PUSHED, HIDDEN, PARKED_S = "pushes", "bytes_pushed", "bytes_hidden", "parked_seconds"
RECEIVES, RECEIVED, RECEIVE_S = "receives", "bytes_received", "receive_seconds"
FAILED = "failed_"  # and the reason's class


class Tally:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Number] = {}

    def add(self, **amounts: Number) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] = self._counts.get(name, 0) + amount

    def take(self) -> dict[str, Number] | None:
        """Everything since the last call; None, without a lock, when there is nothing."""
        if not self._counts:
            return None
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts


def merged(first: Mapping[str, Number], second: Mapping[str, Number]) -> dict[str, Number]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in dict.fromkeys((*first, *second))}


def readable(counts: Mapping[str, Number]) -> dict[str, Number]:
    """What an engine's log says of an interval."""
    pushed = counts.get(PUSHED, 0)
    shown: dict[str, Number] = dict(counts)
    if pushed:
        shown["hidden_share"] = round(counts.get(HIDDEN, 0) / pushed, 3)
    return shown
