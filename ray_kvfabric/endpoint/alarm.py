"""Alarm: calls somebody at a time, from a thread of its own that sleeps until then. Called by `gate`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LINGER_S = 1.0  # a thread that has nothing to wait for ends after so long


class Alarm:
    """`ring` gives the time at which it wants to be called again, None for never; no lock is held meanwhile."""

    def __init__(self, ring: Callable[[], float | None]) -> None:
        self._ring = ring
        self._changed = threading.Condition()
        self._at: float | None = None  # of time.monotonic()
        self._thread: threading.Thread | None = None

    def set(self, at: float | None) -> None:
        """Rings then, or earlier if it was to ring earlier."""
        if at is None:
            return
        with self._changed:
            if self._at is not None and self._at <= at:
                return
            self._at = at
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvfabric-alarm", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while self._sleep():
            self.set(self._ring())

    def _sleep(self) -> bool:
        """Until it is time to ring; False when nothing is left to wait for."""
        with self._changed:
            if self._at is None:
                self._changed.wait(_LINGER_S)
            while self._at is not None and (left := self._at - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._at is None:
                self._thread = None
                return False
            self._at = None
            return True
