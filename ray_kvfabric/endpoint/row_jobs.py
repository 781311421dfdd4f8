"""RowJob: a transfer of a row of a continuous cache, or of anything else that is not blocks to blocks.

The tensors of both sides are cut (`plan.Cut`) so that blocks of equal size face each other; then the same copy
runs as for blocks. These verbs are for whole requests, not for the hot path: tables are made anew for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.jobs import Job
from ray_kvfabric.endpoint.links import Way
from ray_kvfabric.endpoint.rules import check_rows_meet
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import RegionTable, StopWord
from ray_kvfabric.plan import Cut, LayerSpan, Part, Plan, span_layers
from ray_kvfabric.route import CacheInfo, Receipt
from ray_kvfabric.transport.base import RemoteCache


class Place(NamedTuple):
    """Where one tensor of a transfer begins: `offset` bytes into a region of its cache."""

    region: int
    offset: int


class Pair(NamedTuple):
    """Both caches of a row job, `there` as its owner described it last; `names` are those of source and target."""

    here: CacheInfo
    there: CacheInfo
    names: tuple[str, str]


CutRows = Callable[[Pair], list[Part]]  # both sides checked, and cut; raises what does not fit


@dataclass(slots=True)
class RowJob(Job):
    """`cut` decides what moves. `addresses`: the peer's tensors begin there, not where its cache's do."""

    cut: CutRows
    addresses: tuple[int, ...] | None
    notes_pull: bool

    def nbytes(self, entry: CacheEntry) -> int:
        return entry.nbytes_of_block(self.layers)

    def _run_once(self, entry: CacheEntry, stop: StopWord | None, turn: Turn, *, is_last: bool) -> Receipt:
        mover = self.mover
        way, there = mover.links.way_of_row(self.way_name, entry.info.memory, self.deadline)
        names = self._names(way)
        self._check_pair(entry.info, way, there, names)
        check_rows_meet(*self._sides(entry.info, there), names)
        parts = self.cut(Pair(entry.info, there, names))
        span, here_places, there_places = self._places(entry.info, there)
        for part in parts:
            near, far = (part.target, part.source) if self.is_pull else (part.source, part.target)
            local = self._table(entry.table, entry.info, here_places, near)
            table = self._table(way.remote.table, there, there_places, far)
            remote = RemoteCache(way.remote.info, table, way.remote.step)
            receipt = self._move(way, local, remote, self._plan(span, part), self.order(entry, stop, turn))
        if self.notes_pull:
            self._note_pull(way, there, parts[0].source, there_places)
        return receipt

    def _places(self, here: CacheInfo, there: CacheInfo) -> tuple[LayerSpan, list[Place], list[Place]]:
        """The span, and the tensors that it pairs on both sides."""
        if self.addresses is not None:
            layers = self.layers._replace(target=None)
            span = span_layers(layers, len(here.regions), len(self.addresses))
            return span, _from(span.source_first, span.num_regions), [_place(there, each) for each in self.addresses]
        source, target = self._sides(here, there)
        span = span_layers(self.layers, len(source.regions), len(target.regions))
        places = _from(span.source_first, span.num_regions), _from(span.target_first, span.num_regions)
        near, far = reversed(places) if self.is_pull else places
        return span, near, far

    def _table(self, table: RegionTable, info: CacheInfo, places: list[Place], cut: Cut) -> RegionTable:
        """The cut of these tensors, at the addresses at which `table` reaches them."""
        for place in places:
            extent = info.regions[place.region].extent
            if place.offset + cut.stop > extent:
                raise ParamInvalid(
                    f"bytes [{place.offset + cut.offset}, {place.offset + cut.stop}) of tensor {place.region} of "
                    f"cache {info.cache_id} are wanted, it has {extent}"
                )
        regions = [
            (table[place.region][0] + place.offset + cut.offset, cut.num_blocks, cut.nbytes, cut.stride)
            for place in places
        ]
        return self.mover.copier.RegionTable(regions, owner=table)

    def _plan(self, span: LayerSpan, part: Part) -> Plan:
        block_list = self.mover.copier.BlockList
        return Plan(
            span._replace(source_first=0, target_first=0),
            block_list(part.source_blocks, "src_blocks"),
            block_list(part.target_blocks, "dst_blocks"),
        )

    def _note_pull(self, way: Way, there: CacheInfo, cut: Cut, places: list[Place]) -> None:
        row = cut.offset // there.regions[0].block_stride
        tensors = range(places[0].region, places[-1].region + 1)
        self.mover.note_pull(way.link.peer, there.cache_id, row, tensors)


def _from(first: int, count: int) -> list[Place]:
    return [Place(region, 0) for region in range(first, first + count)]


def _place(cache: CacheInfo, address: int) -> Place:
    for index, region in enumerate(cache.regions):
        if region.base <= address < region.base + region.extent:
            return Place(index, address - region.base)
    raise ParamInvalid(f"dst_addrs has {address:#x}, which lies in no tensor of cache {cache.cache_id} of the peer")
