"""FaultyPeers, FaultyDirectory: the two ports of an endpoint, on which requests and replies are lost.

Both losses come to what a caller over Ray sees in the end: TransferTimeout, or PeerLost where the plan's owner says so
(`error`). Nobody waits for the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, LLMException, TransferTimeout
from ray_kvfabric.ports import Directory, PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route
from ray_kvfabric.testing.fault_plan import Event, EventLog, FaultKind, FaultPlan, Logged

Value = TypeVar("Value")


class _Lossy:
    """Carries messages of one kind of event."""

    def __init__(self, event: Event, plan: FaultPlan, log: EventLog | None, error: type[LLMException]) -> None:
        self.log = EventLog() if log is None else log
        self._event = event
        self._plan = plan
        self._error = error

    def carry(self, what: str, call: Callable[[], Value]) -> Value:
        number = self.log.number(self._event)
        fault = self._plan.decide(self._event, number)
        kind = None if fault is None else fault.kind
        if fault is not None and kind is FaultKind.DELAY:
            time.sleep(self._plan.max_delay_s * fault.share)
        try:
            value = self._answer(what, call, kind)
        except BaseException as error:
            self._note(number, what, kind, type(error).__name__)
            raise
        self._note(number, what, kind, "answered")
        return value

    def _answer(self, what: str, call: Callable[[], Value], kind: FaultKind | None) -> Value:
        if kind is FaultKind.LOSE_REQUEST:
            raise self._error(f"{what} was not answered in time")
        try:
            value = call()
        except FabricError:
            if kind is not FaultKind.LOSE_REPLY:
                raise
        if kind is FaultKind.LOSE_REPLY:
            raise self._error(f"{what} was not answered in time")
        return value

    def _note(self, number: int, what: str, kind: FaultKind | None, outcome: str) -> None:
        self.log.note(Logged(self._event.value, number, what, kind.value if kind else "", outcome))


class FaultyPeers:
    """`ports.PeerCalls`."""

    def __init__(
        self,
        inner: PeerCalls,
        plan: FaultPlan,
        *,
        log: EventLog | None = None,
        error: type[LLMException] = TransferTimeout,
    ) -> None:
        self._inner = inner
        self._lossy = _Lossy(Event.ASK, plan, log, error)
        self.log = self._lossy.log

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        return self._lossy.carry(question, lambda: self._inner.ask(peer, question, arguments, deadline))


class FaultyDirectory:
    """`ports.Directory`. Its calls are numbered together; the log names each."""

    def __init__(self, inner: Directory, plan: FaultPlan, *, log: EventLog | None = None) -> None:
        self._inner = inner
        self._lossy = _Lossy(Event.CALL, plan, log, TransferTimeout)
        self.log = self._lossy.log

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        self._lossy.carry("announce", lambda: self._inner.announce(endpoint, deadline))

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        self._lossy.carry("publish", lambda: self._inner.publish(endpoint, cache, deadline))

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        self._lossy.carry("withdraw", lambda: self._inner.withdraw(endpoint, cache_id, deadline))

    def resolve(self, cluster_id: int, name: CacheName, deadline: Deadline) -> Route:
        return self._lossy.carry("resolve", lambda: self._inner.resolve(cluster_id, name, deadline))

    def endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        return self._lossy.carry("endpoint", lambda: self._inner.endpoint(cluster_id, deadline))

    def endpoint_at(self, alias: str, deadline: Deadline) -> EndpointInfo:
        return self._lossy.carry("endpoint_at", lambda: self._inner.endpoint_at(alias, deadline))

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        self._lossy.carry("leave", lambda: self._inner.leave(endpoint, deadline))
