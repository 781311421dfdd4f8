"""Jobs: one push or pull from checked arguments to landed bytes.

    caller's thread   arguments checked, blocks read into C arrays     (contract 12.1, steps 2 to 8)
    running thread    source found -> way found or opened -> both sides checked -> moved
A route that proves stale before a byte moved is resolved once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_kvfabric.cache.types import DataType
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.caches import CacheEntry, CacheTable
from ray_kvfabric.endpoint.links import LinkTable, Way
from ray_kvfabric.errors import ParamInvalid, PeerLost, StaleIncarnation, StaleRoute
from ray_kvfabric.memory.copy import StopWord
from ray_kvfabric.plan import (
    Blocks,
    Fit,
    LayerRequest,
    Plan,
    blocks_fit,
    blocks_refusal,
    check_regions,
    span_layers,
)
from ray_kvfabric.route import CacheInfo, Receipt
from ray_kvfabric.telemetry import Counters
from ray_kvfabric.transport.base import Order


@dataclass(slots=True)
class Mover:
    """What a job needs of its endpoint."""

    cluster_id: int
    caches: CacheTable
    links: LinkTable
    counters: Counters


@dataclass(slots=True)
class Job:
    """One transfer between local cache `cache_id` and the blocks cache of (cluster_id, model_id)."""

    mover: Mover
    cluster_id: int
    model_id: int
    cache_id: int
    layers: LayerRequest
    source_blocks: Blocks
    target_blocks: Blocks
    transfer_id: str
    deadline: Deadline
    is_pull: bool = False

    def run(self, stop: StopWord | None = None) -> Receipt:
        try:
            return self._run_once(stop)
        except StaleRoute:
            pass  # and once more, outside the handler: a second error must not hold the first one's frames
        except Exception:
            self.mover.counters.add("transfers_failed")
            raise
        return self._run_once(stop)

    def _run_once(self, stop: StopWord | None) -> Receipt:
        entry = self.mover.caches.find_mapped(self.cache_id)
        way = self.mover.links.way(self.cluster_id, self.model_id, self.deadline)
        order = Order(self.transfer_id, self.deadline.at_ns, stop)
        plan = self._plan(entry, way)
        try:
            return self._move(entry, way, plan, order)
        except (StaleRoute, StaleIncarnation, PeerLost):
            self.mover.links.forget(way)
            raise

    def _move(self, entry: CacheEntry, way: Way, plan: Plan, order: Order) -> Receipt:
        if self.is_pull:
            return way.link.pull(way.remote, entry.table, plan, order)
        return way.link.push(entry.table, way.remote, plan, order)

    def _plan(self, entry: CacheEntry, way: Way) -> Plan:
        """The native stage of contract 12.1, every refusal before a byte moves.

        What depends on the caches and the layers alone is checked once a way; the blocks each time.
        """
        key = (self.cache_id, self.is_pull, self.layers)
        fit = way.fits.get(key)
        if fit is None:
            fit = way.fits[key] = self._fit(entry, way)
        if not blocks_fit(fit, self.source_blocks, self.target_blocks):
            raise blocks_refusal(fit, self.source_blocks, self.target_blocks, self._names(way))
        return Plan(fit.span, self.source_blocks, self.target_blocks)

    def _fit(self, entry: CacheEntry, way: Way) -> Fit:
        """Both caches may take part, and their layers, blocks and elements have equal sizes."""
        self._check_accessible(entry, way)
        source, target = self._sides(entry, way)
        span = span_layers(self.layers, len(source.regions), len(target.regions))
        names = self._names(way)
        _check_element_width(source.data_type, target.data_type, names)
        check_regions(span, source.regions, target.regions, names)
        return Fit(span, source.regions[0].num_blocks, target.regions[0].num_blocks)

    def _sides(self, entry: CacheEntry, way: Way) -> tuple[CacheInfo, CacheInfo]:
        """Source, then target."""
        here, there = entry.info, way.remote.info
        return (there, here) if self.is_pull else (here, there)

    def _check_accessible(self, entry: CacheEntry, way: Way) -> None:
        if not entry.info.remote_accessible:
            raise ParamInvalid(f"cache {entry.info.cache_id} was registered with remote_accessible=False")
        if not way.remote.info.remote_accessible:
            raise ParamInvalid(
                f"cache {way.remote.info.cache_id} of {way.link.peer} was registered with remote_accessible=False"
            )
        if entry.info.memory == "device":
            raise ParamInvalid(
                f"cache {entry.info.cache_id} lies in device memory, which {way.link.transport} does not reach"
            )

    def _names(self, way: Way) -> tuple[str, str]:
        here = f"cache {self.cache_id} of endpoint {self.mover.cluster_id}"
        there = f"cache {way.remote.info.cache_id} of endpoint {self.cluster_id}"
        return (there, here) if self.is_pull else (here, there)


def _check_element_width(source: str, target: str, names: tuple[str, str]) -> None:
    if DataType[source].element_nbytes != DataType[target].element_nbytes:
        raise ParamInvalid(f"element widths differ: {names[0]} holds {source}, {names[1]} {target}")
