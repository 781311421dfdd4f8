"""Jobs: one push or pull from checked arguments to landed bytes.

    caller's thread   arguments checked, blocks read into C arrays     (contract 12.1, steps 2 to 8)
    running thread    its turn awaited -> source found -> way found or opened -> both sides checked -> moved
A route that proves stale before a byte moved, or a peer that had died by then, is resolved once more: a restarted peer
is found by that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ray_kvfabric.cache.keys import WayName
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.links import Way
from ray_kvfabric.endpoint.mover import Mover
from ray_kvfabric.endpoint.rules import check_accessible, check_element_width, check_pushable, check_requested_pull
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import (
    NotLinked,
    ParamInvalid,
    PeerGone,
    PeerLost,
    StaleIncarnation,
    StaleRoute,
    StillMoving,
    TransferTimeout,
)
from ray_kvfabric.memory.copy import RegionTable, StopWord
from ray_kvfabric.memory.device import Mark
from ray_kvfabric.plan import Blocks, Fit, LayerRequest, Plan, blocks_fit, blocks_refusal, check_regions, span_layers
from ray_kvfabric.route import CacheInfo, Receipt
from ray_kvfabric.transport.base import Order, RemoteCache

_NOBODY = 0  # stands for a transfer that never came to rest


@dataclass(slots=True)
class Job(ABC):
    """One transfer between the local cache `cache_id` and the peer's cache that `way_name` names."""

    mover: Mover
    way_name: WayName
    cache_id: int
    layers: LayerRequest
    transfer_id: str
    deadline: Deadline
    is_pull: bool
    after: Mark | None
    priority: Priority

    def run(self, stop: StopWord | None = None) -> Receipt:
        """In the caller's thread. Raises QueueFull also."""
        with self.turn(stop) as turn:
            return self.move(stop, turn)

    def begin_now(self, span_s: float) -> None:
        """Its time counts from here on."""
        self.deadline = Deadline.after(span_s)

    def piece_turn(self, nbytes: int, deadline: Deadline) -> Turn:
        """For a part of it, of at most 4 MiB, between host memories."""
        target = self.way_name[0]
        return self.mover.gate.turn(target, target, nbytes, self.priority, deadline, None)

    def turn(self, stop: StopWord | None) -> Turn:
        """The right to move, to be waited for. A cache that is there no longer is for `move` to miss."""
        entry = self.mover.caches.look_up(self.cache_id)
        target = self.way_name[0]
        link = target if entry is None or entry.info.memory == "host" else (target, entry.info.memory)
        nbytes = 0 if entry is None else self.nbytes(entry)
        return self.mover.gate.turn(target, link, nbytes, self.priority, self.deadline, stop)

    def move(self, stop: StopWord | None, turn: Turn) -> Receipt:
        """With its turn taken."""
        try:
            entry = self.mover.caches.enter(self.cache_id, id(self))
            try:
                return self._run_inside(entry, stop, turn)
            except StillMoving:
                entry.inside.add(_NOBODY)  # it stays in use, also when this object is gone
                raise
            finally:
                entry.leave(id(self))
        except Exception:
            self.mover.counters.add("transfers_failed")
            raise

    @abstractmethod
    def nbytes(self, entry: CacheEntry) -> int:
        """About how many bytes it moves."""

    def _run_inside(self, entry: CacheEntry, stop: StopWord | None, turn: Turn) -> Receipt:
        gone = None
        try:
            return self._run_once(entry, stop, turn, is_last=False)
        except StaleRoute:
            pass  # and once more, outside the handler: a second error must not hold the first one's frames
        except PeerGone as error:
            gone = str(error)
        try:
            return self._run_once(entry, stop, turn, is_last=True)
        except (NotLinked, TransferTimeout):  # nobody has followed it, or nobody can say
            if gone is None:
                raise
        raise PeerLost(gone)

    @abstractmethod
    def _run_once(self, entry: CacheEntry, stop: StopWord | None, turn: Turn, *, is_last: bool) -> Receipt: ...

    def order(self, entry: CacheEntry, stop: StopWord | None, turn: Turn | None) -> Order:
        memory = entry.info.memory
        return Order(self.transfer_id, self.deadline.at_ns, stop, memory, self.after, self.cache_id, None, turn)

    def _move(self, way: Way, local: RegionTable, remote: RemoteCache, plan: Plan, order: Order) -> Receipt:
        try:
            if self.is_pull:
                return way.link.pull(remote, local, plan, order)
            return way.link.push(local, remote, plan, order)
        except (StaleRoute, StaleIncarnation, PeerLost):
            self.mover.links.forget(way)
            raise

    def _check_pair(self, here: CacheInfo, way: Way, there: CacheInfo, names: tuple[str, str]) -> None:
        """Both caches may take part, whatever is to be moved between them."""
        is_requested = self.is_pull and self.mover.mode == "request"
        check_accessible(here, there, str(way.link.peer), is_requested=is_requested)
        if not self.is_pull:
            self._check_leave(there, str(way.link.peer))
        if is_requested:
            check_requested_pull(here, there, way.link.peer, self.mover.has_device_pool)
        check_element_width(here.data_type, there.data_type, names)

    def _check_leave(self, there: CacheInfo, peer: str) -> None:
        """Whether it may push there at all."""
        check_pushable(there, peer)

    def _sides(self, here: CacheInfo, there: CacheInfo) -> tuple[CacheInfo, CacheInfo]:
        """Source, then target."""
        return (there, here) if self.is_pull else (here, there)

    def _names(self, way: Way) -> tuple[str, str]:
        here = f"cache {self.cache_id} of endpoint {self.mover.cluster_id}"
        there = f"cache {way.remote.info.cache_id} of endpoint {self.way_name[0]}"
        return (there, here) if self.is_pull else (here, there)


@dataclass(slots=True)
class BlocksJob(Job):
    """Blocks of one cache to blocks of another, as many as the lists have."""

    source_blocks: Blocks
    target_blocks: Blocks

    def nbytes(self, entry: CacheEntry) -> int:
        return len(self.target_blocks) * entry.nbytes_of_block(self.layers)

    def _run_once(self, entry: CacheEntry, stop: StopWord | None, turn: Turn, *, is_last: bool) -> Receipt:
        way, plan = self.prepare(entry, is_last=is_last)
        return self._move(way, entry.table, way.remote, plan, self.order(entry, stop, turn))

    def prepare(self, entry: CacheEntry, *, is_last: bool) -> tuple[Way, Plan]:
        """The way, and what is to move on it, checked against both caches. Raises what refuses it."""
        way = self._way(entry)
        try:
            return way, self._plan(entry, way)
        except ParamInvalid as refusal:
            if is_last or way.link.is_current(way.remote):
                raise
            self.mover.links.forget(way)  # it was checked against what may be there no longer
            raise StaleRoute(str(refusal)) from None

    def _way(self, entry: CacheEntry) -> Way:
        return self.mover.links.way(self.way_name, entry.info.memory, self.deadline)

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
        """Their layers, blocks and elements have equal sizes."""
        names = self._names(way)
        self._check_pair(entry.info, way, way.remote.info, names)
        source, target = self._sides(entry.info, way.remote.info)
        for cache, name in zip((source, target), names, strict=True):
            if not cache.is_blocks:  # a key by id may name one
                raise ParamInvalid(f"{name} is a continuous cache, it has no blocks")
        span = span_layers(self.layers, len(source.regions), len(target.regions))
        check_regions(span, source.regions, target.regions, names)
        return Fit(span, source.regions[0].num_blocks, target.regions[0].num_blocks)
