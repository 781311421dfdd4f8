"""Source: the process that pushes and times its own calls, every contender between the calls of the others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from ray_kvfabric.bench.cases import Case, Lists
from ray_kvfabric.bench.contents import GrantedLedger, Held, Ledger, fill_source
from ray_kvfabric.bench.endpoints import Roads, Target, describe, settings
from ray_kvfabric.bench.lanes import (
    BareCopy,
    GrantedPush,
    Lane,
    LaneKey,
    OneToMany,
    Push,
    Singles,
    Tables,
    loops,
    yardstick,
)
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.grant import Grant
from ray_kvfabric.memory.copy import Copier, RegionTable, load
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.route import CacheInfo, Route

SHARED, FOREIGN, GRANTED, VERIFIED = range(4)  # model_ids of the peer's caches
SOURCE_ID, TARGET_ID, LOCAL_ID, MANY_IDS = 1, 2, 3, (4, 5, 6, 7)  # cluster_ids
_LIMIT = 2  # model_id of the local cache that the kernel's own loops write
GRANTS = {"granted": GRANTED, "verified": VERIFIED}
MANY: dict[str, tuple[int, type[OneToMany] | type[Singles]]] = {"one_to_many": (0, OneToMany), "singles": (1, Singles)}

Samples = dict[LaneKey, list[int]]


class Ends(NamedTuple):
    """What the source pushes to; `granted` and `many` by contender, `many` for several endpoints each."""

    shared: Route
    foreign: Route
    granted: dict[str, tuple[Route, Grant]]
    many: dict[str, list[Route]]

    @property
    def routes(self) -> list[Route]:
        granted = [route for route, _ in self.granted.values()]
        return [self.shared, self.foreign, *granted, *(route for routes in self.many.values() for route in routes)]


class Source:
    """One case. A filled source cache, and lanes to the peers' caches, to this process and beside them."""

    def __init__(self, case: Case, ends: Ends, yard_nbytes: int) -> None:
        self._case = case
        roads = Roads()
        self._manager = CacheManager(SOURCE_ID, directory=roads, settings=settings())
        self._copier = load(self._manager.settings.copy_kernel)
        self._cache = self._manager.allocate_blocks_cache(describe(case))
        fill_source(self._cache, case)
        self._local = Target(LOCAL_ID)
        here = self._local.open_cache(case, SHARED)
        for route in (*ends.routes, here):
            roads.put(route)
        self._memcpy = yardstick(case, yard_nbytes)
        to_shared, to_foreign, to_here = (self._push(route) for route in (ends.shared, ends.foreign, here))
        self._pushes = {"shared_memory": to_shared, "process_vm": to_foreign, "loopback": to_here}
        self._granted = {name: self._grant_push(name, grant) for name, (_, grant) in ends.granted.items()}
        self._many = {name: self._many_push(name, routes) for name, routes in ends.many.items()}
        beside = self._beside(ends.shared, to_shared)
        pushes: list[Lane] = [*self._pushes.values(), *self._granted.values(), *self._many.values()]
        self._lanes = [*pushes, self._memcpy, *beside]

    def _push(self, route: Route) -> Push:
        key = BlocksCacheKey(route.endpoint.cluster_id, route.cache.model_id or 0)
        self._manager.open_link(key)
        verdicts = self._manager.explain(key)[1]
        transport = next(verdict.name for verdict in verdicts if verdict.refusal is None)
        return Push(LaneKey("kvfabric", transport), Ledger(self._case), self._manager, self._cache, key)

    def _grant_push(self, name: str, grant: Grant) -> GrantedPush:
        ledger = GrantedLedger(self._case, grant.blocks)
        return GrantedPush(LaneKey(name, "shared_memory"), ledger, self._manager, self._cache, grant)

    def _many_push(self, name: str, routes: list[Route]) -> OneToMany | Singles:
        keys = tuple(BlocksCacheKey(route.endpoint.cluster_id, route.cache.model_id or 0) for route in routes)
        key = LaneKey(name, "shared_memory")
        return MANY[name][1](key, Ledger(self._case), self._manager, self._cache, keys)

    def _beside(self, shared: Route, push: Push) -> list[Lane]:
        """What bounds a push: the bare copy for a small case, the kernel's own loops for a large one."""
        source = _table(self._copier, self._manager.caches()[0])
        if self._case.is_small:
            tables = Tables(self._copier, source, _map(self._copier, shared))
            return [BareCopy(LaneKey("bare_c"), push.ledger, tables)]
        target = self._local.open_cache(self._case, _LIMIT).cache
        self._limit = Ledger(self._case)
        return [*loops(self._copier, self._limit, Tables(self._copier, source, _table(self._copier, target)))]

    def lanes(self) -> list[LaneKey]:
        return [lane.key for lane in self._lanes]

    def first_calls(self, seed: int) -> None:
        """One call of each lane, untimed; what it wrote is verified like the rest."""
        self.round(1, seed)

    def round(self, reps: int, seed: int) -> Samples:
        """`reps` calls of every lane in changing order. Everything is prepared before the first call."""
        random = Random(seed)
        drawn = [self._case.draw(random) for _ in range(reps)]
        calls = [
            (lane, lists, lane.prepare(lists))
            for rep in range(reps)
            for lane, lists in self._schedule(drawn, rep, random)
        ]
        samples: Samples = {lane.key: [] for lane in self._lanes}
        timed = [(call, samples[lane.key].append) for lane, _, call in calls]
        with _quiet_gc():
            for call, note in timed:
                note(call())
        for lane, lists, _ in calls:
            if lane.ledger is not None:
                lane.ledger.write(lists)
        return samples

    def _schedule(self, drawn: list[Lists], rep: int, random: Random) -> Iterator[tuple[Lane, Lists]]:
        """Large cases: the same lists for every lane. Small ones: each lane meets them at another time, uncached."""
        lanes = random.sample(self._lanes, len(self._lanes))
        for lane in lanes:
            shift = self._lanes.index(lane) * len(drawn) // len(self._lanes) if self._case.is_small else 0
            yield lane, drawn[(rep + shift) % len(drawn)]

    def held(self, transport: str) -> Held:
        """What the target of this transport's pushes must hold by now."""
        return self._pushes[transport].ledger.held

    def held_of(self, contender: str) -> Held:
        """What the targets of granted pushes, or of those to many, must hold by now."""
        lane = self._granted.get(contender) or self._many[contender]
        return lane.ledger.held

    def seal(self) -> None:
        """A last granted push of every block, after which the receiver has its receipt."""
        for lane in self._granted.values():
            lane.seal()

    def wrong_here(self) -> dict[LaneKey, str | None]:
        """For the lanes whose target lies in this process: what is wrong there."""
        found = {
            self._pushes["loopback"].key: self._local.first_wrong(SHARED, self.held("loopback")),
            self._memcpy.key: None if self._memcpy.is_right() else "the copied bytes differ",
        }
        if not self._case.is_small:
            wrong = self._local.first_wrong(_LIMIT, self._limit.held)
            found |= {lane.key: wrong for lane in self._lanes if lane.key.contender == "limit"}
        return found

    def yard_nbytes(self) -> int:
        return self._memcpy.nbytes

    def close(self) -> None:
        self._manager.close()
        self._local.close()
        self._memcpy.close()


def _table(copier: Copier, cache: CacheInfo) -> RegionTable:
    return copier.RegionTable(cache.regions)


def _map(copier: Copier, route: Route) -> RegionTable:
    """The peer's cache in the pages that its pushes write, mapped once more."""
    segment = route.cache.segments[0]
    memory = HostMemory.open_peer(route.endpoint.pid, segment.fd, segment.inode)
    move = memory.address - segment.address
    return copier.RegionTable([each._replace(base=each.base + move) for each in route.cache.regions], owner=memory)


@contextmanager
def _quiet_gc() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
