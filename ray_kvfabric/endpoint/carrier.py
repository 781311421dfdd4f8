"""Carrier: does a transfer for a peer, because the host memory that takes part in it is on this side.

the peer pushes  DEVICE there -> HOST here    this endpoint pulls, through its staging buffers
the peer pulls   HOST here -> DEVICE there    this endpoint pushes
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.links import LinkTable, Way
from ray_kvfabric.errors import PeerLost, StaleIncarnation, StaleRoute, TransferTimeout
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.base import LocalCache, Order, RemoteCache, Serving
from ray_kvfabric.transport.questions import inside, reached, told_plan


class Carrier:
    """Answers `transport.delegation.CARRY_OUT`."""

    def __init__(self, serving: Serving, links: LinkTable) -> None:
        self._serving = serving
        self._links = links

    def carry_out(self, arguments: dict[str, Any]) -> tuple[object, ...]:
        """The receipt as the peer and this endpoint keep it. Raises what the transfer raises."""
        deadline = Deadline(arguments["deadline_ns"])
        if deadline.passed:  # the asker has given up, and may use its blocks for something else
            raise TransferTimeout(f"transfer {arguments['transfer_id']} was out of time before it was begun here")
        with self._visit(arguments) as cache:
            try:
                receipt = self._attempt(cache, arguments, deadline)
            except StaleRoute:  # their cache is another than this endpoint knew
                receipt = self._attempt(cache, arguments, deadline)
        receipt = receipt._replace(
            source_cluster_id=arguments["their_cluster_id"],
            target_cluster_id=self._serving.local.endpoint.cluster_id,
            cache_id=arguments["cache_id"],
        )
        if arguments["is_pull"]:
            self._serving.keep(receipt)
        return tuple(receipt)

    def _visit(self, arguments: dict[str, Any]) -> AbstractContextManager[LocalCache]:
        """The peer pushes where this endpoint pulls."""
        if arguments["is_pull"]:
            return self._serving.receive(arguments)
        return self._serving.visit(arguments["cache_id"], arguments["generation"])

    def _attempt(self, cache: LocalCache, arguments: dict[str, Any], deadline: Deadline) -> Receipt:
        name = arguments["their_cluster_id"], CacheName("id", arguments["their_cache_id"])
        way = self._links.way(name, cache.info.memory, deadline, is_asked=True)
        try:
            return self._move(way, cache, arguments, deadline)
        except (StaleRoute, StaleIncarnation, PeerLost):
            self._links.forget(way)
            raise

    def _move(self, way: Way, cache: LocalCache, arguments: dict[str, Any], deadline: Deadline) -> Receipt:
        copier = self._serving.local.copier
        plan = told_plan(copier, arguments)
        here = copier.RegionTable(inside(cache.info, arguments["your_regions"]), owner=cache.table)
        there = copier.RegionTable(reached(way.remote, arguments["my_regions"]), owner=way.remote.table)
        remote = RemoteCache(way.remote.info, there, way.remote.step)
        order = Order(
            arguments["transfer_id"],
            deadline.at_ns,
            memory=cache.info.memory,
            cache_id=cache.info.cache_id,
            is_asked=True,
        )
        if arguments["is_pull"]:
            return way.link.pull(remote, here, plan, order)
        return way.link.push(here, remote, plan, order)
