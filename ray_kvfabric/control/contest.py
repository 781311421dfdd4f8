"""Contest: announcements whose cluster_id or alias somebody has, until it is known whether that one lives.

Announce -> contends, each rival is probed -> one lives: refused | all are gone: entered
"""

from __future__ import annotations

from ray_kvfabric.control.directory import Mark, Member, exclude, mark, taken
from ray_kvfabric.control.events import Announce, Commands, Probe, Refuse
from ray_kvfabric.route import EndpointInfo


class Contest:
    """Each rival of each contender is being probed, once."""

    def __init__(self) -> None:
        self._contenders: dict[int, Announce] = {}
        self._probed: set[Mark] = set()

    def enter(self, event: Announce, rivals: list[Member]) -> Commands:
        self._contenders[event.request] = event
        unprobed = [rival for rival in rivals if mark(rival.endpoint) not in self._probed]
        self._probed.update(mark(rival.endpoint) for rival in unprobed)
        return [Probe(rival.endpoint, rival.actor_id) for rival in unprobed]

    def probed(self, endpoint: EndpointInfo) -> None:
        """The probe of this incarnation has ended."""
        self._probed.discard(mark(endpoint))

    def refuse(self, holder: EndpointInfo) -> Commands:
        """It lives: who wanted what it has is refused."""
        refused = [event for event in self._contenders.values() if exclude(holder, event.endpoint)]
        for event in refused:
            del self._contenders[event.request]
        return [Refuse(event.request, taken(holder, event.endpoint)) for event in refused]

    def take(self) -> list[Announce]:
        """All contenders, in the order they came; whoever takes them hands them in again."""
        contenders, self._contenders = list(self._contenders.values()), {}
        return contenders

    def gave_up(self, request: int) -> None:
        self._contenders.pop(request, None)

    def contenders(self) -> list[Announce]:
        return list(self._contenders.values())

    def is_probed(self, endpoint: EndpointInfo) -> bool:
        return mark(endpoint) in self._probed
