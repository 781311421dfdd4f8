"""Watch: the thread by which an endpoint notices what nobody tells it: writers that died, grants that expired.

It sleeps between two looks and is started by the first link or grant, so an endpoint that has neither has no thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Watch:
    """`look` is called every `period_s` seconds, and once more for each `begin`."""

    def __init__(self, look: Callable[[], None], period_s: float) -> None:
        self._look = look
        self._period_s = period_s
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """From now on there is something to look after. Cheap when it is so already."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="kvfabric-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._look_once()

    def _look_once(self) -> None:
        try:
            self._look()
        except Exception:  # the next look may succeed; nothing else looks
            if not self._stopped.is_set():
                logger.exception("a look after links and grants failed")

    def stop(self) -> None:
        """Waits for a look that is under way."""
        with self._lock:
            self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._look = _nothing


def _nothing() -> None:
    """What an endpoint that was closed looks after."""
