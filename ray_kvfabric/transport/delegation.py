"""Letting the peer do a transfer whose host memory is the peer's: only that side has a staging buffer for it.

push, device here -> host there     the peer pulls from here, through its staging buffers
pull, host there -> device here     the peer pushes to here
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, PeerLost
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.base import Link, Order, RemoteCache
from ray_kvfabric.transport.device_copy import await_turn
from ray_kvfabric.transport.granted import check_undigested
from ray_kvfabric.transport.questions import ask, tell_plan, told

CARRY_OUT = "carry_out"
TELL_S = 1.0  # for a receiver to learn that a push under its grant has failed


@dataclass(slots=True)
class Tally:
    """What moved over a link, where no shared page counts it. Threads may share it."""

    nbytes_pushed: int = 0
    nbytes_pulled: int = 0
    num_landed: int = 0

    def count(self, nbytes: int, *, is_pull: bool) -> None:
        with _counting:
            if is_pull:
                self.nbytes_pulled += nbytes
            else:
                self.nbytes_pushed += nbytes
            self.num_landed += 1


_counting = threading.Lock()


class Delegate:
    """Of one link."""

    def __init__(self, link: Link, peers: PeerCalls | None) -> None:
        self._link = link
        self._peers = peers
        self.tally = Tally()

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        check_undigested(order.use, self._link.transport)
        try:
            return self._ask(source, target, plan, order, is_pull=False)
        except LLMException as error:
            if order.use is not None:
                with suppress(LLMException):
                    self._link.fail_grant(order.use, error.status_code, str(error), Deadline.after(TELL_S))
            raise

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        return self._ask(target, source, plan, order, is_pull=True)

    def _ask(self, here: RegionTable, there: RemoteCache, plan: Plan, order: Order, *, is_pull: bool) -> Receipt:
        """Raises what the peer's transfer raises."""
        link = self._link
        what = f"between endpoint {link.local.endpoint.cluster_id} and {link.peer}"
        await_turn(link.local.devices, order, what)
        if not link.is_alive:
            raise PeerLost(f"{link.peer} has died; nothing was moved")
        deadline = Deadline(order.deadline_ns)
        question = {**self._question(there, plan, order, is_pull), "my_regions": told(here)}
        receipt = Receipt(*ask(self._peers, link.peer, CARRY_OUT, question, deadline))
        self.tally.count(receipt.nbytes, is_pull=is_pull)
        return receipt

    def _question(self, remote: RemoteCache, plan: Plan, order: Order, is_pull: bool) -> dict[str, object]:
        return {
            "transfer_id": order.transfer_id,
            "deadline_ns": order.deadline_ns,  # both processes are of one host
            "is_pull": not is_pull,
            "cache_id": remote.info.cache_id,
            "generation": remote.info.generation,
            "their_cluster_id": self._link.local.endpoint.cluster_id,
            "their_cache_id": order.cache_id,
            "your_regions": told(remote.table),
            "from_cluster_id": self._link.local.endpoint.cluster_id,
            "incarnation": self._link.local.endpoint.incarnation,
            "transport": self._link.transport,
            "use": order.use,
            **tell_plan(plan),
        }
