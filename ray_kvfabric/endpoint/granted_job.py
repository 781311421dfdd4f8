"""GrantedJob: blocks of one cache to the blocks that a receiver has granted, and to nothing else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.grant_rules import check_incarnation, check_span
from ray_kvfabric.endpoint.jobs import BlocksJob
from ray_kvfabric.endpoint.links import Way
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import GrantRevoked, LLMException, TransferCancelled, TransferTimeout
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import StopWord
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import CacheInfo, Receipt
from ray_kvfabric.transport.base import Order

GIVE_UP_S = 2.0  # to tell the receiver


@dataclass(slots=True)
class GrantedJob(BlocksJob):
    """Refusals of the grant itself are the receiver's page's to make; here the way is checked and the plan."""

    use: GrantUse

    def begin_now(self, span_s: float) -> None:
        """Not beyond the grant's own time, where both are of one clock."""
        BlocksJob.begin_now(self, span_s)
        if self.use.grant.boot_id == self.mover.boot_id:
            self.deadline = Deadline(min(self.deadline.at_ns, self.use.grant.deadline_ns))

    def run(self, stop: StopWord | None = None) -> Receipt:
        try:
            return BlocksJob.run(self, stop)
        except (TransferTimeout, TransferCancelled) as error:
            self.give_up(error)
            raise

    def give_up(self, error: LLMException) -> None:
        """Nobody will bring these blocks, also where they never got their turn: the receiver shall not wait for them.

        Where the push had begun it was told already.
        """
        grant = self.use.grant
        with suppress(LLMException):
            way = self.mover.links.any_way(self.way_name, Deadline.after(GIVE_UP_S))
            check_incarnation(grant, way.route.endpoint)
            reason = f"{type(error).__name__}: {error}"
            way.link.fail_grant(self.use, int(error.status_code), reason, Deadline.after(GIVE_UP_S))

    def _way(self, entry: CacheEntry) -> Way:
        """One that was opened to another incarnation, or another cache, is looked for once more."""
        grant, links = self.use.grant, self.mover.links
        way = BlocksJob._way(self, entry)
        if (way.route.endpoint.incarnation, way.remote.info.generation) != (grant.incarnation, grant.generation):
            links.forget(way)
            way = BlocksJob._way(self, entry)
        check_incarnation(grant, way.route.endpoint)
        if way.remote.info.generation != grant.generation:
            raise GrantRevoked(f"{grant}: cache {grant.cache_id} was freed or re-keyed since")
        return way

    def _plan(self, entry: CacheEntry, way: Way) -> Plan:
        plan = BlocksJob._plan(self, entry, way)
        check_span(self.use.grant, plan.span)
        return plan

    def _check_leave(self, there: CacheInfo, peer: str) -> None:
        """The grant is its leave."""

    def order(self, entry: CacheEntry, stop: StopWord | None, turn: Turn | None) -> Order:
        memory = entry.info.memory
        return Order(self.transfer_id, self.deadline.at_ns, stop, memory, self.after, self.cache_id, self.use, turn)
