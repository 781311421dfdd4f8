"""FaultyTransport: any transport, whose links do what a FaultPlan says. The wrapped one knows nothing of it.

The points inside a cell, TRUNCATE and FLIP need a transport that moves its bytes with the copy kernel of its LocalEnd;
under another one the log says that they were not reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, cast

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt, Route
from ray_kvfabric.testing.fault_plan import Event, EventLog, FaultKind, FaultPlan, Logged, Point
from ray_kvfabric.testing.faulty_copier import FaultyCopier
from ray_kvfabric.testing.occasion import Occasion, PauseHook, go_on
from ray_kvfabric.transport.base import Answerer, Link, LocalEnd, Order, RemoteCache, Serving, Transport

LATE_S = 10.0  # a late duplicate has so long


class Late(NamedTuple):
    """A push that was acknowledged and will be made again."""

    number: int
    source: RegionTable
    target: RemoteCache
    plan: Plan
    order: Order


class FaultyLink(Link):
    """`transport` and everything else is the inner link's."""

    def __init__(
        self, inner: Link, copier: FaultyCopier, plan: FaultPlan, log: EventLog, pause: PauseHook = go_on
    ) -> None:
        super().__init__(inner.local, inner.peer)
        self.transport = inner.transport  # type: ignore[misc]  # as the wrapped one's class has it
        self._inner = inner
        self._copier = copier
        self._plan = plan
        self._log = log
        self._pause = pause
        self._late: list[Late] = []
        self.is_closed = False

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        """What was duplicated on this link before is made again first."""
        self.deliver_late()
        occasion = Occasion(Event.PUSH, order, self._plan, self._log, self._pause)
        receipt = self._carry_out(occasion, target, plan, lambda: self._inner.push(source, target, plan, order))
        if occasion.takes(FaultKind.DUPLICATE):
            self._late.append(Late(occasion.number, source, target, plan, order))
        return self._acknowledge(occasion, receipt)

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        occasion = Occasion(Event.PULL, order, self._plan, self._log, self._pause)
        receipt = self._carry_out(occasion, source, plan, lambda: self._inner.pull(source, target, plan, order))
        return self._acknowledge(occasion, receipt)

    def _carry_out(self, occasion: Occasion, remote: RemoteCache, plan: Plan, move: Callable[[], Receipt]) -> Receipt:
        try:
            occasion.reach(Point.BEFORE)
            if occasion.takes(FaultKind.DROP):
                first = plan.span.target_first if occasion.event is Event.PUSH else plan.span.source_first
                return self._claimed(remote, first, plan, occasion.order)
            with self._copier.on(occasion):
                return move()
        except BaseException as error:
            occasion.end(type(error).__name__)
            raise

    def _acknowledge(self, occasion: Occasion, receipt: Receipt) -> Receipt:
        try:
            occasion.reach(Point.LANDED)
        finally:
            occasion.end("landed")
        return receipt

    def _claimed(self, remote: RemoteCache, first: int, plan: Plan, order: Order) -> Receipt:
        """The receipt of a transfer that was never made; `first` is the first tensor there."""
        span, now_ns = plan.span, time.monotonic_ns()
        regions = remote.info.regions[first : first + span.num_regions]
        nbytes = sum(region.block_nbytes for region in regions) * len(plan.source_blocks)
        return Receipt(
            order.transfer_id, self.local.endpoint.cluster_id, self.peer.cluster_id, remote.info.cache_id,
            span.first_layer, span.num_layers, len(plan.source_blocks), nbytes, self.transport, now_ns, now_ns,
        )  # fmt: skip

    def deliver_late(self) -> None:
        """Makes each duplicated push once more, whatever the receiver says to it; the log tells what it said."""
        late, self._late = self._late, []
        for each in late:
            order = each.order._replace(deadline_ns=Deadline.after(LATE_S).at_ns, turn=None, stop=None)
            try:
                self._inner.push(each.source, each.target, each.plan, order)
                outcome = "landed"
            except FabricError as error:
                outcome = type(error).__name__
            self._log.note(Logged(Event.PUSH.value, each.number, "late", FaultKind.DUPLICATE.value, outcome))

    # ---- the inner link's own ------------------------------------------------------------------------

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        return self._inner.open_cache(cache, deadline)

    def fail_grant(self, use: GrantUse, code: int, reason: str, deadline: Deadline) -> None:
        self._inner.fail_grant(use, code, reason, deadline)

    @property
    def nbytes_pushed(self) -> int:
        return self._inner.nbytes_pushed

    @property
    def nbytes_pulled(self) -> int:
        return self._inner.nbytes_pulled

    @property
    def num_landed(self) -> int:
        return self._inner.num_landed

    @property
    def device_nbytes(self) -> int:
        return self._inner.device_nbytes

    def totals(self) -> dict[str, int]:
        return self._inner.totals()

    def is_current(self, remote: RemoteCache) -> bool | None:
        return self._inner.is_current(remote)

    def tidy(self) -> None:
        self._inner.tidy()

    def peer_ended(self) -> None:
        self._inner.peer_ended()

    @property
    def is_alive(self) -> bool:
        return self._inner.is_alive

    def close(self) -> None:
        """A duplicate that was not delivered by now never will be."""
        self._late.clear()
        self.is_closed = True
        self._inner.close()


class FaultyTransport(Transport):
    """Has the name and the capabilities of what it wraps. `pause` is called where the plan says PAUSE."""

    def __init__(
        self, inner: Transport, plan: FaultPlan, *, log: EventLog | None = None, pause: PauseHook = go_on
    ) -> None:
        self.name = inner.name  # type: ignore[misc]  # as the wrapped one's class has it
        self.capabilities = inner.capabilities  # type: ignore[misc]
        self.log = EventLog() if log is None else log
        self._inner = inner
        self._plan = plan
        self._pause = pause
        self._links: list[FaultyLink] = []

    def missing(self) -> str | None:
        return self._inner.missing()

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        return self._inner.refusal(local, route)

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        copier = FaultyCopier(local.copier)
        inner = self._inner.open_link(replace(local, copier=cast(Copier, copier)), peer, peers, deadline)
        link = FaultyLink(inner, copier, self._plan, self.log, self._pause)
        self._links = [each for each in self._links if not each.is_closed] + [link]
        return link

    def deliver_late(self) -> None:
        """Now, instead of before the next push on the same link."""
        for link in self._links:
            link.deliver_late()

    def serve(self, serving: Serving) -> dict[str, Answerer]:
        return self._inner.serve(serving)

    def sweep(self) -> None:
        self._inner.sweep()

    def peer_ended(self, incarnation: int) -> None:
        self._inner.peer_ended(incarnation)

    def describe(self) -> dict[str, object]:
        return self._inner.describe()

    def close(self) -> None:
        self._links.clear()
        self._inner.close()
