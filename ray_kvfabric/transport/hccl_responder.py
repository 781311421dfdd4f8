"""The responder's end of a transfer over HCCL: it derives the same items from the same plan, and confirms."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.base import LocalCache, Order, Serving
from ray_kvfabric.transport.device_copy import check_limits, pieces_of
from ray_kvfabric.transport.hccl_communicator import Communicator
from ray_kvfabric.transport.hccl_halves import Half, run_half
from ray_kvfabric.transport.hccl_library import RECEIVE, SEND
from ray_kvfabric.transport.hccl_pairs import INITIATOR, Pair, PairTable
from ray_kvfabric.transport.questions import inside, told_plan

TAKE_PART = "hccl_take_part"


class Responder:
    """Takes part in transfers that peers initiate."""

    def __init__(self, serving: Serving, pairs: PairTable) -> None:
        self._serving = serving
        self._pairs = pairs

    def take_part(self, arguments: dict[str, Any]) -> tuple[object, ...]:
        """The receipt. Raises what went wrong here; the communicator is broken then."""
        pair = Pair(arguments["initiator"], arguments["responder"], arguments["is_pull"])
        deadline = Deadline.after(arguments["timeout_s"])
        communicator = self._pairs.await_serial(pair, arguments["serial"], deadline)
        try:
            return tuple(self._take_part(communicator, arguments, deadline))
        except BaseException:
            self._pairs.discard(pair, communicator)
            raise

    def _take_part(self, communicator: Communicator, arguments: dict[str, Any], deadline: Deadline) -> Receipt:
        local, is_pull = self._serving.local, arguments["is_pull"]
        with self._visit(arguments) as cache:
            here = local.copier.RegionTable(inside(cache.info, arguments["your_regions"]), owner=cache.table)
            there = local.copier.RegionTable(arguments["my_regions"])
            source, target = (here, there) if is_pull else (there, here)
            plan = told_plan(local.copier, arguments)
            pieces = pieces_of(local, source, target, plan, apart=True)
            order = Order(arguments["transfer_id"], deadline.at_ns, memory=cache.info.memory)
            half = Half(SEND if is_pull else RECEIVE, pieces, order, INITIATOR, arguments["window_nbytes"])
            run_half(local, communicator, half, lambda: check_limits(order, "with its initiator"))
        receipt = self._receipt(arguments, plan, half.nbytes, is_pull)
        if not is_pull:
            self._serving.keep(receipt)
        return receipt

    def _visit(self, arguments: dict[str, Any]) -> AbstractContextManager[LocalCache]:
        if arguments["is_pull"]:
            return self._serving.visit(arguments["cache_id"], arguments["generation"])
        return self._serving.receive({**arguments, "incarnation": arguments["initiator"], "transport": "hccl"})

    def _receipt(self, arguments: dict[str, Any], plan: Plan, nbytes: int, is_pull: bool) -> Receipt:
        return Receipt(
            arguments["transfer_id"],
            arguments["from_cluster_id"],
            self._serving.local.endpoint.cluster_id,
            arguments["cache_id"],
            plan.span.first_layer,
            plan.span.num_layers,
            len(plan.source_blocks),
            nbytes,
            "hccl",
            arguments["started_ns"],
            time.monotonic_ns(),
        )
