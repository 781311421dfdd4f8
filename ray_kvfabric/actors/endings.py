"""Endings: tells an endpoint's manager which of its peers have ended."""

from __future__ import annotations

import logging
import math
import threading
import time

from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.control.directory import Mark
from ray_kvfabric.control.events import Ended

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # who was told of a peer and has it in use all the same is told again after so long


class Endings:
    """The manager is told aside, because it may have to wait for what it is ending.

    A peer that it is being told of is not watched: the scheduler would answer the next poll at once, with the same.
    """

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager
        self._told: dict[Mark, float] = {}  # until when it is not watched
        self._lock = threading.Lock()

    def watching(self) -> tuple[Mark, ...]:
        """The peers in use whose end the manager has to be told of."""
        in_use, now = self._manager.peers_in_use(), time.monotonic()
        with self._lock:
            self._told = {mark: until for mark, until in self._told.items() if until > now}
            return tuple(mark for mark in in_use if mark not in self._told)

    def tell(self, ended: tuple[Ended, ...]) -> None:
        """Returns at once."""
        if not ended:
            return
        self._rest(ended, math.inf)
        threading.Thread(target=self._tell, args=(ended,), name="kvfabric-endings", daemon=True).start()

    def _tell(self, ended: tuple[Ended, ...]) -> None:
        try:
            for (cluster_id, incarnation), reason in ended:
                self._manager.peer_ended(cluster_id, incarnation, reason)
        except Exception:  # what is left of it is swept by the manager's own checks
            logger.exception("the end of a peer could not be dealt with: %s", ended)
        finally:
            self._rest(ended, time.monotonic() + AGAIN_S)

    def _rest(self, ended: tuple[Ended, ...], until: float) -> None:
        with self._lock:
            self._told |= {each.mark: until for each in ended}
