"""Mover: what a job needs of its endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_kvfabric.endpoint.caches import CacheTable
from ray_kvfabric.endpoint.links import LinkTable
from ray_kvfabric.memory.copy import Copier
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.telemetry import Counters

NotePull = Callable[[EndpointInfo, int, int, range], None]  # the owner, its cache_id, row, tensors


def tell_nobody(owner: EndpointInfo, cache_id: int, row: int, tensors: range) -> None:
    """The NotePull of an endpoint that was closed."""


@dataclass(slots=True)
class Mover:
    """`note_pull` tells the owner of a row that it was pulled (contract 12.3: keys are used up by that)."""

    cluster_id: int
    mode: str  # "one_sided" or "request"
    has_device_pool: bool
    caches: CacheTable
    links: LinkTable
    counters: Counters
    copier: Copier
    note_pull: NotePull
