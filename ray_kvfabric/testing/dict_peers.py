"""DictPeers: the PeerCalls port between the managers of one process, which counts what is asked."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.control.directory import Mark, mark
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import PeerLost
from ray_kvfabric.route import EndpointInfo


class DictPeers:
    """Shared by the managers of one test, each of which is registered after it was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._managers: dict[Mark, CacheManager] = {}

    def register(self, manager: CacheManager) -> None:
        """From now on questions reach it."""
        self._managers[mark(manager.endpoint)] = manager

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """What is asked and answered is copied, so that what cannot travel fails here already."""
        self.calls[question] += 1
        manager = self._managers.get(mark(peer))
        if manager is None:
            raise PeerLost(f"{peer} is gone")
        return _copied(manager.answer(question, _copied(arguments)))


def _copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))
